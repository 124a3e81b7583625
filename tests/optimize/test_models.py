"""Networks by name or from the user's own module, with stand-in weights on disk; no model hub is reached."""

from __future__ import annotations

import argparse
import datetime
import sys
import urllib.error
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pxp_optimize.optimize.data.datasets import Dataset, Split
from pxp_optimize.optimize.data.digits import DIGITS_TRANSFORM
from pxp_optimize.optimize.data.images import IMAGENET_MEAN
from pxp_optimize.optimize.models import LoadedModel, build_model, load_model, supported_models
from pxp_optimize.optimize.weights import state_hash
from pxp_optimize.pruning import trace
from pxp_optimize.studies.errors import UserError
from safetensors.torch import save_file
from torch import nn

NOTHING = Split(np.array([], dtype=np.int64), [])
PETS = Dataset("pets", ("cat", "dog"), None, NOTHING, NOTHING)
TENCH = Dataset("tench", ("n01440764", "n01443537"), (0, 1), NOTHING, NOTHING)

OWN_NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

def double():
    return build().double()

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

class Packed(nn.Sequential):
    def get_extra_state(self):
        return {"scale": 1}

def packed():
    return Packed(*build())

def compiled():
    import torch
    return torch.compile(build())

def parallel():
    return nn.DataParallel(build())

def features():
    return nn.Conv2d(3, 4, 3)

def two():
    class Two(nn.Module):
        def forward(self, x):
            return x, x
    return Two()

def fails():
    raise RuntimeError("no such disk")

def of_classes(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def usual(num_classes=5):
    return of_classes(num_classes)

def of_width(width, num_classes=5):
    return of_classes(num_classes)

answer = 42
number = lambda: 42
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    return "own_network"


def loaded(spec: str, weights: Path | str, data: Dataset = PETS, **options) -> LoadedModel:
    return load_model(spec, str(weights), data, cache=Path("/nowhere"), **options)


def checkpoint(path: Path, spec: str = "resnet18", classes: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Save a stand-in for trained weights, and return the network they are of."""
    torch.manual_seed(1)
    network = build_model(spec, classes).eval()
    torch.save(network.to(dtype).state_dict(), path)
    return network.float()


def same(first: nn.Module, second: nn.Module) -> bool:
    return state_hash(first.state_dict()) == state_hash(second.state_dict())


# ------------------------------------------------------------------------------------------- names


def test_every_classifier_of_torchvision_is_supported() -> None:
    names = supported_models()
    assert {"resnet50", "vgg16_bn", "vit_b_16", "vit_tiny", "inception_v3"} <= set(names)
    others = ("rcnn", "deeplab", "r3d", "quantized")
    assert not [name for name in names if any(other in name for other in others)]


@pytest.mark.parametrize("spec", ["squeezenet1_1", "googlenet", "vit_tiny"])
def test_networks_return_plain_logits(spec: str) -> None:
    network = build_model(spec, 7).eval()
    size = 32 if spec == "vit_tiny" else 64
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_unknown_name_shows_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet81'; nearest: resnet18"):
        build_model("resnet81")
    with pytest.raises(UserError, match="unknown model"):
        loaded("fasterrcnn_resnet50_fpn", "default")


def test_size_that_an_architecture_can_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="maxvit_t can not be built for images of 32 pixels"):
        build_model("maxvit_t", 10, 32)
    checkpoint(tmp_path / "w.pt", "alexnet")
    with pytest.raises(UserError, match=r"alexnet does not take images of 32 x 32 pixels .*--image-size"):
        loaded("alexnet", tmp_path / "w.pt", image_size=32)


# ------------------------------------------------------------------------------------ own networks


def test_own_network_as_its_function_returns_it(own: str) -> None:
    model = loaded(f"{own}:build", "default")
    assert model.num_classes == 5
    assert (model.transform.size, model.transform.mean) == (224, IMAGENET_MEAN)
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())
    assert model.weights_hash == loaded(f"{own}:build", "default").weights_hash


def test_own_network_with_weights_and_in_double_precision(own: str, tmp_path: Path) -> None:
    state = build_model(f"{own}:double").state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = loaded(f"{own}:double", tmp_path / "w.pth", image_size=64)
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    assert model.weights_hash == state_hash({name: tensor.float() for name, tensor in state.items()})
    assert model.transform.size == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "AttributeError"),
        ("fails", "no such disk"),
        ("answer", "TypeError"),
        ("answer", r"has no function 'answer' \(it has build, double, lazy, Packed, packed and"),
        ("of_width", r"of_width needs width; .* without arguments, or with num_classes"),
        ("number", "returned int"),
        ("lazy", "whose size is not known yet"),
        ("packed", "no tensors"),
        ("features", r"returned shape \(1, 4, 222, 222\)"),
        ("two", "returned shape"),
    ],
)
def test_own_network_that_is_none(own: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        loaded(f"{own}:{name}", "default")
    assert "\n" not in str(caught.value)


def test_own_network_of_as_many_classes_as_there_are(own: str, tmp_path: Path) -> None:
    digits = Dataset("digits", tuple("0123456789"), None, NOTHING, NOTHING)
    assert loaded(f"{own}:of_classes", "default", digits).num_classes == 10
    assert loaded(f"{own}:of_classes", "default").num_classes == len(PETS.classes)
    assert loaded(f"{own}:usual", "default").num_classes == 5  # its own default is what its author wants
    torch.save(build_model(f"{own}:usual", 7).state_dict(), tmp_path / "w.pth")
    for name in ("usual", "of_classes"):
        assert loaded(f"{own}:{name}", tmp_path / "w.pth").num_classes == 7  # what the weights are of


BESIDE = """
from __future__ import annotations
from dataclasses import dataclass
from widths import WIDTH
from torch import nn

@dataclass
class Settings:
    classes: int = 5

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3)
        self.head = nn.Linear(WIDTH, Settings().classes)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))

build = Net
"""


@pytest.mark.parametrize("relative", [True, False])
def test_own_network_in_a_file(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """Wherever it lies, with what lies beside it, under a name that a module of Python's own has."""
    folder = tmp_path / "my nets: 1.0"
    folder.mkdir()
    (folder / "widths.py").write_text("WIDTH = 6")
    (folder / "types.py").write_text(BESIDE)
    (folder / "code.py").write_text(OWN_NETWORK)
    monkeypatch.delitem(sys.modules, "widths", raising=False)
    where = Path(folder.name) if relative else folder
    model = loaded(f"{where / 'types.py'}:build", "default", image_size=16)
    assert (model.num_classes, model.module.stem.out_channels) == (5, 6)
    assert trace(model.module).units("filters") == {"stem": 6}
    import types

    assert not hasattr(types, "build")
    assert loaded(f"{where / 'code.py'}:double", "default", image_size=16).num_classes == 5
    wrong = {
        "none.py:build": "no file",
        "code.py": "give .*code.py:NAME",
        "code.py:none": "AttributeError",
        "code.py:": "'",
    }
    for spec, message in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            loaded(str(where / spec), "default")
        assert "\n" not in str(caught.value)


def write_grey(path: Path, channels: int) -> None:
    path.write_text(
        f"{OWN_NETWORK}\ndef grey():\n    return nn.Sequential("
        f"nn.Conv2d({channels}, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n"
        f"\ndef behind():\n    return nn.Sequential(nn.Conv2d(3, {channels}, 1), *grey())\n"
        "\ndef both():\n"
        "    class Both(nn.Sequential):\n"
        "        def forward(self, x):\n"
        "            return super().forward(x.mean(1, keepdim=True))\n"
        "    return Both(*grey())\n"
    )


def test_a_network_for_other_channels_says_so(own: str, tmp_path: Path) -> None:
    """The size of its images is not at fault, and another one would not help."""
    write_grey(tmp_path / "four.py", 4)
    with pytest.raises(UserError, match="4 channels,") as caught:
        loaded("four.py:grey", "default")
    assert "--image-size" not in str(caught.value) and "nn.Conv2d(3, 4, 1)" in str(caught.value)
    assert loaded("four.py:behind", "default").num_classes == 5


def test_a_network_for_grey_images_gets_them(own: str, tmp_path: Path) -> None:
    write_grey(tmp_path / "grey.py", 1)
    model = loaded("grey.py:grey", "default")
    assert model.num_classes == 5
    assert model.transform.shape == (1, 224, 224)
    assert model.transform.mean == pytest.approx((0.449,)) and model.transform.std == pytest.approx((0.226,))
    assert loaded("grey.py:grey", "default", mean=[0.1], std=[0.5]).transform.mean == (0.1,)
    with pytest.raises(UserError, match="--mean: 3 values; give one: the network takes grey images"):
        loaded("grey.py:grey", "default", mean=[0.1, 0.2, 0.3])
    for colours in ("behind", "both"):
        assert loaded(f"grey.py:{colours}", "default").transform.shape == (3, 224, 224)


def test_own_module_that_is_missing() -> None:
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        build_model("no_such_module_anywhere:build")


# --------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_classes_are_read_from_the_checkpoint_of_any_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    network = checkpoint(tmp_path / "w.pt", classes=7, dtype=dtype)
    model = loaded("resnet18", tmp_path / "w.pt")
    assert model.num_classes == 7
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    assert same(model.module, network)
    assert (model.transform.size, model.transform.resize) == (224, 256)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net.module."])
def test_weights_of_a_wrapped_model(tmp_path: Path, prefix: str) -> None:
    network = checkpoint(tmp_path / "w.pt")
    state = torch.load(tmp_path / "w.pt", weights_only=True)
    torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "w.pt")
    assert same(loaded("resnet18", tmp_path / "w.pt").module, network)


def test_a_prefix_that_does_not_lead_to_the_models_names_is_kept(tmp_path: Path) -> None:
    torch.save({"other.weight": torch.zeros(2), "other.bias": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"2 unexpected: other\.weight"):
        loaded("resnet18", tmp_path / "w.pt")


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    network = checkpoint(tmp_path / "w.pt")
    save_file(network.state_dict(), tmp_path / "w.pt")
    assert same(loaded("resnet18", tmp_path / "w.pt").module, network)


@pytest.mark.parametrize("spec", ["squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_last_layers_by_any_name(tmp_path: Path, spec: str) -> None:
    network = checkpoint(tmp_path / "w.pt", spec, 3)
    model = loaded(spec, tmp_path / "w.pt", image_size=64)
    assert model.num_classes == 3
    assert same(model.module, network)


def test_checkpoints_as_trainers_save_them(tmp_path: Path) -> None:
    network = checkpoint(tmp_path / "plain.pt", "squeezenet1_1")
    state = network.state_dict()
    parallel = nn.DataParallel(network).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.pth")
    torch.save({"model": parallel, "args": {"lr": 0.1}}, tmp_path / "parallel.pth")
    torch.save({"model_state_dict": dict(state)}, tmp_path / "tutorial.pt")
    save_file(state, tmp_path / "w.safetensors")
    for file in tmp_path.iterdir():
        assert same(loaded("squeezenet1_1", file, image_size=64).module, network), file.name


LAYERS = {"0.weight": (4, 3, 3, 3), "0.bias": (4,), "3.weight": (5, 4), "3.bias": (5,)}
"""What `build` of OWN_NETWORK holds."""


def drawn(seed: int, prefix: str = "", layers: dict[str, tuple[int, ...]] = LAYERS) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {prefix + name: torch.randn(shape, generator=made) for name, shape in layers.items()}


COUNT = {"n_averaged": torch.tensor(3)}
OTHER = {name: (*shape[:-1], 7) for name, shape in LAYERS.items()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"net": drawn(0), "acc": 91.0, "epoch": 3}, ""),
        ({"params": drawn(0)}, ""),
        ({"network": drawn(0), "mean": torch.tensor(0.5)}, ""),
        ({"any name at all": {"deeper": {"model": drawn(0, "module.")}}}, ""),
        (
            {"state_dict": drawn(0, "net.") | {"criterion.weight": torch.ones(4)}},
            "; without state_dict.criterion.weight",
        ),
        ({"model": drawn(0), "args": argparse.Namespace(lr=0.1), "best": [torch.ones(2)]}, ""),
        ({"model": drawn(0), "optimizer": {"state": {0: drawn(1)}, "param_groups": []}}, ""),
        ({name.replace("0.", "0._orig_mod."): value for name, value in drawn(0).items()}, ""),
        ({"feature": drawn(3, layers=OTHER), "model": drawn(0)}, "; without feature.0.weight, feature.0.bias"),
        ({"teacher": drawn(3, layers=OTHER), "student": drawn(0)}, "; without teacher.0.weight"),
        ({"model": drawn(0), "generator": drawn(1)}, ", model; not generator"),
        ({"state_dict": drawn(1), "state_dict_ema": drawn(0)}, ", state_dict_ema (averaged); not state_dict"),
        ({"ema": drawn(0), "net": drawn(1)}, ", ema (averaged); not net"),
        ({"model": drawn(1), "modelEMA": drawn(0, "module.") | COUNT}, ", modelEMA.module (averaged); not model"),
        (drawn(1, "model.") | drawn(0, "model_swa.module."), ", model_swa.module (averaged); not model"),
        (drawn(1) | {"averaged": drawn(0)}, ", averaged (averaged); not those outside"),
        (drawn(0, "module.") | COUNT, ""),
        ({"model": drawn(0), "model_ema": {}}, ""),
        ({"model": drawn(0), "ema": {"0.weight": torch.zeros(4, 3, 3, 3)}}, "; without ema.0.weight"),
    ],
)
def test_weights_wherever_a_trainer_put_them(own: str, content: dict, says: str) -> None:
    torch.save(content, "w.ckpt")
    model = loaded(f"{own}:build", "w.ckpt", image_size=16)
    state = model.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in drawn(0).items())
    assert f"{model.description} ".startswith(f"weights of w.ckpt{says}"), model.description
    assert says or model.description == "weights of w.ckpt"


def test_what_lies_beside_the_weights_is_neither_read_nor_executed(own: str, tmp_path: Path) -> None:
    beside = {
        "best": np.float64(0.91),
        "curve": np.arange(3.0),
        "when": datetime.date(2026, 1, 2),
        "out": Path("runs/1"),
        "args": argparse.Namespace(lr=0.1, data=Path("x")),
        "options": Dataset("own class", (), None, NOTHING, NOTHING),
        "loss": nn.CrossEntropyLoss(),
        "logger": Command(),
    }
    before = torch.serialization.get_safe_globals()
    for content in (beside | {"model": drawn(0)}, {"model": drawn(0)} | beside):
        torch.save(content, "w.pt")
        state = loaded(f"{own}:build", "w.pt", image_size=16).module.state_dict()
        assert all(torch.equal(state[name], value) for name, value in drawn(0).items())
    torch.save({"model": drawn(0), "logger": Payload(tmp_path / "executed")}, "w.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        loaded(f"{own}:build", "w.pt")
    assert not (tmp_path / "executed").exists()
    assert torch.serialization.get_safe_globals() == before
    torch.save(beside, "w.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        loaded(f"{own}:build", "w.pt")


def test_nested_safetensors_and_versioned_layers(tmp_path: Path) -> None:
    """The versions of the layers, by which torchvision mends old files, are found at any depth."""
    network = build_model("mnasnet0_5", 2)
    state = network.state_dict()
    save_file({f"ema.module.{name}": value for name, value in state.items()}, tmp_path / "w.safetensors")
    torch.save({"trainer": {"net": state}}, tmp_path / "w.pt")
    for file in tmp_path.iterdir():
        assert same(loaded("mnasnet0_5", file, image_size=64).module, network)


def test_a_network_that_comes_compiled_takes_plain_weights(own: str) -> None:
    torch.save(drawn(0), "w.pt")
    for wrapper in ("compiled", "parallel"):
        state = loaded(f"{own}:{wrapper}", "w.pt", image_size=16).module.state_dict()
        assert all(torch.equal(state[name], value) for name, value in drawn(0).items())


def test_safetensors_of_a_network_with_versioned_layers(tmp_path: Path) -> None:
    network = build_model("mnasnet0_5", 2)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert same(loaded("mnasnet0_5", tmp_path / "w.safetensors").module, network)


def test_published_files_of_old_networks(tmp_path: Path) -> None:
    densenet = build_model("densenet121", 1000)
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): tensor
        for name, tensor in densenet.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "densenet.pth")
    assert same(loaded("densenet121", tmp_path / "densenet.pth", image_size=32).module, densenet)

    googlenet = torchvision.models.googlenet(init_weights=False)  # with its auxiliary heads
    torch.save(googlenet.state_dict(), tmp_path / "googlenet.pth")
    model = loaded("googlenet", tmp_path / "googlenet.pth", image_size=64)
    googlenet.transform_input = True
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.module(image), googlenet.eval()(image))


def test_vision_transformer_takes_its_image_size_from_the_checkpoint(tmp_path: Path) -> None:
    torch.save(build_model("vit_tiny", 3, 48).state_dict(), tmp_path / "w.pt")
    model = loaded("vit_tiny", tmp_path / "w.pt")
    assert (model.num_classes, model.transform.size) == (3, 48)
    resized = loaded("vit_tiny", tmp_path / "w.pt", image_size=64)
    assert resized.transform.size == 64
    assert resized.module(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_weights_of_another_network_are_refused_by_their_keys(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.pt", "mnasnet0_5")
    with pytest.raises(UserError, match=r"\d+ missing: conv1.weight.*\d+ unexpected: layers.0.weight") as caught:
        loaded("resnet18", tmp_path / "w.pt")
    checkpoint(tmp_path / "w.pt", "squeezenet1_0")
    with pytest.raises(
        UserError, match=r"\d+ of another shape: .*features.0.weight \(\(96, 3, 7, 7\), not \(64"
    ) as caught:
        loaded("squeezenet1_1", tmp_path / "w.pt")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600

    state = checkpoint(tmp_path / "w.pt").state_dict()
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"1 missing: fc.bias"):
        loaded("resnet18", tmp_path / "w.pt")


class Payload:
    """A pickle that would leave a file behind if it were loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


class Command:
    """A pickle that would run Python's code if it were loaded."""

    def __reduce__(self):
        return (exec, ("open('executed', 'w')",))


def test_unreadable_weights_are_refused_and_nothing_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(build_model("resnet18"), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(Payload(tmp_path / "executed"), tmp_path / "payload.pt")
    for file in list(tmp_path.iterdir()):
        with pytest.raises(UserError, match=file.name) as caught:
            loaded("resnet18", file)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    for absent in (tmp_path / "absent.pt", "last.ckpt", "pytorch_model.bin"):
        with pytest.raises(UserError, match="no such file"):
            loaded("resnet18", absent)


def test_fewer_outputs_than_classes(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.pt", classes=2)
    pets = replace(PETS, classes=("cat", "dog", "cow"))
    with pytest.raises(UserError, match="2 outputs, but pets has 3 classes"):
        loaded("resnet18", tmp_path / "w.pt", pets)


# ------------------------------------------------------------------------------------------ the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_pretrained_weights_bring_their_transform(hub: Path) -> None:
    network = checkpoint(hub / "mobilenet_v2-7ebf99e0.pth", "mobilenet_v2", 1000)
    for weights in ("default", "IMAGENET1K_V2", "MobileNet_V2_Weights.IMAGENET1K_V2"):
        model = loaded("mobilenet_v2", weights, TENCH)
        assert same(model.module, network)
        assert (model.num_classes, model.transform.size, model.transform.resize) == (1000, 224, 232)
        assert "MobileNet_V2_Weights.IMAGENET1K_V2" in model.description
    smaller = loaded("mobilenet_v2", "IMAGENET1K_V2", TENCH, image_size=112)
    assert (smaller.transform.size, smaller.transform.resize) == (112, 116)
    whole = loaded("mobilenet_v2", "IMAGENET1K_V2", TENCH, image_size=112, resize=112)
    assert (whole.transform.size, whole.transform.resize) == (112, 112)


def test_offline_without_weights(hub: Path) -> None:
    with pytest.raises(UserError, match=r"can not download ResNet18_Weights.IMAGENET1K_V1 .*--weights FILE"):
        loaded("resnet18", "default", TENCH)


def test_names_of_weights_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="weights of resnet50, which are IMAGENET1K_V1, IMAGENET1K_V2"):
        loaded("resnet50", "IMAGENET1K_V3", TENCH)
    with pytest.raises(UserError, match="neither a file"):
        loaded("resnet50", "ResNet18_Weights.IMAGENET1K_V1", TENCH)
    with pytest.raises(UserError, match="vit_tiny has no weights"):
        loaded("vit_tiny", "default", TENCH)


def test_imagenet_weights_on_classes_that_are_not_imagenets(hub: Path) -> None:
    checkpoint(hub / "resnet18-f37072fd.pth", "resnet18", 1000)
    with pytest.raises(UserError, match="those of pets are not"):
        loaded("resnet18", "default", PETS)


# --------------------------------------------------------------------------------------- transforms


def test_transform_is_overridden_by_what_is_given(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.pt")
    own = {"mean": [0.5], "std": [0.1, 0.2, 0.3], "image_size": 112}
    transform = loaded("resnet18", tmp_path / "w.pt", **own).transform
    assert (transform.size, transform.resize) == (112, 112)
    assert (transform.mean, transform.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    transform = loaded("resnet18", tmp_path / "w.pt", resize=232).transform
    assert (transform.size, transform.resize) == (224, 232)
    for wrong in ({"mean": [0.1, 0.2]}, {"std": [0.0]}, {"image_size": 0}, {"image_size": 32, "resize": 31}):
        with pytest.raises(UserError, match="--"):
            loaded("resnet18", tmp_path / "w.pt", **wrong)


def test_own_weights_on_the_digits_get_the_digits_transform(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.pt", classes=10)
    digits = Dataset("digits", tuple("0123456789"), None, NOTHING, NOTHING)
    assert loaded("resnet18", tmp_path / "w.pt", digits).transform == DIGITS_TRANSFORM


def test_global_random_state_is_left_alone(own: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded(f"{own}:build", "default")
    assert torch.equal(torch.get_rng_state(), before)


def test_state_hash_sees_names_types_and_values() -> None:
    base = OrderedDict(a=torch.zeros(2, 3), b=torch.tensor(1))
    assert state_hash(base) == state_hash(OrderedDict(reversed(base.items())))
    changed = [
        {"a": torch.zeros(3, 2), "b": base["b"]},
        {"a": base["a"].half(), "b": base["b"]},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
    ]
    assert len({state_hash(base), *map(state_hash, changed)}) == 5
    assert state_hash({"a": torch.zeros(3, dtype=torch.bfloat16)})
