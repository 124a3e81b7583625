"""When each unit goes: what a study keeps of a trial's ranking, in few characters, and how it is read again."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

STEPS = "pxp:steps"
"""The system attribute of a trial that holds `pack`'s text."""
UNITS = "units"
"""The study attribute with the number of units in each layer, in the order in which rankings count them. Studies of
earlier versions lack it."""
MOST_UNITS = 8192
"""Of larger networks so many units are kept, evenly spaced."""


def pack(outlived: NDArray[np.integer], most: int = MOST_UNITS) -> str:
    """How many of the rates each unit outlives, shape (units,), in few characters of ASCII; of `most` units."""
    kept = outlived.astype("<u2")[:: _stride(len(outlived), most)]
    return base64.b85encode(zlib.compress(kept.tobytes(), 9)).decode()


def unpack(packed: str) -> NDArray[np.uint16]:
    """What `pack` kept: of every unit, or of every second or third one of a large network."""
    return np.frombuffer(zlib.decompress(base64.b85decode(packed)), dtype="<u2")


def removed_by_layer(packed: str, units: Mapping[str, int], rates: Sequence[float]) -> dict[str, list[float]]:
    """The part of each layer's units that is gone at each rate; of a large network estimated from the units kept.

    units: of each layer, in the ranking's order. A layer of which no unit was kept is left out.

    Raises:
        ValueError: another number of units than the ranking has.
    """
    outlived = unpack(packed)
    total = sum(units.values())
    positions = np.arange(total)[:: _stride(total)]
    if len(positions) != len(outlived):
        raise ValueError(f"a ranking of {len(outlived)} units is not one of {len(positions)}")
    layer_of = np.searchsorted(np.cumsum(list(units.values())), positions, side="right")
    found = {}
    for index, name in enumerate(units):
        own = outlived[layer_of == index]
        if len(own):
            found[name] = [float((own <= step).mean()) for step in range(len(rates))]
    return found


def _stride(n_units: int, most: int = MOST_UNITS) -> int:
    return -(-n_units // most)
