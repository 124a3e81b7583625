"""How figures look: colours that colour-blind people tell apart, two sizes of type, labels instead of legends."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

BEST = "#D55E00"
OTHERS = ("#3D7FBF", "#2A8C3F", "#BF4A97", "#A07A00", "#6A7F8A")
QUIET = "#8A9096"
"""The best composite, the ones it is compared with in their order, and what stands back. But for that, all stand out
from white and from black alike, by 3.8 to 1 or more (after Okabe and Ito 2008, Tol 2021)."""
SCALE = "Cividis"
"""Of heat maps; its lightness rises evenly, for every kind of sight (Nunez et al. 2018)."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT, TITLE = 12, 15
"""Sizes of type in pixels."""
LETTER = 6.6
"""How wide a letter of the text is, about."""
HEIGHT = 360
TOP, BOTTOM, LEFT = 48, 52, 64
"""Margins in pixels."""

THEMES = {
    "light": {"paper": "#FFFFFF", "ink": "#23272B", "text": "#565D64", "rule": "#9AA0A6", "grid": "#ECEEF0"},
    "dark": {"paper": "#15181B", "ink": "#E8EAEC", "text": "#A3A9AF", "rule": "#6B7177", "grid": "#272B2F"},
}


def template(theme: str = "light") -> go.layout.Template:
    """All colours that depend on the page's being light or dark, so that a page can change them."""
    colour = THEMES[theme]
    axis = {
        "linecolor": colour["rule"],
        "gridcolor": colour["grid"],
        "tickcolor": colour["rule"],
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 10, "font": {"size": TEXT}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": TEXT, "color": colour["text"]},
            "title": {"font": {"size": TITLE, "color": colour["ink"]}, "x": 0, "xanchor": "left", "xref": "container"},
            "paper_bgcolor": colour["paper"],
            "plot_bgcolor": colour["paper"],
            "xaxis": {**axis, "showgrid": False, "showline": True, "ticks": "outside", "ticklen": 4},
            "yaxis": {**axis, "showgrid": True, "showline": False},
            "hoverlabel": {"bgcolor": colour["paper"], "font": {"size": TEXT, "color": colour["ink"], "family": FONT}},
            "annotationdefaults": {"font": {"size": TEXT}, "showarrow": False, "bgcolor": colour["paper"]},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": colour["paper"]},
            "showlegend": False,
        }
    )


def figure(title: str, caption: str, x: str = "", y: str = "", height: int = HEIGHT, width: int = 0) -> go.Figure:
    """An empty figure. caption: what it shows and how it is to be read, in a sentence or two. width: the least that it
    can be read at, in pixels."""
    return go.Figure(
        layout={
            "template": template(),
            "title": {"text": title, "pad": {"l": 12}},
            "meta": {"caption": caption, "width": width},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "height": height,
            "margin": {"t": TOP, "b": BOTTOM, "l": LEFT, "r": 24},
        }
    )


def caption_of(drawn: go.Figure) -> str:
    """The caption of a figure; nothing of one that has none."""
    return str(_meta(drawn).get("caption", ""))


def width_of(drawn: go.Figure) -> int:
    """The least width that a figure can be read at, in pixels."""
    return int(_meta(drawn).get("width", 0))


def _meta(drawn: go.Figure) -> dict[str, Any]:
    return drawn.layout.meta if isinstance(drawn.layout.meta, dict) else {}


def title_of(drawn: go.Figure) -> str:
    """The title of a figure."""
    return drawn.layout.title.text or ""


class End(NamedTuple):
    """A label at a line's right end: its text, the line's last value, its colour."""

    text: str
    value: float
    colour: str


def label_ends(drawn: go.Figure, ends: Sequence[End], low: float, high: float) -> None:
    """Writes labels to the right of lines, at their ends, moved apart where they would overlap. Where a page is too
    narrow for them it shows a legend in their place (`layout.meta`, "ends").

    low, high: the range of the vertical axis.
    """
    height = (drawn.layout.height or HEIGHT) - TOP - BOTTOM
    gap = 1.25 * TEXT / height * (high - low)
    ordered = sorted(range(len(ends)), key=lambda index: (ends[index].value, -index))
    places = spread([ends[index].value for index in ordered], gap, low, high)
    for index, place in zip(ordered, places, strict=True):
        end = ends[index]
        drawn.add_annotation(
            text=end.text,
            x=1,
            xref="paper",
            xanchor="left",
            xshift=6,
            y=place,
            yanchor="middle",
            showarrow=False,
            align="left",
            font={"color": end.colour, "size": TEXT},
        )
    drawn.update_layout(margin={"r": round(18 + LETTER * max((len(end.text) for end in ends), default=0))})
    drawn.update_layout(meta={**_meta(drawn), "ends": True})


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending values moved as little as it takes to lie `gap` apart within [low, high], if there is room."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else max(value, low))
    ceiling = high
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


class Span(NamedTuple):
    """The range of an axis, and how many values lie below it."""

    low: float
    high: float
    below: int

    @property
    def note(self) -> str:
        """What a caption says of the values that are not shown."""
        return f" Not shown: {self.below} below {self.low:.2f}." if self.below else ""


def span_of(values: Sequence[float]) -> Span:
    """A range that shows all values but those far below the others (Tukey's fences)."""
    low, high = min(values), max(values)
    if len(values) >= 4:
        quarter, _, three = statistics.quantiles(values, n=4)
        low = max(low, min(quarter - 1.5 * (three - quarter), high - 0.01))
    margin = 0.06 * (high - low or 0.1)
    return Span(low - margin, high + margin, sum(value < low - margin for value in values))


def band(colour: str, opacity: float) -> str:
    """A colour as plotly's rgba."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def add_band(
    drawn: go.Figure,
    x: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    name: str,
    *,
    top: bool,
) -> None:
    """Shades what a line may vary by. top: of the line that stands out."""
    drawn.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=band(colour, 0.16 if top else 0.07),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=name,
        showlegend=False,
    )
