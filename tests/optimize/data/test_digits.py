"""Training on the digits: good enough, the same each time, cached whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from pxp_optimize.optimize.data import digits
from pxp_optimize.optimize.data.datasets import Dataset, open_dataset
from pxp_optimize.optimize.data.digits import DIGITS_TRANSFORM, load_or_train, seeded, train
from pxp_optimize.optimize.models import load_model
from pxp_optimize.optimize.weights import state_hash
from pxp_optimize.studies.errors import UserError
from torch import nn


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_dataset("digits", seed=0, cache=Path("/nowhere"))


def small_network() -> nn.Module:
    """Enough for the digits, in a second."""
    with seeded():
        return nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=4, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 8 * 8, 10),
        )


@pytest.fixture
def one_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "CYCLES", (1,))


def test_a_small_network_learns_the_digits(data: Dataset) -> None:
    assert train(small_network(), data) >= 0.95


@pytest.mark.usefixtures("one_cycle")
@pytest.mark.filterwarnings("ignore:resnet18 reaches")
def test_a_named_network_is_trained_once_and_read_back(data: Dataset, tmp_path: Path) -> None:
    seen: list[str] = []

    def progress(label: str, total: int):
        seen.append(label)
        return digits.no_progress(label, total)

    first = load_model("resnet18", "default", data, cache=tmp_path, progress=progress)
    assert "train on the digits" in seen[0]
    trained = len(seen)
    second = load_model("resnet18", "default", data, cache=tmp_path, progress=progress)
    assert len(seen) == trained
    assert first.weights_hash == second.weights_hash
    assert first.description == second.description
    assert (second.num_classes, second.transform) == (10, DIGITS_TRANSFORM)
    assert not second.module.training


@pytest.mark.usefixtures("one_cycle")
def test_training_is_deterministic_and_leaves_the_random_state(data: Dataset) -> None:
    before = torch.get_rng_state()
    hashes = set()
    for _ in range(2):
        network = small_network()
        train(network, data)
        hashes.add(state_hash(network.state_dict()))
        torch.rand(3)
    assert len(hashes) == 1
    torch.set_rng_state(before)
    train(small_network(), data)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("one_cycle")
@pytest.mark.filterwarnings("ignore:small reaches")
def test_a_damaged_cache_is_replaced(data: Dataset, tmp_path: Path) -> None:
    def run() -> str:
        network = small_network()
        load_or_train("small", network, data, DIGITS_TRANSFORM, tmp_path)
        return state_hash(network.state_dict())

    expected = run()
    (file,) = (tmp_path / "digits").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"no weights at all", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        assert run() == expected
        assert file.read_bytes() == whole
    assert list((tmp_path / "digits").iterdir()) == [file]


@pytest.mark.usefixtures("one_cycle")
@pytest.mark.filterwarnings("ignore:small reaches")
def test_other_transforms_are_cached_apart(data: Dataset, tmp_path: Path) -> None:
    from dataclasses import replace

    for transform in (DIGITS_TRANSFORM, replace(DIGITS_TRANSFORM, mean=(0.5, 0.5, 0.5))):
        load_or_train("small", small_network(), data, transform, tmp_path)
    assert len(list((tmp_path / "digits").iterdir())) == 2


@pytest.mark.usefixtures("one_cycle")
def test_a_network_that_does_not_learn_is_used_with_a_warning(data: Dataset, tmp_path: Path) -> None:
    blind = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10), nn.Hardtanh(0, 1e-9))
    for _ in range(2):
        with pytest.warns(UserWarning, match="blind reaches .* on the digits only"):
            load_or_train("blind", blind, data, DIGITS_TRANSFORM, tmp_path)


def test_a_cache_that_can_not_be_written_is_refused_before_training(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="can not write the cache folder"), warnings.catch_warnings():
        load_or_train("small", small_network(), data, DIGITS_TRANSFORM, tmp_path / "file")


def test_a_network_that_needs_larger_images_is_refused(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"inception_v3 does not take images of 32 x 32 .*--image-size"):
        load_model("inception_v3", "default", data, cache=tmp_path)
    assert not list(tmp_path.iterdir())
