"""What a person reads about studies: the list of them, and the result of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..pruning.cost import saved_at
from .best import RESCORED, SAVED, auc_of, best_trial, cost_of, explains, judged, score_of, search_best
from .wording import part_of

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial
    from rich.table import Table

HEAT_MAPS = "heat maps"
"""What stands in the place of units where nothing is pruned."""
KEPT = 0.95
"""The part of the unpruned accuracy that a useful sparsity keeps."""


@dataclass(frozen=True)
class StudyLine:
    """One study of a storage. best: the highest AUC, or area over the cost where that is what trials are judged by;
    None without a complete trial. updated: local time. stopped: trials that ended early, since they were worse."""

    name: str
    complete: int
    total: int
    best: float | None
    model: str
    data: str
    units: str
    updated: datetime | None
    stopped: int = 0
    cost: str | None = None


@dataclass(frozen=True)
class ResultLine:
    """One composite of the final table. AUCs are None where the trial failed or was not scored; areas and what is saved
    of the cost where trials are not judged by one."""

    name: str
    search_auc: float | None
    holdout_auc: float | None
    sparsity: float | None
    search_area: float | None = None
    holdout_area: float | None = None
    saved: float | None = None


def list_studies(storage: BaseStorage) -> list[StudyLine]:
    """The studies of a storage, by name. Studies of other programs are listed too, without a model."""
    import optuna
    from optuna.trial import TrialState

    lines = []
    for name in sorted(optuna.get_all_study_names(storage)):
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False)
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        times = [time for trial in trials for time in (trial.datetime_start, trial.datetime_complete) if time]
        mark: Mapping[str, Any] = study.user_attrs.get("fingerprint", {})
        lines.append(
            StudyLine(
                name=name,
                complete=len(complete),
                total=sum(trial.state != TrialState.WAITING for trial in trials),
                best=_best_value(study, complete),
                model=mark.get("model", "-"),
                data=mark.get("data", "-"),
                units=HEAT_MAPS if explains(study) else mark.get("units", "-"),
                updated=max(times, default=None),
                stopped=sum(trial.state == TrialState.PRUNED for trial in trials),
                cost=cost_of(study),
            )
        )
    return lines


def _best_value(study: Study, complete: Sequence[FrozenTrial]) -> float | None:
    """The highest AUC; of another program's study the best value, which it lacks where it has several objectives."""
    if not complete or (len(study.directions) > 1 and "fingerprint" not in study.user_attrs):
        return None
    return score_of(search_best(study)) if "fingerprint" in study.user_attrs else study.best_value


def studies_table(lines: Iterable[StudyLine]) -> Table:
    """The list of studies as a table."""
    table = new_table("study", "model", "data", "units", "trials", "best", "last update", numbers=(4, 5))
    for line in lines:
        updated = line.updated.strftime("%Y-%m-%d %H:%M") if line.updated else "-"
        count = f"{line.complete} of {line.total}" + (f", {line.stopped} stopped early" if line.stopped else "")
        what = "SRG" if line.units == HEAT_MAPS else "AUC" if line.cost is None else "area"
        best = "-" if line.best is None else f"{what} {line.best:.4f}" + (f" over {line.cost}" if line.cost else "")
        table.add_row(line.name, line.model, line.data, line.units, count, best, updated)
    return table


def result_lines(study: Study) -> list[ResultLine]:
    """The fixed composites and the best one, scored on search and on holdout samples.

    Sparsity is the holdout's where there are holdout scores (study attribute `holdout`), else the search's.
    """
    from optuna.trial import TrialState

    from ..pruning.curve import sparsity_at  # imports torch, which the list of studies can do without

    rates: Sequence[float] = study.user_attrs["rates"]
    holdout: Mapping[str, Any] = study.user_attrs.get("holdout", {})

    def line(name: str, trial: FrozenTrial) -> ResultLine:
        if trial.state != TrialState.COMPLETE:
            return ResultLine(name, None, None, None)
        scored = holdout.get(str(trial.number))
        curve = scored["accuracy"] if scored else trial.user_attrs["accuracy"]
        found = ResultLine(name, auc_of(trial), scored["auc"] if scored else None, sparsity_at(rates, curve, KEPT))
        return found if cost_of(study) is None else _with_areas(found, score_of(trial), scored)

    lines = [line(name, trial) for name, trial in fixed_trials(study).items()]
    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        best, first = best_trial(study), search_best(study)
        if best.number != first.number:
            lines.append(line(f"the search's best (trial {first.number})", first))
        lines.append(line(f"best ({called(best)})", best))
        plain = study.user_attrs.get("plain", {}).get(str(best.number))
        if plain:
            sparsity = sparsity_at(rates, plain["accuracy"], KEPT)
            name = "the same, ranked once, no repair"
            found = ResultLine(name, plain["auc"], plain["holdout_auc"], sparsity)
            if cost_of(study) is not None:
                found = _with_areas(found, plain["area"], {**plain, "area": plain["holdout_area"]})
            lines.append(found)
    return lines


def _with_areas(line: ResultLine, area: float, scored: Mapping[str, Any] | None) -> ResultLine:
    """A line of a study whose trials are judged by a cost."""
    if scored is None:
        return replace(line, search_area=area)
    saved = saved_at(scored["costs"], scored["accuracy"], KEPT)
    return replace(line, search_area=area, holdout_area=scored["area"], saved=saved)


def front_lines(study: Study) -> list[str]:
    """The trials that no other one beats in both objectives, by falling AUC; nothing where there is one objective."""
    if len(study.directions) < 2:
        return []
    names = study.metric_names or ["AUC", "second objective"]
    front = sorted(study.best_trials, key=lambda trial: (-auc_of(trial), trial.number))
    lines = [f"front of {len(front)} trials that none beats in both (export --trial N writes one):"]
    for trial in front:
        values = (f"{name} {value:.4f}" for name, value in zip(names, trial.values, strict=True))
        lines.append(f"  trial {trial.number}: {', '.join(values)}")
    return lines


def rescored_text(study: Study) -> str | None:
    """What re-scoring said of the best trials, the one that is best first; None where it did not count."""
    scores = study.user_attrs.get(RESCORED, {})
    best = best_trial(study)
    if str(best.number) not in scores:
        return None
    aucs = {number: judged(score) for number, score in scores.items()}
    ordered = sorted(aucs, key=lambda number: (int(number) != best.number, -(aucs[number] or 0)))
    found = ", ".join(f"trial {number} {_number(aucs[number])}" for number in ordered)
    return f"re-scored on {scores[str(best.number)]['on']}: {found} (best: highest mean of both scores)"


def no_gain_text(study: Study) -> str | None:
    """Which fixed composite has at least the best one's score on the holdout samples; None where none has."""
    scores = study.user_attrs.get("holdout", {})
    fixed = fixed_trials(study)
    aucs = {name: judged(scores[key]) or 0.0 for name, trial in fixed.items() if (key := str(trial.number)) in scores}
    best = best_trial(study)
    own = scores.get(str(best.number))
    name = max(aucs, key=lambda name: aucs[name], default="")
    if own is None or not name or aucs[name] < (judged(own) or 0.0):
        return None
    which = f"{name} is the best" if fixed[name].number == best.number else f"{name} has {aucs[name]:.4f} there"
    return (
        f"no gain over the fixed composites on holdout samples: {which} "
        "(pxp-optimize compare: which differences are significant)"
    )


def failed_text(study: Study) -> str | None:
    """How many trials failed, and why the last one did; None where none did."""
    from optuna.trial import TrialState

    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    if not failed:
        return None
    last, count = failed[-1], len(study.get_trials(deepcopy=False))
    reason = last.user_attrs.get("error", "its process ended")
    return f"{len(failed)} of {count} trials failed, the last one ({called(last)}) since {reason}"


def fixed_trials(study: Study) -> dict[str, FrozenTrial]:
    """The trials of the fixed composites by name: the first complete one of each, or else the last."""
    from optuna.trial import TrialState

    found: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        name = trial.user_attrs.get("fixed")
        if name and (name not in found or found[name].state != TrialState.COMPLETE):
            found[name] = trial
    return found


def name_of(trial: FrozenTrial | Trial) -> str | None:
    """The name of a composite that was not the sampler's: fixed, known otherwise, or the file it came from."""
    return next((trial.user_attrs[key] for key in ("fixed", "known", "from") if key in trial.user_attrs), None)


def title(trial: FrozenTrial | Trial) -> str:
    """What a trial is called: its number in the study, and the name of its composite if that has one."""
    name = name_of(trial)
    return f"trial {trial.number}" + (f" ({name})" if name else "")


def called(trial: FrozenTrial | Trial) -> str:
    """The same within brackets."""
    name = name_of(trial)
    return f"trial {trial.number}" + (f", {name}" if name else "")


def result_cells(lines: Sequence[ResultLine]) -> list[list[str]]:
    """The final table of a run, its headings first."""
    headings, sparsity = ["AUC, search", "AUC, holdout"], f"sparsity at {KEPT:.0%} of accuracy"
    by_cost = any(line.search_area is not None for line in lines)
    if by_cost:
        headings, sparsity = ["area, search", "area, holdout", "AUC, holdout"], "saved, units"
    rows = [["composite", *headings, sparsity, *(["saved, cost"] if by_cost else [])]]
    for line in lines:
        scores = (line.search_area, line.holdout_area) if by_cost else (line.search_auc,)
        parts = (line.sparsity, line.saved) if by_cost else (line.sparsity,)
        rows.append([line.name, *map(_number, (*scores, line.holdout_auc)), *map(_part, parts)])
    return rows


def result_table(lines: Iterable[ResultLine]) -> Table:
    """The same, as it is printed."""
    headings, *rows = result_cells(list(lines))
    if len(headings) > 4:  # for terminals of eighty columns
        headings = [heading.replace(", ", ",\n") for heading in headings]
    table = new_table(*headings, numbers=range(1, len(headings)))
    table.columns[0].no_wrap = False
    table.columns[0].min_width = max((len(word) for row in rows for word in row[0].split()), default=0)  # none is cut
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith("best") else None)
    return table


def saved_text(study: Study) -> str | None:
    """What the best composite saves of each cost, on the holdout samples; None where that was not measured."""
    best = best_trial(study)
    saved = study.user_attrs.get(SAVED, {}).get(str(best.number))
    if not saved:
        return None
    # a trial's are looked up in a table of layer times
    names = {"latency": "the measured latency"} if cost_of(study) == "latency" else {}
    parts = ", ".join(f"{part_of(part)} of {names.get(name, name)}" for name, part in saved.items() if name != "rate")
    return f"saved at {KEPT:.0%} of the accuracy (trial {best.number}): {part_of(saved['rate'])} of units, {parts}"


def new_table(*headings: str, numbers: Sequence[int]) -> Table:
    """An empty table. numbers: columns that hold numbers, and are aligned to the right."""
    from rich import box

    from .tables import PrintedTable

    table = PrintedTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in numbers else "left", no_wrap=index == 0)
    return table


def _part(value: float | None) -> str:
    return "-" if value is None else part_of(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
