"""Spaces and warm starts as a person uses them: the real command on a small project."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.trial import TrialState
from pxp_optimize.attribution import GROUPS, load_composite
from pxp_optimize.optimize.search.space import FIXED
from pxp_optimize.optimize.search.warm_start import MIXED, SIGNED
from pxp_optimize.studies.storage import open_storage

NAME = "network:small-images-filters"
FAST = ("--search-samples", "15", "--holdout-samples", "15", "--schedule", "oneshot", "--repair", "none", "-q")
MINE = """
[parts.classifier]
rules = ["epsilon"]
epsilon = [1e-4, 0.1]

[parts."0.[03]"]
rules = ["gamma", "zplus"]
gamma = [0.05, 1]

[parts."*"]
rules = ["epsilon", "zplus"]

[ranking]
aggregation = ["abs"]
normalization = ["none", "l2"]
"""


def load(project, database: str) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=open_storage(str(project.folder / database)))


def command(project, name: str, *arguments: str) -> list[str]:
    return [*project.options, *FAST, "--storage", f"{name}.db", "--export", f"{name}.json", *arguments]


def run(project, name: str, *arguments: str) -> optuna.Study:
    result = project.run(*command(project, name, *arguments))
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith((*FIXED, SIGNED, *MIXED))]
    assert [row.split()[0] for row in rows] == list(FIXED)  # mixed composites are no rows of their own
    return load(project, f"{name}.db")


@pytest.fixture(scope="module")
def by_type(project) -> optuna.Study:
    """A study of types, whose best composite has different rules within a depth."""
    return run(project, "type", "--space", "type", "--trials", "12")


@pytest.mark.parametrize("options", [(), ("--space", "paper", "--sampler", "grid")], ids=["tpe", "grid"])
def test_processes_that_start_at_once_share_a_study(project, options):
    name = "".join(("shared", *options)).replace("-", "")
    given = command(project, name, "--trials", "16", *options)
    results = project.run_at_once([given] * 3)
    assert [result.returncode for result in results] == [0, 0, 0], results
    study = load(project, f"{name}.db")
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert 16 <= len(study.trials) <= 18
    tried = [json.dumps(trial.user_attrs["composite"]) for trial in study.trials]
    assert len(set(tried)) == len(tried)
    assert len({trial.user_attrs["owner"]["pid"] for trial in study.trials}) > 1


def test_layers_by_cmaes(project):
    study = run(project, "layer", "--space", "layer", "--trials", "14")  # by CMA-ES
    layers = study.user_attrs["layers"]
    assert study.user_attrs["config"]["sampler"] == "cmaes"
    for trial in study.trials[10:]:
        assert set(trial.params) == {f"{name}.gamma" for name in layers}
        assert set(trial.system_attrs["pxp:relative_params"]) == set(trial.params)
        assert set(trial.user_attrs["composite"]["layers"]) == set(layers)
    assert [trial.user_attrs.get("known") for trial in study.trials[4:10]] == [SIGNED, *MIXED]
    result = project.run("export", "--storage", "layer.db", "--trial", "13", "-o", "last.json")
    assert result.returncode == 0, result.stderr
    composite = load_composite(project.folder / "last.json")
    assert {f"{name}.gamma": spec.parameters["gamma"] for name, spec in composite.layers.items()} == (
        study.trials[13].params
    )


def test_a_study_starts_from_a_trial_of_another(project, by_type):
    result = project.run("export", "--storage", "type.db", "--trial", "10", "-o", "ten.json")
    assert result.returncode == 0, result.stderr
    for space in ("type", "layer"):
        study = run(project, f"from-{space}", "--space", space, "--from", "ten.json", "--trials", "5")
        assert study.trials[4].user_attrs["from"] == "ten.json"
        assert study.trials[4].value == by_type.trials[10].value
        assert study.trials[4].user_attrs["composite"] == by_type.trials[10].user_attrs["composite"]


def test_a_space_of_ones_own(project):
    (project.folder / "mine.toml").write_text(MINE)
    study = run(project, "mine", "--space", "mine.toml", "--trials", "13")
    for trial in study.trials[10:]:
        assert set(trial.params) >= {"classifier.epsilon", "0.[03].rule", "*.rule", "normalization"}
        assert 1e-4 <= trial.params["classifier.epsilon"] <= 0.1
        rules = trial.user_attrs["composite"]["layers"]
        assert rules["0.0"] == rules["0.3"]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 13
    (project.folder / "mine.toml").write_text(MINE.replace('"epsilon", "zplus"', '"epsilon", "gamma"'))
    before = project.files()
    result = project.run(*command(project, "mine", "--space", "mine.toml", "--trials", "13"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: study '{NAME}' chose *.rule from epsilon, zplus, and --space mine.toml offers epsilon, gamma: "
        "give another name with --study, or the space it was made with (by an older version, maybe)\n"
    )
    assert project.files() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "depths"], "'depths' is not auto, depth, type, layer, paper or a .toml file"),
        (["--space", "none.toml"], "--space: cannot read none.toml: No such file"),
        (["--from", "none.json"], "--from: cannot read none.json: No such file"),
        (["--from", "network.py"], "--from network.py: network.py: not a JSON document"),
        (
            ["--from", "layers.json"],
            "0.0 and 0.3 have different rules but share low in --space auto: give --space layer",
        ),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(project, arguments, message):
    groups = {key: {"rule": "zplus"} for key in GROUPS}
    one = {"groups": groups, "layers": {"0.3": {"rule": "epsilon"}}}
    (project.folder / "layers.json").write_text(json.dumps(one))
    before = project.files()
    result = project.run(*command(project, "bad", *arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert project.files() == before
