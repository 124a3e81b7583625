"""`pxp-optimize studies`: what a database holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..lazy import LazyModule
from .help import command
from .shell import print_table, quiet_optuna, storage_option

if TYPE_CHECKING:
    from ...studies import report
    from ...studies import storage as storing
else:
    report = LazyModule("...studies.report", __package__)
    storing = LazyModule("...studies.storage", __package__)


@command(
    examples=(
        ("pxp-optimize studies", "what pxp.db holds"),
        ("pxp-optimize studies --storage other.db", "what another database holds"),
    ),
)
@storage_option
def studies(storage: str) -> None:
    """List the studies that a database holds."""
    quiet_optuna(verbose=False)
    with storing.storage_errors(storage):
        lines = report.list_studies(storing.open_storage(storage, must_exist=True))
    if lines:
        print_table(report.studies_table(lines))
    else:
        click.echo(f"{storage} holds no study yet")
