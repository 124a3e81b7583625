"""The examples run, as a user would run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SEARCHES = {"finetune_onnx", "own_model", "own_study", "vit_heads"}
"""Those that search, and so say on stderr how far they are."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, empty_project: Any) -> None:
    """In an empty folder, without a word of complaint; pictures that it writes can be opened and show something."""
    done = empty_project.run_script(path)
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "Warning", "[W "))
    assert done.stderr == "" or path.stem in SEARCHES
    assert done.stdout
    for picture in empty_project.folder.glob("*.png"):
        with Image.open(picture) as image:
            assert any(low < high for low, high in image.convert("RGB").getextrema())


def test_there_are_examples() -> None:
    assert SEARCHES | {"heatmap"} <= {path.stem for path in EXAMPLES}
