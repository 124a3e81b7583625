"""The house as its imports draw it: which room imports which, circles, and the longest files.

    python benchmarks/structure.py [FOLDER]

FOLDER: a checkout, by default this one. A room is a folder, or a file right under `optimize/`. Imports for type
checkers count; those of an `__init__` that only gives names of rooms above when they are asked for do not.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

FOLDERS = ("pruning", "attribution", "studies", "optimize")


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    files = modules(root)
    arrows: Counter[tuple[str, str]] = Counter()
    inner = 0
    for module, path in files.items():
        tree = ast.parse(path.read_text())
        relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        inner += sum(node not in tree.body and not under_type_checking(tree, node) for node in relative)
        if path.name != "__init__.py":
            rooms = (room_of(target) for target in imported(module, relative, files))
            arrows.update((room_of(module), room) for room in rooms if room != room_of(module))
    for (source, target), count in sorted(arrows.items()):
        back = f", and {arrows[target, source]} the other way" if (target, source) in arrows else ""
        print(f"{source:22} -> {target:22} {count:3}{back}")
    both = sum((target, source) in arrows for source, target in arrows) // 2
    print(f"{both} pairs of rooms import each other; {inner} imports stand inside functions")
    lengths = sorted(((len(path.read_text().splitlines()), module) for module, path in files.items()), reverse=True)
    print("longest files:", ", ".join(f"{module} {lines}" for lines, module in lengths[:5]))


def modules(root: Path) -> dict[str, Path]:
    """The project's modules in a checkout, by name, without the package's own."""
    files = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(module: str, nodes: Iterable[ast.AST], files: Mapping[str, Path]) -> Iterator[str]:
    """The project's modules (`modules`) that these nodes of a module's syntax import."""
    package = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            for name in node.names:
                yield f"{base}.{name.name}" if f"{base}.{name.name}" in files else base


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "optimize" else parts[0]


def under_type_checking(tree: ast.Module, node: ast.AST) -> bool:
    blocks = (block for block in tree.body if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
    return any(node in block.body for block in blocks)


if __name__ == "__main__":
    main()
