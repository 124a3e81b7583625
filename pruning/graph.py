"""From a model to a graph: traced, BatchNorm folded, every operation a module, attention made explicit.

`trace` is the one place that understands models. What it returns tells everything that others need: which
layers take LRP rules, which units can be pruned, how deep each layer lies.
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from . import network as ops
from .convolution import convolution
from .dimensions import dimensions
from .network import Network, Step, clone

UNIT_KINDS = ("filters", "neurons", "heads")
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class TraceError(ValueError):
    """The model holds something that relevance or pruning would silently get wrong. One line."""


@dataclass(frozen=True)
class Norm:
    """The BatchNorm that was folded into a layer, as needed to re-estimate its statistics.

    gamma, beta: scale and shift, shape (channels,). std: `sqrt(running_var + eps)` when folded, (channels,).
    """

    gamma: Tensor
    beta: Tensor
    std: Tensor
    eps: float


@dataclass(frozen=True)
class Graph:
    """A traced model.

    network: the folded network, in eval mode, parameters without gradients.
    groups: depth group of each layer that takes a rule ("low", "mid", "high", "classifier"), in order.
    types: layer type of each layer that takes a rule, within its group (see `layer_type`).
    kinds: of each prunable layer, in order, the kind of its units.
    sizes: of each prunable layer, how many units it has.
    heads: of each query, key and value projection, the softmax whose heads it computes.
    norms: BatchNorms folded into layers, by layer.
    nonnegative: layers whose input is never negative (it comes from ReLU), so that rules may be simpler.
    rectified: layers whose output goes into ReLU only, so that a negative output never has relevance.
    """

    network: Network
    groups: Mapping[str, str]
    types: Mapping[str, str]
    kinds: Mapping[str, str]
    sizes: Mapping[str, int]
    heads: Mapping[str, str] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    nonnegative: frozenset[str] = frozenset()
    rectified: frozenset[str] = frozenset()

    def units(self, kind: str | None = None) -> dict[str, int]:
        """How many units of a kind ("filters", "neurons", "heads", or several joined by "+") each layer has.

        None stands for what the paper prunes in this family (`default_units`).

        Raises:
            ValueError: unknown kind, or the model has no such units.
        """
        wanted = (kind or self.default_units).split("+")
        unknown = [name for name in wanted if name not in UNIT_KINDS]
        if unknown:
            raise ValueError(f"unknown units {unknown[0]!r}: choose from {', '.join(UNIT_KINDS)}")
        found = {name: self.sizes[name] for name, of in self.kinds.items() if of in wanted}
        missing = set(wanted) - {self.kinds[name] for name in found}
        if missing:
            if not self.kinds:
                raise ValueError("the model has nothing to prune: no hidden filter, neuron or attention head")
            held = ", ".join(dict.fromkeys(self.kinds.values()))
            raise ValueError(f"the model has no {' or '.join(sorted(missing))} to prune; it has: {held}")
        return found

    @property
    def default_units(self) -> str:
        """Heads of transformers, filters of convolutional networks, neurons of networks with neither."""
        return next((kind for kind in ("heads", "filters") if kind in self.kinds.values()), "neurons")

    @property
    def gated(self) -> bool:
        """Whether the network has gates (squeeze-and-excitation)."""
        return bool(ops.gates_of(self.network))

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Graph:
        """The graph, moved in place."""
        self.network.to(device)
        object.__setattr__(self, "network", self.network.replaced({}))  # weights in the order that the device likes
        for name, norm in self.norms.items():
            moved = Norm(norm.gamma.to(device), norm.beta.to(device), norm.std.to(device), norm.eps)
            self.norms[name] = moved  # type: ignore[index]
        return self


@torch.inference_mode(False)  # whose tensors nothing could be learnt of later
def trace(model: nn.Module | Graph) -> Graph:
    """The graph of a classifier. The model itself stays as it is; its tensors are copied.

    Raises:
        TraceError: the forward function cannot be traced (control flow that depends on the input), calls a
            function that no LRP rule covers, or calls a layer with weights more than once.
    """
    if isinstance(model, Graph):
        return model
    try:
        model = baked(model)
        graph = _traced(model)
    except Exception as error:  # whatever the model's own code raises on a symbolic input
        raise TraceError(f"{type(model).__name__} cannot be traced: {_one_line(error)}") from error
    builder = _Builder(model)
    for node in reversed(graph.nodes):  # assertions, and what only they read; not what changes a value in place
        if not node.users and node.op not in ("placeholder", "output") and not builder.writes(node):
            graph.erase_node(node)
    for node in graph.nodes:
        try:
            builder.add(node)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, TraceError):
                raise
            problem = f"{type(error).__name__}: {_one_line(error)}"
            raise TraceError(f"{type(model).__name__} cannot be traced: at {node.name}: {problem}") from error
    return builder.finish()


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
        warnings.warn(text, RuntimeWarning, stacklevel=3)
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


def _traced(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except fx.proxy.TraceError:  # a branch that hangs on an argument: as it is when nobody gives that one
        given = [*inspect.signature(model.forward).parameters.values()][1:]
        usual = {each.name: each.default for each in given if each.default is not each.empty}
        if not usual:
            raise
        return _Tracer().trace(model, concrete_args=usual)


class _Value(fx.Proxy):
    """A value that knows `x += y` for what it is: x is changed, also for those who know it by another name."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.LayerNorm):  # others normalise over channels between two permutations
            return type(m).forward is nn.LayerNorm.forward
        return super().is_leaf_module(m, module_qualified_name)


def _routes(module: nn.Module) -> bool:
    """Whether a function only moves or picks the values of its first input."""
    return isinstance(module, ops.Call) and module.function not in (F.pad, operator.sub)


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Functions and methods that only move, pick or count values: relevance follows their gradient.
ROUTING: set[Any] = {
    *(
        torch.reshape,
        torch.transpose,
        torch.permute,
        torch.squeeze,
        torch.unsqueeze,
        torch.chunk,
        torch.split,
    ),
    *(operator.getitem, operator.floordiv, operator.mul, operator.add, operator.sub, getattr, F.pad),
    *(operator.imul, operator.iadd, operator.isub),
    *(torch.max_pool2d, F.max_pool2d, torch.movedim, torch.swapaxes),
}
ROUTING_METHODS = {
    *("reshape", "view", "transpose", "permute", "contiguous", "expand", "squeeze", "unsqueeze", "chunk"),
    *("split", "size", "dim", "clone", "expand_as", "view_as"),
}
# torch and torch.nn.functional wrap some functions; what fx records is then the wrapper's name.
ROUTING_NAMES = {"max_pool2d", "boolean_dispatch", "pad", "_pad", "split"}
VIEWS = {
    *("getitem", "reshape", "view", "flatten", "transpose", "permute", "swapaxes", "movedim", "squeeze", "unsqueeze"),
    *("chunk", "split", "expand", "expand_as", "view_as", "contiguous"),
}
"""Functions and methods whose results may lie in the memory of what they are given."""
ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
"""What a model may ask of a value."""


class _Builder:
    """Turns the nodes of an fx graph into steps, one node at a time."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.slots: dict[fx.Node, int] = {}
        self.values: dict[fx.Node, bool] = {}  # whether the node is a tensor (not a size or a tuple)
        self.constants: dict[fx.Node, Tensor] = {}  # of nodes that no image goes into
        self.weighted: set[str] = set()
        self.heads: dict[str, str] = {}
        self.norms: dict[str, Norm] = {}
        self.memory: dict[fx.Node, fx.Node] = {}  # whose memory a value lies in, if not in its own
        self.reserved = {name for name, _ in root.named_modules() if name}
        self.result = -1
        self.count = 1

    # -- nodes ------------------------------------------------------------------------------------------

    def add(self, node: fx.Node) -> None:
        _spell_out(node)
        if self._computed(node):
            return
        getattr(self, f"_{node.op}")(node)
        written = self._is_tensor(node.args[:1]) and self.writes(node)
        if node.all_input_nodes and (written or self._views(node)):
            source = node.all_input_nodes[0]
            self.memory[node] = self.memory.get(source, source)
        if written:
            self._write(node)

    def _write(self, node: fx.Node) -> None:
        """Whoever reads the first argument of a node later, which changes it in place, reads the result."""
        source: Any = node.args[0]
        before, after = self.slots[source], self.slots[node]
        for other, slot in self.slots.items():
            alike = self.memory.get(other, other) is self.memory[node] and slot not in (before, after)
            if alike and not self.slots.keys() >= other.users.keys():
                raise TraceError(
                    f"the model changes {source} in place and then reads {other}, a view of the same memory"
                )
        self.slots.update({other: after for other, slot in self.slots.items() if slot == before})

    def _views(self, node: fx.Node) -> bool:
        """Whether what a node gives may lie in the memory of its first argument."""
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(str(node.target)), nn.Flatten)
        return (node.target if node.op == "call_method" else getattr(node.target, "__name__", "")) in VIEWS

    def writes(self, node: fx.Node) -> bool:
        """Whether a node changes its first argument in place."""
        if node.op == "call_module":
            return getattr(self.root.get_submodule(str(node.target)), "inplace", False)
        if node.op == "call_method":
            return str(node.target).endswith("_")
        return node.op == "call_function" and (
            node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
            or node.target in (torch.relu_, F.relu_)
            or bool(_options(node).get("inplace"))
        )

    def _placeholder(self, node: fx.Node) -> None:
        if self.slots:
            if node.users:
                raise TraceError(f"the model takes more than one input: {node.target}")
            return
        self.slots[node] = 0
        self.values[node] = True

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node):
            raise TraceError("the model does not return one tensor of logits")
        self.result = self.slots[result]

    def _get_attr(self, node: fx.Node) -> None:
        value: Any = self.root
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, nn.Module) or not isinstance(value, Tensor):
            raise TraceError(f"the model uses {node.target} as a value, which is not a tensor")
        self._emit_constant(str(node.target), value, node)

    def _computed(self, node: fx.Node) -> bool:
        """Whether a node is a tensor of constants alone, computed here: a scale of channels in the maps' shape, say."""
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return False
        if not self.constants.keys() >= {*node.all_input_nodes}:
            return False
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.constants.__getitem__)
        function: Any = node.target if node.op == "call_function" else getattr(torch.Tensor, str(node.target))
        value = function(*args, **kwargs)
        if isinstance(value, Tensor):
            self._emit_constant(node.name, value, node)
        return isinstance(value, Tensor)

    def _emit_constant(self, name: str, value: Tensor, node: fx.Node) -> None:
        self.constants[node] = value.detach().clone()
        self._emit(name, ops.Constant(self.constants[node]), (), node)

    def _call_module(self, node: fx.Node) -> None:
        name = str(node.target)
        module = self.root.get_submodule(name)
        if isinstance(module, (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity)):
            self._alias(node, node.args[0])
        elif isinstance(module, nn.MultiheadAttention):
            self._attention(node, name, module)
        elif isinstance(module, nn.Flatten):
            self._flatten(node, module.start_dim, module.end_dim, name)
        elif isinstance(module, (nn.Conv2d, nn.Linear, *BATCH_NORMS, nn.LayerNorm, *POOLS)) or (
            ops.zero_preserving(module) is not None
        ):
            has_weights = next(module.parameters(), None) is not None
            if has_weights and name in self.weighted:
                raise TraceError(f"layer {name} is called more than once: shared weights cannot be pruned")
            if has_weights:
                self.weighted.add(name)
            module = convolution(clone(module))
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010  # a saved activation must not change under a rule's feet
            if getattr(module, "return_indices", False):
                raise TraceError(f"layer {name} gives the places of its maxima too, which no rule covers")
            if isinstance(module, BATCH_NORMS) and module.running_mean is None:
                raise TraceError(f"layer {name} has no running statistics: an image's logits would hang on its batch")
            self._emit(name, module, node.args[:1], node)
        else:
            raise TraceError(f"layer {name} is a {type(module).__name__}: no rule covers it")

    def _call_method(self, node: fx.Node) -> None:
        name = str(node.target)
        if name == "flatten":
            self._flatten(node, *self._arguments(node, (0, -1)))
        elif name == "mean":
            dims, keepdim = self._arguments(node, (None, False), ("dim", "keepdim"))
            self._mean(node, dims, keepdim)
        elif name == "permute":
            dims = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            self._emit(node.name, ops.Permute(tuple(dims)), node.args[:1], node)  # type: ignore[arg-type]
        elif name in ("add", "add_", "mul", "mul_"):
            self._arithmetic(node, name[:3])
        elif name in ops.ELEMENTWISE_METHODS:
            function = getattr(torch, name.rstrip("_"))
            self._emit(node.name, ops.Activation(function, ops.ELEMENTWISE_METHODS[name]), node.args[:1], node)
        elif name in ("reshape", "view") and _flattens(node):
            self._flatten(node)
        elif name in ROUTING_METHODS:
            # a view would hang on the order that maps have in memory, which is the network's to choose
            self._call(node, getattr(torch.Tensor, name.replace("view", "reshape")))
        else:
            raise TraceError(f"the model calls the tensor method {name}, which no rule covers")

    def _call_function(self, node: fx.Node) -> None:
        function: Any = node.target
        name = getattr(function, "__name__", str(function))
        if name in ("dropout", "stochastic_depth", "dropout2d"):
            self._alias(node, node.args[0])
        elif function in (operator.add, operator.iadd, torch.add) and self._is_tensor(node.args):
            self._arithmetic(node, "add")
        elif function in (operator.mul, operator.imul, torch.mul) and self._is_tensor(node.args):
            self._arithmetic(node, "mul")
        elif function in (operator.sub, operator.isub, torch.sub) and self._is_tensor(node.args):
            self._arithmetic(node, "sub")
        elif function in (operator.truediv, operator.itruediv, torch.div) and self._is_tensor(node.args):
            self._arithmetic(node, "div")
        elif (function is operator.floordiv and self._is_tensor(node.args)) or (
            function is getattr and node.args[1] not in ATTRIBUTES
        ):
            raise TraceError(f"the model computes {node.name}, which no rule covers")
        elif function in (torch.cat, torch.concat):
            (parts, *rest) = node.args
            dim = rest[0] if rest else node.kwargs.get("dim", 0)
            self._emit(node.name, ops.Concat(dim), tuple(parts), node)  # type: ignore[arg-type]
        elif function is torch.reshape and _flattens(node):
            self._flatten(node)
        elif function is F.layer_norm:
            self._layer_norm(node)
        elif function is torch.flatten:
            self._flatten(node, *self._arguments(node, (0, -1)))
        elif function is torch.mean:
            dims, keepdim = self._arguments(node, (None, False), ("dim", "keepdim"))
            self._mean(node, dims, keepdim)
        elif function is torch.permute:
            self._emit(node.name, ops.Permute(tuple(node.args[1])), node.args[:1], node)  # type: ignore[arg-type]
        elif name == "avg_pool2d" and (pool := _whole_map(node)) is not None:
            self._emit(node.name, pool, node.args[:1], node)
        elif function is F.adaptive_avg_pool2d:
            size = self._arguments(node, (1,), ("output_size",))[0]
            self._emit(node.name, nn.AdaptiveAvgPool2d(size), node.args[:1], node)
        elif name == "avg_pool2d":
            arguments = self._arguments(
                node,
                (2, None, 0, False, True, None),
                ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
            )
            self._emit(node.name, nn.AvgPool2d(*arguments), node.args[:1], node)
        elif function in (torch.max_pool2d, F.max_pool2d):
            kernel, stride, padding, dilation, ceil = self._arguments(
                node, (2, None, 0, 1, False), ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            )
            pool = nn.MaxPool2d(kernel, stride or None, padding, dilation, ceil_mode=ceil)
            self._emit(node.name, pool, node.args[:1], node)
        elif function in ops.ELEMENTWISE:
            self._activation(node, function)
        elif function in ROUTING or name in ROUTING_NAMES or name == "_max_pool2d":
            self._call(node, function)
        else:
            raise TraceError(f"the model calls the function {name}, which no rule covers")

    # -- what nodes become ------------------------------------------------------------------------------

    def _activation(self, node: fx.Node, function: Callable) -> None:
        keeps = ops.ELEMENTWISE[function]
        given = _options(node)
        kwargs = {key: value for key, value in given.items() if key != "inplace"}
        args = node.args[1:] if given == node.kwargs else ()  # by position, of a function of torch's that has no names
        function = {torch.relu_: torch.relu, F.relu_: F.relu}.get(function, function)
        bound = _Partial(function, args, kwargs) if args or kwargs else function
        self._emit(node.name, ops.Activation(bound, keeps), node.args[:1], node)

    def _arithmetic(self, node: fx.Node, kind: str) -> None:
        if node.kwargs:
            raise TraceError(f"the model calls {kind} with {', '.join(node.kwargs)}, which no rule covers")
        a, b = node.args[0], node.args[1]
        if any(isinstance(item, fx.Node) and not self.values[item] for item in (a, b)):
            raise TraceError(f"the model computes a {kind} of an activation and a size, which no rule covers")
        if isinstance(a, fx.Node) and isinstance(b, fx.Node) and not self._constant(a) and not self._constant(b):
            if kind not in ("add", "mul"):
                raise TraceError(f"the model computes a {kind} of two activations, which no rule covers")
            self._emit(node.name, ops.Add() if kind == "add" else ops.Multiply(), (a, b), node)
            return
        if kind == "add" and isinstance(a, fx.Node) and isinstance(b, fx.Node):
            # a position embedding is a summand of its own, which takes its share of relevance
            first, second = (b, a) if self._constant(a) else (a, b)
            self._emit(node.name, ops.Add(), (first, second), node)
            return
        value, constant = (a, b) if isinstance(a, fx.Node) and not self._constant(a) else (b, a)
        number: Any = self._value(constant)
        if value is b and kind in ("sub", "div"):
            raise TraceError(f"the model computes a constant {kind} an activation, which no rule covers")
        affine = {
            "add": lambda: ops.Affine(shift=number),
            "sub": lambda: ops.Affine(shift=-number),
            "mul": lambda: ops.Affine(scale=number),
            "div": lambda: ops.Affine(scale=1 / number),
        }[kind]()
        self._emit(node.name, affine, (value,), node)

    def _constant(self, node: fx.Node) -> bool:
        return node in self.constants

    def _value(self, constant: Any) -> Any:
        return self.constants[constant] if isinstance(constant, fx.Node) else constant

    def _layer_norm(self, node: fx.Node) -> None:
        """As a layer, under the name of the module that holds its weight."""
        shape, weight, bias, eps = self._arguments(
            node, (None, None, None, 1e-5), ("normalized_shape", "weight", "bias", "eps"), constants=True
        )
        norm = nn.LayerNorm(shape, eps, elementwise_affine=False)
        for key, value in (("weight", weight), ("bias", bias)):
            setattr(norm, key, None if value is None else nn.Parameter(self._value(value), requires_grad=False))
        owner = str(weight.target).rpartition(".")[0] if isinstance(weight, fx.Node) else ""
        self.slots[node] = self._step(owner or node.name, norm, (self.slots[node.args[0]],), own=bool(owner))  # type: ignore[index]
        self.values[node] = True

    def _flatten(self, node: fx.Node, start: Any = 1, end: Any = -1, name: str | None = None) -> None:
        self._emit(name or node.name, nn.Flatten(start, end), node.args[:1], node)

    def _mean(self, node: fx.Node, dims: Any, keepdim: Any) -> None:
        if dims is None:
            raise TraceError("the model takes the mean over everything, which no rule covers")
        dims = (dims,) if isinstance(dims, int) else tuple(dims)
        self._emit(node.name, ops.Mean(dims, bool(keepdim)), node.args[:1], node)

    def _attention(self, node: fx.Node, name: str, module: nn.MultiheadAttention) -> None:
        """Query, key, value and output projections as linear layers of their own, and the steps between."""
        query, key, value = _attention_inputs(node)
        if name in self.weighted:
            raise TraceError(f"layer {name} is called more than once: shared weights cannot be pruned")
        self.weighted.add(name)
        if module.bias_k is not None or module.add_zero_attn or not module.batch_first:
            raise TraceError(f"layer {name}: attention with bias_k, add_zero_attn or batch_first=False")
        if module.in_proj_weight is not None:
            weights: Iterable[Tensor] = module.in_proj_weight.detach().chunk(3)
        else:
            weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.detach().chunk(3)
        softmax = f"{name}.softmax"
        parts = []
        for letter, source, weight, bias in zip("qkv", (query, key, value), weights, biases, strict=True):
            projected = self._step(f"{name}.{letter}_proj", _linear(weight, bias), (self.slots[source],), own=True)
            parts.append(self._step(f"{name}.{letter}_heads", ops.SplitHeads(module.num_heads), (projected,)))
            self.heads[f"{name}.{letter}_proj"] = softmax
        logits = self._step(f"{name}.query_key", ops.QueryKey(module.head_dim**-0.5), tuple(parts[:2]))
        weighted = self._step(softmax, ops.HeadSoftmax(module.num_heads), (logits,))
        mixed = self._step(f"{name}.attention_value", ops.AttentionValue(), (weighted, parts[2]))
        merged = self._step(f"{name}.merge_heads", ops.MergeHeads(), (mixed,))
        out = _linear(module.out_proj.weight, module.out_proj.bias)
        self.slots[node] = self._step(f"{name}.out_proj", out, (merged,), own=True)
        self.values[node] = False  # a tuple, of which only the first part is ever used

    def _call(self, node: fx.Node, function: Callable) -> None:
        if function is operator.getitem and not self.values[node.args[0]]:  # type: ignore[index]
            source = node.args[0]
            if isinstance(source, fx.Node) and source.op == "call_module":  # (output, weights) of attention
                if node.args[1] != 0:
                    raise TraceError(f"layer {source.target}: the model uses the attention's weights as a value")
                self._alias(node, source)
                return
        inputs: list[fx.Node] = []

        def slot(value: Any) -> Any:
            if isinstance(value, fx.Node):
                inputs.append(value)
                return ops.Call.Slot(len(inputs) - 1)
            if isinstance(value, (tuple, list)):
                return type(value)(slot(item) for item in value)
            if isinstance(value, slice):
                return slice(slot(value.start), slot(value.stop), slot(value.step))
            return value

        args = tuple(slot(item) for item in node.args)
        kwargs = {key: slot(item) for key, item in node.kwargs.items()}
        self._emit(node.name, ops.Call(function, args, kwargs), tuple(inputs), node)
        name = getattr(function, "__name__", "")
        from_tensor = all(self.values.get(item, False) for item in inputs[:1])
        self.values[node] = from_tensor and name not in ("size", "dim", "getattr", "chunk", "split")
        if function is operator.getitem:  # a part of a tuple of tensors is one; of a shape it is a number
            source = node.args[0]
            self.values[node] = not _is_shape(source)

    def _is_tensor(self, arguments: Any) -> bool:
        return any(isinstance(item, fx.Node) and self.values.get(item, False) for item in arguments)

    def _arguments(
        self,
        node: fx.Node,
        defaults: tuple,
        names: tuple[str, ...] = ("start_dim", "end_dim"),
        *,
        constants: bool = False,
    ) -> list:
        """What a call is given besides its tensor: numbers that are known before any image is, or constants too."""
        given = list(node.args[1:])
        found = [
            given[index] if index < len(given) else node.kwargs.get(name, default)
            for index, (name, default) in enumerate(zip(names, defaults, strict=True))
        ]
        nodes: list[fx.Node] = []
        fx.node.map_arg(found, nodes.append)
        if not all(constants and item in self.constants for item in nodes):
            raise TraceError(f"the model computes an argument of {node.name} from a size, which no rule covers")
        return found

    def _alias(self, node: fx.Node, source: Any) -> None:
        self.slots[node] = self.slots[source]
        self.values[node] = True
        self.memory[node] = self.memory.get(source, source)

    def _emit(self, name: str, module: nn.Module, inputs: Any, node: fx.Node) -> None:
        own = node.op == "call_module" and name == node.target
        if not inputs and not isinstance(module, ops.Constant):
            raise TraceError(f"{node.name} gets its input by a keyword that is not known")
        self.slots[node] = self._step(name, module, tuple(self.slots[item] for item in inputs), own=own)
        self.values[node] = True

    def _step(self, name: str, module: nn.Module, inputs: tuple[int, ...], *, own: bool = False) -> int:
        # names of the model's own modules are theirs, whichever step comes first
        unique, number = name, 0
        while unique in self.modules or (unique in self.reserved and not (own and unique == name)):
            number += 1
            unique = f"{name}_{number}"
        self.modules[unique] = module
        self.steps.append(Step(unique, inputs, self.count))
        self.count += 1
        return self.count - 1

    # -- the whole --------------------------------------------------------------------------------------

    def finish(self) -> Graph:
        self._drop_unused()
        counts = dimensions(self.steps, self.modules)
        self._fold_batch_norms(counts)
        self._drop_unused()
        for step in self.steps:  # which they are no longer known by once channels are gone
            module = self.modules[step.name]
            if isinstance(module, ops.Mean) and (count := counts.get(step.inputs[0])) is not None:
                module.dims = tuple(dim % count for dim in module.dims)
            if isinstance(module, ops.Multiply):
                gates = [index for index, slot in enumerate(step.inputs) if self._is_gate(slot)]
                module.gate = gates[0] if len(gates) == 1 else None
        layers = [step.name for step in self.steps if isinstance(self.modules[step.name], (nn.Conv2d, nn.Linear))]
        if not layers:
            raise TraceError("the model has no convolution and no linear layer")
        embedding = self._embedding() if self.heads else frozenset()
        groups = depth_groups(layers, self.modules, transformer=bool(self.heads), ruleless=embedding)
        kinds, sizes = self._units()
        nonnegative = self._nonnegative()
        return Graph(
            network=Network(self.steps, self.modules, self.result).eval().requires_grad_(False),
            groups=groups,
            types={
                name: layer_type(name, self.modules[name], first=name == layers[0], attention=self._projects(name))
                for name in groups
            },
            kinds=kinds,
            sizes=sizes,
            heads=self.heads,
            norms=self.norms,
            nonnegative=frozenset(step.name for step in self.steps if step.inputs and step.inputs[0] in nonnegative),
            rectified=frozenset(self._rectified()),
        )

    def _drop_unused(self) -> None:
        self.steps = ops.needed_steps(self.steps, self.result)
        self.modules = {step.name: self.modules[step.name] for step in self.steps}

    def _embedding(self) -> frozenset[str]:
        """Convolutions that no layer with a rule lies below: what makes tokens of the image."""
        above: set[int] = set()
        found = set()
        for step in self.steps:
            module = self.modules[step.name]
            reached = not above.isdisjoint(step.inputs)
            if isinstance(module, nn.Conv2d) and not reached:
                found.add(step.name)
            elif reached or isinstance(module, (nn.Conv2d, nn.Linear)):
                above.add(step.output)
        return frozenset(found)

    def _fold_batch_norms(self, counts: Mapping[int, int]) -> None:
        """counts: of dimensions, by slot."""
        producers = {step.output: step for step in self.steps}
        readers = ops.readers_of(self.steps)
        moved: dict[int, int] = {}
        kept = []
        for step in self.steps:
            step = Step(step.name, tuple(moved.get(slot, slot) for slot in step.inputs), step.output)
            norm = self.modules[step.name]
            source = producers.get(step.inputs[0]) if step.inputs else None
            foldable = (
                isinstance(norm, BATCH_NORMS)
                and norm.running_mean is not None
                and source is not None
                and self._normalises_units(self.modules[source.name], norm, counts.get(source.output) == 2)
                and len(readers[source.output]) == 1
                and source.name not in self.norms
            )
            if foldable:
                layer, self.norms[source.name] = fold(self.modules[source.name], norm)  # type: ignore
                self.modules[source.name] = layer  # type: ignore[union-attr]
                moved[step.output] = step.inputs[0]
            else:
                kept.append(step)
        self.steps = kept
        self.result = moved.get(self.result, self.result)

    @staticmethod
    def _normalises_units(layer: nn.Module, norm: nn.Module, flat: bool) -> bool:
        """Whether the channels of a BatchNorm are the outputs of the layer before it; a linear layer's are features
        only where there are no positions besides."""
        if isinstance(layer, nn.Conv2d):
            return isinstance(norm, nn.BatchNorm2d)
        return isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and flat

    def _units(self) -> tuple[dict[str, str], dict[str, int]]:
        kinds, sizes = {}, {}
        logits = self._logit_layers()
        for step in self.steps:
            module = self.modules[step.name]
            if step.name in logits:
                continue
            if isinstance(module, nn.Conv2d) and not self.heads:
                kinds[step.name], sizes[step.name] = "filters", module.out_channels
            elif isinstance(module, ops.HeadSoftmax):
                kinds[step.name], sizes[step.name] = "heads", module.heads
            elif isinstance(module, nn.Linear) and not self._projects(step.name):  # heads go with their projections
                kinds[step.name], sizes[step.name] = "neurons", module.out_features
        return kinds, sizes

    def _logit_layers(self) -> set[str]:
        """Layers whose outputs are the classes: the last ones on each way to the result."""
        producers = {step.output: step for step in self.steps}
        found, seen, slots = set(), set(), [self.result]
        while slots:
            slot = slots.pop()
            if slot in seen or slot not in producers:
                continue
            seen.add(slot)
            step = producers[slot]
            if isinstance(self.modules[step.name], (nn.Conv2d, nn.Linear)):
                found.add(step.name)
            else:
                slots.extend(step.inputs)
        return found

    def _projects(self, name: str) -> bool:
        """Whether a layer is a query, key, value or output projection of attention."""
        parent = name.rpartition(".")[0]
        return name in self.heads or (name.endswith(".out_proj") and f"{parent}.q_proj" in self.heads)

    def _is_gate(self, slot: int) -> bool:
        """Whether a value comes out of a sigmoid, whatever was done to its shape since."""
        maker = next((step for step in self.steps if step.output == slot), None)
        if maker is None:
            return False
        module = self.modules[maker.name]
        shapes = _routes(module) or isinstance(module, (ops.Permute, nn.Flatten))
        return ops.is_sigmoid(module) or (shapes and self._is_gate(maker.inputs[0]))

    def _nonnegative(self) -> set[int]:
        """Slots that are never negative: outputs of ReLU and what keeps their sign."""
        slots: set[int] = set()
        keep = (*POOLS, nn.Flatten, ops.Mean, ops.Permute, ops.Concat, ops.Add, ops.Multiply)
        for step in self.steps:
            module = self.modules[step.name]
            rectifies = ops.is_relu(module) or ops.is_sigmoid(module) or isinstance(module, nn.ReLU6)
            if isinstance(module, ops.Activation):
                rectifies |= module.function is F.relu6
            if rectifies or (
                (isinstance(module, keep) or _routes(module))
                and step.inputs
                and all(slot in slots for slot in step.inputs)
            ):
                slots.add(step.output)
        return slots

    def _rectified(self) -> set[str]:
        """Layers read by ReLU alone whose every reader, in turn, gives no relevance to a zero input."""
        readers = ops.readers_of(self.steps)
        keeps_zero = (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d, ops.Mean, ops.Add)
        routes = (nn.MaxPool2d, nn.Flatten, ops.Concat)

        def blind_to_zeros(slot: int) -> bool:
            following = readers.get(slot, [])
            return bool(following) and all(
                isinstance(self.modules[step.name], keeps_zero)
                or (isinstance(self.modules[step.name], routes) and blind_to_zeros(step.output))
                for step in following
            )

        found = set()
        for step in self.steps:
            following = readers.get(step.output, [])
            if isinstance(self.modules[step.name], (nn.Conv2d, nn.Linear)) and len(following) == 1:
                after = self.modules[following[0].name]
                if (ops.is_relu(after) or isinstance(after, nn.ReLU6)) and blind_to_zeros(following[0].output):
                    found.add(step.name)
        return found


@dataclass(frozen=True)
class _Partial:
    """An elementwise function with its other arguments fixed (the slope of a leaky ReLU)."""

    function: Callable[..., Tensor]
    args: tuple
    kwargs: dict

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args, **self.kwargs)


def _spell_out(node: fx.Node) -> None:
    """Arguments where the rest of this module looks for them: the tensor first, NumPy's names by torch's."""
    kwargs = {{"axis": "dim", "keepdims": "keepdim"}.get(key, key): value for key, value in node.kwargs.items()}
    if not node.args and "input" in kwargs:
        node.args = (kwargs.pop("input"),)
    node.kwargs = kwargs


def _options(node: fx.Node) -> dict[str, Any]:
    """What an elementwise function is given besides its tensor, by name."""
    if node.target not in ops.ELEMENTWISE:
        return dict(node.kwargs)
    try:
        names = [*inspect.signature(node.target).parameters][1:]  # type: ignore[arg-type]
    except ValueError:  # some of torch's own
        names = []
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


SIDES: list[Any] = [2, 3, -1, -2, slice(2, None), slice(-2, None), slice(2, 4)]
"""How a map's height, its width or both are picked of its shape."""


def _part_of_shape(node: Any) -> tuple[Any, Any]:
    """The value whose shape a node is a part of, and which part; (None, None) for any other node."""
    if isinstance(node, fx.Node):
        if node.target is operator.getitem and _is_shape(node.args[0]):
            return node.args[0].args[0], node.args[1]  # type: ignore[union-attr]
        if (node.op, node.target) == ("call_method", "size") and len(node.args) == 2:
            return node.args
    return None, None


def _whole_map(node: fx.Node) -> nn.Module | None:
    """The pooling of a whole map, for one whose window is as large as what it pools; None for any other."""
    kernel = node.args[1] if len(node.args) > 1 else node.kwargs.get("kernel_size")
    parts = [_part_of_shape(size) for size in (kernel if isinstance(kernel, (tuple, list)) else (kernel,))]
    if any(value is not node.args[0] or part not in SIDES for value, part in parts):
        return None
    sides = [part if isinstance(part, slice) else part % 4 for _, part in parts]
    both = isinstance(sides[0], slice) or sides == [2, 3]
    return nn.AdaptiveAvgPool2d(1) if both else ops.PoolSquare(1)


def _flattens(node: fx.Node) -> bool:
    """Whether a reshaping keeps the images apart and puts all else in one dimension."""
    shape = node.args[1] if len(node.args) == 2 else node.args[1:]
    if not isinstance(shape, (tuple, list)) or len(shape) != 2 or not isinstance(shape[1], int):
        return False
    value, part = _part_of_shape(shape[0])
    return value is not None and part == 0 and shape[1] == -1


def _is_shape(node: Any) -> bool:
    """Whether a node is the shape of a tensor (so that its parts are numbers)."""
    if not isinstance(node, fx.Node):
        return False
    return (node.op == "call_method" and node.target == "size") or bool(
        node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    )


def _attention_inputs(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if given.get("key_padding_mask") is not None or given.get("attn_mask") is not None or given.get("is_causal"):
        raise TraceError(f"layer {node.target}: masked attention is not supported")
    return given["query"], given["key"], given["value"]  # type: ignore[return-value]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def fold(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d) -> tuple[nn.Module, Norm]:
    """A layer that computes what the layer and the BatchNorm after it compute, and the BatchNorm's statistics."""
    assert norm.running_var is not None
    std = (norm.running_var + norm.eps).sqrt()
    gamma = torch.ones_like(std) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(std) if norm.bias is None else norm.bias.detach()
    scale = gamma / std
    bias = torch.zeros_like(std) if layer.bias is None else layer.bias
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    folded = clone(layer, weight=weight, bias=beta + (bias - norm.running_mean) * scale)  # type: ignore[operator]
    return folded, Norm(gamma.clone(), beta.clone(), std, norm.eps)


RESNET_STAGES = {"layer1": "low", "layer2": "mid", "layer3": "mid", "layer4": "high"}


def depth_groups(
    layers: list[str],
    modules: Mapping[str, nn.Module],
    *,
    transformer: bool = False,
    ruleless: Collection[str] = (),
) -> dict[str, str]:
    """The depth group of each layer: the paper's split where it names one, its fractions elsewhere.

    Hatefi et al., appendix: resnet by stage; vgg16 4, 5 and 4 of its 13 convolutions, linear layers apart;
    vision transformers a quarter, a half and a quarter of the encoder layers. Layers that take no rule (`ruleless`: a
    transformer's patch embedding) are in no group.
    """
    top = [name.split(".") for name in layers]
    while True:  # the network may be a part of another module, beside a layer or two
        inner = [name for name, path in zip(layers, top, strict=True) if path[0] == top[-1][0]]
        deeper = all(len(path) > 1 for path in top if path[0] == top[-1][0])
        holds = len(inner) == len(top) or any(isinstance(modules[name], nn.Conv2d) for name in inner)
        if not deeper or not holds or 2 * len(inner) <= len(top):
            break
        top = [path[1:] if path[0] == top[-1][0] else path for path in top]
    heads = [path[0] for path in top]
    trunk = [name for name, head in zip(layers, heads, strict=True) if head != heads[-1]] or layers[:-1]
    trunk = [name for name in trunk if name not in ruleless]
    resnet = set(RESNET_STAGES) <= set(heads)
    blocks = list(dict.fromkeys(_block(name) for name in trunk)) if transformer else trunk
    first, last = (1 / 4, 3 / 4) if transformer else (4 / 13, 9 / 13)
    groups = {}
    for name, head in zip(layers, heads, strict=True):
        if name in ruleless:
            continue
        if name not in trunk:
            groups[name] = "classifier"
        elif resnet:
            groups[name] = RESNET_STAGES.get(head, "low")
        else:
            # the small term keeps 4 of 13 from becoming 3 by rounding
            depth = blocks.index(_block(name) if transformer else name) / len(blocks) + 1e-9
            groups[name] = "low" if depth < first else "mid" if depth < last else "high"
    return groups


def layer_type(name: str, layer: nn.Module, *, first: bool, attention: bool) -> str:
    """What sort of layer it is: q, k, v, out (attention), mlp, linear; stem, downsample, depthwise, 1x1, 3x3.

    "3x3" stands for every convolution wider than a pixel, "downsample" for one on a shortcut.
    """
    leaf = name.rpartition(".")[2]
    if isinstance(layer, nn.Linear):
        if attention:
            return leaf.removesuffix("_proj")
        return "mlp" if ".mlp." in name else "linear"
    assert isinstance(layer, nn.Conv2d)
    if first:
        return "stem"
    if "downsample" in name or "shortcut" in name or ".proj." in name:
        return "downsample"
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return "depthwise"
    return "1x1" if layer.kernel_size == (1, 1) else "3x3"


def _block(name: str) -> str:
    """The encoder layer a layer of a transformer belongs to."""
    for part in (".self_attention", ".mlp", ".attention", ".attn"):
        if part in name:
            return name.partition(part)[0]
    return name.rpartition(".")[0]
