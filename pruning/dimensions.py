"""How many dimensions the values of a network have, and how large maps are, as far as the way it is written tells
without an image."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from . import network as ops
from .network import Step

IMAGES = 4
"""Dimensions of a batch of images."""
SAME = {"transpose", "swapaxes", "movedim", "contiguous", "clone", "pad", "_pad", "chunk", "split"}
"""Functions whose results have as many dimensions as what they are given."""

Extent = tuple[int, int]
"""How large a value is besides its channels: height and width that an image of a certain size would have there, or
numbers of its own where that is not known. To compare only: values of one extent are of one size."""


def dimensions(steps: Iterable[Step], modules: Mapping[str, nn.Module]) -> dict[int, int]:
    """The number of dimensions by slot; of a tuple of tensors, that of each. What is not known is missing."""
    found, tuples = {0: IMAGES}, set()
    for step in steps:
        module = modules[step.name]
        given = [found.get(slot) for slot in step.inputs]
        if isinstance(module, ops.Call):
            name = getattr(module.function, "__name__", "")
            if name in ("chunk", "split"):
                tuples.add(step.output)
            part = name == "getitem" and step.inputs[0] in tuples
            count = given[0] if part else _called(name, module.args, module.kwargs, given)
        else:
            count = _computed(module, given)
        if count is not None:
            found[step.output] = count
    return found


def _computed(module: nn.Module, given: Sequence[int | None]) -> int | None:
    """Of what an operation gives, by the dimensions of what it reads."""
    if isinstance(module, ops.Constant):
        return module.value.dim()  # type: ignore[operator, union-attr]
    if isinstance(module, (ops.SplitHeads, ops.QueryKey, ops.HeadSoftmax, ops.AttentionValue)):
        return 4
    if isinstance(module, ops.MergeHeads):
        return 3
    if isinstance(module, ops.Permute):
        return len(module.dims)
    known = [count for count in given if count is not None]
    if not known or len(known) < len(given):
        return None
    count = max(known)
    if isinstance(module, nn.Flatten):
        return count - (module.end_dim % count - module.start_dim % count)
    if isinstance(module, ops.Mean):
        return count if module.keepdim else count - len(set(module.dims))
    if isinstance(module, ops.Affine):
        return max([count, *(value.dim() for value in (module.scale, module.shift) if isinstance(value, Tensor))])
    return count


def _called(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: Sequence[int | None]) -> int | None:
    """Of what a function gives that only moves or picks values."""
    rest = args[1:]
    if name in ("reshape", "expand"):
        shape = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
        # a single value may be a whole shape
        return None if kwargs or (len(shape) == 1 and isinstance(shape[0], ops.Call.Slot)) else len(shape)
    if name in ("expand_as", "view_as"):
        return given[-1]
    count = given[0] if given else None
    if count is None:
        return None
    if name in SAME:
        return count
    if name == "unsqueeze":
        return count + 1
    if name == "squeeze" and rest:  # of a dimension that has the size 1: nobody writes it for another
        return count - 1 if isinstance(rest[0], int) else None
    if name == "getitem":
        index = rest[0] if isinstance(rest[0], tuple) else (rest[0],)
        known = all(item is None or item is ... or isinstance(item, (int, slice, ops.Call.Slot)) for item in index)
        dropped = sum(isinstance(item, (int, ops.Call.Slot)) for item in index)
        return count - dropped + sum(item is None for item in index) if known else None
    return None


def extents(steps: Iterable[Step], modules: Mapping[str, nn.Module]) -> dict[int, Extent]:
    """The extent by slot. (1, 1): one pixel, or what has no pixels, such as features."""
    found = {0: _unknown(0)}
    for step in steps:
        found[step.output] = _extent(modules[step.name], [found[slot] for slot in step.inputs], step.output)
    return found


def _extent(module: nn.Module, inputs: Sequence[Extent], output: int) -> Extent:
    """The extent of a step's value: as large as what it reads, unless it is known to be otherwise."""
    if not inputs or isinstance(module, (ops.Call, ops.Permute, ops.PoolSquare)):  # the last one: of square maps only
        return _unknown(output)
    if isinstance(module, ops.Mean):
        axes = {dim % 4 for dim in module.dims}
        if axes == {2, 3}:
            return 1, 1
        if not module.keepdim or not axes <= {2, 3}:
            return _unknown(output)
        return (1, inputs[0][1]) if axes == {2} else (inputs[0][0], 1)
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        height, width = (
            old if new is None else new for old, new in zip(inputs[0], _pair(module.output_size), strict=True)
        )
        return height, width
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        height, width = (_broadcast([size[axis] for size in inputs], _unknown(output)[axis]) for axis in range(2))
        return height, width
    kernel, stride, dilation = (_pair(getattr(module, key, 1)) for key in ("kernel_size", "stride", "dilation"))
    if module.padding == "same":
        return inputs[0]
    padding = _pair(0 if module.padding == "valid" else module.padding)
    up = stride if getattr(module, "ceil_mode", False) else (1, 1)
    height, width = (
        (inputs[0][axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) + up[axis] - 2) // stride[axis] + 1
        for axis in range(2)
    )
    return height, width


def _broadcast(sizes: Sequence[int], unknown: int) -> int:
    """The size of what values of such sizes make together."""
    larger = {size for size in sizes if size != 1}
    return larger.pop() if len(larger) == 1 else unknown if larger else 1


def _unknown(slot: int) -> Extent:
    """An extent that no other value has, save what is as large as this one. Large and without a pattern, so that no
    convolution makes one of another."""
    generator = random.Random(slot)
    return generator.getrandbits(48) + 2**48, generator.getrandbits(48) + 2**48


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)  # type: ignore[return-value]
