"""The house: imports run one way, and no file has grown past one room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from structure import imported, modules

LAYERS = (
    ("pruning",),
    ("attribution",),
    ("studies",),
    ("optimize.lazy", "optimize.progress", "optimize.parsers"),
    ("optimize.data",),
    ("optimize.weights", "optimize.functions"),
    ("optimize.models",),
    ("optimize.evaluation",),
    ("optimize.search",),
    ("optimize.options", "optimize.config_file", "optimize.console"),
    ("optimize.study",),
    ("optimize.front", "optimize.apply", "optimize.pruned"),
    ("optimize.doctor",),
    ("optimize.commands",),
)
"""From the ground up: each imports from its own and from those before it."""
LAZY = {"optimize", "pruning", "pruning.repair"}
"""Packages whose `__init__` gives names of rooms above when they are asked for."""
LONGEST = 500
REASONS: dict[str, str] = {}
"""Files that are longer, and why."""

ROOT = Path(__file__).parent.parent
MODULES = modules(ROOT)
pytestmark = pytest.mark.skipif(not MODULES, reason="the sources are not beside the tests")


def layer_of(module: str) -> int | None:
    for index, rooms in enumerate(LAYERS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return index
    return None


def test_every_room_is_in_the_plan():
    assert {module for module in MODULES if layer_of(module) is None} == {"optimize"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - LAZY))
def test_imports_run_one_way(module):
    """Also those within functions and for type checkers only."""
    tree = ast.parse(MODULES[module].read_text())
    for other in imported(module, ast.walk(tree), MODULES):
        assert layer_of(other) <= layer_of(module), f"{module} imports {other}, which stands above it"


def test_there_are_no_circles():
    """Of what is imported at once; a package's `__init__` lists what is in it, and is left out."""
    after = {
        module: set(imported(module, ast.parse(path.read_text()).body, MODULES))
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in after[module] & after.keys():
                visit(other, (*way, module))
            done.add(module)

    for module in after:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_too_long(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST or module in REASONS, f"{lines} lines: does it do one job?"
