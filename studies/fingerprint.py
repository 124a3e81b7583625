"""What must not change during a study: if it did, the values of its trials could not be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DEFINITIONS = 2
"""Raised whenever a definition changes what a trial's value is: relevance, ranking, curve, AUC."""

LEAST_SQUARES = 8
"""Raised whenever that repair gives other networks; kept with the studies that use it."""

GATES = 2
"""Raised whenever composites pass a gate in another way; kept with the studies of networks that have gates."""

COSTS = 1
"""Raised whenever what networks or units cost is found in another way, prices rank units in another way, or the area
over a cost is another; kept with the studies that have one for an objective."""

BEFORE = ("gate costs", "depthwise costs", "prices of several kinds", "prices", "layer times")
"""Keys of earlier versions that said the same of a part of it."""

VERSIONS = ("definitions", "least-squares", "gates", "costs", *BEFORE)
"""Keys that say how a version of the project measures, not what."""

ADDED = {"precision": "fp32", "draws": 1, "flat": 0.0}
"""Keys that came later, with what holds for a study without them."""

Fingerprint = dict[str, Any]


def fingerprint(
    *,
    model: str,
    weights: str,
    data: str,
    image: Mapping[str, Any],
    classes: Sequence[str],
    samples: Mapping[str, Mapping[str, int | str]],
    units: str,
    rates: Sequence[float],
    schedule: str = "oneshot",
    repair: str = "none",
    precision: str = "fp32",
    draws: int = 1,
    flat: float = 0.0,
    gated: bool = False,
    costs: bool = False,
    explaining: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """The fingerprint as plain JSON values.

    Args:
        model: as the user named it.
        weights: hash of the state dict.
        data: name of the data set, or of its folder.
        image: how an image becomes the network's input: size, mean, std.
        classes: names of the classes in use.
        samples: count of each split's samples, and hash of their pixels and targets.
        units: kind of the units.
        rates: pruning rates.
        schedule, repair: how a ranking is used.
        precision: of the networks whose accuracy is measured.
        draws: of the reference samples, which a trial's value is the mean over.
        flat: differences in accuracy that count as none.
        gated: whether the network has gates.
        costs: whether what networks cost is an objective.
        explaining: what heat maps are judged by, in studies of these.
    """
    return {
        "definitions": DEFINITIONS,
        "model": model,
        "weights": weights,
        "data": data,
        "image": {key: list(value) if isinstance(value, tuple) else value for key, value in image.items()},
        "classes": list(classes),
        "samples": {name: dict(mark) for name, mark in samples.items()},
        "units": units,
        "rates": list(rates),
        "schedule": schedule,
        "repair": repair,
        "precision": precision,
        "draws": draws,
        **({"flat": flat} if flat else {}),
        **({"gates": GATES} if gated else {}),
        **({"costs": COSTS} if costs else {}),
        **({"explaining": dict(explaining)} if explaining else {}),
        **({"least-squares": LEAST_SQUARES} if "least-squares" in repair else {}),
    }


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, one readable phrase each; empty if they are the same."""
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, now = (mark.get(key, ADDED.get(key)) for mark in (old, new))
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += [f"{key} {inner}" for inner in difference(before, now)]
            continue
        if isinstance(before, list) and isinstance(now, list) and _short(before) == _short(now):
            # the summaries do not tell them apart: the first entry that differs does
            place = next(index for index, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
            key, before, now = f"{key} number {place + 1}", before[place], now[place]
        found.append(f"{key}: stored {_short(before)}, now {_short(now)}")
    return found


def same_task(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """As `difference`, whatever version measured: for what measures all of it anew."""
    return difference(*({key: value for key, value in mark.items() if key not in VERSIONS} for mark in (old, new)))


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list) and len(value) > 3:
        return f"{len(value)} from {_short(value[0])} to {_short(value[-1])}"
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
