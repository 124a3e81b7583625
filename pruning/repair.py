"""Repair after pruning, without labels and without training, from the same few samples.

`batchnorm` re-estimates what BatchNorm would normalise by. `least_squares` gives every linear layer and convolution
that is left with fewer inputs, and every one behind those, new weights, in closed form, so that its output is as near
as can be to the unpruned network's. Both walk through the network once, step by step, all samples abreast: a layer sees
what the repaired layers before it give.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compact import check_masks, live_rows
from .curve import Batches
from .graph import Graph
from .masks import Masks
from .network import clone
from .operations.layers import real_rows
from .ridge import drawn_rows, part_of, ridge, ridge_by_group


class Repair:
    """Makes a better network of a compact one."""

    name: str

    @abstractmethod
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        """The repaired form of `small`, the compact form of `graph` under `masks`; neither is changed."""


@dataclass
class BatchNormRepair(Repair):
    """Means and variances re-estimated over the samples (Hatefi et al. do not; an old remedy after pruning).

    The BatchNorms are folded. A folded layer's output is an affine function of what BatchNorm saw, so the new
    statistics follow from its output's, and folding again is one scaling of its weights.

    inputs: float images, shape (n, channels, height, width), unlabelled. chunk: samples in one call of a layer.
    """

    inputs: Batches
    chunk: int = 256
    name = "batchnorm"

    @torch.no_grad()
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        modules: dict[str, nn.Module] = {}
        norms = dict(small.norms)
        for visit in small.network.walk(_chunks(self.inputs, self.chunk)):
            if visit.name not in norms or not isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                continue
            norm = norms[visit.name]
            mean, variance = _moments(visit.outputs)
            spread = norm.gamma.square().clamp(min=torch.finfo(mean.dtype).tiny)
            scale = (variance / spread + norm.eps / norm.std.square()).rsqrt()
            shift = norm.beta - mean * scale
            shape = [-1] + [1] * (visit.outputs[0].dim() - 2)
            visit.outputs = [value.mul_(scale.view(shape)).add_(shift.view(shape)) for value in visit.outputs]
            modules[visit.name] = _rescaled(visit.module, scale, shift)
            norms[visit.name] = replace(norm, std=norm.std / scale)
        return replace(small, network=small.network.replaced(modules), norms=norms)


def _chunks(inputs: Batches, size: int) -> list[Tensor]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def _moments(chunks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (over n, as BatchNorm normalises) of each channel, shape (channels,)."""
    flat = [value.transpose(0, 1).flatten(1) for value in chunks]
    count = sum(value.shape[1] for value in flat)
    mean = torch.stack([value.sum(1) for value in flat]).sum(0) / count
    squares = torch.stack([(value - mean.unsqueeze(1)).square().sum(1) for value in flat]).sum(0)
    return mean, squares / count


def _rescaled(module: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """The layer whose output is `scale * output + shift` for each channel."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias = shift if module.bias is None else module.bias * scale + shift  # type: ignore[operator]
    return clone(module, weight=weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias=bias)


MOST_IMAGES = 512
"""Repairs keep all their images' activations of a layer at a time: of no more images than this."""
ROOM = 2**28
"""Bytes that the unpruned network's outputs may take, to be kept from one repair to the next; and a layer's rows."""
FEW = 64
"""Features of which a layer has at least so many when rows are drawn: more rows cost nothing there."""


@dataclass(frozen=True)
class Mixed:
    """Images, and behind them as many averages of two of them, up to `MOST_IMAGES` in all.

    What a layer is to give, the unpruned network says of any image. So a few images are made to say more, without a
    label and without knowing what changes an image's class (mixup, Zhang et al. 2018, arXiv 1710.09412, mixes targets
    too). Not for statistics: averages have less contrast.
    """

    images: Batches

    def __len__(self) -> int:
        count = len(self.images)
        return max(count, min(2 * count, MOST_IMAGES))

    def __getitem__(self, item: slice) -> Tensor:
        count = len(self.images)
        start, stop, _ = item.indices(len(self))
        parts = [self.images[start : min(stop, count)]] if start < count else []
        if stop > count:
            first, last = max(start, count) - count, stop - count
            apart = max(1, count // 3)  # not half, where each pair would come twice; images may be sorted by class
            parts.append((self.images[first:last] + self._around(first + apart, last + apart)) / 2)
        return torch.cat(parts)

    def _around(self, start: int, stop: int) -> Tensor:
        """The images of these rows, counted on from the first one behind the last."""
        count = len(self.images)
        parts = [self.images[start:stop]] if start < count else []
        if stop > count:
            parts.append(self.images[max(0, start - count) : stop - count])
        return torch.cat(parts)


@dataclass
class LeastSquaresRepair(Repair):
    """Layers with fewer inputs than they had, refitted by ridge regression on the unpruned network's outputs, and the
    layers behind them, which make up for what is still missing.

    A row is a sample at a spatial position or token; the features are what the layer reads there (for a
    convolution the patch). Weights W and bias b minimise `|X W + b - Y|^2 + ridge |W - V|^2`, where Y is the
    unpruned network's output of that layer and V the layer's own weights, sliced: so with few rows the layer
    stays what it was. The ridge is the one of `RIDGES` with the least leave-one-out error. Normal equations are
    summed chunk by chunk, so memory does not grow with the samples' positions. Rows that are tokens count by how much
    the prediction hangs on them (`token_weights`): a class token for more than one of many patches.

    inputs: float images, unlabelled; averages of two are read too (`Mixed`).
    most: a layer whose rows and features are both more is left as it is.
    enough: of rows, for each feature (of `FEW` at least); of many more, at least so many are drawn (`drawn_rows`), and
        of tokens anyway `least`, since a few of them matter most.
    """

    inputs: Batches
    chunk: int = 64
    most: int = 5000
    enough: int = 16
    least: int = 8192
    _unpruned: _Unpruned | None = field(default=None, init=False, repr=False, compare=False)
    name = "least-squares"

    @torch.no_grad()
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        modules: dict[str, nn.Module] = {}
        masks, images = check_masks(graph, masks), Mixed(self.inputs)
        if self._unpruned is None or self._unpruned.graph is not graph:
            self._unpruned = _Unpruned(graph, images, self.chunk)
        originals, outputs = graph.network.modules_by_step(), self._unpruned.outputs()
        behind = _behind_changes(graph, small)
        for visit in small.network.walk(_chunks(images, self.chunk)):
            if visit.name in behind and isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                live = live_rows(graph, masks, visit.name)
                goals = _goals(originals[visit.name], outputs(visit.name), live)
                inputs = [values[0] for values in visit.arguments]
                visit.module = self._refit(visit.module, inputs, goals, self._unpruned.weights.get(visit.name))
                modules[visit.name] = visit.module
        return replace(small, network=small.network.replaced(modules))

    def _refit(
        self, module: nn.Module, inputs: Sequence[Tensor], wanted: Sequence[Tensor], weights: Tensor | None
    ) -> nn.Module:
        weight: Tensor = module.weight  # type: ignore[assignment]
        features = weight[0].numel()
        goals = [_goal_rows(module, goal) for goal in wanted]
        count = sum(map(len, goals))
        if (real := real_rows(module)) is not None and goals[0].shape[1] == len(real):  # the others give zeros
            goals = [goal.new_zeros(len(goal), len(weight)).index_copy_(1, real, goal) for goal in goals]
        # a layer without units left keeps one channel of zeros; attention without heads its bias, which the layers
        # behind it make as good as the mean of what it gave
        if features == 0 or min(features, count) > self.most or goals[0].shape[1] != len(weight):
            return module
        wanted_rows = max(self.enough * max(features, FEW), 0 if weights is None else self.least)
        most = count // max(1, count // wanted_rows)
        drawn = None if most == count else drawn_rows(count, most)
        if drawn is not None and weights is not None:
            weights = weights[drawn.to(weights.device)]
        size = most * features * weight.element_size()  # of the rows, or of one group's
        try:
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                fitted, bias = _fit_groups(module, inputs, goals, drawn, at_once=max(1, ROOM // 4 // size))
            else:
                known = list(_pairs(module, inputs, goals, drawn)) if size <= ROOM else None
                again = known.__iter__ if known is not None else lambda: _pairs(module, inputs, goals, drawn)
                fitted, bias = ridge(again, weight.flatten(1), weights)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # what is left of the network overflows: no fit
            return module
        before = bias.new_zeros(len(bias)) if module.bias is None else module.bias
        fits = fitted.isfinite().all() & bias.isfinite().all()  # not read here: it may lie on a GPU
        return clone(
            module,
            weight=torch.where(fits, fitted.view(weight.shape), weight),
            bias=torch.where(fits, bias, before),  # type: ignore[arg-type]
        )


def _pairs(
    module: nn.Module, inputs: Sequence[Tensor], goals: Sequence[Tensor], drawn: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the layer reads and what it should give, chunk by chunk, at the drawn positions (None: at all)."""
    start = 0
    for value, goal in zip(inputs, goals, strict=True):
        rows = None if drawn is None else part_of(drawn, start, len(goal)).to(goal.device)
        start += len(goal)
        yield _rows(module, value, rows), goal if rows is None else goal[rows]


def _fit_groups(
    module: nn.Conv2d, inputs: Sequence[Tensor], goals: Sequence[Tensor], drawn: Tensor | None, at_once: int
) -> tuple[Tensor, Tensor]:
    """Weights, (units, features of a group), and bias, (units,), fitted so many groups at a time."""
    fits = []
    units = module.out_channels // module.groups
    weight = module.weight.flatten(1).unflatten(0, (module.groups, units))
    channels = zip(*(value.split(at_once * module.weight.shape[1], 1) for value in inputs), strict=True)
    outputs = zip(*(goal.split(at_once * units, 1) for goal in goals), strict=True)
    for some, wanted, prior in zip(channels, outputs, weight.split(at_once), strict=True):
        x, y = (torch.cat(parts) for parts in zip(*_pairs(module, some, wanted, drawn), strict=True))
        fits.append(ridge_by_group(x.unflatten(1, (len(prior), -1)), y.unflatten(1, (len(prior), -1)), prior))
    fitted, bias = (torch.cat(parts).flatten(0, 1) for parts in zip(*fits, strict=True))
    return fitted, bias


AT_ONCE = 8
"""Images in a pass that keeps all their activations for the gradient: few, since nobody has asked whether more fit."""
EVEN = 0.5
"""The part of a token's weight that is the same for all, so that none is without."""


@torch.inference_mode(False)
def token_weights(graph: Graph, chunks: Sequence[Tensor]) -> dict[str, Tensor]:
    """How much each token of a linear layer counts in its refit: shape (tokens of all samples,), of mean 1, by layer.

    Half of it is even; the other half goes by the square of the gradient of the sample's margin (the largest logit less
    the next) at the layer's output for that token: a squared error counts by what it does to the prediction, as in
    Optimal Brain Surgeon (Hassibi and Stork 1993). So no labels are needed. Layers without tokens (rows are images, or
    pixels of a convolution) have no weights: there they change nothing (benchmarks/README.md).
    """
    modules = graph.network.modules_by_step()
    counts = {slot: len(shape) for slot, shape in graph.network.shapes().items()}
    outputs = {step.name: step.output for step in graph.network.steps}
    layers = [name for name, m in modules.items() if isinstance(m, nn.Linear) and counts.get(outputs[name]) == 3]
    squares: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str, output: Tensor) -> Tensor:
        if len(output) != len(chunk):  # tokens come first: rows of several chunks would be in another order
            return output
        output = output if output.requires_grad else output.requires_grad_()
        output.register_hook(lambda gradient: squares[name].append(gradient.square().sum(-1).flatten()))
        return output

    handles = [modules[name].register_forward_hook(lambda _, __, out, name=name: note(name, out)) for name in layers]
    try:
        with torch.enable_grad():
            for chunk in chunks if layers else ():
                logits = graph.network(chunk)
                if logits.requires_grad:
                    best = logits.topk(min(2, logits.shape[1])).values
                    (2 * best[:, 0].sum() - best.sum()).backward()
    finally:
        for handle in handles:
            handle.remove()
    flat = {name: torch.cat(parts) for name, parts in squares.items() if len(parts) == len(chunks)}
    tiny = torch.finfo(torch.float32).tiny
    return {name: EVEN + (1 - EVEN) * each / each.mean().clamp(min=tiny) for name, each in flat.items()}


def _behind_changes(graph: Graph, small: Graph) -> set[str]:
    """Layers that read something else than in the unpruned network, by name. What is changed is noted by the unpruned
    network's slots, since a branch without units leaves no step in the small one."""
    left, originals = small.network.modules_by_step(), graph.network.modules_by_step()
    changed: set[int] = set()
    behind = set()
    for step in graph.network.steps:
        reads_changed = not changed.isdisjoint(step.inputs)
        if reads_changed:
            behind.add(step.name)
        if reads_changed or left.get(step.name) is not originals[step.name]:
            changed.add(step.output)
    return behind


class _Unpruned:
    """What one repair after the other asks of the unpruned network: tokens' weights, and what its layers give (kept if
    there is room, else computed again for each)."""

    def __init__(self, graph: Graph, inputs: Batches, chunk: int) -> None:
        self.graph = graph
        self.weights = token_weights(graph, _chunks(inputs, AT_ONCE))
        self._walk = lambda: graph.network.walk(_chunks(inputs, chunk))
        self._kept = self._keep()

    def _keep(self) -> dict[str, list[Tensor]] | None:
        kept: dict[str, list[Tensor]] = {}
        room = ROOM
        for visit in self._walk():
            if isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                kept[visit.name] = visit.outputs
                room -= sum(value.nbytes for value in visit.outputs)
                if room < 0:
                    return None
        return kept

    def outputs(self) -> Callable[[str], list[Tensor]]:
        """The outputs of a layer by its name. Layers are to be asked for in the network's order."""
        if self._kept is not None:
            return self._kept.__getitem__
        walk = self._walk()
        return lambda layer: next(visit.outputs for visit in walk if visit.name == layer)


def _goals(module: nn.Module, outputs: list[Tensor], live: Tensor | None) -> list[Tensor]:
    """What is wanted of a layer: the unpruned one's outputs, those with these indices (None: all its units')."""
    live = real_rows(module) if live is None else live
    if live is None:
        return outputs
    dim = 1 if isinstance(module, nn.Conv2d) else -1
    return [value.index_select(dim, live) for value in outputs]


def _rows(module: nn.Module, value: Tensor, rows: Tensor | None = None) -> Tensor:
    """What the layer reads at each position (at these, counted through the samples): (rows, features)."""
    if not isinstance(module, nn.Conv2d):
        flat = value.flatten(0, -2)
        return flat if rows is None else flat[rows]
    windows = _windows(module, value)
    if rows is None:
        return windows.reshape(-1, windows[0, 0, 0].numel())
    _, height, width = windows.shape[:3]
    image, pixel = rows // (height * width), rows % (height * width)
    return windows[image, pixel // width, pixel % width].flatten(1)


def _windows(module: nn.Conv2d, value: Tensor) -> Tensor:
    """A view of a convolution's patches: (samples, height, width, channels, kernel height, kernel width)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    value = F.pad(value, module._reversed_padding_repeated_twice, mode)
    (samples, channels, *size), (batch, channel, *steps) = value.shape, value.stride()
    spans = [dilation * (kernel - 1) for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)]
    outside = [(size[axis] - spans[axis] - 1) // module.stride[axis] + 1 for axis in range(2)]
    return value.as_strided(
        (samples, *outside, channels, *module.kernel_size),
        (
            batch,
            *(steps[axis] * module.stride[axis] for axis in range(2)),
            channel,
            *(steps[axis] * module.dilation[axis] for axis in range(2)),
        ),
        value.storage_offset(),
    )


def _goal_rows(module: nn.Module, value: Tensor) -> Tensor:
    return value.permute(0, 2, 3, 1).flatten(0, 2) if isinstance(module, nn.Conv2d) else value.flatten(0, -2)


@dataclass
class Chain(Repair):
    """One repair after the other."""

    parts: Sequence[Repair]

    @property
    def name(self) -> str:  # type: ignore[override]
        return "+".join(part.name for part in self.parts)

    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        for part in self.parts:
            small = part(graph, small, masks)
        return small


REPAIRS = ("none", "batchnorm", "least-squares", "batchnorm+least-squares")


def repair_rows(count: int) -> slice:
    """Which of so many reference samples repairs read: `MOST_IMAGES` at most, evenly spaced (samples are sorted by
    class)."""
    return slice(None, None, max(1, -(-count // MOST_IMAGES)))


def make_repair(name: str, graph: Graph, inputs: Batches) -> Repair | None:
    """A repair by its name in `REPAIRS`, from these samples.

    Raises:
        ValueError: unknown name, or a repair of BatchNorm in a network without.
    """
    if name not in REPAIRS:
        raise ValueError(f"repair {name!r}: choose from {', '.join(REPAIRS)}")
    if "batchnorm" in name and not graph.norms:
        raise ValueError(f"repair {name}: the model has no BatchNorm to re-estimate; try least-squares")
    parts: dict[str, list[Repair]] = {
        "none": [],
        "batchnorm": [BatchNormRepair(inputs)],
        "least-squares": [LeastSquaresRepair(inputs)],
    }
    chain = [repair for part in name.split("+") for repair in parts[part]]
    return None if not chain else chain[0] if len(chain) == 1 else Chain(chain)
