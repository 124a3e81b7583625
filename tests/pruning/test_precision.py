"""Settings of precision: what they are inside, and that nothing of them is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance, collect_scores, heat_maps
from pxp_optimize.attribution.heatmaps import map_batches
from pxp_optimize.pruning import (
    PRECISIONS,
    accuracy,
    compact,
    computed_in,
    correct,
    make_repair,
    prune_masks,
    pruned,
    trace,
)
from pxp_optimize.pruning.modules import ScatterAdd
from pxp_optimize.pruning.precision import repeatable
from torch import Tensor, nn


def settings() -> dict[str, Any]:
    """Whether CUDA may use TF32, and whether autocast is on: readable on any machine."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):
        kept = {"convolutions": backends.cudnn.conv, "products": backends.cuda.matmul}
        tf32 = {key: owner.fp32_precision == "tf32" for key, owner in kept.items()}
    else:
        tf32 = {"convolutions": backends.cudnn.allow_tf32, "products": backends.cuda.matmul.allow_tf32}
    return {**tf32, "autocast": torch.is_autocast_enabled("cpu")}


@pytest.fixture(params=["torch's defaults", "TF32 allowed", "TF32 forbidden"])
def before(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Settings of a user, in each way that torch has to make them."""
    assert settings() == {"convolutions": True, "products": False, "autocast": False}
    if request.param == "TF32 allowed":
        torch.set_float32_matmul_precision("high")
    elif request.param == "TF32 forbidden":
        torch.backends.cudnn.allow_tf32 = False
    yield settings()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


EXPECTED = {
    "fp32": {"convolutions": False, "products": False, "autocast": False},
    "tf32": {"convolutions": True, "products": True, "autocast": False},
    "bf16": {"convolutions": False, "products": False, "autocast": True},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_settings_hold_inside_only(precision: str, before: dict[str, Any]) -> None:
    with computed_in(precision):
        assert settings() == EXPECTED[precision]
        with computed_in("fp32"):
            assert not settings()["convolutions"]
        assert settings() == EXPECTED[precision]
    assert settings() == before
    with pytest.raises(ZeroDivisionError), computed_in(precision):
        raise ZeroDivisionError
    assert settings() == before


def test_an_unknown_precision_changes_nothing(before: dict[str, Any]) -> None:
    with pytest.raises(KeyError), computed_in("fp16"):
        pass
    assert settings() == before


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 3 * torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def watched(network: nn.Module) -> list[dict[str, Any]]:
    """The settings at each call of a network, from now on."""
    seen: list[dict[str, Any]] = []
    network.register_forward_pre_hook(lambda module, args: seen.append(settings()))
    return seen


@pytest.mark.parametrize("precision", PRECISIONS)
def test_accuracy_is_measured_in_the_precision(
    precision: str, before: dict[str, Any], everything: nn.Module, images: Tensor
) -> None:
    network = trace(everything).network
    seen: list[dict[str, Any]] = []
    network.get_submodule("head").register_forward_pre_hook(lambda module, args: seen.append(settings()))
    targets = torch.zeros(len(images), dtype=torch.long)
    accuracy(network, images, targets, batch_size=150, precision=precision)
    assert seen == [EXPECTED[precision]] * 2
    assert settings() == before


def test_relevance_scores_and_repair_are_in_fp32(before: dict[str, Any], everything: nn.Module, images: Tensor) -> None:
    graph = trace(everything)
    targets = torch.zeros(len(images), dtype=torch.long)
    seen = watched(graph.network)
    composite = Composite.uniform(RuleSpec("epsilon"), tuple(dict.fromkeys(graph.groups.values())))
    relevance = collect_relevance(graph, composite, images, targets)
    collect_scores(graph, "integrated_gradients", images, targets)

    def repair(*arguments: Any) -> Any:
        seen.append(settings())
        return arguments[1]

    pruned(graph, prune_masks(relevance, 0.3), repair)  # type: ignore[arg-type]
    assert len(seen) > 2
    assert all(found == EXPECTED["fp32"] for found in seen)
    assert settings() == before


def test_relevance_and_repair_under_autocast(everything: nn.Module, images: Tensor) -> None:
    graph = trace(everything)
    targets = graph.network(images).argmax(1)
    composite = Composite.uniform(RuleSpec("epsilon"), tuple(dict.fromkeys(graph.groups.values())))
    expected = collect_relevance(graph, composite, images, targets)
    repair = make_repair("least-squares", graph, images)
    masks = prune_masks(expected, 0.3)
    repaired = pruned(graph, masks, repair).network.state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        relevance = collect_relevance(graph, composite, images, targets)
        again = pruned(graph, masks, make_repair("least-squares", graph, images)).network.state_dict()
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(relevance[name], expected[name]) for name in expected)
    assert all(torch.equal(again[name], repaired[name]) for name in repaired)


def test_bf16_is_coarser_and_about_right(everything: nn.Module, images: Tensor) -> None:
    graph = trace(everything)
    kinds: set[torch.dtype] = set()
    graph.network.get_submodule("head").register_forward_hook(lambda module, args, output: kinds.add(output.dtype))
    targets = graph.network(images).argmax(1)
    kinds.clear()
    right = correct(graph.network, images, targets, precision="bf16")
    assert kinds == {torch.bfloat16}
    assert right.float().mean() > 0.9


def test_compact_networks_of_every_family_run_in_bf16(classifier: Any) -> None:
    """Sums of parts that autocast leaves in float32 with parts that it does not."""
    graph = trace(classifier.model)
    generator = torch.Generator().manual_seed(0)
    relevance = {name: torch.rand(size, generator=generator) for name, size in graph.sizes.items()}
    small = compact(graph, prune_masks(relevance, 0.5)).network
    expected = small(classifier.images)
    with torch.inference_mode(), computed_in("bf16"):
        got = small(classifier.images).float()
    assert got.shape == expected.shape
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fp32_on_cuda_is_not_tf32() -> None:
    """A convolution that TF32 gets wrong in the fourth digit, against the CPU's in float64."""
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(*shape, generator=generator) for shape in ((4, 256, 16, 16), (256, 256, 3, 3)))
    expected = torch.nn.functional.conv2d(inputs.double(), weight.double())
    errors = {}
    for precision in ("fp32", "tf32"):
        with computed_in(precision, "cuda"):
            got = torch.nn.functional.conv2d(inputs.cuda(), weight.cuda()).cpu()
        errors[precision] = ((got - expected).norm() / expected.norm()).item()
    assert errors["fp32"] < 2e-6
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors["tf32"] > 5e-5


def test_the_option_offers_them() -> None:
    from pxp_optimize.optimize import options as config

    assert config.PRECISIONS == PRECISIONS


@pytest.mark.parametrize("where", [((0, 1), (1, 2)), (None, (1, 2)), ((1, 2), None)])
def test_a_sum_of_parts_that_autocast_left_in_different_types(where: tuple[Any, Any]) -> None:
    first, second = (None if live is None else torch.tensor(live) for live in where)
    a, b = (torch.randn(2, 3 if live is None else 2, 4, 4) for live in where)
    add = ScatterAdd(1, 3, first, second)
    expected = add(a, b.bfloat16().float())
    assert torch.equal(add(a, b.bfloat16()), expected)
    assert add(a.bfloat16(), b).dtype == torch.float32


def test_repeatable_convolutions_leave_tf32_alone():
    """Or networks could not be exported any more in this process."""
    cudnn, before = torch.backends.cudnn, settings()
    flags = cudnn.benchmark, cudnn.deterministic
    with repeatable():
        assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert (cudnn.benchmark, cudnn.deterministic) == flags
    assert settings() == before
    with computed_in("fp32"):
        torch.nn.Conv2d(1, 1, 3)(torch.ones(1, 1, 4, 4))


def test_heat_maps_that_take_turns_leave_everything_as_it_was():
    """As two generators do that are read in pairs, and one that is not read to its end."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    inputs, targets, before = torch.randn(6, 3, 6, 6), torch.arange(6) % 3, settings()
    graph = trace(model, inputs)
    rules = [Composite.uniform(RuleSpec(name)) for name in ("zplus", "epsilon")]
    pairs = list(zip(*(map_batches(graph, rule, inputs, targets, 2) for rule in rules), strict=True))
    next(map_batches(graph, rules[0], inputs, targets, 2))
    assert settings() == before
    for index, rule in enumerate(rules):
        assert torch.equal(torch.cat([pair[index] for pair in pairs]), heat_maps(graph, rule, inputs, targets, 2))
    trace(model, inputs)  # which asks torch for all of its switches
