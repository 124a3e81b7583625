"""Holdout AUC of fixed composites and baselines under schedules and repairs: run by hand, prints a table.

    python benchmarks/pruning.py --model resnet18 --seeds 3
    python benchmarks/pruning.py --model vit_tiny --units neurons --schedules oneshot,every:0.1 --json vit.json

Each cell: mean over draws of the samples (seeds) of the AUC, and of the largest sparsity that keeps 95 % of the
accuracy, on samples that nothing was chosen by. With --macs also the area under accuracy against the part of the
multiply-adds that is saved (`pruning.area_saved`). The last column is a trial's time on the processor (all threads) as
a ratio to the plain one: unlike the wall time it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

from arguments import add_task
from pxp_optimize.attribution import CRITERIA
from pxp_optimize.attribution.composites import GATES, NORMALIZATIONS
from pxp_optimize.optimize.evaluation.curve import networks_of
from pxp_optimize.optimize.evaluation.evaluate import Baseline, evaluate, plan_of
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.parsers import DEFAULT_RATES, parse_rates
from pxp_optimize.optimize.search.space import Space
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import Schedule, area_saved, macs, make_repair, sparsity_at
from pxp_optimize.pruning.repair import least_squares, tokens
from pxp_optimize.pruning.repair.tokens import EVEN

EVERY_REPAIR = ("none", "batchnorm", "least-squares", "batchnorm+least-squares")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task(parser)
    parser.add_argument("--units", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to measure the others later, or elsewhere")
    parser.add_argument("--repair-samples", type=int, default=None, help="unlabelled images for repairs")
    parser.add_argument("--rates", default=DEFAULT_RATES)
    parser.add_argument("--schedules", default="oneshot,every:0.1")
    parser.add_argument("--repairs", default=None, help="default: those that the network can take")
    parser.add_argument("--methods", default=None, help="names, default: all fixed composites and baselines")
    parser.add_argument("--normalization", default="none", choices=NORMALIZATIONS, help="of the composites' relevance")
    parser.add_argument("--cost-exponent", type=float, default=0.0, help="of units' prices in the composites' ranking")
    parser.add_argument("--gates", default="signal", choices=GATES, help="how the composites pass gates")
    parser.add_argument("--even", type=float, default=EVEN, help="part of tokens' weights that is even (1: all)")
    parser.add_argument("--no-averages", action="store_true", help="least squares reads the images alone")
    parser.add_argument(
        "--macs", action="store_true", help="the area over multiply-adds too (networks are built twice)"
    )
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    tokens.EVEN = args.even
    if args.no_averages:
        least_squares.Mixed = lambda images: images
    rows: list[dict[str, Any]] = []
    figures: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        options = Options.parsed(
            model=args.model,
            weights=args.weights,
            units=args.units,
            data=args.data,
            image_size=args.image_size,
            **{key: getattr(args, key) for key in ("mean", "std") if getattr(args, key)},
            seed=seed,
            reference_samples=args.reference_samples,
            repair_samples=args.repair_samples,
            holdout_samples=args.holdout_samples,
            search_samples=args.search_samples,
            rates=parse_rates(args.rates),
            schedule="oneshot",
            repair="none",
        )
        prepared = prepare(options)
        task = prepared.task
        space = Space.named("auto", prepared.layers, True, mixed="+" in task.units)
        fixed = {
            name: replace(
                composite, normalization=args.normalization, gates=args.gates, cost_exponent=args.cost_exponent
            )
            for name, composite in space.fixed_composites().items()
        }
        methods = {**fixed, **{name: Baseline(name, seed) for name in CRITERIA}}
        repairs = (
            args.repairs.split(",")
            if args.repairs
            else [r for r in EVERY_REPAIR if task.graph.norms or "batch" not in r]
        )
        for schedule in args.schedules.split(","):
            for repair in repairs:
                variant = replace(
                    task,
                    schedule=Schedule.parse(schedule),
                    repair=make_repair(repair, task.graph, task.repair_images),
                    curves={},
                    plans={},
                )
                for name, method in methods.items():
                    if args.methods and name not in args.methods.split(","):
                        continue
                    start = time.process_time()
                    found = evaluate(variant, method, task.holdout)
                    seconds = time.process_time() - start
                    costs = []
                    if args.macs:
                        networks = networks_of(variant, plan_of(variant, method))
                        costs = [macs(network, task.holdout.inputs[0:1]) for network in networks]
                    area = area_saved([cost / costs[0] for cost in costs], found.accuracy) if costs else float("nan")
                    figures.setdefault((schedule, repair, name), []).append(
                        {
                            "auc": found.auc,
                            "sparsity": sparsity_at(task.rates, found.accuracy),
                            "accuracy": found.accuracy,
                            "area": area,
                            "seconds": seconds,
                        }
                    )
                    print(f"seed {seed}: {schedule} {repair} {name}: {found.auc:.4f}", file=sys.stderr, flush=True)
    print(
        f"{args.model}, {task.units}, {args.data}, {args.reference_samples} reference samples a class, repaired from "
        f"{len(task.repair_images)}, {args.seeds} seeds"
    )
    print(f"{'schedule':10} {'repair':24} {'method':22} {'AUC':>6} {'+-':>6} {'95 %':>6} {'area':>6} {'time':>6}")
    for (schedule, repair, name), values in figures.items():
        mean = {key: statistics.mean(value[key] for value in values) for key in ("auc", "sparsity", "area", "seconds")}
        spread = statistics.stdev(value["auc"] for value in values) if len(values) > 1 else 0.0
        plain = figures.get(("oneshot", "none", name))
        ratio = mean["seconds"] / statistics.mean(value["seconds"] for value in plain) if plain else float("nan")
        rows.append({"schedule": schedule, "repair": repair, "method": name, **mean, "spread": spread, "ratio": ratio})
        rows[-1]["seeds"] = values
        measured = f"{mean['auc']:6.3f} {spread:6.3f} {mean['sparsity']:6.0%} {mean['area']:6.3f} {ratio:6.1f}"
        print(f"{schedule:10} {repair:24} {name:22} {measured}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(args), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
