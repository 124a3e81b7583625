"""Our rules in plain zennit: heat maps of the user's own model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from zennit.canonizers import Canonizer
from zennit.core import Composite as ZennitComposite

from ..pruning.graph import trace
from ..pruning.network import Network
from ..pruning.precision import computed_in

if TYPE_CHECKING:
    from .composites import Composite

MISSING = object()


class GraphCanonizer(Canonizer):
    """While it is registered, calling the model runs its graph, with a composite's rules attached.

    Zennit's hooks reach modules only. Residual sums, attention and gates are often plain code in a forward function,
    for which zennit has a canonizer per family of models. In the graph of a model every operation is a module, and
    BatchNorm is folded. So the model's output is that of the graph, the logits, and its gradient for the images is
    their relevance. Modules of the model do not run themselves: hooks on them are not called.

    The graph is traced at the first call, and again for images of another size. What is changed in the model later is
    not seen until the composite is registered again.
    """

    def __init__(self, composite: Composite, *, reference: bool = False) -> None:
        super().__init__()
        self.composite, self.reference = composite, reference
        self.networks: dict[tuple[Any, ...], Network] = {}
        self.hooks: list[ZennitComposite] = []

    def copy(self) -> GraphCanonizer:
        return GraphCanonizer(self.composite, reference=self.reference)

    def apply(self, root_module: nn.Module) -> list[Canonizer]:
        instance = self.copy()
        instance.register(root_module)
        return [instance]

    def register(self, model: nn.Module) -> None:
        """Puts the graph in the place of the model's forward function, of this instance only.

        Raises:
            ValueError: a composite of ours is registered already.
        """
        if isinstance(getattr(model.forward, "__self__", None), GraphCanonizer):
            raise ValueError("the model has such a composite registered already: remove that one first")
        self.model, self.held = model, {"forward": self.forward, "_compiled_call_impl": None}
        self._exchange()

    def remove(self) -> None:
        self._exchange()
        for hooks in self.hooks:
            hooks.remove()
        self.networks.clear()

    def _exchange(self) -> None:
        """Swaps what is held here with what the model has of its own (not of its class) under the same names."""
        own = vars(self.model)
        before = {key: own.pop(key, MISSING) for key in self.held}
        own.update({key: value for key, value in self.held.items() if value is not MISSING})
        self.held = before

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Logits, shape (batch, classes), of float images, shape (batch, channels, height, width).

        Raises:
            TraceError: see `trace`.
            CompositeError: the composite does not fit the model.
            TypeError: there are other arguments than images.
        """
        given = [*args, *kwargs.values()]
        if len(given) != 1:
            raise TypeError(f"a model that is explained takes images and nothing else, not {len(given)} arguments")
        images = given[0]
        key = (images.shape[1:], images.device)
        if key not in self.networks:
            self._exchange()
            try:
                graph = trace(self.model, images)
            finally:
                self._exchange()
            hooks = self.composite.zennit(graph, reference=self.reference)
            hooks.register(graph.network)
            self.hooks.append(hooks)
            self.networks[key] = graph.network
        return _Explained.apply(self.networks[key], images)  # type: ignore[no-any-return, no-untyped-call]


class _Explained(torch.autograd.Function):
    """A network whose gradient is relevance, both in full float32 whatever the caller computes in."""

    @staticmethod
    def forward(ctx: Any, network: Network, images: Tensor) -> Tensor:
        with computed_in("fp32"), torch.inference_mode(False), torch.set_grad_enabled(ctx.needs_input_grad[1]):
            ctx.images = images.detach().clone().to(next(network.parameters()).dtype).requires_grad_()
            ctx.logits = network(ctx.images)
        return ctx.logits.detach().to(images.dtype)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        with computed_in("fp32"):
            start = relevance.to(ctx.logits.dtype)
            (passed,) = torch.autograd.grad(ctx.logits, ctx.images, start, retain_graph=True)
        return None, passed.to(relevance.dtype)
