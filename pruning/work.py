"""What a network costs, counted or measured on it."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .convolution import plain
from .network import Network
from .shared_forward import Family

ROUNDS = 5


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
    """Seconds for a batch: the median of `ROUNDS`, after one that does not count."""
    family = Family([network])
    seconds = []
    for _ in range(ROUNDS + 1):
        wait(images.device)
        start = time.perf_counter()
        family(images)
        wait(images.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def wait(device: torch.device) -> None:
    """Until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
