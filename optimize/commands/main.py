"""The command `pxp-optimize`: its options, and the commands below it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

import click
from click.core import ParameterSource

from ...studies.errors import UserError
from ..config_file import read_config
from ..options import OUTPUT, Options
from .compare import compare
from .dashboard import dashboard
from .doctor import doctor
from .explain import explain
from .export import export
from .help import CONTEXT, Option, command
from .models import models
from .prune import prune
from .report import report
from .run import run
from .shell import OneLineErrors, Parsed
from .studies import studies

# PyTorch's threads are to sleep while they wait for one another: those that spin take each other's cores on a busy
# machine, where a trial of a small network took twelve times as long. It is read once, when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each field of `Options`, in their order, and the file that may hold them."""
    command = click.option(
        "--config",
        cls=Option,
        section=OUTPUT,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_load_config,
        help="TOML file with these options (trials = 50); the command line wins.  [default: none]",
    )(command)
    for option in reversed(fields(Options)):
        assert option.default is not MISSING
        names = [f"--{option.name.replace('_', '-')}", option.name]
        short = {"quiet": "-q", "verbose": "-v"}.get(option.name)
        hints = option.metadata
        brief, help = hints["brief"], hints["help"]
        if short:
            names.insert(0, short)
        if hints["alias"]:
            names.insert(0, f"--{hints['alias']}")
        kind: dict[str, Any] = {"type": str}
        if option.type == "bool":
            kind = {"is_flag": True}
        elif hints["choices"]:
            kind = {"type": click.Choice(choices := hints["choices"]())}
            told = f"{brief.removesuffix('.')}: {', '.join(choices)}."
            brief, help = told, help.replace(brief, told, 1)
        elif hints["parse"]:
            kind = {"type": Parsed(hints["parse"], hints["metavar"])}
        shown = hints["unset"] or hints["shown"] or (option.type != "bool")
        command = click.option(
            *names,
            cls=Option,
            section=hints["section"],
            brief=brief,
            default=option.default,
            help=help,
            metavar=hints["metavar"],
            show_default=shown,
            **kind,
        )(command)
    return command


def _load_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.default_map = {**read_config(value)}


def run_study(ctx: click.Context, values: Mapping[str, Any]) -> None:
    """Run or continue the study that the options are of, and exit."""
    options = Options(**values)
    given = {name for name in values if ctx.get_parameter_source(name) != ParameterSource.DEFAULT}
    try:
        sys.exit(run(options, given))
    except UserError:
        if options.verbose:
            traceback.print_exc()
        raise


EXAMPLES = (
    ("pxp-optimize", "resnet18 on digits that come with it"),
    ("pxp-optimize --model vit_b_16 --data photos/ --trials 50", "a network of torchvision, your images"),
    ("pxp-optimize --model net.py:build --weights net.pt --data photos/", "a network of your own"),
    ("pxp-optimize --study NAME --trials 200", "go on, with all else as the study has it"),
    ("pxp-optimize prune --max-params 3M -o small.onnx", "the smaller network"),
)


@click.group(cls=OneLineErrors, invoke_without_command=True, context_settings=CONTEXT, examples=EXAMPLES)
@run_options
@click.version_option(package_name="pxp-optimize")
@click.pass_context
def main(ctx: click.Context, /, **values: Any) -> None:
    """Find the LRP composite that prunes an image classifier best.

    A run ranks the network's units by LRP relevance under many composites (which rule at which depth),
    removes the least relevant ones, and measures what accuracy is left. Every trial goes into a database;
    the best composite is written as JSON. The same command again continues the study.
    """
    if ctx.invoked_subcommand is None:
        run_study(ctx, values)
    given = [name for name in (*values, "config") if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    if given:
        option = given[0].replace("_", "-")
        raise UserError(f"--{option} stands before {ctx.invoked_subcommand}: options of a command follow its name")


@command("run", short_help="Run or continue a study; without a command's name, too.", examples=EXAMPLES[:1])
@run_options
@click.pass_context
def run_command(ctx: click.Context, /, **values: Any) -> None:
    """Run or continue a study: what `pxp-optimize` does where no command is named."""
    run_study(ctx, values)


@command("help", short_help="Show the help of a command.")
@click.argument("name", required=False)
@click.pass_context
def show_help(ctx: click.Context, name: str | None) -> None:
    """Show what `--help` shows: of a command, or of all."""
    above = ctx.parent
    assert above is not None
    if name is not None:
        _, found, _ = main.resolve_command(above, [name])
        assert found is not None
        above = click.Context(found, above, name)
    click.echo(above.get_help())


for each in (run_command, report, compare, explain, export, prune, dashboard, studies, models, doctor, show_help):
    main.add_command(each)

if __name__ == "__main__":
    main()
