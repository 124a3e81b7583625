"""A trial on a small network: what it measures, and that nothing is measured twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance
from pxp_optimize.optimize.evaluation.evaluate import Baseline, evaluate, plan_of
from pxp_optimize.optimize.evaluation.task import Task
from pxp_optimize.optimize.study.apply import prune
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import accuracy, auc, correct_each, masked_model, pruned, rank
from pxp_optimize.pruning.widths import Pace

RATES = (0.0, 0.2, 0.4, 0.6, 0.8)


@pytest.fixture
def make_task(small_options):
    """A task of the small project, with other options if given."""
    options = small_options.changed(rates=RATES, schedule="oneshot", repair="none")
    return lambda **changes: prepare(options.changed(**changes)).task


GAMMA = Composite.uniform(RuleSpec("gamma"))


def test_once_is_the_papers_pipeline(make_task):
    task: Task = make_task()
    found = evaluate(task, GAMMA)
    reference = task.reference
    relevance = collect_relevance(task.graph, GAMMA, reference.inputs, reference.targets, "filters")
    ranking = rank(relevance)
    curve = [
        accuracy(masked_model(task.graph, ranking.masks(rate)), task.search.inputs, task.search.targets)
        for rate in RATES
    ]
    assert found.accuracy == curve
    assert found.auc == auc(RATES, curve)
    assert found.ranking_hash == ranking.digest(RATES)
    assert set(found.seconds) == {"relevance", "evaluation"}


@pytest.mark.parametrize("schedule", ["oneshot", "every:0.2"])
@pytest.mark.parametrize("repair", ["none", "batchnorm", "least-squares"])
def test_what_is_measured_is_what_pruned_gives(make_task, schedule, repair):
    task: Task = make_task(schedule=schedule, repair=repair)
    found = evaluate(task, GAMMA, task.holdout)
    ranking = plan_of(task, GAMMA).ranking
    for rate, measured in zip(RATES, found.accuracy, strict=True):
        network = pruned(task.graph, ranking.masks(rate), task.repair).network
        assert measured == accuracy(network, task.holdout.inputs, task.holdout.targets)


def test_steps_and_repair_make_a_difference(make_task):
    plain, stepped = evaluate(make_task(), GAMMA), evaluate(make_task(schedule="every:0.2", repair="batchnorm"), GAMMA)
    assert plain.accuracy[0] == stepped.accuracy[0]
    assert plain.ranking_hash != stepped.ranking_hash


def test_the_plain_form_of_a_task(make_task):
    task: Task = make_task(schedule="every:0.2", repair="batchnorm")
    assert task.repair_name == "batchnorm"
    assert evaluate(task.plain(), GAMMA).accuracy == evaluate(make_task(), GAMMA).accuracy


def test_the_same_masks_are_measured_once(make_task, monkeypatch):
    task: Task = make_task()
    first = evaluate(task, GAMMA)
    monkeypatch.setattr(
        "pxp_optimize.optimize.evaluation.curve.correct_each", lambda *a, **k: pytest.fail("measured again")
    )
    again = evaluate(task, replace(GAMMA, normalization="none"))
    assert again.accuracy == first.accuracy


def test_the_unpruned_network_is_measured_once(make_task, monkeypatch):
    from pxp_optimize.optimize.evaluation import curve as racing

    seen = []
    monkeypatch.setattr(
        racing, "correct_each", lambda family, *a, **k: seen.extend(family.networks) or correct_each(family, *a, **k)
    )
    task: Task = make_task()
    evaluate(task, GAMMA)
    evaluate(task, Baseline("random", 1))
    evaluate(task, Baseline("random", 2))
    assert seen.count(task.graph.network) == 1
    assert len(seen) == 1 + 3 * (len(RATES) - 1)


def test_accuracies_are_measured_in_the_tasks_precision(make_task, monkeypatch):
    """Every one of them, and what was measured in another precision is not taken for it."""
    from pxp_optimize.optimize.evaluation import curve as racing

    seen = []
    monkeypatch.setattr(
        racing,
        "correct_each",
        lambda family, *arguments, precision, **named: (
            seen.extend([precision] * len(family)) or correct_each(family, *arguments, precision=precision, **named)
        ),
    )
    task: Task = make_task(precision="bf16")
    coarse = evaluate(task, GAMMA)
    assert seen == ["bf16"] * len(RATES)
    exact = evaluate(replace(task, precision="fp32"), GAMMA)
    assert seen == ["bf16"] * len(RATES) + ["fp32"] * len(RATES)
    assert exact.ranking_hash == coarse.ranking_hash == evaluate(make_task(), GAMMA).ranking_hash
    assert exact.accuracy == evaluate(make_task(), GAMMA).accuracy


@pytest.mark.parametrize("schedule", ["oneshot", "every:0.2"])
def test_baselines_take_the_same_way(make_task, schedule):
    task: Task = make_task(schedule=schedule, repair="batchnorm")
    for criterion in ("magnitude", "taylor", "random"):
        found = evaluate(task, Baseline(criterion))
        assert found.accuracy[0] == evaluate(task, GAMMA).accuracy[0]
        assert 0 < found.auc < 1


def test_masked_classes_do_not_compete(make_task):
    task: Task = make_task(classes="red,0")
    everything = replace(task, logits=None, curves={}, plans={}, unpruned={})
    assert task.logits is not None
    assert evaluate(task, GAMMA).accuracy[0] >= evaluate(everything, GAMMA).accuracy[0]
    assert torch.isin(task.search.targets, task.logits).all()


@pytest.mark.parametrize(
    ("schedule", "repair"), [("oneshot", "none"), ("every:0.2", "batchnorm"), ("every:0.2", "least-squares")]
)
def test_the_smaller_network_is_the_one_that_was_measured(make_task, schedule, repair, project, monkeypatch):
    monkeypatch.setattr("pxp_optimize.pruning.repair.images.MOST_IMAGES", 5)  # repairs read every second or third image
    task: Task = make_task(schedule=schedule, repair=repair)
    module = project.network()
    module.load_state_dict(torch.load(project.folder / "weights.pt", weights_only=True))
    document = {
        "format": "pxp-composite/1",
        "units": "filters",
        **GAMMA.to_dict(),
        "pruning": {"schedule": schedule, "repair": repair},
    }
    measured = evaluate(task, GAMMA, task.holdout).accuracy
    for rate, expected in zip(RATES, measured, strict=True):
        small = prune(module.eval(), document, task.reference.inputs, task.reference.targets, rate)
        assert accuracy(small, task.holdout.inputs, task.holdout.targets) == expected


@pytest.mark.parametrize("cost", ["macs", "params", "latency"])
def test_prices_rank_the_same_from_the_document(make_task, cost, project):
    """By what is in the document alone: also the pace of the layers, which no second measurement would give."""
    task: Task = make_task(schedule="every:0.2", repair="least-squares")
    paces = (
        {}
        if cost != "latency"
        else {
            name: Pace(1e-9 * (1 + index), *(((4, 5, size), (0.5, 1.0, 1.0)) if size > 5 else ()))
            for index, (name, size) in enumerate(task.graph.sizes.items())
        }
    )
    priced = replace(GAMMA, cost_exponent=1.5, cost=cost, paces=paces)
    module = project.network()
    module.load_state_dict(torch.load(project.folder / "weights.pt", weights_only=True))
    how = {"schedule": "every:0.2", "repair": "least-squares"}
    document = {"format": "pxp-composite/1", "units": "filters", **priced.to_dict(), "pruning": how}
    measured = evaluate(task, priced, task.holdout)
    assert measured.ranking_hash != evaluate(task, GAMMA, task.holdout).ranking_hash
    for rate, expected in zip(RATES, measured.accuracy, strict=True):
        small = prune(module.eval(), document, task.reference.inputs, task.reference.targets, rate)
        assert accuracy(small, task.holdout.inputs, task.holdout.targets) == expected


@pytest.mark.parametrize("repair", ["none", "batchnorm", "least-squares"])
def test_a_trial_keeps_no_networks_but_those_of_its_steps(make_task, repair, monkeypatch):
    import gc
    import weakref

    from pxp_optimize.optimize.evaluation import curve as racing
    from pxp_optimize.pruning import Network
    from pxp_optimize.pruning import shared_forward as family

    task: Task = make_task(schedule="every:0.2", repair=repair)
    networks: weakref.WeakSet = weakref.WeakSet()
    made = Network.__init__

    def init(self, *arguments):
        made(self, *arguments)
        networks.add(self)

    monkeypatch.setattr(Network, "__init__", init)
    alive = []

    def counting(*arguments, **named):
        gc.collect()
        alive.append(len(networks))
        return correct_each(*arguments, **named)

    monkeypatch.setattr(family, "GROUP_BYTES", 0)
    monkeypatch.setattr(racing, "correct_each", counting)
    evaluate(task, GAMMA)
    steps = len(task.schedule.starts(RATES[-1])) - 1
    assert len(alive) == len(RATES)
    assert max(alive) <= steps + 1  # one that is measured now, and was not built on the way
    gc.collect()
    assert len(networks) == 0
    assert not task.plans[repr(GAMMA)].made


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("repair", ["none", "batchnorm", "least-squares"])
def test_a_trial_on_cuda_is_that_of_the_cpu(make_task, repair):
    task, other = (make_task(schedule="every:0.2", repair=repair, device=device) for device in ("cpu", "cuda"))
    expected, found = evaluate(task, GAMMA), evaluate(other, GAMMA)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=2 / len(task.search))
    masks = plan_of(task, GAMMA).ranking.masks(0.4)
    cpu = pruned(task.graph, masks, task.repair).network
    cuda = pruned(other.graph, {name: kept.cuda() for name, kept in masks.items()}, other.repair).network
    images = task.search.inputs[0:30]
    assert torch.allclose(cuda(images.cuda()).cpu(), cpu(images), rtol=1e-3, atol=1e-3)
