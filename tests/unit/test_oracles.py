"""The oracles themselves: against numbers worked by hand, against second accounts in matrix form, and by properties."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence, Set

import numpy as np
import pytest
from oracles import chain as ch
from oracles import dpap, hand_worked, paper, records, released
from oracles.hand_worked import HAND_WORKED, HandWorked, numbers, spike_trains


@functools.cache
def the_record() -> records.Record:
    return records.make_record()


@functools.cache
def released_outcome() -> list[dict[str, released.ReleasedLayer]]:
    return released.run(the_record())


@functools.cache
def paper_outcome() -> list[dict[str, paper.PaperLayer]]:
    return paper.run(the_record())


def fc_record(pre: list[ch.FloatArray], post: list[ch.FloatArray]) -> records.Record:
    """One linear layer ("fc") that reads the image, one batch an epoch; nothing reads it."""
    spec = ch.LayerSpec(name="fc", kind="linear", outputs=post[0].shape[2], in_unit=(ch.IMAGE,) * pre[0].shape[2])
    batches = [{"fc": records.LayerActivity(pre=x, post=y)} for x, y in zip(pre, post, strict=True)]
    return records.Record(chain=(spec,), epochs=tuple((batch,) for batch in batches))


# --- records ---------------------------------------------------------------------------------------


class TestRecords:
    def test_shapes_and_values(self) -> None:
        record = the_record()
        assert [layer.name for layer in record.chain] == ["conv1", "conv2", "fc", "classifier"]
        assert len(record.epochs) == 60
        batch = record.epochs[0][0]
        for layer in record.chain:
            seen = batch[layer.name]
            assert seen.pre.shape[:3] == (4, 8, layer.inputs)
            assert seen.post.shape[:3] == (4, 8, layer.outputs)
            assert seen.pre.ndim == seen.post.ndim == (4 if layer.kind == "conv" else 3)
            assert set(np.unique(seen.post)) <= {0.0, 1.0}
        image = batch["conv1"].pre
        assert image.min() < 0.0 < image.max()
        assert (image == image[0]).all()  # constant in time
        assert batch["conv2"].pre is batch["conv1"].post

    def test_same_seed_same_record(self) -> None:
        a, b, c = (records.make_record(seed=seed, epochs=2) for seed in (3, 3, 4))
        assert (a.epochs[1][2]["fc"].pre == b.epochs[1][2]["fc"].pre).all()
        assert (a.epochs[1][2]["fc"].pre != c.epochs[1][2]["fc"].pre).any()

    def test_pool_averages_windows_of_its_own_channel(self) -> None:
        spikes = np.zeros((1, 1, 2, 16))
        spikes[0, 0, 1, [2, 3, 7]] = 1.0  # channel 1, rows 0-1, columns 2-3 of 4 x 4
        assert records.pool_and_flatten(spikes).tolist() == [[[0, 0, 0, 0, 0, 0.75, 0, 0]]]

    def test_rebatch_keeps_samples_in_order(self) -> None:
        batches = list(records.make_record(epochs=2).batches())
        other = records.rebatch(batches, 5)
        assert [b["fc"].post.shape[1] for b in other] == [5] * 9 + [3]
        assert (records.merge(other)["conv2"].post == records.merge(batches)["conv2"].post).all()


# --- the chain -------------------------------------------------------------------------------------


def small_chain() -> tuple[ch.LayerSpec, ...]:
    """image (2) -> a (4) -> b (4) -> out (2, protected), all linear."""
    return (
        ch.LayerSpec(name="a", kind="linear", outputs=4, in_unit=(ch.IMAGE,) * 2),
        ch.LayerSpec(name="b", kind="linear", outputs=4, in_unit=(0, 1, 2, 3)),
        ch.LayerSpec(name="out", kind="linear", outputs=2, in_unit=(0, 1, 2, 3), protected=True),
    )


class TestChain:
    def test_isolation_spreads_until_nobody_is_isolated(self) -> None:
        chain = small_chain()
        alive, synapses = ch.everything_lives(chain)
        synapses["b"][:] = np.eye(4, dtype=bool)
        synapses["out"][:, 2] = False  # b2 feeds nobody; then a2, which feeds b2 alone, feeds nobody
        synapses["a"][3] = False  # a3 reads nothing; then b3, which reads a3 alone, reads nothing
        buried = ch.bury_isolated(chain, alive, synapses)
        assert sorted(buried) == [("a", 2), ("a", 3), ("b", 2), ("b", 3)]
        assert alive["a"].tolist() == alive["b"].tolist() == [True, True, False, False]
        assert alive["out"].all()
        assert ch.isolated_units(chain, alive, synapses) == []

    def test_connectivity_counts_kernels_masks_and_both_ends(self) -> None:
        chain = records.chain_of(3, 2, 4)
        alive, synapses = ch.everything_lives(chain)
        dense = 9 * 3 * 2 + 9 * 2 * 3 + 4 * 8 + 5 * 4
        assert ch.count_weights(chain) == dense
        alive["conv2"][1] = False
        synapses["fc"][0, 0] = synapses["fc"][0, 7] = False  # entry 7 is the dead channel's already
        living = 9 * 3 * 2 + 9 * 1 * 3 + (4 * 4 - 1) + 5 * 4
        assert ch.connectivity(chain, alive, synapses) == living / dense


# --- released --------------------------------------------------------------------------------------


class TestReleased:
    @pytest.mark.parametrize(
        ("kind", "u", "epoch"),
        [
            ("conv", 0.0, 25),
            ("conv", 0.066, None),
            ("conv", 0.07, None),
            ("linear", 0.0, 11),
            ("linear", 0.2, 14),
            ("linear", 0.3, 16),
            ("linear", 0.4, 21),
            ("linear", 0.5, 48),
            ("linear", 0.52, None),
        ],
    )
    def test_epoch_of_death_at_constant_importance(self, kind: ch.Kind, u: float, epoch: int | None) -> None:
        assert released.death_epoch(u, kind) == epoch

    def test_highest_importance_that_dies(self) -> None:
        assert released.death_epoch(0.065, "conv") is not None
        assert released.death_epoch(0.51, "linear") is not None

    def test_change_of_survival(self) -> None:
        assert released.survival_change(0.0, "conv", 16) == -0.65
        assert released.survival_change(0.0, "conv", 17) == pytest.approx(-0.65 / math.e)
        assert released.survival_change(0.325, "conv", 5) == 0.0  # no bonus at delta = 0
        assert released.survival_change(0.35, "conv", 5) == pytest.approx(0.05 + 5.0)
        assert released.survival_change(1.0, "linear", 18) == pytest.approx((2.0 - 1.5 + 2.0) / math.e)

    def test_trace(self) -> None:
        """1, 0, 1, 1 at decay 0.5 is 1.625, over T = 4; positions add up."""
        train = np.array([1.0, 0.0, 1.0, 1.0])
        assert released.trace(train[:, None, None]).tolist() == [[1.625 / 4]]
        assert released.trace(np.stack([train, train], axis=1)[:, None, None, :]).tolist() == [[3.25 / 4]]

    def test_scaling(self) -> None:
        assert released.scale_to_quartile(np.array([0.0, 1, 2, 3, 4])) == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
        # 75 % of the way from the first to the last of four is 2.25 steps in: 2 + 0.25 * (10 - 2) = 4
        assert released.scale_to_quartile(np.array([0.0, 10.0, 2.0, 1.0])) == pytest.approx([0, 1, 0.5, 0.25])
        assert released.scale_to_quartile(np.full(3, 7.0)).tolist() == [0.5, 0.5, 0.5]
        assert released.min_max(np.full(3, 7.0)).tolist() == [0.5, 0.5, 0.5]
        assert released.scale_to_quartile(np.array([0.0, 0.0, 0.0, 0.0, 1.0])).tolist() == [0.5] * 5

    def test_two_batches_by_hand(self) -> None:
        """T = 1, two slots, one input, two units.

        Batch 1: x = (1, 2), y = ((1, 0), (2, 4)), theta = 0: BCM = 1 * 1 + 2 * 2 * 2 = 9, and 0 + 2 * 4 * 4 = 32.
        theta = y. Batch 2: x = (1, 1), y = ((3, 1), (2, 2)): BCM += 3 * (3 - 1) + 0 = 6, and 1 * 1 + 2 * (2 - 4) = -3.
        theta = ((1 + 3) / 2, (0 + 1) / 2), ((2 + 2) / 2, (4 + 2) / 2). A = (3, 4), then (8, 7).
        """
        record = fc_record(
            [numbers("1", "2").reshape(1, 2, 1), numbers("1", "1").reshape(1, 2, 1)],
            [numbers("1 0", "2 4")[None], numbers("3 1", "2 2")[None]],
        )
        first, second = (outcome["fc"] for outcome in released.run(record))
        assert first.bcm.tolist() == [[9.0], [32.0]]
        assert first.theta.tolist() == [[1.0, 0.0], [2.0, 4.0]]
        assert first.activity.tolist() == [3.0, 4.0]
        assert first.spine.tolist() == [0.0, 1.0]
        assert second.bcm.tolist() == [[15.0], [29.0]]
        assert second.theta.tolist() == [[2.0, 0.5], [2.0, 3.0]]
        assert second.activity.tolist() == [8.0, 7.0]
        assert second.spine.tolist() == [0.0, 0.0]  # lowest BCM sum, and lowest activity
        assert second.unit_u is None  # before epoch 5
        assert second.unit_survival.tolist() == [10.0, 10.0]

    def test_a_batch_of_another_size_is_refused(self) -> None:
        record = fc_record([np.ones((1, 2, 1)), np.ones((1, 3, 1))], [np.ones((1, 2, 2)), np.ones((1, 3, 2))])
        with pytest.raises(ValueError, match="slot"):
            released.run(record)

    def test_accumulators_in_matrix_form(self) -> None:
        """BCM += (Y (Y - theta))^T X, a second account, over all 180 batches of a record."""
        record, outcome = the_record(), released_outcome()
        decay = 0.5 ** np.arange(3, -1, -1) / 4
        for name in ("conv1", "conv2", "fc"):
            bcm, activity, theta = np.zeros(()), np.zeros(()), np.zeros(())
            num = 0
            for epoch, batches in enumerate(record.epochs):
                for batch in batches:
                    num += 1
                    X, Y = (np.tensordot(decay, site, axes=1) for site in (batch[name].pre, batch[name].post))
                    X, Y = (S.sum(axis=2) if S.ndim == 3 else S for S in (X, Y))
                    bcm = bcm + (Y * (Y - theta)).T @ X
                    activity = activity + Y.sum(axis=0)
                    theta = theta + (Y - theta) / num
                layer = outcome[epoch][name]
                np.testing.assert_allclose(layer.bcm, bcm, rtol=1e-10, atol=1e-10)
                np.testing.assert_allclose(layer.activity, activity, rtol=1e-12)
                np.testing.assert_allclose(layer.theta, theta, rtol=1e-12, atol=1e-14)
                D = np.prod([(v - v.min()) / np.ptp(v) for v in (np.sum(bcm, axis=1), activity)], axis=0)
                np.testing.assert_allclose(layer.spine, D, rtol=1e-10, atol=1e-12)

    def test_the_record_kills_each_kind_at_five_or_more_epochs(self) -> None:
        outcome = released_outcome()

        def epochs_of_death(dead: Sequence[Set[object]]) -> set[int]:
            return {e for e in range(1, len(dead)) if dead[e] - dead[e - 1]}

        conv = [{(n, i) for n in ("conv1", "conv2") for i in state[n].dead_units} for state in outcome]
        fc = [state["fc"].dead_units for state in outcome]
        synapses = [state["fc"].dead_synapses for state in outcome]
        for epochs in (epochs_of_death(conv), epochs_of_death(fc), epochs_of_death(synapses)):
            assert len(epochs) >= 5
            assert min(epochs) >= 11
        for name in ("conv1", "conv2", "fc"):
            assert outcome[-1][name].unit_mask.any()

    def test_no_decision_of_the_record_rests_on_rounding(self) -> None:
        margins = [layer.margin for state in released_outcome() for layer in state.values()]
        assert min(margins) > 1e-9
        assert math.isfinite(min(margins))

    def test_silent_units_die_when_they_must_and_masks_are_for_good(self) -> None:
        outcome = released_outcome()
        assert next(e for e in range(60) if 0 in outcome[e]["conv1"].dead_units) == 25
        assert next(e for e in range(60) if 0 in outcome[e]["fc"].dead_units) == 11
        for before, after in itertools.pairwise(outcome):
            for name, layer in after.items():
                assert not (layer.weight_mask & ~before[name].weight_mask).any()

    def test_fc_mask_is_neuron_times_synapse_and_the_classifier_is_left_alone(self) -> None:
        last = released_outcome()[-1]
        fc = last["fc"]
        assert fc.synapse_mask is not None
        assert (fc.weight_mask == fc.unit_mask[:, None] * fc.synapse_mask).all()
        assert last["conv1"].synapse_mask is None
        assert last["conv1"].dead_synapses == set()
        assert (last["conv1"].weight_mask == last["conv1"].unit_mask[:, None]).all()
        assert set(last) == {"conv1", "conv2", "fc"}


# --- paper -----------------------------------------------------------------------------------------


class TestPaper:
    def test_trace_is_the_final_one_not_divided(self) -> None:
        train = np.array([1.0, 0.0, 1.0, 1.0])
        assert paper.trace(train[:, None, None]).tolist() == [[1.625]]
        assert paper.trace(np.stack([train, train], axis=1)[:, None, None, :]).tolist() == [[3.25]]

    def test_growth(self) -> None:
        assert paper.growth(0.0, "conv", 0) == -0.65
        assert paper.growth(0.325, "conv", 0) == 5.0  # delta = 0 earns the bonus
        assert paper.growth(1.0, "linear", 13) == pytest.approx((2.0 - 1.5 + 2.0) / math.e)

    def test_with_beta_10_the_released_constants_and_the_smooth_exponent_no_filter_can_die(self) -> None:
        limit = paper.largest_survival_a_silent_unit_can_lose("conv")
        assert limit == pytest.approx(8.23, abs=0.005)
        assert limit < 10.0
        assert paper.survival_of_a_silent_unit("conv", initial_survival=10.0, epochs=5000).min() > 0.0
        assert paper.survival_of_a_silent_unit("conv", initial_survival=limit + 1e-3, epochs=5000).min() > 0.0
        assert paper.survival_of_a_silent_unit("conv", initial_survival=limit - 1e-3, epochs=5000).min() < 0.0
        staircase = paper.survival_of_a_silent_unit("conv", initial_survival=10.0, epochs=100, staircase=True)
        assert staircase.min() < 0.0
        assert np.flatnonzero(staircase < 0.0)[0] == 20  # as in the released script, whose epoch 5 is this epoch 0

    def test_beta_10_kills_no_filter_on_the_record_and_beta_5_does(self) -> None:
        for state in paper.run(the_record(), initial_survival=10.0, isolate=False):
            assert state["conv1"].alive.all()
            assert state["conv2"].alive.all()
        last = paper_outcome()[-1]
        assert 0 < last["conv1"].alive.sum() < 12

    def test_two_epochs_by_hand(self) -> None:
        """T = 1, two samples, one input, two units, right-hand form of (7).

        Epoch 0: x = (1, 2), y = ((1, 0), (2, 4)), theta = 0: BCM = (1 + 8, 32) / 2, D = (1 + 16, 128) / 2,
        theta = (3/2, 2). Left-hand form: A * BCM = (3/2 * 9/2, 2 * 16).
        Epoch 1: x = (1, 1), y = ((3, 1), (2, 2)): BCM = (3 * 3/2 + 2 * 1/2, 1 * -1 + 0) / 2,
        D = (3 * 9/2 + 2 * 1, -1) / 2, theta = (3/2 + 5/2, 2 + 3/2) / 2.
        """
        record = fc_record(
            [numbers("1", "2").reshape(1, 2, 1), numbers("1", "1").reshape(1, 2, 1)],
            [numbers("1 0", "2 4")[None], numbers("3 1", "2 2")[None]],
        )
        first, second = (outcome["fc"] for outcome in paper.run(record))
        assert first.bcm.tolist() == [[4.5], [16.0]]
        assert first.spine.tolist() == [8.5, 64.0]
        assert first.theta.tolist() == [1.5, 2.0]
        assert first.unit_u.tolist() == [0.0, 1.0]
        assert first.unit_survival == pytest.approx([0.999 * 5 - 1.5, 0.999 * 5 + 0.5 + 2])
        assert second.bcm.tolist() == [[2.75], [-0.5]]
        assert second.spine.tolist() == [7.75, -0.5]
        assert second.theta.tolist() == [2.0, 1.75]
        other = paper.run(record, spine="trace_times_sum")[0]["fc"]
        assert other.spine.tolist() == [6.75, 32.0]

    def test_theta_is_the_mean_of_all_batches_so_far(self) -> None:
        outcome, record = paper_outcome(), the_record()
        decay = 0.5 ** np.arange(3, -1, -1)
        for epoch in (0, 7, 59):
            seen = [
                np.tensordot(decay, b["conv1"].post, axes=1).sum(axis=2) for e in record.epochs[: epoch + 1] for b in e
            ]
            np.testing.assert_allclose(outcome[epoch]["conv1"].theta, np.concatenate(seen).mean(axis=0), rtol=1e-12)

    def test_scores_of_an_epoch_in_matrix_form_without_the_dead(self) -> None:
        """Epoch 20 from scratch: only theta comes from before; dead units of conv2 give no input."""
        outcome, record = paper_outcome(), the_record()
        alive = outcome[19]["conv2"].alive
        assert not alive.all()
        entries = np.repeat(alive, records.POOLED)
        decay = 0.5 ** np.arange(3, -1, -1)
        theta, bcm, spine = outcome[19]["fc"].theta, np.zeros((20, 48)), np.zeros(20)
        for b, batch in enumerate(record.epochs[20]):
            X, Y = (np.tensordot(decay, site, axes=1) for site in (batch["fc"].pre, batch["fc"].post))
            X = X * entries
            bcm = bcm + (Y * (Y - theta)).T @ X / 24
            spine = spine + (Y**2 * (Y - theta) * X.sum(axis=1, keepdims=True)).sum(axis=0) / 24
            num = 20 * 3 + b + 1
            theta = (theta * (num - 1) + Y.mean(axis=0)) / num
        layer, lives = outcome[20]["fc"], outcome[19]["fc"].alive
        living = outcome[19]["fc"].synapses & lives[:, None] & entries[None, :]
        np.testing.assert_allclose(layer.bcm[living], bcm[living], rtol=1e-11, atol=1e-13)
        assert np.isnan(layer.bcm[~living]).all()
        np.testing.assert_allclose(layer.spine[lives], spine[lives], rtol=1e-11)
        assert np.isnan(layer.spine[~lives]).all()

    def test_normalised_over_the_living_only(self) -> None:
        outcome = paper_outcome()
        for before, after in itertools.pairwise(outcome):
            for name in ("conv1", "conv2", "fc"):
                u, alive = after[name].unit_u, before[name].alive
                assert np.isnan(u[~alive]).all()
                assert (u[alive].min(), u[alive].max()) == (0.0, 1.0)
                assert not (after[name].alive & ~alive).any()

    def test_the_classifiers_units_are_protected_and_its_synapses_are_not(self) -> None:
        last = paper_outcome()[-1]["classifier"]
        assert last.alive.all()
        assert 0 < last.synapses.sum() < last.synapses.size
        assert np.isnan(last.unit_u).all()
        assert (last.unit_survival == 5.0).all()

    def test_a_layer_that_is_emptied_raises(self) -> None:
        """Two equal units read 0.5, so delta = 1 - 1.5: both die in the same epoch."""
        epochs = 40
        record = fc_record([np.ones((1, 2, 2))] * epochs, [np.ones((1, 2, 2))] * epochs)
        survival, death = 5.0, -1
        while survival >= 0.0:
            death += 1
            survival = 0.999 * survival - 0.5 * math.exp(-death / 13)
        with pytest.raises(paper.LayerEmptied) as caught:
            paper.run(record)
        assert (caught.value.layer, caught.value.epoch) == ("fc", death)

    def test_without_isolation_only_the_rule_kills(self) -> None:
        for state in paper.run(the_record(), isolate=False):
            for layer in state.values():
                assert layer.isolated == ()
        assert any(layer.isolated for state in paper_outcome() for layer in state.values())


# --- dpap: hand-worked cases -----------------------------------------------------------------------


def network_of(case: HandWorked) -> dpap.Network:
    weights = {layer.name: np.ones((layer.outputs, layer.inputs)) for layer in case.chain}
    if case.weight is not None:
        weights["layer"] = case.weight
    network = dpap.Network.newborn(case.chain, weights)
    network.alive = {name: alive.copy() for name, alive in case.alive.items()}
    network.synapses = {name: mask.copy() for name, mask in case.synapses.items()}
    if case.previous_theta is not None:
        network.theta = {"layer": case.previous_theta}
    return network


def agree(actual: ch.FloatArray, expected: ch.FloatArray) -> None:
    """Equal where the hand-worked value means something."""
    known = ~np.isnan(expected)
    assert known.any()
    np.testing.assert_allclose(actual[known], expected[known], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("case", HAND_WORKED, ids=lambda case: case.name)
class TestHandWorked:
    def test_activities(self, case: HandWorked) -> None:
        seen = case.batch["layer"]
        assert dpap.pre_activity(seen, first=len(case.chain) == 1).tolist() == case.x.tolist()
        assert dpap.post_activity(seen).tolist() == case.y.tolist()

    def test_sums_scores_and_u(self, case: HandWorked) -> None:
        network = network_of(case)
        step = dpap.develop(network, [case.batch], dpap.Tick(call=1, p=0.01, dp=0.01, q=0.0))
        sums = step.sums["layer"]
        assert sums.n == 2
        for actual, expected in (
            (sums.x, case.sum_x),
            (sums.y, case.sum_y),
            (sums.Xy, case.sum_Xy),
            (sums.Xyy, case.sum_Xyy),
            (step.theta["layer"], case.theta),
            (step.R["layer"], case.R),
            (step.A["layer"], case.A),
            (step.D["layer"], case.D),
            (step.unit_u["layer"], case.unit_u),
        ):
            agree(actual, expected)
        assert step.at_threshold["layer"] == case.at_threshold
        if case.sum_xy is not None:
            assert case.sum_xyy is not None
            assert case.bcm is not None
            assert case.s is not None
            assert case.synapse_u is not None
            agree(sums.xy, case.sum_xy)
            agree(sums.xyy, case.sum_xyy)
            agree(step.bcm["layer"], case.bcm)
            agree(step.s["layer"], case.s)
            agree(step.synapse_u["layer"], case.synapse_u)
            assert tuple(step.silent_rows["layer"]) == case.silent_rows
        else:
            assert "layer" not in step.synapse_u
        gamma = math.exp(-1 / 3)
        alive = case.alive["layer"]
        np.testing.assert_allclose(
            step.unit_survival["layer"][alive], (gamma + (1 - gamma) * case.unit_u)[alive], rtol=1e-14
        )
        assert (step.unit_survival["layer"][~alive] == 1.0).all()  # the dead keep what they had
        agree(network.theta["layer"], case.sum_y / 2)


# --- dpap: the pieces ------------------------------------------------------------------------------


class TestDpapPieces:
    def test_running_trace_equals_its_closed_form(self) -> None:
        """w_t = (1 - tau^(T - t + 1)) / ((1 - tau) T), t from 1."""
        T = 5
        spikes = np.random.default_rng(0).integers(0, 2, size=(T, 3, 4)).astype(float)
        weights = (1 - 0.5 ** (T - np.arange(1, T + 1) + 1)) / (0.5 * T)
        np.testing.assert_allclose(
            dpap.mean_running_trace(spikes), np.tensordot(weights, spikes, axes=1), rtol=1e-14, atol=1e-15
        )

    def test_clock(self) -> None:
        ticks = dpap.clock(1000)
        assert [t.call for t in ticks] == list(range(20, 501, 10))  # observing starts at 0.01, after call 10
        assert all(t.dp == pytest.approx(0.01) for t in ticks)
        assert [t.call for t in ticks if t.q == 0.0][-1] == 100
        assert next(t for t in ticks if t.call == 300).q == pytest.approx(0.5)
        assert ticks[-1].q == 1.0

    def test_clock_of_few_and_of_odd_calls(self) -> None:
        assert [t.call for t in dpap.clock(20)] == list(range(1, 11))
        seven = dpap.clock(7, start=0.2)
        assert [t.call for t in seven] == [1, 2, 3, 4]  # 4/7 is the first share from 0.5 on
        assert seven[-1].q == 1.0
        assert sum(t.dp for t in seven) == pytest.approx(4 / 7)
        assert len(dpap.clock(1000, development_steps=30)) == 15

    def test_level_and_schedule(self) -> None:
        assert dpap.level(0.0, 0.6) == 0.0
        assert dpap.level(0.5, 0.6) == 0.6 * 7 / 8
        assert dpap.level(1.0, 0.6) == 0.6
        assert dpap.target_connectivity(0.0, 0.1) == 1.0
        assert dpap.target_connectivity(0.5, 0.2) == 0.2 + 0.8 / 8
        assert dpap.target_connectivity(1.0, 0.1) == 0.1

    def test_floors_and_caps(self) -> None:
        floors = {1: 1, 2: 2, 3: 2, 10: 2, 20: 2, 21: 3, 30: 3, 31: 4, 300: 30}
        assert {n: dpap.floor_of_units(n) for n in floors} == floors
        assert dpap.cap(20, 0.9, 0.01) == 2  # (1 - 0.9) * 20 is 1.9999999999999996
        assert dpap.cap(19, 0.9, 0.01) == 1
        assert dpap.cap(3, 0.9, 0.01) == 1
        assert dpap.cap(100, 0.8, 0.02) == 36

    def test_differences_that_are_rounding_count_as_zero(self) -> None:
        assert dpap.plasticity(0.3, 0.1 + 0.2, 1.0) == 0.0  # 0.3 - 0.30000000000000004
        assert dpap.plasticity(0.3, 0.29, 1.0) == pytest.approx(0.01)
        assert dpap.plasticity(0.0, 0.0, 0.0) == 0.0

    def test_siblings(self) -> None:
        alive = np.array([True, True, False, True])
        u, silent = dpap.relative_to_siblings(np.array([1.0, 3.0, 9.0, 0.0]), alive)
        assert u.tolist() == [1.0, 3.0, 0.0, 0.0]  # 4 originals share 4, the dead hold none of it
        assert not silent
        u, silent = dpap.relative_to_siblings(np.array([0.0, 0.0, 9.0, 0.0]), alive)
        assert u == pytest.approx([4 / 3, 4 / 3, 0.0, 4 / 3])
        assert silent
        u, silent = dpap.relative_to_siblings(np.ones(2), np.zeros(2, dtype=bool))
        assert u.tolist() == [0.0, 0.0]
        assert not silent


# --- dpap: who dies --------------------------------------------------------------------------------


def survivors(chain: ch.Chain) -> dpap.Network:
    """A chain in which everybody has F = 1; tests lower it for some and let `funeral_of` decide."""
    weights = {layer.name: np.ones((layer.outputs, layer.inputs)) for layer in chain}
    return dpap.Network.newborn(chain, weights)


def equal_u(network: dpap.Network) -> tuple[dict[str, ch.FloatArray], dict[str, ch.FloatArray]]:
    units = {layer.name: np.ones(layer.outputs) for layer in network.chain}
    return units, {layer.name: np.ones((layer.outputs, layer.inputs)) for layer in network.chain}


def emergent(network: dpap.Network, *, q: float = 1.0, dp: float = 0.01) -> dpap._Funeral:
    funeral = dpap._Funeral(network, dpap.Tick(call=1, p=0.3, dp=dp, q=q), caps=True)
    dpap._emergent_deaths(funeral, *equal_u(network))
    return funeral


def for_target(network: dpap.Network, share: float, *, q: float = 1.0, dp: float = 0.01) -> dpap._Funeral:
    funeral = dpap._Funeral(network, dpap.Tick(call=1, p=0.3, dp=dp, q=q), caps=q < 1.0)
    dpap._deaths_for_target(funeral, *equal_u(network), share)
    return funeral


class TestDpapDeaths:
    def test_weakest_first_until_the_cap(self) -> None:
        network = survivors(records.chain_of(3, 30, 4))
        network.unit_survival["conv2"][[3, 5, 7, 9]] = [0.4, 0.2, 0.5, 0.3]
        funeral = emergent(network)
        assert funeral.died_units["conv2"] == [5, 9, 3]  # a tenth of 30
        assert funeral.capped_units == {"conv2"}
        assert not emergent(network, dp=1.0).capped_units  # the next, longer step takes the rest
        assert network.alive["conv2"].sum() == 26

    def test_ties_by_u_then_index(self) -> None:
        network = survivors(records.chain_of(3, 30, 4))
        network.unit_survival["conv2"][[3, 5, 7, 9]] = 0.1
        funeral = dpap._Funeral(network, dpap.Tick(call=1, p=0.3, dp=0.01, q=1.0), caps=True)
        units, synapses = equal_u(network)
        units["conv2"][9] = 0.5
        dpap._emergent_deaths(funeral, units, synapses)
        assert funeral.died_units["conv2"] == [9, 3, 5]

    def test_level_is_a_strict_bound_with_a_margin(self) -> None:
        network = survivors(records.chain_of(3, 30, 4))
        network.unit_survival["conv2"][:2] = 0.6 * (1 - 5e-7), 0.6 * (1 - 2e-6)
        assert emergent(network, dp=1.0).died_units["conv2"] == [1]

    def test_nobody_dies_at_q_0(self) -> None:
        network = survivors(records.chain_of(3, 30, 4))
        network.unit_survival["conv2"][:] = 0.0
        network.synapse_survival["fc"][:] = 0.0
        funeral = emergent(network, q=0.0, dp=1.0)
        assert not any(funeral.died_units.values())
        assert not any(funeral.died_synapses.values())

    @pytest.mark.parametrize(("units", "left"), [(1, 1), (2, 2), (3, 2), (30, 3)])
    def test_floor_of_a_group(self, units: int, left: int) -> None:
        network = survivors(records.chain_of(3, units, 4))
        network.unit_survival["conv2"][:] = 0.0
        funeral = emergent(network, dp=1.0)
        assert network.alive["conv2"].sum() == left
        assert not funeral.skipped

    def test_protected_units_do_not_die(self) -> None:
        network = survivors(records.chain_of(3, 3, 4))
        network.unit_survival["classifier"][:] = 0.0
        assert not emergent(network, dp=1.0).died_units["classifier"]
        assert network.alive["classifier"].all()

    def test_synapses_leave_each_neuron_one_input(self) -> None:
        network = survivors(small_chain())
        for name in ("a", "b"):
            network.synapse_survival[name][:] = 0.0
        network.synapse_survival["b"][:] = np.where(np.eye(4, dtype=bool), 0.9, 0.1)
        funeral = emergent(network, dp=1.0)
        assert network.alive["a"].all()
        assert network.alive["b"].all()
        assert (network.synapses["a"].sum(axis=1) == 1).all()
        assert (network.synapses["b"] == np.eye(4, dtype=bool)).all()
        assert not funeral.skipped

    def test_a_synapse_death_may_isolate_its_feeder(self) -> None:
        network = survivors(small_chain())
        network.synapses["b"][:, 3] = [True, False, False, False]
        network.synapse_survival["b"][0, 3] = 0.0
        funeral = emergent(network)
        assert funeral.died_synapses["b"] == [(0, 3)]
        assert funeral.isolated_units["a"] == [3]
        assert not network.alive["a"][3]

    def test_a_death_that_isolates_a_unit_of_a_group_at_its_floor_is_skipped(self) -> None:
        network = survivors(small_chain())
        network.alive["a"][[0, 1]] = False  # a is at its floor of 2
        network.synapses["b"][:, 3] = [True, False, False, False]
        network.synapse_survival["b"][0, 3] = 0.0
        funeral = emergent(network)
        assert funeral.skipped == [("b", 0, 3)]
        assert network.alive["a"].tolist() == [False, False, True, True]
        assert network.synapses["b"][0, 3]

    def test_a_unit_death_that_takes_a_protected_units_last_input_is_skipped(self) -> None:
        network = survivors(small_chain())
        network.synapses["out"][0] = [True, False, False, False]
        network.unit_survival["b"][0] = 0.0
        funeral = emergent(network)
        assert funeral.skipped == [("b", 0)]
        assert network.alive["b"].all()

    def test_a_protected_units_last_synapse_is_skipped_and_reported(self) -> None:
        network = survivors(small_chain())
        network.synapses["out"][0] = [True, False, False, False]
        network.synapse_survival["out"][0, 0] = 0.0
        funeral = emergent(network)
        assert funeral.skipped == [("out", 0, 0)]

    def test_cap_on_synapses_of_a_layer(self) -> None:
        network = survivors(small_chain())
        network.synapse_survival["b"][:] = 0.5
        funeral = emergent(network)
        assert len(funeral.died_synapses["b"]) == 3  # a fifth of 16
        assert funeral.capped_synapses == {"b"}

    def test_target_is_met_by_synapses_within_one_victim(self) -> None:
        network = survivors(small_chain())  # 8 + 16 + 8 synapses
        network.synapse_survival["b"][:] = np.linspace(0.5, 0.9, 16).reshape(4, 4)
        funeral = for_target(network, 0.75)
        assert funeral.died_synapses == {
            "a": [],
            "b": [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)],  # (0, 3), (1, 3) are last inputs
            "out": [],
        }
        assert ch.connectivity(network.chain, network.alive, network.synapses) == 0.75

    def test_no_emergent_death_goes_below_the_target(self) -> None:
        network = survivors(small_chain())
        network.unit_survival["b"][:2] = 0.1, 0.2  # each takes 4 + 2 of 32
        funeral = for_target(network, 0.7)
        assert funeral.died_units["b"] == [0]  # 26 of 32; a second would leave 20 < 22.4
        # then synapses, weakest first (ties in order), down to 22 <= 22.4
        assert sum(map(len, funeral.died_synapses.values())) == 4

    def test_before_q_1_a_cap_defers_to_the_next_step(self) -> None:
        network = survivors(small_chain())
        funeral = for_target(network, 0.5, q=0.9)
        assert {name: len(died) for name, died in funeral.died_synapses.items()} == {"a": 1, "b": 3, "out": 1}
        assert funeral.capped_synapses == {"a", "b", "out"}
        assert not any(funeral.died_units.values())

    def test_caps_do_not_apply_to_a_target_at_q_1(self) -> None:
        batch = short_record().epochs[0][0]
        for q, met in ((1.0, True), (1.0 - 1e-9, False)):
            network = dpap.Network.newborn(short_record().chain, records.random_weights(short_record().chain))
            tick = dpap.Tick(call=1, p=0.5, dp=0.001, q=q)
            step = dpap.develop(network, [batch], tick, target=0.8)
            assert (step.connectivity <= 0.8) == met
            assert ("fc" in step.capped_synapses) != met

    def test_units_pay_where_no_synapse_is_prunable(self) -> None:
        chain = tuple(dataclasses.replace(layer, synapses_prunable=False) for layer in small_chain())
        network = survivors(chain)
        network.unit_survival["a"][:] = [0.9, 0.7, 0.8, 0.95]
        funeral = for_target(network, 0.7)  # each of a: 2 + 4 of 32
        assert funeral.died_units == {"a": [1, 2], "b": [], "out": []}  # 26, then 20 <= 22.4, the one that reaches it

    def test_units_pay_when_all_synapses_are_at_a_floor(self) -> None:
        chain = (
            ch.LayerSpec(name="conv", kind="conv", outputs=10, in_unit=(ch.IMAGE,), kernel=9),
            ch.LayerSpec(name="out", kind="linear", outputs=2, in_unit=tuple(range(10)), protected=True),
        )
        network = survivors(chain)
        network.synapse_survival["out"][:] = 0.5
        network.synapse_survival["out"][:, 9] = 0.9
        network.unit_survival["conv"][:8] = 0.9
        for_target(network, 0.5)
        assert ch.connectivity(network.chain, network.alive, network.synapses) <= 0.5
        assert network.alive["conv"][9]
        assert network.alive["conv"].sum() >= 2

    def test_units_are_isolated_before_their_turn_without_harm(self) -> None:
        """A victim that an earlier one has already isolated is passed over."""
        network = survivors(small_chain())
        network.synapses["b"][3] = [True, False, False, False]
        network.synapses["b"][:3, 0] = False  # a0 feeds b3 only, b3 reads a0 only
        network.unit_survival["a"][0] = 0.1
        network.unit_survival["b"][3] = 0.2
        funeral = emergent(network, dp=1.0)
        assert funeral.died_units == {"a": [0], "b": [], "out": []}
        assert funeral.isolated_units["b"] == [3]


# --- dpap: whole runs ------------------------------------------------------------------------------


@functools.cache
def short_record() -> records.Record:
    return records.make_record(seed=1, epochs=20, batches=2)


class TestDpapRuns:
    def test_independent_of_batch_order_and_size(self) -> None:
        batches = list(short_record().epochs[0]) + list(short_record().epochs[1])
        weights = records.random_weights(short_record().chain)
        tick = dpap.Tick(call=4, p=0.3, dp=0.01, q=0.5)
        steps = [
            dpap.develop(dpap.Network.newborn(short_record().chain, weights), window, tick)
            for window in (batches, batches[::-1], records.rebatch(batches, 5), [records.merge(batches)])
        ]
        for other in steps[1:]:
            for name in ("conv1", "conv2", "fc"):
                np.testing.assert_allclose(other.unit_u[name], steps[0].unit_u[name], rtol=1e-9)
            np.testing.assert_allclose(other.synapse_u["fc"], steps[0].synapse_u["fc"], rtol=1e-9)
            assert other.died_units == steps[0].died_units

    def test_duplicating_every_unit_changes_no_u(self) -> None:
        batches = list(short_record().epochs[0])
        plain = dpap.develop(
            dpap.Network.newborn(short_record().chain, records.random_weights(short_record().chain)),
            batches,
            dpap.Tick(call=1, p=0.02, dp=0.01, q=0.0),
        )
        chain = records.chain_of(24, 24, 40)
        twice = []
        for batch in batches:
            doubled = {n: np.concatenate([batch[n].post] * 2, axis=2) for n in ("conv1", "conv2", "fc")}
            twice.append(
                {
                    "conv1": records.LayerActivity(pre=batch["conv1"].pre, post=doubled["conv1"]),
                    "conv2": records.LayerActivity(pre=doubled["conv1"], post=doubled["conv2"]),
                    "fc": records.LayerActivity(pre=records.pool_and_flatten(doubled["conv2"]), post=doubled["fc"]),
                    "classifier": records.LayerActivity(pre=doubled["fc"], post=batch["classifier"].post),
                }
            )
        step = dpap.develop(
            dpap.Network.newborn(chain, records.random_weights(chain)),
            twice,
            dpap.Tick(call=1, p=0.02, dp=0.01, q=0.0),
        )
        for name in ("conv1", "conv2", "fc"):
            np.testing.assert_allclose(step.unit_u[name], np.tile(plain.unit_u[name], 2), rtol=1e-11)

    def test_a_silent_unit_scores_nothing_and_dies_first(self) -> None:
        record = short_record()
        steps = dpap.run(record, records.random_weights(record.chain))
        assert all(step.D["conv1"][0] == 0.0 for step in steps)
        first = next(step for step in steps if step.died_units["conv1"])
        assert first.died_units["conv1"][0] == 0

    def test_a_dead_unit_never_comes_back_and_is_in_no_sum(self) -> None:
        record = short_record()
        steps = dpap.run(record, records.random_weights(record.chain))
        for before, after in itertools.pairwise(steps):
            for name, alive in before.alive.items():
                assert not (after.alive[name] & ~alive).any()
                assert not (after.synapses[name] & ~before.synapses[name]).any()
                if name != "classifier":
                    assert (after.unit_u[name][~alive] == 0.0).all()
                    np.testing.assert_allclose(after.unit_u[name].sum(), len(alive), rtol=1e-12)
            entries = np.repeat(before.alive["conv2"], records.POOLED)
            assert (after.sums["fc"].xy[:, ~entries] == 0.0).all()
        assert not steps[-1].alive["conv2"].all()

    def test_theta_is_the_mean_of_the_window_before(self) -> None:
        record = short_record()
        steps = dpap.run(record, records.random_weights(record.chain))
        assert (steps[0].theta["fc"] == steps[0].A["fc"]).all()
        for before, after in itertools.pairwise(steps):
            assert (after.theta["fc"] == before.A["fc"]).all()

    def test_silent_groups_are_reported_and_nobody_falls_behind(self) -> None:
        rates = {n: r[:4].copy() for n, r in records.drifting_rates(4).items()}
        rates["conv2"][:] = 0.0
        record = records.make_record(epochs=4, rates=rates)
        steps = dpap.run(record, records.random_weights(record.chain))
        lives = np.ones(20, dtype=bool)  # some of fc die of isolation: the classifier cuts those that hardly fire
        for step in steps:
            assert step.silent_groups == ["conv2", "fc"]  # conv2 never fires, so fc receives nothing
            assert (step.unit_u["conv2"] == 1.0).all()
            assert step.unit_u["fc"] == pytest.approx(np.where(lives, 20 / lives.sum(), 0.0))
            assert step.silent_rows["fc"] == np.flatnonzero(lives).tolist()
            assert (step.synapse_u["fc"] == lives[:, None]).all()
            assert step.at_threshold["conv2"] == 0
            assert step.at_threshold["fc"] > 0
            assert not step.died_units["fc"]
            assert not step.died_synapses["fc"]
            lives = step.alive["fc"]
        assert steps[-1].alive["conv2"].all()

    @pytest.mark.parametrize("target", [0.5, 0.2])
    def test_a_target_is_followed_and_met(self, target: float) -> None:
        record = short_record()
        steps = dpap.run(record, records.random_weights(record.chain), target=target)
        weights = ch.count_weights(record.chain)
        largest = 9 * 12 + 4 * 20  # what one victim can take with it: the last link of a channel
        for step in steps:
            wanted = dpap.target_connectivity(step.tick.q, target)
            assert step.connectivity * weights >= wanted * weights - largest - 1e-6
        assert steps[-1].tick.q == 1.0
        assert steps[-1].connectivity <= target + 1e-12

    def test_a_unit_that_falls_silent_in_the_window_dies_before_it_closes(self) -> None:
        rates = {name: np.tile(r.mean(axis=0), (40, 1)) for name, r in records.drifting_rates(40).items()}
        rates["conv1"][12:, 9] = 0.0  # from p = 0.3 on
        record = records.make_record(epochs=40, rates=rates)
        steps = dpap.run(record, records.random_weights(record.chain))
        at_030 = max(step.tick.p for step in steps if step.tick.p <= 0.3)
        assert next(step for step in steps if step.tick.p == at_030).alive["conv1"][9]
        assert not steps[-1].alive["conv1"][9]


def test_spike_trains_and_numbers() -> None:
    assert spike_trains("11 10", "01 00").tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]]]
    assert numbers("1/2 -3").tolist() == [0.5, -3.0]
    assert np.isnan(numbers("1 -", "2 3")[0, 1])
    assert len({case.name for case in hand_worked.HAND_WORKED}) == 3
