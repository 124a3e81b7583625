"""Prune a network, fine-tune what is left, and export it to ONNX.

Trains a small convolutional network on scikit-learn's digits, removes three quarters of its filters, trains the rest
for a moment on the reference images, writes it to `small.onnx` and runs that with ONNX Runtime. Run it with
`python finetune_onnx.py` (it needs `pip install onnx onnxscript onnxruntime`, but no download and no GPU). It takes
less than half a minute. The study is kept in `finetune.db`.
"""

from importlib.util import find_spec

import torch
from pxp_optimize.optimize import optimize
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

if missing := [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]:
    raise SystemExit(f"The export to ONNX needs more packages: pip install {' '.join(missing)}")
import onnxruntime

torch.manual_seed(0)
digits = load_digits()
shuffled = torch.randperm(len(digits.images))
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[shuffled] / 16  # (1797, 1, 8, 8)
targets = torch.tensor(digits.target)[shuffled]
train, search, test = ((images[rows], targets[rows]) for rows in (slice(1200), slice(1200, 1500), slice(1500, None)))


def fit(network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epochs: int, learning_rate: float) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    network.eval()


def show(text: str, network: nn.Module) -> None:
    accuracy = (network(test[0]).argmax(1) == test[1]).float().mean()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{text}: {parameters} parameters, {accuracy:.1%} accuracy on the holdout images")


layers: list[nn.Module] = []
for before, after in ((1, 16), (16, 32), (32, 32), (32, 64)):
    layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
fit(model, *train, epochs=6, learning_rate=3e-3)
show("trained", model)

reference = train[0][:200], train[1][:200]  # about twenty of each class
found = optimize(model, reference=reference, search=search, holdout=test, trials=10, storage="finetune.db")
small = found.prune(rate=0.75)
show("pruned", small)
fit(small, *reference, epochs=20, learning_rate=1e-3)  # it is an ordinary module: any training will do
show("fine-tuned", small)

batch = torch.export.Dim("batch")  # any number of images at a time
torch.onnx.export(
    small, (test[0],), "small.onnx", dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False
)
session = onnxruntime.InferenceSession("small.onnx")
(logits,) = session.run(None, {session.get_inputs()[0].name: test[0].numpy()})
with torch.no_grad():
    difference = (small(test[0]) - torch.from_numpy(logits)).abs().max()
print(f"small.onnx: logits within {difference:.0e} of PyTorch's")
