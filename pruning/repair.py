"""Repair after pruning, without labels and without gradients, from the same few samples.

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

from .compact import real_rows
from .curve import Batches
from .dimensions import dimensions
from .graph import Graph
from .masks import Masks
from .network import clone


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


ROOM = 2**28
"""Bytes that the unpruned network's outputs may take, to be kept from one repair to the next; and a layer's rows."""
FEW = 64
"""Features of which a layer has at least so many when rows are drawn: more rows cost nothing there."""
RIDGES = tuple(10.0**power for power in range(-5, 4))
"""In units of the features' mean square. Below 1e-5 lies what float32 rounds away; at 1e3 a layer hardly moves."""


@dataclass
class LeastSquaresRepair(Repair):
    """Layers with fewer inputs than they had, refitted by ridge regression on the unpruned network's outputs, and the
    layers behind them, which make up for what is still missing.

    A row is a sample at a spatial position or token; the features are what the layer reads there (for a
    convolution the patch). Weights W and bias b minimise `|X W + b - Y|^2 + ridge |W - V|^2`, where Y is the
    unpruned network's output of that layer and V the layer's own weights, sliced: so with few rows the layer
    stays what it was. The ridge is the one of `RIDGES` with the least leave-one-out error. Normal equations are
    summed chunk by chunk, so memory does not grow with the samples' positions. Rows that are tokens count by how much
    the logits hang on them (`token_weights`): a class token for more than one of many patches.

    inputs: float images, unlabelled. most: a layer whose rows and features are both more is left as it is.
    enough: of rows, for each feature (of `FEW` at least); of many more, at least so many are drawn (`drawn_rows`), and
        of tokens anyway `least`, since a few of them matter most.
    """

    inputs: Batches
    chunk: int = 64
    most: int = 5000
    enough: int = 16
    least: int = 8192
    _known: _Targets | None = field(default=None, init=False, repr=False, compare=False)
    _weights: tuple[Graph, dict[str, Tensor]] | None = field(default=None, init=False, repr=False, compare=False)
    _large: bool = field(default=False, init=False, repr=False, compare=False)
    name = "least-squares"

    @torch.no_grad()
    def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
        modules: dict[str, nn.Module] = {}
        behind, targets = _behind_changes(graph, small), self._targets_of(graph)
        if self._weights is None or self._weights[0] is not graph:
            self._weights = graph, token_weights(graph, _chunks(self.inputs, AT_ONCE))
        for visit in small.network.walk(_chunks(self.inputs, self.chunk)):
            if visit.name in behind and isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                wanted = targets.at(visit.name, _live_outputs(graph, masks, visit.name))
                inputs, weights = [values[0] for values in visit.arguments], self._weights[1].get(visit.name)
                visit.module = self._refit(visit.module, inputs, wanted, weights)
                modules[visit.name] = visit.module
        return replace(small, network=small.network.replaced(modules))

    def _targets_of(self, graph: Graph) -> _Targets:
        """What the unpruned network's layers give: the same for every network and trial, so kept if there is room."""
        if self._known is not None and self._known.graph is graph:
            return self._known
        targets = _Targets(graph, self.inputs, self.chunk)
        if self._large or not targets.keep(ROOM):
            self._large = True
            return _Targets(graph, self.inputs, self.chunk)
        self._known = targets
        return targets

    def _refit(
        self, module: nn.Module, inputs: Sequence[Tensor], wanted: Sequence[Tensor], weights: Tensor | None
    ) -> nn.Module:
        weight: Tensor = module.weight  # type: ignore[assignment]
        features = weight[0].numel()
        goals = [_goal_rows(module, goal) for goal in wanted]
        count = sum(map(len, goals))
        if (real := real_rows(module)) is not None and goals[0].shape[1] == len(real):  # the others give zeros
            goals = [goal.new_zeros(len(goal), len(weight)).index_copy_(1, real, goal) for goal in goals]
        # a layer without units left keeps one channel of zeros; attention without heads its bias, since the mean of
        # what it gave is nearer to that and yet costs accuracy (vit_tiny: 0.01 to 0.02 of the AUC)
        if features == 0 or min(features, count) > self.most or goals[0].shape[1] != len(weight):
            return module
        wanted_rows = max(self.enough * max(features, FEW), 0 if weights is None else self.least)
        most = count // max(1, count // wanted_rows)
        drawn = None if most == count else drawn_rows(count, most)
        if drawn is not None and weights is not None:
            weights = weights[drawn.to(weights.device)]

        def pairs(ins: slice = slice(None), outs: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
            """Rows and goals, of all channels or of some groups'."""
            start = 0
            for value, goal in zip(inputs, goals, strict=True):
                rows = None if drawn is None else _part(drawn, start, len(goal)).to(goal.device)
                start += len(goal)
                x = _rows(module, value if ins == slice(None) else value[:, ins], rows)
                yield x, (goal if rows is None else goal[rows])[:, outs]

        if isinstance(module, nn.Conv2d) and module.groups > 1:
            width, high, fits = module.in_channels // module.groups, len(weight) // module.groups, []
            at_once = max(1, ROOM // 4 // (most * features * weight.element_size()))
            for first in range(0, module.groups, at_once):
                ins, outs = (slice(first * size, (first + at_once) * size) for size in (width, high))
                x, y = (torch.cat(parts) for parts in zip(*pairs(ins, outs), strict=True))
                x, y, prior = x.unflatten(1, (-1, features)), y.unflatten(1, (-1, high)), weight[outs].flatten(1)
                fits.append(ridge_by_group(x, y, prior.unflatten(0, (-1, high))))
            fitted, bias = (torch.cat(parts).flatten(0, 1) for parts in zip(*fits, strict=True))
            return clone(module, weight=fitted.view(weight.shape), bias=bias)
        known = list(pairs()) if most * features * weight.element_size() <= ROOM else None
        fitted, bias = ridge(pairs if known is None else known.__iter__, weight.flatten(1), weights)
        return clone(module, weight=fitted.view(weight.shape), bias=bias)


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
    counts = dimensions(graph.network.steps, modules)
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


def _live_outputs(graph: Graph, masks: Masks, layer: str) -> Tensor | None:
    """Which outputs of a layer of the unpruned network its compact form has, as indices; None: all."""
    module = graph.network.get_submodule(layer)
    kept, real = masks.get(graph.heads.get(layer, layer)), real_rows(module)
    if kept is None:
        return real
    if layer in graph.heads:  # a projection goes with the heads that it computes
        kept = kept.repeat_interleave(module.out_features // len(kept))  # type: ignore[operator]
    live = kept.to(graph.device).nonzero().flatten()
    return live if real is None else real[live]


class _Targets:
    """Outputs of the unpruned network's layers, computed one after the other as they are asked for, or all kept."""

    def __init__(self, graph: Graph, inputs: Batches, chunk: int) -> None:
        self.graph = graph
        self.walk = graph.network.walk(_chunks(inputs, chunk))
        self.kept: dict[str, list[Tensor]] | None = None

    def keep(self, room: int) -> bool:
        """Computes and keeps all outputs, if they take no more than `room` bytes; whether they do."""
        kept: dict[str, list[Tensor]] = {}
        for visit in self.walk:
            if isinstance(visit.module, (nn.Conv2d, nn.Linear)):
                kept[visit.name] = visit.outputs
                room -= sum(value.nbytes for value in visit.outputs)
                if room < 0:
                    return False
        self.kept = kept
        return True

    def at(self, layer: str, live: Tensor | None) -> list[Tensor]:
        """The layer's outputs, those with these indices. Layers are asked for in the network's order."""
        if self.kept is None:
            outputs = next(visit.outputs for visit in self.walk if visit.name == layer)
        else:
            outputs = self.kept[layer]
        if live is None:
            return outputs
        dim = 1 if isinstance(self.graph.network.get_submodule(layer), nn.Conv2d) else -1
        return [value.index_select(dim, live) for value in outputs]


def drawn_rows(count: int, most: int) -> Tensor:
    """`most` of `count` rows, ascending: of as many equal spans one each, at random, but always the same.

    Rows at even distances would all be of one column of the maps, where the width divides the distance.
    """
    edges = torch.arange(most + 1, device="cpu") * count // most
    chance = torch.rand(most, generator=torch.Generator().manual_seed(count), dtype=torch.float64, device="cpu")
    return edges[:-1] + (chance * edges.diff()).long()


def _part(drawn: Tensor, start: int, size: int) -> Tensor:
    """Those that are drawn of the `size` rows from `start` on, counted from there."""
    low, high = torch.searchsorted(drawn, torch.tensor([start, start + size], device="cpu")).tolist()
    return drawn[low:high] - start


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


def ridge(
    pairs: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    prior: Tensor,
    weights: Tensor | None = None,
    max_rows: int = 1024,
    max_units: int = 256,
) -> tuple[Tensor, Tensor]:
    """Weights and bias nearest to the goals, shrunk towards a prior.

    pairs: gives, each time anew, chunks of rows (rows, features) and goals (rows, units). prior: (units,
    features). weights: how much each row counts, (rows of all chunks,), of mean 1; None for all alike. Returns
    weights, (units, features), and bias, (units,). The ridge is chosen by the leave-one-out
    error of ridge regression in closed form, on at most `max_rows` rows (`drawn_rows`) and `max_units` units.
    """
    features = prior.shape[1]
    count, total, sum_x, sum_y = 0, prior.new_zeros(()), prior.new_zeros(features), prior.new_zeros(prior.shape[0])
    for x, y in pairs():
        if weights is None:
            total, sum_x, sum_y = total + len(x), sum_x + x.sum(0), sum_y + y.sum(0)
        else:
            of_rows = weights[count : count + len(x)]
            total, sum_x, sum_y = total + of_rows.sum(), sum_x + of_rows @ x, sum_y + of_rows @ y
        count += len(x)
    mean_x, mean_y = sum_x / total, sum_y / total

    def centred() -> Iterator[tuple[Tensor, Tensor]]:
        start = 0
        for x, y in pairs():
            x = x - mean_x
            left = torch.addmm(y - mean_y, x, prior.T, alpha=-1)  # what the prior leaves unexplained
            if weights is not None:  # a row that counts twice is a row times the root of two
                roots = weights[start : start + len(x)].sqrt().unsqueeze(1)
                x, left = x * roots, left * roots
                start += len(x)
            yield x, left

    # with fewer rows than features, all rows take less memory than the features' products, and much less time
    solve = _solve_by_rows if count < features else _solve_by_features
    sample = drawn_rows(count, min(count, max_rows))
    means_share = 1 / total if weights is None else weights[sample.to(weights.device)] / total
    weight = prior + solve(centred(), prior, means_share, sample, max(1, -(-prior.shape[0] // max_units)))
    return weight, mean_y - weight @ mean_x


def ridge_by_group(x: Tensor, y: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """`ridge` for each group of a convolution by itself, all of them at once.

    x: rows, (rows, groups, features). y: goals, (rows, groups, units). prior: (groups, units, features). Returns
    weights, (groups, units, features), and bias, (groups, units).
    """
    x, y = x.transpose(0, 1), y.transpose(0, 1)
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x = x - mean_x
    left = y - mean_y - x @ prior.mT
    eigenvalues, vectors = _spectrum(x.mT @ x)
    rotated, projected = vectors.mT @ (x.mT @ left), x @ vectors
    scale = (eigenvalues.sum(1) / x.shape[2]).clamp(min=torch.finfo(x.dtype).tiny / RIDGES[0])
    fits, errors = [], []
    for power in RIDGES:
        shrunk = eigenvalues + (power * scale).unsqueeze(1)
        fits.append(rotated / shrunk.unsqueeze(2))
        kept = 1 - 1 / x.shape[1] - (projected.square() @ (1 / shrunk).unsqueeze(2)).squeeze(2)
        residual = left - projected @ fits[-1]
        errors.append((residual.square().sum(2) / kept.clamp(min=1e-6).square()).mean(1))
    best = torch.stack(errors).argmin(0)
    change = torch.stack(fits)[best, torch.arange(len(best), device=best.device)]
    weight = prior + (vectors @ change).mT
    return weight, (mean_y - mean_x @ weight.mT).squeeze(1)


def _solve_by_features(
    centred: Iterator[tuple[Tensor, Tensor]], prior: Tensor, means_share: Tensor, sample: Tensor, every: int
) -> Tensor:
    """The change of the weights, (units, features), from the features' products, which are summed chunk by chunk.

    centred: chunks of rows and of what is to be explained. prior: as in `ridge`. The ridge is chosen on the rows of
    `sample` (ascending, on the CPU) and on one unit of so many (`every`). means_share: what of the mean is due to a
    row, one number or one for each row of the sample.
    """
    units, features = prior.shape
    gram, cross = prior.new_zeros(features, features), prior.new_zeros(features, units)
    few_x, few_y, start = [], [], 0
    for x, y in centred:
        gram.addmm_(x.T, x)
        cross.addmm_(x.T, y)
        rows = _part(sample, start, len(x)).to(x.device)
        few_x.append(x[rows])
        few_y.append(y[rows, ::every])
        start += len(x)
    eigenvalues, vectors = _spectrum(gram)
    rotated = vectors.T @ cross
    projected, wanted, few = torch.cat(few_x) @ vectors, torch.cat(few_y), rotated[:, ::every]

    def residual(strength: Tensor) -> Tensor:
        return torch.addmm(wanted, projected, few / (eigenvalues + strength).unsqueeze(1), alpha=-1)

    best = _best_strength(residual, projected.square(), eigenvalues, means_share, features)
    return (vectors @ (rotated / (eigenvalues + best).unsqueeze(1))).T


def _solve_by_rows(
    centred: Iterator[tuple[Tensor, Tensor]], prior: Tensor, means_share: Tensor, sample: Tensor, every: int
) -> Tensor:
    """The same from the rows' products: the smaller matrix, whose eigenvalues are those of the features' products
    that are not zero. Arguments as there.

    In float64, where the device has it (Apple's has not): rows that are hardly more than the features can be fitted
    closely, and then what float32 rounds away matters.
    """
    xs, ys = zip(*centred, strict=True)
    x, y = torch.cat(xs), torch.cat(ys)
    exact = x if x.device.type == "mps" else x.double()
    values, basis = torch.linalg.eigh(exact @ exact.T)
    eigenvalues, basis = values.clamp(min=0).to(x), basis.to(x)
    rotated = basis.T @ y
    rows, few = basis[sample.to(basis.device)], rotated[:, ::every]

    def residual(strength: Tensor) -> Tensor:
        return rows @ (few * (strength / (eigenvalues + strength)).unsqueeze(1))

    best = _best_strength(residual, rows.square() * eigenvalues, eigenvalues, means_share, prior.shape[1])
    return (basis @ (rotated / (eigenvalues + best).unsqueeze(1))).T @ x


def _best_strength(
    residual: Callable[[Tensor], Tensor], shares: Tensor, eigenvalues: Tensor, means_share: Tensor, features: int
) -> Tensor:
    """The ridge of `RIDGES` with the least mean squared error of each row's prediction by the fit without that row.

    residual: what a ridge leaves of the goals, (rows, units). shares: a row's squared part in each direction, times
    its eigenvalue, (rows, directions): over eigenvalue and ridge they sum up to the row's leverage (besides the
    mean's share of it).
    """
    scale = (eigenvalues.sum() / features).clamp(min=torch.finfo(eigenvalues.dtype).tiny / RIDGES[0])
    strengths = eigenvalues.new_tensor(RIDGES) * scale
    errors = []
    for strength in strengths:
        kept = 1 - means_share - shares @ (1 / (eigenvalues + strength))
        errors.append((residual(strength).square().sum(1) / kept.clamp(min=1e-6).square()).mean())
    return strengths[torch.stack(errors).argmin()]


def _spectrum(products: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a matrix of products (or of each of a batch), 0 and above, and their vectors.

    Float32 is half the time of float64, and what it rounds away lies below all `RIDGES`. But LAPACK fails there on
    matrices that are zero for the most part (kernels that meet padding only), unless they are scaled and shifted.
    """
    diagonal = products.diagonal(dim1=-2, dim2=-1)
    scale = diagonal.mean(-1).clamp(min=torch.finfo(products.dtype).tiny)
    shift = 0.1 * RIDGES[0]
    shifted = products / scale[..., None, None]
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift)
    try:
        eigenvalues, vectors = torch.linalg.eigh(shifted)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        eigenvalues, vectors = (part.to(products) for part in torch.linalg.eigh(shifted.cpu().double()))
    return (eigenvalues - shift).clamp(min=0) * scale[..., None], vectors


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


MOST_IMAGES = 512
"""Repairs keep all their images' activations of a layer at a time: of no more images than this."""


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
