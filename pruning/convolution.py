"""Convolutions on maps no larger than their kernel, where a matrix does the same work several times faster.

On the last maps of a network that sees small images (one or two pixels wide), most of a kernel's taps meet
padding only. Written as a matrix over whole maps, the convolution holds just the taps that meet pixels, and the
product of a batch with it is what the hardware is best at. Convolutions in groups have no such matrix: they get
such maps in the order that torch is fast in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .network import Network, clone


class Convolution(nn.Conv2d):
    """A convolution of a graph: `nn.Conv2d`, run as a matrix product wherever that is less work."""

    # The weight, its version and the map's size, with the matrix that was made of them.
    _flat: tuple[Tensor, int, torch.Size, nn.Linear] | None = None

    def forward(self, input: Tensor) -> Tensor:
        flat = self.flat(input.shape[2:])
        if flat is None:
            return super().forward(in_groups_order(self, input))
        return flat(input.flatten(1)).view(len(input), -1, *self.output_size(input.shape[2:]))

    def flat(self, size: torch.Size) -> nn.Linear | None:
        """The linear layer that does the same on flattened maps of this size (height, width); None where the
        convolution itself is less work, or needs less memory. Made once for a weight.

        Its weight has shape (out channels * pixels out, in channels * pixels in).
        """
        weight = self.weight
        if weight.is_meta or not self._is_small(size):  # of shapes alone there is no matrix to keep
            return None
        version = -1 if weight.is_inference() else weight._version
        known = self._flat
        if known is not None and known[0] is weight and known[1:3] == (version, size):
            like = known[3].weight
            if (like.device, like.dtype) == (weight.device, weight.dtype):
                return known[3]
        with torch.inference_mode(False), torch.no_grad():  # kept, and relevance may pass through it later
            flat = self._as_linear(size)
        self._flat = (weight, version, size, flat)
        return flat

    def output_size(self, size: torch.Size) -> tuple[int, int]:
        """Height and width of the output, for those of the input."""
        height, width = (
            (size[axis] + 2 * int(self.padding[axis]) - self.dilation[axis] * (self.kernel_size[axis] - 1) - 1)
            // self.stride[axis]
            + 1
            for axis in range(2)
        )
        return height, width

    def _is_small(self, size: torch.Size) -> bool:
        if self.groups != 1 or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        taps, pixels = self.kernel_size[0] * self.kernel_size[1], size[0] * size[1]
        if pixels > taps:  # more products than the convolution has, whatever it pads
            return False
        height, width = self.output_size(size)
        # no more than twice the weights to keep
        return height > 0 and width > 0 and pixels * height * width <= 2 * taps

    def _as_linear(self, size: torch.Size) -> nn.Linear:
        weight, (height, width) = self.weight, self.output_size(size)
        rows, columns = (
            _taps(self, axis, inside, outside).to(weight.device)
            for axis, (inside, outside) in enumerate(zip(size, (height, width), strict=True))
        )
        # the tap that joins each pixel out with each pixel in, shape (height, width, height in, width in)
        tap = rows[:, None, :, None] * self.kernel_size[1] + columns[None, :, None, :]
        missing = (rows < 0)[:, None, :, None] | (columns < 0)[None, :, None, :]
        picked = weight.detach().flatten(2)[..., tap.clamp(min=0).flatten()]
        picked = picked.view(*weight.shape[:2], height * width, -1).masked_fill(missing.view(height * width, -1), 0)
        matrix = picked.transpose(1, 2).reshape(len(weight) * height * width, -1)
        flat = nn.utils.skip_init(nn.Linear, matrix.shape[1], matrix.shape[0], bias=self.bias is not None)
        flat.weight = nn.Parameter(matrix, requires_grad=False)
        if self.bias is not None:
            flat.bias = nn.Parameter(self.bias.detach().repeat_interleave(height * width), requires_grad=False)
        return flat


def in_groups_order(module: nn.Conv2d, maps: Tensor) -> Tensor:
    """Maps in the order in memory in which a convolution in groups is fast, where they are no larger than its kernel.

    On the CPU it takes up to 200 times as long on others (benchmarks/groups.py)."""
    pixels, taps = maps.shape[2] * maps.shape[3], module.kernel_size[0] * module.kernel_size[1]
    if module.groups == 1 or pixels > taps or maps.device.type != "cpu":
        return maps
    if pixels > 1:
        return maps.contiguous(memory_format=torch.channels_last)
    # of one pixel the order is in the strides alone, and the usual ones do not say it
    return maps.flatten(1)[:, None, None].permute(0, 3, 1, 2)


def _taps(module: nn.Conv2d, axis: int, inside: int, outside: int) -> Tensor:
    """Along one axis, which tap joins a pixel out with a pixel in, shape (pixels out, pixels in); -1 for none."""
    offset = torch.arange(inside) + int(module.padding[axis]) - torch.arange(outside)[:, None] * module.stride[axis]
    tap = offset.div(module.dilation[axis], rounding_mode="floor")
    fits = (offset % module.dilation[axis] == 0) & (tap >= 0) & (tap < module.kernel_size[axis])
    return tap.masked_fill(~fits, -1)


def convolution(module: nn.Module) -> nn.Module:
    """The module as a graph holds it: a plain convolution as a `Convolution`. Changes the module's class."""
    if type(module) is nn.Conv2d:
        module.__class__ = Convolution
    return module


def plain(network: Network) -> Network:
    """The network made of torch's own layers only, for users: they may train it, or change weights in place."""
    modules = {}
    for name, module in network.modules_by_step().items():
        if isinstance(module, Convolution):
            modules[name] = clone(module, _flat=None)
            modules[name].__class__ = nn.Conv2d
    return network.replaced(modules)
