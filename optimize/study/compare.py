"""A study's best composite against what it should be better than, on images and draws the search has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage
from optuna.study import Study

from ...attribution import CRITERIA, Composite
from ...pruning import NotFinite
from ...studies.best import AUC
from ...studies.comparison import Line, compare
from ...studies.document import complete_trial
from ...studies.errors import UserError
from ...studies.fingerprint import Fingerprint, same_task
from ..evaluation.candidate import pruning_of
from ..evaluation.curve import networks_of, networks_of_curve, right_predictions
from ..evaluation.evaluate import Baseline, plan_of
from ..evaluation.task import Task
from ..options import GIVEN, Options
from ..progress import Progress
from ..search.space import Space
from ..search.status import count_complete, count_finished
from .costs import prices_of, timed
from .prepare import Prepared, prepare
from .resampling import mean_shared, with_reference

Compared = Composite | Baseline
FIRST_DRAW = 101
"""Draws before this one are for choosing (`rescore`), those from it on for comparing what was chosen."""


def stored_options(study: Study, device: str | None = None) -> Options:
    """The options that a study was run with last, from what it keeps of them.

    device: another one to compute on. What an older version did not know has its default.

    Raises:
        UserError: the study was not made by pxp-optimize.
    """
    config = study.user_attrs.get("config")
    if not isinstance(config, Mapping) or "fingerprint" not in study.user_attrs:
        raise UserError(f"study {study.study_name!r} was not made by pxp-optimize")
    if config.get("data") == GIVEN:
        raise UserError(
            f"study {study.study_name!r} was made in Python, with a network and images that only its program has: "
            "use the methods of what optimize() returns there"
        )
    known = {option.name for option in fields(Options)}
    values = {name: value for name, value in config.items() if name in known and value is not None}
    if Options.parsed(objective=values.get("objective", AUC)).prunes:
        # what `auto` stood for then, which may be another thing by now
        mark = study.user_attrs["fingerprint"]
        values |= {key: mark[key] for key in ("units", "schedule", "repair") if key in mark}
        values.setdefault("flat", 0.0)
    options = Options.parsed(**values)
    return options if device is None else replace(options, device=device)


def prepare_again(study: Study, options: Options, progress: Progress) -> Prepared:
    """The task of a study that is only read.

    options: `stored_options`.

    Raises:
        UserError: as `prepare`, and where this is not what the study was run on any more.
    """
    prepared = prepare(options, progress)
    check_unchanged(study, prepared.fingerprint)
    return prepared


def check_unchanged(study: Study, fingerprint: Fingerprint) -> None:
    """Raises UserError, every difference named, unless this is what the study was run on, by whatever version."""
    if found := same_task(study.user_attrs["fingerprint"], fingerprint):
        raise UserError(
            f"what study {study.study_name!r} was run on is not there any more ({'; '.join(found)}): "
            "run this from the same folder, with the same weights and images"
        )


def paper_study(storage: BaseStorage, study: Study, name: str | None = None) -> Study | None:
    """The study of the paper's composites (`--space paper`) on the same task: the one with most trials, or the one of
    this name; None where there is none, or the study is itself one.

    Raises:
        UserError: no study of this name, or one of another task or space.
    """
    found = []
    for other_name in optuna.get_all_study_names(storage) if name is None else [name]:
        try:
            other = optuna.load_study(study_name=other_name, storage=storage)
        except KeyError:
            raise UserError(f"no study {other_name!r} in the database (--paper-study)") from None
        complete = count_complete(other)
        mark, config = (other.user_attrs.get(key, {}) for key in ("fingerprint", "config"))
        problem = None
        if config.get("space") != "paper" or not complete:
            problem = "has no trials of --space paper"
        elif differences := same_task(study.user_attrs["fingerprint"], mark):
            problem = f"is of another task ({'; '.join(differences)})"
        if problem is None:
            found.append((complete, other))
        elif name is not None:
            raise UserError(f"study {name!r} {problem}: give another --paper-study, or none")
    if not found or (name is None and study.study_name in {other.study_name for _, other in found}):
        return None
    return max(found, key=lambda item: item[0])[1]


def methods_of(
    study: Study, options: Options, prepared: Prepared, paper: Study | None
) -> tuple[str, dict[str, Compared]]:
    """The best composite's name, and the methods by name: it, the paper's winner, the fixed ones, the baselines."""
    best = complete_trial(study)
    name = f"best (trial {best.number})"
    methods: dict[str, Compared] = {name: Composite.from_dict(best.user_attrs["composite"])}
    if paper is not None:
        winner = complete_trial(paper)
        trials = count_finished(paper)
        methods[f"paper's best of {trials}"] = Composite.from_dict(winner.user_attrs["composite"])
    task = prepared.task
    space = Space.named("auto", prepared.layers, True, mixed="+" in task.units, prices=prices_of(task))
    methods |= space.fixed_composites()
    return name, {**methods, **{criterion: Baseline(criterion) for criterion in CRITERIA}}


def pruned_as_best(study: Study, prepared: Prepared) -> Prepared:
    """The task in the pruning of the study's best trial, where the study searches it: all methods are used so."""
    prepared = timed(prepared, study)
    return replace(prepared, task=prepared.task.pruned_as(pruning_of(complete_trial(study))))


def compare_study(
    prepared: Prepared, methods: Mapping[str, Compared], best: str, seeds: int, progress: Progress
) -> tuple[list[Line], list[str]]:
    """A line for each method, and lines about methods that are missing.

    Each is measured on the holdout samples, under the task's schedule and repair, with `seeds` draws of the reference
    images; random baselines with as many seeds.

    Raises:
        UserError: the best composite gives relevance that is not finite with other reference images.
    """
    task = prepared.task
    measured: dict[str, list[tuple[NDArray[np.bool_], NDArray[np.float64]]]] = {name: [] for name in methods}
    problems: dict[str, str] = {}
    with progress("compare on holdout samples", seeds * len(methods)) as advance:
        for draw in draws_of(seeds):
            drawn = with_reference(prepared, draw)
            for name, method in methods.items():
                seeded = replace(method, seed=draw) if isinstance(method, Baseline) else method
                try:
                    costs: list[float] = []
                    flags = correctness(drawn, seeded, costs if task.by_cost else None)
                    measured[name].append((flags, np.array(costs) / costs[0] if costs else np.ones(len(flags))))
                except NotFinite as error:
                    problems[name] = str(error)
                advance(1)
    if best in problems:
        raise UserError(f"{best}: {problems[best]} with other reference images; give another --study")
    complete = {name: found for name, found in measured.items() if name not in problems}
    right = {name: _stacked([flags for flags, _ in found]) for name, found in complete.items()}
    parts = {name: _stacked([of_draw for _, of_draw in found]) for name, found in complete.items()}
    lines = compare(right, best, task.rates, prepared.source.seed, parts if task.by_cost else None)
    return lines, [f"{name} is left out: {problem}" for name, problem in problems.items()]


def draws_of(seeds: int) -> range:
    """The draws of reference images that a comparison has, beyond those of any study."""
    return range(FIRST_DRAW, FIRST_DRAW + seeds)


def correctness(task: Task, method: Compared, costs: list[float] | None = None) -> NDArray[np.bool_]:
    """Whether each network of a curve is right on each holdout sample, shape (networks, samples).

    costs: gets what each network costs, where trials are judged by that; there are networks beyond the rates then.
    """
    plan = plan_of(task, method)
    networks = networks_of(task, plan) if costs is None else networks_of_curve(task, plan, costs)
    return right_predictions(task, networks, task.holdout).cpu().numpy()


def _stacked(of_draws: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The draws' rows for each network, with the last network of a shorter curve once more: it saves no more."""
    longest = max(map(len, of_draws))
    return np.stack([np.concatenate([rows, rows[len(rows) - 1 :].repeat(longest - len(rows), 0)]) for rows in of_draws])


def about(study: Study, prepared: Prepared, best: str, paper: Study | None, seeds: int) -> dict[str, Any]:
    """What a comparison's document says of how it was made. shared: part of its reference images that are the study's
    own."""
    mark = prepared.fingerprint
    return {
        "study": study.study_name,
        "paper_study": None if paper is None else paper.study_name,
        "best": best,
        **{key: mark[key] for key in ("model", "data", "units")},
        "pruning": {"schedule": str(prepared.task.schedule), "repair": prepared.task.repair_name},
        "holdout_samples": len(prepared.task.holdout),
        "draws": seeds,
        "shared": mean_shared(prepared.source, draws_of(seeds)),
        "seed": prepared.source.seed,
    }
