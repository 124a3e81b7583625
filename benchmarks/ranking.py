"""Search and holdout AUC of uniform composites under reductions and starts of relevance: run by hand.

    python benchmarks/ranking.py --model resnet18 --seeds 2
    python benchmarks/ranking.py --model vit_tiny --seeds 2 --rates 0:0.9:0.3

Each row: mean over draws of the samples (seeds), for a rule, of the AUC on search and on holdout samples, with the
schedule and the repair that a run has by default.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from pxp_optimize.attribution import RuleSpec
from pxp_optimize.attribution.composites import REDUCTIONS, STARTS
from pxp_optimize.optimize.evaluation.evaluate import evaluate
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.parsers import parse_rates
from pxp_optimize.optimize.search.space import Space
from pxp_optimize.optimize.study.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--units", default="auto")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rates", default="0:0.9:0.1")
    parser.add_argument("--samples", type=int, default=200, help="search samples, and as many holdout samples")
    parser.add_argument("--relative", default="0.01,0.1,1", help="values of the relative epsilon to measure too")
    args = parser.parse_args()
    figures: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for seed in range(args.seeds):
        options = Options.parsed(
            model=args.model,
            weights=args.weights,
            units=args.units,
            data=args.data,
            image_size=args.image_size,
            seed=seed,
            rates=parse_rates(args.rates),
            search_samples=args.samples,
            holdout_samples=args.samples,
        )
        prepared = prepare(options)
        task = prepared.task
        fixed = Space.named("auto", prepared.layers, True, mixed="+" in task.units).fixed_composites()
        variants = [("auto", start) for start in STARTS] + [(reduction, "logit") for reduction in REDUCTIONS[1:]]
        methods = {
            (rule, *variant): replace(fixed[rule], reduction=variant[0], start=variant[1])
            for rule in ("epsilon", "zplus")
            for variant in variants
        }
        for value in map(float, args.relative.split(",")):
            spec = RuleSpec("epsilon_relative", {"epsilon": value})
            plain = fixed["epsilon"]
            methods[f"relative {value:g}", "auto", "logit"] = replace(plain, groups=dict.fromkeys(plain.groups, spec))
        for name, composite in methods.items():
            found = evaluate(task, composite).auc, evaluate(task, composite, task.holdout).auc
            figures.setdefault(name, []).append(found)
    print(f"{args.model}, {task.units}, {args.data}, {args.seeds} seeds, {task.schedule}, {task.repair_name}")
    print(f"{'rule':14} {'reduction':10} {'start':12} {'search':>7} {'holdout':>8} {'each seed':>10}")
    for (rule, reduction, start), values in figures.items():
        search, holdout = (statistics.mean(value[index] for value in values) for index in (0, 1))
        each = " ".join(f"{value[1]:.3f}" for value in values)
        print(f"{rule:14} {reduction:10} {start:12} {search:7.3f} {holdout:8.3f}   {each}")


if __name__ == "__main__":
    main()
