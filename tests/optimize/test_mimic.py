"""Mimicking through every door: the command's file, a result's network, a document's."""

from __future__ import annotations

import optuna
import pytest
import torch
from pxp_optimize.attribution import Composite
from pxp_optimize.optimize import load_pruned, optimize, prune
from pxp_optimize.optimize.evaluation.evaluate import make_plan
from pxp_optimize.optimize.study.checkpoint import about_pruned
from pxp_optimize.pruning import mimic, mimicking
from pxp_optimize.studies.storage import open_storage

RATES = "0:0.9:0.3"


@pytest.fixture(scope="module")
def prepared(project):
    return project.prepared(rates=RATES, schedule="every:0.3", repair="batchnorm")


@pytest.fixture
def eager(monkeypatch):
    """So few steps are to change something."""
    monkeypatch.setattr(mimicking, "LEARNING_RATE", 1e-2)


def test_the_command_writes_the_network_that_was_trained(project, prepared):
    options = ("--rates", RATES, "--trials", "1", "--rescore", "1", "--repair", "batchnorm", "--storage", "mimic.db")
    assert project.run(*project.options, *options, "-q").returncode == 0
    how = ("--storage", "mimic.db", "--rate", "0.6", "-q", "-o", "mimicked.safetensors")
    result = project.run("prune", *how, "--mimic", "200")
    assert result.returncode == 0, result.stderr
    path = project.folder / "mimicked.safetensors"
    assert about_pruned(path)["training"] == {"mimic": 200, "finetune": 0, "seed": 0}
    storage = open_storage(str(project.folder / "mimic.db"))
    composite = optuna.load_study(study_name=None, storage=storage).trials[0].user_attrs["composite"]
    task, composite = prepared.task, Composite.from_dict(composite)
    plan = make_plan(task, composite, 0.6)
    before, masks = next(plan.networks(task.graph, [0.6], task.repair)), plan.ranking.masks(0.6)
    images = task.holdout.inputs[0:8]
    graph = mimic(task.graph, before, masks, task.reference.inputs, 200, repair=task.repair_name)
    torch.testing.assert_close(load_pruned(project.network(), path)(images), graph.network(images), atol=1e-4, rtol=0)
    assert not torch.allclose(before.network(images), graph.network(images), atol=1e-2)


def test_a_result_and_its_document_give_the_same_network(project, prepared, tmp_path, eager):
    model = project.network()
    model.load_state_dict(torch.load(project.folder / "weights.pt", weights_only=True))
    samples = {name: getattr(prepared.task, name) for name in ("reference", "search", "holdout")}
    pairs = {name: (each.inputs[0 : len(each)], each.targets) for name, each in samples.items()}
    how = {
        "rates": RATES,
        "trials": 1,
        "rescore": 1,
        "repair": "batchnorm",
        "device": "cpu",
        "quiet": True,
        "batch_size": 32,
    }
    result = optimize(model, **pairs, storage=str(tmp_path / "a.db"), **how)
    result.export(tmp_path / "best.json")
    found = result.prune(rate=0.6, mimic=20)
    again = prune(model, tmp_path / "best.json", *pairs["reference"], 0.6, mimic=20)
    images = pairs["holdout"][0]
    torch.testing.assert_close(found(images), again(images), atol=1e-3, rtol=0)
    assert not torch.allclose(found(images), result.prune(rate=0.6)(images), atol=1e-2)
    assert all(value.requires_grad for value in found.parameters())
    with pytest.raises(ValueError, match="mimic is -1"):
        result.prune(rate=0.6, mimic=-1)
