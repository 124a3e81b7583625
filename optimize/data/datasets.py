"""Where the images come from: the embedded digits, Imagenette, or a folder of the user's own.

A `Dataset` names its classes and knows where each image lies; nothing is decoded before `decode`, which
turns the drawn images into one uint8 tensor, once per study.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache as once
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from ...studies.errors import UserError
from ..options import split_names

Indices: TypeAlias = NDArray[np.int64]
Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""`with progress("decode images", total) as advance: advance(1)` shows one bar; see `no_progress`."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DIGITS_SIZE = 32
DEFAULT_SAMPLES = 500  # at most, for search and for holdout each, to keep a trial short
# The weights trained on the digits depend on this split, so it does not follow the study's seed.
_DIGITS_SPLIT_SEED = 0


def no_progress(label: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """The `Progress` that shows nothing."""
    return nullcontext(lambda steps: None)


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


@dataclass(frozen=True)
class Transform:
    """How an image becomes a network's input: smaller edge to `resize`, centre crop of `size` (pixels), then
    per-channel normalisation of values in [0, 1] with `mean` and `std`."""

    size: int
    resize: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def pixels(self, image: Image.Image) -> Tensor:
        """The RGB image before normalisation: uint8, shape (3, size, size)."""
        resized = tvf.resize(image, [self.resize], interpolation=self.interpolation)
        return tvf.pil_to_tensor(tvf.center_crop(resized, [self.size]))

    def normalize(self, pixels: Tensor) -> Tensor:
        """float32 network input from uint8 pixels of shape (n, 3, size, size)."""
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


# ---------------------------------------------------------------------------------------------- opening


def open_dataset(spec: str, *, seed: int, cache: Path, progress: Progress = no_progress) -> Dataset:
    """Open `digits`, `imagenette` or the image folder at the path `spec`, without decoding anything.

    An image folder holds `train/` and `val/` (or other names of `SPLIT_NAMES`), each with one folder of images a
    class; or the class folders themselves, and then half of each class, drawn by `seed`, is the validation split.

    Raises:
        UserError: no such folder, no images, fewer than two classes, splits whose classes differ or whose names are
            not understood, or Imagenette can not be downloaded to `cache`.
    """
    if spec == "digits":
        return _digits()
    if spec == "imagenette":
        return _imagenette(cache, progress)
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise UserError(f"--data {spec}: no such folder; give a folder of images, 'digits' or 'imagenette'")
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


def pick_classes(dataset: Dataset, spec: str | None, seed: int) -> tuple[int, ...]:
    """The class indices that `--classes` asks for, ascending.

    spec: None for all, a number of classes to draw by `seed`, or a comma-separated list of names or indices
    (a name wins over an index).

    Raises:
        UserError: an unknown class, or fewer than two classes.
    """
    names = dataset.classes
    if spec is None:
        return tuple(range(len(names)))
    wanted = [part for part in split_names(spec) if part]
    if len(wanted) == 1 and wanted[0].isdecimal():
        count = int(wanted[0])
        if not 2 <= count <= len(names):
            raise UserError(f"--classes {spec}: {dataset.name} has {len(names)} classes; draw 2 to {len(names)}")
        drawn = np.random.default_rng(seed).choice(len(names), count, replace=False)
        return tuple(sorted(drawn.tolist()))
    chosen: set[int] = set()
    for part in wanted:
        if part in names:
            chosen.add(names.index(part))
        elif part.isdecimal() and int(part) < len(names):
            chosen.add(int(part))
        else:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise UserError(f"--classes: {dataset.name} has no class {part!r}; it has {shown}")
    if len(chosen) < 2:
        raise UserError(f"--classes {spec}: name at least two classes")
    return tuple(sorted(chosen))


def _digits() -> Dataset:
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
    return any(path.suffix.lower() in _readable_suffixes() and path.name[0] != "." for path in root.iterdir())


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
            if name[0] != "." and path.suffix.lower() in _readable_suffixes():
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
def _readable_suffixes() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN)


# ---------------------------------------------------------------------------------------------- drawing


def draw_splits(
    dataset: Dataset,
    classes: Sequence[int],
    reference_per_class: int,
    search: int | None,
    holdout: int | None,
    seed: int,
) -> dict[str, Indices]:
    """Draw a study's samples: `reference` from `dataset.train`, `search` and `holdout` from `dataset.val`.

    search, holdout: how many in all. They are disjoint, and each has its share of every class (one image at
    least), in random order. None: at most 500, and at most half of the validation images of these classes
    or what the other one leaves. What a class gives depends on the seed and on how many are asked of it only.

    Raises:
        UserError: a class has too few images.
    """

    def rows(split: Split, label: int) -> Indices:
        rng = np.random.default_rng((seed, label))
        return rng.permutation(np.flatnonzero(split.labels == label))

    train = [rows(dataset.train, label) for label in classes]
    val = [rows(dataset.val, label) for label in classes]
    for label, of_train, of_val in zip(classes, train, val, strict=True):
        name = dataset.classes[label]
        if len(of_train) < reference_per_class:
            raise UserError(
                f"class {name} has {len(of_train)} training images, {reference_per_class} are asked for; "
                "lower --reference-samples or leave it out with --classes"
            )
        if len(of_val) < 2:
            raise UserError(
                f"class {name} has too few validation images ({len(of_val)}): one is needed for the search "
                "and one for the holdout; add images or leave it out with --classes"
            )

    sizes = np.array([len(r) for r in val])
    total = int(sizes.sum())
    half = min(DEFAULT_SAMPLES, total // 2)
    if search is None:
        search = half if holdout is None else max(min(half, total - holdout), len(sizes))
    if holdout is None:
        holdout = max(min(half, total - search), len(sizes))
    for option, asked in (("--search-samples", search), ("--holdout-samples", holdout)):
        if asked < len(sizes):
            raise UserError(f"{option} {asked}: fewer than the {len(sizes)} classes; ask for one a class at least")
    if search + holdout > total:
        raise UserError(
            f"{search} search and {holdout} holdout samples are asked for, but {dataset.name} has {total} "
            "validation images of these classes; lower --search-samples or --holdout-samples"
        )
    of_search = share(search, sizes - 1)
    of_holdout = share(holdout, sizes - of_search)
    order = np.random.default_rng(seed)
    return {
        "reference": np.concatenate([r[:reference_per_class] for r in train]),
        # Taken from both ends, so that the size of one does not change which images the other gets.
        "search": order.permutation(np.concatenate([r[:n] for r, n in zip(val, of_search, strict=True)])),
        "holdout": order.permutation(np.concatenate([r[::-1][:n] for r, n in zip(val, of_holdout, strict=True)])),
    }


def unlabelled(dataset: Dataset, classes: Sequence[int], reference: Indices, count: int, seed: int) -> Indices:
    """Rows of the training split for what needs no labels: the reference samples, then others of these classes,
    whatever class they are of. Of fewer than the reference samples as many of each class, as far as that goes.

    Raises:
        UserError: the training split has fewer.
    """
    labels = dataset.train.labels
    others = np.setdiff1d(np.flatnonzero(np.isin(labels, classes)), reference)
    if count > len(reference) + len(others):
        raise UserError(
            f"--repair-samples {count}: {dataset.name} has {len(reference) + len(others)} training images of these "
            "classes; give fewer"
        )
    if count < len(reference):
        of_class = labels[reference]
        turn = np.array([np.count_nonzero(of_class[:row] == label) for row, label in enumerate(of_class)])
        return reference[np.sort(np.argsort(turn, kind="stable")[:count])]
    return np.concatenate([reference, np.random.default_rng((seed, count)).permutation(others)])[:count]


def share(total: int, capacity: Indices) -> Indices:
    """Share `total` out in proportion to `capacity`, at least one each, by largest remainders."""
    spare = capacity - 1
    exact = (total - len(capacity)) * spare / max(spare.sum(), 1)
    counts = np.floor(exact).astype(np.int64)
    missing = total - len(capacity) - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return 1 + counts


# ---------------------------------------------------------------------------------------------- decoding


def decode(
    split: Split,
    indices: Indices,
    transform: Transform,
    *,
    skip_broken: bool = False,
    progress: Progress = no_progress,
    out: Tensor | None = None,
) -> tuple[Tensor, Indices]:
    """Decode these images of `split`, in parallel, upright, as torchvision's own transform would, not normalised.

    Returns uint8 pixels of shape (n, 3, transform.size, transform.size) and the indices they belong to: all
    of `indices`, in order, less the broken ones with `skip_broken`. out: a tensor for them, if not a new one.

    Raises:
        UserError: an image can not be read, and it is not skipped, or none is left.
    """
    chosen = split.take(indices)
    shape = (len(indices), 3, transform.size, transform.size)
    pixels = torch.empty(shape, dtype=torch.uint8) if out is None else out

    def read(row: int) -> Exception | None:
        try:
            pixels[row] = transform.pixels(_open_rgb(chosen.images[row]))
        except Exception as error:  # Pillow's decoders raise whatever their parsing stumbles over
            return error
        return None

    kept = np.ones(len(indices), dtype=bool)
    with progress("decode images", len(indices)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, error in enumerate(pool.map(read, range(len(indices)))):
            if error is not None:
                if not skip_broken:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise UserError(
                        f"can not read the image {chosen.images[row]} ({reason(error)}); "
                        "mend or remove it, or give --skip-broken"
                    ) from error
                kept[row] = False
            advance(1)
    if not kept.any():
        raise UserError("none of the images can be read; look at the folder given with --data")
    for row, source in enumerate(np.flatnonzero(kept)):
        if source != row:  # close up, without a second tensor
            pixels[row] = pixels[source]
    return pixels[: kept.sum()], indices[kept]


def _open_rgb(image: Path | NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    with Image.open(image) as opened:
        with suppress(Exception):  # metadata that cannot be read; a broken image shows below
            ImageOps.exif_transpose(opened, in_place=True)  # as the camera was held
        if opened.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
            grey = np.asarray(opened).astype(np.uint16) >> 8
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if opened.mode in ("I", "F"):  # 32 bits; of unknown scale unless whole numbers that fit into 16
            values = np.asarray(opened)
            if opened.mode == "F" or values.min() < 0 or values.max() > 65535:
                raise ValueError(f"32-bit images (mode {opened.mode}) have no common scale; save it with 8 or 16 bits")
            return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
        if "transparency" in opened.info:  # as Pillow advises; a palette's transparent entries keep their colour
            return opened.convert("RGBA").convert("RGB")
        return opened.convert("RGB")


def content_hash(pixels: Tensor, targets: Tensor) -> str:
    """SHA-256 (hex) of the images and their targets, with their shapes and types."""
    digest = hashlib.sha256()
    for tensor in (pixels, targets):
        array = tensor.cpu().contiguous().numpy()
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def reason(error: BaseException) -> str:
    """The error as one short line."""
    return (str(error) or type(error).__name__).splitlines()[0]
