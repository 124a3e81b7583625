"""Our composites in plain zennit, on the user's own model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zennit.layer
import zennit.rules
from pxp_optimize.attribution import RULES, Composite, CompositeError, RuleSpec, load_composite
from pxp_optimize.attribution.attention import SOFTMAX_RULES
from pxp_optimize.attribution.rules.input import InputRule
from pxp_optimize.pruning import trace
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import make_layers
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlus, LayerMapComposite
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, Convolution, Linear

SPECS = {name: RuleSpec(name) for name, kind in RULES.items() if not issubclass(kind.hook, InputRule)}


def resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def vgg() -> nn.Module:
    hidden = (nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 5))
    return nn.Sequential(*make_layers([8, "M", 12, 12, "M", 16, "M"], batch_norm=True), nn.Flatten(), *hidden)


def mobilenet() -> nn.Module:
    settings = [(8, 3, 16, 8, True, "RE", 2, 1), (8, 5, 24, 12, True, "HS", 2, 1), (12, 5, 24, 12, True, "HS", 1, 1)]
    return MobileNetV3([InvertedResidualConfig(*setting, 1.0) for setting in settings], 32, num_classes=5)


@pytest.fixture
def make(randomise: Callable, vision_transformer: Callable) -> Callable[[str], nn.Module]:
    def build(name: str) -> nn.Module:
        if name == "vit":
            return vision_transformer().double()
        torch.manual_seed(0)
        return randomise({"resnet": resnet, "vgg": vgg, "mobilenet": mobilenet}[name]()).double()

    return build


def samples(size: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Three images and what relevance starts with: 1 at a target logit each, of five."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)
    return images, torch.eye(5, dtype=torch.float64)[[4, 0, 2]]


def heat_map(model: nn.Module, composite: Any, size: int = 16) -> Tensor:
    images, start = samples(size)
    with Gradient(model, composite) as attributor:
        return attributor(images, start)[1].detach()


def error(found: Tensor, expected: Tensor) -> float:
    assert expected.any()
    return float((found - expected).norm() / expected.norm())


# -- what it gives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet", "vgg", "mobilenet", "vit"])
def test_heat_map_is_that_of_the_graph_by_every_rule(name: str, make: Callable) -> None:
    model = make(name)
    graph, (images, start) = trace(model, samples()[0]), samples()
    seen: list[Tensor] = []
    composites = [Composite.uniform(spec) for spec in SPECS.values()]
    if name == "vit":
        composites += [Composite.uniform(SPECS["zplus"], softmax=softmax) for softmax in SOFTMAX_RULES]
    if name == "mobilenet":
        composites.append(Composite.uniform(SPECS["zplus"], gates="half"))
    for composite in composites:
        images = images.detach().requires_grad_()
        with composite.zennit(graph).context(graph.network):
            (expected,) = torch.autograd.grad(graph.network(images), images, start)
        found = heat_map(model, composite.zennit())
        assert error(found, expected) < 1e-12
        assert all(error(found, other) > 1e-3 for other in seen if not torch.equal(other, found))
        seen.append(found)
    assert len({found.sum().item() for found in seen}) >= len(SPECS) - 1  # z-plus is what alpha-beta with 1 is


@pytest.mark.parametrize("rule", SPECS)
def test_agrees_with_zennits_rules_and_canonizers(rule: str, make: Callable) -> None:
    """On networks that zennit has canonizers for. It adds 1e-6 at sums and means, and before 1.0 it leaves the epsilon
    of a folded BatchNorm in."""
    hook = SPECS[rule].hook().reference()
    layers = [((Convolution, Linear), hook), (Activation, zennit.rules.Pass()), (AvgPool, zennit.rules.Norm())]
    sums = (zennit.layer.Sum, zennit.rules.Norm())
    for name, canonizer in (("vgg", SequentialMergeBatchNorm), ("resnet", ResNetCanonizer)):
        model = make(name)
        expected = heat_map(model, LayerMapComposite([*layers, sums], canonizers=[canonizer()]))
        assert error(heat_map(model, Composite.uniform(SPECS[rule]).zennit()), expected) < 1e-3


def test_agrees_with_zennits_epsilon_plus(make: Callable) -> None:
    document = {"low": {"rule": "zplus"}, "mid": {"rule": "zplus"}, "high": {"rule": "zplus"}}
    composite = load_composite({"groups": {**document, "classifier": {"rule": "epsilon"}}})
    model = make("resnet")
    expected = heat_map(model, EpsilonPlus(canonizers=[ResNetCanonizer()]))
    assert error(heat_map(model, composite.zennit()), expected) < 1e-3


def test_relevance_of_tokens_reaches_the_pixels(make: Callable) -> None:
    """By the epsilon rule, which loses nothing but what a bias keeps."""
    model = make("vit")
    model.conv_proj.bias.data.zero_()
    composite = Composite.uniform(SPECS["gamma"])
    graph, (images, start), reached = trace(model, samples()[0]), samples(), []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda relevance: reached.append(relevance.sum((1, 2, 3))))

    with composite.zennit(graph).context(graph.network):
        graph.network.conv_proj.register_forward_hook(keep)
        graph.network(images.requires_grad_()).backward(start)
    torch.testing.assert_close(heat_map(model, composite.zennit()).sum((1, 2, 3)), reached[0], rtol=1e-9, atol=1e-12)


def test_zennits_own_rules_are_there_too(make: Callable) -> None:
    model, composite = make("resnet"), Composite.uniform(SPECS["gamma"])
    assert error(heat_map(model, composite.zennit()), heat_map(model, composite.zennit(reference=True))) < 1e-9


def test_logits_are_the_models(make: Callable) -> None:
    model, (images, _) = make("mobilenet"), samples()
    with Composite.uniform(SPECS["zplus"]).zennit().context(model) as explained, torch.no_grad():
        found = explained(images)
    torch.testing.assert_close(found, model(images))
    assert not found.requires_grad


def test_images_of_several_sizes_in_one_context(make: Callable) -> None:
    model, composite = make("resnet"), Composite.uniform(SPECS["gamma"])
    with Gradient(model, composite.zennit()) as attributor:
        found = [attributor(*samples(size))[1] for size in (16, 24, 16)]
    for size, each in zip((16, 24, 16), found, strict=True):
        assert torch.equal(each, heat_map(model, composite.zennit(), size))


def test_each_registration_sees_the_model_as_it_is(make: Callable) -> None:
    model, composite = make("resnet"), Composite.uniform(SPECS["epsilon"]).zennit()
    before = heat_map(model, composite)
    model.fc.weight.data.neg_()
    model.fc.bias.data.zero_()
    assert error(heat_map(model, composite), before) > 0.1
    assert torch.equal(heat_map(model, composite), heat_map(copy.deepcopy(model), composite))


def test_half_precision_and_autocast(make: Callable) -> None:
    model, (images, start) = make("vgg").float(), samples()
    composite = Composite.uniform(SPECS["gamma"]).zennit()
    with Gradient(model, composite) as attributor:
        _, expected = attributor(images.float(), start.float())
        with torch.autocast("cpu", torch.bfloat16):
            _, found = attributor(images.float(), start.float())
        assert torch.equal(found, expected)
    with Gradient(model.bfloat16(), composite) as attributor:
        logits, found = attributor(images.bfloat16(), start.bfloat16())
    assert logits.dtype == found.dtype == torch.bfloat16
    assert error(found.float(), expected) < 0.1


# -- what it leaves -----------------------------------------------------------------------------------------


def state(model: nn.Module) -> list[Any]:
    """All that a registered composite might have changed, by identity and value."""
    found: list[Any] = []
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
        found.append((name, id(module), sorted(own), {key: id(value) for key, value in own.items()}))
        hooks = {key: list(value) for key, value in vars(module).items() if "hooks" in key}
        found.append((hooks, module.training, {key: id(value) for key, value in module._parameters.items()}))
    values = model.state_dict()
    return [*found, {key: (value.data_ptr(), value._version, value.sum().item()) for key, value in values.items()}]


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_model_is_as_before(name: str, make: Callable) -> None:
    model, (images, _) = make(name), samples()
    model.conv = nn.Identity()
    model.conv.register_forward_hook(lambda *_: None)
    logits = model.eval()(images)
    model.train()
    before = state(model)
    composite = Composite.uniform(SPECS["alpha_beta"]).zennit()
    with pytest.warns(RuntimeWarning, match="forward hooks are left out"):
        heat_map(model, composite)
    assert state(model) == before
    with pytest.raises(KeyError), composite.context(model):
        raise KeyError
    assert state(model) == before
    assert torch.equal(model.eval()(images), logits)
    assert not composite.handles


def test_forward_function_of_the_instance_is_run_and_kept(make: Callable) -> None:
    model, composite = make("resnet"), Composite.uniform(SPECS["epsilon"]).zennit()
    plain = model.forward

    def negative(x: Tensor) -> Tensor:
        return -plain(x)

    expected, (images, _) = heat_map(model, composite), samples()
    logits = model(images)
    model.forward = negative
    with composite.context(model) as explained:
        torch.testing.assert_close(explained(images), -logits)
    assert model.forward is negative
    assert error(heat_map(model, composite), expected) < 1e-9


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_models(wrap: Callable, make: Callable) -> None:
    model, composite = make("vgg"), Composite.uniform(SPECS["epsilon"]).zennit()
    expected, images = heat_map(model, composite), samples()[0]
    wrapped = wrap(model)
    logits = wrapped(images)
    assert torch.equal(heat_map(wrapped, composite), expected)
    torch.testing.assert_close(wrapped(images), logits)
    model.compile(backend="eager")
    assert torch.equal(heat_map(model, composite), expected)
    torch.testing.assert_close(model(images), logits)


class Named(nn.Module):
    """Images by name, a dict with logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(pixel_values)}


def test_images_by_name_and_logits_in_a_dict(make: Callable) -> None:
    model = make("vgg")
    with Composite.uniform(SPECS["epsilon"]).zennit().context(Named(model)) as explained:
        images, _ = samples()
        torch.testing.assert_close(explained(pixel_values=images), model(images))
        with pytest.raises(TypeError, match="images and nothing else"):
            explained(images, 3)


def test_what_does_not_fit_is_refused_in_one_line(make: Callable) -> None:
    model = make("resnet")
    composite = Composite({"low": SPECS["zplus"]}).zennit()
    with composite.context(model) as explained:
        with pytest.raises(CompositeError, match=r"^groups\.\w+: no rule for it") as caught:
            explained(samples()[0])
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match="registered already"):
            Composite.uniform(SPECS["zplus"]).zennit().register(model)
        with pytest.raises(CompositeError):  # still the same
            explained(samples()[0])
    assert "forward" not in vars(model)
