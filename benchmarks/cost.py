"""What a default trial costs, by phase, and what it finds: run by hand, prints processor seconds on one thread.

    python benchmarks/cost.py --model resnet18
    python benchmarks/cost.py --model vit_tiny --units heads --methods epsilon,zplus --seeds 3
    python benchmarks/cost.py --model resnet18 --other /path/to/another/environment/bin/python
    python benchmarks/cost.py --model resnet18 --run 20 --other /path/to/another/environment/bin/python

A trial is made as a study makes it; the time that its networks take on holdout images is not counted. `--other` names
the interpreter of an environment that another version is installed in: both take turns, each in a process of its own,
and the last line compares them. Phases: relevance (with the networks of the steps and their repairs) and the curve on
the search images (with the networks of the rates in between). `--flat` as in the command. Memory is what the process
holds at most. `--run` measures the whole command with so
many trials: processor seconds of all of it, and what part of the time its trials took.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from arguments import add_task

PHASES = ("relevance", "curve")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task(parser)
    parser.add_argument("--units", default="auto")
    parser.add_argument("--flat", type=float, default=0.02)
    parser.add_argument("--methods", default="epsilon", help="names of fixed composites")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--other", help="interpreter with the version to compare with")
    parser.add_argument("--run", type=int, metavar="TRIALS", help="the whole command, with so many trials")
    parser.add_argument("--rows", action="store_true", help="print a line of JSON for each trial, nothing else")
    args = parser.parse_args()
    if args.rows:
        for row in trials(args):
            print(json.dumps(row), flush=True)
        return
    sides = {"this": sys.executable, **({"other": args.other} if args.other else {})}
    if args.run:
        for side, python in sides.items():
            print(f"{side:6} {whole_run(python, args)}", flush=True)
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    given = [each for each in sys.argv[1:] if not each.startswith("--other=")]
    if "--other" in given:
        place = given.index("--other")
        del given[place : place + 2]
    for side, python in sides.items():
        command = [python, __file__, *given, "--rows"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                row = json.loads(line)
                found[side].append(row)
                phases = "  ".join(f"{phase} {row[phase]:6.1f}" for phase in PHASES)
                areas = f"AUC {row['auc']:.4f}  holdout {row['holdout']:.4f}"
                print(
                    f"{side:6} seed {row['seed']} {row['method']:16} {phases}  {areas}  {row['memory']} MiB", flush=True
                )
        if process.returncode:
            sys.exit(f"{python} ended with {process.returncode}")
    for side, rows in found.items():
        seconds = statistics.mean(sum(row[phase] for phase in PHASES) for row in rows)
        areas = statistics.mean(row["holdout"] for row in rows)
        print(f"{side:6} {args.model}: {seconds:.1f} s a trial, holdout AUC {areas:.4f} in the mean")


KEYS = ("model", "units", "weights", "data", "image_size", "reference_samples", "search_samples", "holdout_samples")
"""Options that a trial and the command have both."""


def whole_run(python: str, args: argparse.Namespace) -> str:
    """What the command with its trials takes, on one thread."""
    import optuna

    command = [Path(python).parent / "pxp-optimize", "--trials", str(args.run), "--quiet"]
    for key in (*KEYS, "mean", "std"):
        if (value := getattr(args, key)) is not None:
            command += [f"--{key.replace('_', '-')}", str(value)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        took = time.monotonic() - started
        if status:
            sys.exit(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}")
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/pxp.db")
        done = [trial.duration.total_seconds() for trial in study.get_trials() if trial.duration is not None]
        phases = {name: round(spent["processor"]) for name, spent in study.user_attrs.get("phases", {}).items()}
    spent, memory = used.ru_utime + used.ru_stime, used.ru_maxrss // 1024
    return f"{spent:.0f} s, {sum(done) / took:.0%} of the time in {len(done)} trials, {memory} MiB, {phases or ''}"


def trials(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each method and seed, measured by the version that this interpreter has."""
    import torch
    from pxp_optimize.optimize.evaluation.curve import measure
    from pxp_optimize.optimize.evaluation.evaluate import make_plan
    from pxp_optimize.optimize.evaluation.phases import HOLDOUT, phase, recorded
    from pxp_optimize.optimize.evaluation.task import Unseen
    from pxp_optimize.optimize.options import Options
    from pxp_optimize.optimize.search.space import Space
    from pxp_optimize.optimize.study.prepare import prepare
    from pxp_optimize.pruning import auc

    torch.set_num_threads(1)
    options = {key: getattr(args, key) for key in KEYS}
    for key in ("mean", "std"):
        if (text := getattr(args, key)) is not None:
            options[key] = tuple(float(part) for part in text.split(","))
    for seed in range(args.seeds):
        prepared = prepare(Options.parsed(**options, flat=args.flat, seed=seed, device="cpu"))
        space = Space.named("auto", prepared.layers, True, mixed="+" in prepared.task.units)
        for name in args.methods.split(","):
            task = replace(prepared.task, curves={}, plans={}, unpruned={})
            with recorded() as phases:
                with phase(PHASES[0]):
                    plan = make_plan(task, space.fixed_composites()[name], task.rates[-1])
                with phase(PHASES[1]):
                    unseen = [Unseen(HOLDOUT, task.holdout, -1.0, HOLDOUT)]
                    curve, others = measure(task, plan, task.search, unseen=unseen)
            areas = [auc(task.rates, found.accuracy) for found in (curve, others[HOLDOUT])]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            yield {
                "seed": seed,
                "method": name,
                **{name: phases.spent[name]["processor"] for name in PHASES},
                "auc": areas[0],
                "holdout": areas[1],
                "memory": memory,
            }


if __name__ == "__main__":
    main()
