"""The smaller network as a file: weights and masks, nothing that would have to be unpickled.

A safetensors file with the state dict of the pruned (and repaired) network, and a mask for each layer that says which
units of the original are left. The architecture is the original's, made smaller again when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...pruning import Masks, Network, compact, trace, without_constants
from ...pruning.convolution import plain
from .prepare import example_of

PRUNED_FORMAT = "pxp-pruned/1"
MASK = "pxp.mask."
"""What the names of masks begin with."""


def pruned_bytes(network: Network, masks: Masks, about: Mapping[str, Any]) -> bytes:
    """A pruned network as the content of a file.

    about: what the file says of how it was made, as JSON values.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in plain(network).state_dict().items()}
    tensors |= {MASK + name: kept.cpu().to(torch.uint8) for name, kept in masks.items()}
    return save(tensors, {"format": PRUNED_FORMAT, "about": json.dumps(about)})


def load_pruned(model: nn.Module, path: str | Path) -> nn.Module:
    """The pruned network that `pxp-optimize prune` wrote, on the CPU, in eval mode; its parameters can be trained.

    model: the original network, as its architecture; its weights are not used, and it stays as it is.

    Raises:
        ValueError: no such file, or the masks or weights do not fit the model.
        TraceError: see `pruning.trace`.
    """
    image = about_pruned(path).get("image", {})
    example = example_of(image.get("shape") or (len(image["mean"]), image["size"], image["size"])) if image else None
    tensors = load_file(path)
    masks = {name.removeprefix(MASK): tensors.pop(name).bool() for name in [*tensors] if name.startswith(MASK)}
    try:
        network = plain(compact(trace(model, example).to("cpu"), masks).network)
        _add_biases(network, tensors)
        network.load_state_dict(tensors)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit this model: {' '.join(str(error).split())}") from error
    return without_constants(network).requires_grad_()


def about_pruned(path: str | Path) -> dict[str, Any]:
    """What a pruned network's file says of how it was made.

    Raises:
        ValueError: no such file, or it holds no pruned network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if metadata.get("format") != PRUNED_FORMAT:
        raise ValueError(f"{path} holds no pruned network: pxp-optimize prune writes one")
    about: dict[str, Any] = json.loads(metadata.get("about", "{}"))
    return about


def is_pruned(path: Path) -> bool:
    """Whether a file is empty, or holds a pruned network: whether it may be written over by another one."""
    try:
        about_pruned(path)
    except ValueError:
        return path.stat().st_size == 0
    return True


def _add_biases(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Layers that a repair gave a bias they did not have."""
    for name, value in tensors.items():
        owner, _, key = name.rpartition(".")
        if key == "bias":
            layer = network.get_submodule(owner)
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.empty_like(value), requires_grad=False)
