from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning.repair.ridge import BLOCK, FIRST, LEAST, MOST, drawn_rows, fit, gram, part_of
from torch import Tensor


def normal_equations(x: Tensor, y: Tensor, prior: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Ridge regression towards the prior as it is written in books; the intercept is free."""
    centred = x - x.mean(0)
    products = centred.T @ centred + strength * torch.eye(x.shape[1], dtype=x.dtype)
    weight = prior + torch.linalg.solve(products, centred.T @ (y - y.mean(0) - centred @ prior.T)).T
    return weight, y.mean(0) - weight @ x.mean(0)


def evidence_ridge(x: Tensor, y: Tensor, prior: Tensor) -> float:
    """The ridge by one step of the evidence procedure, from eigenvalues."""
    count, units = y.shape
    centred = x - x.mean(0)
    unit = float(centred.square().sum(1).mean())
    weight, bias = normal_equations(x, y, prior, FIRST * unit)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred)
    determined = float((eigenvalues / (eigenvalues + FIRST * unit)).sum())
    noise = (y - x @ weight.T - bias).square().sum() / units / max(1.0, count - 1 - determined)
    change = (weight - prior).square().sum() / units / max(1.0, determined)
    return min(max(float(noise / change), LEAST * unit), MOST * unit)


@pytest.mark.parametrize("noise", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("count", [7, 29, 32, 70, 2000])
def test_a_fit_is_the_closed_form(count: int, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer rows than features, and with more; with the trace known exactly, where it is estimated otherwise."""
    torch.manual_seed(3)
    monkeypatch.setattr("pxp_optimize.pruning.repair.ridge.PROBES", (probes := 30 if count > 31 else count))
    monkeypatch.setattr(
        "pxp_optimize.pruning.repair.ridge._signs", lambda like: probes**0.5 * torch.eye(probes, dtype=like.dtype)
    )
    x, prior, truth = (torch.randn(*shape, dtype=torch.float64) for shape in ((count, 30), (4, 30), (4, 30)))
    x = x + 5
    y = x @ truth.T + noise * torch.randn(count, 4, dtype=torch.float64)
    expected = normal_equations(x, y, prior, evidence_ridge(x, y, prior))
    for got, wanted in zip(fit(x, y, prior), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [20, 200])
def test_the_estimated_trace_is_near_enough(count: int) -> None:
    """The fit with an estimated trace is the closed form of a ridge within a tenth of the exact one."""
    torch.manual_seed(3)
    x, prior, truth = (torch.randn(*shape, dtype=torch.float64) for shape in ((count, 60), (8, 60), (8, 60)))
    y = x @ truth.T + 3 * torch.randn(count, 8, dtype=torch.float64)
    exact = evidence_ridge(x, y, prior)
    weight, _ = fit(x, y, prior)
    low, mid, high = (normal_equations(x, y, prior, factor * exact)[0] for factor in (0.9, 1.0, 1.1))
    assert (weight - mid).norm() < (high - low).norm()


def test_what_rows_say_nothing_of_stays_as_it_was() -> None:
    """Directions that no row has a part in keep the prior's weights; those with much of it are fitted."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(4000, 5), torch.zeros(4000, 3)], 1)
    truth, prior = torch.randn(2, 2, 8)
    weight, bias = fit(x, x @ truth.T + 3, prior)
    assert torch.allclose(weight[:, :5], truth[:, :5], atol=1e-3)
    assert torch.equal(weight[:, 5:], prior[:, 5:])
    assert torch.allclose(bias, torch.full((2,), 3.0), atol=1e-3)


def test_goals_that_are_noise_leave_the_prior() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    prior = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    y = x @ prior.T + 5 * torch.randn(12, 2, generator=generator, dtype=torch.float64)
    weight, _ = fit(x, y, prior)
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
        weight, bias = fit(x[:count].to(kind), y[:count].to(kind), torch.zeros(4, 60, dtype=kind))
        errors.append((x[count:] @ weight.double().T + bias.double() - goal[count:]).norm())
    assert errors[1] < 1.02 * errors[0] < 0.2 * goal[count:].norm()


@pytest.mark.parametrize("count", [20, 200])
def test_rows_without_anything_leave_the_prior(count: int) -> None:
    prior = torch.randn(3, 50)
    weight, bias = fit(torch.zeros(count, 50), torch.ones(count, 3), prior)
    assert torch.equal(weight, prior)
    assert torch.equal(bias, torch.ones(3))


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
@pytest.mark.parametrize("count", [20, 200])
def test_rows_that_overflow_give_nothing_finite(count: int, value: float) -> None:
    x = torch.randn(count, 50)
    x[3, 4] = value
    weight, _ = fit(x, torch.ones(count, 3), torch.randn(3, 50))
    assert not weight.isfinite().any()


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("count", [7, 200])
def test_groups_are_fitted_each_by_itself(count: int, units: int) -> None:
    torch.manual_seed(0)
    x, y, prior = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((5, count, 9), (5, count, units), (5, units, 9))
    )
    x[1] *= 100
    x[2] = 0  # a channel that is dead
    weight, bias = fit(x, y, prior)
    for group in range(5):
        expected = fit(x[group], y[group], prior[group])
        assert torch.allclose(weight[group], expected[0], rtol=1e-8, atol=1e-10)
        assert torch.allclose(bias[group], expected[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("columns", [3, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_products_of_columns(columns: int) -> None:
    x = torch.randn(2, 40, columns, dtype=torch.float64)
    assert torch.allclose(gram(x).tril(), (x.mT @ x).tril(), rtol=1e-12)


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
    weight, bias = fit(x, y, torch.zeros(3, 6), weights)
    plain = fit(x, y, torch.zeros(3, 6))[0]
    again = fit(x, y, torch.zeros(3, 6), torch.ones(400))[0]
    assert torch.allclose(plain, again, atol=1e-6)

    # what is left of the weighted error no small change makes less, besides the ridge's pull
    def error(weight: Tensor, bias: Tensor) -> float:
        return (weights.unsqueeze(1) * (x @ weight.T + bias - y).square()).sum().item()

    design = torch.cat([x, torch.ones(400, 1)], 1).double() * weights.double().sqrt().unsqueeze(1)
    best = torch.linalg.lstsq(design, y.double() * weights.double().sqrt().unsqueeze(1)).solution.float()
    assert error(best[:6].T, best[6]) <= error(weight, bias) <= 1.02 * error(best[:6].T, best[6])
    assert error(weight, bias) < error(plain, y.mean(0) - plain @ x.mean(0))
