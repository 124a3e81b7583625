"""A pruned network trained for a moment, by one plain recipe, on the images that it was pruned by.

AdamW, its learning rate falling to nothing along half a cosine (Loshchilov and Hutter, 2017), cross entropy. No image
is flipped, cropped or shifted: whether a mirrored one still shows its class, only its owner knows (a mirrored digit
does not). Training sees no more than the reference samples, so it can only bring back what pruning has cost.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...pruning.precision import repeatable
from ..evaluation.task import Samples
from ..parsers import count_from
from ..progress import Progress, no_progress

LEARNING_RATE = 3e-4  # at its beginning; the usual one of Adam, less: the weights are good already
WEIGHT_DECAY = 1e-2
BATCH = 32


@dataclass(frozen=True)
class Training:
    """What comes after pruning and repair. mimic: steps without labels (`pruning.mimic`). finetune: epochs with."""

    mimic: int = 0
    finetune: int = 0

    @classmethod
    def of(cls, mimic: object = 0, finetune: object = 0) -> Training:
        """From what a user gives.

        Raises:
            ValueError: one is no whole number from 0 up.
        """
        found = {}
        for name, value in (("mimic", mimic), ("finetune", finetune)):
            try:
                found[name] = count_from(0)(value)
            except ValueError as error:
                raise ValueError(f"{name} is {value}: {error}") from None
        return cls(**found)


NO_TRAINING = Training()


@torch.inference_mode(False)
@torch.enable_grad()
def finetuned(
    network: nn.Module,
    samples: Samples,
    epochs: int,
    seed: int,
    *,
    logits: Tensor | None = None,
    progress: Progress = no_progress,
) -> nn.Module:
    """A trained copy of a network, in eval mode, as the network is while it is trained: statistics of a BatchNorm stay.

    The same seed gives the same weights, on the same machine with the same number of threads.

    Args:
        network: gives logits. It stays as it is.
        samples: to train on.
        epochs: how often each is seen.
        seed: of their order.
        logits: indices of those that compete; None for all.
    """
    tuned = copy.deepcopy(network).eval().requires_grad_()
    targets = samples.targets.clone()
    if logits is not None:
        targets = torch.searchsorted(logits.clone(), targets)  # they ascend
    order = torch.Generator().manual_seed(seed)
    parameters = [parameter for parameter in tuned.parameters() if parameter.numel()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with repeatable(), progress("fine-tune", steps) as advance:
        for _ in range(epochs):
            for rows in torch.randperm(len(samples), generator=order).split(BATCH):
                images = samples.inputs.take(rows)
                found = tuned(images[0 : len(rows)].clone())
                found = found if logits is None else found.index_select(1, logits.clone())
                optimizer.zero_grad()
                F.cross_entropy(found, targets[rows.to(targets.device)]).backward()
                optimizer.step()
                schedule.step()
                advance(1)
    return tuned.requires_grad_(False)
