"""Run a study of your own: your sampler, your pruner, your loop, your storage.

`Objective` is what Optuna calls: a trial goes in, the score of the composite that its sampler proposes comes out. So
everything that Optuna has can be used with it. Run it with `python own_study.py`; it needs no download and no GPU,
takes about half a minute and writes `composite.json`.
"""

import json
from pathlib import Path

import optuna
import torch
from pxp_optimize.optimize import Objective
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
digits = load_digits()
shuffled = torch.randperm(len(digits.images))
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[shuffled] / 16  # (1797, 1, 8, 8)
targets = torch.tensor(digits.target)[shuffled]

layers: list[nn.Module] = []
for before, after in ((1, 16), (16, 32), (32, 32), (32, 64)):
    layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(6):
    for rows in torch.randperm(1200).split(50):
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), targets[rows]).backward()
        optimizer.step()
model.eval()

objective = Objective(
    model,
    reference=(images[:100], targets[:100]),  # about ten of each class
    search=(images[1200:1500], targets[1200:1500]),
    rates="0:0.9:0.1",
)
study = optuna.create_study(
    direction="maximize",
    sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=8),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),  # it is asked up to 20 times a trial
)
study.optimize(objective, n_trials=20)

best = study.best_trial
print(f"AUC {best.value:.4f} in trial {best.number} of {len(study.trials)}, with {best.params}")
Path("composite.json").write_text(json.dumps(objective.composite(best).to_dict(), indent=2))

small = objective.prune(best, rate=0.5)
for name, network in {"all filters": model, "half of them": small}.items():
    accuracy = (network(images[1500:]).argmax(1) == targets[1500:]).float().mean()  # none of these were used so far
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{name}: {parameters} parameters, {accuracy:.1%} accuracy")
