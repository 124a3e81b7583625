"""How soon each sampler finds a good composite in each space, against the paper's grid: run by hand, prints a table.

    python benchmarks/search.py --schedule oneshot --repair none --seeds 5
    python benchmarks/search.py --runs tpe:depth --trials 40 --seeds 5 --json default.json
    python benchmarks/search.py --runs tpe:depth --schedule every:0.1,oneshot --repair least-squares,none
    python benchmarks/search.py --model vit_tiny --units neurons --runs tpe:type,random:type,grid:paper

A run is SAMPLER:SPACE; the space paper256 is paper with one way through a transformer's softmax, AttnLRP's. Each seed
draws other samples; all runs of a seed have the same. A cell holds the holdout AUC (mean and standard deviation over
the seeds) of the trial that is best among the first so many, and the seconds of processor time that these trials took,
without the sampler's own. Best as a study says it: the three highest on the search samples are scored again on others
(--rescore). The grid is run to its end: 256 trials. Where it is among the runs, a cell also says in how many of the
seeds it is not below the 95 % interval of the grid's best (bootstrap of the holdout images). The last table holds what
the first run's best has more than each fixed composite: 95 % intervals of the mean over the seeds (Student's t of the
differences, seed by seed).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from pxp_optimize.attribution import Composite
from pxp_optimize.optimize.evaluation.candidate import pruning_of
from pxp_optimize.optimize.evaluation.evaluate import Evaluation, Method, evaluate
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.parsers import DEFAULT_RATES, parse_rates
from pxp_optimize.optimize.search.loop import run_search
from pxp_optimize.optimize.search.samplers import GRID, is_conditional, make_sampler
from pxp_optimize.optimize.search.space import Space
from pxp_optimize.optimize.search.warm_start import mixed_composites
from pxp_optimize.optimize.study.compare import correctness
from pxp_optimize.optimize.study.prepare import Prepared, prepare
from pxp_optimize.optimize.study.rescore import fresh_measure, rescore
from pxp_optimize.pruning import auc
from pxp_optimize.studies.best import PRUNING, RESCORED, best_trial
from pxp_optimize.studies.bootstrap import estimate
from scipy import stats

RUNS = "random:depth,tpe:depth,gp:depth,cmaes:depth,cmaes:layer,tpe:type,grid:paper"


Rights = dict[str, NDArray[np.bool_]]
"""Which holdout predictions are right, (rates, images), of the best trial of a run after so many, by both."""


def run(
    prepared: Prepared,
    sampler: str,
    space_name: str,
    trials: int,
    marks: list[int],
    seed: int,
    rights: Rights,
    count: int,
) -> dict[str, Any]:
    """One search: what the best of the first so many trials is worth, on search and holdout samples. Adds to rights.

    count: how many of the best are scored again.
    """
    task = prepared.task
    conditional, mixed = is_conditional(sampler), "+" in task.units
    space = Space.named(
        space_name.removesuffix("256"), prepared.layers, conditional, mixed=mixed, pruning=prepared.pruning
    )
    if space_name.endswith("256") and space.transformer:
        space.choices["softmax"] = ("attnlrp",)
    queue = space.grid(seed) if sampler == GRID else []
    study = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, seed))
    task.curves.clear()  # no run profits from what another one has measured
    task.plans.clear()
    task.variants.clear()
    start = time.process_time()
    spent = []

    def timed(composite: Method, *stop: object) -> Evaluation:
        begun = time.process_time()
        found = evaluate(task, composite)
        spent.append(time.process_time() - begun)
        return found

    run_search(
        study,
        space,
        timed,
        trials=len(queue) + 4 if queue else trials,
        known={} if queue else mixed_composites(space),
        queue=queue,
    )
    seconds = time.process_time() - start
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    assert len(done) == len(spent), "each trial is measured once"
    found: dict[str, Any] = {"sampler": sampler, "space": space_name, "seed": seed, "seconds": seconds, "at": {}}
    found["trials"] = [{"value": trial.value, "params": trial.params} for trial in done]
    again = fresh_measure(prepared, [task])
    for mark in [len(done)] if queue else marks:
        so_far = optuna.create_study(direction="maximize")
        so_far.add_trials(done[:mark])
        if count > 1:
            rescore(so_far, count, *again, lambda steps: None)
        best = best_trial(so_far)
        right = rights[f"{sampler}:{space_name} {mark}"] = correctness(
            task.pruned_as(pruning_of(best)), Composite.from_dict(best.user_attrs["composite"])
        )
        found["at"][mark] = {
            "search": best.value,
            "rescored": {number: score["auc"] for number, score in so_far.user_attrs.get(RESCORED, {}).items()},
            "holdout": auc(task.rates, right.mean(1).tolist()),
            "seconds": sum(spent[:mark]),
            "trial": best.number,
            "composite": best.user_attrs["composite"],
            "pruning": best.user_attrs.get(PRUNING),
        }
    found["fixed"] = {
        name: evaluate(task, composite, task.holdout).auc for name, composite in space.fixed_composites().items()
    }
    return found


GRID_RUN = "grid:paper"  # or grid:paper256


def against_grid(rows: list[dict[str, Any]], rights: Rights, rates: Sequence[float], seed: int) -> None:
    """Adds to the runs of one seed how sure their differences to the grid's best are."""
    cells = {f"{row['sampler']}:{row['space']} {mark}": cell for row in rows for mark, cell in row["at"].items()}
    grid = next((label for label in rights if label.startswith(GRID_RUN)), None)
    if grid is None:
        return
    found = estimate({label: right[None] for label, right in rights.items()}, grid, rates, 0.95, seed=seed)
    low = float(found.level[grid].low[0])
    for label, cell in cells.items():
        difference = found.difference[label]
        cell["difference"] = [float(part[0]) for part in (difference.value, difference.low, difference.high)]
        cell["reaches_grid"] = cell["holdout"] >= low


def gain(found: Sequence[float], fixed: Sequence[float]) -> str:
    """The mean difference of paired values with its 95 % interval (none of a single pair)."""
    differences = np.subtract(found, fixed)
    if len(differences) < 2:
        return f"{differences.mean():+.3f}"
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return f"{differences.mean():+.3f} [{differences.mean() - half:+.3f}, {differences.mean() + half:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--units", default="auto")
    parser.add_argument("--runs", default=RUNS)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--at", default="25,40,50,100", help="after how many trials to look")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="to measure the others later, or elsewhere")
    parser.add_argument("--rescore", type=int, default=3, help="how many of the best to score again; 1: none")
    parser.add_argument("--schedule", default="auto")
    parser.add_argument("--repair", default="auto")
    parser.add_argument("--search-samples", type=int, default=200)
    parser.add_argument("--holdout-samples", type=int, default=500)
    parser.add_argument("--rates", default=DEFAULT_RATES)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    marks = [mark for mark in map(int, args.at.split(",")) if mark <= args.trials]
    rows: list[dict[str, Any]] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        prepared = prepare(
            Options.parsed(
                model=args.model,
                weights=args.weights,
                data=args.data,
                image_size=args.image_size,
                units=args.units,
                seed=seed,
                search_samples=args.search_samples,
                holdout_samples=args.holdout_samples,
                rates=parse_rates(args.rates),
                schedule=args.schedule,
                repair=args.repair,
            )
        )
        rights: Rights = {}
        of_seed = slice(len(rows), None)
        for name in args.runs.split(","):
            sampler, _, space = name.partition(":")
            rows.append(run(prepared, sampler, space, args.trials, marks, seed, rights, args.rescore))
            at = "  ".join(f"{mark}: {cell['holdout']:.4f}" for mark, cell in rows[-1]["at"].items())
            print(f"seed {seed}, {name}: {at}  ({rows[-1]['seconds']:.0f} s)", file=sys.stderr, flush=True)
            if name == args.runs.split(",")[-1]:
                against_grid(rows[of_seed], rights, prepared.task.rates, seed)
            if args.json:  # after each run, since they take long
                with open(args.json, "w", encoding="utf-8") as file:
                    json.dump({"options": vars(args), "rows": rows}, file, indent=2)
    what = f"{args.model}, {args.data}, {prepared.task.units}, {prepared.description[2]}"
    print(f"{what}, {args.seeds} seeds, holdout AUC")
    for name in args.runs.split(","):
        of_run = [row for row in rows if f"{row['sampler']}:{row['space']}" == name]
        cells = []
        for mark in of_run[0]["at"]:
            at = [row["at"][mark] for row in of_run]
            values, seconds = [cell["holdout"] for cell in at], statistics.mean(cell["seconds"] for cell in at)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            reached = sum(cell["reaches_grid"] for cell in at) if "reaches_grid" in at[0] else None
            grid = "" if reached is None or name.startswith(GRID_RUN) else f", {reached} of {len(at)}"
            cells.append(f"{mark}: {statistics.mean(values):.3f} +- {spread:.3f} ({seconds:.0f} s{grid})")
        print(f"{name:16} {'   '.join(cells)}")
    of_first = [row for row in rows if f"{row['sampler']}:{row['space']}" == args.runs.split(",")[0]]
    for name in of_first[0]["fixed"]:
        of_name = [row["fixed"][name] for row in of_first]
        cells = [f"{name:16} {statistics.mean(of_name):.3f}"]
        for mark in of_first[0]["at"]:
            cells.append(f"{mark}: {gain([row['at'][mark]['holdout'] for row in of_first], of_name)}")
        print("   ".join(cells))


if __name__ == "__main__":
    main()
