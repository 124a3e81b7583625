"""From exported operations to the steps of a network, one node at a time."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..modules import Add, AttentionValue, Constant, HeadSoftmax
from ..network import BATCH, Step
from ..operations import TARGETS, Operation
from ..operations.attention import NEVER, MatrixProduct, Softmax
from ..operations.routing import Expand, Tile
from .export import Exported, TraceError, line_of

CREATES = {"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"}
"""Operations that read an activation only for its size and type."""
CARRIES = {
    *("dropout", "reshape", "view", "permute", "transpose", "contiguous", "clone", "to", "unsqueeze", "squeeze"),
    *("flatten", "unflatten", "expand", "mul", "div", "add", "sub", "linear", "getitem", "swapaxes", "_unsafe_view"),
}
"""Operations between the softmax of attention and its product with the values."""
PRODUCTS = {"matmul", "bmm", "einsum"}


class Builder:
    """The steps of an exported model.

    steps, modules: of the network so far. result: the slot of its logits. weighted: layers that have been met.
    attentions: of each softmax over keys, the step that multiplies by values. said: what the user should know.
    ended: the function of the logits that the model ends with, if it does.
    """

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.weighted: set[str] = set()
        self.attentions: dict[str, str] = {}
        self.attends: dict[int, str] = {}  # slots that come from a softmax over keys, with its name
        self.result = -1
        self.said: list[str] = []
        self.ended = ""
        self._slots: dict[fx.Node, int] = {}
        self._constants: dict[fx.Node, Any] = {}
        self._constant_slots: dict[tuple[fx.Node, bool], int] = {}
        self._memory: dict[fx.Node, fx.Node] = {}  # whose memory a value lies in, if not in its own
        self._stale: dict[fx.Node, fx.Node] = {}  # values of which a part was changed in place, and by what
        self._targets: dict[str, str] = {}
        self._reserved = {name for name, _ in exported.model.named_modules() if name}
        self._leaves = {name for name, module in exported.model.named_modules() if not [*module.children()]}
        held = [*exported.model.named_parameters(), *exported.model.named_buffers()]
        # whatever else these compute, such as padding, leaves their names to the layers
        self._leaves -= {name.rpartition(".")[0] for name, value in held if value.dim() > 1}

    def build(self) -> None:
        """All steps.

        Raises:
            TraceError: an operation that no entry of the table covers, or that is used as none can be.
        """
        program = self.exported.program
        signature = program.graph_signature
        held = {**program.state_dict, **program.constants}
        for names in (
            *(signature.inputs_to_parameters, signature.inputs_to_buffers),
            signature.inputs_to_lifted_tensor_constants,
        ):
            self._targets.update(names)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                if node.name in self._targets:
                    self._constants[node] = held[self._targets[node.name]].detach()
                else:
                    self._slots[node] = 0
            elif node.op == "call_function":
                try:
                    self._add(node)
                except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
                    if isinstance(error, TraceError):
                        raise
                    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    raise self.refused(node, f"({type(error).__name__}: {text})") from error
        if self.exported.others:
            self.said.append(f"the model gives {self.exported.others} more than its logits, which is left out")
        by_name = {node.name: node for node in program.graph.nodes}
        last = self._before_softmax(by_name[self.exported.output])
        if last not in self._slots:
            raise TraceError("the model's logits do not depend on the image")
        shape = self.shape(last)
        if len(shape) != 2 or shape[0] != BATCH:
            sizes = ["images" if size == BATCH else str(size) for size in shape]
            raise TraceError(f"the model gives a tensor of shape ({', '.join(sizes)}): logits have (images, classes)")
        self.result = self.slot(last)

    def _before_softmax(self, node: fx.Node) -> fx.Node:
        """The logits, of a network that ends in their probabilities."""
        if (
            node.op == "call_function"
            and self.name_of(node) in ("softmax", "log_softmax")
            and len(self.shape(node)) == 2
        ):
            self.ended = self.name_of(node)
            self.said.append(f"the logits before the {self.ended} at the end are explained")
            return node.args[0]  # type: ignore[return-value]
        return node

    # -- nodes -----------------------------------------------------------------------------------------

    def _add(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if not _holds_tensors(value):
            if self._changes(node):
                raise self.refused(node)
            return  # a size, or an assertion
        if self._is_known(node):
            self._constants[node] = self._computed(node)
            return
        if node.target is operator.getitem and not node.users:
            return
        if node.target is operator.getitem:
            parts: Any = node.args[0]
            entry: Any = self._entry(parts)
            self._slots[node] = entry.part(self, parts, node.args[1], node)
            self._memory[node] = self._memory.get(parts, parts)
            return
        if self.name_of(node) == "log_softmax" and node.name == self.exported.output:
            self._slots[node] = -1
            return
        self._slots[node] = self._entry(node).build(self, node)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return
        root = self._memory.get(source, source)
        if self._changes(node):
            self._memory[node] = root
            self._write(node, source, root)
        elif self._entry(node).views and not _copies(node, source):
            self._memory[node] = root

    def _entry(self, node: fx.Node) -> Operation:
        target = str(node.target)
        name, _, overload = target.rpartition(".")
        entry = TARGETS.get(target) or TARGETS.get(f"{name.rstrip('_')}.{overload}")
        if entry is None:
            raise self.refused(node)
        return entry

    @staticmethod
    def name_of(node: fx.Node) -> str:
        """The operation's name, without namespace and overload; in-place forms by the name of the plain ones."""
        parts = str(node.target).split(".")
        return parts[1].rstrip("_") if len(parts) > 1 else getattr(node.target, "__name__", parts[0])

    def refused(self, node: fx.Node, why: str = "") -> TraceError:
        """The error that says which operation, in which module and where in the user's source."""
        module, line = self.module_of(node), line_of(node)
        text = f"{module or 'the model'} computes {self.name_of(node)}{f' {why}' if why else ''}"
        known = (
            ""
            if why
            else ", which no rule covers in this form"
            if str(node.target) in TARGETS
            else (", which no rule covers")
        )
        return TraceError(text + known + (f" ({line})" if line else ""))

    @staticmethod
    def module_of(node: fx.Node) -> str:
        """The module whose forward function was running, by its name in the model."""
        stack = node.meta.get("nn_module_stack") or {}
        paths = [path for path, _ in stack.values() if "metadata_hook" not in path]
        return paths[-1].partition("@")[0] if paths else ""

    # -- what nodes hold -------------------------------------------------------------------------------

    def _is_known(self, node: fx.Node) -> bool:
        if str(node.target).split(".")[1:2] and self.name_of(node) in CREATES:
            return True
        return all(item in self._constants or not _holds_tensors(item.meta.get("val")) for item in node.all_input_nodes)

    def _computed(self, node: fx.Node) -> Any:
        """The value of a node that no image goes into; where it depends on their number, of one."""
        if self.name_of(node) in CREATES:
            value = node.meta["val"]
            shape = [_at(size, 1) for size in value.shape]
            fill = {"new_ones": 1, "ones_like": 1}.get(self.name_of(node), 0)
            if "full" in self.name_of(node):
                fill = self.arg(node, 2 if "new" in self.name_of(node) else 1, "fill_value")
            return torch.full(shape, fill, dtype=value.dtype, device=self._device)

        def known(item: fx.Node) -> Any:
            return self._constants[item] if item in self._constants else _at(item.meta["val"], 1)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    @property
    def _device(self) -> torch.device:
        return next(iter(self.exported.program.state_dict.values())).device

    def is_constant(self, value: Any) -> bool:
        """Whether an argument is known before any image is."""
        return not isinstance(value, fx.Node) or value in self._constants

    def constant(self, value: Any) -> Any:
        """What is known of an argument: a tensor or a number."""
        return self._constants[value] if isinstance(value, fx.Node) else value

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of an argument, with `BATCH` for the number of images."""
        if not isinstance(value, fx.Node):
            return tuple(value.shape) if isinstance(value, Tensor) else ()
        return tuple(_at(size, BATCH) for size in value.meta["val"].shape)

    def arg(self, node: fx.Node, index: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name; numbers of symbols are those of `BATCH` images."""
        value = node.args[index] if len(node.args) > index else node.kwargs.get(name, default)
        return value

    def owner_of(self, weight: Any) -> str | None:
        """The module that holds a weight, by the user's name; None for a weight that is computed."""
        target = self._targets.get(weight.name) if isinstance(weight, fx.Node) else None
        return target.rpartition(".")[0] or None if target else None

    def slot(self, value: Any) -> int:
        """The slot that holds an argument."""
        if not isinstance(value, fx.Node):
            return self.constant_slot(torch.as_tensor(value), None)
        if value in self._constants:
            if (value, False) not in self._constant_slots:
                slot = self.constant_slot(self._constants[value], value)
                self._constant_slots[value, False] = self._tiled(value, slot)
            return self._constant_slots[value, False]
        if value in self._stale:
            raise TraceError(
                f"the model changes {self._memory.get(value, value).name} in place and then reads a value that shares "
                f"its memory, {value.name} ({line_of(self._stale[value])})"
            )
        return self._slots[value]

    def whole_slot(self, value: Any) -> int:
        """As `slot`, repeated for each image where the value depends on their number."""
        slot = self.slot(value)
        if value not in self._constants or not any(size % BATCH == 0 for size in self.shape(value)):
            return slot
        if (value, True) not in self._constant_slots:
            before = tuple(self._constants[value].shape)
            self._constant_slots[value, True] = self.expanded(value, slot, before, self.shape(value))
        return self._constant_slots[value, True]

    def _tiled(self, value: fx.Node, slot: int) -> int:
        """A constant that has several entries for each image (masks of windows), once for each."""
        shape = self.shape(value)
        return self.emit(value, Tile(), (slot, 0)) if shape and shape[0] % BATCH == 0 and shape[0] > BATCH else slot

    def constant_slot(self, value: Tensor, node: fx.Node | None) -> int:
        """A slot for a value that is known."""
        if value.is_floating_point():
            value = value.clamp(min=NEVER)
        name = self._targets.get(node.name, node.name) if node is not None else "constant"
        return self._step(name.replace(".", "_"), Constant(value.detach().clone()), ())

    # -- steps -----------------------------------------------------------------------------------------

    def same(self, node: fx.Node, source: Any) -> int:
        """The slot of an operation that changes nothing."""
        return self.slot(source)

    def emit(
        self,
        node: fx.Node,
        module: nn.Module,
        inputs: Sequence[int],
        *,
        owner: str | None = None,
        layer: bool = False,
        part: str = "",
    ) -> int:
        """The slot of a new step. owner: the module that holds its weight. layer: whether it has units of its own.
        part: what it is in its module."""
        running = self.module_of(node)
        if part:
            name = f"{self._attention_of(node)}.{part}"
        elif owner:
            if layer and owner in self.weighted and self.modules[owner].weight.shape == module.weight.shape:
                raise TraceError(f"layer {owner} is called more than once: shared weights cannot be pruned")
            name = owner
        elif layer or (running in self._leaves and running):
            name = running or node.name
        else:
            name = node.name
        if layer:
            self.weighted.add(name)
        slot = self._step(name, module, tuple(inputs), own=bool(owner) or name == running)
        found = [self.attends[given] for given in inputs if given in self.attends]
        if found and not isinstance(module, (AttentionValue, HeadSoftmax)):
            self.attends[slot] = found[0]
        return slot

    def _step(self, name: str, module: nn.Module, inputs: tuple[int, ...], *, own: bool = False) -> int:
        # names of the model's own modules are theirs, whichever step comes first
        unique, number = name, 0
        while unique in self.modules or (unique in self._reserved and not (own and unique == name)):
            number += 1
            unique = f"{name}_{number}"
        self.modules[unique] = module
        self.steps.append(Step(unique, inputs, len(self.steps) + 1))
        return len(self.steps)

    def expanded(self, node: fx.Node, slot: int, before: tuple[int, ...], after: tuple[int, ...]) -> int:
        """A value repeated along dimensions of size 1."""
        sizes = []
        for dim, size in enumerate(after, start=len(before) - len(after)):
            if dim >= 0 and before[dim] == size:
                sizes.append(-1)
            elif size % BATCH == 0:
                if size != BATCH:
                    raise self.refused(node)
                sizes.append(0)
            else:
                sizes.append(size)
        return self.emit(node, Expand(sizes), (slot, 0))

    def masked(self, node: fx.Node, slot: int, mask: Any) -> int:
        """Logits of attention plus a mask, which may say where there are none."""
        given, mask = mask, self.constant(mask) if self.is_constant(mask) else None
        if mask is None:
            return self.emit(node, Add(), (slot, self.slot(given)))
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, NEVER)
        if not mask.is_meta and not mask.any():
            return slot
        added = self.constant_slot(mask, None)
        return self.emit(node, Add(), (slot, self._tiled(given, added) if isinstance(given, fx.Node) else added))

    def softmax(self, node: fx.Node, slot: int, dim: int, rank: int) -> int:
        """The softmax of attention, or of a gate."""
        if self.name_of(node) != "scaled_dot_product_attention" and not _reaches_product(node):
            return self.emit(node, Softmax(dim), (slot,))
        if dim != rank - 1:
            raise self.refused(node, "over another dimension than the last")
        heads = self.shape(node)[-3] if rank > 3 else 1
        softmax = self.emit(node, HeadSoftmax(1 if heads % BATCH == 0 else heads), (slot,), part="softmax")
        self.attends[softmax] = self.steps[-1].name
        return softmax

    def product(self, node: fx.Node, a: int, b: int) -> int:
        """A product of two activations: with values, if one of them is what a softmax gives."""
        softmax = self.attends.get(a) or self.attends.get(b)
        if softmax is None:
            return self.emit(node, MatrixProduct(), (a, b))
        slot = self.emit(node, AttentionValue(), (a, b), part="attention_value")
        self.attentions[softmax] = self.steps[-1].name
        return slot

    def _attention_of(self, node: fx.Node) -> str:
        """The module that computes attention: the one that runs, unless that is a softmax or a dropout."""
        running = self.module_of(node)
        if running in self._leaves and running:
            running = running.rpartition(".")[0]
        return running or "attention"

    # -- what is changed in place ----------------------------------------------------------------------

    @staticmethod
    def _changes(node: fx.Node) -> bool:
        schema = getattr(node.target, "_schema", None)
        return schema is not None and schema.is_mutable

    def _write(self, node: fx.Node, target: fx.Node, root: fx.Node) -> None:
        """Whoever reads the first argument of a node later, which changes it in place, reads the result."""
        if target in self._constants:
            del self._constants[target]
            self._slots[target] = self._slots[node]
        before = self._slots[target]
        for other, slot in [*self._slots.items()]:
            if other is node or self._memory.get(other, other) is not root:
                continue
            if slot == before:
                self._slots[other] = self._slots[node]
            else:
                self._stale[other] = node


def _copies(node: fx.Node, source: fx.Node) -> bool:
    """Whether an operation that may give its input itself gives a copy of it."""
    name, before = Builder.name_of(node), source.meta["val"]
    if name == "contiguous":
        return not before.is_contiguous()
    if name in ("to", "type_as"):
        return bool(before.dtype != node.meta["val"].dtype)
    return name in ("clone", "_to_copy", "lift_fresh_copy")


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, Tensor)


def _at(size: Any, images: int) -> Any:
    """A size for so many images."""
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, images)))


def _reaches_product(node: fx.Node) -> bool:
    """Whether a softmax's result is multiplied by other values as a matrix."""
    for user in node.users:
        name = Builder.name_of(user)
        if name in PRODUCTS or (name in CARRIES and _reaches_product(user)):
            return True
    return False
