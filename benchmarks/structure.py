"""The house as its imports draw it: which room imports which, circles, and the longest files.

    python benchmarks/structure.py [FOLDER]

FOLDER: a checkout, by default this one. A room is a folder, or a file right under `optimize/`. Imports for type
checkers count; those of an `__init__` that only gives names of rooms above when they are asked for do not.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

FOLDERS = ("pruning", "attribution", "studies", "optimize")


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    files = {name_of(path, root): path for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    arrows: Counter[tuple[str, str]] = Counter()
    inner = 0
    for module, path in files.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
                inner += node not in tree.body and not under_type_checking(tree, node)
                for name in node.names:
                    target = f"{base}.{name.name}" if f"{base}.{name.name}" in files else base
                    if path.name != "__init__.py" and room_of(target) != room_of(module):
                        arrows[room_of(module), room_of(target)] += 1
    for (source, target), count in sorted(arrows.items()):
        back = f", and {arrows[target, source]} the other way" if (target, source) in arrows else ""
        print(f"{source:22} -> {target:22} {count:3}{back}")
    both = sum((target, source) in arrows for source, target in arrows) // 2
    print(f"{both} pairs of rooms import each other; {inner} imports stand inside functions")
    lengths = sorted(((len(path.read_text().splitlines()), module) for module, path in files.items()), reverse=True)
    print("longest files:", ", ".join(f"{module} {lines}" for lines, module in lengths[:5]))


def name_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "optimize" else parts[0]


def under_type_checking(tree: ast.Module, node: ast.AST) -> bool:
    blocks = (block for block in tree.body if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
    return any(node in block.body for block in blocks)


if __name__ == "__main__":
    main()
