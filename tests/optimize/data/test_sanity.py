"""Warnings before a study takes its time, each with its criterion, as the command gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pxp_optimize.optimize.data.datasets import Split
from pxp_optimize.optimize.data.sanity import chance_of, few, near_chance, scaled_up


def labels(*counts: int) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def test_chance_is_the_most_frequent_class():
    assert chance_of(labels(50, 30, 20)) == 0.5
    assert chance_of(torch.tensor([7, 7, 9, 340])) == 0.5


@pytest.mark.parametrize(
    ("targets", "below", "above"),
    [
        (labels(*[100] * 10), 0.189, 0.191),  # a tenth of the way from 10 % to 100 %
        (labels(5, 5), 0.97, 0.98),  # three standard errors of 10 images: 0.158 each
        (labels(*[1] * 1000), 0.1, 0.102),
    ],
)
def test_near_chance(targets, below, above):
    assert "near chance" in near_chance(below, targets)
    assert near_chance(above, targets) is None


def test_few_search_samples():
    assert "24 search samples go in steps of 4%" in few(24)
    assert few(25) is None


def images(tmp_path: Path, *sizes: tuple[int, int]) -> Split:
    paths = []
    for index, size in enumerate(sizes):
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", size).save(paths[-1])
    return Split(np.zeros(len(sizes), dtype=np.int64), paths)


def test_images_that_are_much_enlarged(tmp_path):
    split = images(tmp_path, (100, 40), (50, 64), (48, 48))  # smaller edges of 40, 50 and 48
    rows = np.arange(3)
    assert scaled_up(split, rows, 96) is None
    assert "images of 48 pixels are scaled up 2.0 times" in scaled_up(split, rows, 97)
    assert "--image-size 48" in scaled_up(split, rows, 97)
    assert scaled_up(split, rows[:1], 81) is not None
    (tmp_path / "1.png").write_bytes(b"broken")  # is said where it is decoded
    assert "images of 44 pixels" in scaled_up(split, rows, 97)
    (tmp_path / "0.png").write_bytes(b"broken")
    assert scaled_up(split, rows[:2], 97) is None
    embedded = Split(np.zeros(2, dtype=np.int64), np.zeros((2, 32, 32, 3), dtype=np.uint8))
    assert scaled_up(embedded, rows[:2], 64) is None
    assert "scaled up 7.0 times" in scaled_up(embedded, rows[:2], 224)


def test_a_run_warns_before_its_first_trial(project):
    """A transformer that is not trained, on images of 16 pixels."""
    arguments = ["--model", "network:transformer", "--data", "images", "--device", "cpu", "--rates", "0,0.5"]
    arguments += ["--search-samples", "24", "--holdout-samples", "9", "--trials", "4", "--rescore", "1"]
    arguments += ["--schedule", "oneshot", "--repair", "none"]
    result = project.run(*arguments, "--image-size", "16", "--storage", "chance.db", "--export", "chance.json")
    assert result.returncode == 0, result.stderr
    before, _, _ = result.stderr.partition("1 of 4 trials")
    assert "accuracy unpruned on the search samples, 33.3% by chance" in before
    assert "warning the unpruned accuracy is near chance (below 62.2% on these samples" in before
    assert "scaled up" not in result.stderr
    again = project.run(
        *arguments, "--image-size", "16", "--storage", "chance.db", "--export", "chance.json", "--trials", "5"
    )
    assert again.returncode == 0, again.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("network"))
    assert line in again.stderr.splitlines(), "the study knows it"


def test_a_trained_network_at_three_times_the_size(project):
    arguments = [*project.options, "--image-size", "48", "--rates", "0,0.5", "--trials", "4", "--rescore", "1"]
    result = project.run(*arguments, "--storage", "large.db", "--export", "large.json")
    assert result.returncode == 0, result.stderr
    before, _, _ = result.stderr.partition("1 of 4 trials")
    assert "warning images of 16 pixels are scaled up 3.0 times" in before
