"""Accuracy against time steps: running means by hand, and who has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.find import find_groups
from dpap.metrics import accuracy, anytime
from dpap.models import ConvNet
from dpap.time.graph import time_graph
from dpap.time.timing import Timing


class Given(nn.Module):
    """Answers the readout that it is given, (B, T, classes), step by step."""

    def forward(self, x: Tensor, *, every_step: bool = False) -> Tensor:
        out = x.transpose(0, 1)
        return out if every_step else out.mean(0)


# Three samples over three steps, two classes. Sums: (0, 1) (2, 1) (2, 4); (3, 0) (3, 1) (3, 2); (0, 0) (0, 0) (1, 0).
READOUT = torch.tensor(
    [
        [[0.0, 1.0], [2.0, 0.0], [0.0, 3.0]],
        [[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
        [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]],
    ]
)


def test_running_means_by_hand() -> None:
    """Right after 1, 2, 3 steps: yes, no, yes; no, no, no; and a tie, which goes to class 0: yes, yes, yes."""
    batches = [(READOUT[:2], torch.tensor([1, 1])), (READOUT[2:], torch.tensor([0]))]
    assert anytime(Given(), batches) == pytest.approx((2 / 3, 1 / 3, 2 / 3))


def test_another_answer_than_the_mean_by_hand() -> None:
    """After t steps the readout of step t alone: yes, no, yes; no, yes, yes; yes, yes, yes."""
    batches = [(READOUT, torch.tensor([1, 1, 0]))]
    assert anytime(Given(), batches, answer=lambda steps: steps[-1]) == pytest.approx((2 / 3, 2 / 3, 1.0))
    # The highest so far, of classes 0 and 1: (0, 1) (2, 1) (2, 3); (3, 0) (3, 1) (3, 1); (0, 0) (0, 0) (1, 0).
    assert anytime(Given(), batches, answer=lambda steps: steps.amax(0)) == pytest.approx((2 / 3, 1 / 3, 2 / 3))


def test_the_last_is_the_accuracy_of_the_network() -> None:
    torch.manual_seed(0)
    model = ConvNet(shape=(1, 6, 6), classes=3, blocks=((4,),), hidden=(8,), num_steps=5)
    batches = [(torch.rand(40, 1, 6, 6) * 4, torch.randint(3, (40,))) for _ in range(2)]
    found = anytime(model, batches)
    assert len(found) == 5
    assert found[-1] == accuracy(model, batches)
    assert model.training, "left as it was"


def test_another_way_to_call_the_network() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return x.transpose(0, 1)

    assert anytime(nn.Identity(), [(READOUT, torch.tensor([1, 1, 0]))], forward=forward)[0] == pytest.approx(2 / 3)


def test_a_network_with_dead_pairs_is_refused_and_one_whose_pairs_all_live_is_not() -> None:
    model = ConvNet(shape=(1, 4, 4), classes=3, blocks=((2,),), hidden=(5,), num_steps=4).eval()
    x = torch.rand(2, 1, 4, 4)
    timing = Timing(model, time_graph(model, find_groups(model, x), "leak"), "leak")
    batches = [(x, torch.tensor([0, 1]))]
    assert len(anytime(model, batches)) == 4
    pairs = {name: alive.clone() for name, alive in timing.pairs.items()}
    next(iter(pairs.values()))[0, 1] = False
    timing.update(pairs)
    with pytest.raises(DPAPError, match="answers after all of its 4"):
        anytime(model, batches)


@pytest.mark.parametrize(
    ("batches", "problem"),
    [
        ([], "no batch"),
        ([READOUT], "no labels"),
        ([(READOUT[..., 0], torch.zeros(3, dtype=torch.long))], r"shape \(3, 3\), not \(T, B, classes\)"),
    ],
)
def test_bad_input(batches: list[Any], problem: str) -> None:
    with pytest.raises(DPAPError, match=problem):
        anytime(Given(), batches)
