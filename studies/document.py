"""A trial's composite as the documented JSON, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .best import (
    PRUNING,
    RESCORED,
    SAVED,
    auc_of,
    best_trial,
    check_trials,
    cost_of,
    explains,
    judged,
    measure_of,
    score_of,
    search_best,
)
from .errors import UserError
from .fingerprint import ADDED
from .urls import storage_file

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from ..pruning import Graph

PLAIN = {"schedule": "oneshot", "repair": "none"}


def check_ours(study: Study) -> None:
    """Refuse a study that another program made, or put trials into.

    Raises:
        UserError: it is one.
    """
    if not {"fingerprint", "rates"} <= study.user_attrs.keys():
        raise UserError(f"study {study.study_name!r} was not made by pxp-optimize")
    check_trials(study)


def complete_trial(study: Study, number: int | None = None) -> FrozenTrial:
    """The best complete trial of a study (`best_trial`), or the one with this number.

    Raises:
        UserError: no complete trial yet, no trial of this number, one that did not complete, or see `check_trials`.
    """
    from optuna.trial import TrialState

    check_trials(study)
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if number is not None:
        trials = [trial for trial in trials if trial.number == number]
        if not trials:
            raise UserError(f"study {study.study_name!r} has no trial {number}")
        if trials[0].state != TrialState.COMPLETE:
            state = "stopped early" if trials[0].state == TrialState.PRUNED else trials[0].state.name.lower()
            raise UserError(f"trial {number} of study {study.study_name!r} is {state}")
        return trials[0]
    if not complete:
        raise UserError(f"study {study.study_name!r} has no finished trial yet")
    return best_trial(study)


def composite_document(study: Study, number: int | None = None) -> dict[str, Any]:
    """The best composite of a study, or that of one trial, as a `pxp-composite/1` document.

    It needs the database only, not the model: the study keeps the group and the type of each layer.

    Raises:
        UserError: as `complete_trial`, or the study was not made by pxp-optimize.
    """
    fingerprint, layers = (study.user_attrs.get(key) for key in ("fingerprint", "layers"))
    if fingerprint is None or layers is None:
        raise UserError(f"study {study.study_name!r} was not made by pxp-optimize")
    trial = complete_trial(study, number)
    composite: dict[str, Any] = trial.user_attrs["composite"]
    if explains(study):
        from .faithfulness import result_of  # SciPy, which other studies can do without here

        return {**described(composite, {}, fingerprint, layers), "result": result_of(study, trial)}
    holdout, rescored = (study.user_attrs.get(key, {}).get(str(trial.number)) for key in ("holdout", RESCORED))
    first = search_best(study)
    cost = study.user_attrs.get("config", {}).get("objective", "auc").partition(",")[2]
    second = "auc" if study.metric_names and study.metric_names[-1].startswith("AUC over") else "area"  # the former's
    judged_by = cost_of(study)
    saved = study.user_attrs.get(SAVED, {}).get(str(trial.number))
    return {
        **described(composite, trial.user_attrs.get(PRUNING, {}), fingerprint, layers),
        "result": {
            "auc": auc_of(trial),
            **({f"{second}_over_{cost}": trial.values[1]} if cost else {}),
            **({"holdout_auc": holdout["auc"]} if holdout else {}),
            **({"objective": judged_by, "area": score_of(trial)} if judged_by else {}),
            **({"holdout_area": holdout["area"]} if judged_by and holdout else {}),
            **({f"rescored_{measure_of(study)}": judged(rescored), "rescored_on": rescored["on"]} if rescored else {}),
            **({"search_best": {"trial": first.number, measure_of(study): score_of(first)}} if rescored else {}),
            **({"saved": saved} if saved else {}),
            **{key: fingerprint[key] for key, usual in ADDED.items() if fingerprint.get(key, usual) != usual},
            "study": study.study_name,
            "trial": trial.number,
            "rates": fingerprint["rates"],
            "accuracy": trial.user_attrs["accuracy"],
        },
    }


def described(
    composite: Mapping[str, Any],
    pruning: Mapping[str, str],
    fingerprint: Mapping[str, Any],
    layers: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """A `pxp-composite/1` document without a result: what ranks, how it is used, and the rule of each layer.

    pruning: what a trial had of its own, where the study searches it. layers: as `layers_of` gives them.
    """
    from ..attribution import FORMAT

    unlabelled = fingerprint.get("samples", {}).get("repair")
    return {
        "format": FORMAT,
        "model": fingerprint["model"],
        "units": fingerprint["units"],
        **composite,
        "pruning": {
            **{key: fingerprint.get(key, plain) for key, plain in PLAIN.items()},
            **pruning,
            **({"repair_samples": unlabelled["count"]} if unlabelled else {}),
        },
        "layers": resolve_layers(composite, layers),
    }


def layers_of(graph: Graph) -> dict[str, Any]:
    """What a study keeps of a network, so that `resolve_layers` needs no network: group and type by layer."""
    return {name: {"group": group, "type": graph.types[name]} for name, group in graph.groups.items()}


def resolve_layers(composite: Mapping[str, Any], layers: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The rule of every layer as JSON, from a composite's JSON and what `layers_of` kept."""
    from ..attribution.composites import Composite, resolve

    groups, types = ({name: layer[key] for name, layer in layers.items()} for key in ("group", "type"))
    specs = resolve(Composite.from_dict(composite), groups, types)
    return {name: spec.to_dict() for name, spec in specs.items()}


def is_composite(path: Path) -> bool:
    """Whether a file is empty, or holds a composite."""
    return is_json(path, "pxp-composite/")


def is_json(path: Path, format: str) -> bool:
    """Whether a file is empty, or holds a document whose `format` begins so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and (not found or str(found.get("format", "")).startswith(format))


def check_target(
    path: str | Path,
    storage: str | None = None,
    replaceable: Callable[[Path], bool] = is_composite,
    what: str = "composite",
) -> None:
    """Refuse a file that `write_json` could not or should not write, before any work is done.

    replaceable: whether a file that is there may be replaced, being an earlier `what`.

    Raises:
        UserError: a folder or a device, in a folder that is missing or not writable, the storage's own database,
            or a file that holds anything else (a slip must not cost what is there).
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the name of a file to write")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")
    database = None if storage is None else storage_file(storage)
    if database is not None and database.resolve() == path.resolve():
        raise UserError(f"{path} is the database of the studies: give the name of another file to write")
    if path.exists():
        if not path.is_file():
            raise UserError(f"{path} is not a regular file: give the name of another file to write")
        if not replaceable(path):
            raise UserError(f"{path} is there and no {what}, left as it is: give the name of another file to write")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: the folder {path.parent} is not writable")


def write_json(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON. A reader sees the old file or the whole new one, also if this is killed.

    Floats are written so that reading them gives the same bits.

    Raises:
        UserError: the file cannot be written; an existing one is then left as it was.
    """
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_whole(path, text.encode())


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file. A reader sees the old one or the whole new one, also if this is killed.

    Raises:
        UserError: the file cannot be written; an existing one is then left as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
