"""`pxp-optimize dashboard`: the studies of a database in a browser."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from ..lazy import LazyModule
from .help import command
from .shell import quiet_optuna, storage_option

if TYPE_CHECKING:
    from ...studies import dashboard as showing
    from ...studies import storage as storing
else:
    showing = LazyModule("...studies.dashboard", __package__)
    storing = LazyModule("...studies.storage", __package__)


@command(
    short_help="Show the studies of a database in a browser.",
    examples=(
        ("pxp-optimize dashboard", "the studies of pxp.db, on this machine"),
        ("pxp-optimize dashboard --storage other.db --port 0", "of another database, wherever there is room"),
    ),
)
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
@click.option("--refresh", is_flag=True, help="Draw figures and notes first, of studies that run or are older, too.")
def dashboard(storage: str, host: str, port: int, refresh: bool) -> None:
    """Show the studies of a database in Optuna's dashboard, until Ctrl-C.

    A run saves figures, notes and files for it when it ends. Who reaches the address may also change what is in the
    database; by default that is this machine only.
    """
    quiet_optuna(verbose=False)
    with storing.storage_errors(storage), contextlib.suppress(KeyboardInterrupt):
        if refresh:
            showing.refresh(storage)
        showing.serve(storage, host, port, lambda address: click.echo(f"dashboard: {address} (Ctrl-C ends it)"))
