"""Which modules are spiking neurons, and what the graph needs to know of them.

A foreign neuron is recognised by its shape (duck typing); nothing that is not installed is ever imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from dpap.neurons import PLIF, SpikingNeuron


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronInfo:
    """A spiking neuron module that takes and returns (T, B, C, ...)."""

    channel_parameters: tuple[str, ...] = ()
    """Parameters with one entry per channel; they are cut with their unit."""


Adapter = Callable[[nn.Module], NeuronInfo | None]


def _own(module: nn.Module) -> NeuronInfo | None:
    if not isinstance(module, SpikingNeuron):
        return None
    return NeuronInfo(channel_parameters=("w",) if isinstance(module, PLIF) and module.w.dim() else ())


ADAPTERS: list[Adapter] = [_own]


def neuron_info(module: nn.Module) -> NeuronInfo | None:
    """The description of a spiking neuron; None for any other module."""
    return next((info for adapter in ADAPTERS if (info := adapter(module)) is not None), None)


ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
)
"""Modules whose output is the activity of a unit in an ordinary network."""
