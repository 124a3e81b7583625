"""The lock of a journal: a file to which every process appends what it does, and reads what others have done."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock


class JournalLock:
    """Held while a process appends to a journal; the system frees it when the process ends.

    Whoever gets it cuts off the end of a line that is none: what a process was writing when it was killed, or the disk
    full. Optuna would add the next line to it, and no process could read the journal again.

    Args:
        path: of the journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.resolve().with_name(f".{path.name}.append.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            cut_unfinished(self._path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def cut_unfinished(path: Path) -> None:
    """Cut off what follows the last end of a line."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep:
            start = max(0, keep - 4096)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            keep = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if keep < end:
            file.truncate(keep)
