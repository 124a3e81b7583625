"""Relevance and curves against another version of the project, in turn: run by hand, prints processor milliseconds.

    OMP_NUM_THREADS=1 python benchmarks/speed.py --other /path/to/another/environment/bin/python
    OMP_NUM_THREADS=1 python benchmarks/speed.py --other ... --models vit_b_16:224:16,resnet18:32:64 --rounds 9

Each version has a process of its own that keeps the model (random weights); they take turns, pass by pass, so that both
meet the same machine. Times are of the processor, on one thread: the least and the median of the rounds for each
version, and the median of the rounds' ratios. Models are NAME:SIZE:IMAGES, of torchvision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

RATES = (0.0, 0.3, 0.6, 0.9)


def main() -> None:
    """Prints a line for each model and part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", help="interpreter with the version to compare with")
    parser.add_argument("--models", default="vit_b_16:224:16,resnet18:32:64,resnet50:224:16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rules", default="epsilon", help="several by commas")
    parser.add_argument("--parts", default="relevance,curve")
    parser.add_argument("--serve", metavar="MODEL", help="answer requests for measurements, nothing else")
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    for model in args.models.split(","):
        sides = {"this": start(sys.executable, model)}
        if args.other:
            sides["other"] = start(args.other, model)
        for rule in args.rules.split(","):
            for part in args.parts.split(","):
                compare(sides, f"{model} {rule} {part}", f"{part} {rule}", args.rounds)
        for side in sides.values():
            side.communicate()


def start(python: str, model: str) -> subprocess.Popen[str]:
    """A version's process."""
    command = [python, __file__, "--serve", model]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def compare(sides: dict[str, subprocess.Popen[str]], title: str, request: str, rounds: int) -> None:
    """Asks the versions in turn, the first of them once before, and prints what they take."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in sides if number % 2 else reversed(sides):
            seconds = ask(sides[name], request)
            if number:
                found[name].append(1000 * seconds)
    texts = [f"{name} {min(times):.0f}, {statistics.median(times):.0f}" for name, times in found.items()]
    if "other" in found:
        ratios = [this / other for this, other in zip(found["this"], found["other"], strict=True)]
        least = min(found["this"]) / min(found["other"])
        texts.append(f"ratio of the least {least:.3f}, median of ratios {statistics.median(ratios):.3f}")
    print(f"{title:32} {'  '.join(texts)}", flush=True)


def ask(process: subprocess.Popen[str], request: str) -> float:
    """The seconds that a version's process answers with."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(request + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        sys.exit(f"{process.args[0]} ended")  # type: ignore[index]
    return float(json.loads(answer))


def serve(model: str) -> None:
    """Answers each line, PART RULE, with the seconds that the part takes."""
    import torch
    import torchvision
    from pxp_optimize.attribution import collect_relevance
    from pxp_optimize.pruning import accuracy_curve, trace

    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, size, count = model.split(":")
    network = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    images = torch.randn(int(count), 3, int(size), int(size))
    targets = torch.arange(int(count)) % 10
    try:
        graph = trace(network, images[:2])
    except TypeError:  # of versions that need no example
        graph = trace(network)
    scores = {key: torch.rand(units) for key, units in graph.units(None).items()}

    def relevance(rule: str) -> Any:
        composite = {"groups": {group: {"rule": rule} for group in ("low", "mid", "high", "classifier")}}
        return collect_relevance(graph, composite, images, targets, units=None, batch_size=16)

    def curve(rule: str) -> Any:
        return accuracy_curve(graph, scores, images, targets, RATES)

    parts: dict[str, Callable[[str], Any]] = {"relevance": relevance, "curve": curve}
    for line in sys.stdin:
        part, rule = line.split()
        before = time.process_time()
        parts[part](rule)
        print(json.dumps(time.process_time() - before), flush=True)


if __name__ == "__main__":
    main()
