"""What more trials would have gained in studies of heat maps: run by hand, prints a table.

    pxp-optimize --model resnet18 --objective faithfulness --trials 100 --rescore 1 --sampler tpe --storage tpe.db
    python benchmarks/budgets.py tpe.db cmaes.db random.db

A row is a study; a cell what the composite that was best on the search images after so many trials has on the holdout
images (SRG), and how much more that is than the known composite's that is best on the search images, with a 95 %
interval, paired over images. With `*` it is significantly better than each known composite (Holm over them).
"""

from __future__ import annotations

import argparse

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from pxp_optimize.studies.best import kept_score, score_of
from pxp_optimize.studies.comparison import holm
from pxp_optimize.studies.faithfulness import interval
from pxp_optimize.studies.report import fixed_trials
from pxp_optimize.studies.storage import open_storage


def gains(trial: FrozenTrial, study: optuna.Study) -> np.ndarray:
    """The gain of each holdout image."""
    kept = study.user_attrs["holdout"].get(str(trial.number)) or kept_score(trial, "holdout")
    return np.array(kept["each"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storages", nargs="+", help="databases of studies that were run with --rescore 1")
    parser.add_argument("--trials", type=int, nargs="+", default=[25, 50, 100])
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"| study | best known | {' | '.join(f'{count} trials' for count in args.trials)} |")
    print("| --- " * (2 + len(args.trials)) + "|")
    for path in args.storages:
        storage = open_storage(path, must_exist=True)
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            known = {label: trial for label, trial in fixed_trials(study).items() if trial.values}
            first = max(known, key=lambda label: score_of(known[label]))
            cells = [f"{first} {gains(known[first], study).mean():.3f}"]
            for count in args.trials:
                best = max(trials[:count], key=score_of)
                own = gains(best, study)
                against = {label: interval(own - gains(trial, study)) for label, trial in known.items()}
                corrected = holm({label: of.p for label, of in against.items()})
                surely = all(of.value > 0 and corrected[label] < 0.05 for label, of in against.items())
                of = against[first]
                cells.append(f"{own.mean():.3f}, {of.value:+.3f} [{of.low:+.3f}, {of.high:+.3f}]{' *' * surely}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
