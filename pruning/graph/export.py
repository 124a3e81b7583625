"""A model's own forward function as a graph of ATen's operations, by `torch.export`."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TraceError(ValueError):
    """The model holds something that relevance or pruning would silently get wrong. One line."""


@dataclass(frozen=True)
class Exported:
    """A model as exported.

    program: its graph, its signature and its tensors. model: the copy of the model that was exported. images, logits:
    two images and what the model gives for them. output: the name of the graph's value that holds the logits. others:
    how many other values the model gives, of auxiliary heads, say.
    """

    program: Any
    model: nn.Module
    images: Tensor
    logits: Tensor
    output: str
    others: int


MOST_IMAGES = 2**31
"""In a batch: torch 2.6 asks for a bound, since it rules the largest integer out for transformers."""
MOST_VALUES = 2**27
"""Of one activation of two images, where nobody says how large these are."""
USUAL = (224, 64, 32)
"""Sizes of images that are tried where a model has to be run for it."""
SIDES = (224, 32, 64, 128, 256, 299, 384, 96, 28, 16, 8, 48, 160, 192, 240, 288, 320, 336, 448, 512)
"""Sizes of images that are tried first where nobody says which a model takes; then all from 1 to 80."""


def export(model: nn.Module, example: Tensor | None) -> Exported:
    """The graph of a model's forward function, for images of the example's size, in any number.

    example: float images, shape (n, channels, height, width); None to find a size that the model takes.

    Raises:
        TraceError: the model does not take images, or does not export.
    """
    name = type(model).__name__
    model = baked(unwrapped(model))
    with _explicit_attention():
        images = _images(model, example)
        if isinstance(images, str):
            raise TraceError(
                f"{name} cannot be traced: no image size was found that it takes; give an example= ({images})"
            )
        try:
            with torch.no_grad(), warnings.catch_warnings(), _LogsLess():
                warnings.simplefilter("ignore")
                logits = logits_of(model(images.clone()))
                _split_attention(model)
                batch = torch.export.Dim("batch", min=2, max=MOST_IMAGES)
                program = torch.export.export(model, (images.clone(),), dynamic_shapes=({0: batch},), strict=False)
        except Exception as error:  # whatever the model's own code raises
            raise TraceError(f"{name} cannot be traced: {_one_line(error)}") from error
    others = len(program.graph_signature.user_outputs) - 1
    return Exported(program, model, images, logits, _logits_of(program, name), others)


@contextmanager
def _explicit_attention() -> Iterator[None]:
    """Without torch's fast path for transformers, whose one operation hides everything."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _LogsLess:
    """Quiets torch's reports of an export that fails, which an error of one line tells."""

    def __enter__(self) -> None:
        import logging

        self.logger = logging.getLogger("torch")
        self.before = self.logger.level
        self.logger.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.before)


def _logits_of(program: Any, name: str) -> str:
    """The output that holds the logits: the only one, the one called so, or the first that has a row for each image."""
    outputs = list(program.graph_signature.user_outputs)
    spec = program.call_spec.out_spec
    if len(outputs) > 1 and isinstance(spec.context, (list, tuple)) and "logits" in spec.context:
        place = list(spec.context).index("logits")
        children = spec.children() if hasattr(spec, "children") else spec.children_specs
        before = sum(child.num_leaves for child in children[:place])
        return str(outputs[before])
    node = next((node for node in program.graph.nodes if node.name == outputs[0]), None) if outputs else None
    value = None if node is None else node.meta.get("val")
    if not isinstance(value, Tensor):
        raise TraceError(f"{name} gives no tensor of logits")
    return str(outputs[0])


def logits_of(value: Any) -> Tensor:
    """The logits in what a model gives: a tensor, or the first of a tuple, or what it calls logits."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "logits"):
        return value.logits  # type: ignore[no-any-return]
    if isinstance(value, dict):
        return logits_of(value["logits"] if "logits" in value else next(iter(value.values())))
    return logits_of(value[0])


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in what torch.compile, DataParallel and DistributedDataParallel wrap around it."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    if "data-dependent" in text:
        where = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', text)
        here = [f"{file}:{line}" for file, line, _ in where if "/torch/" not in file][-1:]
        return "its control flow depends on what is in the image" + "".join(f" ({place})" for place in here)
    return (text.splitlines() or [type(error).__name__])[0]


# -- the model ----------------------------------------------------------------------------------------


def baked(model: nn.Module) -> nn.Module:
    """A copy in eval mode, its weights plain float32 (or float64) tensors.

    What computes weights when a layer is called (parametrizations, `weight_norm`, `spectral_norm`,
    `torch.nn.utils.prune`) is applied once, since nobody would call it in the compact network. Other forward hooks are
    left out, with a RuntimeWarning: whether they change something or only watch cannot be told.
    """
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    computed = {id(value): value.detach().clone() for value in held if not value.is_leaf}  # which cannot be copied
    model = copy.deepcopy(model, computed).eval()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)
        for hook in [*module._forward_pre_hooks.values()]:
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
    hooked = [name or "the model" for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    if hooked:
        text = f"forward hooks are left out of relevance and of pruned networks: those of {', '.join(hooked)}"
        warnings.warn(text, RuntimeWarning, stacklevel=5)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in model.parameters()):
        model = model.float()
    return model.requires_grad_(False)


def _bake_parametrizations(module: nn.Module) -> None:
    """Not by `parametrize.remove_parametrizations`, which takes them from the class, which a copy shares."""
    names = [*module.parametrizations.keys()]  # type: ignore[operator, union-attr]
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in names}
    del module.parametrizations
    module.__class__ = module.__class__.__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


# -- attention ----------------------------------------------------------------------------------------


class Unread:
    """In the place of attention's weights, which nothing may read as a value."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError("the model uses the attention's weights as a value")


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` with its projections as linear layers of their own."""

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first = module.num_heads, module.batch_first
        if module.in_proj_weight is not None:
            weights: Any = module.in_proj_weight.detach().chunk(3)
        else:
            weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.detach().chunk(3)
        for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            self.add_module(name, _linear(weight, bias))
        self.out_proj = _linear(module.out_proj.weight, module.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Unread]:
        if key_padding_mask is not None:
            raise ValueError("attention with a padding mask of keys, which images have no use for")
        if not self.batch_first:
            query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
        layers: tuple[Any, ...] = (self.q_proj, self.k_proj, self.v_proj)
        parts = zip(layers, (query, key, value), strict=True)
        q, k, v = (layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, tokens in parts)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask)
        mixed = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (mixed if self.batch_first else mixed.transpose(0, 1)), Unread()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _split_attention(model: nn.Module) -> None:
    """Puts a `SplitAttention` in the place of each of torch's own attention layers."""
    for parent in [*model.modules()]:
        for name, module in [*parent.named_children()]:
            own = type(module) is nn.MultiheadAttention and "forward" not in vars(module)
            if own and module.bias_k is None and not module.add_zero_attn:
                setattr(parent, name, SplitAttention(module))


# -- images -------------------------------------------------------------------------------------------


def _images(model: nn.Module, example: Tensor | None) -> Tensor | str:
    """Two images of a size that a model takes, on its device; what is wrong with most sizes, where none is found."""
    first = next(model.parameters(), torch.empty(0))
    if example is not None:
        return torch.cat([example[:2], example[:1]])[:2].detach().to(first.device, first.dtype)
    problems: dict[int, list[str]] = defaultdict(list)  # by channels
    generator = torch.Generator().manual_seed(0)
    for device in dict.fromkeys(("meta", first.device.type)):  # a model may hold tensors that do not move
        tried = model if device == first.device.type else copy.deepcopy(model).to("meta")
        for shape in _shapes(model):
            if tried is model and shape[-1] not in USUAL:
                continue
            images = torch.randn(2, *shape, generator=generator, dtype=first.dtype)
            try:
                with torch.no_grad(), _Bounded():
                    logits = logits_of(tried(images.to(next(tried.parameters(), first).device)))
                if len(logits) == len(images):
                    return images.to(first.device)
                problems[shape[0]].append("it gives another number of logits than there are images")
            except Exception as error:  # whatever the model's own code raises at a size that it does not take
                problems[shape[0]].append(_one_line(error))
    return Counter(next(iter(problems.values()))).most_common(1)[0][0]


class _Bounded(TorchDispatchMode):
    """Refuses images so large that a value of the network would take up the memory."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attention = "scaled_dot_product" in str(function)
        products = args[0].numel() // args[0].shape[-1] * args[1].shape[-2] if attention else 0
        if products <= MOST_VALUES:
            result = function(*args, **(kwargs or {}))
            values = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
            if all(value.untyped_storage().nbytes() <= 4 * MOST_VALUES for value in values):  # a view needs no more
                return result
        raise MemoryError("images of this size take too much memory")


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of images that a model may take: what it says of itself, then those that are usual."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    channels = layers[0].in_channels if layers and isinstance(layers[0], nn.Conv2d) else 3
    for holder in (model, *model.children()):
        cfg = getattr(holder, "default_cfg", None)
        if cfg is not None and "input_size" in cfg:
            yield tuple(cfg["input_size"])
        config = getattr(holder, "config", None)
        for size in (getattr(config, "image_size", None), getattr(holder, "image_size", None)):
            if isinstance(size, (int, tuple, list)):
                height, width = (size, size) if isinstance(size, int) else size[-2:]
                yield (channels, height, width)
    flat = layers[0].in_features if layers and isinstance(layers[0], nn.Linear) else 0
    for depth in dict.fromkeys((channels, 1, 3)):
        for side in dict.fromkeys((*SIDES, *range(1, 81))):
            yield (depth, side, side)
        side = math.isqrt(flat // depth)
        if flat and depth * side * side == flat:
            yield (depth, side, side)


def line_of(node: fx.Node) -> str:
    """The line of the user's source that an operation comes from: "file.py:12", as far as export has kept it."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in lines if "/torch/" not in file]
    file, line = (own or lines or [("", "")])[-1]
    return f"{file}:{line}" if file else ""
