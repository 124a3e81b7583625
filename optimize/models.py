"""Which networks: torchvision's classifiers, our own, or one from a function of the user's."""

from __future__ import annotations

import difflib
import math
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import GoogLeNet, Inception3, VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings

from ..pruning.graph import logits_of
from ..studies.errors import UserError
from ..studies.wording import reason, some
from .data.datasets import Dataset, class_logits
from .data.digits import DIGITS_TRANSFORM, load_or_train, seeded
from .data.images import Transform
from .functions import call, takes_classes
from .progress import Progress, no_progress
from .weights import fit, read_checkpoint, state_hash, weights_for

IMAGENET_CLASSES = 1000
# For a network that says nothing of its input: what most classifiers trained on ImageNet expect.
IMAGENET_TRANSFORM = Transform(size=224, resize=256)


@dataclass
class LoadedModel:
    """A classifier ready to be explained: on the CPU, float32, in eval mode, without gradients.

    num_classes: the number of its logits. description: which weights, and where from. weights_hash: SHA-256
    (hex) of its state dict.
    """

    module: nn.Module
    num_classes: int
    transform: Transform
    description: str
    weights_hash: str


def load_model(
    spec: str,
    weights: str,
    dataset: Dataset,
    *,
    cache: Path,
    image_size: int | None = None,
    resize: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    check: Callable[[nn.Module, Transform], object] = lambda module, transform: None,
) -> LoadedModel:
    """Load the network `spec` with `weights`, and the transform that its input needs.

    weights: `default`, the name of torchvision weights (`IMAGENET1K_V2`), or a state dict's file. `default`
    means, for a function of the user's, the network as it returns it; with the embedded digits,
    weights trained on them (on `device`, by default the CPU) and kept in `cache`; otherwise torchvision's
    default weights.

    The transform is the weights' own; for a file, that of the digits if these are the data, otherwise that of
    the architecture's default weights (224 pixels and ImageNet's mean and std if it has none). image_size, resize
    (in pixels), mean and std (one value or three, for images in [0, 1]) override it. With image_size alone
    torchvision's weights get images resized in proportion, weights of others the whole of the smaller edge. The
    global random state is left as it was.

    check: called with the network and its transform before it is trained here, to refuse it in time.

    Raises:
        UserError: an unknown model or weights, no network connection, weights that do not fit, a network that
            does not take such images or has fewer logits than the data has classes.
    """
    if spec.endswith(".py"):
        raise UserError(f"--model {spec} names a file and no function in it: give {spec}:NAME")
    if ":" not in spec:
        _check_name(spec)
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size {image_size}: give a number of pixels")
    with seeded():
        if weights != "default" or ":" in spec:
            source = _Source({}, f"as {spec} returns it", None) if weights == "default" else _read(spec, weights)
        elif dataset.name == "digits":
            source = None
        else:
            source = _hub(spec, "DEFAULT")
        if source is not None and source.transform is not None and dataset.logits is None:
            raise UserError(
                f"{source.description} know ImageNet's classes, which those of {dataset.name} are not "
                "(folders named by synset id, such as n01440764); give --weights FILE trained on these data"
            )

        transform = source.transform if source is not None else None
        if transform is None:
            transform = DIGITS_TRANSFORM if dataset.name == "digits" else _own_transform(spec)

        if source is None:
            transform = _override(transform, image_size, resize, mean, std)
            module = build_model(spec, len(dataset.classes), transform.size)
            how = transform
            _count_logits(spec, module, how)  # before the training, not after
            description = load_or_train(
                spec,
                module,
                dataset,
                transform,
                cache,
                device=device,
                progress=progress,
                check=lambda: check(module, how),
            )
        else:
            classes = len(dataset.classes) if dataset.logits is None else IMAGENET_CLASSES
            module, size, description = _fit(spec, source, image_size, classes)
            if source.transform is None:  # nobody said that its training cut off a margin
                resize = resize or image_size
            if _is_grey(module, size or transform.size):
                transform = transform.grey()
            transform = _override(transform, size, resize, mean, std)

    if any(is_lazy(value) for value in (*module.parameters(), *module.buffers())):
        raise UserError(f"{spec} has layers whose size is not known yet: let it return them after a first batch")
    if any(not isinstance(value, Tensor) for value in module.state_dict().values()):
        raise UserError(f"{spec} holds weights that are no tensors (quantized, maybe): give the model in float")
    module.eval().float().cpu().requires_grad_(False)
    num_classes = _count_logits(spec, module, transform)
    class_logits(dataset, num_classes)
    return LoadedModel(module, num_classes, transform, description, state_hash(module.state_dict()))


@dataclass(frozen=True)
class OwnModel:
    """A network of ours: build(num_classes, image_size), and the transform it is meant for."""

    build: Callable[[int, int], nn.Module]
    transform: Transform


def vit_tiny(num_classes: int, image_size: int) -> nn.Module:
    """A vision transformer that a laptop trains: 6 layers of 4 heads, width 64, patches of 4 pixels."""
    return VisionTransformer(
        image_size=image_size,
        patch_size=4,
        num_layers=6,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=num_classes,
    )


OWN_MODELS: dict[str, OwnModel] = {"vit_tiny": OwnModel(vit_tiny, DIGITS_TRANSFORM)}


def supported_models() -> list[str]:
    """The names that `build_model` knows, sorted."""
    return sorted([*OWN_MODELS, *torchvision.models.list_models(module=torchvision.models)])


class Size(NamedTuple):
    """Of a network: parameters, and multiply-adds for an image of the size that its weights are for."""

    params: int
    macs: float


def size_of(name: str) -> Size:
    """How large a network of `supported_models` is, with the classes that it has by itself. Nothing is computed."""
    if name not in OWN_MODELS:
        meta = torchvision.models.get_model_weights(name).DEFAULT.meta  # what torchvision counted
        return Size(meta["num_params"], meta["_ops"] * 1e9)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        module = build_model(name).eval()
        module(torch.empty(1, *OWN_MODELS[name].transform.shape))
    return Size(sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops() / 2)


def build_model(
    spec: str, num_classes: int | None = None, image_size: int | None = None, classes: int | None = None
) -> nn.Module:
    """Build a network with random weights, in which only the classification logits are computed.

    spec: a name of `supported_models`, or `package.module:function`, where the current folder counts too, or
    `path/file.py:function`; the function is called without arguments, or with `num_classes` where it takes that. None:
    the architecture's own number of classes and image size. classes: of the data, for a function that cannot do without
    `num_classes`.

    Raises:
        UserError: no such model (with the nearest names), or it can not be built.
    """
    if ":" in spec:
        return call(spec, num_classes, classes)
    _check_name(spec)
    try:
        if spec in OWN_MODELS:
            own = OWN_MODELS[spec]
            return own.build(num_classes or 10, image_size or own.transform.size)
        options: dict[str, Any] = {}
        if num_classes is not None:
            options["num_classes"] = num_classes
        if image_size is not None and spec.startswith("vit_"):
            options["image_size"] = image_size
        if image_size is not None and spec.startswith("maxvit_"):
            options["input_size"] = (image_size, image_size)
        if spec in ("googlenet", "inception_v3"):
            options.update(aux_logits=False, init_weights=False)
        return torchvision.models.get_model(spec, weights=None, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"{spec} can not be built for images of {image_size} pixels ({reason(error)}); "
            "give another --image-size or --model"
        ) from error


def _check_name(spec: str) -> None:
    names = supported_models()
    if spec not in names:
        near = difflib.get_close_matches(spec, names, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise UserError(
            f"unknown model {spec!r}; {hint}'pxp-optimize models' lists all, "
            "and a network of your own is package.module:function or file.py:function"
        )


def _own_transform(spec: str) -> Transform:
    if spec in OWN_MODELS:
        return OWN_MODELS[spec].transform
    if ":" in spec:
        return IMAGENET_TRANSFORM
    return _transform_of(torchvision.models.get_model_weights(spec).DEFAULT)


def _transform_of(weights: Any) -> Transform:
    preset = weights.transforms()
    return Transform(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation,
    )


def _override(
    transform: Transform,
    size: int | None,
    resize: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Transform:
    if size is not None:
        transform = replace(transform, size=size, resize=round(size * transform.resize / transform.size))
    if resize is not None:
        if resize < transform.size:
            raise UserError(f"--resize {resize}: the images cut out of it have {transform.size} pixels (--image-size)")
        transform = replace(transform, resize=resize)
    if mean is not None:
        transform = replace(transform, mean=_of_channels("--mean", mean, len(transform.mean)))
    if std is not None:
        transform = replace(transform, std=_of_channels("--std", std, len(transform.std)))
        if min(transform.std) <= 0:
            raise UserError(f"--std {transform.std}: must be positive")
    return transform


def _of_channels(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        taken = "one or three, for images in [0, 1]" if channels == 3 else "one: the network takes grey images"
        raise UserError(f"{option}: {len(values)} values; give {taken}")
    return tuple(float(value) for value in values) * (channels // len(values))


def _count_logits(spec: str, module: nn.Module, transform: Transform) -> int:
    """How many logits the network returns for an image of this kind."""
    module.eval()
    parameter = next(module.parameters(), torch.zeros(()))
    size = transform.size
    image = torch.zeros(1, *transform.shape, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            logits = logits_of(module(image))
    except Exception as error:  # whatever the user's network raises
        channels = _channels(module)
        if channels not in (1, 3) and _takes(module, image[:, :1].expand(-1, channels, -1, -1)):
            raise UserError(
                f"{spec} takes images of {channels} channels, and files have 3 or 1: give it its images in Python, "
                f"by pxp_optimize.optimize.optimize(model, ...), or let a function (file.py:function) return it behind "
                f"a layer that makes {channels} of 3, as nn.Conv2d(3, {channels}, 1) does"
            ) from error
        raise UserError(
            f"{spec} does not take images of {size} x {size} pixels ({reason(error)}); "
            "give another --image-size or --model"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{spec} returned {what} for one image; a classifier returns logits of shape (1, classes)")
    return logits.shape[1]


def _is_grey(module: nn.Module, size: int) -> bool:
    """Whether a network takes images of one channel, and not of three."""
    if _channels(module) != 1:
        return False
    image = torch.zeros(1, 1, size, size, dtype=next(module.parameters()).dtype)
    return _takes(module.eval(), image) and not _takes(module, image.expand(-1, 3, -1, -1))


def _channels(module: nn.Module) -> int:
    """How many channels the first convolution reads: in most networks those of the images."""
    return next((layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), 3)


@torch.no_grad()
def _takes(module: nn.Module, images: Tensor) -> bool:
    try:
        module(images)
    except Exception:  # whatever the user's network raises
        return False
    return True


@dataclass(frozen=True)
class _Source:
    """Tensors by dotted names, what to call them, and their transform if it is known to be torchvision's."""

    state: Mapping[str, Tensor]
    description: str
    transform: Transform | None


def _read(spec: str, weights: str) -> _Source:
    path = Path(weights).expanduser()
    if path.is_file():
        return _Source(read_checkpoint(path), f"weights of {path}", None)
    # the names of torchvision's weights may have a point, but are in capitals behind it
    if path.suffix.islower() or len(path.parts) > 1:
        raise UserError(f"--weights {weights}: no such file")
    return _hub(spec, weights)


def _hub(spec: str, name: str) -> _Source:
    """Torchvision's weights of this name for this model, from torch.hub's cache or the internet."""
    if ":" in spec or spec in OWN_MODELS:
        raise UserError(f"{spec} has no weights {name!r}; give --weights FILE, or 'default' with --data digits")
    known = torchvision.models.get_model_weights(spec)
    short = name.rpartition(".")[2]
    if short not in known.__members__ or name not in (short, f"{known.__name__}.{short}"):
        raise UserError(
            f"--weights {name}: neither a file nor weights of {spec}, which are "
            + some([member.name for member in known])
        )
    weights = known[short]
    try:
        state = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"can not download {weights} ({reason(error)}); connect to the internet, "
            f"or fetch {weights.url} elsewhere and give --weights FILE"
        ) from error
    return _Source(state, f"{weights} of torchvision", _transform_of(weights))


def _fit(spec: str, source: _Source, image_size: int | None, classes: int) -> tuple[nn.Module, int | None, str]:
    """Build the network with as many classes as the checkpoint's last layer has, and load the checkpoint.

    Returns also the image size in pixels: `image_size`, or else what a position embedding in the checkpoint
    is made for, or None. An embedding for another size than the one asked for is interpolated. And a description
    of the weights, which says what was chosen where the checkpoint holds more than these.

    classes: of the data, for a function of the user's that has to be told.
    """
    module = build_model(spec, classes=classes)
    if not source.state:
        return module, image_size, source.description
    state, choice = weights_for(source.state, module)
    description = source.description + choice
    size = image_size
    last = _last_layer(module)
    own_rows = len(module.get_parameter(f"{last}.weight")) if last else 0
    held = state.get(f"{last}.weight")
    rows = own_rows if held is None or held.dim() == 0 else len(held)
    if ":" in spec:
        if rows != own_rows and takes_classes(spec):
            module = build_model(spec, rows)
    else:
        size = image_size or _embedded_size(module, state)
        if rows != own_rows or size is not None:
            module = build_model(spec, rows, size)
        if isinstance(module, VisionTransformer) and size is not None:
            state = interpolate_embeddings(size, module.patch_size, state)
        if isinstance(module, (GoogLeNet, Inception3)):
            module.transform_input = True  # as in torchvision's pretrained ones and those tuned from them
    fit(module, state, description)
    return module, size, description


def _last_layer(module: nn.Module) -> str:
    """The name of the layer that computes the logits: in all `supported_models` the last registered; "" for none."""
    names = [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return names[-1] if names else ""


def _embedded_size(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The image size, in pixels, that a vision transformer's position embedding in `state` is made for."""
    embedding = state.get("encoder.pos_embedding")
    if not isinstance(module, VisionTransformer) or embedding is None or embedding.ndim != 3:
        return None
    return math.isqrt(embedding.shape[1] - 1) * module.patch_size
