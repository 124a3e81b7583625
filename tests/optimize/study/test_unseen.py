"""What no search sees, measured on a trial's networks while they exist: the scores that building them anew gives, and a
search that goes on as without."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize.evaluation import curve as racing
from pxp_optimize.optimize.evaluation.evaluate import Evaluation, Score, evaluate, mean_evaluation
from pxp_optimize.optimize.evaluation.phases import HOLDOUT, PLAIN, PREPARING, RESCORING, TRIALS
from pxp_optimize.optimize.evaluation.task import Samples, Task, Unseen
from pxp_optimize.optimize.search.loop import run_search
from pxp_optimize.optimize.search.samplers import SAMPLERS, is_conditional, make_sampler
from pxp_optimize.optimize.search.space import Space
from pxp_optimize.optimize.study.prepare import Prepared
from pxp_optimize.optimize.study.resampling import tasks_of
from pxp_optimize.optimize.study.rescore import DRAWS, fresh_samples, unseen_samples
from pxp_optimize.optimize.study.run import PLAIN_COST, _trials_after
from pxp_optimize.optimize.study.scores import score_holdout
from pxp_optimize.pruning import schedule
from pxp_optimize.pruning import shared_forward as family
from pxp_optimize.studies.best import UNSEEN, candidates, kept_score
from pxp_optimize.studies.storage import open_storage

GAMMA = Composite.uniform(RuleSpec("gamma"))
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
GROUPS = ("low", "mid", "high", "classifier")


@pytest.fixture(scope="module")
def prepared(project) -> Prepared:
    """The small project, pruned in steps and repaired."""
    return project.prepared(
        rates=RATES, reference_samples=4, search_samples=23, holdout_samples=13, schedule="every:0.4"
    )


@pytest.fixture(scope="module")
def fresh(prepared) -> Samples:
    return fresh_samples(prepared)


def anew(task: Task) -> Task:
    """The same task, with nothing measured yet."""
    return replace(task, curves={}, plans={}, unpruned={}, variants={})


def all_of(prepared: Prepared, fresh: Samples, above: float = -1.0) -> list[Unseen]:
    return [
        Unseen("holdout", prepared.task.holdout, above, HOLDOUT),
        Unseen("fresh", fresh, above, RESCORING),
    ]


def score(found: Evaluation) -> Score:
    return Score(found.auc, found.accuracy)


@pytest.mark.parametrize("group", [1, 30_000, 2**30])
@pytest.mark.parametrize("raced", [False, True])
def test_the_same_bits_as_on_networks_built_anew(prepared, fresh, monkeypatch, group, raced):
    monkeypatch.setattr(family, "GROUP_BYTES", group)  # one network at a time, a few, or all
    stop = (lambda chunk, auc: False) if raced else None
    task = anew(prepared.task)
    found = evaluate(task, GAMMA, stop=stop, unseen=all_of(prepared, fresh))
    assert score(found) == score(evaluate(anew(prepared.task), GAMMA))
    assert found.unseen == {
        "holdout": score(evaluate(anew(prepared.task), GAMMA, prepared.task.holdout)),
        "fresh": score(evaluate(anew(prepared.task), GAMMA, fresh)),
    }
    assert len({found.auc, *(other.auc for other in found.unseen.values())}) == 3, "samples that agree hide anything"


def test_no_network_is_built_for_it(prepared, fresh, monkeypatch):
    built = []
    make = schedule.pruned
    monkeypatch.setattr(schedule, "pruned", lambda *args: built.append(args) or make(*args))
    task = anew(prepared.task)
    evaluate(task, GAMMA, unseen=all_of(prepared, fresh))
    assert len(built) == len(RATES)  # one a rate, of which the steps need one
    evaluate(task, GAMMA, task.holdout)
    evaluate(task, GAMMA, fresh)
    assert len(built) == len(RATES)


@pytest.mark.parametrize("group", [1, 2**30])
@pytest.mark.parametrize("raced", [False, True])
def test_only_of_a_trial_that_is_good_enough(prepared, fresh, monkeypatch, group, raced):
    monkeypatch.setattr(family, "GROUP_BYTES", group)
    stop = (lambda chunk, auc: False) if raced else None
    auc = evaluate(anew(prepared.task), GAMMA).auc
    seen = []
    measured = racing._measured
    monkeypatch.setattr(racing, "_measured", lambda *args: seen.append(args[2]) or measured(*args))
    for above, names in ((auc - 1e-9, {"holdout", "fresh"}), (auc, set()), (1.0, set())):
        seen.clear()
        found = evaluate(anew(prepared.task), GAMMA, stop=stop, unseen=all_of(prepared, fresh, above))
        assert set(found.unseen) == names
    assert not any(samples is fresh for samples in seen), "a trial that cannot be good enough costs no pass"


def test_a_race_without_room_leaves_them_for_the_end(prepared, fresh, monkeypatch):
    monkeypatch.setattr(racing, "KEPT_BYTES", 0)
    found = evaluate(anew(prepared.task), GAMMA, stop=lambda chunk, auc: False, unseen=all_of(prepared, fresh))
    assert found.unseen == {}
    stopped = evaluate(anew(prepared.task), GAMMA, stop=lambda chunk, auc: True, unseen=all_of(prepared, fresh))
    assert stopped.stopped
    assert stopped.unseen == {}


def test_over_several_draws_it_is_the_mean(prepared, fresh):
    tasks = tasks_of(prepared, 3)
    found = mean_evaluation(tasks, GAMMA, unseen=all_of(prepared, fresh))
    again = [anew(task) for task in tasks]
    assert score(found) == score(mean_evaluation(again, GAMMA))
    assert found.unseen == {
        "holdout": score(mean_evaluation(again, GAMMA, prepared.task.holdout)),
        "fresh": score(mean_evaluation(again, GAMMA, fresh)),
    }
    nearly = mean_evaluation([anew(task) for task in tasks], GAMMA, unseen=all_of(prepared, fresh, found.auc - 1e-9))
    assert set(nearly.unseen) == {"holdout", "fresh"}
    hopeless = mean_evaluation([anew(task) for task in tasks], GAMMA, unseen=all_of(prepared, fresh, found.auc + 0.05))
    assert hopeless.unseen == {}


def test_what_a_trial_is_measured_on(prepared, fresh):
    study = optuna.create_study(direction="maximize")
    holdout = prepared.task.holdout

    def above(count: int, **attrs) -> dict[str, float]:
        trial = study.ask()
        for key, value in attrs.items():
            trial.set_user_attr(key, value)
        found = unseen_samples(study, trial, count, holdout, fresh)
        return {of.name: of.above for of in found}

    name = f"{len(fresh)} other validation images"
    assert above(3) == {HOLDOUT: -1.0, name: -1.0}
    for value in (0.5, 0.8, 0.7, 0.6):
        attrs = {"composite": GAMMA.to_dict(), "accuracy": [1.0, value], "ranking_hash": str(value)}
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=value, user_attrs=attrs))
    assert above(3) == {HOLDOUT: 0.8, name: 0.6}
    assert above(3, fixed="gamma") == {HOLDOUT: -1.0, name: 0.6}
    assert above(9) == {HOLDOUT: 0.8, name: -1.0}
    assert above(1) == {HOLDOUT: 0.8}
    assert [of.name for of in unseen_samples(study, study.ask(), 3, holdout, None)] == [HOLDOUT]


class Watched:
    """A toy evaluation whose unseen scores have nothing to do with its AUC."""

    def __init__(self, holdout: bool) -> None:
        self.holdout = holdout

    def __call__(self, composite: Composite, unseen=()) -> Evaluation:
        digest = hashlib.sha256(json.dumps(composite.to_dict(), sort_keys=True).encode()).digest()
        value = int.from_bytes(digest[:4], "big") / 2**32
        scores = {HOLDOUT: Score(1 - value, [1.0, 1 - value])} if self.holdout else {}
        return Evaluation([1.0, value], value, {}, str(value), [value], 1, False, "", unseen=scores)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_reads_it(sampler):
    studies = []
    for holdout in (False, True):
        study = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, 0))
        space = Space(GROUPS, conditional=is_conditional(sampler))
        run_search(study, space, Watched(holdout), trials=16, unseen=lambda study, trial: ())
        studies.append([(trial.number, trial.params, trial.value, trial.user_attrs) for trial in study.trials])
    assert [kept_score(trial, HOLDOUT) is not None for trial in study.trials] == [True] * 16
    plain, watched = studies
    assert [trial[:3] for trial in plain] == [trial[:3] for trial in watched]
    assert all("unseen" not in key and key != HOLDOUT for *_, attrs in watched for key in attrs)


def test_the_holdout_of_what_was_measured_is_not_computed_again():
    study = optuna.create_study(direction="maximize", sampler=make_sampler("random", 0))
    run_search(study, Space(GROUPS), Watched(True), trials=6, unseen=lambda study, trial: ())
    score_holdout(study, lambda method: pytest.fail("computed again"), lambda steps: None)
    best = study.best_trial
    assert study.user_attrs[HOLDOUT][str(best.number)] == {"auc": 1 - best.value, "accuracy": [1.0, 1 - best.value]}


def test_the_time_left_knows_what_comes_after_the_trials(prepared, small_options):
    study = optuna.create_study(direction="maximize", sampler=make_sampler("random", 0))
    tasks = tasks_of(prepared, 2)
    left_over = {RESCORING: 0, HOLDOUT: 0, PLAIN: PLAIN_COST}
    assert _trials_after(study, small_options, prepared, tasks) == left_over
    run_search(study, Space(GROUPS), Watched(False), trials=6)  # as an older version did
    assert _trials_after(study, small_options, prepared, tasks) == {**left_over, HOLDOUT: 4}
    rest = prepared.source.dataset.val.labels
    none_left = replace(prepared.source, drawn={**prepared.source.drawn, "holdout": np.arange(len(rest))})
    by_draws = replace(prepared, source=none_left)
    assert _trials_after(study, small_options, by_draws, tasks[:1])[RESCORING] == 3 * DRAWS
    assert _trials_after(study, small_options, by_draws, tasks)[RESCORING] == 3 * DRAWS / 2
    once = small_options.changed(rescore=1)
    assert _trials_after(study, once, by_draws, tasks)[RESCORING] == 0
    plain = replace(prepared, task=prepared.task.plain())
    assert _trials_after(study, once, plain, tasks)[PLAIN] == 0


RESULTS = ("holdout", "rescored", "plain")


@pytest.mark.parametrize(("holdout", "again"), [("15", "on other validation images"), ("45", "by other reference")])
def test_a_run_ends_as_one_that_measures_everything_at_the_end(project, holdout, again):
    """A run whose trials kept nothing (of an older version, say) measures all of it at its end."""
    files = ["--storage", f"{holdout}.db", "--export", f"{holdout}.json"]
    command = [*project.options, "--reference-samples", "5", "--search-samples", "15", "--holdout-samples", holdout]
    command += [*files, "--trials", "8"]
    first = project.run(*command)
    assert first.returncode == 0, first.stderr
    assert f"scoring again (the best 3, {again}" in first.stderr

    def load() -> optuna.Study:
        return optuna.load_study(study_name=None, storage=open_storage(str(project.folder / f"{holdout}.db")))

    before = load()
    found = {key: before.user_attrs[key] for key in RESULTS}
    kept = {trial.number: set(trial.system_attrs.get(UNSEEN, {})) for trial in before.trials}
    assert all(HOLDOUT in kept[number] for number in (0, 1, 2, 3, before.best_trial.number))
    if holdout == "15":
        name = "15 other validation images"
        assert all(name in kept[trial.number] for trial in candidates(before, 3))
        assert not all(name in names for names in kept.values()), "only of those among the best so far"
    phases = before.user_attrs["phases"]
    assert list(phases)[:2] == [PREPARING, TRIALS]
    assert {HOLDOUT, RESCORING, PLAIN} <= set(phases)
    assert all(spent["seconds"] >= 0 and spent["processor"] > 0 for spent in phases.values())
    with contextlib.closing(sqlite3.connect(project.folder / f"{holdout}.db")) as database, database:
        database.execute("DELETE FROM trial_system_attributes WHERE key = ?", (UNSEEN,))
        names = ", ".join("?" * len(RESULTS))
        database.execute(f"DELETE FROM study_user_attributes WHERE key IN ({names})", RESULTS)
    second = project.run(*command)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert {key: load().user_attrs[key] for key in RESULTS} == found
