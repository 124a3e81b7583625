"""The heat maps that a run keeps for its report: what they show, of which images, and that they stay small."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from pxp_optimize.attribution import heat_maps
from pxp_optimize.optimize import optimize
from pxp_optimize.optimize.evaluation.task import Images
from pxp_optimize.optimize.study import run
from pxp_optimize.optimize.study.explain import heat_palette, shown_methods
from pxp_optimize.optimize.study.sheet import EDGE, as_shown, map_samples, pictures, png, shrunk, spaced_rows
from pxp_optimize.studies.figures import FIGURES
from pxp_optimize.studies.maps import kept_maps
from pxp_optimize.studies.page import page
from torch import nn


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def data(count: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, channels, 12, 10), generator=generator, dtype=torch.uint8)
    targets = torch.arange(count) % 3
    pixels[:, :, :5] //= 1 + targets[:, None, None, None].byte()  # something to tell them by
    return pixels, targets


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 8 * 6, 3)
    )


def one_trial(folder, **more):
    return optimize(
        network(),
        reference=data(6),
        search=data(6),
        trials=1,
        rates=[0, 0.5],
        storage=str(folder / "a.db"),
        device="cpu",
        **more,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    return optimize(
        network(),
        reference=data(12),
        search=data(15),
        holdout=data(18),
        trials=4,
        rates=[0, 0.3, 0.6],
        mean=0.5,
        std=0.25,
        storage=str(folder / "a.db"),
        device="cpu",
        quiet=True,
    )


def test_the_maps_are_those_of_the_whole_and_of_the_pruned_network(result):
    """Up to the 255 shades that they are kept in: half of one, and rounding of the maps themselves."""
    kept = kept_maps(result.study)
    assert (kept.trial, len(kept.rows), tuple(kept.size)) == (result.trial.number, 4, (12, 10))
    task = result.prepared.task
    rows = spaced_rows(task.holdout.targets.tolist(), 4)
    images = torch.cat([task.holdout.inputs[row : row + 1] for row in rows])
    whole, rate = network(), result.study.user_attrs["saved"][str(kept.trial)]["rate"]
    assert kept.rate == rate > 0
    networks = [whole] if rate == 0 else [whole, result.prune(rate=rate)]
    predicted = whole(images).argmax(1)
    assert [row.label for row in kept.rows] == [str(int(of)) for of in predicted]
    assert [row.true or row.label for row in kept.rows] == [str(row % 3) for row in rows]
    methods = shown_methods(result.study, most=4)
    assert list(kept.methods) == list(methods)
    assert len(kept.lefts) == len(methods) * len(networks)
    places = iter(kept.lefts)
    for method in methods.values():
        for of in networks:
            left = next(places)
            for found, row in zip(heat_maps(of, method, images, predicted), kept.rows, strict=True):
                strip = np.array(opened(row.maps)).astype(int)[:, left : left + 10]
                expected = 128 + 127 * (found / found.abs().max()).detach().numpy()
                assert np.abs(strip - expected).max() < 0.6
                assert strip.min() > 0  # 0 is what is transparent
    if rate:
        after = [str(int(of)) for of in networks[1](images).argmax(1)]
        assert [row.after or row.label for row in kept.rows] == after


def test_the_images_are_the_ones_that_were_explained(result):
    rows = spaced_rows(result.prepared.task.holdout.targets.tolist(), 4)
    for row, kept in zip(rows, kept_maps(result.study).rows, strict=True):
        expected = result.prepared.task.holdout.inputs.pixels[row].movedim(0, 2).numpy()
        assert (np.array(opened(kept.image)) == expected).all()


def test_a_study_may_keep_none(tmp_path):
    assert kept_maps(one_trial(tmp_path, no_pictures=True).study) is None


def test_they_are_in_the_report(result):
    text = page(result.study)
    assert kept_maps(result.study).rows[0].maps in text
    assert FIGURES["maps"](result.study) is not None


def test_what_is_there_is_not_made_again(result, monkeypatch):
    monkeypatch.setattr("pxp_optimize.optimize.study.sheet.map_batches", None)  # whoever calls it fails
    before = kept_maps(result.study)
    map_samples(result.study, result.prepared)
    assert kept_maps(result.study) == before


def test_heat_maps_that_cannot_be_made_end_no_run(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no colours")

    monkeypatch.setattr(run, "map_samples", broken)
    found = one_trial(tmp_path)
    assert "ValueError, no colours" in capsys.readouterr().err
    assert kept_maps(found.study) is None
    assert '"maps"' not in page(found.study)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([5, 5, 1, 0, 1], [3, 2, 0, 4]),  # 0, 1, 5, and the second of 1
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 2, 4, 6]),
        ([3, 2, 1, 0, 0], [3, 2, 1, 0]),
        ([1, 0], [1, 0]),
    ],
)
def test_images_are_of_several_classes(targets, expected):
    assert spaced_rows(targets, 4) == expected


def test_pictures_are_small_and_in_their_own_colours():
    assert shrunk(torch.zeros(2, 3, 12, 10)).shape == (2, 3, 12, 10)
    large = torch.zeros(1, 3, 200, 100, dtype=torch.uint8)
    large[:, 0] = 200
    (found,) = pictures(Images(large, torch.zeros(3, 1, 1), torch.ones(3, 1, 1)))
    assert found.shape == (EDGE, EDGE // 2, 3)
    assert (found == [200, 0, 0]).all()
    (grey,) = pictures(Images(torch.linspace(-3, 5, 2 * 16).view(1, 2, 4, 4)))  # of two channels, not normalised by us
    assert grey.shape == (4, 4)
    assert grey[0, 0] < grey[-1, -1]
    assert len(png(found)) < 1000


def test_strips_are_coloured_and_transparent_between_the_maps():
    picture = opened(png(np.array([[0, 1, 128, 255]], np.uint8), palette=True)).convert("RGBA")
    between, cold, nothing, hot = (picture.getpixel((x, 0)) for x in range(4))
    assert between[3] == 0
    for found, place in ((cold, 1), (nothing, 128), (hot, 255)):
        assert found == (*heat_palette()[place].tolist(), 255)


def test_a_map_that_is_not_finite_is_left_out():
    maps = torch.stack([torch.ones(4, 4), torch.full((4, 4), torch.nan), torch.zeros(4, 4)])
    maps[0, 0, 0] = -1
    found = as_shown(maps)
    assert set(found[0].flatten()) == {1, 255}
    assert (found[1] == 0).all()
    assert (found[2] == 128).all()
