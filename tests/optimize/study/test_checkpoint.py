"""The smaller network as a file: what was measured is what is written and read."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from pxp_optimize.attribution import GROUPS, Composite, RuleSpec, collect_relevance
from pxp_optimize.optimize.commands.main import main
from pxp_optimize.optimize.evaluation.evaluate import make_plan
from pxp_optimize.optimize.study.apply import prune
from pxp_optimize.optimize.study.checkpoint import about_pruned, load_pruned, pruned_bytes
from pxp_optimize.optimize.study.compare import stored_options
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import accuracy, compact, macs, make_repair, params, prune_masks, trace
from pxp_optimize.studies.storage import open_storage
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

STUDY = "network:small-images-filters"


@pytest.fixture(scope="module")
def searched(project):
    result = project.run(*project.options, "--trials", "5")
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture
def here(searched, monkeypatch):
    monkeypatch.chdir(searched.folder)
    monkeypatch.syspath_prepend(str(searched.folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(searched.folder / "cache"))
    return searched


def load(project) -> optuna.Study:
    return optuna.load_study(study_name=STUDY, storage=open_storage(str(project.folder / "pxp.db")))


def test_the_file_holds_the_network_that_was_measured(here):
    study = load(here)
    rate = study.user_attrs["rates"][2]
    before = here.files()
    result = here.run("prune", "--rate", str(rate), "-o", "part.safetensors", "--trial", "3")
    assert result.returncode == 0, result.stderr
    after = here.files()
    assert {name for name in after if after[name] != before.get(name)} == {"part.safetensors"}
    task = prepare(stored_options(study)).task
    small = load_pruned(here.network(), here.folder / "part.safetensors")
    found = accuracy(small, task.holdout.inputs, task.holdout.targets)
    assert found == pytest.approx(study.user_attrs["holdout"]["3"]["accuracy"][2])
    about = about_pruned(here.folder / "part.safetensors")
    assert (about["rate"], about["trial"], about["holdout_accuracy"]) == (rate, 3, pytest.approx(found))
    rows = {line[:18].strip(): line for line in result.stdout.splitlines()}
    assert f"{found:.1%}" == rows["accuracy, holdout"].split()[-1]
    removed, total = map(int, re.search(r"(\d+) of (\d+) filters removed", result.stdout).groups())
    assert removed == int(total * rate)
    parameters = sum(parameter.numel() for parameter in small.parameters())
    assert f" {parameters} (" in rows["parameters"]  # fewer than a thousand
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert not small.training


def test_the_rate_by_default_keeps_the_accuracy(here):
    result = here.run("prune", "-q", "-o", "kept.safetensors")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    study = load(here)
    trial = study.trials[about_pruned(here.folder / "kept.safetensors")["trial"]]
    rate = about_pruned(here.folder / "kept.safetensors")["rate"]
    curve = dict(zip(study.user_attrs["rates"], trial.user_attrs["accuracy"], strict=True))
    assert curve[rate] >= 0.95 * curve[0.0]


@pytest.mark.parametrize("repair", ["none", "batchnorm+least-squares"])
@pytest.mark.parametrize("rate", [0.0, 0.4, 0.95])
def test_what_is_written_is_read(here, tmp_path, repair, rate):
    """Also biases that least squares gave to layers that had none, and layers without any unit left."""
    options = here.python_options.changed(rates=(0.0, rate or 0.1))
    task = prepare(options).task
    task = replace(task, repair=make_repair(repair, task.graph, task.reference.inputs))
    plan = make_plan(task, Composite.uniform(RuleSpec("epsilon")), rate)
    graph, masks = next(plan.networks(task.graph, [rate], task.repair)), plan.ranking.masks(rate)
    (tmp_path / "small.safetensors").write_bytes(pruned_bytes(graph.network, masks, {}))
    model = here.network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = load_pruned(model, tmp_path / "small.safetensors")
    images = task.holdout.inputs[0:8]
    assert torch.allclose(small(images), graph.network(images), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {type(module) for module in small.modules() if isinstance(module, nn.Conv2d)} == {nn.Conv2d}


def test_a_transformer_is_read_too(vision_transformer, tmp_path):
    model = vision_transformer()
    graph = trace(model)
    images = torch.randn(4, 3, 16, 16)
    scores = {name: torch.arange(float(size)) for name, size in graph.units("heads+neurons").items()}
    masks = prune_masks(scores, 0.5)
    small = make_repair("least-squares", graph, images)(graph, compact(graph, masks), masks)
    (tmp_path / "a.safetensors").write_bytes(pruned_bytes(small.network, masks, {"a": [1]}))
    assert torch.allclose(load_pruned(model, tmp_path / "a.safetensors")(images), small.network(images), atol=1e-5)
    assert about_pruned(tmp_path / "a.safetensors") == {"a": [1]}


def test_gates_that_say_the_same_of_every_image_are_neither_read_nor_made(tmp_path):
    torch.manual_seed(0)
    settings = [(16, 3, 24, 16, True, "RE", 2, 1), (16, 5, 32, 16, True, "HS", 1, 1)]
    model = MobileNetV3([InvertedResidualConfig(*setting, 1.0) for setting in settings], 32, num_classes=5).eval()
    graph = trace(model)
    images, targets = torch.randn(20, 3, 32, 32), torch.arange(20) % 5
    document = {
        "units": "filters",
        "groups": {group: {"rule": "epsilon"} for group in GROUPS},
        "pruning": {"schedule": "oneshot", "repair": "least-squares"},
    }
    relevance = collect_relevance(model, document, images, targets)
    gates = [name for name in relevance if name.endswith(("fc1", "fc2"))]
    assert len(gates) == 4
    assert not any(relevance[name].any() for name in gates)
    rate = sum(len(relevance[name]) for name in gates) / sum(map(len, relevance.values())) + 0.001
    masks = prune_masks(relevance, rate)
    whole = make_repair("least-squares", graph, images)(graph, compact(graph, masks), masks)
    (tmp_path / "a.safetensors").write_bytes(pruned_bytes(whole.network, masks, {}))
    for small in (load_pruned(model, tmp_path / "a.safetensors"), prune(model, document, images, targets, rate)):
        torch.testing.assert_close(small(images), whole.network(images), rtol=1e-3, atol=1e-4)
        assert len([*small.parameters()]) == len([*whole.network.parameters()]) - 2 * len(gates)


def test_bad_files_and_models_are_named(here, tmp_path):
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="cannot read"):
        load_pruned(nn.Identity(), tmp_path / "text")
    with pytest.raises(ValueError, match="cannot read"):
        load_pruned(nn.Identity(), tmp_path / "missing")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no pruned network"):
        load_pruned(nn.Identity(), tmp_path / "other.safetensors")
    (tmp_path / "own.safetensors").write_bytes(pruned_bytes(trace(here.network()).network, {}, {}))
    with pytest.raises(ValueError, match="does not fit this model"):
        load_pruned(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2, 2)), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="does not fit this model"):
        load_pruned(nn.Sequential(OrderedDict(head=here.network())), tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1"], "not 0 or more, and below 1"),
        (["--rate", "much"], "not made of numbers"),
        (["--trial", "99"], "has no trial 99"),
        (["--study", "none"], "no study 'none'"),
        (["-o", "weights.pt"], "weights.pt is there and no pruned network"),
        (["-o", "small.pt"], "give small.safetensors"),
        (["-o", "small.PTH"], "is not what .PTH says"),
        (["-o", "small.ckpt"], "give small.safetensors"),
        (["-o", "pxp.db"], "is the database of the studies"),
        (["-o", "nowhere/small.safetensors"], "there is no folder"),
    ],
)
def test_bad_input_is_one_line(here, arguments, message):
    before = here.files()
    result = here.run("prune", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert here.files() == before


@pytest.mark.parametrize(
    ("way", "what", "most"),
    [
        (["--max-params", "1.5k"], "parameters", 1500.0),
        (["--max-macs", "0.1M"], "multiply-adds", 100_000.0),
        (["--saved", "0.5"], "filters", 20.0),
        (["--keep-accuracy", "0.5"], None, None),
    ],
)
def test_how_much_goes_is_said_in_several_ways(here, capsys, way, what, most):
    prune_command("-q", *way, "-o", "way.safetensors")
    study, about = load(here), about_pruned(here.folder / "way.safetensors")
    assert about["input"] == {"shape": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3}
    curve = dict(zip(study.user_attrs["rates"], study.trials[about["trial"]].user_attrs["accuracy"], strict=True))
    if what is None:
        assert curve[about["rate"]] >= 0.5 * curve[0.0]
        assert curve.get(round(about["rate"] + 0.3, 1), 0.0) < 0.5 * curve[0.0]
        return
    small = load_pruned(here.network(), here.folder / "way.safetensors")
    images = torch.zeros(1, 3, 16, 16)
    found = {"parameters": params, "multiply-adds": macs}.get(what, lambda *_: 40 * (1 - about["rate"]))(small, images)
    assert 0.8 * most < found <= most
    rows = {line[:18].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert f"{found:.0f}" in rows[what] or f"{found / 1e3:.2f} k" in rows[what]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "small.onnx.bin"], "give small.onnx.safetensors, small.onnx.pt2 or small.onnx.onnx"),
        (["--rate", "0.5", "--max-params", "3M"], "--rate and --max-params are ways to say how much goes: give one"),
        (["--keep-accuracy", "1.5"], "not a part to keep"),
        (["--max-macs", "3 hundred"], "not a number such as 500k"),
        (["-q", "--max-params", "3"], "--max-params is 3, but without any of its"),
        (["--saved", "1"], "not 0 or more, and below 1"),
        (["--finetune", "-1"], "too small"),
    ],
)
def test_what_cannot_be_is_one_line(here, capsys, arguments, message):
    before = here.files()
    prune_command(*arguments, status=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert here.files() == before


def prune_command(*arguments: str, status: int = 0) -> None:
    """The command, in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["prune", *arguments])
    assert ended.value.code == status


def test_fine_tuning_is_shown_beside_what_it_began_with(here, capsys):
    how = ["-q", "--rate", "0.6", "--finetune", "4"]
    for name in ("tuned.safetensors", "again.safetensors"):
        prune_command(*how, "-o", name)
    out = capsys.readouterr().out
    assert "fine-tuned, 4 epochs" in out
    assert about_pruned(here.folder / "tuned.safetensors")["training"] == {"mimic": 0, "finetune": 4, "seed": 0}
    prune_command(*how[:3], "-o", "plain.safetensors")
    tuned, again, plain = (
        load_pruned(here.network(), here.folder / f"{name}.safetensors").state_dict().values()
        for name in ("tuned", "again", "plain")
    )
    assert all(torch.equal(*pair) for pair in zip(tuned, again, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(tuned, plain, strict=True))
    row = next(line for line in out.splitlines() if line.startswith("accuracy, holdout"))
    found = about_pruned(here.folder / "tuned.safetensors")["holdout_accuracy"]
    assert row.split()[-1] == f"{found:.1%}"
    task = prepare(stored_options(load(here))).task
    small = load_pruned(here.network(), here.folder / "tuned.safetensors")
    assert accuracy(small, task.holdout.inputs, task.holdout.targets) == pytest.approx(found)


def test_masks_are_bools_of_each_layer(here):
    task = prepare(here.python_options).task
    masks = make_plan(task, Composite.uniform(RuleSpec("zplus")), 0.25).ranking.masks(0.25)
    assert {name: len(kept) for name, kept in masks.items()} == task.graph.units(task.units)
    assert sum(int((~kept).sum()) for kept in masks.values()) == int(np.floor(0.25 * sum(map(len, masks.values()))))
