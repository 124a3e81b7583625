from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning.repair.ridge import RIDGES, drawn_rows, part_of, ridge, ridge_by_group
from torch import Tensor


def test_ridge_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    truth = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    y = x @ truth.T + 3
    weight, bias = ridge(lambda: iter([(x[:25], y[:25]), (x[25:], y[25:])]), torch.zeros_like(truth))
    assert torch.allclose(weight, truth, atol=1e-4)
    assert torch.allclose(bias, torch.full((2,), 3.0, dtype=torch.float64), atol=1e-3)


def fitted(x: Tensor, y: Tensor, prior: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression towards the prior, by the normal equations; the intercept is free."""
    centred = x - x.mean(0)
    gram = centred.T @ centred + strength * torch.eye(x.shape[1], dtype=x.dtype)
    weight = prior + torch.linalg.solve(gram, centred.T @ (y - y.mean(0) - centred @ prior.T)).T
    return weight, y.mean(0) - weight @ x.mean(0)


@pytest.mark.parametrize("most_units", [256, 2])
@pytest.mark.parametrize("count", [7, 29, 31, 70])
def test_ridge_is_the_one_of_least_error_where_rows_are_left_out(count: int, most_units: int) -> None:
    """By leaving out one row after the other, with fewer rows than features and with more."""
    torch.manual_seed(3)
    x, y, prior = (torch.randn(*shape, dtype=torch.float64) for shape in ((count, 30), (count, 4), (4, 30)))
    weight, bias = ridge(lambda: iter([(x[:5], y[:5]), (x[5:], y[5:])]), prior, max_units=most_units)
    scale = (x - x.mean(0)).square().sum() / 30
    seen = slice(None, None, 4 // min(4, most_units))  # of the units

    def error(strength: float) -> float:
        total = 0.0
        for row in range(count):
            others = torch.arange(count) != row
            without, constant = fitted(x[others], y[others], prior, strength * scale)
            total += float((x[row] @ without.T + constant - y[row])[seen].square().sum())
        return total

    expected, intercept = fitted(x, y, prior, min(RIDGES, key=error) * scale)
    assert torch.allclose(weight, expected, rtol=1e-6, atol=1e-8)
    assert torch.allclose(bias, intercept, rtol=1e-6, atol=1e-8)


def test_ridge_chooses_by_the_error_of_left_out_rows() -> None:
    """Fewer rows than features, and goals that are noise about the prior: the prior has to win."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    prior = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    y = x @ prior.T + 5 * torch.randn(12, 2, generator=generator, dtype=torch.float64)
    weight, _ = ridge(lambda: iter([(x, y)]), prior)
    unregularised = prior + torch.linalg.lstsq(x, y - x @ prior.T).solution.T
    assert (weight - prior).norm() < 0.5 * (unregularised - prior).norm()


@pytest.mark.parametrize("count", [40, 55, 300])
def test_single_precision_fits_as_well_as_double(count: int) -> None:
    """Features whose scales span three decades: on fresh rows the error is the same to 2 %."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(0, -3, 60, dtype=torch.float64)
    mixing = scales[:, None] * torch.randn(60, 60, generator=generator, dtype=torch.float64)
    x = torch.randn(count + 500, 60, generator=generator, dtype=torch.float64) @ mixing
    goal = x @ torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = goal + 0.1 * torch.randn(count + 500, 4, generator=generator, dtype=torch.float64)
    errors = []
    for kind in (torch.float64, torch.float32):
        rows = (x[:count].to(kind), y[:count].to(kind))
        weight, bias = ridge(lambda rows=rows: iter([rows]), torch.zeros(4, 60, dtype=kind))
        errors.append((x[count:] @ weight.double().T + bias.double() - goal[count:]).norm())
    assert errors[1] < 1.02 * errors[0] < 0.2 * goal[count:].norm()


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("count", [7, 200])
def test_groups_are_fitted_each_by_itself(count: int, units: int) -> None:
    torch.manual_seed(0)
    x, y, prior = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((count, 5, 9), (count, 5, units), (5, units, 9))
    )
    x[:, 1] *= 100
    x[:, 2] = 0  # a channel that is dead
    y[:, 3] = x[:, 3] @ prior[3].T
    weight, bias = ridge_by_group(x, y, prior)
    for group in range(5):
        rows = (x[:, group], y[:, group])
        expected = ridge(lambda rows=rows: iter([rows]), prior[group])
        assert torch.allclose(weight[group], expected[0], rtol=1e-5, atol=1e-7)
        assert torch.allclose(bias[group], expected[1], rtol=1e-5, atol=1e-7)


@given(count=st.integers(1, 5000), most=st.integers(1, 5000), chunk=st.integers(1, 6000))
def test_drawn_rows_are_spread_and_the_same_in_any_chunks(count: int, most: int, chunk: int) -> None:
    most = min(count, most)
    rows = drawn_rows(count, most)
    assert torch.equal(rows, drawn_rows(count, most))
    assert len(rows) == most
    assert 0 <= rows[0] <= rows[-1] < count
    assert (rows.diff() > 0).all()
    assert rows.diff().max() <= 2 * -(-count // most) if most > 1 else True
    parts = [part_of(rows, start, min(chunk, count - start)) + start for start in range(0, count, chunk)]
    assert torch.equal(torch.cat(parts), rows)


def test_rows_that_count_more() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = x[:, :3] + x[:, 3:].square()
    weights = torch.rand(400, generator=generator) * 2 + 0.1
    weights /= weights.mean()
    chunks = [(x[:150], y[:150]), (x[150:], y[150:])]
    weight, bias = ridge(lambda: iter(chunks), torch.zeros(3, 6), weights)
    plain = ridge(lambda: iter(chunks), torch.zeros(3, 6))[0]
    again = ridge(lambda: iter(chunks), torch.zeros(3, 6), torch.ones(400))[0]
    assert torch.allclose(plain, again, atol=1e-6)

    # what is left of the weighted error no small change makes less, besides the ridge's pull
    def error(weight: Tensor, bias: Tensor) -> float:
        return (weights.unsqueeze(1) * (x @ weight.T + bias - y).square()).sum().item()

    design = torch.cat([x, torch.ones(400, 1)], 1).double() * weights.double().sqrt().unsqueeze(1)
    best = torch.linalg.lstsq(design, y.double() * weights.double().sqrt().unsqueeze(1)).solution.float()
    assert error(best[:6].T, best[6]) <= error(weight, bias) <= 1.02 * error(best[:6].T, best[6])
    assert error(weight, bias) < error(plain, y.mean(0) - plain @ x.mean(0))
