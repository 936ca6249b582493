"""Spiking neurons that hear of each other: a layer whose spikes come back to it one step later."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.neurons.modules import SpikingNeuron


class StepByStep(nn.Module):
    """A neuron that a loop over time calls once per step: (x, v) -> (spikes, v), as `SpikingNeuron.step`.

    A method cannot be observed; the call of a module can, so what such a neuron fires is observed where it fires.

    Args:
        neuron: Any of ours.
    """

    def __init__(self, neuron: SpikingNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(
        self, x: Float[Tensor, " B *N"], v: Float[Tensor, " B *N"] | None = None
    ) -> tuple[Float[Tensor, " B *N"], Float[Tensor, " B *N"]]:
        """One step: spikes, and the membrane potential to pass to the next; `v` is None at the first."""
        return self.neuron.step(x, v)


class Recurrent(nn.Module):
    """A layer of neurons with lateral weights V: current[t] = x[t] + V o[t-1], o = spikes of the layer, o[0] = 0.

    The plain loop, of modules that are called once per step, so it is understood, observed and
    cut as any network is: V drives the units that it reads. V is also called at the first step, on zeros.

    Args:
        units: Neurons of the layer, the last axis of what it receives.
        neuron: IF, LIF or PLIF: what makes spikes of the current.

    Raises:
        DPAPError: `units` < 1, or `neuron` is none of ours.
    """

    def __init__(self, units: int, neuron: nn.Module) -> None:
        super().__init__()
        if units < 1:
            raise DPAPError(f"Recurrent was given units={units}.", fix="pass units >= 1")
        if not isinstance(neuron, SpikingNeuron):
            raise DPAPError(
                f"Recurrent was given a {type(neuron).__name__} as its neuron.",
                fix="pass IF, LIF or PLIF of dpap.neurons; with another neuron, write the loop over time yourself",
            )
        self.lateral = nn.Linear(units, units, bias=False)
        self.neuron = StepByStep(neuron)

    def forward(self, x: Float[Tensor, "T B N"]) -> Float[Tensor, "T B N"]:
        """Spikes of T steps, starting from rest at every call.

        Raises:
            DPAPError: The input is not (T, B, units).
        """
        if x.dim() != 3 or x.shape[0] < 1 or x.shape[2] != self.lateral.in_features:
            raise DPAPError(
                f"A recurrent layer of {self.lateral.in_features} units was given an input of shape {tuple(x.shape)}.",
                fix="pass (T, B, units) with T >= 1",
            )
        spikes, v = [torch.zeros_like(x[0])], None
        for x_t in x.unbind(0):
            spike, v = self.neuron(x_t + self.lateral(spikes[-1]), v)
            spikes.append(spike)
        return torch.stack(spikes[1:])
