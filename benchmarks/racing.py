"""What each pruner would have saved and lost in a study that measured everything: run by hand, prints a table.

    pxp-optimize --model resnet18 --trials 100 --storage all.db
    python benchmarks/racing.py all.db

The chunks of the study's trials are played to each pruner again: in the order in which they were tried, and in
`--orders` random ones (the fixed and the known composites first, as ever), so that how often the best trial is stopped
is counted over many races and not one. What a sampler would have proposed instead, had it seen less, is not simulated.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState
from pxp_optimize.optimize.search.pruners import PRUNERS, REPORTS, Race, is_given, make_pruner
from pxp_optimize.studies.storage import open_storage


def replay(trials: Sequence[FrozenTrial], sizes: Sequence[int], name: str) -> list[int]:
    """How many chunks a pruner lets each of the trials see, in their order."""
    study = optuna.create_study(direction="maximize", pruner=make_pruner(name, len(sizes)))
    race = Race(sizes, REPORTS[name], name)
    seen = []
    for known in trials:
        study.enqueue_trial({}, user_attrs={"given": {}} if is_given(known) else {})
        trial = study.ask()
        stop = race.stopper(study, trial)
        aucs: list[float] = []
        for auc in known.user_attrs["chunks"]:
            aucs.append(auc)
            if stop is not None and stop(len(aucs), auc):
                break
        stopped = len(aucs) < len(sizes)
        race.close(study, trial, aucs, stop, race.value(aucs, "mean") if stopped else None)
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, known.values[0])
        seen.append(len(aucs))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", help="database of a study that was run with --pruner none")
    parser.add_argument("--study", help="its name, where the database holds several")
    parser.add_argument("--orders", type=int, default=100)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(args.storage, must_exist=True)
    names = [args.study] if args.study else optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=names[0], storage=storage)
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    sizes = study.user_attrs["chunks"]
    first = [trial for trial in trials if is_given(trial)]
    rest = [trial for trial in trials if trial not in first]
    orders = [trials] + [first + random.Random(seed).sample(rest, len(rest)) for seed in range(args.orders)]
    best = max(trials, key=lambda trial: trial.values[0])
    seconds = {key: sum(trial.user_attrs["seconds"][key] for trial in trials) for key in ("relevance", "evaluation")}
    print(f"{study.study_name}: {len(trials)} trials, {len(first)} never stopped; {len(sizes)} chunks")
    print(f"best AUC {best.values[0]:.4f}; " + ", ".join(f"{key} {value:.0f} s" for key, value in seconds.items()))
    print(f"{'pruner':12} {'samples saved':>14} {'in random orders':>17} {'best stopped':>13} {'AUC lost':>9}")
    for name in PRUNERS:
        races = [replay(order, sizes, name) for order in orders]
        total = len(trials) * sum(sizes)
        saved = [1 - sum(sum(sizes[:count]) for count in seen) / total for seen in races]
        kept = [
            max(trial.values[0] for trial, count in zip(order, seen, strict=True) if count == len(sizes))
            for order, seen in zip(orders, races, strict=True)
        ]
        lost = [best.values[0] - value for value in kept]
        often = statistics.mean(value > 0 for value in lost)
        print(
            f"{name:12} {saved[0]:14.0%} {statistics.mean(saved[1:] or saved):17.0%} "
            f"{often:13.0%} {statistics.mean(lost):9.4f}"
        )


if __name__ == "__main__":
    main()
