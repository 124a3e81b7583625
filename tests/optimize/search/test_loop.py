"""The search: baselines first, continued after any kind of end, refused where values would not compare."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize.search.loop import MAX_FAILURES, run_search
from pxp_optimize.optimize.search.queue import MAX_INTERRUPTIONS
from pxp_optimize.optimize.search.samplers import make_sampler
from pxp_optimize.optimize.search.space import FIXED, GROUPS, SEARCHED_RULES, Part, Space
from pxp_optimize.optimize.search.status import count_complete, standing
from pxp_optimize.optimize.search.warm_start import MIXED, SIGNED, mixed_composites
from pxp_optimize.optimize.study.opening import open_study
from pxp_optimize.optimize.study.scores import known_curves, score_holdout, score_plain
from pxp_optimize.pruning import NotFinite
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.report import fixed_trials
from pxp_optimize.studies.storage import open_storage

MARK = {"model": "toy", "rates": [0, 0.5]}


@dataclass
class Toy:
    accuracy: list[float]
    auc: float
    seconds: dict[str, float]
    ranking_hash: str


def toy(composite: Composite) -> Toy:
    """Any value that depends on every detail of the composite."""
    digest = hashlib.sha256(json.dumps(composite.to_dict(), sort_keys=True).encode()).digest()
    value = int.from_bytes(digest[:4], "big") / 2**32
    return Toy([1.0, value], (1 + value) / 2, {"relevance": 0.1, "evaluation": 0.2}, digest.hex())


def study_in(path: Path, name: str = "toy", sampler: str = "tpe", mark: dict = MARK) -> optuna.Study:
    study = open_study(open_storage(str(path)), name, mark, {"rates": mark["rates"]})
    study.sampler = make_sampler(sampler, 0)
    return study


def record(study: optuna.Study) -> list[tuple]:
    kept = ("composite", "accuracy", "ranking_hash", "fixed")
    return [
        (trial.number, trial.state, trial.value, trial.params, *map(trial.user_attrs.get, kept))
        for trial in study.trials
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """An uninterrupted study of 14 trials."""
    study = study_in(tmp_path_factory.mktemp("whole") / "a.db")
    run_search(study, Space(GROUPS), toy, trials=14)
    return study


def test_a_study_holds_its_baselines_and_what_each_trial_gave(whole):
    assert [trial.user_attrs.get("fixed") for trial in whole.trials[:5]] == [*FIXED, None]
    assert {trial.state for trial in whole.trials} == {TrialState.COMPLETE}
    for trial in whole.trials:
        expected = toy(Composite.from_dict(trial.user_attrs["composite"]))
        assert trial.value == expected.auc
        assert trial.user_attrs["accuracy"] == expected.accuracy
        assert trial.user_attrs["seconds"] == expected.seconds
        assert trial.user_attrs["ranking_hash"] == expected.ranking_hash
    assert whole.user_attrs["fingerprint"] == MARK
    assert whole.user_attrs["rates"] == [0, 0.5]


def test_the_number_of_trials_is_one_to_reach(tmp_path, whole):
    study = study_in(tmp_path / "a.db")
    for reach in (2, 6, 6, 3, 14):
        run_search(study_in(tmp_path / "a.db"), Space(GROUPS), toy, trials=reach)
    assert record(study) == record(whole)


@pytest.mark.parametrize("when", ["evaluating", "between"])
def test_ctrl_c_loses_nothing(tmp_path, whole, when):
    calls = []

    def interrupted(composite):
        calls.append(composite)
        if when == "evaluating" and len(calls) % 4 == 0:
            raise KeyboardInterrupt
        return toy(composite)

    def watch(now, trial):
        if when == "between" and now.done in (3, 7):
            raise KeyboardInterrupt

    stops = 0
    while True:
        try:
            run_search(study_in(tmp_path / "a.db"), Space(GROUPS), interrupted, trials=14, watch=watch)
            break
        except KeyboardInterrupt:
            stops += 1
            assert {trial.state for trial in study_in(tmp_path / "a.db").trials} <= {
                TrialState.COMPLETE,
                TrialState.WAITING,
            }
            if when == "between":
                run_search(study_in(tmp_path / "a.db"), Space(GROUPS), toy, trials=4 * stops)
    assert stops >= 2
    assert record(study_in(tmp_path / "a.db")) == record(whole)


KILLED = """
import sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
import test_loop
from pxp_optimize.optimize.search.loop import run_search
from pxp_optimize.optimize.search.space import GROUPS, Space

def slow(composite):
    time.sleep(0.2)
    return test_loop.toy(composite)

run_search(test_loop.study_in(Path(sys.argv[1])), Space(GROUPS), slow, trials=14)
"""


def finished(path: Path) -> int:
    """Complete trials in a database that another process may be creating just now."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_a_killed_process_loses_nothing(tmp_path, whole):
    path = tmp_path / "a.db"
    code = KILLED.format(folder=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code, str(path)]) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if finished(path) >= 3:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = [trial for trial in record(study_in(path)) if trial[1] == TrialState.COMPLETE]
    run_search(study_in(path), Space(GROUPS), toy, trials=14)
    assert record(study_in(path)) == record(whole)
    assert record(study_in(path))[: len(before)] == before


def test_a_stop_at_any_moment_loses_nothing(tmp_path, whole, monkeypatch):
    """Interrupted before and after each write to the database, one after another."""
    storage = type(study_in(tmp_path / "a.db")._storage)
    left = [0]

    def interrupting(name):
        method = getattr(storage, name)

        def write(self, *arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            result = method(self, *arguments, **options)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(storage, name, write)

    for name in ("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"):
        interrupting(name)
    interrupting("set_trial_system_attr")
    stops, moment = 0, 1
    while True:
        left[0] = moment
        try:
            run_search(study_in(tmp_path / "a.db"), Space(GROUPS), toy, trials=14)
            break
        except KeyboardInterrupt:
            stops, moment = stops + 1, moment + 7
    left[0] = 0
    assert stops > 10
    assert record(study_in(tmp_path / "a.db")) == record(whole)


def owned(study: optuna.Study, **changes) -> int:
    """A trial that runs since its owner, this process with some changes, holds it; its number."""
    from pxp_optimize.optimize.search.owners import own_mark

    trial = study.ask()
    trial.set_user_attr("owner", {**own_mark(), **changes})
    return trial.number


def test_only_trials_of_processes_that_are_gone_are_taken_over(tmp_path):
    study = study_in(tmp_path / "a.db")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alive:
        from pxp_optimize.optimize.search.owners import started_at

        at_work = owned(study, pid=alive.pid, started=started_at(alive.pid))
        elsewhere = owned(study, host="another machine")
        reused_id = owned(study, pid=alive.pid, started="1")
        gone = owned(study, pid=2**22 + 1)
        run_search(study, Space(GROUPS), toy, trials=6)
        alive.communicate(b"\n")
    states = {trial.number: trial.state for trial in study.trials}
    assert states.pop(at_work) == states.pop(elsewhere) == TrialState.RUNNING
    assert states[reused_id] == states[gone] == TrialState.COMPLETE


def test_a_trial_that_keeps_taking_its_process_down_is_given_up(tmp_path):
    path = tmp_path / "a.db"
    run_search(study_in(path), Space(GROUPS), toy, trials=5)
    for _ in range(MAX_INTERRUPTIONS):
        study = study_in(path)
        if not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial({})
        assert owned(study, pid=2**22 + 1) == 5
        run_search(study_in(path), Space(GROUPS), toy, trials=5)  # takes it over, and runs none
    run_search(study_in(path), Space(GROUPS), toy, trials=6)
    assert [trial.state for trial in study_in(path).trials[5:]] == [TrialState.FAIL, TrialState.COMPLETE]


def test_an_error_of_the_evaluation_puts_the_trial_back(tmp_path):
    def broken(composite):
        raise RuntimeError("out of memory")

    study = study_in(tmp_path / "a.db")
    with pytest.raises(RuntimeError, match="out of memory"):
        run_search(study, Space(GROUPS), broken, trials=5)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING] * len(FIXED)


def test_relevance_that_is_not_finite_fails_the_trial_only(tmp_path):
    def unstable(composite):
        if "gamma" in str(composite.to_dict()):
            raise NotFinite("relevance of layer fc is not finite")
        return toy(composite)

    lines = []
    study = study_in(tmp_path / "a.db")
    run_search(study, Space(GROUPS), unstable, trials=5, watch=lambda now, line: lines.append((now.done, line)))
    assert study.trials[3].user_attrs["fixed"] == "gamma0.25"
    assert study.trials[3].state == TrialState.FAIL
    assert study.trials[3].user_attrs["error"] == "relevance of layer fc is not finite"
    assert count_complete(study) == 5
    assert lines[3] == (3, "trial 3 (gamma0.25), failed, relevance of layer fc is not finite")
    assert standing(study, 5).best is not None


def test_a_search_in_which_all_fails_ends(tmp_path):
    def hopeless(composite):
        raise NotFinite("relevance of layer fc is not finite")

    study = study_in(tmp_path / "a.db")
    with pytest.raises(UserError, match="10 trials in a row failed, the last one since relevance"):
        run_search(study, Space(GROUPS), hopeless, trials=5)
    assert len(study.trials) == MAX_FAILURES
    assert standing(study, 5).best is None


def test_timeout_starts_no_more_trials(tmp_path):
    def slow(composite):
        time.sleep(0.2)
        return toy(composite)

    study = study_in(tmp_path / "a.db")
    run_search(study, Space(GROUPS), slow, trials=100, timeout=0.5)
    assert 1 <= count_complete(study) <= 4
    states = [trial.state for trial in study.trials if trial.number >= count_complete(study)]
    assert set(states) <= {TrialState.WAITING}


def test_standing_names_the_best_and_the_best_fixed(whole):
    now = standing(whole, 20)
    assert (now.done, now.total) == (14, 20)
    assert now.best == max(trial.value for trial in whole.trials)
    assert now.fixed == max(trial.value for trial in whole.trials[:4])
    best = max(whole.trials[:4], key=lambda trial: trial.value)
    assert now.fixed_name == f"trial {best.number}, {best.user_attrs['fixed']}"


def test_another_fingerprint_is_refused_and_the_study_left_alone(tmp_path):
    path = tmp_path / "a.db"
    run_search(study_in(path), Space(GROUPS), toy, trials=2)
    before = record(study_in(path)), study_in(path).user_attrs
    with pytest.raises(UserError, match=r"study 'toy' .*\(model: stored toy, now other\).*--study"):
        study_in(path, mark={**MARK, "model": "other"})
    assert (record(study_in(path)), study_in(path).user_attrs) == before


def test_a_study_of_another_program_is_refused(tmp_path):
    path = tmp_path / "a.db"
    foreign = optuna.create_study(storage=open_storage(str(path)), study_name="toy")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UserError, match="not made by pxp-optimize"):
        study_in(path)


def test_an_empty_study_that_minimizes_is_not_taken_over(tmp_path):
    path = tmp_path / "a.db"
    optuna.create_study(storage=open_storage(str(path)), study_name="toy", direction="minimize")
    with pytest.raises(UserError, match="not made by pxp-optimize"):
        study_in(path)


def test_holdout_scores_are_kept(tmp_path):
    study = study_in(tmp_path / "a.db")
    run_search(study, Space(GROUPS), toy, trials=9)
    scored: list[dict] = []

    def holdout(composite):
        scored.append(composite.to_dict())
        return Toy([0.9, 0.1], 0.5, {}, "")

    steps: list[int] = []
    for _ in range(2):
        score_holdout(study, holdout, steps.append)
    numbers = {0, 1, 2, 3, study.best_trial.number}
    assert set(study.user_attrs["holdout"]) == set(map(str, numbers))
    assert set(map(str, scored)) == {str(study.trials[number].user_attrs["composite"]) for number in numbers}
    assert len(scored) == len(numbers)
    assert steps == [1] * 10
    assert study.user_attrs["holdout"]["0"] == {"auc": 0.5, "accuracy": [0.9, 0.1]}


def test_two_processes_can_run_one_study(tmp_path):
    path = tmp_path / "a.db"
    study_in(path)
    code = KILLED.format(folder=str(Path(__file__).parent))
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    study = study_in(path)
    assert 14 <= count_complete(study) <= 15
    assert {trial.user_attrs["owner"]["pid"] for trial in study.trials[8:]} == {w.pid for w in workers}
    assert os.getpid() not in {trial.user_attrs["owner"]["pid"] for trial in study.trials}


def test_a_grid_is_tried_once_each_also_when_continued(tmp_path):
    space = Space(["low", "high"], fixed_numbers=True)
    grid = space.grid(0)
    study = study_in(tmp_path / "a.db", sampler="grid")
    run_search(study, space, toy, trials=9, queue=grid)
    run_search(study_in(tmp_path / "a.db", sampler="grid"), space, toy, trials=16, queue=grid)
    trials = study_in(tmp_path / "a.db").get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 16
    assert [trial.user_attrs.get("fixed") for trial in trials[:4]] == list(FIXED)
    assert {tuple(sorted(trial.params.items())) for trial in trials} == {tuple(sorted(p.items())) for p in grid}


def test_a_grid_leaves_no_queue_to_a_study_that_goes_on_in_another_way(tmp_path):
    space = Space(["low", "high"], fixed_numbers=True)
    run_search(study_in(tmp_path / "a.db", sampler="grid"), space, toy, trials=7, queue=space.grid(0))
    study = study_in(tmp_path / "a.db", sampler="local")
    run_search(study, space, toy, trials=10)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 10
    assert [trial.system_attrs["fixed_params"] != {} for trial in study.trials] == [True] * 7 + [False] * 3


def test_what_waits_with_choices_that_are_gone_is_dropped(tmp_path):
    study = study_in(tmp_path / "a.db")
    run_search(study, Space(["low"]), toy, trials=4)
    study.enqueue_trial({"low.rule": "epsilon"})  # as a grid of another space has left it that was cut off
    run_search(study, Space(["low"]), toy, trials=6)
    assert [trial.state for trial in study.trials[4:]] == [TrialState.FAIL] + [TrialState.COMPLETE] * 2
    assert "another space" in study.trials[4].user_attrs["error"]


def test_a_fixed_composite_that_was_given_up_is_tried_again(tmp_path):
    path = tmp_path / "a.db"
    for _ in range(MAX_INTERRUPTIONS):
        study = study_in(path)
        if not study.trials:
            run_search(study, Space(GROUPS), toy, trials=0)
        assert owned(study, pid=2**22 + 1) == 0
        run_search(study_in(path), Space(GROUPS), toy, trials=0)
    trials = study_in(path).trials
    assert trials[0].state == TrialState.FAIL
    assert trials[0].user_attrs["error"] == "its process ended 3 times while it ran"
    run_search(study_in(path), Space(GROUPS), toy, trials=5)
    assert fixed_trials(study_in(path)).keys() == FIXED.keys()
    assert {trial.state for trial in fixed_trials(study_in(path)).values()} == {TrialState.COMPLETE}


def test_the_best_composite_is_scored_the_plain_way_once(tmp_path):
    study = study_in(tmp_path / "a.db")
    run_search(study, Space(["low"]), toy, trials=6)
    calls = []

    def plain(composite):
        calls.append(composite)
        return Toy([1.0, 0.2], 0.6, {}, ""), Toy([0.9, 0.1], 0.5, {}, "")

    advanced = []
    for _ in range(2):
        score_plain(study, plain, advanced.append)
    assert [call.to_dict() for call in calls] == [study.best_trial.user_attrs["composite"]]
    assert advanced == [1, 1]
    score = {"auc": 0.6, "holdout_auc": 0.5, "accuracy": [0.9, 0.1]}
    assert study.user_attrs["plain"] == {str(study.best_trial.number): score}


def test_measured_curves_are_known_by_their_ranking(tmp_path):
    study = study_in(tmp_path / "a.db")
    run_search(study, Space(["low"]), toy, trials=6)
    curves = known_curves(study_in(tmp_path / "a.db"))
    trials = study.get_trials()
    assert {digest: curve.accuracy for digest, curve in curves.items()} == {
        trial.user_attrs["ranking_hash"]: trial.user_attrs["accuracy"] for trial in trials
    }
    assert len(curves) == 6


def test_known_composites_come_after_the_fixed_ones_and_stay_as_they_are(tmp_path):
    space = Space(GROUPS)
    outside = Composite.uniform(RuleSpec("epsilon", {"epsilon": 1e-9}))  # in no trial of the space
    given = {"start_from": {"best.json": outside}, "known": mixed_composites(space)}
    for reach in (3, 6, 14):
        run_search(study_in(tmp_path / "a.db"), space, toy, trials=reach, **given)
        left = study_in(tmp_path / "a.db").get_trials(states=(TrialState.WAITING,))
        assert not any("known" in trial.user_attrs for trial in left)
    whole = study_in(tmp_path / "b.db")
    run_search(whole, space, toy, trials=14, **given)
    study = study_in(tmp_path / "a.db")
    assert record(study) == record(whole)
    trials = study.get_trials()
    assert [trial.user_attrs.get("fixed") for trial in trials] == [*FIXED, *[None] * 10]
    assert [trial.user_attrs.get("from") for trial in trials[4:6]] == ["best.json", None]
    assert [trial.user_attrs.get("known") for trial in trials[5:]] == [SIGNED, *MIXED, *[None] * 3]
    assert trials[4].user_attrs["composite"] == outside.to_dict()
    assert trials[4].value == toy(outside).auc
    assert trials[4].params == trials[0].params == {}  # no rule of the space is quite epsilon's
    for trial, composite in zip(trials[5:11], mixed_composites(space).values(), strict=True):
        assert trial.user_attrs["composite"] == composite.to_dict()
        assert trial.params == (space.params_of(composite) or {})


def test_what_was_tried_is_not_tried_again(tmp_path):
    space = Space(GROUPS)
    run_search(study_in(tmp_path / "a.db"), space, toy, trials=7)
    known = {"best.json": Composite.from_dict(study_in(tmp_path / "a.db").trials[6].user_attrs["composite"])}
    run_search(study_in(tmp_path / "a.db"), space, toy, trials=9, start_from=known, known=known)
    assert not any({"from", "known"} & set(trial.user_attrs) for trial in study_in(tmp_path / "a.db").trials)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp"])
def test_a_composite_from_outside_of_the_space_leaves_the_sampler_its_model(tmp_path, sampler):
    space = Space([Part(group, {"gamma": SEARCHED_RULES["gamma"]}) for group in GROUPS], False)
    outside = {"best.json": Composite.uniform(RuleSpec("epsilon"), bias="split")}
    study = study_in(tmp_path / "a.db", sampler=sampler)
    run_search(study, space, toy, trials=20, start_from=outside)
    trials = study.get_trials()
    assert trials[4].params == {}
    assert trials[4].user_attrs["composite"]["attention"] == {"bias": "split"}
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    numbers = {f"{group}.gamma" for group in GROUPS}
    assert numbers <= set(trials[-1].system_attrs["pxp:relative_params"])


def test_a_queue_is_kept_when_the_study_goes_on_in_another_space(tmp_path):
    run_search(study_in(tmp_path / "a.db"), Space(GROUPS), toy, trials=2)
    narrow = Space([Part(group, {"gamma": SEARCHED_RULES["gamma"]}) for group in GROUPS])
    run_search(study_in(tmp_path / "a.db"), narrow, toy, trials=6)
    trials = study_in(tmp_path / "a.db").get_trials()
    assert [trial.user_attrs.get("fixed") for trial in trials] == [*FIXED, None, None]
    for name, trial in zip(FIXED, trials, strict=False):
        assert set(map(str, trial.user_attrs["composite"]["groups"].values())) == {str(FIXED[name])}
