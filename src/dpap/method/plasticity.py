"""Spike trace, BCM plasticity, dendritic spine.

What the network did, seen from each unit and each synapse. One pure function per equation of the paper (Han et al.,
IEEE TPAMI 2025, arXiv 2211.12714; the numbers are its equation numbers), and the two ways of keeping its sums: over a
window, from which every quantity follows in closed form (rule `dpap`), or with the threshold that slides batch by batch
as printed (rules `paper`, `released`).

Shapes: T time steps, B samples, I input entries, O units. Activity is time-first; space has been summed before (the
trace is linear, so the order does not matter). An ordinary network is the case T = 1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpap.errors import DPAPError

Kind = Literal["unit", "synapse", "pair", "step"]
"""What competes: units, synapses, the time steps of a unit, the time steps of a layer."""


def spike_trace(spikes: Float[Tensor, " T *N"], decay: float) -> Float[Tensor, "*N"]:
    """Leaky sum of what was fired; paper, Eq. (1) and (2): S[t] = decay S[t-1] + o[t], the value after the last step.

    >>> spike_trace(torch.tensor([1.0, 0.0, 1.0, 1.0]), decay=0.5).item()
    1.625
    """
    trace = torch.zeros_like(spikes[0])
    for spikes_t in spikes:
        trace = decay * trace + spikes_t
    return trace


def final_trace_weights(num_steps: int, decay: float) -> Float[Tensor, " T"]:
    """How much step t counts in the trace after the last step: decay^(T - t), Eq. (1) unrolled.

    >>> final_trace_weights(3, 0.5).tolist()
    [0.25, 0.5, 1.0]
    """
    return decay ** torch.arange(num_steps - 1, -1, -1, dtype=torch.float64)


def mean_trace_weights(num_steps: int, decay: float) -> Float[Tensor, " T"]:
    """How much step t counts in the trace's mean over steps: (1 - decay^(T-t+1)) / ((1 - decay) T), Eq. (1) averaged.

    The trace after the last step holds nearly all its weight in the last three steps; its mean sees the whole sample.

    >>> mean_trace_weights(2, 0.5).tolist()  # traces o1 and o1 / 2 + o2
    [0.75, 0.5]
    """
    left = torch.arange(num_steps, 0, -1, dtype=torch.float64)
    return (1 - decay**left) / ((1 - decay) * num_steps)


def activity(spikes: Float[Tensor, "seen B N"], weights: Float[Tensor, " T"]) -> Float[Tensor, "B N"]:
    """One number per sample and unit: the steps weighted as in a trace and summed. What came once holds for all T."""
    weights = weights.to(spikes)
    if len(spikes) == 1:
        return spikes[0] * weights.sum()
    summed: Tensor = torch.tensordot(weights, spikes, dims=1)
    return summed


def bcm_update(
    pre: Float[Tensor, "B I"], post: Float[Tensor, "B O"], theta: Float[Tensor, "*B O"]
) -> Float[Tensor, "O I"]:
    """Synaptic change of one batch under the BCM rule, summed over samples; paper, Eq. (3).

    Above the sliding threshold `theta` a synapse is strengthened, below it weakened:

    >>> bcm_update(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]), theta=torch.tensor([2.0, 2.0])).tolist()
    [[3.0, 6.0], [-1.0, -2.0]]
    """
    return (post * (post - theta)).T @ pre


def slide_threshold(theta: Float[Tensor, "*B O"], post: Float[Tensor, "*B O"], num: int) -> Float[Tensor, "*B O"]:
    """Running mean of the post-synaptic activity; paper, Eq. (4). `num` counts the run's batches from 1, Eq. (5).

    >>> slide_threshold(torch.tensor([2.0]), torch.tensor([5.0]), num=3).item()
    3.0
    """
    return (theta * (num - 1) + post) / num


def bcm_closed_form(
    post_squared: Float[Tensor, "*N"], post: Float[Tensor, "*N"], theta: Float[Tensor, "*#N"], eps: float
) -> Float[Tensor, "*N"]:
    """Size of the mean BCM change, |E[x y^2] - theta E[x y]|: Eq. (3), (4) and (6), the threshold fixed in the window.

    Args:
        post_squared: E[x y^2], of synapses, or summed over the inputs.
        post: E[x y], likewise.
        theta: Threshold of the unit, broadcast.
        eps: Differences below eps (E[x y^2] + theta E[x y]) are rounding and count as 0.
    """
    depression = theta * post
    change = (post_squared - depression).abs()
    return torch.where(change < eps * (post_squared + depression).abs(), 0, change)


def bcm_turnover(
    post_squared: Float[Tensor, "*N"], post: Float[Tensor, "*N"], theta: Float[Tensor, "*#N"]
) -> Float[Tensor, "*N"]:
    """How much the BCM rule moves a synapse, E[x y^2] + theta E[x y]: potentiation and depression of Eq. (3) added.

    Args:
        post_squared: E[x y^2].
        post: E[x y].
        theta: Threshold of the unit, broadcast.

    >>> bcm_turnover(torch.tensor([5.0]), torch.tensor([2.0]), torch.tensor([2.5])).tolist()
    [10.0]
    """
    return post_squared + theta * post


def unit_spine(change: Float[Tensor, " O"], mean_activity: Float[Tensor, " O"]) -> Float[Tensor, " O"]:
    """Dendritic spine of a unit, D = sqrt(R A): the geometric mean of its plasticity and its activity; compare Eq. (7).

    >>> unit_spine(torch.tensor([8.0, 0.0]), torch.tensor([2.0, 3.0])).tolist()
    [4.0, 0.0]
    """
    return (change * mean_activity).sqrt()


def synapse_spine(weight: Float[Tensor, "O I"], use: Float[Tensor, "*#O I"]) -> Float[Tensor, "O I"]:
    """Spine of a synapse, |w| x use: its strength times what passes it, or times how much it changes.

    >>> synapse_spine(torch.tensor([[-2.0, 1.0]]), torch.tensor([9.0, 4.0])).tolist()
    [[18.0, 4.0]]
    """
    return weight.abs() * use


def stdp_update(pre: Float[Tensor, "T B I"], post: Float[Tensor, "T B O"], decay: float) -> Float[Tensor, "O I"]:
    """Pair-based spike-timing plasticity of one batch: sum over steps of S_pre[t] o_post[t] - S_post[t] o_pre[t].

    A synapse whose input fires before its unit is strengthened, after it weakened:

    >>> early, late = torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([[[0.0]], [[1.0]]])
    >>> stdp_update(early, late, 0.5).item(), stdp_update(late, early, 0.5).item()
    (0.5, -0.5)
    """
    change = torch.zeros(post.shape[2], pre.shape[2], dtype=post.dtype, device=post.device)
    trace_pre, trace_post = torch.zeros_like(pre[0]), torch.zeros_like(post[0])
    for pre_t, post_t in zip(pre, post, strict=True):
        trace_pre, trace_post = decay * trace_pre + pre_t, decay * trace_post + post_t
        change += post_t.T @ trace_pre - trace_post.T @ pre_t
    return change


def time_importance(pre: Float[Tensor, "seen B"], post: Float[Tensor, "T B O"], decay: float) -> Float[Tensor, "O T"]:
    """What each step is worth to each unit, summed over samples; paper, Eq. (8): the trace of its inputs up to that
    step times what it fires in it.

    Args:
        pre: Activity summed over the living inputs; what came once is the same at every step.
        post: Spikes.
        decay: Of the trace. It runs on over steps at which units are dead.

    >>> time_importance(torch.tensor([[1.0], [1.0]]), torch.tensor([[[1.0]], [[2.0]]]), decay=0.5).tolist()
    [[1.0, 3.0]]
    """
    trace, used = torch.zeros_like(pre[0]), []
    for pre_t, post_t in zip(pre.expand(len(post), -1), post, strict=True):
        trace = decay * trace + pre_t
        used.append(trace @ post_t)
    return torch.stack(used, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a score may look at: one layer, one development step. All tensors are read-only by agreement."""

    layer: str
    """Path of the layer's module."""
    kind: Kind
    """Whether units (answer (O,)) or synapses (answer (O, I)) are to be scored."""
    seed: int
    """Seed of the run, for scores that draw."""
    weight: Tensor
    """(O, I, *kernel); for the synapses of a convolution (O, I), the sum of |w| over the kernel."""
    alive: Bool[Tensor, ...]
    """(O,) or (O, I), as the answer."""
    samples: int
    """Samples observed in the window."""
    y: Float[Tensor, " O"]
    """Sum over samples of the post activity."""
    theta: Float[Tensor, " O"]
    """Threshold of each unit; in a window: E[y] of the previous one (the first time: of this one)."""
    # Sums over a window (rule `dpap`).
    theta_squared: Float[Tensor, " O"] | None = None
    """E[y^2] in the previous window, likewise."""
    yy: Float[Tensor, " O"] | None = None
    """Sum of y^2."""
    x: Float[Tensor, "*rows I"] | None = None
    """Sum of the pre activity; of a grouped convolution (O, I / groups), that of the inputs which each output reads."""
    rate_x: Float[Tensor, "*rows I"] | None = None
    """Sum of the mean input per step, without a trace."""
    rate_y: Float[Tensor, " O"] | None = None
    """Sum of the mean output per step, without a trace."""
    total_y: Float[Tensor, " O"] | None = None
    """Sum of X y, X the summed pre activity of the living inputs."""
    total_yy: Float[Tensor, " O"] | None = None
    """Sum of X y^2."""
    xy: Float[Tensor, "O I"] | None = None
    """Sum of x_j y_i, where synapses are prunable."""
    xyy: Float[Tensor, "O I"] | None = None
    """Sum of x_j y_i^2, likewise."""
    stdp: Float[Tensor, "O _"] | None = None
    """Sum of the STDP change (one column, that of all inputs together, where synapses are not prunable)."""
    # Sums with the sliding threshold (rules `paper`, `released`).
    bcm: Float[Tensor, "O I"] | None = None
    """Sum of Eq. (3), where synapses are prunable."""
    bcm_rows: Float[Tensor, " O"] | None = None
    """The same, summed over the living inputs."""
    spine: Float[Tensor, " O"] | None = None
    """Sum of the right-hand form of Eq. (7), per sample."""
    # Of the backward passes (kind "synapse" alone, for scores that ask for it).
    taylor: Float[Tensor, "O I"] | None = None
    """Sum of |w dL/dw|, the taps of a kernel added before the size is taken."""
    # What stands around the units (kind "unit" alone, for scores that ask for it).
    norm_scale: Float[Tensor, " O"] | None = None
    """Scale of the norm behind the layer."""
    outgoing: Float[Tensor, " O"] | None = None
    """Sum of |w| over the weights that read the unit."""

    @property
    def eps(self) -> float:
        """Relative size under which a difference of two sums is rounding."""
        return 1e-12 if self.y.dtype == torch.float64 else 1e-5


WINDOW_SUMS = ("yy", "x", "rate_x", "rate_y", "total_y", "total_yy", "xy", "xyy", "stdp")


class WindowSums:
    """Plain sums over the samples of a window: neither batch order nor batch size can change them beyond rounding.

    Args:
        units: O.
        inputs: I.
        pairs: Keep the sums of every synapse.
        dtype: Of the sums.
        device: Of the sums.
        stdp: Keep the STDP sum, with the trace `decay`.
        num_steps: T where Eq. (8) is summed for every unit and step; 0: it is not.
    """

    def __init__(
        self,
        units: int,
        inputs: int,
        *,
        pairs: bool,
        dtype: torch.dtype,
        device: torch.device,
        stdp: bool = False,
        num_steps: int = 0,
        decay: float = 0.5,
    ) -> None:
        self.pairs, self.decay = pairs, decay
        self.samples = 0
        shapes = dict.fromkeys(("y", "yy", "rate_y", "total_y", "total_yy"), (units,))
        shapes |= {"x": (inputs,), "rate_x": (inputs,)}
        matrices = {"xy": (units, inputs), "xyy": (units, inputs)} if pairs else {}
        matrices |= {"stdp": (units, inputs if pairs else 1)} if stdp else {}
        matrices |= {"time": (units, num_steps)} if num_steps else {}
        self.sums = {
            name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in (shapes | matrices).items()
        }
        self.theta: Tensor | None = None
        self.theta_squared: Tensor | None = None

    def add(
        self,
        pre: Float[Tensor, "seen B I"],
        post: Float[Tensor, "given B O"],
        living: Bool[Tensor, " I"],
        pre_weights: Float[Tensor, " T"],
        post_weights: Float[Tensor, " T"],
    ) -> None:
        """Account for one pass; what came once is the same at every step. `living`: input entries whose unit is alive;
        the others do not enter X."""
        x, y = activity(pre, pre_weights), activity(post, post_weights)
        total = x @ living.to(x)
        squared = y * y
        self.samples += len(y)
        s = self.sums
        s["y"] += y.sum(0)
        s["yy"] += squared.sum(0)
        s["x"] += x.sum(0)
        s["rate_x"] += pre.mean(0).sum(0)
        s["rate_y"] += post.mean(0).sum(0)
        s["total_y"] += total @ y
        s["total_yy"] += total @ squared
        if "xy" in s:
            s["xy"].addmm_(y.T, x)
            s["xyy"].addmm_(squared.T, x)
        if "time" in s:
            s["time"] += time_importance(pre @ living.to(pre), post, self.decay)
        if "stdp" in s:
            pre = pre.expand(len(post), *pre.shape[1:])
            s["stdp"] += stdp_update(pre if self.pairs else pre @ living.to(pre)[:, None], post, self.decay)

    def close(self) -> None:
        """End of a window: its mean activity becomes the threshold of the next one, and the sums start again."""
        self.theta, self.theta_squared = self.thresholds()
        self.samples = 0
        for tensor in self.sums.values():
            tensor.zero_()

    def with_sums(self, samples: int, sums: dict[str, Tensor]) -> WindowSums:
        """The same window with these sums over these samples, such as those of several processes."""
        other = copy.copy(self)
        other.samples, other.sums = samples, sums
        return other

    def thresholds(self) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
        """E[y] and E[y^2] of the window."""
        return self.sums["y"] / self.samples, self.sums["yy"] / self.samples

    def stats(self, layer: str, kind: Kind, seed: int, weight: Tensor, alive: Tensor) -> Stats:
        own = self.thresholds()
        return Stats(
            layer=layer,
            kind=kind,
            seed=seed,
            weight=weight,
            alive=alive,
            samples=self.samples,
            theta=own[0] if self.theta is None else self.theta,
            theta_squared=own[1] if self.theta_squared is None else self.theta_squared,
            y=self.sums["y"],
            **{name: self.sums.get(name) for name in WINDOW_SUMS},
        )

    def state_dict(self) -> dict[str, Tensor | int | None]:
        return {**self.sums, "samples": self.samples, "theta": self.theta, "theta_squared": self.theta_squared}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _load_sums(self.sums, state)
        self.samples = int(state["samples"])
        self.theta, self.theta_squared = state["theta"], state["theta_squared"]


class SlidingSums:
    """The sums as printed: each batch enters Eq. (3) with the threshold from before it, then slides it, Eq. (4).

    Args:
        per_slot: One threshold per position in the batch, as the released script keeps it; else one per unit, sliding
            with the mean over samples.
        reset: Start Eq. (6) and (7) again at every development step, as printed; the released script never does.
    """

    def __init__(
        self,
        units: int,
        inputs: int,
        *,
        pairs: bool,
        per_slot: bool,
        reset: bool,
        dtype: torch.dtype,
        device: torch.device,
        num_steps: int = 0,
        decay: float = 0.5,
    ) -> None:
        self.per_slot, self.reset, self.decay = per_slot, reset, decay
        self.samples, self.num = 0, 0
        shapes = dict.fromkeys(("y", "bcm_rows", "spine"), (units,)) | ({"bcm": (units, inputs)} if pairs else {})
        shapes |= {"time": (units, num_steps)} if num_steps else {}
        self.sums = {n: torch.zeros(shape, dtype=dtype, device=device) for n, shape in shapes.items()}
        self.theta: Tensor | None = None

    def add(
        self,
        pre: Float[Tensor, "seen B I"],
        post: Float[Tensor, "given B O"],
        living: Bool[Tensor, " I"],
        pre_weights: Float[Tensor, " T"],
        post_weights: Float[Tensor, " T"],
    ) -> None:
        """Account for one batch."""
        x, y = activity(pre, pre_weights), activity(post, post_weights)
        total = x @ living.to(x)
        if self.theta is None:
            self.theta = torch.zeros_like(y if self.per_slot else y[0])
        if self.per_slot and self.theta.shape != y.shape:
            raise DPAPError(
                f"Rule 'released' keeps a threshold per position in the batch: it began with {len(self.theta)} samples "
                f"a batch and got {len(y)}.",
                fix="drop the last, smaller batch (drop_last=True), or choose the rule 'paper' or 'dpap'.",
            )
        change = y * (y - self.theta)
        s = self.sums
        s["y"] += y.sum(0)
        s["bcm_rows"] += total @ change
        s["spine"] += total @ (y * change)
        if "bcm" in s:
            s["bcm"] += bcm_update(x, y, self.theta)
        if "time" in s:
            s["time"] += time_importance(pre @ living.to(pre), post, self.decay)
        self.samples += len(y)
        self.num += 1
        self.theta = slide_threshold(self.theta, y if self.per_slot else y.mean(0), self.num)

    def close(self) -> None:
        """End of an epoch."""
        if self.reset:
            self.samples = 0
            for tensor in self.sums.values():
                tensor.zero_()

    def stats(self, layer: str, kind: Kind, seed: int, weight: Tensor, alive: Tensor) -> Stats:
        theta = torch.zeros_like(self.sums["y"]) if self.theta is None else self.theta
        return Stats(
            layer=layer,
            kind=kind,
            seed=seed,
            weight=weight,
            alive=alive,
            samples=self.samples,
            theta=theta.mean(0) if self.per_slot else theta,
            **{name: self.sums.get(name) for name in ("bcm", "bcm_rows", "spine")},
            y=self.sums["y"],
        )

    def state_dict(self) -> dict[str, Tensor | int | None]:
        return {**self.sums, "samples": self.samples, "num": self.num, "theta": self.theta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _load_sums(self.sums, state)
        self.samples, self.num, self.theta = int(state["samples"]), int(state["num"]), state["theta"]


def _load_sums(sums: dict[str, Tensor], state: Mapping[str, Any]) -> None:
    for name, tensor in sums.items():
        tensor.copy_(state[name])
