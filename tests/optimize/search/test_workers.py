"""Several processes: as many trials as asked for, the same ones each time, and nothing lost when some end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import faults as injection
import optuna
import pytest
from optuna.trial import TrialState
from pxp_optimize.optimize.evaluation.memory import OutOfMemory
from pxp_optimize.optimize.search.loop import MAX_FAILURES, run_search
from pxp_optimize.optimize.search.owners import OWNER, SILENCE, Silence, own_mark
from pxp_optimize.optimize.search.queue import drop_doubled, may_start, next_trial
from pxp_optimize.optimize.search.space import GROUPS, Space
from pxp_optimize.optimize.search.view import lag_of
from pxp_optimize.optimize.search.workers import Tell, Workers
from pxp_optimize.pruning import NotFinite
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.signals import stoppable
from pxp_optimize.studies.storage import alone, disconnect, open_storage

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks")


@pytest.fixture(scope="module")
def faults() -> Any:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    injection.warm()
    return injection


def record(storage: str) -> list[tuple]:
    study = optuna.load_study(study_name="fast", storage=open_storage(storage))
    found = [(trial.number, trial.state, trial.value, trial.user_attrs["composite"]) for trial in study.trials]
    disconnect("")
    return found


@linux
@pytest.mark.parametrize("sampler", ["tpe", "local", "cmaes"])
def test_what_is_tried_does_not_depend_on_who_is_faster(faults, tmp_path, sampler):
    lag = lag_of(2)
    apart = {"trials": 22, "lag": lag, "sampler": sampler}
    faults.ended([faults.begun(partial(faults.search, str(tmp_path / "one.db"), **apart))])
    two, jobs = str(tmp_path / "two.db"), []
    faults.ended([faults.begun(partial(faults.search, two, 1, lag=lag, sampler=sampler))])

    def job(seconds: float, tell: Tell) -> None:
        faults.search(two, seconds=seconds, watch=lambda now, text: tell(text), **apart)

    jobs, told = [partial(job, 0.02), partial(job, 0.05)], []
    with Workers(jobs, "fork") as workers:
        workers.watch(told.append, lambda why, left: pytest.fail(why))
    assert record(two) == record(str(tmp_path / "one.db"))
    assert len(told) == 21
    owners = {
        trial.user_attrs[OWNER]["pid"]
        for trial in optuna.load_study(study_name="fast", storage=open_storage(two)).trials
    }
    assert len(owners) == 3
    disconnect("")


@linux
def test_one_that_dies_does_not_end_the_others_and_its_trial_runs_again(faults, tmp_path):
    storage = str(tmp_path / "a.db")
    victim = str(tmp_path / "victim")

    def job(name: str, tell: Tell) -> None:
        def watch(now: Any, text: str) -> None:
            if name == "victim" and now.done >= 5:
                os.kill(os.getpid(), signal.SIGKILL)

        faults.search(storage, 20, 0.05, lag=3, watch=watch)

    ends: list[tuple[str, int]] = []
    with Workers([partial(job, "victim"), partial(job, "other")], "fork") as workers:
        workers.watch(lambda text: None, lambda why, left: ends.append((why, left)))
    assert ends == [("signal SIGKILL", 1)]
    assert faults.finish(storage, 20) == faults.Found(0, 0, 0), victim


@linux
def test_an_error_in_one_is_told_in_a_line(tmp_path):
    def job(tell: Tell) -> None:
        tell("hello")
        raise RuntimeError("no luck\nat all")

    heard, ends = [], []
    with Workers([job], "fork") as workers:
        workers.watch(heard.append, lambda why, left: ends.append((why, left)))
    assert (heard, ends) == (["hello"], [("RuntimeError, no luck", 0)])


@linux
def test_they_are_stopped_with_the_one_that_watches(tmp_path):
    marks = [tmp_path / str(index) for index in range(2)]

    def job(mark: Path, tell: Tell) -> None:
        try:
            tell("up")
            time.sleep(60)
        finally:
            mark.touch()  # it could put its trial back

    def heard(what: str) -> None:
        up.append(what)
        if len(up) == 2:
            raise KeyboardInterrupt

    up: list[str] = []
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers([partial(job, mark) for mark in marks], "fork") as workers:
        workers.watch(heard, lambda why, left: None)
    assert all(mark.exists() for mark in marks)
    assert time.monotonic() - started < 50


@linux
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_signal_while_they_begin_stops_them_too(monkeypatch, method):
    """It is held back until a process has begun; that one ran on, and was waited for when the command ended."""
    process = multiprocessing.get_context(method).Process
    start = process.start

    def stopped(self: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        start(self)

    monkeypatch.setattr(process, "start", stopped)
    with pytest.raises(KeyboardInterrupt), stoppable(), Workers([sleep] * 2, method):
        pytest.fail("not stopped")
    assert not multiprocessing.active_children()


def sleep(tell: Tell) -> None:
    time.sleep(120)


@linux
@pytest.mark.parametrize("ending", [".db", ".journal"])
def test_a_signal_at_any_moment_leaves_nothing_locked(faults, tmp_path, ending):
    """At calls drawn at random from all that a search makes, in SQLAlchemy, Optuna, destructors and our code."""
    base = tmp_path / f"base{ending}"
    faults.ended([faults.begun(partial(faults.search, str(base), 1))])
    rng, calls = random.Random(0), 30_000

    def interrupted(path: Path, moment: int) -> None:
        seen = 0

        def trace(frame: Any, event: str, argument: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == moment:
                signal.raise_signal(signal.SIGTERM)  # handled when this returns, where the call begins

        study = faults.study_in(str(path))
        with contextlib.suppress(KeyboardInterrupt), stoppable():
            sys.setprofile(trace)
            try:
                run_search(study, Space(GROUPS), faults.Fast.of, trials=4, alone=partial(alone, str(path)))
            finally:
                sys.setprofile(None)
            os._exit(2)  # it was lost
        os._exit(0 if not study.get_trials(states=(TrialState.RUNNING,)) else 3)

    for number in range(6):
        path = tmp_path / f"{number}{ending}"
        shutil.copy(base, path)
        process = faults.FORK.Process(target=interrupted, args=(path, rng.randrange(1, calls)))
        process.start()
        process.join(60)
        assert process.exitcode == 0, number
        assert faults.finish(str(path), 4) == faults.Found(0, 0, 0)


def study_in(path: Path) -> optuna.Study:
    return injection.study_in(str(path))


def test_no_more_trials_begin_than_are_asked_for(tmp_path):
    study = study_in(tmp_path / "a.db")
    first, second = next_trial(study, 2, 3), next_trial(study, 2, 3)
    assert first is not None and second is not None
    assert next_trial(study, 2, 3) is None
    assert next_trial(study, 3, 2) is None  # it is to see the first
    study.tell(first, state=TrialState.FAIL)
    third = next_trial(study, 2, 3)
    assert third is not None and third.number == 2
    assert not may_start(study, 3, 2, 3)


def test_what_two_put_into_the_queue_is_tried_once(tmp_path):
    study = study_in(tmp_path / "a.db")
    for _ in range(2):
        study.enqueue_trial({"low.rule": "zplus"})
        study.enqueue_trial({}, user_attrs={"given": {}, "composite": {"a": 1}, "fixed": "a"})
    study.enqueue_trial({})
    study.enqueue_trial({})
    drop_doubled(study)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.WAITING] * 2 + [TrialState.FAIL] * 2 + [TrialState.WAITING] * 2


def test_who_takes_what_is_tried_already_leaves_it(tmp_path):
    """It may be taken before it is dropped: a server that begins anew has forgotten who was alone with the queue."""
    study = study_in(tmp_path / "a.db")
    attrs = {"given": {}, "composite": {"a": 1}, "fixed": "a"}
    study.enqueue_trial({}, user_attrs=attrs)
    first = next_trial(study, 9, 3)
    assert first is not None and first.number == 0
    study.enqueue_trial({}, user_attrs=attrs)
    assert next_trial(study, 9, 3) is None
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.FAIL]
    study.tell(first, state=TrialState.FAIL)
    study.enqueue_trial({}, user_attrs=attrs)
    again = next_trial(study, 9, 3)
    assert again is not None and again.number == 2


def test_a_trial_of_another_machine_is_given_up_after_a_while(tmp_path, monkeypatch):
    study = study_in(tmp_path / "a.db")
    assert next_trial(study, 9) is not None
    (trial,) = study.trials
    now, silence = [100.0], Silence()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert not silence.is_over(trial)
    now[0] += SILENCE
    assert silence.is_over(trial)
    trial.system_attrs["pxp:beat"] = "another"
    assert not silence.is_over(trial)


def test_a_trial_that_another_process_took_is_left_to_it(faults, tmp_path):
    study = study_in(tmp_path / "a.db")
    taken = []

    def evaluate(composite: Any) -> Any:
        if not taken:  # as if this process had been stopped for long
            (trial,) = study.get_trials(states=(TrialState.RUNNING,))
            mark = {**own_mark(), "host": "another"}
            study._storage.set_trial_user_attr(trial._trial_id, OWNER, mark)
            taken.append(trial.number)
        return faults.Fast.of(composite)

    run_search(study, Space(GROUPS), evaluate, trials=1, timeout=0)
    run_search(study, Space(GROUPS), evaluate, trials=2, timeout=1)
    assert study.trials[taken[0]].state == TrialState.RUNNING
    assert "accuracy" not in study.trials[taken[0]].user_attrs


def test_ten_failures_in_a_row_end_the_run_with_their_reasons(tmp_path):
    reasons = iter(["relevance of layer fc is not finite"] * 9 + ["memory is too small"])

    def hopeless(composite: Any) -> Any:
        reason = next(reasons)
        raise OutOfMemory(reason) if "memory" in reason else NotFinite(reason)

    study = study_in(tmp_path / "a.db")
    told = (
        "10 trials in a row failed, the last one since memory is too small; of the others 9 since relevance of layer fc"
    )
    with pytest.raises(UserError, match=told):
        run_search(study, Space(GROUPS), hopeless, trials=5)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * MAX_FAILURES
    assert study.trials[0].user_attrs["error"] == "relevance of layer fc is not finite"


@linux
@pytest.mark.parametrize("name", ["sqlite-sigkill", "journal-sigkill", "stopped", "full-disk", "read-only", "locked"])
def test_faults(faults, name):
    """In short; all of them by `python benchmarks/faults.py`."""
    assert faults.faults(short=True)[name]()[1] == faults.Found(0, 0, 0)


@linux
@pytest.mark.parametrize("name", ["postgresql-sigkill", "postgresql-restarted", "mariadb-sigkill", "proxy-sigkill"])
def test_faults_of_servers(faults, name):
    if name not in faults.faults(short=True):
        pytest.skip(f"{name.partition('-')[0]} is not installed")
    for module in ("grpc", "psycopg", "pymysql"):
        pytest.importorskip(module)
    assert faults.faults(short=True)[name]()[1] == faults.Found(0, 0, 0)
