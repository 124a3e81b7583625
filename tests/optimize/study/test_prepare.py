"""From options to a task: what is loaded, drawn, masked and fingerprinted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize import models
from pxp_optimize.optimize.data import digits
from pxp_optimize.optimize.evaluation.devices import check_precision, choose_device
from pxp_optimize.optimize.evaluation.evaluate import evaluate
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.study.compare import check_unchanged, stored_options
from pxp_optimize.optimize.study.prepare import Prepared, prepare
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.fingerprint import difference
from torch import nn


@pytest.fixture
def options(small_options) -> Options:
    return small_options.changed(rates=(0.0, 0.5), reference_samples=4, batch_size=8)


def test_a_task_holds_what_was_asked_for(options):
    prepared = prepare(options.changed(search_samples=21, holdout_samples=9))
    task = prepared.task
    assert (len(task.reference), len(task.search), len(task.holdout)) == (12, 21, 9)
    assert task.search.inputs.pixels.shape == (21, 3, 16, 16)
    assert task.search.inputs.pixels.dtype == torch.uint8
    batch = task.search.inputs[0:2]
    assert torch.equal(batch, (task.search.inputs.pixels[:2] / 255 - 0.5) / 0.25)
    assert (task.units, task.rates, task.logits, task.batch_size) == ("filters", (0.0, 0.5), None, 8)
    assert torch.bincount(task.search.targets).tolist() == [7, 7, 7]
    assert {layer["group"] for layer in prepared.layers.values()} == {"low", "mid", "high", "classifier"}


def test_the_network_is_right_on_these_targets(options):
    task = prepare(options).task
    predicted = task.graph.network(task.search.inputs[0 : len(task.search)]).argmax(1)
    assert (predicted == task.search.targets).float().mean() > 0.8


def test_by_default_search_and_holdout_share_the_validation_images(options):
    task = prepare(options).task
    assert (len(task.search), len(task.holdout)) == (30, 30)
    pixels = torch.cat([task.search.inputs.pixels, task.holdout.inputs.pixels]).flatten(1)
    assert len(torch.unique(pixels, dim=0)) == 60


def test_fewer_classes_mask_the_other_outputs(options):
    prepared = prepare(options.changed(classes="red,0"))
    assert prepared.task.logits.tolist() == [0, 2]
    assert set(prepared.task.search.targets.tolist()) == {0, 2}
    assert set(prepared.task.reference.targets.tolist()) == {0, 2}
    assert prepared.fingerprint["classes"] == ["blue", "red"]
    assert "1 of 3 outputs ignored, used are 0, 2" in " ".join(prepared.description)


def test_the_description_says_which_of_a_checkpoints_weights_were_taken(options, tmp_path):
    state = torch.load(options.weights, weights_only=True)
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"state_dict": zeros, "state_dict_ema": state}, tmp_path / "both.pt")
    prepared = prepare(options.changed(weights=str(tmp_path / "both.pt")))
    assert "both.pt, state_dict_ema (averaged); not state_dict;" in prepared.description[0]
    assert prepared.fingerprint["weights"] == prepare(options).fingerprint["weights"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": "heads"}, r"heads.*--units"),
        ({"model": "squeezenet1_1", "repair": "batchnorm"}, "no BatchNorm to re-estimate"),
        ({"model": "alexnet"}, "alexnet is not supported: .*fft"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_it_is_trained(monkeypatch, tmp_path, changes, message):
    class Spectrum(nn.Module):
        """What no entry of the table of operations is for."""

        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(torch.fft.fft2(self.conv(x)).abs().mean((2, 3)))

    def train(*args, **kwargs):
        pytest.fail("it was trained")

    def build(spec, *more):
        return Spectrum() if spec == "alexnet" else build_model(spec, *more)

    build_model = models.build_model
    monkeypatch.setattr(models, "build_model", build)
    monkeypatch.setattr(digits, "train", train)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        prepare(Options.parsed(**{"data": "digits", "device": "cpu"} | changes))
    assert "\n" not in str(caught.value)


GATED = """
import torch
from torch import nn


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gate, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.fc((x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))).mean((2, 3)))
"""


def test_layers_that_only_feed_gates_are_units_where_that_is_said(options, tmp_path):
    (tmp_path / "gated.py").write_text(GATED)
    options = options.changed(model=f"{tmp_path / 'gated.py'}:Gated", weights="default")
    usual, every = prepare(options), prepare(options.changed(units="filters"))
    assert (usual.task.units, every.task.units) == ("filters-gates", "filters")
    assert [prepared.description[0].split("; ")[1].split(", on")[0] for prepared in (usual, every)] == [
        "6 filters in 1 layers, others only feed gates",
        "12 filters in 2 layers",
    ]
    assert difference(every.fingerprint, usual.fingerprint) == ["units: stored filters, now filters-gates"]
    # a study from when `auto` stood for all filters goes on with these
    study = optuna.create_study()
    study.set_user_attr("fingerprint", every.fingerprint)
    study.set_user_attr("config", options.stored())
    again = prepare(stored_options(study))
    check_unchanged(study, again.fingerprint)
    assert again.task.units == "filters"
    # costs of gates that were counted in another way are no reason to refuse what does not measure them
    costs = prepare(options.changed(units="filters", objective="auc,macs"))
    assert difference(every.fingerprint, costs.fingerprint) == ["costs: stored nothing, now 1"]
    check_unchanged(study, costs.fingerprint)


def test_the_description_says_how_to_use_ones_own(options):
    text = "\n".join(prepare(options).description)
    for part in ("weights.pt", "40 filters in 4 layers", "images, 3 classes at 16 x 16", "30 search"):
        assert part in text
    for option in ("--model", "--weights", "--data", "--search-samples"):
        assert option in text


def test_the_description_says_how_images_are_prepared(options):
    (line,) = (line for line in prepare(options).description if line.startswith("image "))
    assert "less 0.5, 0.5, 0.5, divided by 0.25, 0.25, 0.25" in line
    assert "--mean, --std" in line


def test_the_same_options_give_the_same_fingerprint(options):
    first, second = prepare(options), prepare(options)
    assert difference(first.fingerprint, second.fingerprint) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, {"samples reference hash", "samples search hash", "samples holdout hash"}),
        ({"reference_samples": 3}, {"samples reference count", "samples reference hash"}),
        ({"rates": (0.0, 0.25)}, {"rates"}),
        ({"mean": (0.4,)}, {"image mean"}),
        ({"precision": "bf16"}, {"precision"}),
        ({"batch_size": 4, "trials": 3, "sampler": "random"}, set()),
    ],
)
def test_what_changes_a_value_changes_the_fingerprint(options, change, named):
    before = prepare(options.changed(holdout_samples=30)).fingerprint
    after = prepare(options.changed(holdout_samples=30, **change)).fingerprint
    assert {line.split(":")[0] for line in difference(before, after)} == named


def test_other_weights_change_the_fingerprint(options, project):
    state = torch.load("weights.pt", weights_only=True)
    state["3.bias"] += 1
    torch.save(state, "other.pt")
    before, after = (prepare(options.changed(weights=name)).fingerprint for name in ("weights.pt", "other.pt"))
    assert [line.split(":")[0] for line in difference(before, after)] == ["weights"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet81"}, "resnet18"),
        ({"weights": "none.pt"}, "none.pt"),
        ({"data": "none"}, "none"),
        ({"classes": "red,pink"}, "pink"),
        ({"reference_samples": 99}, "--reference-samples"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"precision": "tf32"}, "cpu has no TF32 .* give fp32 or bf16"),
    ],
)
def test_bad_input_is_one_line(options, change, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(options.changed(**change))
    assert "\n" not in str(error.value)


UNTRACEABLE = """
from torch import nn

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return x if x.sum() > 0 else -x

def branch():
    return Branch()

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
"""


def test_networks_that_cannot_be_used_are_named(options, project):
    (project.folder / "odd.py").write_text(UNTRACEABLE)
    for name, message in (("branch", "cannot be traced"), ("flat", "nothing to prune")):
        with pytest.raises(UserError, match=message) as error:
            prepare(options.changed(model=f"odd:{name}", weights="default"))
        assert "\n" not in str(error.value)


def test_a_broken_image_is_named_or_skipped(options, project):
    broken: Path = project.folder / "images" / "train" / "red" / "0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    try:
        asked = options.changed(reference_samples=12)
        with pytest.raises(UserError, match=r"red/0\.png.*--skip-broken"):
            prepare(asked)
        skipped: Prepared = prepare(replace(asked, skip_broken=True))
        assert len(skipped.task.reference) == 35
        assert torch.bincount(skipped.task.reference.targets).tolist() == [12, 12, 11]
    finally:
        broken.write_bytes(whole)


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps", "cuda:x", "gpu", ""):
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="no device cuda:2: the last one is cuda:1"):
        choose_device("cuda:2")


def test_precisions_that_a_device_has(monkeypatch):
    for precision in ("fp32", "bf16"):
        check_precision(precision, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match="cuda:0 has no TF32"):
        check_precision("tf32", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    check_precision("tf32", torch.device("cuda:0"))


@pytest.mark.cuda
def test_everything_is_on_the_device(options):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    task = prepare(options.changed(device="cuda", classes="0,2")).task
    assert task.graph.device.type == "cuda"
    for tensor in (task.search.inputs.pixels, task.search.inputs[0:1], task.search.targets, task.logits):
        assert tensor.device.type == "cuda"


def test_repairs_may_read_more_images(options, tmp_path):
    plain = prepare(options)
    more = prepare(options.changed(repair_samples=len(plain.task.reference) + 5, repair="batchnorm"))
    images = more.task.repair.inputs
    assert len(images) == len(plain.task.reference) + 5
    assert torch.equal(images[0 : len(plain.task.reference)], plain.task.reference.inputs[0:100000])
    mark = more.fingerprint["samples"]["repair"]
    assert mark["count"] == len(images)
    assert "repair" not in plain.fingerprint["samples"]
    assert any("samples repair" in line for line in difference(plain.fingerprint, more.fingerprint))
    with pytest.raises(UserError, match=r"--repair-samples 100000: .* training images of these classes; give fewer"):
        prepare(options.changed(repair_samples=100000))


def test_a_grey_network_is_explained_on_grey_images(options, project):
    """What it gets of a colour image is its luminance, as Pillow has it."""
    (project.folder / "greynet.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), *head)\n"
    )
    prepared = prepare(options.changed(model="greynet.py:build", weights="default", mean=0.25, std=0.5))
    inputs = prepared.task.reference.inputs
    assert inputs.pixels.shape[1:] == (1, 16, 16)
    row = int(prepared.source.drawn["reference"][3])
    with Image.open(prepared.source.dataset.train.images[row]) as image:
        grey = np.asarray(image.convert("L"))
    assert (inputs.pixels[3, 0].numpy() == grey).all()
    assert torch.allclose(inputs[3:4][0, 0], (torch.tensor(grey) / 255 - 0.25) / 0.5)
    assert prepared.fingerprint["image"]["mean"] == [0.25]
    assert evaluate(prepared.task, Composite.uniform(RuleSpec("epsilon"))).accuracy[0] > 0
