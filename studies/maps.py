"""Heat maps of a few images that a study keeps, so that its figure needs neither the network nor the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import internals

if TYPE_CHECKING:
    from optuna.study import Study

MAPS = "pxp:maps"
"""The system attribute of a study that holds `KeptMaps` but for its rows, each of which has its own (`pxp:maps:0` and
so on): together they may be more than a database takes for one value (64 kB in MySQL)."""


@dataclass(frozen=True)
class MapRow:
    """An image. image, maps: PNG in base64, in the colours that are shown; the maps of all methods are one strip,
    transparent between them. label: the class that is explained. true, after: the image's own, and the one that the
    pruned network predicts, where that is another one."""

    image: str
    maps: str
    label: str
    true: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class KeptMaps:
    """What a study keeps of its heat maps.

    trial: the number of the one that was best when they were made. rate: what its pruned network has lost of its units;
    0 where there are only maps of the whole network. methods: in the order of the strips, the best one first. size:
    height and width of a map, in pixels. lefts: where each map begins in a strip; of each method the whole network's
    and then, with a rate, the pruned one's.
    """

    trial: int
    rate: float
    methods: Sequence[str]
    size: Sequence[int]
    lefts: Sequence[int]
    rows: Sequence[MapRow]


def keep_maps(study: Study, maps: KeptMaps) -> None:
    """Keeps them with the study, in the place of earlier ones."""
    for index, row in enumerate(maps.rows):
        internals.set_study_attr(study, f"{MAPS}:{index}", {**asdict(row), "trial": maps.trial})
    about = {key: value for key, value in vars(maps).items() if key != "rows"}
    internals.set_study_attr(study, MAPS, {**about, "rows": len(maps.rows)})


def kept_maps(study: Study) -> KeptMaps | None:
    """What a study keeps; None of one of an earlier version, of one that has not ended yet, and of one that was stopped
    while it put others in their place."""
    attrs = internals.study_attrs(study)
    about = attrs.get(MAPS)
    if about is None:
        return None
    rows = [dict(attrs.get(f"{MAPS}:{index}", {"trial": None})) for index in range(about["rows"])]
    if any(row.pop("trial") != about["trial"] for row in rows):
        return None
    return KeptMaps(**{**about, "rows": [MapRow(**row) for row in rows]})
