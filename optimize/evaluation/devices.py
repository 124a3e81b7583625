"""Where to compute, and how precisely a device can."""

from __future__ import annotations

import re

import torch

from ...studies.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu)|(mps)|cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:N or mps")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no MPS device: give --device auto")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UserError("no CUDA device, or a torch built without CUDA: give --device auto")
        if int(match[3] or 0) >= count:
            raise UserError(f"no device {name}: the last one is cuda:{count - 1}")
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises:
        UserError: TF32 elsewhere than on CUDA, or on CUDA a device too old for it or for bfloat16.
    """
    cuda = device.type == "cuda"
    if precision == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise UserError(
            f"--precision tf32: {device} has no TF32 (CUDA devices of compute capability 8.0 or newer have); "
            "give fp32 or bf16"
        )
    if precision == "bf16" and cuda:
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported():
                raise UserError(f"--precision bf16: {device} has no bfloat16; give fp32")
