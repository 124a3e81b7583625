"""A study as a trial may see it, so that what is proposed does not depend on which process is the faster one.

Of processes that work at one search, trial n sees the trials up to n - `lag`, and does not begin before these have
ended (`queue.may_start`). What runs beside it stays unseen, whether it has ended by now or not. With a lag of 1, that
of one process, it sees all before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Optuna takes a while to import
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial


class _View:
    """A study with some of its trials only; else the study itself."""

    def __init__(self, study: Study, shows: Callable[[FrozenTrial], bool]) -> None:
        self._study = study
        self._shows = shows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        return list(filter(self._shows, self._study.get_trials(*arguments, **options)))

    def _get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:  # what Optuna's samplers call
        return list(filter(self._shows, self._study._get_trials(*arguments, **options)))


def view(study: Study, shows: Callable[[FrozenTrial], bool]) -> Study:
    """The study with those of its trials only that `shows` says."""
    return _View(study, shows)  # type: ignore[return-value]


def is_seen(other: FrozenTrial, trial: Trial | FrozenTrial, lag: int) -> bool:
    """Whether a trial may see another one: itself, and those that began long enough before it."""
    return other.number == trial.number or other.number <= trial.number - lag


def lag_of(workers: int) -> int:
    """How far back the trials lie that a trial sees, with so many processes.

    With less than half as much again as there are processes, these wait for the slowest of them: of four whose trials
    take times that vary by 30 %, 15 % of the time; so 6 %.
    """
    return workers + workers // 2
