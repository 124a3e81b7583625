"""Accuracy against sparsity, and the area under it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from .compact import compact
from .convolution import Convolution
from .graph import Graph, trace
from .masks import Masks, nested, rank
from .network import Network, clone
from .precision import computed_in

DEFAULT_RATES = tuple(round(0.05 * step, 2) for step in range(20))


class Batches(Protocol):
    """Images: a tensor, or anything that gives a float batch when it is sliced."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: slice, /) -> Tensor: ...


def check_samples(inputs: Batches, targets: Tensor) -> None:
    """Raises ValueError unless there are samples, and a target for each."""
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: need the same number, at least one")


def accuracy_curve(
    model: nn.Module | Graph,
    relevance: Mapping[str, Tensor],
    inputs: Batches,
    targets: Tensor,
    rates: Sequence[float] = DEFAULT_RATES,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
) -> list[float]:
    """Top-1 accuracy at each pruning rate, units removed least relevant first.

    relevance: per layer a float tensor, shape (units,). inputs: float images, shape (n, channels, height,
    width). targets: logit indices, int64, shape (n,). logits: indices of the logits that compete (domain
    restriction); None for all.

    Raises:
        TraceError, ValueError: as `trace`, `rank` and `compact_model`.
    """
    graph = trace(model)
    check_samples(inputs, targets)
    return masks_curve(graph, nested(rank(relevance), rates), inputs, targets, logits=logits, batch_size=batch_size)


def masks_curve(
    graph: Graph,
    masks: Iterable[Masks],
    inputs: Batches,
    targets: Tensor,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
    build: Callable[[Graph, Masks], nn.Module] | None = None,
) -> list[float]:
    """Accuracy of the network under each of the masks. `build` makes the network (compact by default)."""
    build = build or (lambda graph, mask: compact(graph, mask).network)
    return [accuracy(build(graph, mask), inputs, targets, logits=logits, batch_size=batch_size) for mask in masks]


@torch.inference_mode()
def accuracy(
    network: nn.Module,
    inputs: Batches,
    targets: Tensor,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
    precision: str = "fp32",
) -> float:
    """Top-1 accuracy in [0, 1]. Arguments as in `accuracy_curve`; precision: of the network, see `computed_in`."""
    right = correct(network, inputs, targets, logits=logits, batch_size=batch_size, precision=precision)
    return right.sum().item() / len(targets)


@torch.inference_mode()
def correct(
    network: nn.Module,
    inputs: Batches,
    targets: Tensor,
    *,
    logits: Tensor | None = None,
    batch_size: int = 128,
    precision: str = "fp32",
) -> Tensor:
    """Whether each sample's prediction is right: bool, shape (n,), on the targets' device."""
    network = predictor(network)
    right = []
    for start in range(0, len(targets), batch_size):
        with computed_in(precision, targets.device):
            output = network(inputs[start : start + batch_size])
        expected = targets[start : start + batch_size]
        if logits is not None:
            output = output.index_select(1, logits)
            predicted = logits[output.argmax(1)]
        else:
            predicted = output.argmax(1)
        right.append(predicted == expected)
    return torch.cat(right)


class ChannelsLast(nn.Module):
    """A network whose weights are in channels-last order: its images are put into that order too."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return output


def predictor(network: nn.Module) -> nn.Module:
    """The network's fastest form, to be run on many batches; the same logits, but for rounding."""
    fast = _channels_last(network)
    return network if fast is None else ChannelsLast(fast)


def _channels_last(network: nn.Module) -> Network | None:
    """A convolutional network with its weights in channels-last order, where the kernels are fastest.

    A copy: the graph's weights stay in the order in which relevance is collected, to the last bit.
    """
    if not isinstance(network, Network) or any(isinstance(module, nn.LayerNorm) for module in network.modules()):
        return None
    modules = network.modules_by_step()
    convolutions = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and not (isinstance(module, Convolution) and module.has_been_flat)
    }
    if not convolutions:
        return None
    for name, module in convolutions.items():
        weight = module.weight.contiguous(memory_format=torch.channels_last)
        modules[name] = clone(module, weight=weight)
    return Network(network.steps, modules, network.result).eval().requires_grad_(False)


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
