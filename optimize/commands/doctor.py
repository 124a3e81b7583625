"""`pxp-optimize doctor`: whether this machine can run it."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

import click

from ..lazy import LazyModule
from .help import command

if TYPE_CHECKING:
    from .. import doctor as checking
else:
    checking = LazyModule("..doctor", __package__)

WRONG = 1
"""Exit status: something is wrong with the machine, not with what was given."""


@command(
    short_help="Say what is installed, and whether a tiny run works.",
    examples=(("pxp-optimize doctor", "takes some seconds"),),
)
def doctor() -> None:
    """Say what is installed, where it computes and keeps things, and whether a tiny run works.

    The exit status is 1 where something is wrong; what mends it is named.
    """
    wrong = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in checking.findings():
            wrong |= found.fix is not None
            click.echo(f"{'ok   ' if found.fix is None else 'WRONG'} {found.name:13} {found.text}")
            if found.fix is not None:
                click.echo(f"      {'':13} to mend it: {found.fix}")
    sys.exit(WRONG if wrong else 0)
