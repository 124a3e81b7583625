"""The curve in chunks: the same numbers as in one go, nothing built twice, and stopped where it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize.evaluation import curve as racing
from pxp_optimize.optimize.evaluation.evaluate import evaluate
from pxp_optimize.optimize.evaluation.task import Images, Samples, Task
from pxp_optimize.pruning import auc, schedule

GAMMA = Composite.uniform(RuleSpec("gamma"))
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)


@pytest.fixture(scope="module")
def prepared(project) -> Task:
    """The small project with 53 search samples in 5 chunks, pruned in steps."""
    return project.prepared(rates=RATES, search_samples=53, holdout_samples=7, schedule="every:0.4").task


@pytest.fixture
def task(prepared) -> Task:
    """The same, with nothing measured yet."""
    return replace(prepared, curves={}, plans={}, unpruned={})


@given(st.lists(st.integers(0, 12), min_size=1, max_size=400))
def test_each_sample_is_in_one_chunk_and_each_chunk_has_its_share_of_every_class(labels):
    targets = torch.tensor(labels)
    rows = racing.chunks(targets)
    assert torch.cat(rows).sort().values.tolist() == list(range(len(labels)))
    assert 1 <= len(rows) <= racing.MOST_CHUNKS
    assert len(rows) == 1 or min(map(len, rows)) >= racing.LEAST_SAMPLES
    for counts in (map(len, rows), *([int((targets[r] == label).sum()) for r in rows] for label in set(labels))):
        counts = list(counts)
        assert max(counts) - min(counts) <= 1
    assert all(bool((r[1:] > r[:-1]).all()) for r in rows)


@pytest.mark.parametrize("room", [0, 3000, 2**30])
def test_a_race_to_the_end_gives_the_same_bits(task, room, monkeypatch):
    whole = evaluate(task, GAMMA)
    monkeypatch.setattr(racing, "KEPT_BYTES", room)
    told = []
    raced = evaluate(
        replace(task, curves={}, plans={}, unpruned={}), GAMMA, stop=lambda chunk, auc: bool(told.append((chunk, auc)))
    )
    assert (raced.accuracy, raced.auc, raced.chunks) == (whole.accuracy, whole.auc, whole.chunks)
    assert told == list(enumerate(whole.chunks, 1))
    assert len(told) == 5
    assert (raced.samples, raced.stopped) == (53, False)


def test_the_area_is_the_mean_of_the_chunks(task):
    found = evaluate(task, GAMMA)
    sizes = [len(rows) for rows in racing.chunks(task.search.targets)]
    assert sum(size * part for size, part in zip(sizes, found.chunks, strict=True)) / 53 == pytest.approx(found.auc)
    assert len(set(found.chunks)) > 1


def test_a_stopped_trial_has_the_curve_of_what_it_saw(task):
    found = evaluate(task, GAMMA, stop=lambda chunk, auc: chunk == 2)
    rows = torch.cat(racing.chunks(task.search.targets)[:2])
    inputs = Images(task.search.inputs.pixels[rows], task.search.inputs.mean, task.search.inputs.std)
    seen = evaluate(replace(task, curves={}, unpruned={}), GAMMA, Samples(inputs, task.search.targets[rows]))
    assert found.accuracy == seen.accuracy
    assert found.auc == auc(RATES, found.accuracy)
    assert (found.samples, found.stopped, len(found.chunks)) == (len(rows), True, 2)
    again = evaluate(task, GAMMA)  # what was stopped is no known curve
    assert (again.samples, again.stopped) == (53, False)
    assert again.chunks[:2] == found.chunks


@pytest.mark.parametrize("room", [0, 2**30])
def test_no_network_is_built_twice(task, room, monkeypatch):
    built = []
    make = schedule.pruned
    monkeypatch.setattr(schedule, "pruned", lambda *args: built.append(args) or make(*args))
    monkeypatch.setattr(racing, "KEPT_BYTES", room)
    evaluate(task, GAMMA, stop=lambda chunk, auc: False)
    assert len(built) == len(RATES)  # one a rate, of which the steps need one


def test_a_known_curve_is_not_raced_again(task):
    whole = evaluate(task, GAMMA)
    again = evaluate(task, GAMMA, stop=lambda chunk, auc: pytest.fail("measured again"))
    assert (again.accuracy, again.chunks, again.stopped) == (whole.accuracy, whole.chunks, False)
