"""Accuracy curves that a study stores, with how sure they are: for figures, and as CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .best import auc_of, best_trial, cost_of, explains, score_of
from .report import fixed_trials, name_of

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.study import Study
    from optuna.trial import FrozenTrial

SAMPLES = ("holdout", "search")
FORMAT = "pxp-curves/1"
Z = 1.959964
"""Of the normal distribution, for 95 %."""


@dataclass(frozen=True)
class CurveLine:
    """The curve of one composite.

    name: of a composite that has one. trial: its number. best: whether it is the study's best. samples: "search" or
    "holdout". auc: the area under the curve, in [0, 1]. rates: parts of the units that are removed. accuracy: top-1 at
    each. low, high: the 95 % interval over the images (Wilson 1927), None where a study does not say how many there
    were. cost: of the network at each rate, as a part of the unpruned one's; None where none was measured. area: what
    the trial is judged by, where that is the area over the cost.
    """

    name: str
    trial: int
    best: bool
    samples: str
    auc: float
    rates: list[float]
    accuracy: list[float]
    low: list[float] | None
    high: list[float] | None
    cost: list[float] | None
    area: float | None = None

    @property
    def label(self) -> str:
        """What a figure calls it."""
        if not self.best:
            return self.name
        return f"best: {self.name}" if self.name else f"best: trial {self.trial}"


def wilson(accuracy: float, count: int) -> tuple[float, float]:
    """The interval that holds the true accuracy with 95 % confidence, from an accuracy over `count` images.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    spread = 1 + Z**2 / count
    centre = (accuracy + Z**2 / (2 * count)) / spread
    width = Z * math.sqrt(accuracy * (1 - accuracy) / count + Z**2 / (4 * count**2)) / spread
    return max(0.0, centre - width), min(1.0, centre + width)


def curves(study: Study, samples: str) -> list[CurveLine]:
    """The curves of the fixed composites and of the best one, which comes last; those that were measured on "search"
    or on "holdout" samples."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    best = best_trial(study)
    trials = {trial.number: trial for trial in fixed_trials(study).values() if trial.state == TrialState.COMPLETE}
    trials.pop(best.number, None)
    found = [curve_of(study, trial, samples, best=False) for trial in trials.values()]
    return [line for line in [*found, curve_of(study, best, samples, best=True)] if line is not None]


def curve_of(study: Study, trial: FrozenTrial, samples: str, *, best: bool) -> CurveLine | None:
    """A trial's curve; None where it has none on these samples."""
    rates = study.user_attrs["rates"]
    count = study.user_attrs.get("fingerprint", {}).get("samples", {}).get(samples, {}).get("count")
    if samples == "search":
        accuracy, auc, scored = trial.user_attrs.get("accuracy"), auc_of(trial), {}
        count = trial.user_attrs.get("samples", count)
    else:
        scored = study.user_attrs.get("holdout", {}).get(str(trial.number), {})
        accuracy, auc = scored.get("accuracy"), scored.get("auc")
    if not accuracy or len(accuracy) != len(rates):
        return None
    bounds = [wilson(value, count) for value in accuracy] if count and not explains(study) else None
    return CurveLine(
        name=name_of(trial) or "",
        trial=trial.number,
        best=best,
        samples=samples,
        auc=auc,
        rates=list(rates),
        accuracy=list(accuracy),
        low=[low for low, _ in bounds] if bounds else None,
        high=[high for _, high in bounds] if bounds else None,
        cost=list(trial.user_attrs["costs"]) if trial.user_attrs.get("costs") else None,
        area=None if cost_of(study) is None else score_of(trial) if samples == "search" else scored.get("area"),
    )


COLUMNS = ("study", "composite", "trial", "best", "samples", "rate", "accuracy", "low", "high", "cost")


FLIPPING_COLUMNS = ("study", "composite", "trial", "best", "samples", "removed", "least_first", "most_first")


def flipping_lines(study: Study) -> list[dict[str, Any]]:
    """Of a study of heat maps: the target's probability at each part of the regions removed, least and most relevant
    ones first, of the known composites and the best one."""
    best = best_trial(study)
    trials = {trial.number: trial for trial in fixed_trials(study).values() if trial.values} | {best.number: best}
    found = []
    for samples in SAMPLES:
        for number, trial in trials.items():
            scored = study.user_attrs.get("holdout", {}).get(str(number))
            curve = {**trial.user_attrs, "auc": auc_of(trial)} if samples == "search" else scored
            if curve is not None:
                about = {"name": name_of(trial) or "", "trial": number, "best": int(trial is best), "samples": samples}
                values = {key: curve[key] for key in ("least_first", "most_first")}
                found.append({**about, "srg": curve["auc"], "removed": study.user_attrs["rates"], **values})
    return found


def curves_csv(study: Study) -> str:
    """A line for each composite and rate, on holdout and on search samples. low, high: of the 95 % interval over the
    images. cost: as a part of the unpruned network's."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if explains(study):
        writer.writerow(FLIPPING_COLUMNS)
        for found in flipping_lines(study):
            names = [study.study_name, *(found[key] for key in ("name", "trial", "best", "samples"))]
            curves_of = zip(found["removed"], found["least_first"], found["most_first"], strict=True)
            writer.writerows([*names, *row] for row in curves_of)
        return out.getvalue()
    writer.writerow(COLUMNS)
    for line in _all(study):
        for index, rate in enumerate(line.rates):
            of_rate = (values[index] if values else "" for values in (line.accuracy, line.low, line.high, line.cost))
            writer.writerow(
                [study.study_name, line.name, line.trial, int(line.best), line.samples, rate, *of_rate],
            )
    return out.getvalue()


def curves_document(study: Study) -> dict[str, Any]:
    """The same as a JSON document."""
    if explains(study):
        return {"format": FORMAT, "study": study.study_name, "flipping": flipping_lines(study)}
    return {"format": FORMAT, "study": study.study_name, "curves": [asdict(line) for line in _all(study)]}


def is_csv(path: Path) -> bool:
    """Whether a file is empty, or begins as `curves_csv` does."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip() in ("", ",".join(COLUMNS), ",".join(FLIPPING_COLUMNS))
    except (OSError, ValueError):
        return False


def _all(study: Study) -> Iterable[CurveLine]:
    return [line for samples in SAMPLES for line in curves(study, samples)]
