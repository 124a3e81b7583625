"""Pixels of samples: in memory, or, where there are too many, in a file that is gone when the process ends."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from ...studies.errors import UserError


class Store:
    """Gives room for decoded images, in memory until the budget is spent.

    budget: bytes in all. folder: where files lie; made when it is needed.
    """

    def __init__(self, budget: int, folder: Path) -> None:
        self.budget = budget
        self.folder = folder

    def room(self, shape: Sequence[int]) -> tuple[Tensor, bool]:
        """An uninitialised uint8 tensor on the CPU, and whether it lies in a file.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        size = math.prod(shape)
        if size <= self.budget:
            self.budget -= size
            return torch.empty(*shape, dtype=torch.uint8), False
        try:
            return _mapped(size, self.folder).view(*shape), True
        except OSError as error:
            raise UserError(
                f"cannot keep {size >> 20} MiB of samples in {self.folder} ({error.strerror or error}): make room, "
                "raise --sample-memory, or lower --search-samples or --holdout-samples"
            ) from error


def _mapped(size: int, folder: Path) -> Tensor:
    """Bytes in a file without a name (on Windows: that is deleted when it is closed), mapped into memory: the
    system writes them out and reads them back as it needs its memory for other things."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, where later it would be a signal
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)


Copy = tuple[Tensor, torch.cuda.Event | None]


class Prefetcher:
    """Copies batches of pixels to a device, the next one while the present one is worked on.

    It takes batches to be asked for one after the other, from the first sample on again after the last; others
    are given as well, only not ahead of time. On CUDA the copies go through two page-locked buffers in turn.

    pixels: uint8, on the CPU, samples first.
    """

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        self.pixels = pixels
        self.device = device
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._buffers: list[Tensor | None] = [None, None]
        self._left: list[torch.cuda.Event | None] = [None, None]  # when a buffer's last copy is done with it
        self._turn = 0
        self._size = len(pixels)  # of a batch
        self._reader = ThreadPoolExecutor(1, "samples")
        self._next: tuple[range, Future[Copy]] | None = None

    def __getitem__(self, item: slice) -> Tensor:
        rows = range(len(self.pixels))[item]
        ahead, self._next = self._next, None
        if ahead is not None and ahead[0] == rows:
            batch, arrived = ahead[1].result()
        else:
            batch, arrived = self._reader.submit(self._copy, rows).result()
        start = 0
        if rows.stop < len(self.pixels):  # the last batch may be a short one
            start, self._size = rows.stop, len(rows)
        following = range(start, min(start + self._size, len(self.pixels)))
        self._next = following, self._reader.submit(self._copy, following)
        if arrived is not None:
            present = torch.cuda.current_stream(self.device)
            present.wait_event(arrived)
            batch.record_stream(present)
        return batch

    def _copy(self, rows: range) -> Copy:
        """The rows on the device, and on CUDA the event of their arrival there. In the reader's thread only."""
        source = self.pixels[rows.start : rows.stop : rows.step]
        turn, self._turn = self._turn, 1 - self._turn
        left = self._left[turn]
        if left is not None:
            left.synchronize()
        buffer = self._buffers[turn]
        if buffer is None or len(buffer) < len(rows):
            buffer = self._buffers[turn] = torch.empty(source.shape, dtype=source.dtype, pin_memory=self._cuda)
        buffer = buffer[: len(rows)].copy_(source)
        with torch.cuda.stream(self._stream):  # type: ignore[arg-type]  # None: nothing is done
            batch = torch.empty_like(buffer, device=self.device, pin_memory=False)
            batch.copy_(buffer, non_blocking=True)
            if self._stream is not None:
                self._left[turn] = self._stream.record_event()
        return batch, self._left[turn]
