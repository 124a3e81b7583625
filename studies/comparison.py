"""What a comparison of a study's best composite says: rows of figures, as a table, as CSV, as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import CONFIDENCE, RESAMPLES, Estimate, estimate, holm
from .document import is_json
from .report import KEPT, new_table

if TYPE_CHECKING:
    from rich.table import Table

COMPARISON_FORMAT = "pxp-comparison/1"
MAX_COLUMNS = 7
"""Rates that the second table shows, at most; the files have all."""
NAMES = ("auc", "sparsity")
COST_NAMES = ("area", "saved")
"""What the two measures of a method are called, where trials are judged by the AUC, and where by a cost."""


@dataclass(frozen=True)
class Figure:
    """A value with the interval that it lies in with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Figure):
    """This method less the best composite. p: two-sided, of there being none; corrected: by Holm, for as many
    comparisons as there are methods."""

    p: float
    corrected: float

    @property
    def significant(self) -> bool:
        return self.corrected < 1 - CONFIDENCE


@dataclass(frozen=True)
class Line:
    """A method. auc, sparsity: where trials are judged by a cost, the area over it and the part of it that is saved.
    by_draw: its AUC with each draw of the reference images. auc_difference, sparsity_difference: None for the best
    composite itself."""

    name: str
    auc: Figure
    sparsity: Figure
    accuracy: tuple[Figure, ...]
    by_draw: tuple[float, ...]
    auc_difference: Difference | None
    sparsity_difference: Difference | None

    @property
    def verdict(self) -> str:
        difference = self.auc_difference
        if difference is None:
            return ""
        if not difference.significant:
            return "not significant"
        return "worse" if difference.value < 0 else "better"


def compare(
    correct: Mapping[str, NDArray[np.bool_]],
    best: str,
    rates: Sequence[float],
    seed: int,
    costs: Mapping[str, NDArray[np.float64]] | None = None,
) -> list[Line]:
    """A line for each method, in the order given; `correct`, `seed` and `costs` as `bootstrap.estimate` takes them."""
    found = estimate(correct, best, rates, KEPT, seed=seed, costs=costs)
    others = [name for name in correct if name != best]
    corrected = [holm({name: float(found.difference[name].p[index]) for name in others}) for index in range(2)]

    def difference(name: str, index: int) -> Difference | None:
        if name == best:
            return None
        figure = found.difference[name]
        at = _figure(figure, index)
        return Difference(at.value, at.low, at.high, float(figure.p[index]), corrected[index][name])

    return [
        Line(
            name=name,
            auc=_figure(level, 0),
            sparsity=_figure(level, 1),
            accuracy=tuple(_figure(level, 2 + index) for index in range(len(rates))),
            by_draw=tuple(found.by_draw[name]),
            auc_difference=difference(name, 0),
            sparsity_difference=difference(name, 1),
        )
        for name, level in found.level.items()
    ]


def _figure(found: Estimate, index: int) -> Figure:
    return Figure(float(found.value[index]), float(found.low[index]), float(found.high[index]))


def comparison_tables(lines: Sequence[Line], rates: Sequence[float], names: tuple[str, str] = NAMES) -> list[Table]:
    """What is printed (names: `NAMES` or `COST_NAMES`): AUC, sparsity and differences; then the accuracy at some of the
    rates."""
    measure = "AUC" if names == NAMES else names[0]
    first = new_table(
        "method",
        f"{measure}, holdout",
        names[1],
        f"{measure} less the best's",
        "p (Holm)",
        "",
        numbers=(1, 2, 3, 4),
    )
    step = max(1, -(-len(rates) // MAX_COLUMNS))
    shown = list(range(0, len(rates), step))
    second = new_table("accuracy at rate", *(f"{rates[index]:g}" for index in shown), numbers=range(1, 1 + len(shown)))
    for line in lines:
        style = None if line.auc_difference else "bold"
        difference = line.auc_difference
        first.add_row(
            line.name,
            _text(line.auc),
            f"{line.sparsity.value:.0%} [{line.sparsity.low:.0%}, {line.sparsity.high:.0%}]",
            _text(difference, sign="+") if difference else "",
            _chance(difference.corrected) if difference else "",
            line.verdict,
            style=style,
        )
        second.add_row(line.name, *(f"{line.accuracy[index].value:.1%}" for index in shown), style=style)
    return [first, second]


def _text(figure: Figure, sign: str = "") -> str:
    return f"{figure.value:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def explanation(
    lines: Sequence[Line], draws: int, images: int, sharing: str, names: tuple[str, str] = NAMES
) -> list[str]:
    """How the table is to be read, in a few lines of text. sharing: what the draws have of the study's own reference
    images, in words."""
    others = len(lines) - 1
    draws_text = (
        f"{draws} draws of the reference images, {sharing}, and {images} holdout images, resampled together "
        f"{RESAMPLES} times"
        if draws > 1
        else f"one draw of the reference images, {sharing}, and {images} holdout images, resampled "
        f"{RESAMPLES} times (what another draw would change is not counted: give --seeds 3 or more)"
    )
    doubt = [line.name for line in lines if line.verdict == "not significant"]
    verdict = (
        f"not significant against the best composite: {'; '.join(doubt)}"
        if doubt
        else "every difference to the best composite is significant"
    )
    return [
        f"{CONFIDENCE:.0%} intervals: {draws_text}",
        f"{names[1]}: the largest {'rate' if names == NAMES else 'part of the cost'} that keeps {KEPT:.0%} of the "
        "unpruned accuracy; "
        f"p: paired, corrected by Holm for {others} comparisons (intervals are not)",
        verdict,
    ]


def comparison_document(
    lines: Sequence[Line], rates: Sequence[float], about: Mapping[str, Any], names: tuple[str, str] = NAMES
) -> dict[str, Any]:
    """As JSON values. about: what was compared, put in front. names: `NAMES` or `COST_NAMES`."""
    area, sparsity = names

    def difference(value: Difference | None) -> dict[str, Any] | None:
        return None if value is None else {**vars(value), "significant": value.significant}

    return {
        "format": COMPARISON_FORMAT,
        **about,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "kept": KEPT,
        "rates": list(rates),
        "methods": [
            {
                "name": line.name,
                area: vars(line.auc),
                f"{area}_by_draw": list(line.by_draw),
                sparsity: vars(line.sparsity),
                "accuracy": [vars(figure) for figure in line.accuracy],
                "difference": {
                    area: difference(line.auc_difference),
                    sparsity: difference(line.sparsity_difference),
                },
            }
            for line in lines
        ],
    }


def comparison_csv(lines: Sequence[Line], rates: Sequence[float], names: tuple[str, str] = NAMES) -> str:
    """As CSV, a row a method; differences are empty for the best composite itself. names: `NAMES` or `COST_NAMES`."""
    measures = [*names, *(f"accuracy_{rate:g}" for rate in rates)]
    header = ["method", *(f"{name}{end}" for name in measures for end in ("", "_low", "_high"))]
    ends = ("", "_low", "_high", "_p", "_p_holm", "_significant")
    header += [f"{name}_difference{end}" for name in names for end in ends]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for line in lines:
        row: list[Any] = [line.name]
        for figure in (line.auc, line.sparsity, *line.accuracy):
            row += [figure.value, figure.low, figure.high]
        for found in (line.auc_difference, line.sparsity_difference):
            if found is None:
                row += [""] * len(ends)
            else:
                row += [found.value, found.low, found.high, found.p, found.corrected, str(found.significant).lower()]
        writer.writerow(row)
    return text.getvalue()


def is_document(path: Path) -> bool:
    """Whether a file is empty, or holds a comparison as JSON: whether it may be written over by another one."""
    return is_json(path, COMPARISON_FORMAT)


def is_csv(path: Path) -> bool:
    """Whether a file is empty, or was written from `comparison_csv`."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, ValueError):
        return False
    known = (NAMES[0], COST_NAMES[0], "srg")
    return not first or first.startswith(tuple(f"method,{name},{name}_low," for name in known))
