"""Options that several of the benchmarks have. It imports nothing of the project: `cost.py` runs older versions too."""

from __future__ import annotations

import argparse


def add_task(parser: argparse.ArgumentParser, search_samples: int | None = None) -> None:
    """Adds what says which network is measured, and on which images. search_samples: how many by default."""
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--mean", default=None, help="of images, as 0.5,0.5,0.5")
    parser.add_argument("--std", default=None)
    parser.add_argument("--reference-samples", type=int, default=10)
    parser.add_argument("--search-samples", type=int, default=search_samples)
    parser.add_argument("--holdout-samples", type=int, default=None)
