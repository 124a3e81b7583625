"""Operations that only move, pick or repeat values: relevance follows their gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channels import State, channels
from ..modules import Concat, Constant, Permute, Realign
from ..network import BATCH
from .base import Operation, Relevance, Routing, operation

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder
from .reshaping import Reshape, grouped


class Pick(nn.Module):
    """One index, or a range of them, along a dimension."""

    def __init__(self, dim: int, start: int, stop: int | None = None, step: int = 1) -> None:
        super().__init__()
        self.dim, self.start, self.stop, self.step = dim, start, stop, step

    def forward(self, x: Tensor) -> Tensor:
        if self.stop is None:
            return x.select(self.dim, self.start)
        return x[(slice(None),) * self.dim + (slice(self.start, self.stop, self.step),)]


class Expand(nn.Module):
    """A value repeated along dimensions of size 1. sizes: of the result; -1 for what stays, 0 for as many as there are
    images (which the second input tells)."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        return x.expand([images.shape[0] if size == 0 else size for size in self.sizes])


class Tile(nn.Module):
    """A value that is there once for each image, which the second input tells the number of, in the first dimension."""

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        return x.repeat(images.shape[0], *[1] * (x.dim() - 1))


class Move(nn.Module):
    """A function that moves values along some dimensions and leaves the others alone.

    dims: those that it moves along. keeps_zeros: whether what is zero everywhere else stays so.
    """

    def __init__(
        self, function: Callable[..., Tensor], args: tuple, dims: Sequence[int], *, keeps_zeros: bool = True
    ) -> None:
        super().__init__()
        self.function, self.args, self.dims, self.keeps_zeros = function, args, tuple(dims), keeps_zeros

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.args)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


@operation(
    *("aten.permute.default", "aten.transpose.int", "aten.swapaxes.default", "aten.movedim.int"),
    *("aten.movedim.intlist", "aten.t.default", "aten.swapdims.default", "aten.numpy_T.default", "aten.mT.default"),
    *("aten.moveaxis.int", "aten.moveaxis.intlist", "aten.adjoint.default"),
    modules=(Permute,),
)
class Reorder(Routing):
    views = True

    def build(self, b: Builder, node: Any) -> int:
        rank = len(b.shape(node.args[0]))
        sizes = torch.empty([k + 2 for k in range(rank)], device="meta")
        args = tuple(node.args[1:])
        dims = tuple(size - 2 for size in node.target(sizes, *args, **node.kwargs).shape)  # type: ignore[operator]
        return b.emit(node, Permute(dims), (b.slot(node.args[0]),))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is not None:
            state = replace(state, dim=module.dims.index(state.dim))
        return c.emit(module, (slot,)), state


# -- parts --------------------------------------------------------------------------------------------


@operation("aten.select.int", "aten.slice.Tensor", "aten.narrow.default", modules=(Pick,))
class Part(Routing):
    views = True

    def build(self, b: Builder, node: Any) -> int:
        source = node.args[0]
        shape, after = b.shape(source), b.shape(node)
        dim = b.arg(node, 1, "dim", 0) % len(shape)
        if b.name_of(node) == "select":
            index = b.arg(node, 2, "index", 0)
            return b.emit(node, Pick(dim, index % shape[dim]), (b.slot(source),))
        if shape == after:
            return b.same(node, source)
        start = b.arg(node, 2, "start", 0) or 0
        start = min(start % shape[dim] if start < 0 else start, shape[dim])
        step = b.arg(node, 4, "step", 1) if b.name_of(node) == "slice" else 1
        return b.emit(node, Pick(dim, start, start + (after[dim] - 1) * step + 1, step), (b.slot(source),))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is None:
            return c.emit(module, (slot,)), None
        gone = module.stop is None
        if state.dim != module.dim:
            return c.emit(module, (slot,)), replace(state, dim=state.dim - (gone and module.dim < state.dim))
        positions = state.positions()
        if gone:
            place = int(positions[module.start])
            if place < 0:
                return c.emit(module, (c.expand(slot, state),)), None
            return c.emit(Pick(module.dim, place), (slot,)), None
        wanted = positions[module.start : module.stop : module.step]
        live = (wanted >= 0).nonzero().flatten()
        if len(live) == 0:
            return c.emit(module, (c.expand(slot, state),)), None
        slot = c.emit(Realign(module.dim, wanted[live]), (slot,))
        return slot, channels(module.dim, len(wanted), live, empty=state.empty, loose=state.loose)


@operation(
    *("aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default", "aten.split.sizes"),
    *("aten.unbind.int", "aten.tensor_split.sections", "aten.tensor_split.indices"),
)
class Parts(Routing):
    """A tuple of parts: each is picked where it is read."""

    views = True

    def build(self, b: Builder, node: Any) -> int:
        return b.slot(node.args[0])

    def part(self, b: Builder, node: Any, index: int, reader: Any) -> int:
        source = node.args[0]
        shape = b.shape(source)
        if b.name_of(node) == "unbind":
            dim = b.arg(node, 1, "dim", 0) % len(shape)
            return b.emit(reader, Pick(dim, index), (b.slot(source),))
        dim = b.arg(node, 2, "dim", 0) % len(shape)
        sizes = [value.shape[dim] for value in node.meta["val"]]
        start = sum(sizes[:index])
        if sizes[index] == shape[dim]:
            return b.same(reader, source)
        return b.emit(reader, Pick(dim, start, start + sizes[index]), (b.slot(source),))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        raise AssertionError("makes no step")


# -- several ------------------------------------------------------------------------------------------


@operation("aten.cat.default", "aten.stack.default", modules=(Concat,))
class Join(Routing):
    passes_zeros = True

    def build(self, b: Builder, node: Any) -> int:
        parts = b.arg(node, 0, "tensors", ())
        rank = len(b.shape(node))
        dim = b.arg(node, 1, "dim", 0) % rank
        if b.shape(node)[dim] % BATCH == 0:
            raise b.refused(node, "of images with images")
        if b.name_of(node) == "cat":
            parts = [part for part in parts if b.shape(part) != (0,)]
            slots = [b.whole_slot(part) for part in parts]
        else:
            slots = []
            for part in parts:
                shape = b.shape(part)
                groups = grouped(shape, (*shape[:dim], 1, *shape[dim:]))
                slots.append(b.emit(node, Reshape(groups), (b.whole_slot(part),)))
        return slots[0] if len(slots) == 1 else b.emit(node, Concat(dim), tuple(slots))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        parts = [c.input(slot) for slot in inputs]
        states = [state for _, state in parts]
        if all(state is None for state in states):
            return c.emit(module, tuple(slot for slot, _ in parts)), None
        dims = {state.dim for state in states if state is not None}
        loose = [state for state in states if state is not None and state.loose]
        if len(dims) == 1 and dims != {module.dim} and loose:
            dim = dims.pop() - len(c.shape(inputs[0]))
            slots = [
                c.narrowed(slot, state, loose[0].live, original, dim)
                for (slot, state), original in zip(parts, inputs, strict=True)
            ]
            return c.emit(module, tuple(slots)), loose[0]
        if dims != {module.dim}:
            return c.emit(module, tuple(c.expand(*part) for part in parts)), None
        offset, live, slots = 0, [], []
        for (slot, state), original in zip(parts, inputs, strict=True):
            size = c.shape(original)[module.dim]
            if state is None or not state.empty:
                live.append((torch.arange(size, device=c.device) if state is None else state.live) + offset)
                slots.append(slot)
            offset += size
        if not slots:  # a channel of zeros
            first = next(state for state in states if state is not None)
            return parts[0][0], channels(module.dim, offset, first.live, empty=True)
        joined = channels(module.dim, offset, torch.cat(live), loose=bool(loose))
        return (slots[0] if len(slots) == 1 else c.emit(module, tuple(slots))), joined


@operation(modules=(Constant,))
class Given(Operation):
    relevance = Relevance.NONE

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return not module.value.is_meta and bool((module.value >= 0).all())

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return c.emit(module, ()), None


# -- repeated and moved -------------------------------------------------------------------------------


@operation("aten.expand.default", "aten.expand_as.default", modules=(Expand,))
class Broadcast(Routing):
    views = True

    def build(self, b: Builder, node: Any) -> int:
        before, after = b.shape(node.args[0]), b.shape(node)
        if before == after:
            return b.same(node, node.args[0])
        return b.expanded(node, b.slot(node.args[0]), before, after)

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return inputs[0]

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        return inputs[0]

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        (slot, state), (images, _) = (c.input(slot) for slot in inputs)
        if state is None:
            return c.emit(module, (slot, images)), None
        dim = state.dim + len(module.sizes) - len(c.shape(inputs[0]))
        if state.size == 1:
            return c.emit(module, (slot, images)), None
        return c.emit(module, (slot, images)), replace(state, dim=dim)


@operation(modules=(Tile,))
class Tiled(Routing):
    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        return c.emit(module, tuple(c.expand(*c.input(slot)) for slot in inputs)), None


class _Moving(Routing):
    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        if state is None:
            return c.emit(module, (slot,)), None
        if state.dim in module.dims or not (module.keeps_zeros or state.loose):
            return c.emit(module, (c.expand(slot, state),)), None
        return c.emit(module, (slot,)), state


@operation(
    *("aten.roll.default", "aten.flip.default", "aten.repeat_interleave.self_int"),
    *("aten.pad.default", "aten.constant_pad_nd.default", "aten.repeat.default", "aten.index_select.default"),
    *("aten.upsample_nearest2d.vec", "aten.upsample_nearest2d.default", "aten.index.Tensor"),
    *("aten.pixel_shuffle.default", "aten.pixel_unshuffle.default", "aten.channel_shuffle.default"),
    modules=(Move,),
)
class Moved(_Moving):
    def build(self, b: Builder, node: Any) -> int:
        name = b.name_of(node)
        source = node.args[0]
        rank = len(b.shape(source))
        slots = (b.slot(source),)
        if name == "roll":
            shifts, dims = b.arg(node, 1, "shifts"), b.arg(node, 2, "dims", ())
            if not dims:
                raise b.refused(node)
            dims = tuple(dim % rank for dim in dims)
            return b.emit(node, Move(torch.roll, (tuple(shifts), dims), dims), slots)
        if name == "flip":
            dims = tuple(dim % rank for dim in b.arg(node, 1, "dims"))
            return b.emit(node, Move(torch.flip, (dims,), dims), slots)
        if name in ("pad", "constant_pad_nd"):
            widths = tuple(b.arg(node, 1, "pad"))
            mode = b.arg(node, 2, "mode", "constant") if name == "pad" else "constant"
            value = b.arg(node, 3, "value", None) if name == "pad" else b.arg(node, 2, "value", 0)
            dims = tuple(rank - 1 - k for k in range(len(widths) // 2) if widths[2 * k] or widths[2 * k + 1])
            if not dims:
                return b.same(node, source)
            keeps = mode != "constant" or not value
            return b.emit(node, Move(F.pad, (widths, mode, value), dims, keeps_zeros=keeps), slots)
        if name == "upsample_nearest2d":
            scales = b.arg(node, 2, "scale_factors", None)
            size = None if scales else tuple(b.shape(node)[2:])
            return b.emit(node, Move(F.interpolate, (size, tuple(scales) if scales else None), (2, 3)), slots)
        if name == "repeat":
            counts = b.arg(node, 1, "repeats")
            if not all(isinstance(count, int) for count in counts):  # as many as there are images
                return b.expanded(node, slots[0], b.shape(source), b.shape(node))
            leading = len(counts) - rank
            dims = tuple(k - leading for k, count in enumerate(counts) if count > 1)
            if leading:
                raise b.refused(node)
            return b.emit(node, Move(Tensor.repeat, (tuple(counts),), dims), slots)
        if name == "repeat_interleave":
            count, dim = b.arg(node, 1, "repeats"), b.arg(node, 2, "dim")
            if dim is None:
                raise b.refused(node)
            return b.emit(node, Move(torch.repeat_interleave, (count, dim % rank), (dim % rank,)), slots)
        if name == "index_select":
            return b.emit(node, Realign(node.args[1] % rank, b.constant(node.args[2])), slots)
        if name == "index":
            places = [(k, b.constant(index)) for k, index in enumerate(node.args[1]) if index is not None]
            (dim, index), *more = places
            if more or index.dim() != 1 or index.dtype == torch.bool:
                raise b.refused(node)
            return b.emit(node, Realign(dim, index % b.shape(source)[dim]), slots)
        if name == "channel_shuffle":
            groups, count = node.args[1], b.shape(source)[1]
            return b.emit(node, Realign(1, torch.arange(count).view(groups, -1).T.flatten()), slots)
        function = {"pixel_shuffle": F.pixel_shuffle, "pixel_unshuffle": F.pixel_unshuffle}[name]
        return b.emit(node, Move(function, (node.args[1],), (1, 2, 3)), slots)


@operation("aten.index_copy.default", modules=(Realign,))
class Realigned(Routing):
    def build(self, b: Builder, node: Any) -> int:
        onto, dim, index, source = node.args
        if not b.is_constant(onto) or not b.is_constant(index) or b.constant(onto).any():
            raise b.refused(node)
        dim %= len(b.shape(node))
        places = torch.full((b.shape(node)[dim],), -1)
        places[b.constant(index)] = torch.arange(b.shape(source)[dim])
        return b.emit(node, Realign(dim, places), (b.slot(source),))

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        slot, state = c.input(inputs[0])
        dim = module.dim % len(c.shape(inputs[0]))
        if state is None or state.dim != dim:
            return c.emit(module, (slot,)), state
        size = module.size
        wanted = module.source.new_full((size,), -1)
        target = torch.arange(size, device=c.device) if module.target is None else module.target
        wanted[target] = state.positions()[module.source]
        live = (wanted >= 0).nonzero().flatten()
        if len(live) == 0:
            return c.emit(module, (c.expand(slot, state),)), None
        slot = c.emit(Realign(dim, wanted[live]), (slot,))
        return slot, channels(dim, size, live, empty=state.empty, loose=state.loose)


@operation(
    *(f"aten.{name}.default" for name in ("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone")),
    *("aten.native_dropout.default", "aten.detach.default", "aten.alias.default", "aten.lift_fresh_copy.default"),
    *("aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten.type_as.default", "aten._to_copy.default"),
    *("aten.feature_alpha_dropout.default", "aten.positive.default"),
)
class Identity(Routing):
    """What changes nothing when a network is used."""

    views = True

    def build(self, b: Builder, node: Any) -> int:
        if not node.meta["val"].is_floating_point():
            raise b.refused(node)
        return b.same(node, node.args[0])

    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        raise AssertionError("makes no step")
