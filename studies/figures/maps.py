"""What single images are recognised by: heat maps by the best and by fixed composites, before and after pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from ..best import best_trial
from ..maps import KeptMaps, MapRow, kept_maps
from .style import BEST, LETTER, TEXT, TOP, figure

if TYPE_CHECKING:
    from optuna.study import Study

LINE = 16
HEAD = 3 * LINE + 8
"""Pixels of a line of words, and of those above the pictures."""
LONGEST = 14
"""Letters of a class's name that are shown."""


def sample_maps(study: Study) -> go.Figure | None:
    """Heat maps of a few holdout images by the best and by fixed composites, of the whole network and of the one that
    the best composite prunes; None where the run kept none."""
    kept = kept_maps(study)
    if kept is None or not kept.rows:
        return None
    height, width = kept.size
    far = max(2, width // 6)
    start = width + far  # of the maps, after the image
    across = start + kept.lefts[-1] + width
    down = height + max(1, height // 16)
    names = [_name(name, index, kept, study) for index, name in enumerate(kept.methods)]
    labels = [_label(row) for row in kept.rows]
    left = 14 + LETTER * max(len(line) for label in labels for line in label.split("<br>"))
    each = len(kept.lefts) // len(kept.methods)
    per_name = LETTER * max(len(line) for name in names for line in name.split("<br>"))
    drawn = figure(
        "Heat maps",
        _caption(kept),
        width=round(left + max(44 * len(kept.lefts), (per_name + 8) * len(names)) * across / (across - start)),
    )
    for index, row in enumerate(kept.rows):
        for source, x in ((row.image, 0), (row.maps, start)):
            middle = {"x0": x + 0.5, "y0": index * down + 0.5}  # of the first pixel
            drawn.add_image(source=f"data:image/png;base64,{source}", dx=1, dy=1, hoverinfo="skip", **middle)
    for index, label in enumerate(labels):
        _write(drawn, label, 0, index * down + height / 2, xanchor="right", xshift=-6, yanchor="middle", align="right")
    for index, name in enumerate(names):
        first, last = (start + kept.lefts[place] for place in (index * each, index * each + each - 1))
        colour = {"color": BEST} if index == 0 else {}
        shift = LINE if each > 1 else 0
        _write(drawn, name, (first + last + width) / 2, 0, yanchor="bottom", yshift=shift, font=colour)
        for place, what in zip((first, last), ("whole", "pruned"), strict=True) if each > 1 else ():
            _write(drawn, what, place + width / 2, 0, yanchor="bottom")
    total = len(kept.rows) * down
    drawn.update_xaxes(range=[0, across], visible=False, constrain="domain")
    drawn.update_yaxes(range=[total, 0], visible=False, scaleanchor="x", constrain="domain", constraintoward="top")
    drawn.update_layout(margin={"t": TOP + HEAD, "b": 8, "l": left, "r": 8})
    # the page has no title within the figure, and gives it the height that it needs
    drawn.update_layout(meta={**drawn.layout.meta, "ratio": total / across, "head": HEAD})
    drawn.update_layout(title={"y": 0.98, "yanchor": "top"})
    return drawn


def _caption(kept: KeptMaps) -> str:
    found = (
        "Holdout images, and what speaks for the class beside them (red) and against it (blue) by each composite; "
        "every map has its own scale."
    )
    if kept.rate:
        found += (
            f" Left of each pair the whole network, right the one that trial {kept.trial} leaves without "
            f"{kept.rate:.0%} of its units."
        )
    return found


def _name(name: str, index: int, kept: KeptMaps, study: Study) -> str:
    """A composite's name; what was the best, and is not any more since the study went on, is a trial like others."""
    if index == 0 and best_trial(study).number != kept.trial:
        return f"trial {kept.trial}"
    return name.replace(": ", ":<br>")


def _label(row: MapRow) -> str:
    """The explained class, and what else there is to say of classes, a line each."""
    lines = [("", row.label), ("is: ", row.true), ("pruned: ", row.after)]
    cut = (
        word + (name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…") for word, name in lines if name is not None
    )
    return "<br>".join(cut)


def _write(drawn: go.Figure, text: str, x: float, y: float, **how: object) -> None:
    drawn.add_annotation(**{"text": text, "x": x, "y": y, "showarrow": False, "font": {"size": TEXT}, **how})
