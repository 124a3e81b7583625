"""How much memory there is, how much a batch needs, and what is done when it was not enough."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
from torch import Tensor

from ...attribution import Composite, RuleSpec, collect_relevance
from ...pruning import Batches, Graph

if TYPE_CHECKING:
    from optuna.study import Study

LARGEST = {"cpu": 64, "mps": 32, "cuda": 256}
"""Images per batch at most, by type of device: more are not faster."""
MOST_BYTES = {"cpu": 2**31}
"""Of the free memory no more is counted, by type of device: a CPU is not faster with more than half of that for a batch
(a few images of 224 x 224), and other processes want some too."""
PART_OF_FREE = 0.5
"""The part of the free memory that a batch may take: compact networks and a repair need some as well."""
WORKING_COPIES = 6
"""How many tensors of the size of the largest activation a rule works with in the backward pass."""

T = TypeVar("T")


class OutOfMemory(MemoryError):
    """Memory was too small for a single image."""


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # a container's limit, which psutil does not know; "max" for none
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)


def sample_budget(device: torch.device) -> int:
    """What `--sample-memory` stands for by itself: bytes that decoded images may take.

    They pass through the machine's own memory on their way to a device.
    """
    devices = {torch.device("cpu")} | ({device} if device.type == "cuda" else set())
    return min(map(free_memory, devices)) // 4


def sample_bytes(graph: Graph, units: str, inputs: Batches, targets: Tensor) -> int:
    """Bytes that a relevance pass needs for each sample: what a pass of two samples keeps beyond that of one.

    What autograd keeps for the backward pass, and what a rule works with at the largest layer. Weights, also those that
    a rule makes of a layer's, are as large for any number of samples.
    """
    composite = Composite.uniform(RuleSpec("alpha_beta"))  # the rule that needs most

    def kept(count: int) -> list[int]:
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor

        rows = torch.zeros(count, dtype=torch.long)  # the first sample, so often: there may be no second one
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            images = inputs[0:1].expand(count, -1, -1, -1)
            collect_relevance(graph, composite, images, targets[rows.to(targets.device)], units, batch_size=count)
        return list(found.values())

    sizes = [max(0, two - one) for one, two in zip(kept(1), kept(2), strict=False)]
    return sum(sizes) + WORKING_COPIES * max(sizes, default=0)


def fitting_batch_size(need: int, free: int, kind: str) -> int:
    """The largest power of two of samples that fits, from 1 to what is useful on this type of device.

    A power of two, so that a little more or less free memory does not change how sums are rounded: the same
    machine gives the same study.

    need: bytes for each sample. free: bytes there are.
    """
    fits = max(1, int(free * PART_OF_FREE) // max(need, 1))
    return min(1 << fits.bit_length() - 1, LARGEST[kind])


def choose_batch_size(graph: Graph, units: str, inputs: Batches, targets: Tensor) -> int:
    """What `--batch-size auto` stands for."""
    kind = graph.device.type
    if kind == "mps":  # does not tell how much is free
        return LARGEST[kind]
    free = free_memory(graph.device)
    return fitting_batch_size(sample_bytes(graph, units, inputs, targets), min(free, MOST_BYTES.get(kind, free)), kind)


@dataclass
class Batching:
    """How many samples a pass takes: fewer, from the moment on when memory has not been enough.

    tell: is told so, in one line.
    """

    size: int
    tell: Callable[[str], None] = lambda text: None

    def run(self, work: Callable[[int], T]) -> T:
        """What `work` gives for a batch size, begun anew with half of it each time it runs out of memory.

        Raises:
            OutOfMemory: a batch is a single sample.
            What `work` raises besides.
        """
        before = self.size
        while True:
            try:
                result = work(self.size)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise OutOfMemory("memory is too small for a single image") from error
            # Here, not above: the error's traceback holds the tensors of the pass that failed.
            self.size = (self.size + 1) // 2
            free_cache()
        if self.size < before:
            self.tell(f"memory was too small for {before} images per batch: {self.size} from here on (--batch-size)")
        return result


def keep_batch_size(study: Study, batching: Batching, kind: str) -> None:
    """Lets a study that goes on use the batches it began with, on this type of device: others round otherwise,
    and free memory may have changed."""
    sizes: dict[str, int] = dict(study.user_attrs.get("batch_size", {}))
    if kind in sizes:
        batching.size = sizes[kind]
    else:
        study.set_user_attr("batch_size", {**sizes, kind: batching.size})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed: on CUDA, in one of its libraries, on MPS or the CPU."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    signs = ("out of memory", "_ALLOC_FAILED", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def free_cache() -> None:
    """Gives memory that torch holds and does not use back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
