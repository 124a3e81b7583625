"""Intervals and differences: exact where theory is, right as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pxp_optimize.pruning import area_saved, auc, saved_at, sparsity_at
from pxp_optimize.studies.bootstrap import estimate, holm, measures
from scipy import stats

RATES = [0.0, 0.2, 0.5, 0.9]
RIGHT = arrays(bool, st.tuples(st.integers(1, 4), st.just(len(RATES)), st.integers(1, 30)))


@given(arrays(float, (3, 4), elements=st.floats(0, 1)))
def test_measures_are_those_of_the_study(curves):
    found = measures(curves, RATES, 0.95)
    for row, curve in zip(found, curves, strict=True):
        assert row[0] == pytest.approx(auc(RATES, curve.tolist()))
        assert row[1] == sparsity_at(RATES, curve.tolist(), 0.95)
        assert row[2:].tolist() == curve.tolist()


@given(arrays(float, (5, 2, 6), elements=st.floats(0, 1)), arrays(float, (2, 5), elements=st.floats(0, 1)))
def test_measures_over_a_cost_are_those_of_the_study(curves, falls):
    costs = np.concatenate([np.ones((2, 1)), np.sort(falls)[:, ::-1]], 1)  # two networks beyond the rates
    found = measures(curves, RATES, 0.95, costs)
    for rows, of_draws in zip(found, curves, strict=True):
        for row, curve, of_draw in zip(rows, of_draws.tolist(), costs.tolist(), strict=True):
            assert row[0] == pytest.approx(area_saved(of_draw, curve))
            assert row[1] == saved_at(of_draw, curve, 0.95)
            assert row[2:].tolist() == curve[:4]


@settings(max_examples=30)
@given(RIGHT, st.integers(0, 3))
def test_an_interval_holds_its_estimate_and_a_method_equals_itself(right, seed):
    found = estimate({"a": right, "same": right.copy()}, "a", RATES, 0.95, seed=seed, resamples=50)
    level, zero = found.level["same"], found.difference["same"]
    assert np.allclose(level.value, measures(right.mean(-1), RATES, 0.95).mean(0))
    assert (level.low <= level.value).all()
    assert (level.value <= level.high).all()
    assert (level.low >= 0).all()
    assert (level.high <= 1).all()
    for values in (zero.value, zero.low, zero.high):
        assert (values == 0).all()
    assert (zero.p == 1).all()
    assert found.by_draw["a"] == pytest.approx(measures(right.mean(-1), RATES, 0.95)[:, 0].tolist())


def test_one_proportion_is_binomial():
    right = np.zeros((1, 2, 500), dtype=bool)
    right[:, :, :150] = True
    found = estimate({"a": right}, "a", [0.0, 0.5], 0.95, seed=0, resamples=4000).level["a"]
    half = stats.t.ppf(0.975, 499) * np.sqrt(0.3 * 0.7 / 500)
    assert found.high[2] - found.value[2] == pytest.approx(half, rel=0.05)
    assert found.value[2] - found.low[2] == pytest.approx(half, rel=0.05)


def test_draws_that_differ_widen_the_interval_as_their_mean_varies():
    """No image differs from another, so that all of the variance is the draws': a t interval of their mean."""
    values = np.array([0.9, 0.8, 0.7, 0.85])
    right = np.zeros((4, 2, 20_000), dtype=bool)
    for draw, value in enumerate(values):
        right[draw, :, : int(value * 20_000)] = True
    found = estimate({"a": right}, "a", [0.0, 0.5], 0.95, seed=1, resamples=4000).level["a"]
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert found.value[2] == pytest.approx(values.mean())
    assert found.high[2] - found.value[2] == pytest.approx(min(half, 1 - values.mean()), rel=0.05)
    assert found.value[2] - found.low[2] == pytest.approx(half, rel=0.08)


def test_what_goes_up_and_down_together_is_told_apart():
    """Paired: images are hard for both methods, so that their levels overlap and their difference does not."""
    rng = np.random.default_rng(0)
    easy = rng.random((1, 1, 300)) < 0.6
    a = np.repeat(np.repeat(easy, 2, 1), 3, 0)
    b = a & (rng.random(a.shape) < 0.95)
    found = estimate({"a": a, "b": b}, "a", [0.0, 0.5], 0.95, seed=0, resamples=1000)
    assert found.level["b"].high[0] > found.level["a"].low[0]
    assert found.difference["b"].high[0] < 0
    assert found.difference["b"].p[0] < 0.01


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Two methods of one true accuracy, images and draws drawn anew each time: 95 % of the intervals hold 0."""
    rng = np.random.default_rng(0)
    held = 0
    for repetition in range(150):
        hardness = rng.normal(size=(1, 1, 150))
        right = {
            name: rng.normal(0, 0.15, (3, 1, 1)) + rng.normal(size=(3, 2, 150)) - hardness > -0.5 for name in ("a", "b")
        }
        difference = estimate(right, "a", [0.0, 0.5], 0.95, seed=repetition, resamples=200).difference["b"]
        held += difference.low[0] <= 0 <= difference.high[0]
    assert held / 150 >= 0.92


def test_the_seed_repeats_it_and_chunks_change_nothing(monkeypatch):
    from pxp_optimize.studies import bootstrap

    right = {name: np.random.default_rng(name == "a").random((3, 4, 40)) < 0.7 for name in ("a", "b")}
    first = estimate(right, "a", RATES, 0.95, seed=5, resamples=200)
    monkeypatch.setattr(bootstrap, "_CHUNK", 400)
    again = estimate(right, "a", RATES, 0.95, seed=5, resamples=200)
    other = estimate(right, "a", RATES, 0.95, seed=6, resamples=200)
    for name in right:
        assert np.array_equal(first.level[name].low, again.level[name].low)
        assert not np.array_equal(first.level[name].low, other.level[name].low)


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_what_takes_longer_saves_less_than_nothing():
    """An interval holds its estimate, also below zero."""
    right = np.ones((2, 3, 40), bool)
    right[:, 2, :30] = False  # the last network keeps too little
    costs = np.array([[1.0, 1.1, 0.5], [1.0, 1.3, 0.5]])
    found = estimate({"a": right}, "a", [0.0, 0.3, 0.6], 0.95, seed=0, costs={"a": costs}).level["a"]
    assert found.value[1] == pytest.approx(-0.2)
    assert found.low[1] < -0.2 < found.high[1]
