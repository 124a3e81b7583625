"""Several processes that work at one search, and the one that watches over them.

The one that watches runs no trials: it shows what the others tell it, goes on without those that end too early, and
asks all of them to stop when it is stopped itself. They end when it does, however that comes about.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from ...studies.signals import STOPPING, begin, interrupt, raising_again
from ...studies.wording import reason
from .owners import run_as, run_name

Tell = Callable[[Any], None]
"""Says something to the process that watches: anything that can be pickled."""
Job = Callable[[Tell], None]
"""What a process does; to be pickled, where processes are spawned."""
PATIENCE = 20.0
"""Seconds in which a process that is asked to stop does so, or is killed."""


class Workers:
    """Processes that each do a job; as a context, in which they have begun, and at the end of which they have ended.

    Args:
        jobs: one for each process.
        method: "fork" or "spawn".
    """

    def __init__(self, jobs: Sequence[Job], method: str) -> None:
        self._jobs = jobs
        self._context = multiprocessing.get_context(method)
        self._at_work: dict[Any, BaseProcess] = {}
        self._begun: set[Any] = set()

    def __enter__(self) -> Workers:
        try:
            for job in self._jobs:
                reader, writer = self._context.Pipe(duplex=False)
                made: Any = self._context
                process: BaseProcess = made.Process(target=_work, args=(job, writer, run_name()))
                with warnings.catch_warnings(), _held_back():
                    warnings.simplefilter("ignore", DeprecationWarning)  # threads that are idle do no harm in a fork
                    process.start()
                    self._at_work[reader] = process  # here: a signal comes at the end of the block, and stops it too
                writer.close()  # here: so that the end of the process is the end of what can be read
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def watch(self, heard: Tell, ended: Callable[[str, int], None]) -> None:
        """Returns when all have ended.

        heard: is told what they tell, in the order in which it comes. ended: told of one that ended too early: why, and
        how many go on.
        """
        failed: dict[Any, str] = {}
        while self._at_work:
            for ready in connection.wait(list(self._at_work)):
                reader: Any = ready
                try:
                    what = reader.recv()
                except (EOFError, OSError):  # it has ended, maybe amid a word
                    process = self._at_work[ready]
                    _end(process, time.monotonic() + PATIENCE)
                    del self._at_work[ready]
                    if process.exitcode:
                        why = failed.get(ready) or _why(process.exitcode)
                        ended(why, len(self._at_work))
                else:
                    if isinstance(what, _Begun):
                        self._begun.add(ready)
                    elif isinstance(what, _Failed):
                        failed[ready] = what.reason
                    else:
                        heard(what)

    def _stop(self) -> None:
        """Asks those that are at work to stop, and kills those that do not, or have not begun: one that is spawned
        loads PyTorch first, and has no trial yet."""
        try:
            for reader, process in self._at_work.items():
                begun = reader in self._begun or reader.poll()
                (process.terminate if begun else process.kill)()
            until = time.monotonic() + PATIENCE
            for process in self._at_work.values():
                _end(process, until)
        finally:  # also if somebody presses Ctrl-C again
            for process in self._at_work.values():
                _end(process, 0.0)


def _end(process: BaseProcess, until: float) -> None:
    """Waits for the end of a process; that of one that is still there then (by `time.monotonic`) comes at once."""
    process.join(max(0.0, until - time.monotonic()))
    if process.is_alive():
        process.kill()
        process.join()


def _why(status: int) -> str:
    if status > 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"


class _Begun:
    """What a process says first."""


@dataclass(frozen=True)
class _Failed:
    """What a process says last that has come upon an error."""

    reason: str


def _work(job: Job, writer: Any, run: str) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        begin()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, which the process that watches hears as well
        signal.signal(signal.SIGTERM, interrupt)
        if os.name == "posix":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        run_as(run)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        try:
            writer.send(_Begun())
            with raising_again(signal.SIGTERM):
                job(writer.send)
        except Exception as error:
            with contextlib.suppress(OSError):
                writer.send(_Failed(f"{type(error).__name__}, {reason(error)}"))
            sys.exit(1)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Holds signals back from a process that begins in this block, until it heeds them."""
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # which spawned processes share: it would let signals through when it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)
