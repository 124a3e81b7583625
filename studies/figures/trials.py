"""The trials of a study, one after another and against each other."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from ..best import auc_of, best_trial, cost_of, explains, score_of
from ..report import called, fixed_trials, name_of
from .style import BEST, OTHERS, QUIET, End, figure, label_ends, span_of

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

COSTS = {"macs": "multiply-adds", "params": "parameters", "latency": "time for an image"}
MOST_LINES = 200
"""Curves in one figure; of more trials the highest ones are drawn."""


def history(study: Study) -> go.Figure | None:
    """The score of each trial and the highest so far, against the best fixed composite's."""
    trials = _complete(study)
    if not trials:
        return None
    best = best_trial(study)
    values = [score_of(trial) for trial in trials]
    span = span_of(values)
    drawn = figure(
        "How the search went",
        f"{_measure(study)} on the search images, by trial; the line is the highest so far. "
        f"Filled: composites known before; open: proposed by the sampler.{span.note}",
        "trial",
        _measure(study).lower(),
    )
    given = [name_of(trial) is not None for trial in trials]
    drawn.add_scatter(
        x=[trial.number for trial in trials],
        y=values,
        mode="markers",
        marker={
            "size": 7,
            "color": QUIET,
            "symbol": ["circle" if known else "circle-open" for known in given],
        },
        text=[called(trial) for trial in trials],
        hovertemplate="%{text}: %{y:.4f}<extra></extra>",
        name="trials",
    )
    drawn.add_scatter(
        x=[trial.number for trial in trials],
        y=list(accumulate(values, max)),
        mode="lines",
        line={"shape": "hv", "color": OTHERS[0], "width": 1.5},
        hoverinfo="skip",
        name="highest so far",
    )
    drawn.add_scatter(
        x=[best.number],
        y=[score_of(best)],
        mode="markers",
        marker={"size": 11, "color": BEST, "symbol": "diamond"},
        hovertemplate=f"best: {called(best)}: %{{y:.4f}}<extra></extra>",
        name=f"best {score_of(best):.3f}",
    )
    ends = [End(f"best {score_of(best):.3f}", score_of(best), BEST)]
    fixed = {name: trial for name, trial in fixed_trials(study).items() if trial in trials}
    if fixed:
        name = max(fixed, key=lambda name: score_of(fixed[name]))
        value = score_of(fixed[name])
        drawn.add_scatter(
            x=[trials[0].number, trials[-1].number],
            y=[value, value],
            mode="lines",
            line={"dash": "dot", "width": 1.5, "color": OTHERS[1]},
            hoverinfo="skip",
            name=f"{name}, the best fixed composite, {value:.3f}",
        )
        ends.append(End(f"{name} {value:.3f}", value, OTHERS[1]))
    drawn.update_yaxes(range=[span.low, span.high])
    drawn.update_xaxes(range=[-0.5, trials[-1].number + 0.5])
    label_ends(drawn, ends, span.low, span.high)
    return drawn


def all_curves(study: Study) -> go.Figure | None:
    """The curve of every complete trial on the search samples, the best one's on top."""
    rates = study.user_attrs["rates"]
    trials = [trial for trial in _complete(study) if len(trial.user_attrs.get("accuracy", ())) == len(rates)]
    if not trials or explains(study):
        return None
    best = best_trial(study)
    shown = sorted(trials, key=lambda trial: (-auc_of(trial), trial.number))[:MOST_LINES]
    which = "every" if len(shown) == len(trials) else f"the {MOST_LINES} highest of {len(trials)}"
    drawn = figure(
        "The curve of each trial",
        f"Accuracy on the search images of {which} complete trial{'' if which == 'every' else 's'}; point at a line to "
        "see which.",
        "part of the units removed",
        "accuracy",
    )
    for trial in [*(trial for trial in shown if trial.number != best.number), best]:
        top = trial.number == best.number
        drawn.add_scatter(
            x=rates,
            y=[round(value, 5) for value in trial.user_attrs["accuracy"]],
            mode="lines",
            line={"color": BEST if top else QUIET, "width": 2.5 if top else 1},
            opacity=1 if top else 0.45,
            name=f"{called(trial)}, {auc_of(trial):.4f}",
            showlegend=top,
            hovertemplate="%{fullData.name}<br>rate %{x}: %{y:.1%}<extra></extra>",
        )
    drawn.update_xaxes(tickformat=".0%", range=[0, 1.01 * rates[-1]])
    drawn.update_yaxes(tickformat=".0%", range=[0, 1.02])
    label_ends(drawn, [End(f"best {auc_of(best):.3f}", best.user_attrs["accuracy"][-1], BEST)], 0, 1.02)
    return drawn


def pareto_front(study: Study) -> go.Figure | None:
    """Both objectives of every complete trial, and those that no other one beats in both."""
    trials = _complete(study)
    if len(study.directions) != 2 or not trials:
        return None
    names = study.metric_names or ["AUC", "second objective"]
    front = sorted(study.best_trials, key=lambda trial: trial.values)
    best = best_trial(study)
    drawn = figure(
        "Pareto front",
        "Both objectives of each trial. The line joins the trials that no other one beats in both; "
        "export --trial N writes one.",
        names[1],
        names[0],
    )
    numbers = {trial.number for trial in front}
    for label, some, colour, mode in (
        ("trials", [trial for trial in trials if trial.number not in numbers], QUIET, "markers"),
        ("front", front, OTHERS[0], "lines+markers"),
        ("best", [best], BEST, "markers"),
    ):
        drawn.add_scatter(
            x=[trial.values[1] for trial in some],
            y=[trial.values[0] for trial in some],
            mode=mode,
            line={"shape": "hv", "width": 1.5, "color": colour},
            marker={"size": 11 if label == "best" else 7, "color": colour, "symbol": _symbol(label)},
            text=[called(trial) for trial in some],
            hovertemplate="%{text}<br>%{y:.4f}, %{x:.4f}<extra></extra>",
            name=label,
        )
    drawn.add_annotation(
        text=f"highest {names[0]}" if best.number in numbers else "best",
        x=best.values[1],
        y=best.values[0],
        yshift=14,
        showarrow=False,
        font={"color": BEST},
    )
    return drawn


def _measure(study: Study) -> str:
    if explains(study):
        return "Symmetric relevance gain"
    cost = cost_of(study)
    return "Area under the curve" if cost is None else f"Area over the {COSTS.get(cost, cost)} saved"


def _symbol(label: str) -> str:
    return {"trials": "circle-open", "best": "diamond"}.get(label, "circle")


def _complete(study: Study) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
