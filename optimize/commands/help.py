"""What `--help` shows: examples first, then the commands, then the options, under headings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from ...studies.wording import did_you_mean
from ..options import OUTPUT, SECTIONS

WIDTH = 110
"""Columns of help: where the terminal has fewer, lines are wrapped."""
CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": WIDTH,
    "terminal_width": None if sys.stdout is not None and sys.stdout.isatty() else WIDTH,  # a file has no width
}
Examples = Sequence[tuple[str, str]]
"""Command lines, and what each of them does."""


class Option(click.Option):
    """An option with a heading that it stands under, and its help in one line besides the whole of it."""

    def __init__(self, *args: Any, section: str = OUTPUT, brief: str | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.section = section
        self.brief = brief

    def line(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help in one line."""
        whole = self.help
        try:
            self.help = self.brief or whole
            return self.get_help_record(ctx)
        finally:
            self.help = whole


class WithExamples(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *args: Any, examples: Examples = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        _examples(self.examples, formatter)


class Command(WithExamples):
    """A command whose options stand under headings, where they have some."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not any(isinstance(param, Option) for param in self.params):
            super().format_options(ctx, formatter)
            return
        for section, lines in sections(self, ctx, brief=False).items():
            with formatter.section(section):
                formatter.write_dl(lines)


class Group(WithExamples, click.Group):
    """A group of commands whose help lists them before its own options, each of which takes one line."""

    command_class = Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        for section, lines in sections(self, ctx, brief=True).items():
            with formatter.section(section):
                formatter.write_dl(lines)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            said = did_you_mean(args[0], self.commands, f"there are {', '.join(self.commands)}")
            ctx.fail(f"no command {args[0]!r}: {said}")
        return super().resolve_command(ctx, args)


def sections(command: click.Command, ctx: click.Context, *, brief: bool) -> Mapping[str, list[tuple[str, str]]]:
    """The options of a command by their headings, each with its help."""
    found: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
    for param in command.get_params(ctx):
        record = param.line(ctx) if brief and isinstance(param, Option) else param.get_help_record(ctx)
        if record is not None:
            found[getattr(param, "section", OUTPUT)].append(record)
    return {section: lines for section, lines in found.items() if lines}


def _examples(examples: Examples, formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples"):
            formatter.write_dl(list(examples), col_max=WIDTH * 2 // 3)


def command(name: str | None = None, *, examples: Examples = (), **more: Any) -> Callable[[Any], Command]:
    """As `click.command`, with examples."""
    return click.command(name, cls=Command, examples=examples, **more)
