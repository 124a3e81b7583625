"""The command `pxp-optimize`: its options, and the commands below it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import click

from ...studies.errors import UserError
from ..options import Options, read_config
from .compare import compare
from .dashboard import dashboard
from .explain import explain
from .export import export
from .models import models
from .prune import prune
from .report import report
from .run import run
from .shell import OneLineErrors, Parsed
from .studies import studies


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each field of `Options`, in their order."""
    for option in reversed(fields(Options)):
        assert option.default is not MISSING
        names = [f"--{option.name.replace('_', '-')}", option.name]
        short = {"quiet": "-q", "verbose": "-v"}.get(option.name)
        hints = option.metadata
        if short:
            names.insert(0, short)
        if hints["alias"]:
            names.insert(0, f"--{hints['alias']}")
        kind: dict[str, Any] = {"type": str}
        if option.type == "bool":
            kind = {"is_flag": True}
        elif hints["choices"]:
            kind = {"type": click.Choice(hints["choices"]())}
        elif hints["parse"]:
            kind = {"type": Parsed(hints["parse"], hints["metavar"])}
        shown = hints["unset"] or hints["shown"] or (option.type != "bool")
        decorate = click.option(
            *names,
            default=option.default,
            help=hints["help"],
            metavar=hints["metavar"],
            show_default=shown,
            **kind,
        )
        command = decorate(command)
    return command


def _load_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.default_map = {**read_config(value)}


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=OneLineErrors, invoke_without_command=True, context_settings=CONTEXT)
@_run_options
@click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    help="TOML file with these options (trials = 50); the command line wins over it.  [default: none]",
)
@click.version_option(package_name="pxp-optimize")
@click.pass_context
def main(ctx: click.Context, /, **values: Any) -> None:
    """Find the LRP composite that prunes an image classifier best.

    A run ranks the network's filters by LRP relevance under many composites (which rule at which depth),
    removes the least relevant ones, and measures what accuracy is left. Every trial goes into a database;
    the best composite is written as JSON. The same command again continues the study.

    Without options: a resnet18 on embedded handwritten digits.
    """
    if ctx.invoked_subcommand is not None:
        given = [
            name
            for name in (*values, "config")
            if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            option = given[0].replace("_", "-")
            raise UserError(f"--{option} stands before {ctx.invoked_subcommand}: options of a command follow its name")
        return
    options = Options(**values)
    try:
        sys.exit(run(options))
    except UserError:
        if options.verbose:
            traceback.print_exc()
        raise


for command in (report, dashboard, export, compare, explain, prune, studies, models):
    main.add_command(command)

if __name__ == "__main__":
    main()
