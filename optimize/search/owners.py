"""Which process runs a trial, and whether it still does.

Of a process of this machine the system knows. One of another machine gives signs of life in the storage, and is given
up after some minutes without any.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ...studies import internals

OWNER = "owner"
"""The trial attribute that says who runs it (`own_mark`)."""
BEAT = "pxp:beat"
"""The trial attribute, one that nobody reads (a system attribute), that is another one with each sign of life."""
BEAT_SECONDS = 30.0
SILENCE = 600.0
"""Seconds without a sign of life after which a trial of another machine runs again."""

_run: str | None = None


def run_as(name: str) -> None:
    """Makes this process one of those that work together under this name (`run_name`)."""
    global _run
    _run = name


def run_name() -> str:
    """What the processes of one command share: the machine, and the id and start of the first of them."""
    return _run or f"{platform.node()} {os.getpid()} {started_at(os.getpid())}"


def own_mark() -> dict[str, Any]:
    """Who runs a trial. The start time tells this process from a later one with the same id."""
    pid = os.getpid()
    return {"host": platform.node(), "pid": pid, "started": started_at(pid), "run": run_name()}


def started_at(pid: int) -> str | None:
    """When a process started, or None if it is gone.

    On Linux in the kernel's own ticks since the machine started: psutil adds those to the time of day at which it
    did, which changes when somebody sets the clock, and a process that runs would be taken for another.
    """
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]  # the name before ")" may hold spaces; see proc_pid_stat(5)
    with contextlib.suppress(psutil.Error):
        return str(psutil.Process(pid).create_time())
    return None


def is_on_this_machine(owner: Mapping[str, Any]) -> bool:
    return owner.get("host") == platform.node()


def is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the process of this mark was one of this machine, and has ended."""
    if not is_on_this_machine(owner) or owner == own_mark():
        return False
    return not psutil.pid_exists(owner["pid"]) or started_at(owner["pid"]) != owner["started"] or _is_dead(owner["pid"])


def _is_dead(pid: int) -> bool:
    """Whether a process has ended and only its parent has not heard of it yet."""
    with contextlib.suppress(psutil.AccessDenied):
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
    return False


def is_in_hand(trial: FrozenTrial) -> bool:
    """Whether a trial runs, and its process gives signs of life. (Of an older version none does.)"""
    return trial.state == TrialState.RUNNING and BEAT in trial.system_attrs


def is_of_this_run(trial: FrozenTrial) -> bool:
    """Whether a process of the same command runs a trial."""
    return trial.user_attrs.get(OWNER, {}).get("run") == run_name()


def new_sign() -> str:
    """A sign of life, unlike all others."""
    return uuid.uuid4().hex


def give_sign(study: Study, trial: Trial | FrozenTrial) -> None:
    """Leaves a sign of life with a trial."""
    internals.set_system_attr(study, trial, BEAT, new_sign())


@contextlib.contextmanager
def signs_of_life(study: Study, trial: Trial) -> Iterator[None]:
    """Leaves one every half a minute, while the block runs."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # what is wrong with the storage, the trial will come upon itself
                give_sign(study, trial)

    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=1)


class Silence:
    """Says which trials of other machines have been silent for too long, by the time that passes here: clocks of
    machines differ, and may be set."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[str, float]] = {}

    def is_over(self, trial: FrozenTrial) -> bool:
        """Whether this one has given no sign since it was first asked for, `SILENCE` seconds ago or more."""
        beat = trial.system_attrs.get(BEAT)
        if beat is None:
            return False
        now = time.monotonic()
        before, since = self._heard.get(trial.number, (None, now))
        if before != beat:
            self._heard[trial.number] = beat, now
            return False
        return now - since >= SILENCE
