"""Which parameters matter, and where good values lie."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go

from ..best import best_trial, heading_of, score_of
from .style import BEST, OTHERS, QUIET, figure, span_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FEWEST = 10
"""Trials that a parameter's importance is worked out from, at least."""
SLICES, AXES = 4, 6
"""Parameters in slices and in parallel coordinates, at most: more slices overlap in the dashboard's boxes."""
LEAST = 0.01
"""The importance from which a bar is drawn."""
UPPER = 0.1
"""The part of the trials that counts as the best ones."""


def importances(study: Study) -> dict[str, float]:
    """How much each parameter has to do with being among the best tenth, as parts of 1, the highest first (PED-ANOVA:
    Watanabe et al. 2023). A parameter is judged among the trials that have it; with fewer than `FEWEST` it is not."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    counts: dict[str, int] = {}
    varied: dict[str, set[Any]] = {}
    for trial in _complete(study):
        for name, value in trial.params.items():
            counts[name] = counts.get(name, 0) + 1
            varied.setdefault(name, set()).add(value)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # that targets are minimised, as this one is
        for name, count in counts.items():
            if count < FEWEST or len(varied[name]) < 2:
                continue
            try:
                found[name] = get_param_importances(
                    study,
                    evaluator=PedAnovaImportanceEvaluator(),
                    params=[name],
                    target=lambda trial: -score_of(trial),
                    normalize=False,
                )[name]
            except ValueError:  # its range was changed meanwhile
                continue
    total = sum(found.values())
    return {name: value / total for name, value in sorted(found.items(), key=lambda item: -item[1])} if total else {}


def importance(study: Study) -> go.Figure | None:
    """How much each parameter has to do with a high score."""
    all_found = importances(study)
    if not all_found:
        return None
    found = {name: value for name, value in all_found.items() if value >= LEAST}
    rest = len(all_found) - len(found)
    drawn = figure(
        "Which parameters matter",
        "How much a parameter's value says about a trial's being among the best tenth (PED-ANOVA), as parts of 100 %."
        + (f" Not shown: {rest} below {LEAST:.0%}." if rest else ""),
        height=90 + 22 * len(found),
    )
    names = list(reversed(found))
    drawn.add_bar(
        x=[found[name] for name in names],
        y=names,
        orientation="h",
        marker={"color": OTHERS[0]},
        text=[f"{found[name]:.0%}" for name in names],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    drawn.update_xaxes(visible=False, range=[0, 1.15 * max(found.values())])
    drawn.update_yaxes(showgrid=False, ticksuffix=" ")
    drawn.update_layout(margin={"b": 16})
    return drawn


def slices(study: Study) -> go.Figure | None:
    """The score against the value of each parameter that matters."""
    from optuna.distributions import CategoricalDistribution
    from plotly.subplots import make_subplots

    shown = list(importances(study))[:SLICES]
    if not shown:
        return None
    trials, best = _complete(study), best_trial(study)
    rows = math.ceil(len(shown) / 2)
    span = span_of([score_of(trial) for trial in trials])
    drawn = figure(
        "Where good values lie",
        f"{heading_of(study)} on the search images against each parameter.{span.note}",
        height=100 + 190 * rows,
        width=520,
    )
    columns = min(2, len(shown))
    make_subplots(rows, columns, shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=0.42 / rows, figure=drawn)
    for index, name in enumerate(shown):
        row, column = index // 2 + 1, index % 2 + 1
        some = [trial for trial in trials if name in trial.params]
        space = some[-1].distributions[name]
        drawn.add_scatter(
            x=[_shown(trial.params[name]) for trial in some],
            y=[score_of(trial) for trial in some],
            mode="markers",
            marker={
                "size": [10 if trial.number == best.number else 6 for trial in some],
                "color": [BEST if trial.number == best.number else QUIET for trial in some],
                "symbol": ["diamond" if trial.number == best.number else "circle-open" for trial in some],
            },
            text=[f"trial {trial.number}" for trial in some],
            hovertemplate=f"%{{text}}<br>{name} %{{x}}: %{{y:.4f}}<extra></extra>",
            name=name,
            row=row,
            col=column,
        )
        choice = isinstance(space, CategoricalDistribution)
        kind = "log" if getattr(space, "log", False) else "category" if choice else "linear"
        drawn.update_xaxes(type=kind, title={"text": name}, row=row, col=column)
        if kind == "log":
            drawn.update_xaxes(dtick=1, tickformat="~g", row=row, col=column)
        if isinstance(space, CategoricalDistribution):
            choices = [_shown(choice) for choice in space.choices if any(t.params[name] == choice for t in some)]
            drawn.update_xaxes(
                categoryorder="array",
                categoryarray=choices,
                tickvals=choices,
                ticktext=[_broken(choice) for choice in choices],
                tickangle=0,
                row=row,
                col=column,
            )
    drawn.update_yaxes(title={"text": heading_of(study)}, col=1)
    drawn.update_yaxes(range=[span.low, span.high])
    return drawn


class Scale(NamedTuple):
    """One axis of the parallel coordinates. places: of values, from 0 to 1. ticks: what is written at which place.
    named: whether these are choices, not numbers."""

    places: list[float]
    ticks: list[tuple[float, str]]
    named: bool = False


def parallel(study: Study) -> go.Figure | None:
    """The parameters that matter and all trials have, and the score, each trial a line; the best tenth in colour."""
    trials = sorted(_complete(study), key=score_of)
    shown = [name for name in importances(study) if all(name in trial.params for trial in trials)][:AXES]
    if len(shown) < 2:
        return None
    best = best_trial(study)
    trials.sort(key=lambda trial: trial.number == best.number)  # on top of all others
    scales = {name: _scale([t.params[name] for t in trials], trials[-1].distributions[name]) for name in shown}
    scales[heading_of(study)] = _numbers([score_of(trial) for trial in trials], log=False)
    drawn = figure(
        "Which values go together",
        f"Each line is a trial, from its parameters to its {heading_of(study)}. In colour: the best tenth, and the "
        "best one.",
        height=380,
        width=520,
    )
    top = len(trials) - max(1, math.ceil(UPPER * len(trials)))
    for index, trial in enumerate(trials):
        chosen = trial.number == best.number
        drawn.add_scatter(
            x=list(range(len(scales))),
            y=[round(scale.places[index], 4) for scale in scales.values()],
            mode="lines",
            line={
                "color": BEST if chosen else OTHERS[0] if index >= top else QUIET,
                "width": 2.5 if chosen else 1.5 if index >= top else 0.75,
                "shape": "spline",
                "smoothing": 0.4,
            },
            opacity=1 if chosen or index >= top else 0.4,
            name=f"trial {trial.number}, {score_of(trial):.4f}",
            hoverinfo="name",
        )
    for position, scale in enumerate(scales.values()):
        drawn.add_vline(x=position, line={"width": 1, "color": QUIET}, opacity=0.6)
        for place, text in scale.ticks:
            shift = 0 if scale.named else 9 if place else -9
            drawn.add_annotation(x=position, y=place, text=_broken(text), showarrow=False, yshift=shift)
    drawn.update_xaxes(
        tickvals=list(range(len(scales))),
        ticktext=[name.replace(".", "<br>").replace("_", "<br>") for name in scales],
        showline=False,
        ticks="",
    )
    drawn.update_xaxes(range=[-0.4, len(scales) - 0.6])
    drawn.update_yaxes(visible=False, range=[-0.09, 1.09])
    drawn.update_layout(margin={"l": 24, "r": 24})
    return drawn


def _broken(text: object) -> str:
    """A name in several lines, so that it stands beside others."""
    return str(text).replace("_", "<br>")


def _scale(values: Sequence[Any], space: BaseDistribution) -> Scale:
    from optuna.distributions import CategoricalDistribution

    if isinstance(space, CategoricalDistribution):
        choices = [choice for choice in space.choices if choice in values]
        step = 1 / max(1, len(choices) - 1)
        return Scale(
            [choices.index(value) * step for value in values],
            [(index * step, str(_shown(choice))) for index, choice in enumerate(choices)],
            named=True,
        )
    return _numbers(values, log=bool(getattr(space, "log", False)))


def _numbers(values: Sequence[float], *, log: bool) -> Scale:
    moved = [math.log(value) for value in values] if log else list(values)
    low, high = min(moved), max(moved)
    places = [(value - low) / (high - low) if high > low else 0.5 for value in moved]
    return Scale(places, [(0.0, f"{min(values):.2g}"), (1.0, f"{max(values):.2g}")] if high > low else [])


def _shown(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _complete(study: Study) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
