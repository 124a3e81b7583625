"""A parameter's number as a part of its range, 0 to 1; evenly in its logarithm where the range is."""

from __future__ import annotations

import math

from optuna.distributions import BaseDistribution, FloatDistribution


def to_unit(value: float, of: BaseDistribution) -> float:
    """Where a number lies in the range of a float distribution."""
    assert isinstance(of, FloatDistribution)
    low, high = of.low, of.high
    if of.log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def from_unit(part: float, of: BaseDistribution) -> float:
    """The number that lies there; never outside of the range, whatever rounding does."""
    assert isinstance(of, FloatDistribution)
    low, high = (math.log(of.low), math.log(of.high)) if of.log else (of.low, of.high)
    value = low + part * (high - low)
    return min(max(math.exp(value) if of.log else value, of.low), of.high)
