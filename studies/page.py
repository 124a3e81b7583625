"""The report: one page in HTML with everything in it, also plotly's own program, so that it opens without a network."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import summary
from .best import best_trial, cost_of, explains
from .document import check_ours
from .internals import snapshot
from .report import HEAT_MAPS, title

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

GENERATOR = '<meta name="generator" content="pxp-optimize">'
"""By which a report is known."""

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #23272b; --text: #565d64; --rule: #e3e5e8; --mark: #d55e00 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181b; --ink: #e8eaec; --text: #a3a9af; --rule: #2d3236; --mark: #e8772b } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 40px 24px 64px; max-width: 1180px; background: var(--paper); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1, h2 { color: var(--ink); font-weight: 600; line-height: 1.25; overflow-wrap: anywhere }
h1 { font-size: 24px; margin: 0 0 4px }
h2 { font-size: 15px; margin: 0 0 8px }
p { margin: 0 0 12px; max-width: 76ch }
small, table, figcaption, footer { font-size: 12px }
section { margin-top: 40px }
.lead { margin-top: 24px }
.lead p:first-child { color: var(--ink) }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 40px 40px;
  grid-auto-flow: dense }
figure { margin: 0; min-width: 0 }
.wide { grid-column: 1 / -1 }
figcaption { margin: 4px 0 0; max-width: 76ch }
.narrow { max-width: 560px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th { text-align: left; font-weight: 400; vertical-align: bottom; padding: 4px 16px 4px 0 }
td { padding: 4px 16px 4px 0; border-top: 1px solid var(--rule); vertical-align: top; overflow-wrap: break-word }
td.number, th.number { text-align: right }
td:first-child { color: var(--ink) }
tr.best td { color: var(--mark); font-weight: 600 }
code { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
footer { margin-top: 48px; padding-top: 12px; border-top: 1px solid var(--rule) }
"""

SCRIPT = """
const scheme = matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displayModeBar: false };
function draw() {
  const template = report.templates[scheme.matches ? "dark" : "light"];
  for (const [id, figure] of Object.entries(report.figures)) {
    const layout = { ...structuredClone(figure.layout), template }, across = document.getElementById(id).clientWidth;
    if (layout.meta?.ratio) {
      const { t, b, l, r } = layout.margin;
      layout.height = Math.round(t + b + (across - l - r) * layout.meta.ratio);
    }
    if (layout.meta?.ends && across < 440) {
      const lines = figure.data.filter(trace => trace.showlegend !== false).length;
      Object.assign(layout, { annotations: [], showlegend: true, height: layout.height + 20 * lines });
      Object.assign(layout.margin, { t: 20 * lines + 16, r: 12 });
      layout.legend = { orientation: "v", x: 0, y: 1, yanchor: "bottom", font: { size: 12 } };
    }
    document.getElementById(id).style.height = layout.height + "px";
    Plotly.react(id, structuredClone(figure.data), layout, config);
  }
}
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
draw();
scheme.addEventListener("change", draw);
addEventListener("beforeprint", draw);
"""


def page(study: Study, drawn: Mapping[str, go.Figure] | None = None) -> str:
    """The report of a study as it stands, HTML. drawn: its figures (`draw_all`), where they are drawn already.

    Raises:
        UserError: another program made the study, or has put trials into it.
    """
    from optuna.trial import TrialState
    from plotly.io import to_json
    from plotly.offline import get_plotlyjs

    from .figures import draw_all
    from .figures.style import THEMES, template

    check_ours(study)
    study = snapshot(study)
    trial = best_trial(study) if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) else None
    drawn = draw_all(study) if drawn is None else drawn
    mark: Mapping[str, Any] = study.user_attrs.get("fingerprint", {})
    about = " · ".join(str(mark[key]) for key in ("model", "data") if mark.get(key))
    about += f" · {HEAT_MAPS if explains(study) else mark['units']}" if mark.get("units") else ""
    parts = [
        f"<header><h1>{html.escape(study.study_name)}</h1>",
        f"<small>{_text([about, summary.standing(study)])}</small></header>",
        f'<section class="lead">{"".join(f"<p>{_marked(text)}</p>" for text in summary.findings(study))}</section>',
    ]
    above = FIRST if cost_of(study) is None else FIRST_BY_COST
    first = [_figure(name, figure) for name, figure in drawn.items() if name in above]
    rest = [_figure(name, figure) for name, figure in drawn.items() if name not in above]
    if first:
        parts.append(f'<section class="grid">{"".join(first)}</section>')
    if trial is not None:
        results = _table(summary.headings(study), summary.table(study), numbers=range(1, 9), strong="best")
        rows = list(summary.composite_rows(trial).items())
        composite = _table(("layers", "rule"), rows)
        parts.append(
            '<section class="grid">'
            f"<div><h2>Results</h2>{results}<p><small>{html.escape(summary.explanation(study))}</small></p></div>"
            f"<div><h2>The best composite: {html.escape(title(trial))}</h2>{composite}</div></section>"
        )
    if rest:
        parts.append(f'<section class="grid">{"".join(rest)}</section>')
    settings = _table(("option", "value"), list(summary.settings(study).items()))
    parts.append(f'<section class="narrow"><h2>Settings</h2>{settings}</section>')
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    parts.append(f"<footer>pxp-optimize {version('pxp-optimize')}, {now}</footer>")
    data = {
        "figures": {name: _plain(figure) for name, figure in drawn.items()},
        "templates": {theme: json.loads(to_json(template(theme), validate=False)) for theme in THEMES},
    }
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            GENERATOR,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(study.study_name)}</title><style>{CSS}</style></head><body>",
            *parts,
            f"<script>{get_plotlyjs()}</script>",
            f"<script>const report = {_script(data)};{SCRIPT}</script></body></html>",
        ]
    )


FIRST, FIRST_BY_COST = ("holdout", "search", "flipping"), ("holdout", "cost")
"""The figures that stand above the tables; the latter where trials are judged by a cost."""
COLUMN = 560
"""Pixels of one of two columns, at the page's full width; wider figures have both."""


def _figure(name: str, drawn: go.Figure) -> str:
    from .figures.style import HEIGHT, caption_of, title_of, width_of

    style = f"height:{drawn.layout.height or HEIGHT}px; min-width:{width_of(drawn)}px"
    wide = ' class="wide"' if width_of(drawn) > COLUMN else ""
    return (
        f"<figure{wide}><h2>{html.escape(title_of(drawn))}</h2>"
        f'<div class="scroll"><div id="{html.escape(name)}" style="{style}"></div></div>'
        f"<figcaption>{html.escape(caption_of(drawn))}</figcaption></figure>"
    )


def _plain(drawn: go.Figure) -> dict[str, Any]:
    """A figure without what the page says or chooses itself: title and template."""
    from .figures.style import HEIGHT

    found: dict[str, Any] = json.loads(drawn.to_json())
    layout = found["layout"]
    layout.pop("title", None)
    layout.pop("template", None)
    layout.setdefault("height", HEIGHT)
    layout.setdefault("margin", {})["t"] = layout.get("meta", {}).get("head", 16)
    return {"data": found["data"], "layout": layout}


def _script(data: object) -> str:
    """JSON that may stand within a script: nothing in it ends that."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ").replace("\u2029", " ")


def _text(parts: Iterable[str]) -> str:
    return html.escape(" · ".join(part for part in parts if part))


def _marked(text: str) -> str:
    """Text with `commands` set as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), strong: str | None = None
) -> str:
    """numbers: columns that are aligned to the right. strong: how the name of the row begins that stands out."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if index in numbers else ''}>{html.escape(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    body = "".join(
        f"<tr{' class=best' if strong and row[0].startswith(strong) else ''}>{cells(row, 'td')}</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells(heading, "th")}</tr></thead><tbody>{body}</tbody></table></div>'
    )
