"""Weights from a checkpoint: found in whatever a trainer nested them in, and fitted to a network.

Every source of weights comes down to tensors by dotted names, so that all of them get the same checks and messages.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..studies.errors import UserError
from ..studies.wording import reason, some

AVERAGED = {"averaged", "average", "avg", "ema", "shadow", "swa"}
"""Words by which trainers name averaged weights."""
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch itself puts into the names of wrapped layers, at any depth."""


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of a state dict's tensors, by sorted name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Bytes, since numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint, by dotted names; nothing in the file is executed."""
    try:
        if path.suffix == ".safetensors" or _is_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(_stand_ins(path)):
            tensors = _flattened(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, or is no checkpoint; save model.state_dict() instead"
        ) from error
    except Exception as error:  # torch's unpickler raises anything on what is no checkpoint
        raise UserError(f"can not read the weights {path} ({reason(error)}); save model.state_dict() again") from error
    if not tensors:
        raise UserError(f"{path} holds no state dict; save model.state_dict()")
    return tensors


class _Inert:
    """Stands for what a checkpoint holds besides tensors: takes anything, and does nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


def _stand_ins(path: Path) -> list[Any]:
    """For each class or function that a checkpoint names and torch does not read (options, figures of NumPy, paths), as
    `safe_globals` takes them, one that does nothing: such files are read without theirs being imported or called."""
    try:
        return [(_Inert, name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)]
    except Exception:  # of another format, or none: whatever reads it says so
        return []


def _flattened(content: object) -> OrderedDict[str, Tensor]:
    """The tensors in nested dicts, by dotted names: what a trainer nests a state dict in is then, as the names of
    wrappers are, a prefix of its names."""
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    versions: dict[str, Any] = {}

    def add(value: object, path: tuple[str, ...]) -> None:
        if isinstance(value, Tensor):
            tensors[".".join(path)] = value
        elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and len(path) < 8:
            for name, version in getattr(value, "_metadata", {}).items():
                versions[".".join((*path, name)).strip(".")] = version
            for key, inner in value.items():
                add(inner, (*path, key))

    if isinstance(content, Mapping):
        add(content, ())
    tensors._metadata = versions  # type: ignore[attr-defined]
    return tensors


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name: eight bytes, then JSON."""
    with path.open("rb") as file:
        return file.read(10)[8:] == b'{"'


def weights_for(tensors: Mapping[str, Tensor], module: nn.Module) -> tuple[OrderedDict[str, Tensor], str]:
    """The weights for `module`, under its names and in float32; and, where there are others, which these are."""
    named = {_modern(name): tensor for name, tensor in tensors.items()}
    prefix, others = _prefixes(named, module)
    plain: OrderedDict[str, Tensor] = OrderedDict()
    left = []
    for name, tensor in named.items():
        if not name.startswith(prefix):
            left += [name] if tensor.dim() else []  # a single number is a count or a figure
            continue
        name = name.removeprefix(prefix)
        if getattr(module, "aux_logits", None) is False and name.startswith(("aux1.", "aux2.", "AuxLogits.")):
            continue  # heads that only their training uses
        plain[name] = tensor.float() if tensor.is_floating_point() else tensor
    # The layers' versions, by which torch and torchvision mend the names of old files; formats other than
    # torch's own do not keep them.
    versions = {_modern(f"{name}."): value for name, value in getattr(tensors, "_metadata", {}).items()}
    versions = {
        name.removeprefix(prefix).strip("."): value
        for name, value in versions.items()
        if name.startswith(prefix) or not prefix
    }
    plain._metadata = versions or module.state_dict()._metadata  # type: ignore[attr-defined]
    choice = ""
    if others:
        choice = f", {_called(prefix)}; not {' or '.join(map(_called, others))}"
    if left := [name for name in left if not name.startswith(tuple(others))]:
        choice += f"; without {some(left, 3)}"
    return plain, choice


def _modern(name: str) -> str:
    """A tensor's name without torch's wrappers, and for DenseNet's published files, which still have the names of
    torchvision 0.1, the present one."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", WRAPPERS.sub("", name))


def _prefixes(tensors: Mapping[str, Tensor], module: nn.Module) -> tuple[str, list[str]]:
    """What the names of the weights for `module` begin with, and what those of others begin with that fit as well.

    That is the prefix under which most of the module's names are found, and with its shapes: a trainer's or a
    wrapper's ("state_dict.", "module.", "model.net."), or "" where under none even half of them are. Of weights that
    fit equally well the averaged ones win, then the first.
    """
    own = {name: value.shape for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    own = {name: shape for name, shape in own.items() if not name.endswith("num_batches_tracked")}
    fits: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        for i in range(len(parts)):
            shape = own.get(".".join(parts[i:]))
            if shape is not None:
                prefix = "".join(f"{part}." for part in parts[:i])
                found, shaped = fits.get(prefix, (0, 0))
                fits[prefix] = found + 1, shaped + (shape == tensor.shape)
    best = max(fits.values(), default=(0, 0))
    if 2 * best[0] < len(own) or not own:
        return "", []
    equal = [prefix for prefix, fit in fits.items() if fit == best]
    chosen = next(filter(_is_averaged, equal), equal[0])
    return chosen, [prefix for prefix in equal if prefix != chosen]


def _is_averaged(prefix: str) -> bool:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", prefix)
    return not AVERAGED.isdisjoint(word.lower() for word in words)


def _called(prefix: str) -> str:
    return f"{prefix.rstrip('.') or 'those outside'}{' (averaged)' if _is_averaged(prefix) else ''}"


def fit(module: nn.Module, state: OrderedDict[str, Tensor], description: str) -> None:
    """Load all of `state` into all of `module`, or say what does not fit."""
    own = module.state_dict()
    mismatched = [name for name, tensor in state.items() if name in own and own[name].shape != tensor.shape]
    shapes = [f"{n} ({tuple(state[n].shape)}, not {tuple(own[n].shape)})" for n in mismatched]
    for name in mismatched:
        del state[name]
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{description} do not fit: {reason(error)}; choose the --model they belong to") from error
    missing = [n for n in result.missing_keys if n not in mismatched and not n.endswith("num_batches_tracked")]
    faults = (("missing", missing), ("unexpected", result.unexpected_keys), ("of another shape", shapes))
    found = [f"{len(names)} {fault}: {some(names, 3)}" for fault, names in faults if names]
    if found:
        raise UserError(f"{description} do not fit: {'; '.join(found)}; choose the --model they belong to")
