"""A study in its database: found fit to go on, or created."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ...studies.best import FAITHFULNESS, check_trials
from ...studies.errors import UserError
from ...studies.fingerprint import Fingerprint, difference
from ..search.owners import OWNER, is_gone, own_mark
from ..search.space import Space


def check_study(
    storage: optuna.storages.BaseStorage, name: str, fingerprint: Fingerprint, objective: Sequence[str] = ("auc",)
) -> Study | None:
    """The study of this name, or None where there is none. Writes nothing.

    One of other settings counts as none where its run was stopped before a trial was finished (`never_began`): most
    often these were a mistake, which this command mends.

    Raises:
        UserError: a study of this name has trials that cannot be compared with those to come; every
            difference is named.
    """
    if name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    stored = study.user_attrs.get("fingerprint")
    maximized = all(direction == StudyDirection.MAXIMIZE for direction in study.directions)
    if stored is None and (study.get_trials(deepcopy=False) or not maximized):
        raise UserError(f"study {name!r} was not made by pxp-optimize: give another name with --study")
    check_trials(study)
    # a study that was cut off while it was made has directions and nothing else
    before = study.user_attrs.get("config", {}).get("objective", "auc" if len(study.directions) == 1 else "auc,...")
    now = ",".join(objective)
    found = [] if stored is None else difference(stored, fingerprint)
    judged_so = len(study.directions) == len(objective) and (stored is None or before == now)
    if (found or not judged_so) and never_began(study):
        return None
    if not judged_so:
        raise UserError(
            f"study {name!r} was made with --objective {before}, not {now}: give that, or another name with --study"
        )
    if found:
        seed = study.user_attrs.get("config", {}).get("seed")
        drawn = f"; its --seed is {seed}" if seed is not None and any("samples" in key for key in found) else ""
        raise UserError(
            f"study {name!r} was made with other settings ({'; '.join(found)}{drawn}): "
            "use those again, or give another name with --study"
        )
    return study


def never_began(study: Study) -> bool:
    """Whether a study of ours has no finished trial, and some that a process had begun which is gone (or is this one,
    and has been stopped since)."""
    trials = study.get_trials(deepcopy=False)
    begun = [trial for trial in trials if OWNER in trial.user_attrs]
    return "fingerprint" in study.user_attrs and bool(begun) and all(map(_is_left, trials))


def _is_left(trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get(OWNER, own_mark())
    ended = is_gone(owner)
    waits = trial.state == TrialState.WAITING and (ended or owner == own_mark())
    return waits or (trial.state == TrialState.RUNNING and ended)


def check_space(study: Study, space: Space, name: str) -> None:
    """Refuse a space that gives a parameter of a study other choices, which Optuna does not allow. Writes nothing.

    name: of the space, for the message. A range may be another one.

    Raises:
        UserError: the first such parameter.
    """
    parameters = space.parameters()
    for trial in study.get_trials(deepcopy=False):
        for key, stored in trial.distributions.items():
            if key not in parameters:
                continue
            before, now = (
                ", ".join(map(str, choices)) if isinstance(choices, tuple) else "numbers"
                for choices in (getattr(stored, "choices", None), parameters[key])
            )
            if before != now:
                raise UserError(
                    f"study {study.study_name!r} chose {key} from {before}, and --space {name} offers {now}: "
                    "give another name with --study, or the space it was made with (by an older version, maybe)"
                )


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    fingerprint: Fingerprint,
    attrs: Mapping[str, Any],
    objective: Sequence[str] = ("auc",),
) -> Study:
    """The study to run, created if there is none, with its attributes (`rates`, `config`, `layers`, ...).

    objective: one of `parsers.objectives`.

    Raises:
        UserError: as `check_study`; nothing has been written then.
    """
    study = check_study(storage, name, fingerprint, objective)
    if study is None:
        if name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        names = [{"auc": "AUC", FAITHFULNESS: "SRG"}.get(objective[0], f"area over {objective[0]}")]
        names += [f"area over {other}" if objective[0] == "auc" else other for other in objective[1:]]
        directions = [StudyDirection.MAXIMIZE] * len(names)
        study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)  # what plots and the dashboard call them
    for key, value in {**attrs, "fingerprint": fingerprint}.items():
        if study.user_attrs.get(key) != value:
            study.set_user_attr(key, value)
    return study
