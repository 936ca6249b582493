"""How long it takes, measured; never inferred from counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from dpap.metrics.synops import evaluating


def latency(models: Sequence[nn.Module], inputs: Tensor, *, repeats: int = 10) -> list[float]:
    """Median seconds of one forward pass of each model, in evaluation mode.

    The models take turns, so that what else the machine does meets all of them alike; a first pass of each warms up.
    """
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):
        for model, taken in zip(models, seconds, strict=True):
            with evaluating(model):
                start = _now(inputs)
                model(inputs)
                if turn:
                    taken.append(_now(inputs) - start)
    return [median(taken) for taken in seconds]


def _now(inputs: Tensor) -> float:
    if inputs.is_cuda:  # kernels run on after the call has returned
        torch.cuda.synchronize(inputs.device)
    return time.perf_counter()
