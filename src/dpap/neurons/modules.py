"""Spiking neurons as modules on (T, B, ...): thin, and stateless between calls."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.neurons import functional, surrogate
from dpap.neurons.kernel import Firing
from dpap.neurons.surrogate import Surrogate


class SpikingNeuron(nn.Module, ABC):
    """What IF, LIF and PLIF share: `forward` for all steps at once, `step` for one.

    Args:
        v_threshold: A neuron whose potential reaches it fires; must be above `v_reset`.
        v_reset: Potential at the start and after a spike; None subtracts the threshold instead (soft reset).
        detach_reset: Whether the spike is a constant in the reset as far as the gradient is concerned.
        surrogate: Gradient of the spike.
        learn_slope: Makes the surrogate's slope the parameter `alpha`.

    Raises:
        DPAPError: `v_threshold` is not above `v_reset`.
    """

    def __init__(
        self,
        *,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: Surrogate = surrogate.DEFAULT,
        learn_slope: bool = False,
    ) -> None:
        super().__init__()
        self.firing = Firing(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
        self.alpha: nn.Parameter | None
        self.register_parameter("alpha", nn.Parameter(torch.tensor(surrogate.alpha)) if learn_slope else None)
        self.may_fire: Tensor | None = None
        """(T, C): 1 where a channel may fire; None: everywhere. Where it may not, it is not reset either."""

    @abstractmethod
    def rate(self) -> float | Tensor | None:
        """k = 1 / tau: a number, a 0-d tensor or one entry per channel; None for a neuron without leak."""

    @property
    def v_threshold(self) -> float:
        return self.firing.v_threshold

    @property
    def v_reset(self) -> float | None:
        return self.firing.v_reset

    def forward(self, x: Float[Tensor, "T B *N"]) -> Float[Tensor, "T B *N"]:
        """Spikes of T steps, starting from rest at every call.

        Raises:
            DPAPError: The input has no time axis, is not floating point, or has another number of channels.
        """
        if self.may_fire is not None:
            return functional.plain_sequence(x, self.rate(), self.alpha, self.firing, self.may_fire)
        return functional.sequence(x, self.rate(), self.alpha, self.firing)

    def step(
        self, x: Float[Tensor, " B *N"], v: Float[Tensor, " B *N"] | None = None
    ) -> tuple[Float[Tensor, " B *N"], Float[Tensor, " B *N"]]:
        """One step: spikes, and the membrane potential to pass to the next. T of them equal one `forward`."""
        return functional.step(x, v, self.rate(), self.alpha, self.firing)

    def extra_repr(self) -> str:
        f = self.firing
        parts = [f"v_threshold={f.v_threshold}", f"v_reset={f.v_reset}", f"surrogate={f.surrogate}"]
        parts += ["detach_reset=True"] if f.detach_reset else []
        parts += ["learn_slope=True"] if self.alpha is not None else []
        return ", ".join(parts)


class IF(SpikingNeuron):
    """Integrate-and-fire neuron: h = v + x. Arguments as for `SpikingNeuron`."""

    def rate(self) -> None:
        return None


class LIF(SpikingNeuron):
    """Leaky integrate-and-fire neuron: h = v + (x - (v - v_reset)) / tau.

    Args:
        tau: Membrane time constant in steps, >= 1. The rest as for `SpikingNeuron`.
    """

    def __init__(
        self,
        tau: float = 2.0,
        *,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: Surrogate = surrogate.DEFAULT,
        learn_slope: bool = False,
    ) -> None:
        super().__init__(
            v_threshold=v_threshold,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            learn_slope=learn_slope,
        )
        functional.rate_of_tau(tau)  # refuses a bad one now
        self.tau = float(tau)

    def rate(self) -> float:
        return 1.0 / self.tau

    def extra_repr(self) -> str:
        return f"tau={self.tau}, {super().extra_repr()}"


class PLIF(SpikingNeuron):
    """LIF neuron that learns its time constant: 1 / tau = sigmoid(w).

    Source: Fang et al., ICCV 2021 (arXiv 2007.05785), who use one w per layer.

    Args:
        init_tau: Time constant at the start, > 1: w = -ln(init_tau - 1).
        channels: None for one time constant; else one per channel, axis 2 of (T, B, C, ...).
            The rest as for `SpikingNeuron`.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        channels: int | None = None,
        *,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: Surrogate = surrogate.DEFAULT,
        learn_slope: bool = False,
    ) -> None:
        super().__init__(
            v_threshold=v_threshold,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            learn_slope=learn_slope,
        )
        if not (init_tau > 1 and math.isfinite(init_tau)):
            raise DPAPError(
                f"PLIF cannot start at init_tau={init_tau}: 1 / tau is a sigmoid, which lies between 0 and 1.",
                fix="pass init_tau > 1",
            )
        if channels is not None and channels < 1:
            raise DPAPError(f"PLIF was given channels={channels}.", fix="pass channels >= 1, or None for one tau")
        shape = () if channels is None else (channels,)
        self.w = nn.Parameter(torch.full(shape, -math.log(init_tau - 1)))

    def rate(self) -> Tensor:
        return torch.sigmoid(self.w)

    def extra_repr(self) -> str:
        channels = f"channels={self.w.shape[0]}, " if self.w.ndim else ""
        return channels + super().extra_repr()


class LeakyIntegrator(nn.Module):
    """A readout neuron that never fires: v <- v + (x - v) / tau, from v = 0; answers its potentials at all steps.

    Args:
        tau: Membrane time constant in steps, >= 1.

    Raises:
        DPAPError: `tau` < 1.

    >>> LeakyIntegrator(tau=2.0)(torch.ones(3, 1)).flatten().tolist()
    [0.5, 0.75, 0.875]
    """

    def __init__(self, tau: float = 2.0) -> None:
        super().__init__()
        if not tau >= 1:
            raise DPAPError(f"LeakyIntegrator was given tau={tau}.", fix="pass tau >= 1")
        self.tau = float(tau)

    def forward(self, x: Float[Tensor, "T B *N"]) -> Float[Tensor, "T B *N"]:
        # A sum over steps is never in half precision, whatever autocast does.
        first, *later = (x if x.dtype == torch.float64 else x.float()).unbind(0)
        potentials = [first / self.tau]
        for x_t in later:
            potentials.append(potentials[-1] + (x_t - potentials[-1]) / self.tau)
        return torch.stack(potentials)

    def extra_repr(self) -> str:
        return f"tau={self.tau}"
