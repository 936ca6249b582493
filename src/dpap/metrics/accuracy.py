"""How well it answers, and whether two networks differ: accuracy, McNemar's test, t-intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.metrics.synops import Forward, evaluating, run, split


def accuracy(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> float:
    """Share of samples whose largest output is that of their label, in evaluation mode.

    Args:
        batches: Pairs (inputs, labels).
        forward: `forward(model, inputs)` where the model is not called as `model(inputs)`.
    """
    right = correct(model, batches, forward=forward)
    return float(right.double().mean())


def correct(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> Bool[Tensor, " samples"]:
    """Which samples are answered rightly, in their order; two networks' vectors go into `mcnemar`.

    Raises:
        DPAPError: No batch, or a batch without labels.
    """
    parts: list[Tensor] = []
    with evaluating(model):
        for batch in batches:
            inputs, labels = split(batch)
            if labels is None:
                raise DPAPError("A batch has no labels.", fix="give pairs of inputs and labels.")
            parts.append(is_correct(run(model, inputs, forward), labels))
    if not parts:
        raise DPAPError("There is no batch to evaluate.", fix="check the data set: its loader is empty.")
    return torch.cat(parts)


def is_correct(outputs: Shaped[Tensor, "B classes"], labels: Shaped[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Whether the largest output is the label's; a tie goes to the lower class."""
    return (outputs.argmax(dim=1) == labels.to(outputs.device)).cpu()


# two networks on the same samples ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Where two networks disagree."""

    only_first: int
    """Samples that only the first network answers rightly."""
    only_second: int
    p_value: float
    """Two-sided and exact (binomial): how likely so uneven a split is if both are equally good."""


def mcnemar(first: Bool[Tensor, " samples"], second: Bool[Tensor, " samples"]) -> McNemar:
    """McNemar's exact test on paired answers (pooled over seeds, if there are several).

    >>> mcnemar(tensor([True, True, True, False]), tensor([True, False, False, False])).p_value
    0.5
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    # Whole numbers until the one division: exact for any number of samples.
    tail = ways = 1  # ways: b + c over k
    for k in range(1, min(b, c) + 1):
        ways = ways * (b + c - k + 1) // k
        tail += ways
    return McNemar(only_first=b, only_second=c, p_value=min(1.0, 2 * tail / 2 ** (b + c)))


# several seeds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of values over seeds or folds."""

    n: int
    mean: float
    sd: float | None
    """Standard deviation (n - 1); None for a single run."""
    low: float | None
    """Lower end of the t-interval of the mean; None for a single run."""
    high: float | None


def summary(values: Sequence[float], *, level: float = 0.95) -> Summary:
    """Mean, standard deviation and t-interval. A single run gets no interval.

    >>> s = summary([1.0, 2.0, 3.0])
    >>> s.mean, s.sd, round(s.low, 3), round(s.high, 3)
    (2.0, 1.0, -0.484, 4.484)
    """
    if not values or not all(math.isfinite(v) for v in values):
        raise DPAPError(
            f"A summary needs finite values; these are {list(values)}.", fix="leave failed runs out, and say so."
        )
    n, mean = len(values), fmean(values)
    if n == 1:
        return Summary(n=1, mean=mean, sd=None, low=None, high=None)
    sd = stdev(values)
    half = t_quantile((1 + level) / 2, n - 1) * sd / math.sqrt(n)
    return Summary(n=n, mean=mean, sd=sd, low=mean - half, high=mean + half)


def difference(values: Sequence[float], control: Sequence[float], *, level: float = 0.95) -> Summary:
    """Of the paired differences values[i] - control[i]: run i and control i share their seed.

    "Within m of the control" means `low > -m`.
    """
    if len(values) != len(control):
        raise DPAPError(
            f"{len(values)} values and {len(control)} controls cannot be paired.", fix="give one control per seed."
        )
    return summary([v - c for v, c in zip(values, control, strict=True)], level=level)


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t distribution with a whole number of degrees of freedom.

    Its distribution function has a finite closed form in the angle atan(t / sqrt(df)) (Abramowitz and Stegun, 26.7.3
    and 26.7.4), which rises from 0 to 1 and is inverted by bisection.

    >>> round(t_quantile(0.975, 4), 4)
    2.7764
    """
    if not 0 < p < 1 or df < 1:
        raise DPAPError(f"There is no t quantile at p = {p}, df = {df}.", fix="use 0 < p < 1 and df >= 1.")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, math.pi / 2
    for _ in range(80):  # more halvings than a float has digits
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, df) < 2 * p - 1 else (low, middle)
    return math.tan(low) * math.sqrt(df)


def _t_within(angle: float, df: int) -> float:
    """P(|t| < tan(angle) sqrt(df))."""
    sin, cos = math.sin(angle), math.cos(angle)
    odd = df % 2
    term = cos if odd else 1.0
    total = 0.0 if df == 1 else term
    for k in range(2 + odd, df - 1, 2):  # factors 2/3, 4/5, ... for odd df; 1/2, 3/4, ... for even
        term *= cos * cos * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sin * total) if odd else sin * total
