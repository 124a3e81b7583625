"""What the order of small maps in memory is worth to convolutions in groups: run by hand, prints a table.

    OMP_NUM_THREADS=1 python benchmarks/groups.py
    OMP_NUM_THREADS=1 python benchmarks/groups.py --images 16 --channels 96,960

Depthwise convolutions of a batch of maps no larger than their kernel, in both orders in memory: milliseconds by torch
and by ours (`pruning.convolution`), the least of several runs, and how many times as fast ours is.
"""

from __future__ import annotations

import argparse

import torch
from pxp_optimize.pruning.convolution import convolution
from pxp_optimize.pruning.network import clone
from pxp_optimize.pruning.work import fastest
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--channels", default="96,576", help="several by commas")
    args = parser.parse_args()
    print(f"{'channels':>8} {'kernel':>6} {'stride':>6} {'map':>5} {'order':>14} {'torch':>8} {'ours':>8} {'ratio':>6}")
    for channels in map(int, args.channels.split(",")):
        for kernel, stride, size in ((5, 1, 1), (5, 2, 2), (5, 1, 2), (3, 1, 1), (3, 2, 2), (3, 1, 2)):
            module = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels).requires_grad_(False)
            for order in ("contiguous", "channels last"):
                maps = torch.randn(args.images, channels, size, size)
                if order == "channels last":
                    maps = maps.contiguous(memory_format=torch.channels_last)
                both = module, convolution(clone(module))
                theirs, ours = (1e3 * fastest(each, [maps], maps.device) for each in both)
                geometry = f"{channels:8} {kernel:6} {stride:6} {size:2}x{size:<2} {order:>14}"
                print(f"{geometry} {theirs:8.3f} {ours:8.3f} {theirs / ours:6.1f}")


if __name__ == "__main__":
    main()
