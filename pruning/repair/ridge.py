"""Ridge regression: the weights of a layer that bring its output nearest to goals, shrunk towards those it has.

The ridge is chosen by the error of leaving out one row after the other, which has a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

RIDGES = tuple(10.0**power for power in range(-5, 4))
"""In units of the features' mean square. Below 1e-5 lies what float32 rounds away; at 1e3 a layer hardly moves."""


def drawn_rows(count: int, most: int) -> Tensor:
    """`most` of `count` rows, ascending: of as many equal spans one each, at random, but always the same.

    Rows at even distances would all be of one column of the maps, where the width divides the distance.
    """
    edges = torch.arange(most + 1, device="cpu") * count // most
    chance = torch.rand(most, generator=torch.Generator().manual_seed(count), dtype=torch.float64, device="cpu")
    return edges[:-1] + (chance * edges.diff()).long()


def part_of(drawn: Tensor, start: int, size: int) -> Tensor:
    """Those that are drawn of the `size` rows from `start` on, counted from there."""
    low, high = torch.searchsorted(drawn, torch.tensor([start, start + size], device="cpu")).tolist()
    return drawn[low:high] - start


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

    def change(strength: Tensor) -> Tensor:
        return rotated / (eigenvalues + strength.unsqueeze(1)).unsqueeze(2)

    def residual(strength: Tensor) -> Tensor:
        return left - projected @ change(strength)

    best = _best_strength(residual, projected.square(), eigenvalues, 1 / x.shape[1], x.shape[2])
    weight = prior + (vectors @ change(best)).mT
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
        rows = part_of(sample, start, len(x)).to(x.device)
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
    residual: Callable[[Tensor], Tensor],
    shares: Tensor,
    eigenvalues: Tensor,
    means_share: Tensor | float,
    features: int,
) -> Tensor:
    """The ridge of `RIDGES` with the least mean squared error of each row's prediction by the fit without that row.

    residual: what a ridge leaves of the goals, (rows, units). shares: a row's squared part in each direction, times
    its eigenvalue, (rows, directions): over eigenvalue and ridge they sum up to the row's leverage (besides the
    mean's share of it). All of them may have a first dimension for problems of their own, each with its ridge.
    """
    scale = (eigenvalues.sum(-1) / features).clamp(min=torch.finfo(eigenvalues.dtype).tiny / RIDGES[0])
    ridges = eigenvalues.new_tensor(RIDGES)
    errors = []
    for strength in (each * scale for each in ridges):
        inverse = 1 / (eigenvalues + strength.unsqueeze(-1))
        kept = 1 - means_share - (shares @ inverse.unsqueeze(-1)).squeeze(-1)
        errors.append((residual(strength).square().sum(-1) / kept.clamp(min=1e-6).square()).mean(-1))
    return ridges[torch.stack(errors).argmin(0)] * scale


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
