"""What pages take from the code when the site is built: `commands` and `pieces`, two directives for Sphinx.

So the command line's reference and the lists of rules, figures and so on are never older than the code. And formulas as
MathML, which browsers draw by themselves: Sphinx's own way asks another server for a program.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click
from docutils import nodes
from docutils.utils.math import latex2mathml
from pxp_optimize.attribution.rules import RuleKind
from pxp_optimize.optimize.commands.main import main
from pxp_optimize.optimize.search.samplers import Sampler
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator


class Commands(SphinxDirective):
    """Every command with its options, as `--help` has them: a section each."""

    def run(self) -> list[nodes.Node]:
        return [section for name, command in commands_of(main) for section in self._section(name, command)]

    def _section(self, name: str, command: click.Command) -> Iterator[nodes.Node]:
        context = click.Context(command, info_name=name)
        section = nodes.section(ids=[nodes.make_id(name)], names=[name])
        section += nodes.title("", "", nodes.literal("", name))
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            words = paragraph.replace("\b", "").strip()
            kind = nodes.literal_block if "\b" in paragraph else nodes.paragraph
            section += kind(words, words if kind is nodes.literal_block else " ".join(words.split()))
        if command is not main and _options(command) == _options(main):
            section += nodes.paragraph("", "", *words_of("Its options are those of `pxp-optimize`."))
            yield section
            return
        listed = nodes.definition_list()
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is None:
                continue
            flags, help_ = record
            item = nodes.definition_list_item("", nodes.term("", "", nodes.literal("", flags)))
            item += nodes.definition("", nodes.paragraph("", "", *words_of(help_)))
            listed += item
        section += listed
        self.state.document.note_implicit_target(section, section)
        yield section


def _options(command: click.Command) -> set[str | None]:
    return {parameter.name for parameter in command.params} - {"version"}


def commands_of(group: click.Command, name: str = "pxp-optimize") -> Iterator[tuple[str, click.Command]]:
    """A command with all below it, by what is typed."""
    yield name, group
    if isinstance(group, click.Group):
        for word, command in group.commands.items():
            yield from commands_of(command, f"{name} {word}")


class Pieces(SphinxDirective):
    """A table of a registry: `{pieces} pxp_optimize.attribution:CRITERIA`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        registry: Mapping[str, Any] = getattr(import_module(module), name)
        listed = nodes.definition_list()
        for key in registry:
            item = nodes.definition_list_item("", nodes.term("", "", nodes.literal("", key)))
            item += nodes.definition("", nodes.paragraph("", "", *words_of(described(registry[key]))))
            listed += item
        return [listed]


def described(piece: Any) -> str:
    """The first paragraph of what a piece says of itself, and a rule's parameters with their ranges."""
    what = piece.hook if isinstance(piece, RuleKind) else piece.make if isinstance(piece, Sampler) else piece
    text = " ".join((inspect.getdoc(what) or "").split("\n\n")[0].split())
    if isinstance(piece, RuleKind):
        for name, of in piece.parameters.items():
            default = "to be given" if of.default is None else f"{of.default:g} by default"
            text += f" `{name}`: {default}, {of.low:g} to {of.high:g} allowed"
            text += f", {of.searched.low:g} to {of.searched.high:g} searched." if of.searched else ", not searched."
    return text


def words_of(text: str) -> list[nodes.Node]:
    """Text with options, and what stands between backticks, as code."""
    parts = re.split(r"`([^`]+)`|(?<![\w-])(--[a-z][a-z-]*)", text)
    return [nodes.literal("", part) if index % 3 else nodes.Text(part) for index, part in enumerate(parts) if part]


def visit_math(writer: HTML5Translator, node: nodes.Element) -> None:
    """A formula, in its line or on its own."""
    markup = latex2mathml.tex2mathml(node.astext())
    writer.body.append(markup if isinstance(node, nodes.math) else markup.replace("<math", '<math display="block"', 1))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_directive("commands", Commands)
    app.add_directive("pieces", Pieces)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
