"""Images that a program gives: tensors, a Dataset or a DataLoader, with transforms of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ...studies.errors import UserError
from ...studies.wording import reason
from ..progress import Progress, no_progress

Given: TypeAlias = tuple[Any, Any] | TorchDataset[Any] | DataLoader[Any]
"""A pair of inputs (n, channels, height, width) and class indices (n,), as tensors or arrays; or what gives such pairs,
one sample or one batch at a time."""

BATCH = 64
"""Samples of a Dataset that are put together at a time."""


def read_given(data: Given, name: str, progress: Progress = no_progress) -> tuple[Tensor, Tensor]:
    """All inputs and class indices, on the CPU, in the order in which they come.

    Returns inputs of shape (n, channels, height, width): uint8 where they are whole numbers, else float32 with the
    values that they have; and int64 indices of shape (n,).

    Raises:
        UserError: no samples, or not what `Given` says. name: what it is for, in the message ("reference").
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and not isinstance(data, TorchDataset):
        return _checked(_tensor(data[0], name), _tensor(data[1], name), name)
    if isinstance(data, TorchDataset):
        data = DataLoader(data, batch_size=BATCH)
    if not isinstance(data, Iterable):
        raise UserError(f"{name}: {type(data).__name__} is no pair (inputs, targets), Dataset or DataLoader")
    inputs, targets = [], []
    total = len(data) if hasattr(data, "__len__") else 1
    with progress(f"read the {name} images", total) as advance:
        for images, classes in _batches(data, name):
            inputs.append(_tensor(images, name))
            targets.append(_tensor(classes, name))
            advance(1)
    if not inputs:
        raise UserError(f"{name}: it gives no samples")
    try:
        return _checked(torch.cat(inputs), torch.cat(targets), name)
    except RuntimeError as error:
        raise UserError(
            f"{name}: images of one shape are needed ({reason(error)}); let a transform crop them"
        ) from error


def _batches(data: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
    try:
        for batch in data:
            if isinstance(batch, Mapping) and {"pixel_values", "labels"} <= batch.keys():  # as Hugging Face's are
                batch = batch["pixel_values"], batch["labels"]
            if not isinstance(batch, Sequence) or len(batch) != 2:
                raise UserError(f"{name}: batches are pairs (inputs, targets), not {type(batch).__name__}")
            yield batch[0], batch[1]
    except (TypeError, RuntimeError) as error:  # what the data's own code raises, collating above all
        raise UserError(f"{name}: {reason(error)}; let a transform give tensors of one shape") from error


def _tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(np.asarray(values) if isinstance(values, (list, tuple)) else values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: {type(values).__name__} is no tensor ({reason(error)})") from error


def _checked(inputs: Tensor, targets: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if inputs.dim() != 4:
        raise UserError(f"{name}: inputs of shape {tuple(inputs.shape)}; give (n, channels, height, width)")
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        kind = f"shape {tuple(targets.shape)} and {targets.dtype}"
        raise UserError(f"{name}: targets of {kind}; give class indices, whole numbers of shape (n,)")
    if len(inputs) != len(targets) or not len(inputs):
        raise UserError(f"{name}: {len(inputs)} inputs and {len(targets)} targets; give as many of each, at least one")
    if inputs.is_floating_point():
        if not bool(torch.isfinite(inputs).all()):
            raise UserError(f"{name}: inputs hold values that are not finite")
        return inputs.float(), targets.long()
    if inputs.dtype != torch.uint8 and (int(inputs.min()) < 0 or int(inputs.max()) > 255):
        raise UserError(f"{name}: whole numbers from 0 to 255 are images, others are not; give floats for other inputs")
    return inputs.to(torch.uint8), targets.long()
