"""Figures of a study, from what it stores: no network, no images. Report, dashboard, notebooks and README draw the
same ones.

A figure is a function of a study that returns a plotly figure with a title, and a caption in `layout.meta`; None where
the study does not hold what it shows (yet, or not any more).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ...pruning.registry import Registry

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

    Draw: TypeAlias = Callable[[Study], go.Figure | None]

FIGURES: Registry[Draw] = Registry(
    "figure",
    {
        "holdout": ".curves:holdout_curves",
        "search": ".curves:search_curves",
        "flipping": ".flipping:flipping_curves",
        "cost": ".curves:cost_curves",
        "layers": ".layers:removed_layers",
        "maps": ".maps:sample_maps",
        "history": ".trials:history",
        "trials": ".trials:all_curves",
        "front": ".trials:pareto_front",
        "importance": ".parameters:importance",
        "slices": ".parameters:slices",
        "parallel": ".parameters:parallel",
    },
    __package__,
)
"""By name, in the order in which a report shows them."""


def register_figure(name: str, draw: Draw) -> Draw:
    """Add a figure to every report and dashboard.

    Args:
        name: its own; letters, digits, "-", "_" and ".".
        draw: takes a study; returns a plotly figure, or None where there is nothing to show.

    Raises:
        ValueError: the name is taken, or cannot be written as an option.

    Example:
        >>> import plotly.graph_objects as go
        >>> from pxp_optimize.studies.figures import register_figure
        >>> def seconds(study):
        ...     taken = [sum(trial.user_attrs.get("seconds", {}).values()) for trial in study.trials]
        ...     return go.Figure(go.Bar(y=taken), {"title": {"text": "Seconds of each trial"}})
        >>> _ = register_figure("seconds", seconds)
    """
    return FIGURES.register(name, draw)


def draw_all(study: Study) -> dict[str, go.Figure]:
    """The figures that a study has something for, by name."""
    return {name: figure for name, draw in FIGURES.items() if (figure := draw(study)) is not None}
