"""Accuracy against what is removed: of the best and of the fixed composites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from ...pruning.cost import END
from ..best import explains
from ..curves import CurveLine, curves
from .style import BEST, OTHERS, End, add_band, figure, label_ends

if TYPE_CHECKING:
    from optuna.study import Study

TOP = 1.02
"""Of the axis of accuracies, so that a line at 100 % is whole."""
KINDS = {"filters": "filters", "neurons": "neurons", "heads": "attention heads"}


def holdout_curves(study: Study) -> go.Figure | None:
    """Accuracy on the holdout samples, which the search has not seen, against the part of the units removed."""
    return _over_rates(
        study,
        "holdout",
        "Accuracy on images that the search has not seen",
        "Accuracy on the holdout images. Lines that differ by less than their bands may differ by chance.",
    )


def search_curves(study: Study) -> go.Figure | None:
    """The same on the search samples, which chose the best one."""
    return _over_rates(
        study,
        "search",
        "Accuracy on the search images",
        "Accuracy on the images that chose the best composite, so that its lead here is in part luck.",
    )


def _over_rates(study: Study, samples: str, title: str, caption: str) -> go.Figure | None:
    lines = curves(study, samples)
    if not lines or explains(study):  # which has other curves
        return None
    shaded = " Bands: 95 % over the images." if all(line.low for line in lines) else ""
    drawn = figure(title, f"{caption}{shaded} Numbers: area under the curve.", _removed(study), "accuracy")
    _draw(drawn, lines, [line.rates for line in lines])
    return drawn


def cost_curves(study: Study) -> go.Figure | None:
    """Accuracy on the holdout samples, or else on the search's, against the part of the cost that is saved; where the
    study measured one."""
    lines = [line for line in curves(study, "holdout") or curves(study, "search") if line.cost]
    if not lines:
        return None
    cost = study.user_attrs.get("config", {}).get("objective", "").rpartition(",")[2]
    what = {"macs": "multiply-adds", "params": "parameters", "latency": "time"}.get(cost, cost or "cost")
    judged = all(line.area is not None for line in lines)
    numbers = (
        f"area that trials are judged by, up to {END:.0%}" if judged else "area under the curve over the units removed"
    )
    drawn = figure(
        f"Accuracy against the {what} saved",
        f"Accuracy on the {lines[0].samples} images. Numbers: {numbers}.",
        f"part of the {what} saved",
        "accuracy",
    )
    _draw(drawn, lines, [[1 - value for value in line.cost or ()] for line in lines], areas=judged)
    return drawn


def _removed(study: Study) -> str:
    kinds = study.user_attrs.get("fingerprint", {}).get("units", "units").split("+")
    return f"part of the {' and '.join(KINDS.get(kind, kind) for kind in kinds)} removed"


def _draw(drawn: go.Figure, lines: Sequence[CurveLine], across: Sequence[list[float]], *, areas: bool = False) -> None:
    """One line with its band for each composite, the best one's last and so on top. areas: label them by the area over
    the cost."""
    ends = []
    scores = [line.area if areas else line.auc for line in lines]
    for index, (line, x) in enumerate(zip(lines, across, strict=True)):
        colour = BEST if line.best else OTHERS[index % len(OTHERS)]
        if line.low and line.high:
            add_band(drawn, x, line.low, line.high, colour, f"{line.label}, 95 %", top=line.best)
    for index, (line, x, score) in enumerate(zip(lines, across, scores, strict=True)):
        colour = BEST if line.best else OTHERS[index % len(OTHERS)]
        drawn.add_scatter(
            x=x,
            y=line.accuracy,
            mode="lines+markers",
            line={"color": colour, "width": 2.5 if line.best else 1.5},
            marker={"size": 5 if line.best else 4},
            name=f"{line.label}  {score:.3f}",
            customdata=line.rates,
            hovertemplate=f"{line.label}<br>rate %{{customdata}}: %{{y:.1%}}<extra></extra>",
        )
        ends.append(End(f"{line.label}  {score:.3f}", line.accuracy[-1], colour))
    last = max(max(x) for x in across)
    drawn.update_xaxes(tickformat=".0%", range=[0, 1.01 * last])
    drawn.update_yaxes(tickformat=".0%", range=[0, TOP])
    # the highest area first, where lines end together
    label_ends(drawn, sorted(ends, key=lambda end: end.text.split()[-1], reverse=True), 0, TOP)
