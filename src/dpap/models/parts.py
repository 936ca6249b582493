"""What the networks share: neurons, surrogates and pools by name, widths by a factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from dpap.models.pooling import AvgPool2x2
from dpap.neurons.modules import IF, LIF, PLIF
from dpap.neurons.surrogate import ArcTan, QuadraticGate, Rectangular, Sigmoid, Surrogate

SURROGATES: Mapping[str, Callable[[], Surrogate]] = MappingProxyType(
    {"arctan": ArcTan, "quadratic_gate": QuadraticGate, "sigmoid": Sigmoid, "rectangular": Rectangular}
)
SPIKING: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"if": lambda tau, **rest: IF(**rest), "lif": LIF, "plif": lambda tau, **rest: PLIF(init_tau=tau, **rest)}
)
NEURONS = (*SPIKING, "relu")
POOLS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType({"avg": AvgPool2x2, "max": partial(nn.MaxPool2d, 2)})


def spiking_neuron(
    kind: str, *, tau: float, v_threshold: float, surrogate: str, learn_slope: bool, detach_reset: bool
) -> nn.Module:
    """A neuron of `SPIKING`, its surrogate by name; "if" has no time constant."""
    return SPIKING[kind](
        tau=tau,
        v_threshold=v_threshold,
        surrogate=SURROGATES[surrogate](),
        learn_slope=learn_slope,
        detach_reset=detach_reset,
    )


def scaled(units: int, width: float) -> int:
    """That many units at a width: the nearest whole number, at least one.

    >>> scaled(64, 0.25), scaled(1, 0.1)
    (16, 1)
    """
    return max(1, round(units * width))
