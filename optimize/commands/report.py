"""`pxp-optimize report`: a study as a page, a figure or a table of curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...studies.figures import FIGURES
from ...studies.output import FIGURE, FORMATS, check_report, write_report
from ..lazy import LazyModule
from .help import command
from .shell import find_study, quiet_optuna, storage_option, study_option

if TYPE_CHECKING:
    from ...studies import storage as storing
else:
    storing = LazyModule("...studies.storage", __package__)


@command(
    short_help="Write a study as a page, a figure or a table.",
    examples=(
        ("pxp-optimize report", "the only study of pxp.db, as report.html"),
        ("pxp-optimize report --study NAME -o curves.csv", "its curves"),
    ),
)
@study_option
@click.option("-o", "--output", metavar="FILE", help="File to write.  [default: report.html, or as --format]")
@click.option("--format", "kind", type=click.Choice(list(FORMATS)), help="What to write.  [default: as FILE ends]")
@click.option(
    "--figure",
    type=click.Choice(list(FIGURES)),
    default=FIGURE,
    show_default=True,
    metavar="NAME",
    help=f"The figure that PNG and PDF show: {', '.join(FIGURES)}.",
)
@storage_option
def report(study: str | None, output: str | None, kind: str | None, figure: str, storage: str) -> None:
    """Write a report of a study as it stands, also while it runs.

    HTML is the whole report in one page that needs no network. PNG and PDF are one figure and need kaleido and Chrome
    (pip install 'pxp-optimize[images]'). CSV and JSON are the curves with their intervals. The study is only read.
    """
    output = output or f"report.{kind or 'html'}"
    check_report(output, kind, storage)
    quiet_optuna(verbose=False)
    with storing.storage_errors(storage):
        found = find_study(storing.open_storage(storage, must_exist=True), study)
        write_report(found, output, kind, figure, storage)
    click.echo(f"{output}: study {found.study_name}")
