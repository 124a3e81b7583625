"""Which trial of a study is its best.

The highest of many AUCs is in part luck, of a trial with just these images. So the few highest are measured again on
samples that they were not chosen by (`optimize.rescore`), and what counts among them is the mean of both: the first
score too, since, chosen by it or not, a trial is measured by it as well as any other. (Where both are equally noisy,
what a trial is expected to be worth rises with their mean.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FAITHFULNESS = "faithfulness"
"""The objective of studies that judge heat maps and prune nothing. What other studies keep as a trial's accuracies is
of these the gain: by how much the target's probability is higher if the least relevant regions go first."""
AUC = "auc"
"""The trial attribute that holds the AUC over the units, where a trial is judged by a cost: its value is another area
then."""
PRUNING = "pruning"
"""The trial attribute that holds the trial's own schedule and repair, where the study searches them: JSON values."""
RESCORED = "rescored"
"""The study attribute that holds the new scores: by trial number, `{"auc": ..., "on": which samples}`, "area" in place
of "auc" where trials are judged by a cost. It is None where the relevance is not finite with these samples."""

SAVED = "saved"
"""The study attribute that says, by trial number, what is saved at 95 % of the accuracy on the holdout samples: the
`rate`, and the part of each cost."""

UNSEEN = "pxp:unseen"
"""The trial attribute, one that samplers and pruners do not read (a system attribute), that holds its scores on samples
that no search sees, as they were measured on its networks: by the samples' name, `{"auc": ..., "accuracy": [...]}`
(`stored_score`)."""


def check_trials(study: Study) -> None:
    """Refuse a study into which another program has put trials.

    Raises:
        UserError: a finished trial without a composite, or without its curve.
    """
    from optuna.trial import TrialState

    rates = study.user_attrs.get("rates")
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        composite, accuracy = (trial.user_attrs.get(key) for key in ("composite", "accuracy"))
        whole = isinstance(accuracy, list) and (rates is None or len(accuracy) == len(rates))
        if not isinstance(composite, dict) or not whole:
            raise UserError(
                f"trial {trial.number} of study {study.study_name!r} was not made by pxp-optimize: "
                "take another study, or another name with --study"
            )


def cost_of(study: Study) -> str | None:
    """The cost that a study's trials are judged by; None where that is the AUC, alone or beside a cost."""
    objective: str = study.user_attrs.get("config", {}).get("objective", "auc")
    return None if objective.startswith(("auc", FAITHFULNESS)) else objective


def explains(study: Study) -> bool:
    """Whether a study's trials are judged by their heat maps."""
    objective: str = study.user_attrs.get("config", {}).get("objective", "auc")
    return objective.startswith(FAITHFULNESS)


def check_prunes(study: Study) -> None:
    """Refuse a study that says nothing of pruning.

    Raises:
        UserError: it judges heat maps.
    """
    if explains(study):
        raise prunes_nothing(f"study {study.study_name!r}")


def prunes_nothing(what: str) -> UserError:
    """The error of what judges heat maps where something is to be pruned."""
    return UserError(
        f"{what} judges heat maps (--objective {FAITHFULNESS}) and prunes nothing: "
        "a study of another objective, which may begin with its composite (--from best.json), does"
    )


def heading_of(study: Study) -> str:
    """What a study's trials are judged by, as a person reads it."""
    if explains(study):
        return "SRG"
    return "AUC" if cost_of(study) is None else "area"


def measure_of(study: Study) -> str:
    """What a study's trials are judged by, as it is called in JSON: "auc" or "area"."""
    return "auc" if cost_of(study) is None else "area"


def score_of(trial: FrozenTrial) -> float:
    """What a complete trial is judged by: the area over a cost, or the AUC, also where it has a second objective; 0 of
    any other trial."""
    return trial.values[0] if trial.values else 0.0


def auc_of(trial: FrozenTrial) -> float:
    """The AUC over the units of a complete trial; 0 of any other."""
    found: float = trial.user_attrs.get(AUC, score_of(trial))
    return found


def judged(score: Mapping[str, Any]) -> float | None:
    """What a stored score says by the measure of its study."""
    found: float | None = score["area"] if "area" in score else score["auc"]
    return found


def stored_score(score: Any) -> dict[str, Any]:
    """A score on unseen samples (`evaluation.evaluate.Score`, or a whole evaluation) as a study keeps it."""
    found = {"auc": score.auc, "accuracy": list(score.accuracy)}
    if hasattr(score, "kept"):
        found |= score.kept()
    area = getattr(score, "area", None)
    return found if area is None else {**found, "area": area, "costs": list(score.costs)[: len(score.accuracy)]}


def kept_score(trial: FrozenTrial, name: str) -> dict[str, Any] | None:
    """A trial's score on unseen samples of this name, if it was measured while its networks existed (`UNSEEN`)."""
    found: dict[str, Any] | None = trial.system_attrs.get(UNSEEN, {}).get(name)
    return found


def search_best(study: Study) -> FrozenTrial:
    """The complete trial with the highest score, the first of equal ones.

    Raises:
        ValueError: no trial is complete.
    """
    from optuna.trial import TrialState

    return max(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=score_of)


def best_trial(study: Study) -> FrozenTrial:
    """The re-scored trial with the highest mean of its two scores; the search's own best where that was not re-scored
    (the study is from before, it went on since, or its run was told not to).

    Raises:
        ValueError: no trial is complete.
    """
    best = search_best(study)
    scores = study.user_attrs.get(RESCORED, {})
    if str(best.number) not in scores:
        return best
    trials = {str(trial.number): trial for trial in study.get_trials(deepcopy=False)}
    # of equal means the one that the search found better, then the earlier one
    number = max(scores, key=lambda n: (_mean(trials[n], judged(scores[n])), score_of(trials[n]), -int(n)))
    return trials[number]


def _mean(trial: FrozenTrial, again: float | None) -> float:
    """Of a trial's two scores; less than any other where there is no second one."""
    return -1.0 if again is None else (score_of(trial) + again) / 2


def candidates(study: Study, count: int) -> list[FrozenTrial]:
    """The complete trials with the highest scores, best first, one of those that rank the units alike."""
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    by_ranking: dict[str, FrozenTrial] = {}
    for trial in sorted(complete, key=lambda trial: (-score_of(trial), trial.number)):
        by_ranking.setdefault(trial.user_attrs.get("ranking_hash", str(trial.number)), trial)
    return list(by_ranking.values())[:count]
