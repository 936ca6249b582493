"""Regrowth: the weakest synapses of a layer give their places to pruned ones that would be used. Beyond the paper.

A development step prunes what the schedule asks for; then it may exchange a share of each layer's synapses, less and
less, so that a connection pruned too early can come back. Pure functions of tensors, one layer at a time; compare
Mocanu et al. 2018 (SET: newborns at random) and Evci et al. 2020 (RigL: where the gradient is largest).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dpap.method.scores import drawn
from dpap.method.survival import ROUNDING

Regrow = Literal["hebb", "gradient", "random"]
"""Who is born: where the two ends are active together, where the loss asks for it, or anyone."""
FIRST_SHARE = 0.3
"""Of a layer's living synapses, at the start of the window."""


def exchange_share(q: float) -> float:
    """Share of a layer's living synapses that is exchanged at q: 0.3 (1 + cos(pi q)) / 2, nothing at the end.

    >>> exchange_share(0.0), round(exchange_share(0.5), 3), exchange_share(1.0)
    (0.3, 0.15, 0.0)
    """
    return FIRST_SHARE * (1 + math.cos(math.pi * q)) / 2


def hebbian(xy: Float[Tensor, "O I"], ends: Bool[Tensor, "O I"]) -> Float[Tensor, "O I"]:
    """How much the two ends of a pair are active together, E[x y] relative to the other inputs of the unit.

    Args:
        xy: Sum of x_j y_i over a window.
        ends: Pairs whose ends both live.
    """
    xy = torch.where(ends, xy.abs(), 0)
    total = xy.sum(1, keepdim=True)
    return xy / torch.where(total > 0, total, 1)


def promise(
    regrow: Regrow, xy: Tensor | None, gradient: Tensor | None, ends: Tensor, *, seed: int, layer: str, step: int
) -> Float[Tensor, "O I"]:
    """What a pruned synapse of a layer promises if it were born.

    Args:
        regrow: Which promise.
        xy: (O, I), sum of x_j y_i over the window; "hebb" reads it.
        gradient: (O, I), sizes of dL/dw summed over the window and the kernel; "gradient" reads it.
        ends: (O, I), pairs whose ends both live.
        seed: Of the run; "random" draws.
        layer: Likewise, its name.
        step: Likewise, calls of `dev.step()` so far.
    """
    if regrow == "hebb":
        assert xy is not None, "asked for when the window was made"
        return hebbian(xy, ends)
    if regrow == "gradient":
        assert gradient is not None, "asked for when the window was made"
        return gradient
    return drawn(tuple(ends.shape), seed, layer, "regrow", step).to(ends.device)


def exchange(
    living: Bool[Tensor, "O I"],
    ends: Bool[Tensor, "O I"],
    safe: Bool[Tensor, "O I"],
    survival: Float[Tensor, "O I"],
    promised: Float[Tensor, "O I"],
    number: int,
) -> tuple[Bool[Tensor, "O I"], Bool[Tensor, "O I"]]:
    """Which synapses are pruned and which are born in their places; as many, at most `number`.

    Never the last input of a unit or the last output of an input: the strongest of each row and column stays.

    Args:
        living: Synapses that live.
        ends: Pairs whose ends both live.
        safe: Synapses too young to be pruned.
        survival: F.
        promised: What a pruned synapse promises.
        number: Of synapses to exchange.
    """
    strength = torch.where(living, survival, -torch.inf)
    strongest = torch.zeros_like(living)
    strongest.scatter_(1, strength.argmax(1, keepdim=True), True)
    strongest.scatter_(0, strength.argmax(0, keepdim=True), True)
    weak = living & ~safe & ~strongest
    dead = ends & ~living
    number = min(number, int(weak.sum()), int(dead.sum()))
    died = _first(torch.where(weak, survival, torch.inf), number)
    born = _first(torch.where(dead, -promised, torch.inf), number)
    return died, born


def _first(values: Tensor, number: int) -> Tensor:
    """The `number` smallest, ties by their place."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
    chosen[values.reshape(-1).argsort(stable=True)[:number]] = True
    return chosen.view_as(values)


def erk_density(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Density of each layer of a network that starts sparse: Erdos-Renyi with kernels, as in Evci et al. 2020.

    In proportion to (outputs + inputs + kernel height + kernel width) / (their product), none above 1.

    Args:
        shapes: Weight -> shape.
        density: Of all of them together.

    >>> {k: round(v, 3) for k, v in erk_density({"a": (10, 10), "b": (100, 100)}, 0.1).items()}
    {'a': 0.918, 'b': 0.092}
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    full: set[str] = set()
    while True:
        left = density * sum(sizes.values()) - sum(sizes[name] for name in full)
        scale = left / sum(raw[name] * sizes[name] for name in raw if name not in full)
        over = {name for name in raw if name not in full and scale * raw[name] > 1 + ROUNDING}
        if not over:
            return {name: 1.0 if name in full else min(1.0, scale * raw[name]) for name in raw}
        full |= over


def sparse_start(shape: tuple[int, int], density: float, *, seed: int, layer: str) -> Bool[Tensor, "O I"]:
    """Which synapses of a layer live from the start, drawn once per run; every unit has at least one input.

    Args:
        shape: (outputs, inputs).
        density: Of the layer.
        seed: Of the run.
        layer: Its name.
    """
    order = drawn(shape, seed, layer, "start")
    order.scatter_(1, order.argmax(1, keepdim=True), 2.0)  # the first input of each unit comes before all others
    return _first(-order, round(density * order.numel()))
