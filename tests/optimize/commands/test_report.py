"""`pxp-optimize report`: what it writes, and bad input in one line."""

from __future__ import annotations

import csv
import shutil

import optuna
import pytest
from optuna.trial import create_trial
from pxp_optimize.studies.best import best_trial
from pxp_optimize.studies.storage import open_storage


@pytest.fixture(scope="module")
def study(project) -> optuna.Study:
    result = project.run(*project.options, "--trials", "5", "--study", "mine", "--storage", "my studies.db")
    assert result.returncode == 0, result.stderr
    assert "report:    pxp-optimize report --study mine --storage 'my studies.db'" in result.stdout
    return optuna.load_study(study_name="mine", storage=open_storage(str(project.folder / "my studies.db")))


def test_it_writes_the_page_or_the_curves_and_only_reads_the_study(project, study):
    before = project.files()["my studies.db"]
    result = project.run("report", "--storage", "my studies.db")
    assert (result.returncode, result.stdout) == (0, "report.html: study mine\n"), result.stderr
    assert f"The best is trial {best_trial(study).number}" in (project.folder / "report.html").read_text()
    assert project.run("report", "--storage", "my studies.db", "--format", "csv").returncode == 0
    with (project.folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    holdout = study.user_attrs["holdout"][str(best_trial(study).number)]["accuracy"]
    assert [float(row["accuracy"]) for row in rows if row["best"] == "1" and row["samples"] == "holdout"] == holdout
    assert project.files()["my studies.db"] == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-o", "report.txt"], "does not say what to write"),
        (["-o", "report.csv", "--format", "json"], "give one of them"),
        (["-o", "network.html"], "left as it is"),
        (["-o", "nowhere/a.html"], "there is no folder nowhere"),
        (["--study", "other"], "no study 'other'; the database has: mine"),
        (["--figure", "x"], "'x' is not one of 'holdout'"),
        (["--storage", "none.db"], "no database none.db"),
    ],
)
def test_bad_input(project, study, arguments, named):
    shutil.copy(project.folder / "network.py", project.folder / "network.html")
    result = project.run("report", "--storage", "my studies.db", *arguments)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr
    assert (project.folder / "network.html").read_bytes() == (project.folder / "network.py").read_bytes()


def test_studies_of_other_programs_are_named(project, study):
    storage = open_storage(str(project.folder / "theirs.db"))
    theirs = optuna.create_study(study_name="theirs", storage=storage)
    theirs.add_trial(create_trial(value=1.0))
    for kind in ("html", "csv"):
        result = project.run("report", "--storage", "theirs.db", "-o", f"theirs.{kind}")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == "Error: study 'theirs' was not made by pxp-optimize\n"
