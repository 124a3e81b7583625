"""Fine-tuning: it learns, depends on the seed alone, and leaves what it is given as it was."""

from __future__ import annotations

import pytest
import torch
from pxp_optimize.optimize.evaluation.task import Images, Samples
from pxp_optimize.optimize.study.finetune import finetuned
from torch import nn


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()


@pytest.fixture(scope="module")
def samples() -> Samples:
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(60) % 4
    pixels = torch.randint(0, 120, (60, 1, 8, 8), generator=generator)
    for row, target in enumerate(targets.tolist()):
        pixels[row, 0, 2 * target : 2 * target + 2] += 100
    one = torch.full((1, 1, 1), 0.5)
    return Samples(Images(pixels.byte(), one, one), targets)


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in network.state_dict().values()]


@torch.no_grad()
def loss(network: nn.Module, samples: Samples) -> float:
    return float(nn.functional.cross_entropy(network(samples.inputs[0:60]), samples.targets))


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_it_learns_and_leaves_the_network_as_it_was(network, samples):
    before, random_state = weights(network), torch.get_rng_state()
    with torch.inference_mode():  # as within a study
        tuned = finetuned(network, samples, 40, seed=0)
    assert loss(tuned, samples) < 0.8 * loss(network, samples)
    assert same(weights(network), before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not tuned.training
    statistics = [name for name in dict(network.named_buffers()) if "running" in name]
    assert all(torch.equal(tuned.get_buffer(name), network.get_buffer(name)) for name in statistics)


def test_it_depends_on_the_seed_alone(network, samples):
    first, again, other = (weights(finetuned(network, samples, 3, seed)) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_logits_that_do_not_compete_are_not_trained(network, samples):
    rows = samples.targets.ge(2).nonzero().flatten()
    two = Samples(samples.inputs.take(rows), samples.targets[rows])
    tuned = finetuned(network, two, 3, 0, logits=torch.tensor([2, 3]))
    (before, after) = (model[-1].weight for model in (network, tuned))
    decayed = before[:2] * (after[0, 0] / before[0, 0])  # by the weight decay alone
    torch.testing.assert_close(after[:2], decayed)
    assert not torch.allclose(after[2:], before[2:] * (after[0, 0] / before[0, 0]))
