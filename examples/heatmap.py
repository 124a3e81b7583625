"""Heat maps of your own model by a composite of ours, in plain zennit: `python examples/heatmap.py [best.json]`.

Trains a small residual network on handwritten digits (a few seconds, no download), explains some of its predictions and
writes `heatmaps.png`: digits in the first row, then what speaks for the predicted class (red) and against it (blue), by
the composite in best.json or by each of those below.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from PIL import Image
from pxp_optimize.attribution import load_composite
from sklearn.datasets import load_digits
from torch import Tensor, nn
from zennit.attribution import Gradient


class Net(nn.Module):
    """Nothing special has to be done for its sums, which are plain code, nor for its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def trained(images: Tensor, targets: Tensor) -> nn.Module:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(10):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
    return model.eval()


torch.manual_seed(0)
digits = load_digits()
images = F.interpolate(torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, size=16, mode="bilinear")
targets = torch.tensor(digits.target)
model = trained(images[100:], targets[100:])

# What `pxp-optimize export -o best.json` writes may also be given as a dict. A rule is needed for each depth.
EPSILON, ZPLUS, GAMMA = {"rule": "epsilon"}, {"rule": "zplus"}, {"rule": "gamma", "gamma": 0.25}
composites = sys.argv[1:] or [
    {"groups": {"low": EPSILON, "mid": EPSILON, "high": EPSILON, "classifier": EPSILON}},
    {"groups": {"low": ZPLUS, "mid": ZPLUS, "high": ZPLUS, "classifier": EPSILON}},
    {"groups": {"low": GAMMA, "mid": GAMMA, "high": EPSILON, "classifier": EPSILON}},
]

shown = images[:10]
with torch.no_grad():
    logits = model(shown)
predicted = logits.argmax(1)
maps = []
for source in composites:
    composite = load_composite(source).zennit()
    # `Gradient` registers the composite with the model, and removes it at the end of the block.
    with Gradient(model, composite) as attributor:
        # Relevance starts as the logit of the predicted class; what comes back has the shape of the images.
        _, relevance = attributor(shown, F.one_hot(predicted, 10) * logits)
    groups = ", ".join(f"{group}: {spec.rule}" for group, spec in load_composite(source).groups.items())
    kept = float((relevance.sum((1, 2, 3)) / logits.gather(1, predicted[:, None])[:, 0]).mean())
    print(f"{groups}: {kept:.0%} of the logits reach the pixels, biases keep the rest")
    maps.append(relevance)

# The model is as it was: no hooks, the same weights.
assert torch.equal(model(shown).detach(), logits)


# One picture, a row for the digits and one for each composite: blue, white and red up to a map's largest value.
def coloured(relevance: Tensor) -> Tensor:
    """Shape (n, 3, height, width), values in [0, 1]."""
    v = relevance / relevance.abs().amax((1, 2, 3), keepdim=True)
    return torch.cat([1 - v.clamp(max=0).neg(), 1 - v.abs(), 1 - v.clamp(min=0)], 1)


bands = [shown.expand(-1, 3, -1, -1), *map(coloured, maps)]
pixels = torch.cat([torch.cat([*band], 2) for band in bands], 1).movedim(0, 2)
picture = Image.fromarray((255 * pixels).round().byte().numpy())
picture.resize((6 * picture.width, 6 * picture.height), Image.Resampling.NEAREST).save("heatmaps.png")
print("heatmaps.png")
