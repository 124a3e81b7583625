"""Optuna's pruners by name, and the race that they decide: trials that are surely worse stop half-way.

The search samples come in chunks, the same ones in every trial (`curve.chunks`). After each chunk a trial
reports, and the pruner says whether to go on. A trial that was stopped is in state PRUNED, and counts as finished.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...studies import internals
from .view import is_seen

if TYPE_CHECKING:  # Optuna takes a while to import, and the command line needs only the names
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

Factory = Callable[[int], "BasePruner"]


def _wilcoxon(chunks: int) -> BasePruner:
    """Stops what the signed-rank test finds worse than the best trial, chunk paired with chunk (Wilcoxon 1945)."""
    from optuna.pruners import WilcoxonPruner

    return WilcoxonPruner(p_threshold=P_THRESHOLD, n_startup_steps=2)


def _median(chunks: int) -> BasePruner:
    """Stops what is worse than half of the trials were after as many chunks."""
    from optuna.pruners import MedianPruner

    return MedianPruner()


def _hyperband(chunks: int) -> BasePruner:
    """Successive halving from several starts, chunks being what is spent (Li et al. 2018).

    Which start a trial gets depends on its number and the study's name.
    """
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(min_resource=1, max_resource=chunks, reduction_factor=3)


NONE = "none"
PRUNERS: dict[str, Factory] = {"wilcoxon": _wilcoxon, "median": _median, "hyperband": _hyperband}
P_THRESHOLD = 0.02
REPORTS = {"wilcoxon": "chunk", "median": "mean", "hyperband": "mean"}
"""What a pruner's trials report after each chunk: the AUC of that `chunk`, or the `mean` of all so far."""


def make_pruner(name: str, chunks: int) -> BasePruner:
    """The pruner of a study whose search samples come in so many chunks.

    Raises:
        KeyError: unknown name.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.pruners import NopPruner

    if name == NONE:
        return NopPruner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # Wilcoxon's
        return PRUNERS[name](chunks)


def reports_of(study: Study | None, pruner: str) -> str:
    """What the trials of a study report, one of `REPORTS`' values: what they did before, or what the pruner reads."""
    known = None if study is None else study.user_attrs.get("reports")
    return known or REPORTS.get(pruner, "chunk")


@dataclass(frozen=True)
class Race:
    """What the trials of a study report, and whether they are stopped.

    The fixed composites and trials that were put into the queue with their parameters are never stopped; of a
    grid, where all are, only the fixed ones are spared.

    sizes: samples of each chunk. reports: what the study shows, `chunk` or `mean`; the pruner gets what it reads
    (`REPORTS`), whichever that is. pruner: its name. grid: as above.
    """

    sizes: Sequence[int]
    reports: str
    pruner: str
    grid: bool = False

    def stopper(self, study: Study, trial: Trial, lag: int = 1) -> Stopper | None:
        """What asks the study's pruner after each chunk of the trial; None for one that runs to its end. lag: see
        `view`."""
        spared = is_given(trial) or (internals.stored(study, trial).system_attrs.get("fixed_params") and not self.grid)
        if self.pruner == NONE or spared or len(self.sizes) < 2:
            return None
        return Stopper(self, self._mirror(study, trial, lag), trial.number)

    def value(self, aucs: Sequence[float], reports: str) -> float:
        """What is reported after the last of these chunks."""
        if reports == "chunk":
            return aucs[-1]
        return mean_auc(aucs, self.sizes)

    def close(
        self, study: Study, trial: Trial, aucs: Sequence[float], stopper: Stopper | None, stopped_at: float | None
    ) -> None:
        """Reports a measured trial to the study; twice does no harm.

        aucs: of the chunks that were measured. stopped_at: of a trial that was stopped, the AUC over their samples.
        It is the last report, at the same step for all such trials (one more than there are chunks): Optuna
        takes the last one for the trial's value, and its samplers compare stopped trials by it.
        """
        values = self._values(aucs, stopped_at, self.reports)
        if stopped_at is not None:
            trial.set_user_attr("stopped_after", len(aucs))
        known = internals.stored(study, trial).intermediate_values
        for step, value in values.items():
            if step not in known:  # Optuna would warn
                trial.report(value, step)
        for key, left in (stopper.left_behind() if stopper else {}).items():
            internals.set_system_attr(study, trial, key, left)

    def _values(self, aucs: Sequence[float], stopped_at: float | None, reports: str) -> dict[int, float]:
        """All that a trial reports, by step."""
        values = {chunk: self.value(aucs[:chunk], reports) for chunk in range(1, len(aucs) + 1)}
        return values if stopped_at is None else {**values, len(self.sizes) + 1: stopped_at}

    def _mirror(self, study: Study, race_of: Trial, lag: int) -> Study:
        """A copy of the study in memory, as far as pruners look. Trials that run now, or may run beside this one, have
        not reported anything."""
        import optuna
        from optuna.trial import TrialState

        storage = optuna.storages.InMemoryStorage()
        number = storage.create_new_study(study.directions, study.study_name)
        for trial in study.get_trials(deepcopy=False):
            copied = copy.copy(trial)
            copied.params, copied.distributions, copied.user_attrs = {}, {}, {}
            if not trial.state.is_finished() or not is_seen(trial, race_of, lag):
                copied.state, copied.system_attrs, copied.intermediate_values = TrialState.RUNNING, {}, {}
            else:
                copied.system_attrs = {key: left for key, left in trial.system_attrs.items() if key.startswith(RUNG)}
                if self.reports != REPORTS[self.pruner] and (aucs := trial.user_attrs.get("chunks")):
                    stopped_at = trial.intermediate_values.get(len(self.sizes) + 1)
                    copied.intermediate_values = self._values(aucs, stopped_at, REPORTS[self.pruner])
            storage.create_new_trial(number, template_trial=copied)
        return optuna.Study(study.study_name, storage, pruner=study.pruner)


def mean_auc(aucs: Sequence[float], sizes: Sequence[int]) -> float:
    """The AUC over all samples of the first chunks, since the area is linear in the accuracies."""
    sizes = sizes[: len(aucs)]
    return sum(size * part for size, part in zip(sizes, aucs, strict=True)) / sum(sizes)


def asking(trial: Trial, sizes: Sequence[int]) -> Callable[[int, float], bool] | None:
    """What reports a trial to the pruner of its study, which may be any of Optuna's, and asks it after each chunk (a
    `curve.Stop`).

    A Wilcoxon pruner reads the AUC of each chunk, all others that of the samples so far. None where nothing is asked:
    there is no pruner, there are two objectives, or the samples, of these sizes, are one chunk only.
    """
    from optuna.pruners import NopPruner, WilcoxonPruner

    study = getattr(trial, "study", None)  # a FixedTrial has none
    if study is None or isinstance(study.pruner, NopPruner) or len(study.directions) > 1 or len(sizes) < 2:
        return None
    each = isinstance(study.pruner, WilcoxonPruner)
    aucs: list[float] = []

    def stop(chunk: int, auc: float) -> bool:
        aucs.append(auc)
        trial.report(auc + _tie_break(trial.number, chunk) if each else mean_auc(aucs, sizes), chunk)
        return chunk < len(sizes) and trial.should_prune()

    return stop


def is_given(trial: Trial | FrozenTrial) -> bool:
    """Whether a trial is of a composite that was known before, and so is never stopped."""
    return "fixed" in trial.user_attrs or "given" in trial.user_attrs


class Stopper:
    """Asks a pruner, of a copy of the study: a trial that is cut off leaves nothing behind, and gets the same
    answers when it runs again (Optuna's successive halving writes down that it was asked)."""

    def __init__(self, race: Race, mirror: Study, number: int) -> None:
        self._race = race
        self._trial = internals.trial_of(mirror, number)
        self._mirror = mirror
        self._aucs: list[float] = []

    def __call__(self, chunk: int, auc: float) -> bool:
        self._aucs.append(auc)
        reports = REPORTS[self._race.pruner]
        value = self._race.value(self._aucs, reports)
        if reports == "chunk":
            value += _tie_break(self._trial.number, chunk)
        self._trial.report(value, chunk)
        if chunk == len(self._race.sizes):
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where the best trial reported nothing, Wilcoxon stops nothing
            return self._trial.should_prune()

    def left_behind(self) -> dict[str, Any]:
        """What the pruner wrote down about the trial, for when it is asked about others."""
        return {
            key: value
            for key, value in internals.stored(self._mirror, self._trial).system_attrs.items()
            if key.startswith(RUNG)
        }


def _tie_break(number: int, chunk: int) -> float:
    """Far less than two AUCs can differ by, another value for each trial and chunk, as often above 0 as below.

    Chunks are small, so that many differences between two trials are equal, or 0. With ties SciPy's signed-rank test
    goes through all signs that up to 13 differences may have, which takes seconds; without any it has a table.
    """
    return ((number * 0.754877666 + chunk * 0.569840291) % 1 - 0.5) * 1e-6  # evenly spread (Roberts' R2 sequence)


RUNG = "completed_rung_"
"""How the keys begin under which Optuna's successive halving keeps what a trial reached."""
