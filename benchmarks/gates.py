"""What it saves to leave out what is constant or not read: run by hand, prints a table of milliseconds and ratios.

    OMP_NUM_THREADS=1 python benchmarks/gates.py
    python benchmarks/gates.py --model efficientnet_b0 --rate 0.3 --images 32:1,224:1 --device cuda
    OMP_NUM_THREADS=1 python benchmarks/gates.py --model mobilenet_v2

A network with squeeze-and-excitation or depthwise convolutions (random weights), a part of whose units is pruned:
first the gates' own, which have no relevance, then at random. Each row: size and number of images, the median of so
many rounds of the whole network, of the compact one as it is and without constants (`pruning.without_constants`),
measured in turn, and how many times as fast the last is as the compact one.
"""

from __future__ import annotations

import argparse
import statistics

import torch
import torchvision
from pxp_optimize.pruning import compact, prune_masks, trace, without_constants
from pxp_optimize.pruning.work import latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--images", default="32:1,32:64,224:1,224:16", help="SIZE:COUNT, several by commas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    graph = trace(torchvision.models.get_model(args.model, num_classes=10).eval()).to(args.device)
    scores = {
        name: torch.zeros(size) if name.endswith(("fc1", "fc2")) else torch.rand(size)
        for name, size in graph.units("filters").items()
    }
    network = compact(graph, prune_masks({name: value.to(args.device) for name, value in scores.items()}, args.rate))
    three = graph.network, network.network, without_constants(network.network)
    steps = " and ".join(str(len(each.steps)) for each in three[1:])
    print(f"{args.model}, {args.rate:.0%} of the filters pruned: {steps} steps")
    print(f"{'images':>10} {'whole':>8} {'compact':>8} {'without':>8} {'ratio':>6}")
    for text in args.images.split(","):
        size, count = map(int, text.split(":"))
        images = torch.randn(count, 3, size, size, device=args.device)
        with torch.inference_mode():
            rounds = [[latency(network, images) for network in three] for _ in range(args.rounds)]
        whole, before, after = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{size:6} x{count:3} {1e3 * whole:8.2f} {1e3 * before:8.2f} {1e3 * after:8.2f} {before / after:6.2f}")


if __name__ == "__main__":
    main()
