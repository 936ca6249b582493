"""What the networks share: neurons, surrogates, pools and readouts by name, widths by a factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from dpap.errors import unknown_name
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


def mean_over_steps(steps: Float[Tensor, "t B classes"]) -> Float[Tensor, "B classes"]:
    """What a network answers after t steps whose readout counts at each of them alike."""
    return steps.mean(0)


def _last_step(steps: Float[Tensor, "t B classes"]) -> Float[Tensor, "B classes"]:
    return steps[-1]


def _most_of_steps(steps: Float[Tensor, "t B classes"]) -> Float[Tensor, "B classes"]:
    return steps.amax(0)


@dataclass(frozen=True, slots=True)
class Readout:
    """What a class is read from: the output at each step, and what those of the first t steps come to.

    Attributes:
        behind: What stands behind the classifier: a spiking neuron, a leaky integrator that never fires, or nothing.
        answer: (t, B, classes), the output at the first t steps, to (B, classes), the answer after them.
    """

    behind: Literal["nothing", "neuron", "integrator"]
    answer: Callable[[Tensor], Tensor]


READOUTS: Mapping[str, Readout] = MappingProxyType(
    {
        "current": Readout("nothing", mean_over_steps),
        "spikes": Readout("neuron", mean_over_steps),
        "membrane": Readout("integrator", mean_over_steps),
        "last": Readout("integrator", _last_step),
        "max": Readout("integrator", _most_of_steps),
    }
)


def readout_named(name: str) -> Readout:
    """A readout of `READOUTS`.

    Raises:
        DPAPError: no such name; the nearest are shown.
    """
    if name not in READOUTS:
        raise unknown_name("readout", name, READOUTS)
    return READOUTS[name]


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
