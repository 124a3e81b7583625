"""Unit relevance against what the paper authors' own code gives (`oracles/`, defined in its README)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from pxp_optimize.attribution import collect_relevance, load_composite
from pxp_optimize.pruning import trace
from safetensors import safe_open
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "oracles"
RESNET = FOLDER / "resnet18_seed0.safetensors"
VIT = FOLDER / "vit_tiny.safetensors"
TOLERANCE = 1e-3  # of a layer's vector; the reference computes in fp32 with other operations

RULES = {
    "Epsilon": {"rule": "epsilon", "epsilon": 1e-6},
    "ZPlus": {"rule": "zplus"},
    "AlphaBeta": {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
}
SOFTMAX = {"Epsilon": "attnlrp", "ZPlus_vbias_T": "zplus_bias", "ZPlus_vbias_F": "zplus", "CP": "cp"}


class Oracle(NamedTuple):
    tensors: dict[str, Tensor]
    model: nn.Module

    def relevance(self, case: str) -> dict[str, Tensor]:
        prefix = f"relevance/{case}/"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def check(self, case: str, units: str, document: dict[str, Any], worst: Callable[..., float]) -> None:
        composite = load_composite({"format": "pxp-composite/1", "units": units, **document})
        inputs, targets = self.tensors["input"], self.tensors["target"]
        got = collect_relevance(self.model, composite, inputs, targets, units=units, batch_size=3)
        expected = self.relevance(case)
        assert expected
        assert set(got) == set(expected)
        assert worst(got, {name: expected[name] for name in got}) < TOLERANCE


def _cases(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return sorted({key.split("/", 1)[1].rpartition("/")[0] for key in file.keys() if key.startswith("rel")})  # noqa: SIM118


def _load(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def resnet() -> Oracle:
    tensors = _load(RESNET)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    generator = torch.Generator().manual_seed(2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return Oracle(tensors, model.eval())


@pytest.fixture(scope="module")
def vit() -> Oracle:
    tensors = _load(VIT)
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    model.load_state_dict(weights)
    return Oracle(tensors, model.eval())


def test_every_case_of_the_files_is_tested() -> None:
    with safe_open(VIT, "pt") as file:
        assert set(_cases(VIT)) == set(json.loads(file.metadata()["cases"]))
    assert len(_cases(VIT)) == 32
    assert len(_cases(RESNET)) == 4


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_model_is_the_oracles(name: str, request: pytest.FixtureRequest) -> None:
    oracle: Oracle = request.getfixturevalue(name)
    expected = oracle.tensors["logits"]
    for network in (oracle.model, trace(oracle.model).network):
        torch.testing.assert_close(network(oracle.tensors["input"]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", _cases(RESNET))
def test_resnet18(resnet: Oracle, case: str, worst: Callable[..., float]) -> None:
    rules = [RULES[name] for name in case.split("-")]
    groups = dict(zip(("low", "mid", "high", "classifier"), rules, strict=True))
    resnet.check(case, "filters", {"groups": groups}, worst)


@pytest.mark.parametrize("case", _cases(VIT))
def test_vision_transformer(vit: Oracle, case: str, worst: Callable[..., float]) -> None:
    softmax, rules, units = case.split("/")
    low, mid, _, classifier = (RULES[name] for name in rules.split("-"))
    # the reference splits 12 layers, so that of these 4 the first 3 are its low ones
    layers = {"heads.head": classifier}
    for index in range(4):
        block = f"encoder.layers.encoder_layer_{index}"
        for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layers[f"{block}.self_attention.{layer}"] = low if index < 3 else mid
        for layer in ("mlp.0", "mlp.3"):
            layers[f"{block}.{layer}"] = low if index < 3 else mid
    vit.check(case, units, {"layers": layers, "attention": {"softmax": SOFTMAX[softmax]}}, worst)
