"""How soon samplers find the best of a grid that was measured before: run by hand, prints a table.

    python benchmarks/search.py --runs grid:paper --schedule oneshot --repair none --rates 0:0.9:0.1 --json grid.json
    python benchmarks/samplers.py grid.json --samplers local,tpe,random --repeats 20
    python benchmarks/samplers.py grid.json --samplers local,tpe --workers 1,2,4

Nothing is measured again, so it takes seconds: a trial's value is what the composite had in the grid, on the search
samples. A study begins with the known composites, as a real one does. A cell holds how far the best of the first so
many trials is below the grid's best (mean over the sampler's seeds and the draws in the files), and how often it is
that one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping
from typing import Any

import optuna
from pxp_optimize.optimize.search.samplers import make_sampler
from pxp_optimize.optimize.search.space import Space
from pxp_optimize.optimize.search.view import lag_of
from pxp_optimize.optimize.search.warm_start import mixed_composites

Point = tuple[tuple[str, str], ...]


def point(params: Mapping[str, str]) -> Point:
    return tuple(sorted(params.items()))


def best_so_far(table: Mapping[Point, float], sampler: str, seed: int, trials: int, workers: int = 1) -> list[float]:
    """The highest value after each trial of a study whose values are the table's. With several workers a trial does
    not see those right before it; what it proposes does not depend on which worker is faster."""
    keys = [key for key, _ in next(iter(table))]
    parts = [key.removesuffix(".rule") for key in keys if key.endswith(".rule")]
    space = Space(parts, fixed_numbers=True, transformer="softmax" in keys)
    study = optuna.create_study(direction="maximize", sampler=make_sampler(sampler, seed, lag_of(workers)))
    for composite in [*space.fixed_composites().values(), *mixed_composites(space).values()]:
        params = space.params_of(composite)
        if params is not None:  # what is outside of the grid has no value
            study.enqueue_trial(params)
    found: list[float] = []
    for _ in range(trials):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, table[point(trial.params)])
        found.append(study.best_value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="what search.py wrote with --json and a grid among its runs")
    parser.add_argument("--samplers", default="local,tpe,random")
    parser.add_argument("--repeats", type=int, default=20, help="seeds of each sampler")
    parser.add_argument("--workers", default="1", help="how many run trials at once, such as 1,2,4")
    parser.add_argument("--at", default="15,25,40,60,100", help="after how many trials to look")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    marks = [int(mark) for mark in args.at.split(",")]
    rows: list[dict[str, Any]] = []
    for path in args.files:
        with open(path, encoding="utf-8") as file:
            rows += [row for row in json.load(file)["rows"] if row["sampler"] == "grid"]
    tables = [{point(trial["params"]): trial["value"] for trial in row["trials"] if trial["params"]} for row in rows]
    print(f"{len(tables)} grids of {' and '.join(sorted({str(len(table)) for table in tables}))}")
    for sampler, workers in itertools.product(args.samplers.split(","), map(int, args.workers.split(","))):
        runs = [
            (max(table.values()), best_so_far(table, sampler, seed, max(marks), workers))
            for table in tables
            for seed in range(args.repeats)
        ]
        cells = []
        for mark in marks:
            below = [top - found[mark - 1] for top, found in runs]
            reached = sum(distance == 0 for distance in below)
            cells.append(f"{mark}: {statistics.mean(below):.4f}, {reached} of {len(runs)}")
        name = sampler if args.workers == "1" else f"{sampler}, {workers}"
        print(f"{name:8} {'   '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
