"""A study of the user's own: its pruner is asked, its options stay out of the objective, its trials prune networks."""

import json

import optuna
import pytest
import torch
from optuna.pruners import MedianPruner, NopPruner, PercentilePruner, WilcoxonPruner
from optuna.trial import TrialState
from pxp_optimize.attribution import load_composite
from pxp_optimize.optimize import Objective, UserError, prune
from pxp_optimize.optimize.search.pruners import asking, mean_auc
from torch import nn


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )
    images = torch.randn(60, 3, 8, 8)
    with torch.no_grad():  # a network that is always right and gives either class half the time, until it is pruned
        logits = model(images)
        model[-1].bias[0] -= (logits[:, 0] - logits[:, 1]).median()
        classes = model(images).argmax(1)
    return Objective(
        model,
        reference=(images[:10], classes[:10]),
        search=(images, classes),
        rates="0:0.9:0.3",
        schedule="oneshot",
        repair="none",
        device="cpu",
        quiet=True,
    )


def studied(objective, pruner, trials=6):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    study.optimize(objective, n_trials=trials)
    return study.trials


class Twice(optuna.pruners.BasePruner):
    """Stops every trial at its second report."""

    def prune(self, study, trial):
        return trial.last_step == 2


def test_the_pruner_stops_trials(objective):
    objective.tasks[0].curves.clear()
    whole = studied(objective, NopPruner())
    assert {trial.state for trial in whole} == {TrialState.COMPLETE}
    assert not any(trial.intermediate_values for trial in whole)
    objective.tasks[0].curves.clear()
    stopped = studied(objective, Twice())
    assert {trial.state for trial in stopped} == {TrialState.PRUNED}
    assert all(sorted(trial.intermediate_values) == [1, 2] for trial in stopped)


@pytest.mark.parametrize("pruner", [MedianPruner(n_startup_trials=99), PercentilePruner(100.0)])
def test_the_last_report_is_the_value(objective, pruner):
    objective.tasks[0].curves.clear()
    trial = studied(objective, pruner, 1)[0]
    assert sorted(trial.intermediate_values) == list(range(1, len(objective.chunks) + 1))
    assert trial.intermediate_values[len(objective.chunks)] == pytest.approx(trial.value, abs=1e-9)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_wilcoxon_is_told_each_chunk(objective):
    objective.tasks[0].curves.clear()
    trial = studied(objective, WilcoxonPruner(), 1)[0]
    aucs = [trial.intermediate_values[chunk] for chunk in range(1, len(objective.chunks) + 1)]
    assert mean_auc(aucs, objective.chunks) == pytest.approx(trial.value, abs=1e-5)
    assert aucs[-1] != pytest.approx(trial.value, abs=1e-5)


def test_nothing_is_asked_without_a_study(objective):
    params = objective_params(objective)
    fixed = optuna.trial.FixedTrial(params)
    assert asking(fixed, objective.chunks) is None
    assert 0 <= objective(fixed) <= 1


def objective_params(objective):
    return studied(objective, NopPruner(), 1)[0].params


@pytest.mark.parametrize("option", ["trials", "sampler", "pruner", "storage", "study"])
def test_what_is_the_studys_own_is_refused(option):
    with pytest.raises(UserError, match=f"{option} is the study's own"):
        Objective(nn.Identity(), reference=(), search=(), **{option: "x"})


def test_prune_gives_the_network_that_a_trial_measured(objective):
    trial = studied(objective, NopPruner())[3]
    rates = objective.tasks[0].rates
    samples = objective.tasks[0].search
    for rate, accuracy in zip(rates, trial.user_attrs["accuracy"], strict=True):
        found = objective.prune(trial, rate=rate)(samples.inputs[:]).argmax(1) == samples.targets
        assert found.double().mean().item() == pytest.approx(accuracy, abs=1e-9)
    assert len({round(accuracy, 6) for accuracy in trial.user_attrs["accuracy"]}) > 1


def test_a_trial_is_exported_with_what_it_was_measured_with(objective, tmp_path):
    objective.tasks[0].curves.clear()
    trial = studied(objective, NopPruner(), 2)[1]
    objective.export(trial, tmp_path / "mine.json")
    document = json.loads((tmp_path / "mine.json").read_text())
    assert document["pruning"] == {"schedule": "oneshot", "repair": "none"}
    assert document["result"]["auc"] == trial.value
    assert set(document["layers"]) == set(objective.prepared.layers)
    assert load_composite(document).groups == objective.composite(trial).groups
    task = objective.tasks[0]
    images = task.reference.inputs[0 : len(task.reference)]
    model = task.graph.network
    again = prune(model, tmp_path / "mine.json", images, task.reference.targets, 0.6)
    assert torch.allclose(again(images), objective.prune(trial, rate=0.6)(images), atol=1e-5)
