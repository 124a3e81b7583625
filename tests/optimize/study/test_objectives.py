"""Studies with a second objective: what a network costs."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import optuna
import pytest
import torch
from pxp_optimize.attribution import load_composite
from pxp_optimize.optimize.search.space import FIXED, PRICED
from pxp_optimize.pruning import END, area_saved
from pxp_optimize.studies.best import auc_of, best_trial, search_best
from pxp_optimize.studies.storage import open_storage

STUDY = "network:small-images-filters-auc-{}"


def load(project, name: str, cost: str | None = None) -> optuna.Study:
    return optuna.load_study(
        study_name=STUDY.format(cost or name), storage=open_storage(str(project.folder / f"{name}.db"))
    )


def command(project, cost: str, *more: str) -> list[str]:
    names = ["--storage", f"{cost}.db", "--export", f"{cost}.json"]
    return [*project.options, *names, "--objective", f"auc,{cost}", "--trials", "11", *more]


@pytest.fixture(scope="module", params=["macs", "latency"])
def searched(request, project):
    result = project.run(*command(project, request.param))
    assert result.returncode == 0, result.stderr
    return project, request.param, result


def test_trials_have_both_areas(searched):
    project, cost, _ = searched
    study = load(project, cost)
    assert study.metric_names == ["AUC", f"area over {cost}"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 11
    for trial in study.trials:
        costs = trial.user_attrs["costs"]
        assert costs[0] == 1
        accuracy = [*trial.user_attrs["accuracy"], *trial.user_attrs.get("beyond", [])]
        assert trial.values[1] == pytest.approx(area_saved(costs, accuracy))  # as where it is the only objective
        assert len(accuracy) == len(costs)
        assert 1 - costs[-1] >= END or len(costs) > len(study.user_attrs["rates"])
        if cost == "macs":
            assert all(later <= earlier for earlier, later in pairwise(costs))
            assert costs[-1] < 0.7


def test_prices_are_what_a_front_is_about(searched):
    project, cost, _ = searched
    trials = load(project, cost).trials
    assert [trial.user_attrs.get("fixed") for trial in trials[:8]] == [*FIXED, *(f"{name}{PRICED}" for name in FIXED)]
    ranking = trials[4].user_attrs["composite"]["ranking"]
    assert (ranking["cost_exponent"], ranking.get("cost", "macs")) == (1, cost)
    assert ("seconds" in ranking) == (cost == "latency")


def test_the_front_is_listed_and_the_highest_auc_exported(searched):
    project, cost, result = searched
    study = load(project, cost)
    front = study.best_trials
    assert f"front of {len(front)} trials" in result.stdout
    for trial in front:
        line = f"  trial {trial.number}: AUC {trial.values[0]:.4f}, area over {cost} {trial.values[1]:.4f}"
        assert line in result.stdout.splitlines()
    assert auc_of(search_best(study)) == max(auc_of(trial) for trial in study.trials)
    document = json.loads((project.folder / f"{cost}.json").read_text())
    best = best_trial(study)
    assert document["result"]["trial"] == best.number
    assert (document["result"]["auc"], document["result"][f"area_over_{cost}"]) == tuple(best.values)
    load_composite(document)
    other = next(trial.number for trial in front)
    exported = project.run("export", "--storage", f"{cost}.db", "--trial", str(other), "-o", "front.json")
    assert exported.returncode == 0, exported.stderr


def test_the_other_commands_read_such_a_study(searched):
    project, cost, _ = searched
    listed = project.run("studies", "--storage", f"{cost}.db")
    assert f"{auc_of(search_best(load(project, cost))):.4f}" in listed.stdout
    pruned = project.run("prune", "--storage", f"{cost}.db", "-o", f"{cost}.safetensors", "-q")
    assert pruned.returncode == 0, pruned.stderr
    compared = project.run("compare", "--storage", f"{cost}.db", "--seeds", "1", "-q")
    assert compared.returncode == 0, compared.stderr


def test_a_study_goes_on_with_its_objective_only(searched):
    project, cost, _ = searched
    before = project.files()
    other = project.run(*command(project, cost, "--objective", "auc", "--study", STUDY.format(cost)))
    assert other.returncode == 2
    assert f"was made with --objective auc,{cost}, not auc" in other.stderr
    assert project.files() == before
    more = project.run(*command(project, cost, "--trials", "12"))
    assert more.returncode == 0, more.stderr
    trials = load(project, cost).trials
    assert len(trials) == 12
    if cost == "macs":  # times are never the same again
        shutil.rmtree(project.folder / "again", ignore_errors=True)
        again = project.run(*command(project, cost, "--trials", "12", "--storage", "again.db"))
        assert again.returncode == 0, again.stderr
        assert [trial.values for trial in load(project, "again", cost).trials] == [trial.values for trial in trials]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pruner", "wilcoxon"], "--pruner wilcoxon knows one objective"),
        (["--sampler", "cmaes"], "--sampler cmaes knows one objective"),
        (["--sampler", "gp"], "give --objective auc, or one of tpe, random, grid"),
        (["--objective", "watts"], "is not one of"),
    ],
)
def test_what_does_not_go_together_is_one_line(project, more, message):
    result = project.run(*command(project, "macs", *more))
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


GATED = """
import torch
from torch import nn


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(torch.relu(self.b(x * gate)).mean((2, 3)))
"""


def test_how_gates_are_passed_is_searched_where_cost_counts(project):
    (project.folder / "gated.py").write_text(GATED)
    namespace: dict = {}
    exec(GATED, namespace)
    torch.manual_seed(0)
    torch.save(namespace["Gated"]().state_dict(), project.folder / "gated.pt")
    model = ["--model", "gated:Gated", "--weights", "gated.pt", "--units", "filters"]
    found = {}
    once = ["--schedule", "oneshot", "--repair", "none"]  # which has no part in what is proposed
    for objective, trials, how in (("auc", 12, []), ("auc,macs", 30, once)):
        names = ["--storage", f"{objective}.db", "--export", "gated.json", "--objective", objective]
        result = project.run(*project.options, *model, *names, "--trials", str(trials), *how)
        assert result.returncode == 0, result.stderr
        name = "gated:Gated-images-filters" + ("-auc-macs" if "macs" in objective else "")
        study = optuna.load_study(study_name=name, storage=open_storage(str(project.folder / f"{objective}.db")))
        for trial in study.trials:
            half = trial.user_attrs["composite"].get("products") == {"gates": "half"}
            assert half == (trial.params.get("gates") == "half")
        found[objective] = [trial.params.get("gates") for trial in study.trials]
    pruned = project.run("prune", "--storage", "auc.db", "--rate", "0.6", "-o", "gated.safetensors", "-q")
    assert pruned.returncode == 0, pruned.stderr
    assert "gates: 1 of 1 are constant now and left out" in pruned.stdout.splitlines()
    assert found["auc"] == [None] * 12  # ten of them known, two proposed
    assert set(found["auc,macs"][:18]) == {"signal", None}  # None: the space cannot express it
    assert set(found["auc,macs"][18:]) == {"signal", "half"}
