"""CMA-ES over a study, with nothing in the database but numbers.

Optuna's own CMA-ES sampler keeps its state with the trials as a pickle, and whoever opens a database that somebody
else made would run what is in there. What the state holds follows from the finished trials, so here it is worked out
from them, each time anew: the package `cmaes` takes well under a millisecond for a generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ...studies import internals
from .scaling import from_unit, to_unit

GENERATION = "cma:generation"
"""The trial attribute that says which generation a trial was drawn in; named as Optuna's, so its studies go on."""


class CmaEs(BaseSampler):
    """Covariance matrix adaptation (Hansen 2016, arXiv 1604.00772) of the numbers that every trial has.

    A generation is drawn from one normal distribution, in the unit cube that the parameters' ranges (logarithmic where
    they are) become; the better half of it moves and shapes the next one. Other parameters, and the first trial, are
    the independent sampler's. Trials that were stopped count by their last report, as Optuna values them.

    Args:
        seed: of the draws; the same study and seed give the same draw.
        independent: for all that is no number of every trial; by default random.
    """

    def __init__(self, seed: int, independent: BaseSampler | None = None) -> None:
        self._seed = seed
        self._independent = independent or RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        common = IntersectionSearchSpace().calculate(study)
        return {name: of for name, of in common.items() if isinstance(of, FloatDistribution) and not of.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        optimizer = replay(finished, search_space, study.direction)
        rng = np.random.RandomState(self._seed)  # used as Optuna's sampler uses it, so that the draws are its own
        if not any(_generation(other) > 0 for other in finished):
            rng.randint(1, 2**31 - 2)
        optimizer._rng.seed(rng.randint(1, 2**16) + trial.number)
        drawn = optimizer.ask()
        internals.set_system_attr(study, trial, GENERATION, optimizer.generation)
        return {name: from_unit(float(part), of) for part, (name, of) in zip(drawn, search_space.items(), strict=True)}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


def replay(
    finished: Sequence[FrozenTrial], search_space: dict[str, BaseDistribution], direction: StudyDirection
) -> CMA:
    """The optimizer after all generations of finished trials that are complete."""
    count = len(search_space)
    bounds = np.tile([0.0, 1.0], (count, 1))
    # where and how wide Optuna's own starts
    optimizer = CMA(np.full(count, 0.5), 1 / 6, bounds=bounds, n_max_resampling=10 * count)
    sign = -1 if direction == StudyDirection.MAXIMIZE else 1
    members: dict[int, list[tuple[NDArray[np.float64], float]]] = {}
    for found in finished:
        if found.values and found.params.keys() >= search_space.keys():
            point = np.array([to_unit(found.params[name], of) for name, of in search_space.items()])
            members.setdefault(_generation(found), []).append((point, sign * found.values[0]))
    while len(complete := members.get(optimizer.generation, [])) >= optimizer.population_size:
        optimizer.tell(complete[: optimizer.population_size])
    return optimizer


def _generation(trial: FrozenTrial) -> int:
    """The generation that a trial was drawn in; -1 of one that was not."""
    found = trial.system_attrs.get(GENERATION)
    return found if isinstance(found, int) else -1
