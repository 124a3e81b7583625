"""The Python front door: the command's trials, from tensors, Datasets and DataLoaders, and a network left as it was."""

from __future__ import annotations

import copy
import doctest
import json
from pathlib import Path

import optuna
import pytest
import torch
from pxp_optimize import optimize as package
from pxp_optimize.attribution import load_composite
from pxp_optimize.optimize import Objective, UserError, front, load_pruned, optimize, prune
from pxp_optimize.optimize.evaluation.evaluate import evaluate
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import macs, trace
from pxp_optimize.studies.best import auc_of, best_trial
from pxp_optimize.studies.storage import open_storage
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

RATES = "0:0.9:0.3"
HOW = {"rates": RATES, "schedule": "every:0.3", "trials": 6, "device": "cpu", "quiet": True, "batch_size": 32}


@pytest.fixture(scope="module")
def prepared(project):
    """The project's task, as the command has it."""
    return project.prepared(rates=RATES)


@pytest.fixture(scope="module")
def network(project, prepared) -> nn.Module:
    model = project.network()
    model.load_state_dict(torch.load(project.folder / "weights.pt", weights_only=True))
    return model


def drawn(prepared, name: str) -> tuple[Tensor, Tensor]:
    """The samples that the command drew: bytes and targets."""
    samples = getattr(prepared.task, name)
    return samples.inputs.pixels, samples.targets


def floats(prepared, name: str) -> tuple[Tensor, Tensor]:
    """The same as the network takes them."""
    samples = getattr(prepared.task, name)
    return samples.inputs[0 : len(samples)], samples.targets


def given(prepared, form=drawn) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: form(prepared, name) for name in ("reference", "search", "holdout")}


def trials_of(study: optuna.Study) -> list:
    keys = ("composite", "accuracy", "ranking_hash")
    return [(trial.params, trial.values, *(trial.user_attrs[key] for key in keys)) for trial in study.trials]


def test_both_doors_give_the_same_trials(project, prepared, network, tmp_path):
    # without scoring again: the command has other images in its folder to do that by
    how = {**HOW, "trials": 12, "rescore": 1}
    options = ["--rates", RATES, "--trials", "12", "--batch-size", "32", "--rescore", "1", "--storage", "door.db", "-q"]
    assert project.run(*project.options, *options).returncode == 0
    storage = open_storage(str(project.folder / "door.db"))
    command = optuna.load_study(study_name=None, storage=storage)
    result = optimize(
        network,
        **given(prepared),
        mean=0.5,
        std=0.25,
        storage=str(tmp_path / "python.db"),
        **how,
    )
    assert trials_of(result.study) == trials_of(command)
    assert result.trial.number == best_trial(command).number
    assert result.study.user_attrs["holdout"] == command.user_attrs["holdout"]
    result.export(tmp_path / "python.json")
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / "python.json", project.folder / "best.json"))
    for document in (ours, theirs):
        document.pop("model")
        document["result"].pop("study")
        # times are never the same again; on a busy machine a small network may even seem slower
        assert document["result"]["saved"].pop("latency") < 1
    assert ours == theirs
    again = prune(network, tmp_path / "python.json", *floats(prepared, "reference"), 0.5)
    images = floats(prepared, "holdout")[0]
    assert torch.allclose(again(images), result.prune(rate=0.5)(images), atol=1e-4)


def test_tensors_a_dataset_and_a_loader_are_alike(prepared, network, tmp_path):
    pairs = given(prepared, floats)
    forms = {
        "tensors": pairs,
        "arrays": {name: (images.numpy(), targets.tolist()) for name, (images, targets) in pairs.items()},
        "double": {name: (images.double(), targets.int()) for name, (images, targets) in pairs.items()},
        "dataset": {name: TensorDataset(*pair) for name, pair in pairs.items()},
        "loader": {name: DataLoader(TensorDataset(*pair), batch_size=7) for name, pair in pairs.items()},
    }
    found = {
        form: trials_of(optimize(network, **data, storage=str(tmp_path / f"{form}.db"), **HOW).study)
        for form, data in forms.items()
    }
    for form, trials in found.items():
        assert trials == found["tensors"], form


def test_a_result_is_drawn_and_reported(prepared, network, tmp_path):
    result = optimize(network, **given(prepared, floats), storage=str(tmp_path / "a.db"), **{**HOW, "trials": 5})
    lines = {trace.name: trace for trace in result.plot().data}
    best = next(trace for name, trace in lines.items() if name.startswith("best") and "95" not in name)
    assert list(zip(best.x, best.y, strict=True)) == result.curve()
    assert list(result.plot("layers").data[0].y) == [
        f"{name} ({count})" for name, count in prepared.task.graph.units(prepared.task.units).items()
    ]
    result.report(tmp_path / "report.html")
    assert f"The best is trial {result.trial.number}" in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match="is the database"):
        result.report(tmp_path / "a.db", "html")


def test_what_goes_from_each_layer_is_what_the_masks_say(prepared, network, tmp_path):
    from pxp_optimize.optimize.evaluation.evaluate import plan_of

    result = optimize(network, **given(prepared, floats), storage=str(tmp_path / "a.db"), **{**HOW, "trials": 4})
    ranking = plan_of(result.prepared.task, result.composite).ranking
    assert list(result.study.user_attrs["units"].items()) == list(ranking.sizes.items())
    heat = result.plot("layers").data[0]
    for index, rate in enumerate(heat.x):
        gone = [1 - mask.float().mean().item() for mask in ranking.masks(rate).values()]
        assert [row[index] for row in heat.z] == pytest.approx(gone, abs=1e-4)


def test_the_network_is_left_as_it_was(prepared, network, tmp_path):
    model = copy.deepcopy(network).train()
    model[0][1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    result = optimize(model, **given(prepared, floats), storage=str(tmp_path / "a.db"), **{**HOW, "trials": 4})
    small = result.prune(rate=0.5)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in small.parameters())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_pruned_network_is_saved_and_loaded(prepared, network, tmp_path):
    result = optimize(network, **given(prepared, floats), storage=str(tmp_path / "a.db"), **{**HOW, "trials": 4})
    result.save_pruned(tmp_path / "small.safetensors", rate=0.3)
    images = floats(prepared, "holdout")[0]
    loaded = load_pruned(network, tmp_path / "small.safetensors")
    assert torch.equal(loaded(images), result.prune(rate=0.3)(images))
    with pytest.raises(ValueError, match="rate is 1"):
        result.prune(rate=1)
    with pytest.raises(ValueError, match="are ways to say how much goes"):
        result.save_pruned(tmp_path / "other.safetensors", rate=0.3, max_params=100)
    with pytest.raises(UserError, match="no pruned network, left as it is"):
        (tmp_path / "mine.pt2").write_text("mine")
        result.save_pruned(tmp_path / "mine.pt2")
    result.save_pruned(tmp_path / "small.pt2", max_params="0.5k", finetune=2)
    exported = torch.export.load(tmp_path / "small.pt2").module()
    small = result.prune(max_params=500, finetune=2)
    assert sum(parameter.numel() for parameter in small.parameters()) <= 500
    torch.testing.assert_close(exported(images), small(images))
    assert not torch.allclose(small(images), result.prune(max_params=500)(images))


def test_training_what_was_pruned_leaves_the_study_as_it_was(prepared, network, tmp_path):
    """A layer that has lost nothing is no one's but the user's."""
    result = optimize(network, **given(prepared, floats), storage=str(tmp_path / "a.db"), **{**HOW, "trials": 4})
    images = floats(prepared, "holdout")[0]
    for rate in (0.0, 0.1):
        small = result.prune(rate=rate)
        before = small(images).detach().clone()
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()
        assert torch.equal(result.prune(rate=rate)(images), before)


def test_a_composite_prunes_by_any_amount(prepared, network, tmp_path):
    common = {**HOW, "trials": 4, "objective": "macs", "schedule": "every:0.3"}
    result = optimize(network, **given(prepared, floats), storage=str(tmp_path / "a.db"), **common)
    result.export(tmp_path / "best.json")
    images, (inputs, targets) = floats(prepared, "holdout")[0], floats(prepared, "reference")
    for amount in ({"saved": 0.4}, {"max_params": "0.6k"}, {"max_macs": 50_000}, {"keep_accuracy": 0.8}, {}):
        small = prune(network, tmp_path / "best.json", inputs, targets, **amount)
        assert torch.allclose(small(images), result.prune(**amount)(images), atol=1e-4), amount


def test_a_part_of_the_cost_is_saved(prepared, network, tmp_path):
    data, images = given(prepared, floats), floats(prepared, "holdout")[0]
    common = {**HOW, "trials": 4, "schedule": "oneshot", "repair": "none"}
    by_units = optimize(network, **data, storage=str(tmp_path / "a.db"), **common)
    assert torch.equal(by_units.prune(saved=0.3)(images), by_units.prune(rate=0.3)(images))
    by_macs = optimize(network, **data, storage=str(tmp_path / "b.db"), objective="macs", **common)
    whole = macs(trace(network, images[:2]).network, images)
    parts = {saved: 1 - macs(by_macs.prune(saved=saved), images) / whole for saved in (0.25, 0.5, 0.75)}
    units = whole / 40  # no unit costs much more than the mean one
    for saved, found in parts.items():
        assert saved <= found < saved + 3 * units / whole
    for wrong in ({"saved": 1.0}, {"saved": -0.1}, {"saved": 0.5, "rate": 0.5}):
        with pytest.raises(ValueError, match="saved"):
            by_macs.prune(**wrong)


def test_a_result_says_what_was_found(prepared, network, tmp_path, capsys):
    result = optimize(network, **given(prepared, floats), storage=str(tmp_path / "a.db"), **{**HOW, "quiet": False})
    shown = capsys.readouterr().err
    assert "12 filters" not in shown
    assert "6 of 6 trials" in shown
    assert "--data" not in shown  # options of the command only
    rates, accuracy = zip(*result.curve(), strict=True)
    assert rates == prepared.task.rates
    assert list(accuracy) == result.study.user_attrs["holdout"][str(result.trial.number)]["accuracy"]
    assert result.table().row_count >= 5
    lines = result.compare(seeds=2)
    assert [line.name for line in lines][:2] == [f"best (trial {result.trial.number})", "epsilon"]
    with pytest.raises(UserError, match="is there and no composite"):
        (tmp_path / "notes.json").write_text('{"a": 1}')
        result.export(tmp_path / "notes.json")


def test_a_study_goes_on(prepared, network, tmp_path):
    data, storage = given(prepared, floats), str(tmp_path / "a.db")
    whole = optimize(network, **data, storage=str(tmp_path / "b.db"), **HOW)
    optimize(network, **data, storage=storage, **{**HOW, "trials": 4})
    assert trials_of(optimize(network, **data, storage=storage, **HOW).study) == trials_of(whole.study)
    other = {**data, "search": data["holdout"]}
    with pytest.raises(UserError, match="was made with other settings"):
        optimize(network, **other, storage=storage, **HOW)


def test_fewer_samples_are_drawn_class_by_class(prepared, network, tmp_path):
    images, targets = floats(prepared, "search")
    result = optimize(
        network,
        reference=floats(prepared, "reference"),
        search=(images, targets),  # a half of which is the holdout
        reference_samples=4,
        search_samples=9,
        storage=str(tmp_path / "a.db"),
        **{**HOW, "trials": 4},
    )
    task = result.prepared.task
    assert task.reference.targets.bincount().tolist() == [4, 4, 4]
    assert task.search.targets.bincount().tolist() == [3, 3, 3]
    rows = {tuple(image.flatten().tolist()) for image in images}
    of = {
        name: {tuple(i.flatten().tolist()) for i in getattr(task, name).inputs.pixels} for name in ("search", "holdout")
    }
    assert of["search"] <= rows and of["holdout"] <= rows and not of["search"] & of["holdout"]
    assert len(of["holdout"]) == len(images) // 2


@pytest.mark.parametrize("shape", [(1, 12, 10), (4, 9, 14)])
def test_images_of_other_shapes(shape, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(shape[0], 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    data = torch.randint(0, 256, (30, *shape), dtype=torch.uint8), torch.arange(30) % 3
    result = optimize(model, reference=data, search=data, mean=0.5, std=0.5, storage=str(tmp_path / "a.db"), **HOW)
    assert result.prepared.task.reference.inputs[0:2].shape == (2, *shape)
    result.save_pruned(tmp_path / "small.safetensors", rate=0.5)
    scaled = (data[0].float() / 255 - 0.5) / 0.5
    loaded = load_pruned(model, tmp_path / "small.safetensors")
    assert torch.equal(loaded(scaled), result.prune(rate=0.5)(scaled))


def test_an_objective_is_optunas_own(prepared, network):
    objective = Objective(
        network,
        reference=floats(prepared, "reference"),
        search=floats(prepared, "search"),
        rates=RATES,
        quiet=True,
        device="cpu",
    )
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=3))
    study.optimize(objective, n_trials=4)
    for trial in study.trials:
        composite = objective.composite(trial)
        assert load_composite(composite.to_dict()) == composite
        assert trial.value == evaluate(objective.tasks[0], composite).auc
        assert len(trial.user_attrs["accuracy"]) == len(objective.tasks[0].rates)
    assert len({str(trial.params) for trial in study.trials}) == 4


def test_an_objective_of_two_values(prepared, network):
    data = floats(prepared, "search")
    objective = Objective(network, reference=data, search=data, objective=["auc", "macs"], rates=RATES, quiet=True)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert all(len(trial.values) == 2 for trial in study.trials)


def test_a_trial_that_is_not_finite_fails_alone(prepared, network, monkeypatch):
    data = floats(prepared, "search")
    objective = Objective(network, reference=data, search=data, rates=RATES, quiet=True)
    from pxp_optimize.pruning import NotFinite

    def fail(*_: object) -> None:
        raise NotFinite("relevance is not finite")

    monkeypatch.setattr(front, "mean_evaluation", fail)
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]
    assert study.trials[0].user_attrs["error"] == "relevance is not finite"


X, Y = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
BAD = {
    "no pair": ({"reference": 5}, "reference: int is no pair"),
    "three of them": ({"reference": [(X, Y, Y)]}, r"batches are pairs \(inputs, targets\)"),
    "flat": ({"search": (X[:, 0], Y)}, r"search: inputs of shape \(12, 16, 16\)"),
    "float targets": ({"search": (X, Y.float())}, "give class indices"),
    "one hot": ({"search": (X, nn.functional.one_hot(Y))}, "give class indices"),
    "fewer targets": ({"search": (X, Y[:5])}, "12 inputs and 5 targets"),
    "none": ({"search": (X[:0], Y[:0])}, "at least one"),
    "nan": ({"search": (X * float("nan"), Y)}, "not finite"),
    "a class too many": ({"search": (X, Y + 1)}, "targets reach from 0 to 3, but the outputs of Sequential are 0 to 2"),
    "other holdout": ({"holdout": (X[:, :, :8], Y)}, "holdout: inputs of shape"),
    "channels": ({"reference": (X[:, :2], Y), "search": (X[:, :2], Y)}, "does not take inputs of shape"),
    "mean of floats": ({"mean": 0.5}, "mean and std are for images of whole numbers"),
    "large numbers": ({"reference": ((X * 1000).int(), Y)}, "whole numbers from 0 to 255"),
    "unknown option": ({"trails": 5}, "unknown option 'trails': did you mean trials"),
    "bad option": ({"rates": [0.5]}, "rates: .* has fewer than two rates"),
    "an option of the command": ({"weights": "a.pt"}, "weights is an option of the command"),
    "units": ({"units": "heads"}, "the model has no heads to prune"),
    "contradiction": ({"draws": 2, "pruner": "median"}, "--pruner median races on one draw"),
    "too many": ({"search_samples": 50}, "search_samples is 50"),
    "storage": ({"storage": "no/such/folder.db"}, "there is no folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes, message = BAD[case]
    with pytest.raises(UserError, match=message) as error:
        optimize(network, **{"reference": (X, Y), "search": (X, Y), **HOW, "storage": "a.db", **changes})
    assert "\n" not in str(error.value)


def test_the_command_refuses_a_study_that_python_made(project, prepared, network):
    storage = str(project.folder / "given.db")
    result = optimize(network, **given(prepared, floats), storage=storage, study="mine", **{**HOW, "trials": 4})
    for command in ("compare", "prune"):
        refused = project.run(command, "--storage", "given.db")
        assert refused.returncode == 2
        assert refused.stderr.startswith("Error: study 'mine' was made in Python")
    exported = project.run("export", "--storage", "given.db", "-o", "mine.json")
    assert exported.returncode == 0
    assert load_composite(project.folder / "mine.json").groups == result.composite.groups
    assert json.loads((project.folder / "mine.json").read_text())["result"]["trial"] == result.trial.number


def test_names_are_imported_when_they_are_asked_for():
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        package.optimise  # noqa: B018


def test_what_was_documented_before_is_where_it_was():
    from pxp_optimize.optimize.apply import prune as first_prune
    from pxp_optimize.optimize.pruned import load_pruned as first_load

    assert first_prune is prune and first_load is load_pruned


def test_docstrings_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(front)
    assert found.attempted > 10
    assert found.failed == 0


def test_the_names_of_prepare_and_given_agree(project, prepared, small_options):
    """What both doors keep of the samples is the same, so that their studies can be told apart by nothing else."""
    mark = prepare(small_options.changed(rates=RATES)).fingerprint
    assert mark["samples"] == prepared.fingerprint["samples"]


def test_a_cost_as_the_objective(prepared, network, tmp_path):
    how = {**HOW, "trials": 10, "objective": "params"}
    result = optimize(network, **given(prepared, floats), storage=str(tmp_path / "a.db"), **how)
    assert [trial.value for trial in result.study.trials] != [auc_of(trial) for trial in result.study.trials]
    assert "area,\nholdout" in [column.header for column in result.table().columns]
    priced = next(t for t in result.study.trials if t.user_attrs.get("fixed") == "zplus, priced")
    data = {name: floats(prepared, name) for name in ("reference", "search")}
    objective = Objective(network, **data, **{key: value for key, value in how.items() if key != "trials"})
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    groups = priced.user_attrs["composite"]["groups"]
    study.enqueue_trial(
        {
            **{f"{group}.rule": "zplus" for group in groups},
            "aggregation": "abs",
            "normalization": "none",
            "cost_exponent": 1.0,
        }
    )
    study.optimize(objective, n_trials=2)
    assert study.trials[0].value == pytest.approx(priced.value)
    assert auc_of(study.trials[0]) == pytest.approx(auc_of(priced))
    assert 0 <= study.trials[1].params["cost_exponent"] <= 1.5
