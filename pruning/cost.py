"""What a network costs: multiply-adds or time, for curves over them instead of over the number of units.

A filter of an early layer costs more than one of a late layer, and neither a unit's share of the units nor its share
of the multiply-adds is its share of the time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .convolution import plain
from .network import Network
from .registry import Registry
from .shared_forward import Family

ROUNDS = 5


def macs(network: nn.Module, images: Tensor) -> float:
    """Multiply-adds of one image; those with padding count. images: shape (n, channels, height, width), one is used."""
    module = plain(network) if isinstance(network, Network) else network
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images[:1])
    return counter.get_total_flops() / 2


def latency(network: nn.Module, images: Tensor) -> float:
    """Seconds for a batch: the median of `ROUNDS`, after one that does not count."""
    family = Family([network])
    seconds = []
    for _ in range(ROUNDS + 1):
        _wait(images.device)
        start = time.perf_counter()
        family(images)
        _wait(images.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


Cost = Callable[[nn.Module, Tensor], float]
COSTS: Registry[Cost] = Registry("cost", {"macs": macs, "latency": latency})
register_cost = COSTS.register


def area_over(costs: Sequence[float], accuracies: Sequence[float]) -> float:
    """Area under accuracy against the part of the cost that is saved, by the trapezoid rule: in [0, 1].

    costs: of the network at each rate, as parts of the unpruned one's. Not divided by the span, which is part of the
    result: networks that save more reach further.
    """
    points = list(zip(costs, accuracies, strict=True))
    return sum((c0 - c1) * (a0 + a1) / 2 for (c0, a0), (c1, a1) in pairwise(points))
