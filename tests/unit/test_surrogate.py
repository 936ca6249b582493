"""Surrogates: hand-worked values, and both derivatives against autograd through the primitive."""

from __future__ import annotations

import math

import pytest
import torch

from dpap.errors import DPAPError
from dpap.neurons import ArcTan, QuadraticGate, Rectangular, Sigmoid, Surrogate, surrogate

SURROGATES = [ArcTan, QuadraticGate, Sigmoid, Rectangular]
# Both sides of every kink of the piecewise ones at the slopes below, never on one: there autograd may take either side.
GRID = torch.linspace(-3.003, 3.001, 401, dtype=torch.float64)


def test_every_surrogate_is_tested() -> None:
    made = {thing for thing in vars(surrogate).values() if isinstance(thing, type) and issubclass(thing, Surrogate)}
    assert made - {Surrogate} == set(SURROGATES)


@pytest.mark.parametrize(
    ("surrogate", "points"),
    [
        (ArcTan(2.0), {0.0: 1.0, 1 / math.pi: 0.5, -1 / math.pi: 0.5, 3 / math.pi: 0.1}),  # 1 / (1 + (pi x)^2)
        (ArcTan(4.0), {0.0: 2.0, 1 / (2 * math.pi): 1.0}),
        (QuadraticGate(2.0), {0.0: 2.0, 0.25: 1.0, -0.25: 1.0, 0.5: 0.0, 0.6: 0.0, -5.0: 0.0}),  # 2 - 4 |x|
        (QuadraticGate(1.0), {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        (Sigmoid(4.0), {0.0: 1.0, math.log(3) / 4: 0.75}),  # g = 3/4 there: 4 * 3/4 * 1/4
        (Rectangular(1.0), {0.0: 1.0, 0.49: 1.0, -0.49: 1.0, 0.51: 0.0, -0.51: 0.0}),
        (Rectangular(0.5), {0.0: 0.5, 0.99: 0.5, 1.01: 0.0}),
    ],
    ids=repr,
)
def test_derivative_by_hand(surrogate: Surrogate, points: dict[float, float]) -> None:
    x = torch.tensor(list(points), dtype=torch.float64)
    expected = torch.tensor(list(points.values()), dtype=torch.float64)
    torch.testing.assert_close(surrogate.derivative_(x, surrogate.alpha), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.7, 2.0, 5.3])
@pytest.mark.parametrize("kind", SURROGATES)
def test_derivatives_are_those_of_the_primitive(kind: type[Surrogate], alpha: float) -> None:
    surrogate = kind(alpha=1.0)  # the slope passed counts, not the surrogate's own
    x = GRID.clone().requires_grad_()
    slope = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    g = surrogate.primitive(x, slope)
    by_x = torch.autograd.grad(g.sum(), x, retain_graph=True)[0]
    by_slope = torch.stack([torch.autograd.grad(value, slope, retain_graph=True)[0] for value in g])
    assert by_x.abs().max() > 0.1
    assert by_slope.abs().max() > 0.01
    torch.testing.assert_close(surrogate.derivative_(GRID.clone(), alpha), by_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(surrogate.derivative_alpha(GRID, alpha), by_slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SURROGATES)
def test_primitive_rises_from_zero_to_one(kind: type[Surrogate]) -> None:
    surrogate = kind()
    far = torch.tensor([-1e6, 0.0, 1e6], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(surrogate.primitive(far, surrogate.alpha), expected, rtol=0, atol=1e-6)
    assert (surrogate.primitive(GRID, surrogate.alpha).diff() >= 0).all()


@pytest.mark.parametrize("kind", SURROGATES)
def test_spike_is_a_step_with_the_gradient_of_the_primitive(kind: type[Surrogate]) -> None:
    surrogate = kind()
    x = torch.tensor([-1.0, -0.1, 0.0, 0.1], dtype=torch.float64, requires_grad=True)
    spike = surrogate.spike(x)
    assert spike.tolist() == [0.0, 0.0, 1.0, 1.0]
    gradient = torch.autograd.grad(spike.sum(), x)[0]
    torch.testing.assert_close(gradient, surrogate.derivative_(x.detach().clone(), surrogate.alpha))
    assert gradient[1:].min() > 0


def test_learned_slope_replaces_the_fixed_one() -> None:
    x = torch.tensor([0.0], requires_grad=True)
    slope = torch.tensor(6.0, requires_grad=True)
    assert torch.autograd.grad(ArcTan(2.0).spike(x, slope), x)[0].item() == pytest.approx(3.0)


def test_spike_without_gradient_computes_no_primitive() -> None:
    with torch.no_grad():
        spike = ArcTan().spike(torch.tensor([float("nan"), -1.0, 1.0]))
    assert spike.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("alpha", [0.0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", SURROGATES)
def test_a_slope_that_is_not_positive_is_refused(kind: type[Surrogate], alpha: float) -> None:
    with pytest.raises(DPAPError, match="alpha"):
        kind(alpha=alpha)


def test_surrogates_are_values() -> None:
    assert ArcTan(2.0) == ArcTan()
    assert ArcTan(2.0) != ArcTan(3.0)
    with pytest.raises(AttributeError):
        ArcTan().alpha = 3.0  # type: ignore[misc]
