"""The command that compares: honest draws, a study that is only read, one line where it cannot."""

from __future__ import annotations

import csv
import json

import numpy as np
import optuna
import pytest
from pxp_optimize.attribution import CRITERIA
from pxp_optimize.optimize.evaluation.evaluate import Baseline, evaluate
from pxp_optimize.optimize.search.space import FIXED
from pxp_optimize.optimize.study.compare import correctness, stored_options
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.optimize.study.resampling import left_over, other_reference, with_reference
from pxp_optimize.studies.best import best_trial
from pxp_optimize.studies.storage import open_storage

STUDY = "network:small-images-filters"
SIZES = ("--reference-samples", "5", "--search-samples", "15", "--holdout-samples", "30")


def load(project, name: str = STUDY) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(str(project.folder / "pxp.db")))


@pytest.fixture(scope="module")
def studies(project):
    """A study, one of the paper's composites on the same task, and one of them on another."""
    for more in (
        ("--trials", "5"),
        ("--trials", "6", "--space", "paper", "--study", "paper", "--export", "paper.json"),
        ("--trials", "4", "--space", "paper", "--study", "other", "--repair", "none", "--export", "other.json"),
    ):
        result = project.run(*project.options, *SIZES, *more)
        assert result.returncode == 0, result.stderr
    return project


@pytest.fixture
def prepared(studies, monkeypatch):
    monkeypatch.chdir(studies.folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(studies.folder / "cache"))
    return prepare(stored_options(load(studies)))


def test_a_comparison_says_the_same_in_table_csv_and_json(studies):
    before = studies.files()
    arguments = ("compare", "--study", STUDY, "--seeds", "2", "--output", "c.json", "--csv", "c.csv")
    result = studies.run(*arguments)
    assert result.returncode == 0, result.stderr
    after = studies.files()
    assert {name for name in after if after[name] != before.get(name)} == {"c.json", "c.csv"}
    document = json.loads((studies.folder / "c.json").read_text())
    best = f"best (trial {best_trial(load(studies)).number})"
    names = [best, "paper's best of 6", *FIXED, *CRITERIA]
    assert [entry["name"] for entry in document["methods"]] == names
    assert (document["paper_study"], document["draws"], document["holdout_samples"]) == ("paper", 2, 30)
    assert document["shared"] == 0
    assert "none of them the study's own" in result.stdout
    assert "paper   study paper" in result.stderr
    assert document["pruning"] == {"schedule": "every:0.3", "repair": "least-squares"}
    assert [row["method"] for row in csv.DictReader((studies.folder / "c.csv").open())] == names
    first, second = result.stdout.split("accuracy at rate")
    for entry in document["methods"]:
        auc = entry["auc"]
        assert len(entry["auc_by_draw"]) == 2
        row = next(line for line in first.splitlines() if line.startswith(entry["name"]))
        assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in row
        assert entry["name"] in second
        difference = entry["difference"]["auc"]
        if difference and not difference["significant"]:
            assert row.rstrip().endswith("not significant")
            assert entry["name"] in second.splitlines()[-1]
    again = studies.run(*arguments, "-q")
    assert (again.returncode, again.stderr, again.stdout) == (0, "", result.stdout)
    assert json.loads((studies.folder / "c.json").read_text()) == document


def test_other_draws_are_other_training_images(prepared):
    source = prepared.source
    own = source.drawn["reference"]
    first, second = other_reference(source, 1), other_reference(source, 2)
    labels = source.dataset.train.labels
    for drawn in (first, second):
        assert np.bincount(labels[drawn]).tolist() == [5, 5, 5]
        assert len(set(drawn)) == 15
        assert not set(drawn) & set(own)  # 12 a class: 7 are left
    assert set(first) != set(second)
    assert first.tolist() == other_reference(source, 1).tolist()
    task = with_reference(prepared, 1)
    assert task.holdout is prepared.task.holdout
    assert len(task.reference) == 15
    assert task.repair is not prepared.task.repair


def test_correctness_is_what_a_trial_measures(prepared):
    task = with_reference(prepared, 1)
    right = correctness(task, Baseline("taylor"))
    assert right.shape == (4, 30)
    assert right.mean(1).tolist() == pytest.approx(evaluate(task, Baseline("taylor"), task.holdout).accuracy)


def test_what_is_left_of_the_validation_images(prepared):
    source = prepared.source
    rows = left_over(source)
    assert len(rows) == 15  # of 60, 45 are taken
    assert not set(rows) & {*source.drawn["search"], *source.drawn["holdout"]}
    assert np.bincount(source.dataset.val.labels[rows]).tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--study", "none"], "no study 'none'"),
        (["--study", STUDY, "--paper-study", "other"], "is of another task (repair: stored least-squares, now none)"),
        (["--study", STUDY, "--paper-study", STUDY], "has no trials of --space paper"),
        (["--study", STUDY, "--paper-study", "none"], "no study 'none' in the database (--paper-study)"),
        (["--study", STUDY, "--seeds", "0"], "at least 1"),
        (["--study", STUDY, "--output", "best.json"], "best.json is there and no comparison"),
        (["--study", STUDY, "--csv", "weights.pt"], "weights.pt is there and no comparison"),
        (["--study", STUDY, "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_bad_input_is_one_line(studies, arguments, named):
    before = studies.files()
    result = studies.run("compare", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert named in result.stderr
    assert studies.files() == before


def test_other_images_than_the_study_had_are_noticed(studies):
    image = next((studies.folder / "images" / "val" / "red").glob("*.png"))
    hidden = image.rename(image.with_suffix(".hidden"))
    try:
        result = studies.run("compare", "--study", STUDY)
    finally:
        hidden.rename(image)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "is not there any more (samples search hash: stored" in result.stderr
