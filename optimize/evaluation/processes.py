"""How many processes a search has by itself, and what each of them computes on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from .memory import MOST_BYTES, free_memory

MOST = 4
"""Processes at most, unless more are asked for: each proposal knows nothing of the trials that run beside it."""


@dataclass(frozen=True)
class Processes:
    """Of one search. asked: as many as were asked for, or would be there with memory enough. devices: that of each one,
    as `--device` has it. threads: of each one. reason: why there are fewer than asked. forks: whether they may be forks
    at all."""

    asked: int
    devices: Sequence[str]
    threads: int
    reason: str = ""
    forks: bool = True

    @property
    def count(self) -> int:
        return len(self.devices)

    @property
    def method(self) -> str:
        """How they begin. A fork has all that is prepared, and shares its memory; but OpenMP's threads survive none,
        and autograd only on a machine without GPU (`begin_autograd`)."""
        usual = self.forks and sys.platform == "linux" and self.threads == 1
        return "fork" if usual and _survives_fork() else "spawn"

    def __str__(self) -> str:
        on = ", ".join(self.devices) if self.devices[0].startswith("cuda") else f"{_some(self.threads, 'thread')} each"
        why = f": {self.reason}" if self.reason else ""
        return f"{_some(self.count, 'process', 'processes')}, {on}{why} (--workers)"


def _some(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def begin_autograd() -> None:
    """Lets autograd find out which devices there are, before `torch.export` puts up a GPU that is none, for which it
    would begin threads: after that no fork can compute gradients."""
    torch.ones(1, requires_grad=True).backward()


def _survives_fork() -> bool:
    """Whether a fork of this process can compute gradients: one tries."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            begin_autograd()
            status = 0
        os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def plan_processes(workers: int | None, option: str, device: torch.device) -> Processes:
    """The processes of a search.

    workers: as asked for; None for one on each GPU, on the CPU one for each core (up to `MOST`, which then have several
    threads) as far as the memory goes. option: the device as asked for. device: what was chosen.
    """
    if device.type == "cuda":
        one = "auto" not in option and ":" in option
        devices = [str(device)] if one else [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        count = len(devices) if workers is None else workers
        return Processes(count, [devices[index % len(devices)] for index in range(count)], 1)
    cores = torch.get_num_threads()
    asked = min(cores, MOST) if workers is None else workers
    if device.type != "cpu":
        asked = workers or 1
    fits = asked if workers is not None else fitting_processes(asked, free_memory(device))
    reason = "" if fits == asked else f"memory is too small for {asked}"
    return Processes(asked, [str(device)] * fits, max(1, cores // fits), reason)


def fitting_processes(asked: int, free: int) -> int:
    """How many processes fit into memory, one at least: each needs what this one takes, and room for its batches."""
    need = psutil.Process().memory_info().rss + MOST_BYTES["cpu"]
    return max(1, min(asked, free // need))
