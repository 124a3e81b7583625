"""What is said of a study in words: its settings, what came out, which trial is best and why. For report and
dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..pruning.cost import END
from .best import PRUNING, RESCORED, best_trial, cost_of, explains, heading_of, judged, score_of, search_best
from .curves import curve_of
from .document import PLAIN
from .report import KEPT, failed_text, fixed_trials, no_gain_text, result_cells, result_lines, title
from .steps import UNITS
from .wording import some

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

AUC = (
    "AUC: the area under top-1 accuracy over the part of the units removed, from 0 to 1. "
    f"Sparsity: the largest part that keeps {KEPT:.0%} of the unpruned accuracy."
)
AREA = (
    f"Area: under top-1 accuracy over the part of the cost that is saved, from 0 to {END:.0%}, as a part of that. "
    "AUC: the same over the part of the units removed, from 0 to 1. "
    f"Saved: the largest part that keeps {KEPT:.0%} of the unpruned accuracy."
)


def settings(study: Study) -> dict[str, str]:
    """What a study was run with, as a person reads it; without what it does not know."""
    mark: Mapping[str, Any] = study.user_attrs.get("fingerprint", {})
    config: Mapping[str, Any] = study.user_attrs.get("config", {})
    samples, image, classes = mark.get("samples", {}), mark.get("image", {}), mark.get("classes", [])
    rates, units = study.user_attrs["rates"], study.user_attrs.get(UNITS, {})
    counts = [f"{count} {name}" for name, of in samples.items() if (count := of.get("count")) is not None]
    given: dict[str, object] = {
        "model": mark.get("model"),
        "weights": config.get("weights"),
        "data": mark.get("data"),
        "classes": f"{len(classes)}: {some(classes, 10)}" if classes else None,
        "image size": image.get("size"),
        "samples": ", ".join(counts),
        "units": None if explains(study) else _units(units, mark),
        **(_explaining(mark["explaining"]) if explains(study) else _pruning(rates, config, mark)),
        "objective": config.get("objective", "auc"),
        "space": config.get("space"),
        "sampler": config.get("sampler"),
        "pruner": config.get("pruner"),
        "draws": mark.get("draws"),
        "precision": mark.get("precision"),
        "seed": config.get("seed"),
        "device": study.user_attrs.get("device"),
        "time": _taken(study),
    }
    return {key: _words(value) for key, value in given.items() if value not in (None, "", [])}


def _units(units: Mapping[str, int], mark: Mapping[str, Any]) -> str | None:
    return f"{sum(units.values())} {mark.get('units')} in {len(units)} layers" if units else mark.get("units")


def _pruning(rates: Sequence[float], config: Mapping[str, Any], mark: Mapping[str, Any]) -> dict[str, object]:
    return {
        "rates": f"{len(rates)} from {rates[0]:g} to {rates[-1]:g}",
        **{key: mark.get(key) or config.get(key, PLAIN[key]) for key in ("schedule", "repair")},
    }


def _explaining(mark: Mapping[str, Any]) -> dict[str, object]:
    return {
        "explained": f"the {mark['target']} class",
        "regions": f"{mark['regions']} x {mark['regions']} pixels, removed in {mark['steps']} steps",
        "replaced by": mark["replace"],
    }


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _taken(study: Study) -> str:
    phases = study.user_attrs.get("phases", {})
    return ", ".join(f"{name} {spent['seconds']:.0f} s" for name, spent in phases.items())


def standing(study: Study) -> str:
    """How many trials are done, run and wait."""
    from optuna.trial import TrialState

    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    done, stopped = states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)
    asked = study.user_attrs.get("config", {}).get("trials")
    parts = [f"{done + stopped} of {asked} trials finished" if asked else f"{done + stopped} trials finished"]
    if stopped:
        parts.append(f"{stopped} of them stopped early")
    if running := states.count(TrialState.RUNNING):
        parts.append(f"{running} running")
    return ", ".join(parts)


def findings(study: Study) -> list[str]:
    """Which trial is best and why, what the search gained, and what failed; a sentence or two each."""
    from optuna.trial import TrialState

    failed = failed_text(study)
    ending = [] if failed is None else [f"{failed}."]
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return ["No trial is complete yet.", *ending]
    return [_best(study), _why(study), *_gain(study), *ending]


def _best(study: Study) -> str:
    best = best_trial(study)
    holdout = study.user_attrs.get("holdout", {}).get(str(best.number))
    text = f"The best is {title(best)}: {heading_of(study)} {score_of(best):.4f} on the search images"
    return (
        f"{text}, {judged(holdout):.4f} on the holdout images." if holdout else f"{text}. The holdout is still unseen."
    )


def _why(study: Study) -> str:
    best, first = best_trial(study), search_best(study)
    name = heading_of(study)
    scores = study.user_attrs.get(RESCORED, {})
    if str(best.number) not in scores:
        return (
            f"It has the highest {name} of the search; the highest of many is in part luck, and it was "
            "not scored again."
        )
    again = {number: judged(score) for number, score in scores.items()}
    ordered = sorted(again, key=lambda number: (int(number) != best.number, -(again[number] or 0)))
    found = ", ".join(f"trial {n} -" if again[n] is None else f"trial {n} {again[n]:.4f}" for n in ordered)
    text = (
        f"The highest of many {name}s is in part luck, so the first {len(scores)} were scored again on "
        f"{scores[str(best.number)]['on']}: {found}. The best has the highest mean of both scores"
    )
    return f"{text}." if first.number == best.number else f"{text}; the search alone put {title(first)} first."


def _gain(study: Study) -> list[str]:
    """What the best one has more than the best fixed composite on the holdout samples, or that it has not."""
    if explains(study):
        from .faithfulness import gain_text

        gained = gain_text(study)
        return [] if gained is None else [f"{gained[0].upper()}{gained[1:]}."]
    scores = study.user_attrs.get("holdout", {})
    best = best_trial(study)
    fixed = {
        name: judged(scores[key]) or 0.0
        for name, trial in fixed_trials(study).items()
        if (key := str(trial.number)) in scores
    }
    if str(best.number) not in scores or not fixed:
        return []
    name = max(fixed, key=lambda name: fixed[name])
    if "fixed" in best.user_attrs:
        return ["No gain: the best is one of the fixed composites, which are known without a search."]
    none = no_gain_text(study)
    if none is not None:
        return [f"{none[0].upper()}{none[1:]}.".replace("pxp-optimize compare", "`pxp-optimize compare`")]
    gain = (judged(scores[str(best.number)]) or 0.0) - fixed[name]
    return [
        f"The search gained {gain:.4f} on the holdout images over the best fixed composite, "
        f"{name} ({fixed[name]:.4f}). "
        f"`pxp-optimize compare --study {study.study_name}` says whether that is more than chance."
    ]


SRG = (
    "SRG: the symmetric relevance gain, the area under the target's probability over the part of the image's regions "
    "removed, least relevant first, less the same with the most relevant first."
)


def explanation(study: Study) -> str:
    """What the figures of the table mean."""
    return SRG if explains(study) else AUC if cost_of(study) is None else AREA


def headings(study: Study) -> tuple[str, ...]:
    """Of the run's last table."""
    if explains(study):
        return ("composite", "SRG, search", "SRG, holdout", "95 % interval")
    return tuple(result_cells(result_lines(study))[0])


def table(study: Study) -> list[tuple[str, ...]]:
    """The rows of a run's last table, under `headings`."""
    if explains(study):
        from .faithfulness import rows

        return [(name, *cells[:3]) for name, cells in rows(study)]
    return [tuple(row) for row in result_cells(result_lines(study))[1:]]


def composite_rows(trial: FrozenTrial) -> dict[str, str]:
    """What a trial tried: the rule of each group, then how relevance is passed on and ranked, and the pruning."""
    composite: Mapping[str, Any] = trial.user_attrs.get("composite", {})
    rows = {name: _rule(rule) for name, rule in composite.get("groups", {}).items()}
    layers = composite.get("layers", {})
    rows |= {name: _rule(rule) for name, rule in layers.items()}
    for part in ("attention", "products", "ranking"):
        if found := composite.get(part):
            # layer times are no reading matter
            rows[part] = ", ".join(f"{key} {_number(value)}" for key, value in found.items() if key != "seconds")
    if pruning := trial.user_attrs.get(PRUNING):
        rows["pruning"] = f"{pruning['schedule']}, repair {pruning['repair']}"
    return rows


def _rule(rule: Mapping[str, Any]) -> str:
    numbers = (f"{key} {_number(value)}" for key, value in rule.items() if key != "rule")
    return ", ".join([str(rule.get("rule")), *numbers])


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def study_note(study: Study) -> str:
    """A study in Markdown, for the dashboard."""
    blocks = [
        f"{NOTE} {standing(study)}.",
        *findings(study),
        _markdown([headings(study), *table(study)]),
        explanation(study),
        "### Settings",
        _markdown([("option", "value"), *settings(study).items()]),
        "*Written anew at the end of each run; a note that begins otherwise is left as it is.*",
    ]
    return "\n\n".join(blocks)


NOTE = "**pxp-optimize:**"
"""How the notes begin that may be written anew."""


def trial_note(study: Study, trial: FrozenTrial, picture: str | None = None) -> str:
    """A trial in Markdown, for the dashboard. picture: the address of its curve."""
    from optuna.trial import TrialState

    told = {
        TrialState.COMPLETE: f"{heading_of(study)} {score_of(trial):.4f} on the search images",
        TrialState.PRUNED: f"stopped early after {trial.user_attrs.get('samples', 'some')} search images",
        TrialState.FAIL: f"failed: {trial.user_attrs.get('error', 'its process ended')}",
    }
    blocks = [f"{NOTE} {title(trial)}, {told.get(trial.state, trial.state.name.lower())}."]
    if picture is not None:
        blocks.append(f"![Accuracy over the part of the units removed]({picture})")
    rows = composite_rows(trial)
    if rows:
        blocks.append(_markdown([("layers", "rule"), *rows.items()]))
    if explains(study) and "least_first" in trial.user_attrs:
        columns = (study.user_attrs["rates"], *(trial.user_attrs[key] for key in ("least_first", "most_first")))
        parts = ("part removed", "probability, least relevant first", "most relevant first")
        blocks.append(_markdown([parts, *([f"{part:.0%}" for part in row] for row in zip(*columns, strict=True))]))
        return "\n\n".join(blocks)
    found = [line for samples in ("search", "holdout") if (line := curve_of(study, trial, samples, best=False))]
    if found:
        heads = ("rate", *(f"accuracy, {line.samples}" for line in found))
        blocks.append(
            _markdown(
                [
                    heads,
                    *(
                        (f"{rate:.4g}", *(f"{line.accuracy[index]:.1%}" for line in found))
                        for index, rate in enumerate(study.user_attrs["rates"])
                    ),
                ]
            )
        )
    return "\n\n".join(blocks)


def _markdown(rows: list[Any]) -> str:
    """A table; its first row is the heading."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(cells[0])}", *lines[1:]])
