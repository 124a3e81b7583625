"""What a trial tries: a composite and, where a study searches that too, how its ranking is used."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from optuna.trial import FrozenTrial, Trial

from ...attribution import Composite
from ...studies.best import PRUNING


@dataclass(frozen=True)
class Pruning:
    """How a ranking is used. schedule: as `pruning.Schedule.parse` reads it. repair: of `pruning.REPAIRS`."""

    schedule: str
    repair: str

    def __str__(self) -> str:
        return f"{self.schedule}, repair {self.repair}"


@dataclass(frozen=True)
class Candidate:
    """A composite with a pruning of its own, where a study searches that."""

    composite: Composite
    pruning: Pruning


def candidate(composite: Composite, pruning: Pruning | None) -> Composite | Candidate:
    """A composite as it is to be used: with this pruning, or with the study's."""
    return composite if pruning is None else Candidate(composite, pruning)


def candidate_of(trial: FrozenTrial) -> Composite | Candidate:
    """What a trial tried."""
    return candidate(Composite.from_dict(trial.user_attrs["composite"]), pruning_of(trial))


def pruning_of(trial: FrozenTrial | Trial) -> Pruning | None:
    """The pruning that a trial had of its own; None where the study has one for all."""
    found = trial.user_attrs.get(PRUNING)
    return None if found is None else Pruning(**found)


def keep_candidate(trial: Trial, composite: Composite, pruning: Pruning | None) -> None:
    """Note in the study what a trial tries."""
    trial.set_user_attr("composite", composite.to_dict())
    if pruning is not None:
        trial.set_user_attr(PRUNING, asdict(pruning))
