"""Whether this machine can run pxp-optimize: what is installed, where it computes and keeps things, and a tiny run."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ..studies.wording import counted, reason
from .lazy import LazyModule

if TYPE_CHECKING:
    import psutil
    import torch
    from packaging import requirements

    from . import front
    from .study import prepare as preparing
else:
    psutil = LazyModule("psutil")
    torch = LazyModule("torch")
    requirements = LazyModule("packaging.requirements")
    front = LazyModule(".front", __package__)
    preparing = LazyModule(".study.prepare", __package__)

PACKAGE = "pxp-optimize"
SHOWN = ("torch", "torchvision", "zennit", "optuna")
"""Packages whose versions are worth reading where nothing is wrong with them."""
NEEDED = 2**30
"""Bytes of memory and of disk below which a run is likely to fail."""


@dataclass(frozen=True)
class Finding:
    """What is so. fix: what mends it; None where nothing is wrong."""

    name: str
    text: str
    fix: str | None = None


def findings() -> Iterator[Finding]:
    """What all checks find, one after the other; a check that fails itself is a finding too."""
    for name, check in CHECKS.items():
        try:
            yield from check()
        except Exception as error:  # whatever a broken installation raises
            yield Finding(name, f"{type(error).__name__}: {reason(error)}", FIXES[name])


def _packages() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding(PACKAGE, metadata.version(PACKAGE))
    for line in metadata.requires(PACKAGE) or []:
        wanted = requirements.Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not wanted.specifier.contains(version, prereleases=True):
            fix = f"pip install '{wanted.name}{wanted.specifier}'"
            yield Finding(wanted.name, f"{version}, but {wanted.specifier} is needed", fix)
        elif wanted.name in SHOWN:
            yield Finding(wanted.name, version)


def _extras() -> Iterator[Finding]:
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        if extra == "test":
            continue
        wanted = [
            of.name
            for of in map(requirements.Requirement, metadata.requires(PACKAGE) or [])
            if of.marker is not None and of.marker.evaluate({"extra": extra}) and not of.marker.evaluate({"extra": ""})
        ]
        installed = {distribution.name for distribution in metadata.distributions()}
        missing = [name for name in wanted if name not in installed]
        told = "installed" if not missing else f"not installed: pip install '{PACKAGE}[{extra}]'"
        yield Finding(f"[{extra}]", f"{', '.join(wanted)} {told}")  # nothing is wrong without


def _devices() -> Iterator[Finding]:
    found = [f"cpu ({os.cpu_count()} cores, {counted(torch.get_num_threads(), 'thread')})"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({device.name}, {_gib(device.total_memory)})")
    if torch.backends.mps.is_available():
        found.append("mps")
    idle = len(found) == 1 and shutil.which("nvidia-smi") is not None
    fix = "install a torch built for CUDA: https://pytorch.org/get-started/locally" if idle else None
    yield Finding("devices", ", ".join(found) + (", but not the NVIDIA card that is here" if idle else ""), fix)


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    fix = "close other programs, or give a small --batch-size" if memory.available < NEEDED else None
    yield Finding("memory", f"{_gib(memory.available)} of {_gib(memory.total)} free", fix)


def _cache() -> Iterator[Finding]:
    folder = preparing.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        fix = f"make it writable (chmod u+rwx {folder}), or set XDG_CACHE_HOME to a folder that is"
        yield Finding("cache", f"{folder}: {error.strerror or error}", fix)
        return
    full = f"make room on the disk of {folder}" if free < NEEDED else None
    yield Finding("cache", f"{folder}, writable, {_gib(free)} free", full)


def _run() -> Iterator[Finding]:
    """A study of five trials with a network of two convolutions, and its smaller network."""
    started = time.monotonic()
    nn = torch.nn
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        images, classes = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
        data = images, classes
        storage = str(Path(folder) / "doctor.db")
        found = front.optimize(
            nn.Sequential(*layers, nn.Linear(8, 2)),
            reference=data,
            search=data,
            trials=5,
            rates=[0, 0.5],
            storage=storage,
            quiet=True,
        )
        small = found.prune(rate=0.5)
        device = next(small.parameters()).device
        logits = small(images.to(device))
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the smaller network gives logits that are not finite")
    yield Finding("run", f"5 trials and a smaller network on {device} in {time.monotonic() - started:.0f} s")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "packages": _packages,
    "extras": _extras,
    "devices": _devices,
    "memory": _memory,
    "cache": _cache,
    "run": _run,
}
FIXES = {
    "packages": f"pip install --force-reinstall {PACKAGE}",
    "extras": f"pip install --force-reinstall {PACKAGE}",
    "devices": "reinstall torch and torchvision of one release: https://pytorch.org/get-started/locally",
    "memory": "pip install --force-reinstall psutil",
    "cache": "set XDG_CACHE_HOME to a folder that is writable",
    "run": "mend what is named above; if nothing is, this is a bug: report it with these lines",
}
"""What to do where a check itself fails."""
