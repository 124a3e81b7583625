"""Accuracy against sparsity, and the area under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .compaction import compact
from .graph import Graph, trace
from .masks import nested, rank
from .names import DEFAULT_RATES
from .precision import computed_in
from .shared_forward import Family, groups


class Batches(Protocol):
    """Images: a tensor, or anything that gives a float batch when it is sliced."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: slice, /) -> Tensor: ...


Targets: TypeAlias = Tensor | Sequence[int] | NDArray[Any]
"""An index of a logit for each sample: as an int64 tensor, or any integers in a sequence or an array."""


def checked_samples(inputs: Batches, targets: Targets, batch_size: int) -> tuple[Batches, Tensor]:
    """The samples, in float32 where they were in half precision, and with gradients allowed if they were made in
    inference mode; targets that are no tensor become one, on the inputs' device.

    Raises:
        ValueError: no samples, or not float images with an index of a logit for each.
    """
    targets = _as_tensor(targets, inputs)
    if targets.dim() == 0:
        raise ValueError("targets are one number: need int64 indices of logits, (n,)")
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: need the same number, at least one")
    if isinstance(inputs, Tensor) and not inputs.is_floating_point():
        raise ValueError(f"inputs are {inputs.dtype}: need float images, normalised as the model expects")
    if targets.dtype != torch.int64 or targets.dim() != 1:
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}: need int64 indices of logits, (n,)"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: need at least 1")
    if isinstance(inputs, Tensor):
        if inputs.dtype in (torch.float16, torch.bfloat16):
            inputs = inputs.float()  # as `trace` makes the model's weights
        inputs = inputs.clone() if inputs.is_inference() else inputs
    return inputs, targets.clone() if targets.is_inference() else targets


def _as_tensor(targets: Targets, inputs: Batches) -> Tensor:
    """Targets that are no tensor as one, on the inputs' device."""
    if isinstance(targets, Tensor):
        return targets
    try:
        values = np.asarray(targets)
    except (TypeError, ValueError) as error:  # rows of several lengths, say
        raise ValueError(f"targets make no array ({error}): need int64 indices of logits, (n,)") from error
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"targets are {values.dtype} of shape {values.shape}: need int64 indices of logits, (n,)")
    return torch.from_numpy(values.astype(np.int64)).to(inputs.device if isinstance(inputs, Tensor) else "cpu")


def check_targets(targets: Tensor, n_logits: int) -> None:
    """Refuse targets that no logit has, before a GPU's kernel does, after which nothing runs there any more.

    Raises:
        ValueError: such a target.
    """
    if targets.is_meta:  # has no values
        return
    low, high = (int(end) for end in targets.aminmax())
    if low < 0 or high >= n_logits:
        raise ValueError(f"targets are {low} to {high}: need indices of {n_logits} logits")


def accuracy_curve(
    model: nn.Module | Graph,
    relevance: Mapping[str, Tensor],
    inputs: Batches,
    targets: Targets,
    rates: Sequence[float] = DEFAULT_RATES,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
) -> list[float]:
    """Top-1 accuracy at each pruning rate, units removed least relevant first.

    relevance: per layer a float tensor, shape (units,). inputs: float images, shape (n, channels, height,
    width). targets: logit indices, shape (n,), see `Targets`. logits: indices of the logits that compete (domain
    restriction); None for all.

    Raises:
        TraceError, ValueError: as `trace`, `rank` and `compact_model`; a target that no logit has.
    """
    inputs, targets = checked_samples(inputs, targets, batch_size)
    graph = trace(model, inputs[:2])
    with torch.inference_mode():
        n_logits = graph.network(inputs[:1]).shape[1]
    check_targets(targets, n_logits)
    if not rates:
        raise ValueError("a curve needs at least one rate")
    networks = (compact(graph, masks).network for masks in nested(rank(relevance), rates))
    right = [
        correct_each(Family(group), inputs, targets, logits=logits, batch_size=batch_size) for group in groups(networks)
    ]
    return (torch.cat(right).sum(1).cpu().double() / len(targets)).tolist()


@torch.inference_mode()
def accuracy(
    network: nn.Module,
    inputs: Batches,
    targets: Targets,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
    precision: str = "fp32",
) -> float:
    """Top-1 accuracy in [0, 1]. Arguments as in `accuracy_curve`; precision: of the network, see `computed_in`."""
    right = correct(network, inputs, targets, logits=logits, batch_size=batch_size, precision=precision)
    return right.sum().item() / len(targets)


def correct(
    network: nn.Module,
    inputs: Batches,
    targets: Targets,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
    precision: str = "fp32",
) -> Tensor:
    """Whether each sample's prediction is right: bool, shape (n,), on the targets' device."""
    family = Family([network])
    return correct_each(family, inputs, targets, logits=logits, batch_size=batch_size, precision=precision)[0]


@torch.inference_mode()
def correct_each(
    family: Family,
    inputs: Batches,
    targets: Targets,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
    precision: str = "fp32",
) -> Tensor:
    """Whether each network's prediction for each sample is right: bool, shape (networks, n), on the targets' device.

    Arguments as in `accuracy`.
    """
    targets = _as_tensor(targets, inputs)
    right = []
    for start in range(0, len(targets), batch_size):
        with computed_in(precision, targets.device):
            output = torch.stack(family(inputs[start : start + batch_size]))
        predicted = output.argmax(2) if logits is None else logits[output.index_select(2, logits).argmax(2)]
        right.append(predicted == targets[start : start + batch_size])
    return torch.cat(right, 1)


def auc(rates: Sequence[float], accuracies: Sequence[float]) -> float:
    """Area under the curve by the trapezoid rule, divided by the span of the rates: in [0, 1].

    Raises:
        ValueError: fewer than two rates, rates that do not ascend, or another number of accuracies.
    """
    if len(rates) < 2 or len(rates) != len(accuracies):
        raise ValueError(f"an area needs two rates or more, and an accuracy for each; got {len(rates)} rates")
    if any(left >= right for left, right in pairwise(rates)):
        raise ValueError("rates must ascend")
    points = list(zip(rates, accuracies, strict=True))
    area = sum((r1 - r0) * (a0 + a1) / 2 for (r0, a0), (r1, a1) in pairwise(points))
    return area / (rates[-1] - rates[0])


def sparsity_at(rates: Sequence[float], accuracies: Sequence[float], share: float = 0.95) -> float:
    """The largest rate up to which the accuracy never falls below `share` of the unpruned one (the first)."""
    kept = rates[0]
    for rate, value in zip(rates, accuracies, strict=True):
        if value < share * accuracies[0]:
            break
        kept = rate
    return kept
