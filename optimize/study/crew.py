"""The processes that run a study's trials: how they begin, and what they say to the one that shows it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import optuna
import torch
from optuna.study import Study

from ...studies.errors import UserError
from ...studies.lasting import lasting
from ...studies.storage import disconnect, open_storage, storage_errors
from ..console import Screen
from ..evaluation.processes import Processes
from ..options import GIVEN, Options
from ..search.queue import requeue_stale
from ..search.status import SearchStatus, standing
from ..search.view import lag_of
from ..search.workers import Job, Tell, Workers

LAG = "lag"
"""The study attribute that says how far back the trials lie that a trial sees (`search.view`)."""
Watch = Callable[[SearchStatus, str], None]
Line = Callable[[str], None]


@dataclass(frozen=True)
class Member:
    """One of several processes. tell: what it says to the one that watches. since: the number of the run's first
    trial."""

    tell: Tell
    since: int

    def watch(self, now: SearchStatus, text: str) -> None:
        """Says what came of a trial."""
        self.tell(("trial", text))

    def line(self, text: str) -> None:
        """Says something else."""
        self.tell(("line", text))


Search = Callable[[Study, Watch, Line, "float | None", int], None]
"""Runs trials: of a study, saying so, for so many seconds; the last one is the number of the run's first trial."""

Spawned = Callable[[Options, int, int, Tell], None]
"""As a `Job`, of the options, the threads and the number of the run's first trial."""


def keep_lag(study: Study, processes: Processes) -> int:
    """The lag of a study, which is as large as any run of it has needed: one that goes on with fewer processes then is
    the same as if it had not been stopped."""
    lag = max(study.user_attrs.get(LAG, 1), lag_of(processes.asked))
    if study.user_attrs.get(LAG, 1) != lag:
        study.set_user_attr(LAG, lag)
    return lag


def run_crew(
    study: Study,
    options: Options,
    processes: Processes,
    search: Search,
    spawned: Spawned,
    screen: Screen,
    after: float,
) -> None:
    """Runs a study's trials in one process or in several, and shows them.

    spawned: what a process does that has nothing of this one's. after: what comes after the trials, in trials.

    Raises:
        As `run_search`.
    """
    since, started = len(study.get_trials(deepcopy=False)), time.monotonic()
    several = processes.count > 1
    jobs = _jobs(study, options, processes, search, spawned, since) if several else []
    try:
        if several:
            disconnect(options.storage)
        with Workers(jobs, processes.method) as workers, screen.search(standing(study, options.trials)) as show:

            def watch(now: SearchStatus, text: str) -> None:
                show(replace(now, after=after), text)

            def heard(what: tuple[str, str]) -> None:
                kind, text = what
                if kind == "trial":
                    watch(standing(study, options.trials), text)
                else:
                    screen.line(text)

            def ended(why: str, left: int) -> None:
                screen.line(f"workers one has ended ({why}): its trial runs again, {left or 'this one'} of them go on")

            workers.watch(heard, ended)
            timeout = options.timeout and max(0.0, options.timeout - (time.monotonic() - started))
            search(study, watch, screen.line, timeout, since)  # all, or what is left if the others have ended
    except KeyboardInterrupt:
        requeue_stale(study, blame=False)
        raise


def _jobs(
    study: Study, options: Options, processes: Processes, search: Search, spawned: Spawned, since: int
) -> list[Job]:
    if processes.method == "fork":
        return [partial(_forked, study, options, processes.threads, search, since)] * processes.count
    if options.data == GIVEN:
        raise UserError("workers: this process can be forked on Linux, on the CPU with one thread each only: give 1")
    return [partial(spawned, replace(options, device=name), processes.threads, since) for name in processes.devices]


def _forked(study: Study, options: Options, threads: int, search: Search, since: int, tell: Tell) -> None:
    torch.set_num_threads(threads)
    member = Member(tell, since)
    with silent_errors(options):
        own = optuna.load_study(
            study_name=study.study_name,
            storage=open_storage(options.storage),
            sampler=study.sampler,
            pruner=study.pruner,
        )
        search(lasting(own, options.storage, member.line), member.watch, member.line, options.timeout, since)


@contextlib.contextmanager
def silent_errors(options: Options) -> Iterator[None]:
    """What is wrong with the input or the database the process that watches comes upon itself, and says."""
    with contextlib.suppress(UserError), storage_errors(options.storage):
        yield
