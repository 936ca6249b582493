"""Losses: numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tiny_runs import tiny
from torch import Tensor
from torch.nn import functional as F

from dpap.config import sections
from dpap.training.losses import LOSSES, PER_STEP, cross_entropy, mse, tet
from dpap.training.run import Run

ZERO, ONE = torch.tensor([0]), torch.tensor([1])
THIRD = torch.tensor([[0.0, math.log(3)]])  # probabilities 1/4 and 3/4


def test_the_config_knows_every_loss() -> None:
    assert set(sections.LOSSES) == LOSSES.keys()
    assert LOSSES.keys() > PER_STEP


def test_cross_entropy() -> None:
    assert cross_entropy(THIRD, ZERO).item() == pytest.approx(math.log(4))
    assert cross_entropy(THIRD, ONE).item() == pytest.approx(math.log(4 / 3))


def test_label_smoothing_spreads_a_share_over_all_classes() -> None:
    """With 0.2 and two classes the right one keeps 0.9, the other gets 0.1."""
    by_hand = 0.9 * math.log(4) + 0.1 * math.log(4 / 3)
    assert cross_entropy(THIRD, ZERO, 0.2).item() == pytest.approx(by_hand)
    assert tet(THIRD[None], ZERO, 0.2).item() == pytest.approx(by_hand)
    # Rates 1 and 0.5 against 0.9 and 0.1: (0.01 + 0.16) / 2.
    assert mse(torch.tensor([[1.0, 0.5]]), ZERO, 0.2).item() == pytest.approx(0.085)


def test_squared_distance_of_rates() -> None:
    rates = torch.tensor([[1.0, 0.5], [0.25, 0.5]])
    # Labels 0 and 1: (0 + 0.25 + 0.0625 + 0.25) / 4.
    assert mse(rates, torch.tensor([0, 1])).item() == pytest.approx(0.140625)


def test_tet_is_the_mean_of_the_steps_not_the_loss_of_the_mean() -> None:
    steps = torch.stack([torch.zeros(1, 2), THIRD])  # cross-entropies log 2 and log 4
    assert tet(steps, ZERO).item() == pytest.approx(1.5 * math.log(2))
    assert tet(steps, ZERO).item() != pytest.approx(cross_entropy(steps.mean(0), ZERO).item())


def test_tet_gives_every_step_the_labels_of_its_samples() -> None:
    outputs, labels = torch.randn(3, 5, 4), torch.tensor([0, 3, 1, 2, 2])
    by_step = torch.stack([F.cross_entropy(step, labels) for step in outputs]).mean()
    torch.testing.assert_close(tet(outputs, labels), by_step)


LOSS_OF_A_BATCH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda steps, labels: F.cross_entropy(steps.mean(0), labels),
    "mse": lambda steps, labels: F.mse_loss(steps.mean(0), F.one_hot(labels, 10).float()),
    "tet": lambda steps, labels: torch.stack([F.cross_entropy(step, labels) for step in steps]).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_applies_its_loss_and_answers_with_the_mean_over_time(name: str) -> None:
    """In training mode, where norms keep the neurons busy; without dropout, so that a second pass sees the same."""
    run = Run(tiny(optimizer__loss=name, model__dropout="0"))
    images, labels = next(run.batches(0))
    outputs, loss = run.forward(images, labels)
    steps = run.model(images, every_step=True)
    assert steps.std(0).max() > 1e-3, "steps must differ for the mean to show"
    torch.testing.assert_close(outputs, steps.mean(0))
    torch.testing.assert_close(loss, LOSS_OF_A_BATCH[name](steps, labels))


@pytest.mark.parametrize("readout", ["last", "max"])
@pytest.mark.parametrize("name", ["cross_entropy", "tet"])
def test_a_membrane_that_is_not_averaged(readout: str, name: str) -> None:
    """The loss is of the network's answer, `tet` of the potentials at all steps; the answer is what is judged."""
    run = Run(tiny(optimizer__loss=name, model__dropout="0", model__readout=readout))
    images, labels = next(run.batches(0))
    outputs, loss = run.forward(images, labels)
    steps = run.model(images, every_step=True)
    answer = steps[-1] if readout == "last" else steps.max(0).values
    assert (answer - steps.mean(0)).abs().max() > 1e-3
    torch.testing.assert_close(outputs, answer)
    torch.testing.assert_close(loss, LOSS_OF_A_BATCH[name](steps if name == "tet" else answer[None], labels))


def test_a_run_smooths_its_labels() -> None:
    run = Run(tiny(optimizer__label_smoothing="0.3", model__dropout="0"))
    images, labels = next(run.batches(0))
    outputs, loss = run.forward(images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(outputs, labels, label_smoothing=0.3))
    assert not torch.isclose(loss, F.cross_entropy(outputs, labels))
