"""The smaller network as a file of another program: it predicts what the compact network does."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pxp_optimize.optimize.study import formats
from pxp_optimize.optimize.study.checkpoint import about_pruned, load_pruned
from pxp_optimize.optimize.study.formats import FORMATS, Small, format_of, write_small
from pxp_optimize.optimize.study.smaller import runs
from pxp_optimize.pruning import compact, make_repair, prune_masks, trace
from pxp_optimize.studies.errors import UserError
from torch import nn
from torchvision.models import MobileNetV3, ResNet
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock

onnxruntime = pytest.importorskip("onnxruntime")


def resnet() -> nn.Module:
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, 5)
    return model


def mobilenet() -> nn.Module:
    """With gates and a residual connection."""
    block = partial(InvertedResidualConfig, width_mult=1.0)
    settings = [block(16, 3, 24, 16, True, "RE", 2, 1), block(16, 5, 32, 16, True, "HS", 1, 1)]
    return MobileNetV3(settings, last_channel=32, num_classes=5)


@pytest.fixture(scope="module", params=["resnet", "mobilenet", "vit"])
def small(request, randomise, vision_transformer) -> tuple[nn.Module, Small]:
    """A network of each family, half of it pruned and repaired, and images that it was not repaired by."""
    torch.manual_seed(0)
    if request.param == "vit":
        model, size, units = vision_transformer(), 16, "heads+neurons"
    else:
        model, size, units = randomise({"resnet": resnet, "mobilenet": mobilenet}[request.param]()), 32, "filters"
    graph = trace(model, torch.randn(2, 3, size, size))
    images = torch.randn(12, 3, size, size)
    scores = {name: torch.rand(count) for name, count in graph.units(units).items()}
    masks = prune_masks(scores, 0.5)
    network = make_repair("least-squares", graph, images)(graph, compact(graph, masks), masks).network
    return model, Small(network, runs(network), masks, {"model": request.param}, torch.randn(9, 3, size, size))


@pytest.fixture(scope="module")
def written(small, tmp_path_factory) -> Path:
    """The folder with the network in all formats."""
    folder = tmp_path_factory.mktemp("small")
    for suffix in FORMATS:
        checked = write_small(folder / f"small{suffix}", small[1])
        assert ("checked against" in checked) == (suffix != ".safetensors")
    return folder


@torch.no_grad()
def test_what_is_written_predicts_as_the_compact_network(small, written):
    model, found = small
    expected = found.network(found.images)
    assert len({tuple(row.tolist()) for row in expected}) == len(expected)  # they say something of their image
    close = {"rtol": 1e-4, "atol": 1e-4 * float(expected.abs().max())}
    exported = torch.export.load(written / "small.pt2").module()
    session = onnxruntime.InferenceSession(written / "small.onnx")
    assert [given.name for given in session.get_inputs()] == ["images"]
    loaded = load_pruned(model, written / "small.safetensors")
    for count in (1, 2, 9):  # any number of images
        images = found.images[:count]
        (by_onnx,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(exported(images), expected[:count], **close)
        torch.testing.assert_close(torch.from_numpy(by_onnx), expected[:count], **close)
        torch.testing.assert_close(loaded(images), expected[:count], **close)


def test_a_file_says_what_it_is(small, written):
    told = {"format": "pxp-pruned/1", **small[1].about}
    metadata = onnxruntime.InferenceSession(written / "small.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(metadata["pxp-pruned"]) == told
    with zipfile.ZipFile(written / "small.pt2") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("pxp-pruned"))
        assert json.loads(archive.read(name)) == told
    assert about_pruned(written / "small.safetensors") == small[1].about
    for suffix, kind in FORMATS.items():
        assert kind.is_ours(written / f"small{suffix}")


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_only_an_earlier_one_is_written_over(kind, tmp_path):
    (tmp_path / "a").write_bytes(b"something else")
    assert not kind.is_ours(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"")
    assert kind.is_ours(tmp_path / "a")


@pytest.fixture
def linear() -> Small:
    """The least that can be exported; safetensors would need a network."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    return Small(None, module, {}, {}, torch.randn(1, 3, 2, 2))  # type: ignore[arg-type]


def test_a_file_that_would_predict_something_else_is_not_written(linear, tmp_path, monkeypatch):
    program = formats.exported(linear)
    with torch.no_grad():
        linear.runs[1].weight.add_(1.0)
    monkeypatch.setattr(formats, "exported", lambda small: program)
    with pytest.raises(UserError, match="other logits"):
        write_small(tmp_path / "a.pt2", linear)
    assert not [*tmp_path.iterdir()]


def test_a_network_that_cannot_be_exported_is_told_in_one_line(linear, tmp_path):
    class Asking(nn.Module):
        def forward(self, images):
            return images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2

    with pytest.raises(UserError, match=r"torch\.export does not take this network .*: write \.safetensors"):
        write_small(tmp_path / "a.pt2", replace(linear, runs=Asking()))


@pytest.mark.parametrize("name", ["small", "small.pt", "small.PTH", "small.bin", ".onnx"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="safetensors, pt2 or onnx"):
        format_of(name)


def test_what_is_missing_for_onnx_is_named(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'pxp-optimize\[onnx\]'"):
        format_of("small.onnx")
    assert format_of("small.PT2") is FORMATS[".pt2"]


def test_onnx_without_a_runtime_says_that_it_was_not_checked(linear, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert "not checked" in write_small(tmp_path / "a.onnx", linear)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (logits,) = session.run(None, {"images": linear.images.numpy()})
    assert np.allclose(logits, linear.runs(linear.images).detach().numpy(), atol=1e-5)
