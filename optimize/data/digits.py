"""Weights for the embedded digits: any classifier, trained once, then kept in the cache.

One recipe for all networks: AdamW under cycles of the learning rate, each longer than the last (Loshchilov and
Hutter, 2017, "SGDR"), as many as the network needs, with label smoothing and shifts by a pixel or two.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...pruning.precision import repeatable
from ...studies.errors import UserError
from ...studies.wording import reason
from ..progress import Progress, no_progress
from .datasets import DIGITS_SIZE, Dataset, Split
from .images import Transform, decode

DIGITS_TRANSFORM = Transform(size=DIGITS_SIZE, resize=DIGITS_SIZE)
RECIPE = 1  # raise it with any change below: networks cached under another recipe are trained anew
GOOD_ACCURACY = 0.95

CYCLES = (3, 6, 12, 24)  # epochs of each, as long as the goal is not reached
GOAL = 0.96  # of the validation split: no further cycle once it is reached
BATCH = 32
LEARNING_RATE = 2e-3  # at its peak
LEARNING_RATE_WIDE = 5e-4  # for a network with a layer of more than LARGEST_TRAINED weights
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
SHIFT = 2  # pixels, of the 32 that a digit has
# VGG's first linear layer has 103 million weights, for 900 images. It stays the random projection that it is
# at first, since its gradient and its update would take a good part of each step.
LARGEST_TRAINED = 2**25


def load_or_train(
    name: str,
    module: nn.Module,
    dataset: Dataset,
    transform: Transform,
    cache: Path,
    *,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    check: Callable[[], object] = lambda: None,
) -> str:
    """Give `module` its weights for the digits: from `cache`, or else by training it and caching the result.

    Returns a description of the weights, with their accuracy on the validation split. Warns if that is below
    95 %. A cached file that can not be read or does not fit is replaced. check: called before a training.

    Raises:
        UserError: the cache folder can not be written.
    """
    variant = "" if transform == DIGITS_TRANSFORM else f"-{sha256(repr(transform).encode()).hexdigest()[:8]}"
    path = cache / "digits" / f"{name}{variant}-{RECIPE}.safetensors"
    accuracy = _load(path, module)
    if accuracy is None:
        check()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Beside the final place, so that the replacement is atomic; made first, so that an unwritable
            # cache shows before the training.
            with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
                accuracy = train(module, dataset, transform, device=device, progress=progress)
                draft = Path(scratch) / path.name
                state = {key: value.contiguous() for key, value in module.state_dict().items()}
                save_file(state, draft, metadata={"accuracy": repr(accuracy)})
                os.replace(draft, path)
        except OSError as error:
            raise UserError(
                f"can not write the cache folder {path.parent} ({reason(error)}); free space or make it writable"
            ) from error
    if accuracy < GOOD_ACCURACY:
        warnings.warn(
            f"{name} reaches {accuracy:.1%} on the digits only; --weights FILE takes others",
            stacklevel=2,
        )
    return f"trained on the digits, {accuracy:.1%} on their validation split, kept in {path}"


def _load(path: Path, module: nn.Module) -> float | None:
    """Load the cached weights into `module` and return their accuracy, or None if there are none that fit."""
    try:
        with safe_open(path, framework="pt") as file:
            accuracy = float(file.metadata()["accuracy"])
            module.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except Exception:  # absent, cut short, or not ours: in each case the answer is to train
        return None
    return accuracy


def train(
    module: nn.Module,
    dataset: Dataset,
    transform: Transform = DIGITS_TRANSFORM,
    *,
    device: torch.device | None = None,
    progress: Progress = no_progress,
) -> float:
    """Train `module` in place on the digits' training split; returns its accuracy on the validation split.

    The same network gives the same weights on the same machine with the same number of threads.
    """
    device = device or torch.device("cpu")
    inputs, labels = _tensors(dataset.train, transform, device)
    validation = _tensors(dataset.val, transform, device)
    module.to(device)
    trained = [p for p in module.parameters() if p.numel() <= LARGEST_TRAINED]
    wide = any(p.numel() > LARGEST_TRAINED for p in module.parameters())
    peak = LEARNING_RATE_WIDE if wide else LEARNING_RATE
    optimizer = torch.optim.AdamW(trained, weight_decay=WEIGHT_DECAY, fused=True)
    # The last batch, a smaller one, is left out: BatchNorm can not do with one sample.
    batches = len(labels) // BATCH
    accuracy = 0.0
    with seeded(), repeatable():
        for cycle, epochs in enumerate(CYCLES, 1):
            steps = epochs * batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
            module.train()
            with progress(f"train on the digits, cycle {cycle}", steps) as advance:
                for _ in range(epochs):
                    # Drawn on the CPU: the same order on every device.
                    order = torch.randperm(len(labels))[: batches * BATCH].to(device)
                    for rows in order.split(BATCH):
                        logits = module(_shifted(inputs[rows]))
                        loss = F.cross_entropy(logits, labels[rows], label_smoothing=LABEL_SMOOTHING)
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                        schedule.step()
                        advance(1)
            accuracy = _accuracy(module, *validation)
            if accuracy >= GOAL:
                break
    return accuracy


def _shifted(images: Tensor) -> Tensor:
    """The batch moved by up to SHIFT pixels each way, its edge repeated."""
    height, width = images.shape[2:]
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    padded = F.pad(images, (SHIFT,) * 4, mode="replicate")
    return padded[:, :, down : down + height, right : right + width]


def _accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    module.eval()
    with torch.inference_mode():
        predicted = torch.cat([module(batch).argmax(1) for batch in inputs.split(128)])
    return (predicted == labels).double().mean().item()


def _tensors(split: Split, transform: Transform, device: torch.device) -> tuple[Tensor, Tensor]:
    """The network's inputs and the labels of a whole split."""
    pixels, _ = decode(split, np.arange(len(split)), transform)
    return transform.normalize(pixels.to(device)), torch.from_numpy(split.labels).to(device)


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers each time in here, on every device; torch's own go on as before."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield
