"""Samplers by name, Optuna's and ours, seeded so that a study continues exactly where it was cut off."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...pruning.registry import Registry
from ...studies import internals
from .view import is_seen, view

if TYPE_CHECKING:  # Optuna takes a while to import, and the command line needs only the names
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from .space import Range

Factory = Callable[[int], "BaseSampler"]


def tpe(seed: int) -> BaseSampler:
    """Tree-structured Parzen estimator over all parameters together, one group per branch of the space."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, multivariate=True, group=True)


def random(seed: int) -> BaseSampler:
    """Uniform draws: what the others have to beat."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def cmaes(seed: int) -> BaseSampler:
    """CMA-ES over the numbers; TPE, one parameter at a time, over the rules and other categories.

    CMA-ES knows neither categories nor parameters that only some trials have. So it needs a space whose
    numbers are there in every trial (`Space(conditional=False)`), and leaves the categories to TPE. A trial
    that was stopped counts by the AUC over the samples it has seen.
    """
    from optuna.samplers import TPESampler

    from .cmaes import CmaEs

    return CmaEs(seed, TPESampler(seed=seed, multivariate=False))


def gp(seed: int) -> BaseSampler:
    """Gaussian process over the numbers and the categories that every trial has."""
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed)


def local(seed: int) -> BaseSampler:
    """The best trials so far with one parameter changed."""
    from .local_search import LocalSearch

    return LocalSearch(seed)


@dataclass(frozen=True)
class Sampler:
    """An entry of `SAMPLERS`. make: one of Optuna's kind, from a seed. conditional: whether it can do with parameters
    that only some trials have; else every trial has all numbers. several: whether it knows several objectives."""

    make: Factory
    conditional: bool = True
    several: bool = False


SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    {
        "tpe": Sampler(tpe, several=True),
        "local": Sampler(local),
        "random": Sampler(random, several=True),
        "cmaes": Sampler(cmaes, conditional=False),
        "gp": Sampler(gp, conditional=False),
    },
)
register_sampler = SAMPLERS.register
AUTO = "auto"
"""What measured best (benchmarks/README.md): see `default_sampler`."""
GRID = "grid"
"""Every composite of a space without numbers, once, in an order shuffled by the seed (`Space.grid`)."""


def sampler_names() -> tuple[str, ...]:
    """What `--sampler` may be."""
    return (AUTO, *SAMPLERS, GRID)


def is_conditional(name: str) -> bool:
    """Whether a sampler can do with parameters that only some trials have (a grid's values are drawn by none)."""
    return name == GRID or SAMPLERS[name].conditional


def multi_objective() -> tuple[str, ...]:
    """Those that can search for two objectives at once."""
    return (*(name for name, sampler in SAMPLERS.items() if sampler.several), GRID)


def default_sampler(parameters: Mapping[str, tuple[str, ...] | Range], objective: Sequence[str]) -> str:
    """The sampler that suits a space: `local` for one of choices only, `cmaes` for one of numbers only, else `tpe`.

    parameters: as `Space.parameters` gives them. objective: one of `parsers.objectives`.
    """
    choices = {isinstance(of, tuple) for of in parameters.values()}
    if len(objective) > 1 or len(choices) != 1:
        return "tpe"
    return "local" if choices == {True} else "cmaes"


DRAWN_TOGETHER = "pxp:relative_params"


def _for_sampler(study: Study, trial: FrozenTrial, lag: int) -> Study:
    """The study as a sampler may see it for a trial (see `view`), without its finished trials that have no parameters:
    composites from outside of the space.

    CMA-ES and the Gaussian process model the parameters that all trials have, which would be none.
    """
    return view(study, lambda other: is_seen(other, trial, lag) and bool(other.params or not other.state.is_finished()))


def make_sampler(name: str, seed: int, lag: int = 1) -> BaseSampler:
    """The sampler of a study. (That of a grid draws nothing: every trial is in the queue from the start.)

    Every draw depends on the seed, the trial's number, the parameter's name and the finished trials up to `lag` before
    it (`view`), and on nothing that lives in memory only. So a study that was killed and continued has the same trials
    as one that was not, and one of several processes the same each time.

    Raises:
        KeyError: unknown name.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import BaseSampler

    build = SAMPLERS["random" if name == GRID else name].make

    def fresh(*parts: object) -> BaseSampler:
        digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
        with warnings.catch_warnings():
            # TPE's groups, in use for years
            warnings.simplefilter("ignore", ExperimentalWarning)
            return build(int.from_bytes(digest[:4], "little"))

    class Repeatable(BaseSampler):
        """A new sampler for each trial and for each parameter that is drawn by itself."""

        def __init__(self) -> None:
            self._current = fresh()

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            self._current = fresh(trial.number)
            return self._current.infer_relative_search_space(_for_sampler(study, trial, lag), trial)

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            # Kept with the trial: on a second try Optuna's GP would take the first one for a trial of its own.
            # Not if another sampler goes on, which draws others together.
            drawn = trial.system_attrs.get(DRAWN_TOGETHER)
            if drawn is None or not drawn.keys() <= search_space.keys():
                seen = _for_sampler(study, trial, lag)
                drawn = self._current.sample_relative(seen, trial, search_space)
                internals.set_system_attr(study, trial, DRAWN_TOGETHER, drawn)
            return drawn

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            sampler = fresh(trial.number, param_name)
            seen = _for_sampler(study, trial, lag)
            return sampler.sample_independent(seen, trial, param_name, param_distribution)

        def __str__(self) -> str:
            return f"{name} (seed {seed})"

    return Repeatable()
