"""What a study of heat maps says: its result as JSON, and what the search gained over the known composites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from .best import FAITHFULNESS, RESCORED, best_trial, score_of, search_best
from .bootstrap import CONFIDENCE, Array
from .report import fixed_trials, new_table

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from rich.table import Table


@dataclass(frozen=True)
class Paired:
    """A mean difference over images with the interval that it lies in with 95 % confidence. p: two-sided, of none."""

    value: float
    low: float
    high: float
    p: float


def interval(values: Array) -> Paired:
    """The mean of independent values, such as differences of two methods on the same images, by Student's t."""
    mean, count = float(np.mean(values)), len(values)
    error = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else 0.0
    if error == 0:
        return Paired(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return Paired(mean, mean - width, mean + width, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


def result_of(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """The `result` of a `pxp-composite/1` document."""
    holdout, rescored = (study.user_attrs.get(key, {}).get(str(trial.number)) for key in ("holdout", RESCORED))
    first, names = search_best(study), study.user_attrs["config"]["objective"].split(",")
    return {
        "objective": FAITHFULNESS,
        "srg": score_of(trial),
        **dict(zip(names[1:], trial.values[1:], strict=True)),
        **({"holdout_srg": holdout["auc"]} if holdout else {}),
        **({"rescored_srg": rescored["auc"], "rescored_on": rescored["on"]} if rescored else {}),
        **({"search_best": {"trial": first.number, "srg": score_of(first)}} if rescored else {}),
        **{key: value for key, value in study.user_attrs["fingerprint"]["explaining"].items() if key != "version"},
        "study": study.study_name,
        "trial": trial.number,
        "removed": study.user_attrs["rates"],
        "least_first": trial.user_attrs["least_first"],
        "most_first": trial.user_attrs["most_first"],
    }


def table(study: Study) -> Table:
    """The final table of a run."""
    names = study.user_attrs["config"]["objective"].split(",")[1:]
    headings = ["SRG, search", "SRG, holdout", "95 % interval", *(f"{name}, search" for name in names)]
    found = new_table("composite", *headings, numbers=range(1, 1 + len(headings)))
    for name, cells in rows(study):
        found.add_row(name, *cells, style="bold" if name.startswith("best") else None)
    return found


def rows(study: Study) -> list[tuple[str, list[str]]]:
    """The known composites and the best one: names and what the final table says of each."""
    from optuna.trial import TrialState

    holdout = study.user_attrs.get("holdout", {})
    trials = [*fixed_trials(study).items()]
    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        best = best_trial(study)
        name = best.user_attrs.get("fixed")
        trials.append((f"best (trial {best.number}{f', {name}' if name else ''})", best))
    found = []
    for name, trial in trials:
        scored = holdout.get(str(trial.number))
        on_holdout = ["-", "-"]
        if scored:
            sure = interval(np.array(scored["each"]))
            on_holdout = [f"{scored['auc']:.4f}", f"{sure.low:.3f} to {sure.high:.3f}"]
        values = [f"{value:.4f}" for value in trial.values or ()] or ["-"]
        found.append((name, [values[0], *on_holdout, *values[1:]]))
    return found


def gain_text(study: Study) -> str | None:
    """What the best composite has more than the best known one on the holdout images; None without scores of both.

    Of the known ones the best on the search images is taken, which is how one would choose without a search: to take
    the holdout's would choose by luck.
    """
    holdout = study.user_attrs.get("holdout", {})
    best = best_trial(study)
    known = {
        name: trial for name, trial in fixed_trials(study).items() if str(trial.number) in holdout and trial.values
    }
    if str(best.number) not in holdout or not known:
        return None
    name = max(known, key=lambda name: score_of(known[name]))
    if best.number == known[name].number:
        return f"no gain: the best is {name}, which is known without a search"
    own, other = (np.array(holdout[str(trial.number)]["each"]) for trial in (best, known[name]))
    gain = interval(own - other)
    verdict = "significant" if gain.p < 1 - CONFIDENCE else "not significant"
    return (
        f"gain: {gain.value:+.4f} SRG on {len(own)} holdout images over the best known composite, {name} "
        f"({CONFIDENCE:.0%} interval {gain.low:+.4f} to {gain.high:+.4f}, paired over images: {verdict})"
    )
