"""Reports: what the tables say is what the study holds."""

from __future__ import annotations

import io
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from pxp_optimize.studies.report import (
    ResultLine,
    failed_text,
    fixed_trials,
    list_studies,
    no_gain_text,
    result_lines,
    result_table,
    studies_table,
)
from pxp_optimize.studies.storage import open_storage
from rich.console import Console

RATES = [0.0, 0.25, 0.5, 0.75]


def add(study: optuna.Study, value: float | None, fixed: str | None = None, accuracy=(1.0, 1.0, 0.5, 0.2)) -> None:
    attrs = {"accuracy": list(accuracy)} if value is not None else {}
    state = TrialState.COMPLETE if value is not None else TrialState.FAIL
    if fixed:
        attrs["fixed"] = fixed
    study.add_trial(create_trial(state=state, value=value, user_attrs=attrs))


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    study = optuna.create_study(study_name="toy", storage=open_storage(str(tmp_path / "a.db")), direction="maximize")
    study.set_user_attr("fingerprint", {"model": "resnet18", "data": "digits", "units": "filters"})
    study.set_user_attr("rates", RATES)
    add(study, 0.5, "epsilon")
    add(study, None, "zplus")
    add(study, 0.7, accuracy=(1.0, 0.99, 0.96, 0.1))
    return study


def text(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[union-attr, attr-defined]


def test_no_heading_is_cut_within_a_word():
    names = ("best (trial 12, epsilon-alpha2-beta1, half priced)", "epsilon")
    lines = [ResultLine(name, 0.5, 0.5, 0.25, search_area=0.5, holdout_area=0.5, saved=0.25) for name in names]
    console = Console(file=io.StringIO(), width=80)
    console.print(result_table(lines))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert shown.split("─")[0].split().count("holdout") == 2


def test_what_waits_is_no_trial_yet(study):
    study.enqueue_trial({})
    assert "2 of 3" in text(studies_table(list_studies(study._storage)))


def test_the_list_of_studies(study):
    storage = study._storage
    optuna.create_study(study_name="another program's", storage=storage, directions=["minimize", "maximize"])
    optuna.load_study(study_name="another program's", storage=storage).add_trial(create_trial(values=[1.0, 2.0]))
    optuna.create_study(study_name="empty", storage=storage)
    other, empty, toy = list_studies(storage)
    assert (toy.name, toy.complete, toy.total, toy.best) == ("toy", 2, 3, 0.7)
    assert (toy.model, toy.data, toy.units) == ("resnet18", "digits", "filters")
    assert toy.updated == max(trial.datetime_complete for trial in study.trials)
    assert (empty.total, empty.best, empty.updated) == (0, None, None)
    assert (other.complete, other.best, other.model) == (1, None, "-")
    shown = text(studies_table([toy, empty]))
    for part in (
        "toy",
        "resnet18",
        "digits",
        "filters",
        "2 of 3",
        "AUC 0.7000",
        toy.updated.strftime("%Y-%m-%d"),
    ):
        assert part in shown


def test_the_result_is_reported_on_holdout_samples(study):
    study.set_user_attr("holdout", {"2": {"auc": 0.65, "accuracy": [0.9, 0.89, 0.5, 0.1]}})
    assert result_lines(study) == [
        ResultLine("epsilon", 0.5, None, 0.25),
        ResultLine("zplus", None, None, None),
        ResultLine("best (trial 2)", 0.7, 0.65, 0.25),
    ]
    shown = text(result_table(result_lines(study)))
    assert "95% of accuracy" in shown
    best = next(line for line in shown.splitlines() if "best" in line)
    assert best.split() == ["best", "(trial", "2)", "0.7000", "0.6500", "25%"]
    failed = next(line for line in shown.splitlines() if "zplus" in line)
    assert failed.split() == ["zplus", "-", "-", "-"]


@pytest.mark.parametrize(("fixed", "said"), [(0.7, "epsilon has 0.7000"), (0.65, "epsilon has 0.6500"), (0.6, None)])
def test_a_search_that_gained_nothing_says_so(study, fixed, said):
    assert no_gain_text(study) is None  # nothing is scored on holdout samples
    study.set_user_attr("holdout", {"0": {"auc": fixed, "accuracy": []}, "2": {"auc": 0.65, "accuracy": []}})
    found = no_gain_text(study)
    assert found is None if said is None else said in found


def test_a_fixed_composite_may_be_the_best(study):
    add(study, 0.9, "gamma0.25")
    study.set_user_attr("holdout", {"0": {"auc": 0.5, "accuracy": []}, "3": {"auc": 0.65, "accuracy": []}})
    assert "holdout samples: gamma0.25 is the best" in str(no_gain_text(study))


def test_failed_trials_are_told(study):
    assert failed_text(study) == "1 of 3 trials failed, the last one (trial 1, zplus) since its process ended"
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"error": "relevance of layer fc is not finite"}))
    assert (
        failed_text(study) == "2 of 4 trials failed, the last one (trial 3) since relevance of layer fc is not finite"
    )


def test_a_baseline_that_was_run_again_counts_once(study):
    add(study, 0.6, "zplus")
    add(study, 0.1, "epsilon")
    found = fixed_trials(study)
    assert {name: trial.number for name, trial in found.items()} == {"epsilon": 0, "zplus": 3}


def test_print_shows_a_table(study):
    table = result_table(result_lines(study))
    shown = str(table)
    assert [line.split() for line in shown.splitlines()[-2:]] == [
        line.split() for line in text(table).splitlines()[-2:]
    ]
    assert "\x1b" not in shown and "epsilon" in shown
