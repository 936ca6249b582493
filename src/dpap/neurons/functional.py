"""Spiking neurons as functions: one time step (`if_step`, `lif_step`, `plif_step`) and whole sequences.

With r = v_reset (0 for a soft reset) and v[0] = r, a step is

    charge   IF: h = v + x            LIF: h = v + (x - (v - r)) / tau        PLIF: 1 / tau = sigmoid(w)
    fire     s = 1 where h >= v_threshold, else 0
    reset    hard: v = h (1 - s) + v_reset s              soft (v_reset is None): v = h - v_threshold s

A sequence has the result of calling the step T times, and one autograd node for all of it. That node keeps its input
alone: its backward runs the membrane forward again and then the recurrence of the gradient backward, on pieces small
enough to stay in the processor's cache over all T steps. With e = dL/ds[t] from the layers above and q[t] = dL/dv[t],

    dL/ds = e + q dv/ds        dv/ds = v_reset - h (hard), -v_threshold (soft), 0 (detached)
    dL/dh = q dv/dh + g'(h - v_threshold) dL/ds                   dv/dh = 1 - s (hard), 1 (soft)
    dL/dx = k dL/dh        q[t-1] = (1 - k) dL/dh                 k = 1 / tau; for IF both factors are 1

so that dL/dh[t] = q A + e g' with A = dv/dh + g' dv/ds.

All functions compute in float32 when the input is float16 or bfloat16, and spikes have the input's dtype.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dpap.errors import DPAPError
from dpap.neurons import surrogate as surrogates
from dpap.neurons.encoding import repeated_from
from dpap.neurons.kernel import Firing, Sequence, along_channels, state_dtype
from dpap.neurons.surrogate import Surrogate


def if_step(
    x: Float[Tensor, " B *N"],
    v: Float[Tensor, " B *N"] | None = None,
    *,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    surrogate: Surrogate = surrogates.DEFAULT,
    alpha: Tensor | None = None,
) -> tuple[Float[Tensor, " B *N"], Float[Tensor, " B *N"]]:
    """One step of an integrate-and-fire neuron.

    Args:
        x: Input of this step.
        v: Membrane potential after the last step; None at the start.
        v_threshold: Fires at or above it; must be above `v_reset`.
        v_reset: Potential after a spike; None subtracts the threshold instead (soft reset).
        detach_reset: Whether the spike is a constant in the reset as far as the gradient is concerned.
        surrogate: Gradient of the spike.
        alpha: 0-d tensor that replaces the surrogate's slope (learned slope).

    Returns:
        Spikes in the dtype of `x`, and the membrane potential after the reset (float32 or float64).

    Raises:
        DPAPError: A constant is outside its range, or `x` is not floating point.

    >>> spike, v = if_step(torch.tensor([[0.75, 1.25]]), torch.tensor([[0.5, -0.5]]))
    >>> spike.tolist(), v.tolist()
    ([[1.0, 0.0]], [[0.0, 0.75]])
    """
    firing = Firing(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
    return step(x, v, None, alpha, firing)


def lif_step(
    x: Float[Tensor, " B *N"],
    v: Float[Tensor, " B *N"] | None = None,
    tau: float | Tensor = 2.0,
    *,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    surrogate: Surrogate = surrogates.DEFAULT,
    alpha: Tensor | None = None,
) -> tuple[Float[Tensor, " B *N"], Float[Tensor, " B *N"]]:
    """One step of a leaky integrate-and-fire neuron; arguments and results as in `if_step`.

    Args:
        tau: Membrane time constant in steps, >= 1; a number, a 0-d tensor or one entry per channel (axis 1 of `x`).

    >>> spike, v = lif_step(torch.tensor([[1.5, 1.0]]), torch.tensor([[0.5, 0.5]]), tau=2.0)
    >>> spike.tolist(), v.tolist()
    ([[1.0, 0.0]], [[0.0, 0.75]])
    """
    firing = Firing(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
    return step(x, v, rate_of_tau(tau), alpha, firing)


def plif_step(
    x: Float[Tensor, " B *N"],
    v: Float[Tensor, " B *N"] | None,
    w: Tensor,
    *,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    surrogate: Surrogate = surrogates.DEFAULT,
    alpha: Tensor | None = None,
) -> tuple[Float[Tensor, " B *N"], Float[Tensor, " B *N"]]:
    """One step of a LIF neuron with 1 / tau = sigmoid(w), `w` 0-d or one entry per channel (axis 1); see `if_step`."""
    firing = Firing(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
    return step(x, v, torch.sigmoid(w), alpha, firing)


def if_sequence(
    x: Float[Tensor, "T B *N"],
    *,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    surrogate: Surrogate = surrogates.DEFAULT,
    alpha: Tensor | None = None,
) -> Float[Tensor, "T B *N"]:
    """T steps of `if_step` from rest, as one autograd node; returns the spikes.

    >>> if_sequence(torch.tensor([0.5, 0.25, 0.25, 1.0]).view(4, 1, 1)).flatten().tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    firing = Firing(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
    return sequence(x, None, alpha, firing)


def lif_sequence(
    x: Float[Tensor, "T B *N"],
    tau: float | Tensor = 2.0,
    *,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    surrogate: Surrogate = surrogates.DEFAULT,
    alpha: Tensor | None = None,
) -> Float[Tensor, "T B *N"]:
    """T steps of `lif_step` from rest, as one autograd node; returns the spikes. `tau` per channel: axis 2 of `x`.

    >>> lif_sequence(torch.tensor([1.0, 1.0, 2.0, 2.0]).view(4, 1, 1)).flatten().tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    firing = Firing(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
    return sequence(x, rate_of_tau(tau), alpha, firing)


def plif_sequence(
    x: Float[Tensor, "T B *N"],
    w: Tensor,
    *,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    surrogate: Surrogate = surrogates.DEFAULT,
    alpha: Tensor | None = None,
) -> Float[Tensor, "T B *N"]:
    """T steps of `plif_step` from rest, as one autograd node; returns the spikes. `w` per channel: axis 2 of `x`."""
    firing = Firing(v_threshold=v_threshold, v_reset=v_reset, detach_reset=detach_reset, surrogate=surrogate)
    return sequence(x, torch.sigmoid(w), alpha, firing)


def rate_of_tau(tau: float | Tensor) -> float | Tensor:
    """k = 1 / tau, the share of the way to its input that the membrane goes in a step; tau < 1 raises DPAPError."""
    if isinstance(tau, Tensor):  # its values are not looked at: that would wait for the device
        return tau.reciprocal()
    if not (tau >= 1 and math.isfinite(tau)):
        raise DPAPError(
            f"The time constant tau={tau} of a LIF neuron is below 1 step or not finite.",
            fix="pass tau >= 1 (at 1 the neuron forgets at once), or use IF for a neuron without leak",
        )
    return 1.0 / tau


def step(
    x: Tensor,
    v: Tensor | None,
    rate: float | Tensor | None,
    alpha: Tensor | None,
    firing: Firing,
    may_fire: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of any neuron; `rate` is k = 1 / tau, None without leak; `may_fire` (C,): 1 or 0. See `if_step`."""
    dtype = state_dtype(x)
    refuse_slopes(alpha)
    current = x.to(dtype)
    if v is None:
        v = torch.full_like(current, firing.rest)
    if rate is None:
        h = v + current
    else:
        k = along_channels(rate, current, axis=1)
        h = torch.lerp(v, current + firing.rest if firing.rest else current, k)
    spike = firing.surrogate.spike(h - firing.v_threshold, None if alpha is None else alpha.to(dtype))
    if may_fire is not None:
        spike = spike * along_channels(may_fire, x, axis=1)
    fired = spike.detach() if firing.detach_reset else spike
    if firing.v_reset is None:
        v = h - firing.v_threshold * fired
    else:
        v = h - h * fired
        if firing.v_reset:
            v = v + firing.v_reset * fired
    return spike.to(x.dtype), v


def sequence(x: Tensor, rate: float | Tensor | None, alpha: Tensor | None, firing: Firing) -> Tensor:
    """T steps of any neuron from rest; `rate` is k = 1 / tau, None without leak. See `if_sequence`."""
    if x.ndim < 2 or x.shape[0] < 1:
        raise DPAPError(
            f"A spiking neuron was given an input of shape {tuple(x.shape)}, without a step of time.",
            fix="pass (T, B, ...) with T >= 1; put dpap.neurons.Repeat(T) before the neuron for a constant input",
        )
    state_dtype(x)
    refuse_slopes(alpha)
    if isinstance(rate, Tensor):
        along_channels(rate, x, axis=2)
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return plain_sequence(x, rate, alpha, firing)
    source = repeated_from(x)
    num_steps = None if source is None else x.shape[0]
    spikes: Tensor = Sequence.apply(x if source is None else source, num_steps, rate, alpha, firing)  # type: ignore[no-untyped-call]
    return spikes


def plain_sequence(
    x: Tensor, rate: float | Tensor | None, alpha: Tensor | None, firing: Firing, may_fire: Tensor | None = None
) -> Tensor:
    """The same by a loop over `step`: the plain graph that `torch.export` and `torch.compile` see.

    `may_fire` (T, C): 0 where a channel gives no spike, and so is not reset, at a step.
    """
    spikes, v = [], None
    for t, x_t in enumerate(x.unbind(0)):
        spike, v = step(x_t, v, rate, alpha, firing, None if may_fire is None else may_fire[t].to(x.device))
        spikes.append(spike)
    return torch.stack(spikes)


def refuse_slopes(alpha: Tensor | None) -> None:
    """A slope that is not one number raises DPAPError."""
    if alpha is not None and alpha.ndim:
        raise DPAPError(
            f"A surrogate's learned slope alpha was given with shape {tuple(alpha.shape)}.",
            fix="pass a tensor of shape (): a layer has one slope",
        )
