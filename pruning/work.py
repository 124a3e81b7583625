"""What a network costs, counted or measured on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .convolution import plain
from .network import Network
from .shared_forward import Family

ROUNDS = 5
"""Runs that a latency is measured in, at least."""
MOST_ROUNDS = 30
ENOUGH = 0.1
"""Seconds after which a latency is not measured again."""
ENOUGH_OF_ALL = 3.0
"""The same, of networks that are compared."""


def macs(network: nn.Module, images: Tensor) -> float:
    """Multiply-adds of one image; those with padding count. images: shape (n, channels, height, width), one is used."""
    module = plain(network) if isinstance(network, Network) else network
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images[:1])
    return counter.get_total_flops() / 2


def params(network: nn.Module, images: Tensor) -> float:
    """Weights and biases. images: not read."""
    return float(sum(parameter.numel() for parameter in network.parameters()))


def latency(network: nn.Module, images: Tensor) -> float:
    """Seconds for a batch, as `fastest` of some runs."""
    return fastest(Family([network]), [images], images.device)


def latencies(networks: Sequence[nn.Module], images: Tensor) -> list[float]:
    """Seconds for a batch of each of some networks, which are run in turn: what else the machine does for a while slows
    down all of them. For longer than `latency`, which trials have no time for."""
    return _least([Family([network]) for network in networks], [images], images.device, ENOUGH_OF_ALL)


def fastest(run: Callable[..., Any], values: Sequence[Tensor], device: torch.device, enough: float = ENOUGH) -> float:
    """Seconds that a function takes: the least of several runs, after one that does not count. What else a machine does
    makes a run longer, never shorter. enough: seconds after which there are no more than a few runs."""
    return _least([run], values, device, enough)[0]


def _least(
    runs: Sequence[Callable[..., Any]], values: Sequence[Tensor], device: torch.device, enough: float
) -> list[float]:
    """As `fastest`, of functions that are run in turn."""
    rounds: list[list[float]] = []
    begin = time.perf_counter()
    while len(rounds) <= ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - begin < enough):
        rounds.append([])
        for run in runs:
            wait(device)
            start = time.perf_counter()
            run(*values)
            wait(device)
            rounds[-1].append(time.perf_counter() - start)
    return [min(seconds) for seconds in zip(*rounds[1:], strict=True)]


def wait(device: torch.device) -> None:
    """Until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
