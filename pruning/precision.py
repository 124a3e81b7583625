"""How exactly a network computes: relevance and repair in full float32, accuracies also with less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def computed_in(precision: str, device: torch.device | str = "cpu") -> Iterator[None]:
    """Computes with one of `names.PRECISIONS`; all settings are afterwards what they were. Also a decorator.

    fp32: products of float32 in float32, also where torch lets convolutions on CUDA use TF32, as it does by
    default. tf32: factors of matrix products and convolutions rounded to 10 bits of mantissa, on CUDA devices of
    compute capability 8.0 on; elsewhere the same as fp32. bf16: torch's autocast to bfloat16 on the device.

    Raises:
        KeyError: another name.
    """
    mode = {"fp32": "ieee", "tf32": "tf32", "bf16": "ieee"}[precision]
    settings = _settings()
    before = [getattr(owner, key) for owner, key in settings]
    with ExitStack() as stack:
        for (owner, key), value in zip(settings, before, strict=True):
            stack.callback(setattr, owner, key, value)
            setattr(owner, key, mode if key == "fp32_precision" else mode == "tf32")
        for kind in ("cpu", "cuda"):  # what the caller computes in is not asked for here
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if precision == "bf16":
            stack.enter_context(torch.autocast(torch.device(device).type, torch.bfloat16))
        yield


@contextmanager
def repeatable() -> Iterator[None]:
    """Within the block convolutions on CUDA give the same each time. (`cudnn.flags` would do, but also sets whether
    TF32 is used, in the way that from torch 2.9 on may not be mixed with the other one.)"""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _settings() -> list[tuple[Any, str]]:
    """Where torch keeps whether CUDA may use TF32: owner and attribute, of convolutions and of products."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):  # from torch 2.9 on; the older switches may not be mixed with these
        return [(backends.cudnn.conv, "fp32_precision"), (backends.cuda.matmul, "fp32_precision")]
    return [(backends.cudnn, "allow_tf32"), (backends.cuda.matmul, "allow_tf32")]
