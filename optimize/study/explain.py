"""Heat maps of a study's composites: compared on the holdout images, and as pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.table import Table
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ...attribution import EXPLAINERS, REPLACEMENTS, Composite
from ...attribution.faithfulness import Flipping
from ...attribution.heatmaps import map_batches
from ...pruning import Graph, NotFinite
from ...studies.best import best_trial, score_of
from ...studies.bootstrap import CONFIDENCE, holm
from ...studies.errors import UserError
from ...studies.faithfulness import Paired, interval
from ...studies.report import fixed_trials, name_of, new_table
from ...studies.wording import reason
from ..data.datasets import readable_suffixes
from ..data.images import open_rgb
from ..evaluation.faithfulness import explaining_of, gains_by_replacement
from ..evaluation.task import Task
from ..progress import Progress
from .prepare import Prepared

EDGE, GAP = 160, 4
"""Of a picture's tiles, in pixels: at least so large; between them."""
Explained = Composite | str
"""A composite, or the name of an explainer."""


@dataclass(frozen=True)
class MapLine:
    """A method: its gain on the holdout images, and (None for the best composite) by how much it has more than the
    best. corrected: the difference's p by Holm. replaced: its gain under each replacement, by name."""

    name: str
    gain: Paired
    difference: Paired | None
    corrected: float
    replaced: Mapping[str, float]

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return ""
        if self.corrected >= 1 - CONFIDENCE:
            return "not significant"
        return "worse" if self.difference.value < 0 else "better"


def explained_methods(study: Study) -> tuple[str, dict[str, Explained]]:
    """The best composite's name, and the methods by name: it, the known composites, the other explainers."""
    best = best_trial(study)
    name = f"best (trial {best.number})"
    fixed = {title: trial for title, trial in fixed_trials(study).items() if trial.values}
    known = {title: trial for title, trial in fixed.items() if trial.number != best.number}
    methods: dict[str, Explained] = {
        title: Composite.from_dict(trial.user_attrs["composite"]) for title, trial in {name: best, **known}.items()
    }
    return name, {**methods, **{explainer: explainer for explainer in EXPLAINERS}}


def replacements(task: Task) -> tuple[str, ...]:
    """The ways to replace regions, the study's own first."""
    own = explaining_of(task).flipping.replace
    return (own, *(name for name in REPLACEMENTS if name != own))


def compare_maps(
    task: Task, methods: Mapping[str, Explained], best: str, replacements: Sequence[str], seed: int, progress: Progress
) -> tuple[list[MapLine], list[str]]:
    """A line for each method, on the holdout images, and lines about methods that are missing.

    replacements: the study's own first; the others are measured for the mean only.

    Raises:
        UserError: the best composite gives relevance that is not finite.
    """
    gains: dict[str, dict[str, NDArray[np.float64]]] = {}
    problems: dict[str, str] = {}
    tasks = {replacement: _replaced_by(task, replacement) for replacement in replacements}
    with progress("compare on holdout samples", len(methods)) as advance:
        for name, method in methods.items():
            try:
                found = gains_by_replacement(tasks, method, task.holdout, seed)
                gains[name] = {replacement: np.array(each) for replacement, each in found.items()}
            except NotFinite as error:
                problems[name] = str(error)
            advance(1)
    own = replacements[0]
    if best in problems:
        raise UserError(f"{best}: {problems[best]} on the holdout images; give another --study")
    differences = {n: interval(of[own] - gains[best][own]) for n, of in gains.items() if n != best}
    corrected = holm({name: of.p for name, of in differences.items()})
    lines = [
        MapLine(
            name,
            interval(of[own]),
            differences.get(name),
            corrected.get(name, 1.0),
            {replacement: float(values.mean()) for replacement, values in of.items()},
        )
        for name, of in gains.items()
    ]
    return lines, [f"{name} is left out: {problem}" for name, problem in problems.items()]


def _replaced_by(task: Task, replacement: str) -> Task:
    explaining = explaining_of(task)
    flipping = Flipping(explaining.flipping.patches, replacement, explaining.flipping.steps)
    return replace(task, explaining=replace(explaining, flipping=flipping, quality=None, ends={}))


def map_table(lines: Sequence[MapLine]) -> Table:
    """What is printed."""
    others = list(lines[0].replaced)[1:]
    headings = ("SRG, holdout", "SRG less the best's", "p (Holm)", "", *(f"SRG, {name}" for name in others))
    table = new_table("method", *headings, numbers=[index for index in range(1, 1 + len(headings)) if index != 4])
    for line in lines:
        gain, other = line.gain, line.difference
        table.add_row(
            line.name,
            f"{gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}]",
            "" if other is None else f"{other.value:+.3f} [{other.low:+.3f}, {other.high:+.3f}]",
            "" if other is None else "< 0.001" if line.corrected < 0.001 else f"{line.corrected:.3f}",
            line.verdict,
            *(f"{line.replaced[name]:.3f}" for name in others),
            style=None if other is not None else "bold",
        )
    return table


def map_csv(lines: Sequence[MapLine]) -> str:
    """As CSV, a row a method; differences are empty for the best composite itself."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = ("", "_low", "_high")
    columns = [*(f"srg{end}" for end in ends), *(f"srg_difference{end}" for end in (*ends, "_p", "_p_holm"))]
    writer.writerow(["method", *columns, *(f"srg_{name}" for name in lines[0].replaced)])
    for line in lines:
        of, other = line.gain, line.difference
        found: list[Any] = [line.name, of.value, of.low, of.high]
        found += [""] * 5 if other is None else [other.value, other.low, other.high, other.p, line.corrected]
        writer.writerow([*found, *line.replaced.values()])
    return out.getvalue()


def document(lines: Sequence[MapLine], about: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON values."""
    return {
        "format": "pxp-comparison/1",
        **about,
        "methods": [
            {
                "name": line.name,
                "srg": vars(line.gain),
                "difference": None
                if line.difference is None
                else {**vars(line.difference), "corrected": line.corrected, "verdict": line.verdict},
                "replaced": dict(line.replaced),
            }
            for line in lines
        ],
    }


def shown_methods(study: Study, most: int = 3) -> dict[str, Composite]:
    """What heat maps are drawn by, by title: the best composite, the `most` best known ones, and epsilon. Of those that
    differ only by how they rank units there is one: their maps are the same."""
    best, fixed = best_trial(study), {name: t for name, t in fixed_trials(study).items() if t.values}
    found = {_explained_by(best): (f"best: {name_of(best) or f'trial {best.number}'}", best)}
    for name in sorted(fixed, key=lambda name: -score_of(fixed[name])):
        if len(found) <= most or name == "epsilon":
            found.setdefault(_explained_by(fixed[name]), (name, fixed[name]))
    return {title: Composite.from_dict(trial.user_attrs["composite"]) for title, trial in found.values()}


def _explained_by(trial: FrozenTrial) -> str:
    """What of a trial's composite its heat maps depend on."""
    found: Mapping[str, Any] = trial.user_attrs["composite"]
    return repr([{key: value for key, value in found.items() if key != "ranking"}, found["ranking"].get("start")])


def image_files(folder: Path, most: int) -> list[Path]:
    """The first images of a folder, by name; of folders within it each one's first, then each one's second, and so on.

    Raises:
        UserError: there are none.
    """
    suffixes = readable_suffixes()
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes and path.name[0] != "."]
    if not found:
        raise UserError(f"--images {folder}: no such folder, or no image in it")
    by_folder: dict[Path, int] = {}
    turns = []
    for path in found:
        by_folder[path.parent] = turn = by_folder.get(path.parent, -1) + 1
        turns.append((turn, path))
    return [path for _, path in sorted(turns)][:most]


def draw_files(prepared: Prepared, methods: Mapping[str, Composite], files: Sequence[Path], folder: Path) -> list[Path]:
    """As `draw_maps`, of image files.

    Raises:
        UserError: an image that cannot be read.
    """
    task, transform = prepared.task, prepared.transform
    assert transform is not None
    pixels = []
    for path in files:
        try:
            pixels.append(transform.pixels(open_rgb(path)))
        except Exception as error:  # of many kinds, for a file that is damaged
            raise UserError(f"cannot read {path}: {reason(error)}") from error
    images = transform.normalize(torch.stack(pixels).to(task.graph.device))
    names = [f"{index:03d}-{path.parent.name}-{path.stem}" for index, path in enumerate(files)]
    return draw_maps(task, methods, images, [to_pil_image(of) for of in pixels], names, folder)


def coloured(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map in colours, shape (height, width, 3): zero is black, its largest absolute value the end of the scale."""
    largest = max(float(np.abs(values).max()), float(np.finfo(np.float32).tiny))
    return heat_palette()[((values / largest + 1) * 127.5).round().astype(np.int64)]


def heat_palette() -> NDArray[np.uint8]:
    """The colours of heat maps, shape (256, 3): cold, black, hot."""
    from zennit.image import palette  # its `imgify` takes no palette with every Pillow

    colours: NDArray[np.uint8] = palette("coldnhot")
    return colours


def predicted(task: Task, graph: Graph, images: Tensor) -> Tensor:
    """The logits that a graph of the task predicts for images on its device, of those that compete; shape (n,)."""
    with torch.inference_mode():
        logits = graph.network(images)
        found = logits.argmax(1) if task.logits is None else task.logits[logits[:, task.logits].argmax(1)]
    return found.clone()  # outside of the inference mode, for what asks for gradients at these logits


def draw_maps(
    task: Task,
    methods: Mapping[str, Composite],
    images: Tensor,
    pictures: Sequence[Any],
    names: Sequence[str],
    folder: Path,
) -> list[Path]:
    """Writes a picture for each image: itself, then its heat map by each method, red for the predicted class.

    images: as the network takes them, on its device. pictures: the same as PIL images. names: of the files.
    """
    from PIL import Image, ImageDraw

    targets = predicted(task, task.graph, images)
    maps = {
        title: task.batching.run(
            lambda size, method=method: torch.cat(  # type: ignore[misc]
                list(map_batches(task.graph, method, images, targets, size, task.logits))
            )
        ).cpu()
        for title, method in methods.items()
    }
    height, width = images.shape[-2:]
    scale = max(1, -(-EDGE // max(height, width)))
    size, heading = (width * scale, height * scale), 16
    written = []
    for index, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        tiles = {name: picture.convert("RGB")}
        for title, found in maps.items():
            tiles[title] = Image.fromarray(coloured(found[index].numpy()))
        page = Image.new("RGB", ((size[0] + GAP) * len(tiles) - GAP, size[1] + heading), "white")
        draw = ImageDraw.Draw(page)
        for column, (title, tile) in enumerate(tiles.items()):
            left = column * (size[0] + GAP)
            page.paste(tile.resize(size, Image.Resampling.NEAREST), (left, heading))
            draw.text((left + 2, 2), title[: size[0] // 6], fill="black")
        path = folder / f"{name}.png"
        page.save(path)
        written.append(path)
    return written
