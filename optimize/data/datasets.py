"""Which images: the embedded digits, Imagenette, or a folder of the user's own.

A `Dataset` names its classes and knows where each image lies; nothing is decoded here (`images.decode`).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...pruning.registry import Registry
from ...studies.errors import UserError
from ...studies.wording import reason, some
from ..progress import Progress, no_progress

Indices: TypeAlias = NDArray[np.int64]

DIGITS_SIZE = 32
# The weights trained on the digits depend on this split, so it does not follow the study's seed.
_DIGITS_SPLIT_SEED = 0


@dataclass(frozen=True)
class Split:
    """The images of one split and their classes.

    labels: int64 class indices, shape (n,). images: one entry a label, either a file or the RGB image itself
    (uint8, shape (height, width, 3)).
    """

    labels: Indices
    images: Sequence[Path] | NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> Split:
        """The rows of these indices, in their order."""
        if isinstance(self.images, np.ndarray):
            return Split(self.labels[indices], self.images[indices])
        return Split(self.labels[indices], [self.images[i] for i in indices])


@dataclass(frozen=True)
class Dataset:
    """A data set with its classes, in the order of their indices.

    logits: the ImageNet logit of each class where all of them are ImageNet's, otherwise None.
    """

    name: str
    classes: tuple[str, ...]
    logits: tuple[int, ...] | None
    train: Split
    val: Split


def open_dataset(spec: str, *, seed: int, cache: Path, progress: Progress = no_progress) -> Dataset:
    """Open one of `DATASETS` or the image folder at the path `spec`, without decoding anything.

    An image folder holds `train/` and `val/` (or other names of `SPLIT_NAMES`), each with one folder of images a
    class; or the class folders themselves, and then half of each class, drawn by `seed`, is the validation split.

    Raises:
        UserError: no such folder, no images, fewer than two classes, splits whose classes differ or whose names are
            not understood, or Imagenette can not be downloaded to `cache`.
    """
    if spec in DATASETS:
        return DATASETS[spec](cache, progress)
    root = Path(spec).expanduser()
    if not root.is_dir():
        known = " or ".join(f"'{name}'" for name in DATASETS)
        raise UserError(f"--data {spec}: no such folder; give a folder of images, {known}")
    return _image_folder(root, seed)


def class_logits(dataset: Dataset, num_classes: int) -> tuple[int, ...]:
    """The logit that stands for each class of `dataset` in a network with `num_classes` outputs.

    Classes mapped to ImageNet use their ImageNet logits, except in a network with exactly as many outputs as
    the data has classes, which was made for these data.

    Raises:
        UserError: the network has too few outputs.
    """
    own = tuple(range(len(dataset.classes)))
    logits = own if dataset.logits is None or num_classes == len(own) else dataset.logits
    if max(logits) >= num_classes:
        raise UserError(
            f"the network has {num_classes} outputs, but {dataset.name} has {len(own)} classes"
            f"{' (ImageNet logits)' if logits is not own else ''}; give --weights trained on these data"
        )
    return logits


def _digits(cache: Path, progress: Progress) -> Dataset:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(g).resize((DIGITS_SIZE,) * 2, Image.Resampling.BILINEAR) for g in grey]
    images = np.stack([np.asarray(image.convert("RGB")) for image in large])
    whole = Split(data.target.astype(np.int64), images)
    return Dataset("digits", tuple("0123456789"), None, *_halve(whole, _DIGITS_SPLIT_SEED))


def _imagenette(cache: Path, progress: Progress) -> Dataset:
    from torchvision.datasets import Imagenette
    from torchvision.models import ResNet18_Weights

    home = cache / "imagenette"
    folder = home / "imagenette2-320"
    if not folder.is_dir():
        try:
            home.mkdir(parents=True, exist_ok=True)
            # Unpacked beside its place and moved there whole: a download cut short is never taken for one
            # that is complete, and of two runs at once the later finds the place taken, by the same files.
            with (
                tempfile.TemporaryDirectory(dir=home) as scratch,
                progress("download imagenette", 1) as advance,
            ):
                Imagenette(scratch, split="train", size="320px", download=True)
                if not folder.is_dir():
                    os.replace(Path(scratch) / folder.name, folder)
                advance(1)
        except (OSError, RuntimeError) as error:
            if not folder.is_dir():
                raise UserError(
                    f"can not download imagenette ({reason(error)}); connect to the internet, or unpack "
                    f"imagenette2-320.tgz into {home}, or use --data digits or a folder"
                ) from error
    dataset = _image_folder(folder, seed=0)
    if dataset.logits is None:
        raise UserError(f"{folder} does not hold imagenette; delete it to download it again")
    names = ResNet18_Weights.DEFAULT.meta["categories"]
    return Dataset("imagenette", tuple(names[i] for i in dataset.logits), dataset.logits, dataset.train, dataset.val)


DATASETS: Registry[Callable[[Path, Progress], Dataset]] = Registry(
    "data set", {"digits": _digits, "imagenette": _imagenette}
)
"""Data that have a name: what opens each, given a folder to keep files in and what to tell how far it is."""
register_dataset = DATASETS.register

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev", "test", "testing", "eval")}
"""What the splits of an image folder are called, in capitals or not, alone or as one word of a name (`training_set`);
of several that there are the first counts."""


def _image_folder(root: Path, seed: int) -> Dataset:
    try:
        splits = _splits(root)
        if splits is not None:
            (classes, train), (val_classes, val) = map(_scan, splits)
            if classes != val_classes:
                odd = sorted(set(classes) ^ set(val_classes))
                names = " and ".join(f"{split.name}/" for split in splits)
                raise UserError(f"{root}: {names} differ in their classes: {some(odd)}; make them the same")
        else:
            classes, whole = _scan(root)
            train, val = _halve(whole, seed)
    except OSError as error:
        raise UserError(f"can not read {root}: {reason(error)}") from error
    if len(classes) < 2:
        raise UserError(f"{root} has one class only ({classes[0]}); at least two are needed")
    synsets = imagenet_synsets()
    logits = tuple(synsets[c] for c in classes) if all(c in synsets for c in classes) else None
    return Dataset(str(root.resolve()), classes, logits, train, val)


def _splits(root: Path) -> tuple[Path, Path] | None:
    """The folders of the training and of the validation split, or None if those below `root` are classes.

    Raises:
        UserError: one of the two only, or folders that look like splits under names that are not understood.
    """
    inner = {entry: [folder.name for folder in _folders(entry)] for entry in _folders(root)}
    whole = {entry: [entry.name.lower()] for entry in inner}
    # A class may be called bullet_train, but it holds images and no classes.
    bare = {entry: names for entry, names in inner.items() if len(names) > 1 and not _holds_images(entry)}
    parts = {entry: re.findall("[a-z]+", re.sub("(?=[A-Z][a-z])", " ", entry.name).lower()) for entry in bare}
    for words in (whole, parts):
        train, val = (_first(names, words) for names in SPLIT_NAMES.values())
        if train is not None and val is not None and train != val:
            return train, val
    known = " and ".join(f"{split}/ ({', '.join(names)})" for split, names in SPLIT_NAMES.items())
    for split, other in (("train", "val"), ("val", "train")):
        alone = _first(SPLIT_NAMES[split], whole)
        if alone is not None and inner[alone] and not _holds_images(alone):
            raise UserError(f"{root} has no {other}/ folder beside {alone.name}/; give it {known}, or classes alone")
    if len(bare) > 1 and bare.keys() == inner.keys() and len(set(map(tuple, bare.values()))) == 1:
        raise UserError(
            f"{root}: {some([entry.name for entry in inner])} hold the same folders, as splits do and classes do not; "
            f"name splits {known}, or put all images of a class into one folder"
        )
    return None


def _first(names: Sequence[str], words: Mapping[Path, Sequence[str]]) -> Path | None:
    """The folder with the first of these names among its words, if there is one."""
    return next((entry for name in names for entry, has in words.items() if name in has), None)


def _holds_images(root: Path) -> bool:
    return any(path.suffix.lower() in readable_suffixes() and path.name[0] != "." for path in root.iterdir())


def _folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _scan(root: Path) -> tuple[tuple[str, ...], Split]:
    """The class folders below `root`, by name, and their images, by path."""
    classes = [entry.name for entry in _folders(root)]
    if not classes:
        raise UserError(f"{root} has no class folders; put the images of each class into a folder of its own")
    labels: list[int] = []
    images: list[Path] = []
    for label, name in enumerate(classes):
        found = _images_below(root / name)
        if not found:
            raise UserError(f"{root / name} has no images that Pillow reads; add some or remove the folder")
        labels += [label] * len(found)
        images += found
    return tuple(classes), Split(np.array(labels, dtype=np.int64), images)


def _images_below(root: Path) -> list[Path]:
    """The images in a folder and its sub-folders, by path; each once, whatever links lead to it."""
    found: dict[str, Path] = {}
    seen = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up, which os.walk would follow again and again
            inner.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(folder, name)
            if name[0] != "." and path.suffix.lower() in readable_suffixes():
                target = os.path.realpath(path) if path.is_symlink() else os.path.join(real, name)
                found[target] = min(found.get(target, path), path)
    return sorted(found.values())


def _halve(split: Split, seed: int) -> tuple[Split, Split]:
    """Two halves, class by class; of an odd number of images the first half gets one more."""
    rng = np.random.default_rng(seed)
    first = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        rows = rng.permutation(np.flatnonzero(split.labels == label))
        first[rows[: (len(rows) + 1) // 2]] = True
    return split.take(np.flatnonzero(first)), split.take(np.flatnonzero(~first))


@once
def imagenet_synsets() -> dict[str, int]:
    """The logit of each of the 1000 ImageNet classes, by WordNet synset id (`n01440764`: 0)."""
    return {synset: i for i, synset in enumerate(_data_file("imagenet_synsets.txt").split())}


def _data_file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="ascii")


@once
def readable_suffixes() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)
