"""Prune a model of your own, with images from a DataLoader.

Trains a small convolutional network on scikit-learn's digits for a few seconds, searches for the LRP composite whose
relevance prunes it best, and removes half of its filters. Run it with `python own_model.py`; it needs no download
and no GPU, takes about half a minute and writes `digits.db` (the study) and `best.json` (the composite).
"""

import torch
from pxp_optimize.optimize import optimize
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8), values in [0, 1]
dataset = TensorDataset(images, torch.tensor(digits.target))
train, search, test = random_split(dataset, [1197, 300, 300])


def convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


model = nn.Sequential(
    *(convolution(1, 16), convolution(16, 32), nn.MaxPool2d(2), convolution(32, 32), convolution(32, 64)),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
)

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(8):
    for inputs, targets in DataLoader(train, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

result = optimize(
    model,
    reference=DataLoader(train, batch_size=64),  # relevance is computed on images that the model was trained on,
    search=DataLoader(search, batch_size=64),  # composites are judged by others,
    holdout=DataLoader(test, batch_size=64),  # and the result by images that neither has seen
    reference_samples=10,  # of each class; a few are enough
    trials=15,  # a real search takes 100 or more; run the script with a higher number to continue this one
    storage="digits.db",
)

print(result.table())
for rate, accuracy in result.curve()[::2]:
    print(f"{rate:4.0%} of the filters removed: {accuracy:.1%} accuracy on the holdout images")
result.export("best.json")

small = result.prune(rate=0.5)  # an ordinary module: fewer filters, no masks and no hooks
inputs, targets = next(iter(DataLoader(test, batch_size=len(test))))
accuracy = (small(inputs).argmax(1) == targets).float().mean()
before, after = (sum(parameter.numel() for parameter in network.parameters()) for network in (model, small))
print(f"{before} parameters before, {after} after; {accuracy:.1%} accuracy on the holdout images")
