"""Latency: measured in turns, in evaluation mode, and positive."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from dpap.metrics import latency


class Logged(nn.Module):
    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(self.name)
        self.modes.append(self.training)
        return x


def test_models_take_turns_after_a_first_pass_of_each() -> None:
    log: list[str] = []
    a, b = Logged("a", log), Logged("b", log).eval()
    seconds = latency([a, b], torch.zeros(1), repeats=3)
    assert log == ["a", "b"] * 4
    assert len(seconds) == 2
    assert not any(a.modes + b.modes), "in evaluation mode"
    assert a.training and not b.training, "and back as they were"


def test_medians_without_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 0, 1, 10, 12, 20, 50])  # the first pass reads the clock once; then pairs of start and end
    monkeypatch.setattr(sys.modules["dpap.metrics.latency"], "_now", lambda inputs: next(times))
    assert latency([nn.Identity()], torch.zeros(1), repeats=3) == [2.0]  # of 1, 2 and 30


def test_more_work_takes_longer() -> None:
    small, large = nn.Linear(8, 8), nn.Sequential(*(nn.Linear(512, 512) for _ in range(20)))
    large.insert(0, nn.Linear(8, 512))
    fast, slow = latency([small, large], torch.rand(64, 8), repeats=5)
    assert 0 < fast < slow
