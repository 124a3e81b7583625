from __future__ import annotations

import pytest
import torch
from pxp_optimize.attribution import CRITERIA, collect_scores
from pxp_optimize.pruning import compact, prune_masks, trace
from torch import Tensor, nn

Images = tuple[Tensor, Tensor]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("units", ["filters", "neurons", "filters+neurons"])
def test_a_score_for_every_unit(residual: nn.Module, images: Images, criterion: str, units: str) -> None:
    graph = trace(residual)
    scores = collect_scores(graph, criterion, *images, units, batch_size=3)
    assert {name: len(values) for name, values in scores.items()} == graph.units(units)
    assert all(bool((values >= 0).all()) and bool(values.any()) for values in scores.values())


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_batch_size_does_not_matter(residual: nn.Module, images: Images, criterion: str) -> None:
    graph = trace(residual)
    whole = collect_scores(graph, criterion, *images, "filters", batch_size=7)
    parts = collect_scores(graph, criterion, *images, "filters", batch_size=2)
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-4) for name in whole)


def test_magnitude_is_the_norm_of_the_folded_weights(residual: nn.Module, images: Images) -> None:
    graph = trace(residual)
    scores = collect_scores(graph, "magnitude", *images, "filters")
    for name, values in scores.items():
        weight = graph.network.get_submodule(name).weight
        assert torch.allclose(values, weight.square().sum((1, 2, 3)).sqrt())  # type: ignore[union-attr, operator]


def naive(model: nn.Module, layer: str, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Output of a layer and the target logit's gradient there, for one image of a network without BatchNorm."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, a, output: kept.append(output))
    logit = model(image[None])[0, target]
    handle.remove()
    (gradient,) = torch.autograd.grad(logit, kept[0])
    return kept[0][0].detach(), gradient[0]


@pytest.mark.parametrize("criterion", ["activation", "gradient", "taylor"])
def test_gradient_criteria_against_a_plain_loop(residual: nn.Module, images: Images, criterion: str) -> None:
    score = {
        "activation": lambda output, gradient: output,
        "gradient": lambda output, gradient: gradient,
        "taylor": lambda output, gradient: output * gradient,
    }[criterion]
    got = collect_scores(trace(residual), criterion, *images, "filters")
    for layer in ("conv2", "downsample", "conv3"):
        expected = torch.zeros_like(got[layer])
        for image, target in zip(*images, strict=True):
            expected += score(*naive(residual, layer, image, int(target))).sum((1, 2)).abs()
        assert torch.allclose(got[layer], expected, rtol=1e-4)


def test_random_hangs_on_the_seed(residual: nn.Module, images: Images) -> None:
    graph = trace(residual)
    first, same, other = (collect_scores(graph, "random", *images, "filters", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_activation_tells_heads_apart(vision_transformer: nn.Module, images: Images) -> None:
    """By what a head writes, not by its softmax; a head whose values are zero writes nothing."""
    model = vision_transformer()
    name, attention = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))
    width = attention.head_dim
    with torch.no_grad():
        values = 2 * attention.embed_dim
        attention.in_proj_weight[values + width : values + 2 * width] = 0
        attention.in_proj_bias[values + width : values + 2 * width] = 0
    scores = collect_scores(trace(model), "activation", *images, "heads")[f"{name}.softmax"]
    assert scores[1] == 0
    assert (scores[torch.arange(len(scores)) != 1] > 0).all()
    assert len(scores.unique()) == len(scores)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("units", ["heads", "neurons"])
def test_on_a_compact_transformer(vision_transformer: nn.Module, images: Images, criterion: str, units: str) -> None:
    graph = trace(vision_transformer())
    masks = prune_masks(collect_scores(graph, criterion, *images, units), 0.5)
    small = compact(graph, masks)
    scores = collect_scores(small, criterion, *images, units)
    assert {name: len(values) for name, values in scores.items()} == {n: int(k.sum()) for n, k in masks.items()}


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in ("random", "magnitude")])
def test_a_compact_network_scores_as_the_masked_one(residual: nn.Module, images: Images, criterion: str) -> None:
    """What is left is scored as if what is gone gave zeros: it does."""
    from pxp_optimize.pruning import masked_model

    graph = trace(residual)
    masks = prune_masks(collect_scores(graph, "random", *images, "filters"), 0.4)
    small = collect_scores(compact(graph, masks), criterion, *images, "filters")
    masked = collect_scores(trace(masked_model(graph, masks)), criterion, *images, "filters")
    for name, kept in masks.items():
        assert torch.allclose(small[name], masked[name][kept], rtol=1e-3, atol=1e-6)
