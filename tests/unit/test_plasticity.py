"""The equations by hand and against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpap.method.plasticity import (
    WindowSums,
    activity,
    bcm_closed_form,
    bcm_update,
    final_trace_weights,
    mean_trace_weights,
    spike_trace,
    stdp_update,
)
from dpap.method.survival import below, bonus, min_max, percentile_scale, relative, synapse_cap, unit_cap, unit_floor


@given(st.integers(1, 9), st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_weights_are_the_trace_unrolled(num_steps: int, decay: float) -> None:
    """Eq. (1) run step by step: its last value, and its mean over steps."""
    spikes = (torch.rand(num_steps, 3, 4, dtype=torch.float64) < 0.5).double()
    final = spike_trace(spikes, decay)
    torch.testing.assert_close(activity(spikes, final_trace_weights(num_steps, decay)), final)
    mean = sum(spike_trace(spikes[: t + 1], decay) for t in range(num_steps)) / num_steps
    torch.testing.assert_close(activity(spikes, mean_trace_weights(num_steps, decay)), mean)


def test_a_constant_is_held_for_all_steps() -> None:
    weights = mean_trace_weights(4, 0.5)
    image = torch.rand(1, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(activity(image, weights), activity(image.expand(4, -1, -1), weights))


def test_bcm_sample_by_sample() -> None:
    pre, post, theta = torch.rand(5, 3), torch.rand(5, 2), torch.rand(2)
    slow = torch.zeros(2, 3)
    for b in range(5):
        for i in range(2):
            for j in range(3):
                slow[i, j] += pre[b, j] * post[b, i] * (post[b, i] - theta[i])
    torch.testing.assert_close(bcm_update(pre, post, theta), slow)


def test_closed_form_is_the_mean_of_bcm() -> None:
    pre, post, theta = (torch.rand(*s, dtype=torch.float64) for s in ((50, 3), (50, 2), (2,)))
    mean = bcm_update(pre, post, theta) / 50
    closed = bcm_closed_form((post**2).T @ pre / 50, post.T @ pre / 50, theta[:, None], 1e-12)
    torch.testing.assert_close(closed, mean.abs())


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_a_difference_that_is_rounding_counts_as_zero(eps: float) -> None:
    square = torch.tensor([1.0, 1.0], dtype=torch.float64)
    product = torch.tensor([1.0 + eps, 1.0 + 4 * eps], dtype=torch.float64)
    change = bcm_closed_form(square, product, torch.ones(2, dtype=torch.float64), eps)
    assert change[0] == 0
    assert change[1] == pytest.approx(4 * eps, rel=1e-3)


def test_stdp_spike_by_spike() -> None:
    torch.manual_seed(0)
    pre, post = (torch.rand(5, 2, 3) < 0.4).float(), (torch.rand(5, 2, 4) < 0.4).float()
    slow = torch.zeros(4, 3)
    for b in range(2):
        for i in range(4):
            for j in range(3):
                for t in range(5):
                    s_pre = sum(0.5 ** (t - u) * pre[u, b, j] for u in range(t + 1))
                    s_post = sum(0.5 ** (t - u) * post[u, b, i] for u in range(t + 1))
                    slow[i, j] += s_pre * post[t, b, i] - s_post * pre[t, b, j]
    torch.testing.assert_close(stdp_update(pre, post, 0.5), slow)


def test_the_stdp_sum_of_units_is_that_of_their_living_synapses() -> None:
    kinds = {"dtype": torch.float64, "device": torch.device("cpu"), "stdp": True}
    rows, pairs = WindowSums(4, 3, pairs=False, **kinds), WindowSums(4, 3, pairs=True, **kinds)
    pre, post = (torch.rand(5, 2, n, dtype=torch.float64) for n in (3, 4))
    living, weights = torch.tensor([True, False, True]), mean_trace_weights(5, 0.5)
    for sums in (rows, pairs):
        sums.add(pre, post, living, weights, weights)
    torch.testing.assert_close(rows.sums["stdp"][:, 0], pairs.sums["stdp"][:, living].sum(1))


class TestScaling:
    def test_min_max_looks_at_the_living_only(self) -> None:
        alive = torch.tensor([True, True, True, False])
        assert min_max(torch.tensor([1.0, 2.0, 3.0, 100.0]), alive)[:3].tolist() == [0.0, 0.5, 1.0]
        assert min_max(torch.tensor([2.0, 2.0, 2.0, 5.0]), alive)[:3].tolist() == [0.5, 0.5, 0.5]
        assert (min_max(torch.ones(3), torch.zeros(3, dtype=torch.bool)) == 0).all()

    def test_percentile_scale_saturates_and_survives_a_crowded_bottom(self) -> None:
        alive = torch.ones(5, dtype=torch.bool)
        assert percentile_scale(75)(torch.tensor([0.0, 1.0, 2.0, 4.0, 9.0]), alive).tolist() == [
            0.0,
            0.25,
            0.5,
            1.0,
            1.0,
        ]
        # Three quarters at the minimum: the script answers 0.5 for all of them.
        assert percentile_scale(75)(torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0]), alive).tolist() == [0.5] * 5
        assert percentile_scale(75)(torch.full((5,), 3.0), alive).tolist() == [0.5] * 5

    def test_relative_without_information(self) -> None:
        alive = torch.tensor([[True, True, False], [True, False, False]])
        assert relative(torch.zeros(2, 3), alive).tolist() == [[1.5, 1.5, 0.0], [3.0, 0.0, 0.0]]


def test_the_bonus_begins_at_zero_as_printed_and_above_it_as_released() -> None:
    delta, alive = torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3, dtype=torch.bool)
    assert bonus(5.0, at_zero=True)(delta, alive).tolist() == [-1.0, 5.0, 6.0]
    assert bonus(5.0, at_zero=False)(delta, alive).tolist() == [-1.0, 0.0, 6.0]


def test_nobody_dies_at_the_level_or_of_rounding() -> None:
    survival = 0.5 * torch.tensor([1.0, 1 - 5e-7, 1 - 2e-6, 0.0], dtype=torch.float64)
    alive = torch.tensor([True, True, True, False])
    assert below(survival, alive, 0.5, 1e-6).tolist() == [False, False, True, False]
    assert below(torch.tensor([0.0, -1e-12]), alive[:2], 0.0, 0.0).tolist() == [False, True]


def test_counts_are_whole_in_spite_of_binary_fractions() -> None:
    assert [unit_cap(n, 0.01) for n in (5, 10, 20, 30, 100)] == [1, 1, 2, 3, 10]
    assert [synapse_cap(n, 0.01) for n in (4, 5, 10, 100)] == [1, 1, 2, 20]
    assert unit_cap(100, 0.02) == 19
    assert [unit_floor(n) for n in (1, 2, 3, 20, 30, 31)] == [1, 2, 2, 2, 3, 4]
