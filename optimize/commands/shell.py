"""What all commands share: errors in one line, options that several have, tables."""

from __future__ import annotations

import codecs
import errno
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ...studies.errors import UserError
from ..lazy import LazyModule
from ..options import Options
from ..parsers import Parser
from .help import Group

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from rich import console as rich_console
    from rich.table import Table
else:
    optuna = LazyModule("optuna")
    rich_console = LazyModule("rich.console")

BAD_INPUT = 2
INTERRUPTED = 130
"""Exit statuses: the input is at fault; stopped by Ctrl-C."""
LOADING = "loading PyTorch"
"""What a command says that it does before it can say anything else."""


class OneLineErrors(Group):
    """A group whose errors are one line on stderr, with the exit status of bad input and no traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            check_text(args[0] if args else kwargs.get("args") or sys.argv[1:])
            status = super().main(*args, **kwargs)
        except click.ClickException as error:
            self._fail(error.format_message())
        except UserError as error:
            self._fail(str(error))
        except OSError as error:  # a name that is too long, a full disk, a folder that is closed
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            self._fail(f"{error.filename or 'output'!s:.200}: {error.strerror}")
        except (click.Abort, KeyboardInterrupt):
            click.echo("Stopped.", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)

    @staticmethod
    def _fail(message: str) -> None:
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(BAD_INPUT)


def check_text(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no text: neither a database nor JSON can hold them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
                raise UserError(f"{argument!r:.200} cannot be read in this locale: set LC_ALL=C.UTF-8") from None
            raise UserError(f"{argument!r:.200} is not UTF-8: rename it, or give another one") from None


class Parsed(click.ParamType):
    """A click type made of a parser of `parsers`."""

    def __init__(self, parser: Parser, name: str) -> None:
        self.parser = parser
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parser(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def storage_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--storage",
        default=Options.storage,
        show_default=True,
        metavar="FILE|URL",
        help="Database of the studies: a file, or a URL as SQLAlchemy reads it.",
    )(command)


def study_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--study", metavar="NAME", help="Name of the study.  [default: the only one in the database]")(
        command
    )


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--device", metavar="NAME", help="Where to compute.  [default: as the study]")(command)


def quiet_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("-q", "--quiet", is_flag=True, help="Show nothing but the results.")(command)


def find_study(storage: BaseStorage, name: str | None) -> Study:
    names = optuna.get_all_study_names(storage)
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        held = ", ".join(sorted(names)) or "none"
        problem = f"no study {name!r}" if name else "say which study by --study"
        raise UserError(f"{problem}; the database has: {held}")
    return optuna.load_study(study_name=name, storage=storage)


def shell_command(*words: str) -> str:
    """The words as the user's shell takes them."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def print_table(table: Table) -> None:
    console = rich_console.Console(highlight=False, markup=False)  # names of studies and files may hold brackets
    if not console.is_terminal:  # a file has no width that a line could be too long for
        console.width = 200
    console.print(table)


def quiet_optuna(*, verbose: bool) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO if verbose else optuna.logging.ERROR)
