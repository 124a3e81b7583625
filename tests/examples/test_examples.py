"""The examples run, as a user would run them, but for shorter searches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SEARCHES = {"finetune_onnx": 5, "own_model": 5, "own_study": 10, "vit_heads": 5}
"""Those that search, and so say on stderr how far they are; and how many trials are enough here: of a study of one's
own such as its sampler proposes and its pruner judges."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, empty_project: Any) -> None:
    """In an empty folder, without a word of complaint; pictures that it writes can be opened and show something."""
    script, trials = empty_project.folder / path.name, SEARCHES.get(path.stem)
    short, count = re.subn(r"\b(n_)?trials=\d+", rf"\1trials={trials}", path.read_text())
    assert count == (trials is not None)
    script.write_text(short)
    done = empty_project.run_script(script)
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "Warning", "[W "))
    assert done.stderr == "" or trials is not None
    assert done.stdout
    for picture in empty_project.folder.glob("*.png"):
        with Image.open(picture) as image:
            assert any(low < high for low, high in image.convert("RGB").getextrema())


def test_there_are_examples() -> None:
    assert {*SEARCHES, "heatmap"} <= {path.stem for path in EXAMPLES}
