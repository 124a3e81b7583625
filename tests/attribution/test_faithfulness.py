"""Heat maps and the symmetric relevance gain, against plain loops and cases whose answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pxp_optimize.attribution import EXPLAINERS, REPLACEMENTS, heat_maps, load_composite, relevance_gain
from pxp_optimize.attribution.faithfulness import (
    Flipping,
    Patches,
    flip,
    gini,
    measure_ends,
    probabilities,
    similarity,
)
from pxp_optimize.pruning.graph import trace
from torch import Tensor, nn
from zennit.attribution import Gradient

EPSILON = {"rule": "epsilon"}
COMPOSITE = load_composite(
    {
        "groups": {
            "low.stem": {"rule": "flat"},
            **{key: {"rule": "zplus"} for key in ("low", "mid", "high")},
            "classifier": EPSILON,
        }
    }
)


class Additive(nn.Module):
    """The logit of class 0 is the weighted sum of the pixels, that of class 1 zero."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.fc = nn.Linear(weights.numel(), 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.stack([weights.flatten(), torch.zeros(weights.numel())]))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def loop_gain(
    model: nn.Module, image: Tensor, relevance: Tensor, target: int, edge: int, replace: str, steps: int
) -> float:
    """The definition, for one image, region by region."""
    height, width = image.shape[1:]
    boxes = [(y, x) for y in range(0, height, edge) for x in range(0, width, edge)]
    order = sorted(
        range(len(boxes)),
        key=lambda i: float(relevance[boxes[i][0] : boxes[i][0] + edge, boxes[i][1] : boxes[i][1] + edge].sum()),
    )
    removed = sorted({round(len(boxes) * step / steps) for step in range(steps + 1)})

    def area(order: list[int]) -> float:
        probabilities = []
        for count in removed:
            kept = torch.ones(1, 1, height, width, dtype=torch.bool)
            for index in order[:count]:
                y, x = boxes[index]
                kept[:, :, y : y + edge, x : x + edge] = False
            filled = REPLACEMENTS[replace](image[None], edge)(kept)
            probabilities.append(float(model(filled).softmax(1)[0, target]))
        parts = [count / len(boxes) for count in removed]
        return sum(
            (b - a) * (p + q) / 2
            for a, b, p, q in zip(parts, parts[1:], probabilities, probabilities[1:], strict=False)
        )

    return area(order) - area(order[::-1])


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize(("edge", "steps"), [(4, 5), (5, 7), (8, 10)])
@torch.no_grad()
def test_the_gain_is_that_of_a_plain_loop(replace, edge, steps, residual, images):
    x, targets = images
    maps = heat_maps(residual, COMPOSITE, x, targets)
    found = relevance_gain(residual, maps, x, targets, edge=edge, replace=replace, steps=steps, batch_size=3)
    expected = [
        loop_gain(residual, image, of, int(target), edge, replace, steps)
        for image, of, target in zip(x, maps, targets, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found.abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_the_curves_are_those_of_quantus():
    """By its region perturbation. It takes the mean of what is left of the image: here no region changes that."""
    quantus = pytest.importorskip("quantus", exc_type=ImportError)  # without a screen's libraries it is not importable
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)]
    model = nn.Sequential(*layers).eval()
    inputs = torch.randn(6, 1, 4, 4, 4, 4)
    inputs = (inputs - inputs.mean((3, 5), keepdim=True)).reshape(6, 1, 16, 16)
    maps = torch.randn(6, 16, 16)
    flipping = Flipping.of((16, 16), 4, "mean", steps=16)
    probability = probabilities(model, None)
    ends = measure_ends(probability, inputs, None, flipping, 8)
    found = flip(probability, inputs, flipping.patches.sums(maps), ends, flipping, 8)
    for order, ours in (("morf", found.most), ("lerf", found.least)):
        metric = quantus.RegionPerturbation(
            patch_size=4, order=order, regions_evaluation=16, perturb_baseline="mean", normalise=False
        )
        lost = metric(model, inputs.numpy(), ends.targets.numpy(), maps.unsqueeze(1).numpy(), device="cpu")
        theirs = ends.whole.unsqueeze(1) - torch.tensor(lost)
        torch.testing.assert_close(ours[:, 1:], theirs.float(), atol=1e-6, rtol=0)


def test_maps_upside_down_have_the_negative_gain(residual, images):
    x, targets = images
    maps = heat_maps(residual, COMPOSITE, x, targets)
    gain = relevance_gain(residual, maps, x, targets, edge=4)
    assert torch.equal(relevance_gain(residual, -maps, x, targets, edge=4), -gain)
    assert gain.abs().max() > 0


def test_a_random_order_gains_nothing(residual, images):
    x = images[0][:1].expand(400, -1, -1, -1)
    targets = images[1][:1].expand(400)
    maps = heat_maps(residual, "random", x, targets)
    gain = relevance_gain(residual, maps, x, targets, edge=4)
    assert float(gain.std()) > 0
    assert abs(float(gain.mean())) < 4 * float(gain.std()) / 20


def test_no_order_gains_more_than_the_true_one():
    """Of a network that adds regions up, over all orders of four."""
    contribution = torch.tensor([[2.0, -1.0], [0.5, 3.0]])

    def wide(values: Tensor) -> Tensor:
        """Of each region at its 2 x 2 pixels, shape (1, 4, 8): beside them is what the network does not read."""
        return torch.cat([values.repeat_interleave(2, 0).repeat_interleave(2, 1), torch.zeros(4, 4)], 1)[None]

    model = Additive(wide(contribution / 4)).eval()
    half = torch.ones(1, 1, 4, 4)
    image = torch.cat([half, -half], 3)  # its mean colour is zero, so that a region that is gone adds nothing

    def gain(order: tuple[int, ...]) -> float:
        maps = wide(torch.tensor(order, dtype=torch.float32).view(2, 2) + 1)
        return float(relevance_gain(model, maps, image, torch.tensor([0]), edge=2, replace="mean", steps=8))

    gains = {order: gain(order) for order in itertools.permutations(range(4))}
    true = tuple(int(rank) for rank in contribution.flatten().argsort().argsort())
    assert max(gains, key=lambda order: gains[order]) == true
    assert gains[true] > 0


def test_heat_maps_do_not_depend_on_batches(residual, images):
    x, targets = images
    for method in (COMPOSITE, "gradient_times_input", "smoothgrad", "random"):
        whole, parts = (heat_maps(residual, method, x, targets, batch_size=size) for size in (7, 2))
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)
        assert whole.shape == (7, 16, 16)


def test_a_composite_gives_the_heat_maps_that_it_gives_in_plain_zennit(residual, images):
    x, targets = images
    found = heat_maps(residual, COMPOSITE, x, targets)
    with Gradient(residual, COMPOSITE.zennit()) as attributor:
        _, relevance = attributor(x, torch.eye(5)[targets])
    torch.testing.assert_close(found, relevance.sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(heat_maps(residual, COMPOSITE, x, targets, reference=True), found, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(heat_maps(trace(residual, x[:2]), COMPOSITE.to_dict(), x, targets), found)


def test_explainers_on_a_network_that_adds_up():
    torch.manual_seed(0)
    weights = torch.randn(1, 4, 4)
    x, targets = torch.randn(3, 1, 4, 4), torch.tensor([0, 0, 0])
    model = Additive(weights).eval()
    for name in ("gradient_times_input", "integrated_gradients"):
        torch.testing.assert_close(heat_maps(model, name, x, targets), (x * weights)[:, 0])
    torch.testing.assert_close(heat_maps(model, "smoothgrad", x, targets), weights.abs().expand(3, -1, -1))
    first, again = (heat_maps(model, "random", x, targets, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, again)
    assert set(EXPLAINERS) >= {"gradient_times_input", "integrated_gradients", "smoothgrad", "random"}


@given(height=st.integers(1, 13), width=st.integers(1, 13), edge=st.integers(1, 6))
@settings(max_examples=30)
def test_patches_cover_an_image_once(height, width, edge):
    patches = Patches(edge, height, width)
    numbers = torch.arange(float(len(patches)))[None]
    spread = patches.spread(numbers)
    assert spread.shape == (1, 1, height, width)
    for y in range(height):
        for x in range(width):
            assert spread[0, 0, y, x] == y // edge * -(-width // edge) + x // edge
    sizes = patches.sums(torch.ones(1, height, width))
    assert sizes.sum() == height * width
    assert torch.equal(patches.sums(spread[:, 0]), sizes * numbers)


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_what_is_kept_stays_and_what_is_removed_is_forgotten(name):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 12)
    kept = torch.rand(2, 1, 9, 12) > 0.5
    filled = REPLACEMENTS[name](x, 3)(kept)
    assert torch.equal(filled[kept.expand_as(x)], x[kept.expand_as(x)])
    assert torch.isfinite(filled).all()
    flat = x.mean((2, 3), keepdim=True).expand_as(x).contiguous()
    torch.testing.assert_close(REPLACEMENTS[name](flat, 3)(kept), flat)  # of one colour nothing can be removed


def test_inpainting_reads_only_what_is_kept():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    kept = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    kept[..., 4:8, 4:8] = False
    other = x.clone()
    other[..., 4:8, 4:8] = 7
    torch.testing.assert_close(*(REPLACEMENTS["neighbours"](of, 4)(kept) for of in (x, other)))
    assert not REPLACEMENTS["neighbours"](x, 4)(torch.zeros_like(kept)).isnan().any()


def test_gini_and_similarity():
    assert gini(torch.ones(1, 4, 4)).item() == pytest.approx(0)
    one = torch.zeros(1, 4, 4)
    one[0, 1, 2] = -3
    assert gini(one).item() == pytest.approx(15 / 16)
    assert gini(torch.zeros(1, 4, 4)).item() == 0
    values = torch.randn(1, 4, 4).abs()
    plain = sum(abs(a - b) for a in values.flatten() for b in values.flatten()) / (2 * 16 * values.sum())
    assert gini(values).item() == pytest.approx(float(plain), rel=1e-5)
    assert similarity(values, 2 * values + 1).item() == pytest.approx(1)
    assert similarity(values, -values).item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge": 16}, "patches of 16 pixels leave nothing"),
        ({"edge": 0}, "patches of 0 pixels"),
        ({"replace": "grass"}, "unknown replacement 'grass': choose from mean, blur"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Flipping.of((16, 16), **change)


def test_maps_of_other_images_are_refused(residual, images):
    with pytest.raises(ValueError, match=r"maps have shape \(7, 8, 8\)"):
        relevance_gain(residual, torch.zeros(7, 8, 8), *images)
