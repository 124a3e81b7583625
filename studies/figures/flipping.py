"""The target's probability while regions of the image are removed: of the best and of the known composites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from ..best import best_trial, explains, score_of
from ..curves import Z
from ..report import fixed_trials, name_of
from .style import BEST, OTHERS, End, add_band, figure, label_ends

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

KEYS = ("least_first", "most_first")
SHOWN = 4
"""Known composites that are drawn, the best of them: with more, no line can be told from another."""


def flipping_curves(study: Study) -> go.Figure | None:
    """Both curves of a few composites, on the holdout images where they were measured there."""
    known = sorted((t for t in fixed_trials(study).values() if t.values), key=score_of, reverse=True)
    if not explains(study) or not known:
        return None
    best = best_trial(study)
    trials = [*(trial for trial in known[:SHOWN] if trial.number != best.number), best]
    holdout = study.user_attrs.get("holdout", {})
    on_holdout = all(str(trial.number) in holdout for trial in trials)
    drawn = figure(
        "What becomes of the answer while regions are removed",
        f"Mean probability of the explained class on the {'holdout' if on_holdout else 'search'} images. Solid: the "
        "least relevant regions go first; dashed: the most relevant ones. Numbers: symmetric relevance gain, the area "
        f"between the two. Of the known composites the best {SHOWN}. Shaded, of the best: 95 % over the images; others "
        "may differ within it, since they are measured on the same images (pxp-optimize compare).",
        "part of the regions removed",
        "probability",
    )
    ends, parts = [], study.user_attrs["rates"]
    for index, trial in enumerate(trials):
        found = holdout[str(trial.number)] if on_holdout else {**trial.user_attrs, "auc": score_of(trial)}
        colour = BEST if trial is best else OTHERS[index % len(OTHERS)]
        name = f"{_label(trial, best)}  {found['auc']:.3f}"
        for key, dash in zip(KEYS, ("solid", "dash"), strict=True):
            errors = found.get(f"{key}_error")  # which studies of earlier versions lack
            if trial is best and errors:
                low, high = ([v + sign * Z * e for v, e in zip(found[key], errors, strict=True)] for sign in (-1, 1))
                add_band(drawn, parts, low, high, colour, f"{name}, 95 %", top=True)
            drawn.add_scatter(
                x=parts,
                y=found[key],
                mode="lines+markers",
                line={"color": colour, "width": 2.5 if trial is best else 1.5, "dash": dash},
                name=f"{name}, {key.partition('_')[0]} relevant first",
                hovertemplate="%{fullData.name}<br>%{x:.0%} removed: %{y:.1%}<extra></extra>",
            )
        ends.append(End(name, found["least_first"][-2], colour))
    drawn.update_xaxes(tickformat=".0%", range=[0, 1.01])
    drawn.update_yaxes(tickformat=".0%", range=[0, 1.02])
    label_ends(drawn, sorted(ends, key=lambda end: end.text.split()[-1], reverse=True), 0, 1.02)
    return drawn


def _label(trial: FrozenTrial, best: FrozenTrial) -> str:
    name = name_of(trial) or f"trial {trial.number}"
    return f"best: {name}" if trial is best else name
