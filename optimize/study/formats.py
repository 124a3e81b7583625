"""The files that a smaller network can be written to, by what their names end in.

`.safetensors` holds weights and masks, and is read again with the architecture (`checkpoint`). `.pt2` and `.onnx` hold
the whole network, for any number of images: torch alone reads the one, an ONNX runtime the other. What they hold is
run before they are written, and its logits compared.
"""

from __future__ import annotations

import copy
import io
import json
import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...pruning import Masks, Network, Registry
from ...studies.document import write_whole
from ...studies.errors import UserError
from ...studies.wording import reason
from .checkpoint import PRUNED_FORMAT, is_pruned, pruned_bytes

CLOSE = 1e-3
"""How far logits of another runtime may be from torch's, as a part of the largest one: sums are in another order."""


@dataclass(frozen=True)
class Small:
    """A smaller network to be written.

    network: all that its masks leave. runs: the same without what is constant, of torch's own layers. masks: the units
    that are left. about: what the file says of how it was made. images: a few inputs, float32, shape
    (n, channels, height, width).
    """

    network: Network
    runs: nn.Module
    masks: Masks
    about: Mapping[str, Any]
    images: Tensor


class Format:
    """A kind of file."""

    def check(self) -> None:
        """Refuse what this installation cannot write.

        Raises:
            UserError: what to install.
        """

    def encode(self, small: Small) -> tuple[bytes, str]:
        """The file's content, and a line that says how it was checked, or nothing.

        Raises:
            UserError: the network cannot be written so.
        """
        raise NotImplementedError

    def is_ours(self, path: Path) -> bool:
        """Whether a file that is there is empty or was written by us, so that it may be written over."""
        if path.stat().st_size == 0:
            return True
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(PRUNED_FORMAT.encode()) >= 0


class Safetensors(Format):
    """Weights and masks, for `load_pruned`."""

    def encode(self, small: Small) -> tuple[bytes, str]:
        return pruned_bytes(small.network, small.masks, small.about), ""

    def is_ours(self, path: Path) -> bool:
        return is_pruned(path)


class ExportedProgram(Format):
    """What `torch.export.load` reads."""

    def encode(self, small: Small) -> tuple[bytes, str]:
        file = io.BytesIO()
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of weights that lie in another order in memory, which are whole
            torch.export.save(exported(small), file, extra_files={NAME: _told(small)})
            file.seek(0)
            found = torch.export.load(file).module()(small.images.cpu())
        return file.getvalue(), f"checked against torch.export.load: {_compared(small, found)}"


class Onnx(Format):
    """What an ONNX runtime reads."""

    def check(self) -> None:
        if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
            raise UserError(f"writing ONNX needs {' and '.join(missing)}: pip install 'pxp-optimize[onnx]'")

    def encode(self, small: Small) -> tuple[bytes, str]:
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.onnx.export(exported(small), dynamo=True, verbose=False, external_data=False, **names)
        assert program is not None
        model: Any = program.model_proto
        model.metadata_props.add(key=NAME, value=_told(small))
        content: bytes = model.SerializeToString()
        if find_spec("onnxruntime") is None:
            return content, "not checked, since onnxruntime is not installed (pip install 'pxp-optimize[onnx]')"
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (found,) = session.run(["logits"], {"images": small.images.cpu().numpy()})
        version = metadata.version("onnxruntime")
        return content, f"checked against onnxruntime {version}: {_compared(small, torch.from_numpy(found))}"


NAME = "pxp-pruned"
"""Under which name a file keeps what it says of itself."""
FORMATS: Registry[Format] = Registry(
    "format", {".safetensors": Safetensors(), ".pt2": ExportedProgram(), ".onnx": Onnx()}, __package__
)
"""By what a file's name ends in."""
register_format = FORMATS.register


def format_of(path: str | Path) -> Format:
    """The format that a file's name asks for.

    Raises:
        UserError: another one, or one that this installation cannot write.
    """
    path = Path(path)
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        *others, last = (path.with_suffix(suffix).name for suffix in FORMATS)
        told = f"which is not what {path.suffix} says" if path.suffix else "and the name does not say which"
        *kinds, other = (suffix[1:] for suffix in FORMATS)
        raise UserError(
            f"{path}: a pruned network is written as {', '.join(kinds)} or {other}, {told}; "
            f"give {', '.join(others)} or {last}"
        )
    found.check()
    return found


def is_ours(path: Path) -> bool:
    """Whether a file that is there may be written over: empty, or one of ours, in the format of its name."""
    found = FORMATS.get(path.suffix.lower())
    return found is not None and found.is_ours(path)


def write_small(path: str | Path, small: Small) -> str:
    """Write a smaller network in the format of the file's name; a line that says how it was checked, or nothing. A
    reader sees the old file or the whole new one.

    Raises:
        UserError: see `format_of`; the network or the file cannot be written.
    """
    content, checked = format_of(path).encode(small)
    write_whole(path, content)
    return checked


def exported(small: Small) -> torch.export.ExportedProgram:
    """The network as a program on the CPU, for any number of images."""
    network = copy.deepcopy(small.runs).cpu().eval().requires_grad_(False)
    batch = torch.export.Dim("batch")
    images = small.images[:2].cpu().clone()
    images = images if len(images) == 2 else images.expand(2, -1, -1, -1).clone()  # one would be taken for a constant
    try:
        with torch.inference_mode(False), torch.no_grad():
            return torch.export.export(network, (images,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # whatever torch cannot export
        raise UserError(f"torch.export does not take this network ({reason(error)}): write .safetensors") from error


def _told(small: Small) -> str:
    return json.dumps({"format": PRUNED_FORMAT, **small.about})


@torch.inference_mode()
def _compared(small: Small, found: Tensor) -> str:
    """How far the logits of what was written are from the network's.

    Raises:
        UserError: farther than rounding explains.
    """
    expected = small.runs(small.images).cpu()
    difference = float((expected - found).abs().max())
    if not difference <= CLOSE * max(1.0, float(expected.abs().max())):
        raise UserError(f"what would be written gives other logits, by up to {difference:.2g}: write .safetensors")
    return f"logits of {len(expected)} images {f'within {difference:.0e}' if difference else 'are the same'}"
