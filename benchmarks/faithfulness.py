"""How known composites compare under each way to remove image regions: run by hand, prints a table.

    python benchmarks/faithfulness.py --model resnet18 --data digits
    python benchmarks/faithfulness.py --model MODULE:FUNCTION --weights FILE --data DIR --image-size 32 --edges 2 4 8

A row is a way to remove regions; a cell the mean symmetric relevance gain of a composite's heat maps on the search
images. The last column says how alike a row orders the composites as the first row does (Spearman).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from pxp_optimize.attribution import REPLACEMENTS
from pxp_optimize.attribution.faithfulness import PATCHES, STEPS, Flipping
from pxp_optimize.optimize.evaluation.explaining import Explaining
from pxp_optimize.optimize.evaluation.faithfulness import gains_by_replacement
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.search.explained import known_heat_maps, pixel_bounds
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.optimize.study.run import make_space
from scipy.stats import spearmanr

OPTIONS = ("model", "weights", "data", "mean", "std", "image_size", "search_samples", "seed", "device")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in OPTIONS:
        kind = int if name in ("image_size", "search_samples", "seed") else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--edges", type=int, nargs="*", help="edges of patches, in pixels")
    parser.add_argument("--steps", type=int, nargs="*", default=[STEPS, 2 * STEPS])
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    options = Options.parsed(objective="faithfulness", **given)
    prepared = prepare(options)
    task = prepared.task
    size = task.search.inputs.pixels.shape[-2:]
    usual = max(1, round(max(size) / PATCHES))
    ways = {f"{name}, edge {usual}, {STEPS} steps": Flipping.of(size, usual, name) for name in ("blur", *REPLACEMENTS)}
    ways |= {f"blur, edge {usual}, {steps} steps": Flipping.of(size, usual, "blur", steps) for steps in args.steps}
    ways |= {f"blur, edge {edge}, {STEPS} steps": Flipping.of(size, edge, "blur") for edge in args.edges or ()}
    tasks = {name: replace(task, explaining=Explaining(flipping)) for name, flipping in ways.items()}
    known = known_heat_maps(make_space(options, prepared), prepared.layers, pixel_bounds(task.search.inputs))
    methods = {**known, "gradient_times_input": "gradient_times_input", "random": "random"}
    started = time.perf_counter()
    gains: dict[str, dict[str, float]] = {}
    for name, method in methods.items():
        found = gains_by_replacement(tasks, method, task.search)
        gains[name] = {way: sum(each) / len(each) for way, each in found.items()}
    print(f"| {' | '.join(['way', *methods, 'order'])} |\n|{' --- |' * (len(methods) + 2)}")
    first = [of[next(iter(tasks))] for of in gains.values()]
    for way in tasks:
        row = [of[way] for of in gains.values()]
        print(f"| {way} | {' | '.join(f'{value:.3f}' for value in row)} | {spearmanr(first, row)[0]:.3f} |")
    print(f"{len(task.search)} images, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
