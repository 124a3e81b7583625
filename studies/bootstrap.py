"""How sure a comparison on few samples is: intervals by the bootstrap, paired differences, Holm's correction.

Two things are drawn by chance: the reference images that rank the units (draws), and the holdout images that measure
what is left. A resample takes both anew, and the same for every method, so that differences are paired (the
"pigeonhole" bootstrap of Owen 2007). Images are resampled plainly, not class by class: that is right also where a
class has a single image. Of D draws, D - 1 are taken (Rao and Wu 1988), since D of D would give a variance too small
by (D - 1) / D. Draws are few, so an interval is the estimate and the resamples' standard deviation times Student's t,
with the degrees of freedom of the two parts together (Satterthwaite 1946): percentiles of three draws promise too much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

from ..pruning.cost import area_saved

Array = NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
_CHUNK = 4_000_000
"""Counts of images in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """Values with their intervals, each an array of one shape. p: two-sided, of the values being 0."""

    value: Array
    low: Array
    high: Array
    p: Array


@dataclass(frozen=True)
class Estimates:
    """What `estimate` found: of each method, and of each method's difference to the one that is compared with.

    by_draw: the AUC of each method with each draw.
    """

    level: dict[str, Estimate]
    difference: dict[str, Estimate]
    by_draw: dict[str, list[float]]


def measures(accuracy: Array, rates: Sequence[float], kept: float, costs: Array | None = None) -> Array:
    """AUC, sparsity and the accuracies themselves, of curves (..., rates): shape (..., 2 + rates).

    The definitions of `pruning.auc` and `pruning.sparsity_at`, for many curves at once. kept: the part of the
    unpruned accuracy that the sparsity keeps. costs: of the networks of each draw as parts of the unpruned one's, shape
    (draws, networks), of curves (..., draws, networks) that may go on beyond the rates: then `pruning.area_saved` and
    `pruning.saved_at`.
    """
    useful = np.cumprod(accuracy >= kept * accuracy[..., :1], axis=-1).sum(-1)
    if costs is None:
        area = trapezoid(accuracy, rates, axis=-1) / (rates[-1] - rates[0])
        sparsity = np.asarray(rates)[useful - 1]
    else:
        # the area is linear in the accuracies: each counts as much as the area of a curve that is 1 there only
        alone = np.eye(accuracy.shape[-1]).tolist()
        weights = np.array([[area_saved(of_draw, one) for one in alone] for of_draw in costs.tolist()])
        area = (accuracy * weights).sum(-1)
        saved = np.broadcast_to(1 - costs, accuracy.shape)
        sparsity = np.take_along_axis(saved, useful[..., None] - 1, -1)[..., 0]
    return np.concatenate([area[..., None], sparsity[..., None], accuracy[..., : len(rates)]], -1)


def estimate(
    correct: Mapping[str, NDArray[np.bool_]],
    against: str,
    rates: Sequence[float],
    kept: float,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    costs: Mapping[str, Array] | None = None,
) -> Estimates:
    """The `measures` of each method with their intervals, and their differences to those of one method.

    correct: by method, whether each image's prediction is right, shape (draws, rates, images); the same draws and
    images for all. against: the method that the others are compared with (difference: other less this one). costs: by
    method, as in `measures`.
    """
    of_networks: dict[str, Array | None] = {name: None if costs is None else costs[name] for name in correct}
    draws, _, images = next(iter(correct.values())).shape
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, draws, (resamples, max(1, draws - 1), 1))
    again: dict[str, list[Array]] = {name: [] for name in correct}
    step = max(1, _CHUNK // images)
    for start in range(0, resamples, step):
        chosen = picks[start : start + step]
        counts = rng.multinomial(images, np.full(images, 1 / images), size=len(chosen)).astype(float)
        for name, right in correct.items():
            flat = right.reshape(-1, images).T.astype(float)
            curves = (counts @ flat / images).reshape(len(chosen), draws, -1)
            again[name].append(np.take_along_axis(measures(curves, rates, kept, of_networks[name]), chosen, 1).mean(1))
    points = {name: measures(right.mean(-1), rates, kept, of_networks[name]) for name, right in correct.items()}
    resampled = {name: np.concatenate(parts) for name, parts in again.items()}
    # a network may take longer than the unpruned one
    lowest = 0.0 if costs is None else np.array([0.0, -np.inf, *[0.0] * len(rates)])
    level = {name: _interval(points[name], resampled[name], images, (lowest, 1)) for name in correct}
    difference = {
        name: _interval(points[name] - points[against], resampled[name] - resampled[against], images, (-1, 1))
        for name in correct
    }
    return Estimates(level, difference, {name: values[:, 0].tolist() for name, values in points.items()})


def _interval(points: Array, resampled: Array, images: int, limits: tuple[float | Array, float]) -> Estimate:
    """From the values of each draw, shape (draws, values), and of each resample, (resamples, values)."""
    draws = len(points)
    value = points.mean(0)
    of_draws = points.var(0, ddof=1) / draws if draws > 1 else np.zeros_like(value)
    variance = np.maximum(resampled.var(0, ddof=1), of_draws)
    of_images = variance - of_draws
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (of_draws**2 / max(1, draws - 1) + of_images**2 / max(1, images - 1))
        p = 2 * stats.t.sf(np.abs(value) / np.sqrt(variance), freedom)
    sure = variance == 0  # every draw and every image says the same
    width = np.where(sure, 0, stats.t.ppf((1 + CONFIDENCE) / 2, np.where(sure, 1, freedom)) * np.sqrt(variance))
    p = np.where(sure, np.where(value == 0, 1.0, 0.0), p)
    return Estimate(value, np.clip(value - width, *limits), np.clip(value + width, *limits), p)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for being several (Holm 1979): each is what one alone would have to be."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for index, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - index) * p[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p}
