"""What a network computes when units are pruned, and what gradients say of them, by hooks on the user's own modules.

Nothing of the project's graph is used but the names of layers, so this is what its networks and relevance are held
against.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

Logits = Callable[[Any], Tensor]


@torch.no_grad()
def places(model: nn.Module, names: Collection[str], x: Tensor) -> dict[str, nn.Module]:
    """Of each layer the module whose output its units are: the BatchNorm that reads the layer's output, or the layer.

    A BatchNorm reads it if it is given the same memory, which nothing has changed since.
    """
    modules = dict(model.named_modules())
    found: dict[str, nn.Module] = {}
    made: dict[tuple[int, int], tuple[str, Tensor, int]] = {}

    def make(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def on_forward(module: nn.Module, args: Any, output: Tensor) -> None:
            found[name] = module
            made[output.data_ptr(), output.numel()] = (name, output, output._version)

        return on_forward

    def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        name, _, version = made.get((args[0].data_ptr(), args[0].numel()), ("", None, -1))
        if name and version == args[0]._version and found[name] is modules[name]:
            found[name] = module

    handles = [modules[name].register_forward_hook(make(name)) for name in names if name in modules]
    handles += [module.register_forward_pre_hook(read) for module in modules.values() if isinstance(module, _BatchNorm)]
    model(x)
    for handle in handles:
        handle.remove()
    return found


class Heads(TorchDispatchMode):
    """Zeroes heads in what softmax over keys gives, and `scaled_dot_product_attention`, which holds one."""

    def __init__(self, kept: Sequence[Tensor]) -> None:
        """kept: of each softmax that will be met, in order, which heads stay; shape (heads,)."""
        super().__init__()
        self.left = list(kept)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_softmax", "_safe_softmax"):
            return result * self.left.pop(0).view(-1, 1, 1)
        if name.startswith("_scaled_dot_product"):
            return (result[0] * self.left.pop(0).view(-1, 1, 1), *result[1:])
        return result


@contextmanager
def pruned(
    model: nn.Module, layers: Mapping[str, nn.Module], kinds: Mapping[str, str], masks: Mapping[str, Tensor]
) -> Iterator[None]:
    """The model with units whose output is zero while the context is open.

    layers: of each layer of filters the module whose output they are (`places`). kinds: of the layers' units.

    Raises:
        LookupError: a layer whose units no hook can reach.
    """
    modules = dict(model.named_modules())
    heads: dict[str, list[Tensor]] = {}
    handles = []
    for name, kept in masks.items():
        if kinds[name] == "heads":
            heads.setdefault(name.rpartition(".")[0], []).append(kept)
            continue
        if name not in layers:
            raise LookupError(f"no module computes {name}")
        shape = (-1, 1, 1) if kinds[name] == "filters" else (-1,)
        zeroed = kept.view(shape)
        handles.append(layers[name].register_forward_hook(lambda _, args, output, zeroed=zeroed: output * zeroed))
    for name, kept_heads in heads.items():
        if name not in modules:
            raise LookupError(f"no module computes the heads of {name}")
        module, running = modules[name], []

        def enter(_: nn.Module, args: Any, kept_heads: list[Tensor] = kept_heads, running: list = running) -> None:
            running.append(Heads(kept_heads))
            running[-1].__enter__()

        def leave(_: nn.Module, args: Any, output: Any, running: list = running) -> None:
            mode = running.pop()
            mode.__exit__(None, None, None)
            if mode.left:
                raise LookupError("fewer softmaxes than layers of heads")

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that hides everything
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def gradient_times_activation(
    model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor, targets: Tensor, logits_of: Logits
) -> dict[str, Tensor]:
    """Of each filter, its output times the gradient of the target's logit over that logit, summed over space; then the
    sum over samples of absolute values: what LRP-0 gives in a network of ReLU, max pooling and linear operations.

    layers: of each layer the module whose output its filters are (`places`).
    """
    values: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def on_forward(module: nn.Module, args: Any, output: Tensor) -> None:
            values[name] = output.detach().clone()
            output.register_hook(lambda gradient: gradients.__setitem__(name, gradient))

        return on_forward

    handles = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    picked = logits_of(model(x)).gather(1, targets[:, None])[:, 0]
    picked.backward(1 / picked.detach())
    for handle in handles:
        handle.remove()
    return {
        name: (value * gradients[name]).flatten(2).sum(2).abs().sum(0)
        for name, value in values.items()
        if name in gradients
    }
