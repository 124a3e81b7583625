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
from pxp_optimize.optimize.evaluation.phases import HOLDOUT
from pxp_optimize.optimize.evaluation.task import Images, Samples, Task, Unseen
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


FINE = tuple(round(0.05 * index, 2) for index in range(19))


@pytest.fixture(scope="module")
def fine(project) -> Task:
    """The same with rates near each other."""
    return project.prepared(rates=FINE, search_samples=53, holdout_samples=7, schedule="every:0.2").task


@pytest.mark.parametrize("flat", [0.001, 0.05, 0.1])
def test_what_lies_between_equal_accuracies_is_not_measured(fine, flat, monkeypatch):
    built = []
    make = schedule.pruned
    unseen = [Unseen("holdout", fine.holdout, 0.0, HOLDOUT)]
    whole = evaluate(replace(fine, flat=0.0, curves={}, plans={}, unpruned={}), GAMMA, unseen=unseen)
    holdout = whole.unseen["holdout"].accuracy
    monkeypatch.setattr(schedule, "pruned", lambda *args: built.append(args) or make(*args))
    found = evaluate(replace(fine, flat=flat, curves={}, plans={}, unpruned={}), GAMMA, unseen=unseen)
    left_out = [
        index for index in range(1, 18, 2) if abs(whole.accuracy[index + 1] - whole.accuracy[index - 1]) <= flat
    ]
    assert 0 < len(left_out) < 9
    assert len(built) == len(FINE) - len(left_out)
    for accuracy, measured in ((found.accuracy, whole.accuracy), (found.unseen["holdout"].accuracy, holdout)):
        expected = [
            (measured[index - 1] + measured[index + 1]) / 2 if index in left_out else value
            for index, value in enumerate(measured)
        ]
        assert accuracy == pytest.approx(expected, abs=1e-12)
    assert found.auc == pytest.approx(auc(FINE, found.accuracy), abs=1e-12)
    sizes = [len(rows) for rows in racing.chunks(fine.search.targets)]
    assert sum(size * part for size, part in zip(sizes, found.chunks, strict=True)) / 53 == pytest.approx(found.auc)


def test_a_curve_that_falls_everywhere_is_measured_as_a_whole(fine):
    whole = evaluate(replace(fine, flat=0.0, curves={}, plans={}, unpruned={}), GAMMA)
    steps = [abs(a - b) for a, b in zip(whole.accuracy[:-2:2], whole.accuracy[2::2], strict=True)]
    some = replace(fine, flat=min(step for step in steps if step) / 2, curves={}, plans={}, unpruned={})
    found = evaluate(some, GAMMA)
    falls = [2 * index + 1 for index, step in enumerate(steps) if step]
    assert [found.accuracy[index] for index in falls] == [whole.accuracy[index] for index in falls]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        (FINE, list(range(1, 18, 2))),
        ((*FINE, 0.95), list(range(1, 18, 2))),  # the last is always measured
        ((0.0, 0.1, 0.2, 0.3), []),
        ((0.0, 0.05, 0.5, 0.51, 0.52), [3]),
        ((0.0, 0.05), []),
    ],
)
def test_which_rates_may_be_left_out(rates, expected):
    assert racing.between(rates) == expected
