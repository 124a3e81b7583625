"""Re-scoring: the best is not the luckiest, and what was scored stays so."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize.evaluation.evaluate import evaluate
from pxp_optimize.optimize.study.compare import stored_options
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.optimize.study.resampling import left_over
from pxp_optimize.optimize.study.rescore import fresh_measure, rescore
from pxp_optimize.optimize.study.scores import score_holdout
from pxp_optimize.pruning import NotFinite
from pxp_optimize.studies.best import best_trial, candidates
from pxp_optimize.studies.document import complete_trial
from pxp_optimize.studies.report import rescored_text
from pxp_optimize.studies.storage import open_storage

NAME = "network:small-images-filters"
SIZES = ("--reference-samples", "5")


def add(study: optuna.Study, value: float, ranking: str | None = None) -> None:
    """A trial whose composite's gamma is its number and one, so that a measure knows it."""
    number = len(study.trials)
    composite = Composite.uniform(RuleSpec("gamma", {"gamma": number + 1.0}))
    attrs = {"composite": composite.to_dict(), "accuracy": [1.0, value], "ranking_hash": ranking or str(number)}
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=value, user_attrs=attrs))


def number_of(composite: Composite) -> int:
    return int(composite.groups["low"].parameters["gamma"]) - 1


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for value, ranking in ((0.5, "a"), (0.8, "b"), (0.8, "b"), (0.7, "c"), (0.6, "d")):
        add(study, value, ranking)
    return study


def test_candidates_are_the_best_of_each_ranking(study):
    assert [trial.number for trial in candidates(study, 3)] == [1, 3, 4]
    assert [trial.number for trial in candidates(study, 9)] == [1, 3, 4, 0]


def test_the_best_on_both_samples_wins(study):
    fresh = {1: 0.55, 3: 0.66, 4: 0.67}  # and searched: 0.8, 0.7, 0.6
    assert best_trial(study).number == 1
    seen: list[int] = []

    def measure(composite):
        seen.append(number_of(composite))
        return fresh[seen[-1]]

    steps: list[int] = []
    for _ in range(2):
        rescore(study, 3, "toys", measure, steps.append)
    assert seen == [4, 3, 1]  # once each, the search's best last
    assert steps == [1] * 6
    assert study.user_attrs["rescored"]["3"] == {"auc": 0.66, "on": "toys"}
    assert best_trial(study).number == complete_trial(study).number == 3
    assert study.best_trial.number == 1


def test_a_study_that_went_on_scores_only_what_is_new(study):
    rescore(study, 3, "toys", lambda composite: number_of(composite) / 5, lambda steps: None)
    assert best_trial(study).number == 4
    add(study, 0.9)
    assert best_trial(study).number == 5  # not scored again yet: the search's
    seen: list[int] = []
    rescore(study, 3, "toys", lambda composite: seen.append(number_of(composite)) or 0.3, lambda steps: None)
    assert seen == [5]
    assert best_trial(study).number == 4


def test_a_run_cut_off_among_them_leaves_the_searchs_best(study):
    def stopped(composite):
        if number_of(composite) == 1:
            raise KeyboardInterrupt
        return 0.9

    with pytest.raises(KeyboardInterrupt):
        rescore(study, 3, "toys", stopped, lambda steps: None)
    assert set(study.user_attrs["rescored"]) == {"3", "4"}
    assert best_trial(study).number == 1


def test_what_is_not_finite_with_other_images_does_not_win(study):
    def unstable(composite):
        if number_of(composite) == 1:
            raise NotFinite("relevance of layer fc is not finite")
        return 0.1

    rescore(study, 2, "toys", unstable, lambda steps: None)
    assert best_trial(study).number == 3
    assert "trial 3 0.1000, trial 1 - " in rescored_text(study)


def test_the_searchs_own_best_is_scored_on_holdout_samples_too(study):
    rescore(study, 2, "toys", lambda composite: number_of(composite) / 10, lambda steps: None)
    scored: list[int] = []

    class Toy:
        auc, accuracy = 0.5, (1.0, 0.0)

    score_holdout(study, lambda composite: scored.append(number_of(composite)) or Toy(), lambda steps: None)
    assert scored == [3, 1]


@pytest.mark.parametrize(("holdout", "on"), [("15", "15 other validation images"), ("45", "1 other draw")])
def test_a_run_scores_its_best_again_and_exports_that(project, monkeypatch, holdout, on):
    database, file = f"{holdout}.db", f"{holdout}.json"
    command = [*project.options, *SIZES, "--search-samples", "15", "--holdout-samples", holdout, "--trials", "7"]
    command += ["--storage", database, "--export", file]
    result = project.run(*command)
    assert result.returncode == 0, result.stderr
    study = optuna.load_study(study_name=NAME, storage=open_storage(str(project.folder / database)))
    scores = study.user_attrs["rescored"]
    again = candidates(study, 3)
    assert set(scores) == {str(trial.number) for trial in again}
    best = best_trial(study)
    means = {trial.number: (trial.value + scores[str(trial.number)]["auc"]) / 2 for trial in again}
    assert means[best.number] == max(means.values())
    found = json.loads((project.folder / file).read_text())["result"]
    assert (found["trial"], found["auc"]) == (best.number, best.value)
    assert found["rescored_auc"] == scores[str(best.number)]["auc"]
    assert found["search_best"] == {"trial": study.best_trial.number, "auc": study.best_value}
    assert f"best (trial {best.number}" in result.stdout
    assert ("the search's best" in result.stdout) == (best.number != study.best_trial.number)
    assert f"re-scored on {on}" in result.stdout

    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.folder / "cache"))
    prepared = prepare(stored_options(study))
    _, measure = fresh_measure(prepared, [prepared.task])
    composite = Composite.from_dict(best.user_attrs["composite"])
    assert measure(composite) == pytest.approx(found["rescored_auc"])
    assert evaluate(prepared.task, composite).auc == pytest.approx(best.value)

    repeated = project.run(*command)
    assert repeated.stdout == result.stdout


def test_a_broken_image_among_the_left_over_ones_costs_no_result(project):
    """The search never read it: a run must not end by it after all its trials."""
    prepared = project.prepared(reference_samples=5, search_samples=15, holdout_samples=15)
    image = prepared.source.dataset.val.images[left_over(prepared.source)[0]]
    whole = image.read_bytes()
    image.write_bytes(b"broken")
    arguments = [*project.options, *SIZES, "--search-samples", "15", "--holdout-samples", "15", "--trials", "5"]
    result = project.run(*arguments, "--storage", "broken.db", "--export", "broken.json")
    image.write_bytes(whole)
    assert result.returncode == 0, result.stderr
    assert "re-scored on 14 other validation images" in result.stdout


def test_it_may_be_left_out(project):
    command = [
        *project.options,
        *SIZES,
        "--trials",
        "5",
        "--rescore",
        "1",
        "--storage",
        "off.db",
        "--export",
        "off.json",
    ]
    result = project.run(*command)
    assert result.returncode == 0, result.stderr
    assert "re-scored" not in result.stdout
    study = optuna.load_study(study_name=NAME, storage=open_storage(str(project.folder / "off.db")))
    assert "rescored" not in study.user_attrs
    found = json.loads((project.folder / "off.json").read_text())["result"]
    assert found["trial"] == study.best_trial.number
    assert "search_best" not in found
