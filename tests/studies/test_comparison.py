"""A comparison's table, CSV and JSON say the same, and say plainly what is not significant."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from pxp_optimize.studies.comparison import (
    Line,
    compare,
    comparison_csv,
    comparison_document,
    comparison_tables,
    explanation,
    is_csv,
)
from rich.console import Console

RATES = [0.0, 0.3, 0.6]


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    """The best, one that differs from it in an image of a draw, and one that is wrong half as often again."""
    rng = np.random.default_rng(0)
    best = rng.random((3, 3, 200)) < np.array([0.95, 0.9, 0.7])[None, :, None]
    near = best.copy()
    near[0, 2, :5] ^= True
    far = best & (rng.random(best.shape) < np.array([1.0, 0.6, 0.3])[None, :, None])
    return compare({"best (trial 7)": best, "near": near, "far": far}, "best (trial 7)", RATES, 0)


def shown(lines: list[Line]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for table in comparison_tables(lines, RATES):
        console.print(table)
    return console.file.getvalue()  # type: ignore[union-attr, attr-defined]


def test_it_is_said_what_is_not_significant(lines):
    best, near, far = lines
    assert best.auc_difference is None
    assert (best.verdict, near.verdict, far.verdict) == ("", "not significant", "worse")
    assert near.auc_difference.low <= 0 <= near.auc_difference.high
    assert far.auc_difference.high < 0
    assert near.auc_difference.corrected >= near.auc_difference.p
    assert far.auc_difference.value == pytest.approx(far.auc.value - best.auc.value)
    text = explanation(lines, 3, 200, "none shared")
    assert text[-1] == "not significant against the best composite: near"
    assert "3 draws" in text[0]
    assert "not counted" in explanation(lines, 1, 200, "none shared")[0]
    assert (
        explanation([best, far], 3, 200, "none shared")[-1] == "every difference to the best composite is significant"
    )


def test_the_table_shows_each_method(lines):
    text = shown(lines)
    for line in lines:
        row, accuracy = (row for row in text.splitlines() if row.startswith(line.name))
        assert f"{line.auc.value:.3f} [{line.auc.low:.3f}, {line.auc.high:.3f}]" in row
        assert row.rstrip().endswith(line.verdict or "]")
        assert accuracy.split()[-3:] == [f"{figure.value:.1%}" for figure in line.accuracy]


def test_csv_and_json_hold_all_figures(lines, tmp_path):
    document = json.loads(json.dumps(comparison_document(lines, RATES, {"study": "toy"}), allow_nan=False))
    assert (document["format"], document["study"], document["rates"]) == ("pxp-comparison/1", "toy", RATES)
    text = comparison_csv(lines, RATES)
    rows = list(csv.DictReader(io.StringIO(text)))
    for line, entry, row in zip(lines, document["methods"], rows, strict=True):
        assert entry["name"] == row["method"] == line.name
        assert entry["auc"] == {end: getattr(line.auc, end) for end in ("value", "low", "high")}
        assert float(row["auc"]) == entry["auc"]["value"]
        assert float(row["sparsity_high"]) == entry["sparsity"]["high"]
        assert [float(row[f"accuracy_{rate:g}"]) for rate in RATES] == [item["value"] for item in entry["accuracy"]]
        assert np.mean(entry["auc_by_draw"]) == pytest.approx(entry["auc"]["value"])
        found = entry["difference"]["auc"]
        if found is None:
            assert row["auc_difference"] == ""
        else:
            assert float(row["auc_difference_p_holm"]) == found["corrected"]
            assert row["auc_difference_significant"] == str(found["significant"]).lower()
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert is_csv(path)
    path.write_text("name,value\n")
    assert not is_csv(path)
