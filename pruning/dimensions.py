"""How many dimensions the values of a network have, as far as the way it is written tells without an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from . import network as ops
from .network import Step

IMAGES = 4
"""Dimensions of a batch of images."""
SAME = {"transpose", "swapaxes", "movedim", "contiguous", "clone", "pad", "_pad", "chunk", "split"}
"""Functions whose results have as many dimensions as what they are given."""


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
