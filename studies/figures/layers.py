"""What goes from which layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from ..best import best_trial
from ..steps import STEPS, UNITS, removed_by_layer
from .style import SCALE, figure

if TYPE_CHECKING:
    from optuna.study import Study

ROW = 15
"""Pixels of a layer."""
LONGEST = 26
"""Letters of a layer's name that are shown: the last ones."""


def removed_layers(study: Study) -> go.Figure | None:
    """The part of each layer's units that is gone at each rate, under the best trial's ranking; None of a study from
    before that was kept, or of one over several draws of the reference samples."""
    from optuna.trial import TrialState

    units = study.user_attrs.get(UNITS)
    if not isinstance(units, dict) or not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    trial = best_trial(study)
    packed = trial.system_attrs.get(STEPS)
    if not packed:
        return None
    rates = study.user_attrs["rates"]
    removed = removed_by_layer(packed, units, rates)
    drawn = figure(
        "What goes from which layer",
        f"The part of each layer's units that trial {trial.number} has removed at each rate; the input is at the top.",
        "part of all units removed",
        height=110 + ROW * len(removed),
        width=440,
    )
    names = list(removed)
    shown = [f"{name if len(name) <= LONGEST else '…' + name[-LONGEST:]} ({units[name]})" for name in names]
    drawn.add_heatmap(
        x=list(rates),
        y=shown if len(set(shown)) == len(shown) else [f"{name} ({units[name]})" for name in names],
        z=[[round(value, 4) for value in removed[name]] for name in names],
        zmin=0,
        zmax=1,
        colorscale=SCALE,
        xgap=1,
        ygap=1,
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "tickvals": [0, 0.5, 1], "len": 0.6},
        hovertemplate="%{y}<br>%{z:.0%} gone at %{x:.0%}<extra></extra>",
    )
    drawn.update_yaxes(autorange="reversed", showgrid=False, ticks="", tickmode="linear", dtick=1)
    drawn.update_xaxes(tickformat=".0%", dtick=0.2, showline=False, ticks="")
    return drawn
