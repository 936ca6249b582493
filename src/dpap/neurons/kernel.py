"""T steps of a spiking neuron as one autograd node that saves its input alone; the equations are in `functional.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpap.errors import DPAPError
from dpap.neurons import surrogate as surrogates
from dpap.neurons.surrogate import Surrogate

# Elements of one step that one thread works on at a time in backward, by measurement: fewer cost more in calls than the
# cache saves (and PyTorch gives a second thread nothing below 32768), more leave the cache and cost page faults.
# Forward needs one such buffer where backward needs a dozen, so its pieces are larger.
PIECE = 65536


FORWARD_PIECES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """What is common to all neurons: when they fire and how they reset.

    Raises:
        DPAPError: The threshold is not above the reset potential, or not a finite number.
    """

    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = False
    surrogate: Surrogate = surrogates.DEFAULT

    def __post_init__(self) -> None:
        if not (math.isfinite(self.v_threshold) and math.isfinite(self.rest)):
            raise DPAPError(f"v_threshold={self.v_threshold} and v_reset={self.v_reset} must be finite numbers.")
        if self.v_threshold <= self.rest:
            raise DPAPError(
                f"v_threshold={self.v_threshold} is not above "
                + ("0, where a neuron with soft reset starts." if self.v_reset is None else f"v_reset={self.v_reset}."),
                fix="a neuron at rest must be below its threshold: raise v_threshold or lower v_reset",
            )

    @property
    def rest(self) -> float:
        """The potential at the start, towards which a LIF neuron leaks."""
        return 0.0 if self.v_reset is None else self.v_reset


def state_dtype(x: Tensor) -> torch.dtype:
    """float64 for a float64 input, else float32; not floating point raises DPAPError."""
    if not x.dtype.is_floating_point:
        raise DPAPError(
            f"A spiking neuron was given an input of dtype {x.dtype}.", fix="convert it first, for example x.float()"
        )
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def along_channels(rate: float | Tensor, x: Tensor, *, axis: int) -> float | Tensor:
    """`rate` in the state's dtype, shaped to broadcast along `axis` of `x`; a wrong number of channels raises."""
    if not isinstance(rate, Tensor):
        return rate
    rate = rate.to(state_dtype(x))
    if rate.ndim == 0:
        return rate
    if rate.ndim != 1 or x.ndim <= axis or x.shape[axis] != rate.shape[0]:
        raise DPAPError(
            f"A neuron with time constants of shape {tuple(rate.shape)} was given an input of shape {tuple(x.shape)}.",
            fix=f"axis {axis} of the input is the channel's: give the neuron as many `channels` as it has, or None",
        )
    return rate.view(-1, *(1,) * (x.ndim - axis - 1))


class Sequence(torch.autograd.Function):
    """One node for T steps. It saves its input alone: the rest is cheaper to compute again than to write and read.

    `x` is (T, B, ...); or (B, ...) with `num_steps`, an input that is the same at all of them: then its gradient is
    summed over time piece by piece, and neither T copies of the input nor T gradients of it ever exist.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, num_steps: int | None, rate: float | Tensor | None, alpha: Tensor | None, firing: Firing
    ) -> Tensor:
        ctx.num_steps, ctx.rate, ctx.firing = num_steps, None if isinstance(rate, Tensor) else rate, firing
        ctx.save_for_backward(x, rate if isinstance(rate, Tensor) else None, alpha)
        frame = _Frame(x, num_steps, rate)
        return frame.restore(_fire(frame, firing))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():  # create_graph=True; without this the second derivative would be zero, silently
            raise DPAPError(
                "The gradient of a spiking neuron cannot be differentiated again (create_graph=True).",
                fix="leave create_graph out, or run the neuron step by step in a loop, which autograd follows twice",
            )
        x, rate, alpha = ctx.saved_tensors
        needs_x, _, needs_rate, needs_slope, _ = ctx.needs_input_grad
        frame = _Frame(x, ctx.num_steps, ctx.rate if rate is None else rate)
        slope = ctx.firing.surrogate.alpha if alpha is None else float(alpha)
        backward = _Backward(frame, ctx.firing, slope, needs_rate=needs_rate, needs_slope=needs_slope)
        grad_x = backward.run(grad)
        return (
            grad_x if needs_x else None,
            None,
            frame.sum_channels(backward.grad_rate).to(rate.dtype) if backward.grad_rate is not None else None,
            backward.grad_slope.to(alpha.dtype) if backward.grad_slope is not None else None,
            None,
        )


class _Frame:
    """A sequence as (T, M, ...) whose steps lie contiguous in memory, and the way back to its shape.

    Elements are independent, so the axes after time are taken in the order in which they lie in memory (channels_last
    needs no copy); the time axis may have any stride, 0 included. (T, elements) where all share one rate;
    (T, B, features) where channels have their own, which `k` then gives per feature.
    """

    def __init__(self, x: Tensor, num_steps: int | None, rate: float | Tensor | None) -> None:
        self.constant = num_steps is not None
        if num_steps is not None:
            x = x.unsqueeze(0).expand(num_steps, *x.shape)
        self.shape, self.dtype, self.out_dtype, self.device = x.shape, state_dtype(x), x.dtype, x.device
        self.num_steps = x.shape[0]
        self.per_channel = isinstance(rate, Tensor) and rate.ndim == 1
        self.axes = self._axes_in_memory(x)
        self.x = self.arrange(x)
        self.k: float | Tensor | None = None
        if isinstance(rate, Tensor) and rate.ndim == 1:
            k = along_channels(rate.detach(), x, axis=2)
            assert isinstance(k, Tensor)
            self.k = k.expand(x.shape[2:]).permute([axis - 2 for axis in self.axes[1:]]).contiguous().flatten()
        elif rate is not None:
            self.k = float(rate)

    def _axes_in_memory(self, x: Tensor) -> list[int]:
        strides = x.stride()
        axes = sorted(range(1, x.ndim), key=lambda axis: -strides[axis])
        dense = x[0].permute([axis - 1 for axis in axes]).is_contiguous()
        return axes if dense and not (self.per_channel and axes[0] != 1) else list(range(1, x.ndim))

    def arrange(self, sequence: Tensor) -> Tensor:
        """A tensor of the sequence's shape as (T, M, ...), copied only if its steps lie otherwise in memory."""
        permuted = sequence.permute(0, *self.axes)
        if not permuted[0].is_contiguous():
            permuted = permuted.contiguous()
        if self.per_channel:
            return permuted.view(self.num_steps, self.shape[1], math.prod(self.shape[2:]))
        return permuted.view(self.num_steps, math.prod(self.shape[1:]))

    def restore(self, arranged: Tensor) -> Tensor:
        """(steps, M, ...) back in the sequence's shape, with any number of steps; the layout in memory is kept."""
        axes = [0, *self.axes]
        full = arranged.view(arranged.shape[0], *(self.shape[axis] for axis in self.axes))
        return full.permute([axes.index(axis) for axis in range(len(axes))])

    def sum_channels(self, grad_rate: Tensor) -> Tensor:
        """A gradient per feature, as arranged, to one per channel."""
        if not self.per_channel:
            return grad_rate
        inner = self.axes[1:]
        others = [place for place, axis in enumerate(inner) if axis != 2]
        grad_rate = grad_rate.view([self.shape[axis] for axis in inner])
        return grad_rate.sum(others) if others else grad_rate

    def new(self, num_steps: int) -> Tensor:
        return torch.empty((num_steps, *self.x.shape[1:]), dtype=self.out_dtype, device=self.device)

    def entries(self, elements: int) -> int:
        """Entries of axis 1 to work on at a time: about `elements` a thread; all on a GPU, which has no such cache."""
        entries = self.x.shape[1]
        if self.device.type == "cpu":
            entries = min(entries, elements * torch.get_num_threads() // max(1, math.prod(self.x.shape[2:])))
        return max(1, entries)

    def pieces(self, entries: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, self.x.shape[1], entries):
            yield tuple(tensor[:, start : start + entries] for tensor in tensors)

    def buffer(self, num_steps: int, entries: int) -> Tensor:
        """Room for one piece, in the dtype of the state."""
        return torch.empty((num_steps, entries, *self.x.shape[2:]), dtype=self.dtype, device=self.device)

    def scalar(self, value: float) -> Tensor:
        """A 0-d tensor: an operator given one is spared a conversion that it makes for a number at each call."""
        return torch.full((), value, dtype=self.dtype, device=self.device)


def _charge(v: Tensor, x: Tensor, k: float | Tensor | None, rest: float, out: Tensor) -> None:
    """h of this step into `out`, which may be `v`."""
    if k is None:
        torch.add(v, x, out=out)
    else:
        torch.lerp(v, x + rest if rest else x, k, out=out)


def _fire(frame: _Frame, firing: Firing) -> Tensor:
    """The spikes of a sequence, arranged as the frame; of the membrane only the latest step exists."""
    spikes = frame.new(frame.num_steps)
    narrow = spikes.dtype != frame.dtype
    entries, threshold = frame.entries(FORWARD_PIECES * PIECE), frame.scalar(firing.v_threshold)
    membrane = frame.buffer(1, entries)[0]
    scratch = frame.buffer(1, entries)[0] if narrow else membrane
    for x, out in frame.pieces(entries, frame.x, spikes):
        v = membrane[: x.shape[1]].fill_(firing.rest)
        for t, (x_t, out_t) in enumerate(zip(x.unbind(0), out.unbind(0), strict=True)):
            _charge(v, x_t.to(frame.dtype), frame.k, firing.rest, out=v)
            spike = torch.ge(v, threshold, out=scratch[: x.shape[1]] if narrow else out_t)
            if narrow:
                out_t.copy_(spike)
            if t < frame.num_steps - 1:
                _reset(v, spike, firing)
    return spikes


def _reset(v: Tensor, spike: Tensor, firing: Firing) -> None:
    if firing.v_reset is None:
        v.sub_(spike, alpha=firing.v_threshold)
    else:
        v.addcmul_(v, spike, value=-1)
        if firing.v_reset:
            v.add_(spike, alpha=firing.v_reset)


class _Backward:
    """Gradients of one sequence: that of the input comes from `run`, those of rate and slope add up beside it."""

    def __init__(self, frame: _Frame, firing: Firing, slope: float, *, needs_rate: bool, needs_slope: bool) -> None:
        self.frame, self.firing, self.slope, self.k = frame, firing, slope, frame.k
        # dL/dx = k dL/dh is folded into the recurrence where k is a number and dL/dh itself is not asked for.
        self.folded = not isinstance(frame.k, Tensor) and not needs_rate and not needs_slope
        self.scale = frame.k if self.folded and isinstance(frame.k, float) else 1.0
        self.keep = 1.0 - frame.k if isinstance(frame.k, float) else 1.0
        steps, self.entries = frame.num_steps, frame.entries(PIECE)
        self.h, self.gate = frame.buffer(steps, self.entries), frame.buffer(steps, self.entries)
        self.alive, self.v = frame.buffer(steps - 1, self.entries), frame.buffer(1, self.entries)[0]
        self.zero, self.threshold = frame.scalar(0), frame.scalar(firing.v_threshold)
        self.drive = frame.buffer(steps, self.entries) if needs_rate else None
        self.grad_rate = torch.zeros_like(frame.k if isinstance(frame.k, Tensor) else self.zero) if needs_rate else None
        self.grad_slope = torch.zeros_like(self.zero) if needs_slope else None

    def run(self, grad: Tensor) -> Tensor:
        """From dL/ds, of the sequence's shape, to dL/dx, of the input's."""
        frame = self.frame
        grad_x = frame.new(1 if frame.constant else frame.num_steps)
        direct = grad_x.dtype == frame.dtype and not frame.constant
        wide = grad_x if direct else frame.buffer(frame.num_steps, self.entries)
        for x, e, out in frame.pieces(self.entries, frame.x, frame.arrange(grad), grad_x):
            piece_grad = out if direct else wide[:, : x.shape[1]]
            self._run_piece(x.to(frame.dtype), e.to(frame.dtype), piece_grad)
            if frame.constant:
                out.copy_(piece_grad.sum(0, keepdim=True))
            elif not direct:
                out.copy_(piece_grad)
        restored = frame.restore(grad_x)
        return restored[0] if frame.constant else restored

    def _run_piece(self, x: Tensor, e: Tensor, out: Tensor) -> None:
        firing, size = self.firing, x.shape[1]
        h, gate, alive = self.h[:, :size], self.gate[:, :size], self.alive[:, :size]
        self._recompute(x, h, alive)
        torch.sub(h, self.threshold, out=gate)
        by_slope = None if self.grad_slope is None else firing.surrogate.derivative_alpha(gate, self.slope)
        firing.surrogate.derivative_(gate, self.slope)
        # `alive` becomes A of the module's head, times 1 - k where k is a tensor.
        drop = h[:-1].sub_(firing.v_reset) if firing.v_reset else h[:-1]  # -dv/ds of a hard reset
        if not firing.detach_reset:
            if firing.v_reset is None:
                alive.add_(gate[:-1], alpha=-firing.v_threshold)
            else:
                alive.addcmul_(drop, gate[:-1], value=-1)
        if isinstance(self.k, Tensor):
            alive.mul_(1 - self.k)
        torch.addcmul(self.zero, e, gate, value=self.scale, out=out)
        for t in range(out.shape[0] - 2, -1, -1):
            out[t].addcmul_(alive[t], out[t + 1], value=self.keep)
        if by_slope is not None:
            self._add_to_slope(by_slope, e, drop, out)
        if self.drive is not None and self.grad_rate is not None:
            drive = self.drive[:, :size].mul_(out)
            self.grad_rate += drive.sum((0, 1)) if self.frame.per_channel else drive.sum()
        if not self.folded and self.k is not None:
            out.mul_(self.k)

    def _recompute(self, x: Tensor, h: Tensor, alive: Tensor) -> None:
        """Runs the membrane again: `h` before the reset, `alive` = dv/dh of a constant spike, `drive` = dh/dk."""
        firing, size = self.firing, x.shape[1]
        v = self.v[:size].fill_(firing.rest)
        for t in range(x.shape[0]):
            if self.drive is not None:
                drive = torch.sub(x[t], v, out=self.drive[t, :size])
                if firing.rest:
                    drive.add_(firing.rest)
            _charge(v, x[t], self.k, firing.rest, out=h[t])
            if t == x.shape[0] - 1:
                return
            if firing.v_reset is None:
                spike = torch.ge(h[t], self.threshold, out=alive[t])
                torch.sub(h[t], spike, alpha=firing.v_threshold, out=v)
                spike.fill_(1)
                continue
            torch.lt(h[t], self.threshold, out=alive[t])
            if firing.v_reset:
                torch.mul(alive[t], -firing.v_reset, out=v).add_(firing.v_reset).addcmul_(h[t], alive[t])
            else:
                torch.mul(h[t], alive[t], out=v)

    def _add_to_slope(self, by_slope: Tensor, e: Tensor, drop: Tensor, grad_h: Tensor) -> None:
        """Adds the sum of dL/ds dg/dalpha, where dL/ds = e + q dv/ds."""
        assert self.grad_slope is not None
        self.grad_slope += (e * by_slope).sum()
        if not self.firing.detach_reset:
            q = grad_h[1:] * (1 - self.k if isinstance(self.k, Tensor) else self.keep)
            minus_dv_ds = self.firing.v_threshold if self.firing.v_reset is None else drop
            self.grad_slope -= (q * minus_dv_ds * by_slope[:-1]).sum()
