"""Local search: the best trials so far, each time with one thing changed.

A composite is a handful of choices, and most of what a good one consists of is in the good ones that a study begins
with. So a few dozen trials get further by changing one choice at a time in the best of them than by a model of the
whole space, of which so few have seen next to nothing (measured in benchmarks/README.md). Its like is randomized local
search (Auger and Doerr 2011, "Theory of Randomized Search Heuristics"), with a few parents for one, since an AUC over a
few hundred images is noisy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from .scaling import from_unit, to_unit

PARENTS = 3
"""How many of the best trials may be changed; each is chosen half as often as the one before it."""
STEP = 0.2
"""Standard deviation of a number's change, in parts of its range (of its logarithm's, where that is what is even)."""
TRIES = 10
"""How often to draw again what a trial had already, before one more parameter is changed."""


class LocalSearch(BaseSampler):
    """Changes one parameter of one of the best complete trials, its parent; more where that gives nothing new.

    A category becomes another one, a number moves by a normal step that turns back at the limits of its range. A number
    that the parent lacks, since it belongs to another rule, is near that of the best trial that has it or, with even
    chances, a new one. Before any trial is complete draws are random.

    Args:
        seed: of the draws; the same study and seed give the same draw.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._parent: FrozenTrial | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        parents = _best(study)[:PARENTS]
        if not parents:
            return {}
        weights = 0.5 ** np.arange(len(parents))
        self._parent = parents[self._rng.choice(len(parents), p=weights / weights.sum())]
        return {name: of for name, of in self._parent.distributions.items() if not of.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._parent is None or not search_space:
            return {}
        tried = [other.params.items() for other in study.get_trials(deepcopy=False) if other.params]
        names = list(search_space)
        child: dict[str, Any] = {}
        for attempt in range(TRIES * len(names)):
            changed = self._rng.permutation(names)[: 1 + attempt // TRIES]
            child = {
                name: self._other(self._parent.params[name], of) if name in changed else self._parent.params[name]
                for name, of in search_space.items()
            }
            # a parent's number that its child's rule has no use for is in no trial; one yet to be drawn is not here
            if not any(params <= child.items() for params in tried):
                break
        return child

    def _other(self, value: Any, of: BaseDistribution) -> Any:
        if isinstance(of, CategoricalDistribution):
            others = [choice for choice in of.choices if choice != value]
            return others[self._rng.integers(len(others))]
        part = abs(to_unit(value, of) + self._rng.normal(0, STEP)) % 2
        return from_unit(2 - part if part > 1 else part, of)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        known = next((other.params[param_name] for other in _best(study) if param_name in other.params), None)
        if known is not None and self._rng.random() < 0.5:
            return self._other(known, param_distribution)  # not the same, which with the rest may be that very trial
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def _best(study: Study) -> list[FrozenTrial]:
    """The complete trials that have parameters, best first, the earlier one of equal ones."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    return sorted((t for t in complete if t.params), key=lambda t: (sign * t.values[0], t.number))
