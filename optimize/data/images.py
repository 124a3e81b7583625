"""From files and arrays to pixels: decoded, upright, resized and cropped as a network expects them."""

from __future__ import annotations

import hashlib
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from ...studies.errors import UserError
from ...studies.wording import reason
from ..progress import Progress, no_progress
from .datasets import Indices, Split

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """How an image becomes a network's input: smaller edge to `resize`, centre crop of `size` (pixels), then
    per-channel normalisation of values in [0, 1] with `mean` and `std`: three for RGB images, one for grey ones."""

    size: int
    resize: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an input: channels, height, width."""
        return (len(self.mean), self.size, self.size)

    def grey(self) -> Transform:
        """The same for networks that take one channel, normalised by the mean of the three."""
        return replace(self, mean=(statistics.mean(self.mean),), std=(statistics.mean(self.std),))

    def pixels(self, image: Image.Image) -> Tensor:
        """An RGB image before normalisation: uint8, of `shape`. Grey is its luminance (ITU-R 601)."""
        if len(self.mean) == 1:
            image = image.convert("L")
        resized = tvf.resize(image, [self.resize], interpolation=self.interpolation)
        return tvf.pil_to_tensor(tvf.center_crop(resized, [self.size]))

    def normalize(self, pixels: Tensor) -> Tensor:
        """float32 network input from uint8 pixels, shape (n, *shape)."""
        mean, std = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


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

    Returns uint8 pixels of shape (n, *transform.shape) and the indices they belong to: all
    of `indices`, in order, less the broken ones with `skip_broken`. out: a tensor for them, if not a new one.

    Raises:
        UserError: an image can not be read, and it is not skipped, or none is left.
    """
    chosen = split.take(indices)
    shape = (len(indices), *transform.shape)
    pixels = torch.empty(shape, dtype=torch.uint8) if out is None else out

    def read(row: int) -> Exception | None:
        try:
            pixels[row] = transform.pixels(open_rgb(chosen.images[row]))
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


def open_rgb(image: Path | NDArray[np.uint8]) -> Image.Image:
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
