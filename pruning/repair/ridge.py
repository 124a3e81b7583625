"""Ridge regression: the weights of a layer that bring its output nearest to goals, shrunk towards those it has."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, LEAST, MOST = 0.5, 1e-4, 100.0
"""Ridges, in units of a row's mean squared length: of the first fit, and the bounds of the second one's. A system's
condition is at most the number of rows over that, so float32 is enough."""
PROBES = 16
"""Random signs by which the trace of an inverse is estimated."""
MOST_UNITS = 64
"""Units that the ridge is estimated from."""
BLOCK = 256
"""Columns of a Gram matrix that are computed at a time: what lies above its diagonal blocks nobody reads."""


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


def gram(x: Tensor) -> Tensor:
    """The products of columns, shape (..., columns, columns), of rows (..., rows, columns): right in the lower triangle
    and on the diagonal, which is all that `torch.linalg.cholesky_ex` reads."""
    columns = x.shape[-1]
    if columns <= BLOCK:
        return x.mT @ x
    products = x.new_empty(*x.shape[:-2], columns, columns)
    for start in range(0, columns, BLOCK):
        end = min(columns, start + BLOCK)
        products[..., start:, start:end] = x[..., start:].mT @ x[..., start:end]
    return products


def fit(x: Tensor, y: Tensor, prior: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights W and bias b that minimise `|X W + b - Y|^2 + ridge |W - prior|^2`.

    In Bayes' terms the ridge is the variance of the noise over that of the weights' change. Both are estimated from a
    first fit by the ridge `FIRST` (one step of the evidence procedure; MacKay 1992, Bayesian Interpolation, eq. 4.9 and
    4.10): two Cholesky factorisations, no eigenvalues. Where inputs explain the goals there is hardly a ridge; where
    they do not, weights hardly change.

    x: rows, (..., rows, features). y: goals, (..., rows, units). prior: (..., units, features). weights: how much each
    row counts, (rows,), of mean 1; None for all alike. Leading dimensions are problems of their own, such as a
    convolution's groups. Returns weights, (..., units, features), and bias, (..., units): not finite where the rows
    are not, since to raise something would be to wait for a GPU.
    """
    if weights is None:
        mean_x, mean_y = x.mean(-2), y.mean(-2)
        x, y = x - mean_x.unsqueeze(-2), y - mean_y.unsqueeze(-2)
    else:  # a row that counts twice is a row times the root of two
        share, roots = weights / weights.sum(), weights.sqrt().unsqueeze(1)
        mean_x, mean_y = share @ x, share @ y
        x, y = (x - mean_x.unsqueeze(-2)) * roots, (y - mean_y.unsqueeze(-2)) * roots
    count, features = x.shape[-2:]
    left = y - x @ prior.mT  # what the prior does not explain
    by_rows = count - 1 <= features  # the smaller matrix of products, which has the same eigenvalues besides zeros
    products, right = (gram(x.mT), left) if by_rows else (gram(x), x.mT @ left)
    lengths = products.diagonal(dim1=-2, dim2=-1).sum(-1)
    unit = lengths.clamp(min=torch.finfo(x.dtype).tiny ** 0.5) / count

    every = -(-left.shape[-1] // MOST_UNITS)
    few, signs = right[..., ::every], _signs(right)
    if by_rows:  # what the mean takes is no row's
        taken = right.new_ones(count, 1) if weights is None else roots
        signs = signs - taken * (taken.mT @ signs) / taken.square().sum()
    ridge = FIRST * unit
    part, inverse = torch.cholesky_solve(torch.cat([few, signs], -1), _factor(products, ridge)).split(
        [few.shape[-1], PROBES], -1
    )
    left_over = ridge * (inverse * signs).sum((-2, -1)) / PROBES  # directions that goals do not determine
    determined = (count - 1 if by_rows else features) - left_over
    part_squares, along = part.square().sum((-2, -1)), (few * part).sum((-2, -1))
    if by_rows:
        noise, change = ridge.square() * part_squares, along - ridge * part_squares
    else:
        noise = left[..., ::every].square().sum((-2, -1)) - along - ridge * part_squares
        change = part_squares
    noise, change = noise.clamp(min=0) / (count - 1 - determined).clamp(min=1), change / determined.clamp(min=1)
    tiny = torch.finfo(x.dtype).tiny
    ridge = torch.minimum(torch.maximum(noise / change.clamp(min=tiny), LEAST * unit), MOST * unit)

    solved = torch.cholesky_solve(right, _factor(products, ridge))
    weight = prior + ((x.mT @ solved) if by_rows else solved).mT
    weight = weight.where(lengths.isfinite()[..., None, None], torch.nan)
    return weight, mean_y - (weight @ mean_x.unsqueeze(-1)).squeeze(-1)


def _factor(products: Tensor, ridge: Tensor) -> Tensor:
    """The Cholesky factor of products (see `gram`) with the ridge on their diagonal."""
    shifted = products.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(ridge.unsqueeze(-1))
    return torch.linalg.cholesky_ex(shifted)[0]


def _signs(like: Tensor) -> Tensor:
    """Signs, shape (..., rows, `PROBES`), at random but always the same."""
    shape = (like.shape[-2], PROBES)
    signs = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype, device="cpu")
    return (2 * signs - 1).to(like.device).expand(*like.shape[:-2], *shape)
