"""`pxp-optimize dashboard`: the studies of a database in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..lazy import LazyModule
from .shell import quiet_optuna, storage_option

if TYPE_CHECKING:
    from ...studies import dashboard as showing
    from ...studies import storage as storing
else:
    showing = LazyModule("...studies.dashboard", __package__)
    storing = LazyModule("...studies.storage", __package__)


@click.command(short_help="Show the studies of a database in a browser.")
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 for any that is free.",
)
def dashboard(storage: str, host: str, port: int) -> None:
    """Show the studies of a database in Optuna's dashboard, with their figures, notes and files, until Ctrl-C.

    Who reaches the address may also change what is in the database; by default that is this machine only.
    """
    quiet_optuna(verbose=False)
    with storing.storage_errors(storage):
        showing.serve(storage, host, port, lambda address: click.echo(f"dashboard: {address} (Ctrl-C ends it)"))
