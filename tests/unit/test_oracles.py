"""The oracles themselves: against numbers worked by hand, against second accounts in matrix form, and by properties."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import pytest
from oracles import chain as ch
from oracles import dpap, paper, records, released
from oracles.hand_worked import HAND_WORKED, HandWorked, numbers


@functools.cache
def the_record() -> records.Record:
    return records.make_record()


def fc_record(pre: list[ch.FloatArray], post: list[ch.FloatArray]) -> records.Record:
    """One linear layer ("fc") that reads the image, one batch an epoch; nothing reads it."""
    spec = ch.LayerSpec(name="fc", kind="linear", outputs=post[0].shape[2], in_unit=(ch.IMAGE,) * pre[0].shape[2])
    batches = [{"fc": records.LayerActivity(pre=x, post=y)} for x, y in zip(pre, post, strict=True)]
    return records.Record(chain=(spec,), epochs=tuple((batch,) for batch in batches))


def two_batches() -> records.Record:
    """T = 1, two samples a batch, one input, two units."""
    pre = [numbers("1", "2").reshape(1, 2, 1), numbers("1", "1").reshape(1, 2, 1)]
    return fc_record(pre, [numbers("1 0", "2 4")[None], numbers("3 1", "2 2")[None]])


class TestRecords:
    def test_pool_averages_windows_of_its_own_channel(self) -> None:
        spikes = np.zeros((1, 1, 2, 16))
        spikes[0, 0, 1, [2, 3, 7]] = 1.0  # channel 1, rows 0-1, columns 2-3 of 4 x 4
        assert records.pool_and_flatten(spikes).tolist() == [[[0, 0, 0, 0, 0, 0.75, 0, 0]]]

    def test_rebatch_keeps_samples_in_order(self) -> None:
        batches = list(records.make_record(epochs=2).batches())
        other = records.rebatch(batches, 5)
        assert [b["fc"].post.shape[1] for b in other] == [5] * 9 + [3]
        assert (records.merge(other)["conv2"].post == records.merge(batches)["conv2"].post).all()


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


class TestReleased:
    @pytest.mark.parametrize(
        ("kind", "importance", "epochs"),
        [
            ("conv", (0.0, 0.066, 0.07), (25, None, None)),
            ("linear", (0.0, 0.2, 0.3, 0.4, 0.5, 0.52), (11, 14, 16, 21, 48, None)),
        ],
    )
    def test_epoch_of_death_at_constant_importance(
        self, kind: ch.Kind, importance: tuple[float, ...], epochs: tuple[int | None, ...]
    ) -> None:
        assert tuple(released.death_epoch(u, kind) for u in importance) == epochs
        assert released.death_epoch({"conv": 0.065, "linear": 0.51}[kind], kind) is not None, "the highest that dies"

    def test_change_of_survival(self) -> None:
        """Delta = 0 earns the bonus as printed, but not as released."""
        assert released.survival_change(0.0, "conv", 16) == paper.growth(0.0, "conv", 0) == -0.65
        assert released.survival_change(0.0, "conv", 17) == pytest.approx(-0.65 / math.e)
        assert released.survival_change(0.325, "conv", 5) == 0.0
        assert paper.growth(0.325, "conv", 0) == 5.0
        assert released.survival_change(0.35, "conv", 5) == pytest.approx(0.05 + 5.0)
        assert released.survival_change(1.0, "linear", 18) == pytest.approx((2.0 - 1.5 + 2.0) / math.e)
        assert paper.growth(1.0, "linear", 13) == pytest.approx((2.0 - 1.5 + 2.0) / math.e)

    @pytest.mark.parametrize(("trace", "divisor"), [(released.trace, 4), (paper.trace, 1)])
    def test_trace(self, trace: Callable[[ch.FloatArray], ch.FloatArray], divisor: int) -> None:
        """1, 0, 1, 1 at decay 0.5 is 1.625, as released over T = 4; positions add up."""
        train = np.array([1.0, 0.0, 1.0, 1.0])
        assert trace(train[:, None, None]).tolist() == [[1.625 / divisor]]
        assert trace(np.stack([train, train], axis=1)[:, None, None, :]).tolist() == [[3.25 / divisor]]

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
        first, second = (outcome["fc"] for outcome in released.run(two_batches()))
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

    def test_the_record_kills_each_kind_at_five_or_more_epochs(self) -> None:
        """And none of its decisions rests on rounding: what is compared on it must come out alike."""
        outcome = released.run(the_record())

        def epochs_of_death(dead: Sequence[Set[object]]) -> set[int]:
            return {e for e in range(1, len(dead)) if dead[e] - dead[e - 1]}

        conv = [{(n, i) for n in ("conv1", "conv2") for i in state[n].dead_units} for state in outcome]
        fc = [state["fc"].dead_units for state in outcome]
        synapses = [state["fc"].dead_synapses for state in outcome]
        for epochs in (epochs_of_death(conv), epochs_of_death(fc), epochs_of_death(synapses)):
            assert len(epochs) >= 5
            assert min(epochs) >= 11
        assert all(outcome[-1][name].unit_mask.any() for name in ("conv1", "conv2", "fc"))
        assert 1e-9 < min(layer.margin for state in outcome for layer in state.values()) < math.inf


class TestPaper:
    def test_with_beta_10_and_the_smooth_exponent_no_filter_can_die(self) -> None:
        limit = paper.largest_survival_a_silent_unit_can_lose("conv")
        assert limit == pytest.approx(8.23, abs=0.005)
        for beta, dies in ((10.0, False), (limit + 1e-3, False), (limit - 1e-3, True)):
            survival = paper.survival_of_a_silent_unit("conv", initial_survival=beta, epochs=5000)
            assert (survival.min() < 0.0) == dies
        staircase = paper.survival_of_a_silent_unit("conv", initial_survival=10.0, epochs=100, staircase=True)
        assert np.flatnonzero(staircase < 0.0)[0] == 20  # as in the released script, whose epoch 5 is this epoch 0

    def test_two_epochs_by_hand(self) -> None:
        """T = 1, two samples, one input, two units, right-hand form of (7).

        Epoch 0: x = (1, 2), y = ((1, 0), (2, 4)), theta = 0: BCM = (1 + 8, 32) / 2, D = (1 + 16, 128) / 2,
        theta = (3/2, 2). Left-hand form: A * BCM = (3/2 * 9/2, 2 * 16).
        Epoch 1: x = (1, 1), y = ((3, 1), (2, 2)): BCM = (3 * 3/2 + 2 * 1/2, 1 * -1 + 0) / 2,
        D = (3 * 9/2 + 2 * 1, -1) / 2, theta = (3/2 + 5/2, 2 + 3/2) / 2.
        """
        first, second = (outcome["fc"] for outcome in paper.run(two_batches()))
        assert first.bcm.tolist() == [[4.5], [16.0]]
        assert first.spine.tolist() == [8.5, 64.0]
        assert first.theta.tolist() == [1.5, 2.0]
        assert first.unit_u.tolist() == [0.0, 1.0]
        assert first.unit_survival == pytest.approx([0.999 * 5 - 1.5, 0.999 * 5 + 0.5 + 2])
        assert second.bcm.tolist() == [[2.75], [-0.5]]
        assert second.spine.tolist() == [7.75, -0.5]
        assert second.theta.tolist() == [2.0, 1.75]
        other = paper.run(two_batches(), spine="trace_times_sum")[0]["fc"]
        assert other.spine.tolist() == [6.75, 32.0]

    def test_normalised_over_the_living_only(self) -> None:
        """On a record that kills filters at beta 5 and, without isolation, none at beta 10."""
        outcome = paper.run(the_record())
        for before, after in itertools.pairwise(outcome):
            for name in ("conv1", "conv2", "fc"):
                u, alive = after[name].unit_u, before[name].alive
                assert np.isnan(u[~alive]).all()
                assert (u[alive].min(), u[alive].max()) == (0.0, 1.0)
                assert not (after[name].alive & ~alive).any()
        assert 0 < outcome[-1]["conv1"].alive.sum() < 12
        gentle = paper.run(the_record(), initial_survival=10.0, isolate=False)[-1]
        assert gentle["conv1"].alive.all() and gentle["conv2"].alive.all()

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
    def test_sums_scores_and_u(self, case: HandWorked) -> None:
        seen = case.batch["layer"]
        assert dpap.pre_activity(seen, first=len(case.chain) == 1).tolist() == case.x.tolist()
        assert dpap.post_activity(seen).tolist() == case.y.tolist()
        network = network_of(case)
        step = dpap.develop(network, [case.batch], dpap.Tick(call=1, p=0.01, dp=0.01, q=0.0))
        sums = step.sums["layer"]
        assert sums.n == 2
        synaptic = case.sum_xy is not None
        assert synaptic == ("layer" in step.synapse_u)
        for name in ("x", "y", "Xy", "Xyy", *(("xy", "xyy") if synaptic else ())):
            agree(getattr(sums, name), getattr(case, f"sum_{name}"))
        for name in ("theta", "R", "A", "D", "unit_u", *(("bcm", "s", "synapse_u") if synaptic else ())):
            agree(getattr(step, name)["layer"], getattr(case, name))
        assert step.at_threshold["layer"] == case.at_threshold
        assert tuple(step.silent_rows.get("layer", ())) == case.silent_rows
        gamma, alive = math.exp(-1 / 3), case.alive["layer"]
        expected = np.where(alive, gamma + (1 - gamma) * case.unit_u, 1.0)  # the dead keep what they had
        np.testing.assert_allclose(step.unit_survival["layer"], expected, rtol=1e-14)
        agree(network.theta["layer"], case.sum_y / 2)


class TestDpapPieces:
    def test_clock(self) -> None:
        ticks = dpap.clock(1000)
        assert [t.call for t in ticks] == list(range(20, 501, 10))  # observing starts at 0.01, after call 10
        assert all(t.dp == pytest.approx(0.01) for t in ticks)
        assert [t.call for t in ticks if t.q == 0.0][-1] == 100
        assert next(t for t in ticks if t.call == 300).q == pytest.approx(0.5)
        assert ticks[-1].q == 1.0
        assert [t.call for t in dpap.clock(20)] == list(range(1, 11))
        seven = dpap.clock(7, start=0.2)
        assert [t.call for t in seven] == [1, 2, 3, 4]  # 4/7 is the first share from 0.5 on
        assert (seven[-1].q, sum(t.dp for t in seven)) == (1.0, pytest.approx(4 / 7))
        assert len(dpap.clock(1000, development_steps=30)) == 15

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

    @pytest.mark.parametrize(
        ("score", "alive", "expected", "silent"),
        [
            ([1.0, 3.0, 9.0, 0.0], [True, True, False, True], [1.0, 3.0, 0.0, 0.0], False),  # 4 originals share 4
            ([0.0, 0.0, 9.0, 0.0], [True, True, False, True], [4 / 3, 4 / 3, 0.0, 4 / 3], True),
            ([1.0, 1.0], [False, False], [0.0, 0.0], False),
        ],
    )
    def test_siblings(self, score: list[float], alive: list[bool], expected: list[float], silent: bool) -> None:
        u, found = dpap.relative_to_siblings(np.array(score), np.array(alive))
        assert u == pytest.approx(expected) and found == silent


def survivors(chain: ch.Chain) -> dpap.Network:
    """A chain in which everybody has F = 1; tests lower it for some and see who dies."""
    weights = {layer.name: np.ones((layer.outputs, layer.inputs)) for layer in chain}
    return dpap.Network.newborn(chain, weights)


def equal_u(network: dpap.Network) -> tuple[dict[str, ch.FloatArray], dict[str, ch.FloatArray]]:
    units = {layer.name: np.ones(layer.outputs) for layer in network.chain}
    return units, {layer.name: np.ones((layer.outputs, layer.inputs)) for layer in network.chain}


def emergent(network: dpap.Network, *, q: float = 1.0, dp: float = 0.01, u_of_9: float = 1.0) -> dpap._Funeral:
    funeral = dpap._Funeral(network, dpap.Tick(call=1, p=0.3, dp=dp, q=q), caps=True)
    units, synapses = equal_u(network)
    units.get("conv2", np.ones(10))[9:10] = u_of_9
    dpap._emergent_deaths(funeral, units, synapses)
    return funeral


def for_target(network: dpap.Network, share: float, *, q: float = 1.0, dp: float = 0.01) -> dpap._Funeral:
    funeral = dpap._Funeral(network, dpap.Tick(call=1, p=0.3, dp=dp, q=q), caps=q < 1.0)
    dpap._deaths_for_target(funeral, *equal_u(network), share)
    return funeral


def wide(units: int = 30) -> ch.Chain:
    return records.chain_of(3, units, 4)


ONE = [True, False, False, False]
Changes = list[tuple[str, str, Any, Any]]
"""Attribute of a network, layer, entries, and their value."""

EMERGENT: dict[str, tuple[ch.Chain, Changes, dict[str, float], dict[str, Any]]] = {
    "weakest first until the cap, a tenth of 30": (
        wide(), [("unit_survival", "conv2", [3, 5, 7, 9], [0.4, 0.2, 0.5, 0.3])],
        {}, {"died_units": {"conv2": [5, 9, 3]}, "capped_units": {"conv2"}},
    ),
    "a longer step takes the rest": (
        wide(), [("unit_survival", "conv2", [3, 5, 7, 9], [0.4, 0.2, 0.5, 0.3])],
        {"dp": 1.0}, {"died_units": {"conv2": [5, 9, 3, 7]}, "capped_units": set()},
    ),
    "ties by u, then index": (
        wide(), [("unit_survival", "conv2", [3, 5, 7, 9], 0.1)], {"u_of_9": 0.5}, {"died_units": {"conv2": [9, 3, 5]}},
    ),
    "the level is a strict bound with a margin": (
        wide(), [("unit_survival", "conv2", [0, 1], [0.6 * (1 - 5e-7), 0.6 * (1 - 2e-6)])],
        {"dp": 1.0}, {"died_units": {"conv2": [1]}},
    ),
    "nobody dies at q = 0": (
        wide(), [("unit_survival", "conv2", slice(None), 0.0), ("synapse_survival", "fc", slice(None), 0.0)],
        {"q": 0.0, "dp": 1.0}, {"died_units": {"conv2": []}, "died_synapses": {"fc": []}},
    ),
    "protected units do not die": (
        wide(3), [("unit_survival", "classifier", slice(None), 0.0)], {"dp": 1.0}, {"died_units": {"classifier": []}},
    ),
    "a synapse death may isolate its feeder": (
        small_chain(), [("synapses", "b", np.s_[:, 3], ONE), ("synapse_survival", "b", (0, 3), 0.0)],
        {}, {"died_synapses": {"b": [(0, 3)]}, "isolated_units": {"a": [3]}},
    ),
    "but not where a group is at its floor of 2": (
        small_chain(),
        [("alive", "a", [0, 1], False), ("synapses", "b", np.s_[:, 3], ONE), ("synapse_survival", "b", (0, 3), 0.0)],
        {}, {"skipped": [("b", 0, 3)], "died_synapses": {"b": []}, "isolated_units": {"a": []}},
    ),
    "nor does a unit take the last input of a protected one": (
        small_chain(), [("synapses", "out", 0, ONE), ("unit_survival", "b", 0, 0.0)],
        {}, {"skipped": [("b", 0)], "died_units": {"b": []}},
    ),
    "nor a synapse": (
        small_chain(), [("synapses", "out", 0, ONE), ("synapse_survival", "out", (0, 0), 0.0)],
        {}, {"skipped": [("out", 0, 0)], "died_synapses": {"out": []}},
    ),
    "a cap on the synapses of a layer, a fifth of 16": (
        small_chain(), [("synapse_survival", "b", slice(None), 0.5)],
        {}, {"died_synapses": {"b": [(0, 0), (0, 1), (0, 2)]}, "capped_synapses": {"b"}},
    ),
    "a victim that an earlier one isolated is passed over": (
        small_chain(),
        [
            ("synapses", "b", 3, ONE),
            ("synapses", "b", np.s_[:3, 0], False),  # a0 feeds b3 only, b3 reads a0 only
            ("unit_survival", "a", 0, 0.1),
            ("unit_survival", "b", 3, 0.2),
        ],
        {"dp": 1.0},
        {"died_units": {"a": [0], "b": [], "out": []}, "isolated_units": {"b": [3]}},
    ),
}  # fmt: skip


class TestDpapDeaths:
    @pytest.mark.parametrize("case", EMERGENT)
    def test_emergent(self, case: str) -> None:
        chain, changes, options, expected = EMERGENT[case]
        network = survivors(chain)
        for attribute, layer, entries, value in changes:
            getattr(network, attribute)[layer][entries] = value
        funeral = emergent(network, **options)
        for what, wanted in expected.items():
            found = getattr(funeral, what)
            assert found == (wanted if not isinstance(wanted, dict) else {**found, **wanted}), what

    @pytest.mark.parametrize(("units", "left"), [(1, 1), (2, 2), (3, 2), (30, 3)])
    def test_floor_of_a_group(self, units: int, left: int) -> None:
        network = survivors(wide(units))
        network.unit_survival["conv2"][:] = 0.0
        assert not emergent(network, dp=1.0).skipped
        assert network.alive["conv2"].sum() == left

    def test_synapses_leave_each_neuron_one_input(self) -> None:
        network = survivors(small_chain())
        network.synapse_survival["a"][:] = 0.0
        network.synapse_survival["b"][:] = np.where(np.eye(4, dtype=bool), 0.9, 0.1)
        funeral = emergent(network, dp=1.0)
        assert network.alive["a"].all() and network.alive["b"].all()
        assert (network.synapses["a"].sum(axis=1) == 1).all()
        assert (network.synapses["b"] == np.eye(4, dtype=bool)).all()
        assert not funeral.skipped

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


@functools.cache
def short_record() -> records.Record:
    return records.make_record(seed=1, epochs=20, batches=2)


class TestDpapRuns:
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
