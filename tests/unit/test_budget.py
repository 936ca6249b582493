"""Who may die: the account after every death against one drawn up anew, floors, caps, isolation, targets."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import ConvNet, SpikingNet
from torch import Tensor, nn

from dpap import DPAP, DPAPError, Stats, find_groups
from dpap.graph.group import Graph
from dpap.plasticity import Kind
from dpap.pruning.budget import Account, Candidates, Taker, Victim, check_target
from dpap.rules import dpap as dpap_rule


def graph_of(model: nn.Module, *shape: int) -> Graph:
    return find_groups(model, torch.rand(*shape))


SMALL = graph_of(SpikingNet(2, (3, 4, 5)), 2, 1, 8, 8)


def opened(graph: Graph = SMALL, *, floors: bool = True, synapses: bool = True) -> Account:
    masks = {
        la.weight: np.ones((len(la.out_units), len(la.in_unit)), dtype=bool)
        for la in graph.layers
        if la.kind == "linear"
    }
    return Account.of(
        graph, {g.name: np.ones(g.units, dtype=bool) for g in graph.groups}, masks if synapses else {}, floors=floors
    )


def anew(account: Account) -> Account:
    """The same living, counted from nothing."""
    return Account.of(
        account.graph,
        {g.name: a for g, a in zip(account.graph.groups, account.alive, strict=True)},
        {e.weight: e.living for e in account.edges},
    )


def assert_consistent(account: Account) -> None:
    fresh = anew(account)
    for mine, theirs in zip(account.edges, fresh.edges, strict=True):
        np.testing.assert_array_equal(mine.living, theirs.living)
        np.testing.assert_array_equal(mine.row, theirs.living.sum(1))
        np.testing.assert_array_equal(mine.col, theirs.living.sum(0))
    for name in ("inputs", "outputs"):
        for mine_counts, their_counts in zip(getattr(account, name), getattr(fresh, name), strict=True):
            np.testing.assert_array_equal(mine_counts, their_counts)
    for alive, inputs, outputs, protected in zip(
        account.alive, account.inputs, account.outputs, account.protected, strict=True
    ):
        assert (inputs[alive] > 0).all(), "a living unit without a living input"
        assert protected or (outputs[alive] > 0).all(), "a living unit without a living output"


victims = st.lists(
    st.one_of(
        st.tuples(st.just(True), st.integers(0, 3), st.integers(0, 4)),
        st.tuples(st.just(False), st.integers(2, 3), st.integers(0, 79)),
    ),
    max_size=150,
)


@given(victims)
@settings(max_examples=60, deadline=None)
def test_the_account_is_exact_after_any_deaths(order: list[tuple[bool, int, int]]) -> None:
    """Nobody is isolated, no group falls below its floor, a refused death changes nothing."""
    account = opened()
    for is_unit, owner, index in order:
        size = len(account.alive[owner]) if is_unit else account.edges[owner].living.size
        before = (account.connectivity(), [a.copy() for a in account.alive], len(account.isolated))
        if not account.kill(Victim(is_unit, owner, index % size)):
            assert account.connectivity() == before[0] and len(account.isolated) == before[2]
            assert all((a == b).all() for a, b in zip(account.alive, before[1], strict=True))
    assert_consistent(account)
    for group, alive, floor in zip(account.graph.groups, account.alive, account.floors, strict=True):
        assert alive.sum() >= floor
        assert group.protected is None or alive.all()


def test_counts_by_hand() -> None:
    account = opened()
    weights = 3 * 9 + 4 * 3 * 9 + 5 * 16 + 5 * 5
    assert account.connectivity() == weights
    assert account.synaptic() == 5 * 16 + 5 * 5
    assert account.macs() == 3 * 9 * 64 + 4 * 3 * 9 * 16 * 2 + 5 * 16 * 2 + 5 * 5 * 2
    model = SpikingNet(2, (3, 4, 5))
    assert account.parameters() == sum(p.numel() for p in model.parameters())
    assert account.kill(Victim(True, 1, 0))  # a channel of conv2 and its four columns in fc1
    assert account.connectivity() == weights - 3 * 9 - 5 * 4
    assert account.macs() == 3 * 9 * 64 + 3 * 3 * 9 * 16 * 2 + 5 * 12 * 2 + 5 * 5 * 2
    assert account.kill(Victim(False, 2, 4))  # a synapse that the channel had not taken along
    assert account.connectivity() == weights - 3 * 9 - 5 * 4 - 1
    assert account.macs() == 3 * 9 * 64 + 3 * 3 * 9 * 16 * 2 + 5 * 12 * 2 + 5 * 5 * 2, (
        "a dead synapse costs its MAC all the same"
    )


def test_floors() -> None:
    account = opened()
    killed = [account.kill(Victim(True, 0, unit)) for unit in range(3)]
    assert killed == [True, False, False], "two of three are the floor"
    tiny = opened(graph_of(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1)), 2, 4))
    assert not any(tiny.kill(Victim(True, 0, u)) for u in range(2)), "a group of two never loses any"


def test_one_living_input_stays() -> None:
    account = opened()
    row = [account.kill(Victim(False, 2, column)) for column in range(16)]
    assert row == [True] * 15 + [False]


def test_isolation_without_outputs_and_without_inputs() -> None:
    account = opened()
    for row in range(5):
        assert account.kill(Victim(False, 3, row * 5 + 2)), "synapses out of unit 2 of fc1"
    assert account.isolated == [(2, 2)]
    assert not account.alive[2][2] and account.edges[2].row[2] == 0
    assert_consistent(account)
    chain = opened(
        graph_of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)), 2, 4)
    )
    for column in range(1, 6):
        assert chain.kill(Victim(False, 1, 0 * 6 + column)), (
            "unit 0 of the second layer listens to unit 0 of the first only"
        )
    assert chain.kill(Victim(True, 0, 0))
    assert chain.isolated == [(1, 0)], "and dies with it"
    assert_consistent(chain)


def test_a_protected_unit_keeps_its_last_input() -> None:
    account = opened()
    for column in range(1, 5):
        assert account.kill(Victim(False, 3, 0 * 5 + column))
    before = account.connectivity()
    assert not account.kill(Victim(True, 2, 0)), "class 0 listens to unit 0 of fc1 only"
    assert account.connectivity() == before
    assert "unit 0 of fc2" in next(iter(account.skipped))
    assert_consistent(account)


def test_nobody_at_a_floor_is_isolated() -> None:
    account = opened()
    assert account.kill(Victim(True, 0, 0))  # conv1 is at its floor of 2 now
    account.edges[1].living[:, 1] = False  # unit 1 of conv1 is read by unit 0 of conv2 only
    account.edges[1].living[0, 1] = True
    account._count()
    assert not account.kill(Victim(True, 1, 0))
    assert account.alive[0].tolist() == [False, True, True] and account.alive[1].all()
    assert_consistent(account)


def candidates(parts: list[tuple[int, list[float]]], level: float = 0.5, use: list[float] | None = None) -> Candidates:
    owner = np.concatenate([np.full(len(s), o) for o, s in parts])
    survival = np.concatenate([np.array(s, dtype=float) for _, s in parts])
    return Candidates(
        owner=owner,
        index=np.concatenate([np.arange(len(s)) for _, s in parts]),
        survival=survival,
        use=survival if use is None else np.array(use),
        fallen=survival < level,
    )


def test_order_is_survival_then_use_then_place() -> None:
    found = candidates([(1, [0.2, 0.1]), (0, [0.1, 0.1])], use=[0.0, 5.0, 4.0, 4.0])
    assert list(found.in_order()) == [(0, 0), (0, 1), (1, 1), (1, 0)]


def test_order_of_many_is_that_of_a_full_sort() -> None:
    survival = np.random.default_rng(0).integers(0, 50, 20000) / 50.0  # many ties across the chunks
    found = candidates([(0, survival.tolist())], level=2.0)
    index = np.array([i for _, i in found.in_order()])
    np.testing.assert_array_equal(index, np.lexsort((np.arange(20000), survival)))


def test_caps_defer_and_are_reported() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2)), 2, 4)
    taker = Taker(account=opened(graph), elapsed=0.01, capped=True)
    taker.fallen_units(candidates([(0, [0.0] * 10 + [1.0] * 30)]))
    assert taker.units == [(0, 0), (0, 1), (0, 2), (0, 3)], "a tenth of 40"
    assert taker.bound == {"0"}
    free = Taker(account=opened(graph), elapsed=0.01, capped=False)
    free.fallen_units(candidates([(0, [0.0] * 10 + [1.0] * 30)]))
    assert len(free.units) == 10 and not free.bound


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("goal", [None, ("connectivity", 0.4), ("connectivity", 0.02), ("sops", 0.3)])
def test_many_at_once_is_one_by_one(capped: bool, seed: int, goal: tuple[str, float] | None) -> None:
    """The same victims in the same order, near floors and isolation too."""
    generator = np.random.default_rng(seed)
    graph = graph_of(SpikingNet(2, (3, 6, 30)), 2, 1, 8, 8)
    survival = [(e, generator.integers(0, 40, size)) for e, size in ((2, 30 * 24), (3, 5 * 30))]
    found = candidates([(e, (s / 40).tolist()) for e, s in survival], level=0.9)
    arrivals = [generator.integers(0, 5, n).astype(float) for n in (1, 3, 24, 30)]
    outcomes = []
    for one_by_one in (32, 10**9):
        taker = Taker(account=opened(graph), elapsed=0.02, capped=capped)
        taker.ONE_BY_ONE = one_by_one  # type: ignore[misc]
        taker.account.arrivals = list(arrivals)
        if goal is None:
            taker.fallen_synapses(found)
        else:
            taker.synapses_until(found, goal[0], goal[1] * taker.account.count(goal[0]), keep=20)
        assert_consistent(taker.account)
        outcomes.append(taker)
    fast, slow = outcomes
    assert len(slow.synapses) > 20
    assert set(fast.synapses) == set(slow.synapses)
    assert fast.account.isolated == slow.account.isolated
    assert fast.account.connectivity() == slow.account.connectivity()


# through the whole object ---------------------------------------------------------------------------------------------


def scores(values: dict[str, list[float]]) -> Any:
    """Fixed scores of units by layer; synapses by their place."""

    def score(stats: Stats) -> Tensor:
        if stats.kind == "synapse":
            o, i = stats.weight.shape
            return torch.arange(1, o * i + 1, dtype=torch.float32).reshape(o, i)
        return torch.tensor(values.get(stats.layer, [1.0] * len(stats.weight)))

    return score


def run(
    model: nn.Module, example: Tensor, steps: int = 40, kinds: frozenset[Kind] | None = None, **options: Any
) -> DPAP:
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    rule = dpap_rule(kinds=kinds) if kinds else "dpap"
    dev = DPAP(
        model,
        example,
        optimizer=optimizer,
        total_steps=steps,
        observe_every=1,
        rule=rule,
        **({"memory": 0.05} | options),
    )
    for _ in range(steps):
        with dev.observing():
            model(torch.rand_like(example))
        dev.step()
    return dev


SHARES = [0.1, 0.3, 0.6]


class TestTargets:
    @pytest.mark.parametrize("share", SHARES)
    def test_connectivity_by_synapses_is_exact(self, share: float) -> None:
        model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
        dev = run(model, torch.rand(4, 20), kinds=frozenset({"synapse"}), target={"connectivity": share})
        total = 30 * 20 + 10 * 30
        assert total * dev.connectivity() == pytest.approx(np.floor(share * total), abs=20), (
            "one victim, with what it isolates"
        )
        assert dev.connectivity() <= share

    @pytest.mark.parametrize("share", SHARES)
    @pytest.mark.parametrize("metric", ["macs", "parameters"])
    def test_paid_by_units_alone(self, metric: str, share: float) -> None:
        model = SpikingNet(2, (20, 20, 40))
        dense = opened(graph_of(model, 2, 1, 8, 8), synapses=False)
        dev = run(model, torch.rand(4, 1, 8, 8), kinds=frozenset({"unit"}), target={metric: share})
        account = dev._account()
        reached = account.count(metric) / dense.count(metric)
        assert share - 0.06 <= reached <= share
        small = dev.compact()
        if metric == "parameters":
            assert account.parameters() == sum(p.numel() for p in small.parameters())

    def test_macs_and_connectivity_together(self) -> None:
        model = SpikingNet(2, (20, 20, 40))
        dense = opened(graph_of(model, 2, 1, 8, 8))
        dev = run(model, torch.rand(4, 1, 8, 8), target={"macs": 0.5, "connectivity": 0.2})
        account = dev._account()
        assert 0.25 <= account.macs() / dense.macs() <= 0.5, "units that lost all their synapses go beyond it"
        assert 0.17 <= dev.connectivity() <= 0.2

    def test_synaptic_operations_are_measured(self) -> None:
        torch.manual_seed(1)
        model = SpikingNet(4, (4, 12, 200))  # single synapses carry enough to meet a target closely
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3.0)
        model.eval()
        dev = run(model, torch.rand(64, 1, 8, 8), target={"sops": 0.4})
        account = dev._account()
        assert account.connectivity() < opened(dev.graph).connectivity()
        x = torch.rand(64, 1, 8, 8)
        counted = [spent(dev, x, masked=masked) for masked in (False, True)]
        assert counted[1] / counted[0] == pytest.approx(
            0.4, rel=0.02 + 0.02
        )  # the rule's 2 %, and as much for other images

    def test_the_cubic_schedule_is_followed(self) -> None:
        model = nn.Sequential(nn.Linear(50, 60), nn.ReLU(), nn.Linear(60, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        dev = DPAP(
            model,
            torch.rand(4, 50),
            optimizer=optimizer,
            total_steps=100,
            observe_every=1,
            target={"connectivity": 0.2},
        )
        for _ in range(100):
            with dev.observing():
                model(torch.rand(4, 50))
            report = dev.step()
            if report is not None and not report.capped:
                q = min(max((report.progress - 0.1) / 0.4, 0), 1)
                assert report.connectivity == pytest.approx(0.2 + 0.8 * (1 - q) ** 3, abs=0.02)

    def test_a_small_classifier_does_not_pay_for_large_convolutions(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(3, 40, 3),
            nn.ReLU(),
            nn.Conv2d(40, 40, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(40, 10),
        )
        dev = run(model, torch.rand(4, 3, 8, 8), target={"connectivity": 0.2}, score="magnitude")
        assert dev.connectivity() == pytest.approx(0.2, abs=0.03)
        living = dev.synapse_masks["6.weight"].float().mean()
        assert living >= 0.04, "a quarter of the share stays"
        assert dev.alive["2"].sum() < 30

    def test_out_of_reach_is_refused_with_the_lowest_value(self) -> None:
        model = ConvNet()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def make(**options: Any) -> DPAP:
            return DPAP(model, torch.rand(2, 2, 6, 6), optimizer=optimizer, total_steps=100, **options)

        with pytest.raises(DPAPError, match=r"target of 1\.00% macs cannot be reached.*at least \d+\.\d+%"):
            make(target={"macs": 0.01})
        with pytest.raises(DPAPError, match="cannot be reached"):
            make(target={"connectivity": 0.3}, ignore=["conv*", "fc1"])
        with pytest.raises(DPAPError, match="did you mean 'connectivity'"):
            make(target={"conectivity": 0.3})
        with pytest.raises(DPAPError, match="no share"):
            make(target={"connectivity": 5})
        with pytest.raises(DPAPError, match="cannot be named together"):
            make(target={"sops": 0.5, "macs": 0.5})
        with pytest.raises(DPAPError, match="knows no target"):
            make(target={"macs": 0.5}, rule="paper")

    def test_the_bound_is_no_higher_than_what_can_be_reached(self) -> None:
        """Whatever the search reaches, the refusal must not forbid."""
        for metric in ("connectivity", "macs", "parameters"):
            account = opened()
            owner = [n for n, p in enumerate(account.protected) if not p]
            taker = Taker(account=account, elapsed=1.0, capped=False)
            dense = account.count(metric)
            taker.units_until(candidates([(o, [0.0] * len(account.alive[o])) for o in owner]), metric, 0)
            if metric == "connectivity":
                taker.synapses_until(candidates([(e, [0.0] * account.edges[e].living.size) for e in (2, 3)]), metric, 0)
            check_target({metric: account.count(metric) / dense}, opened(), {"unit", "synapse"})


def spent(dev: DPAP, x: Tensor, *, masked: bool) -> float:
    """SOPs of a batch by brute force: each layer's incoming spikes, sent through ones where a synapse lives."""
    total = 0.0
    handles = []
    for layer in dev.graph.layers:
        if layer.spike_divisor is None:
            continue
        module = dev.model.get_submodule(layer.name)
        living = (module.weight != 0).double() if masked else torch.ones_like(module.weight).double()
        divisor = torch.from_numpy(layer.spike_divisor)

        def count(
            module: nn.Module, args: Any, out: Tensor, living: Tensor = living, divisor: Tensor = divisor
        ) -> None:
            nonlocal total
            spikes = args[0].double() * divisor
            if isinstance(module, nn.Conv2d):
                total += nn.functional.conv2d(spikes, living, None, module.stride, module.padding).sum().item()
            else:
                total += nn.functional.linear(spikes, living).sum().item()

        handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        dev.model(x)
    for handle in handles:
        handle.remove()
    return total


def test_a_missed_target_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A bound from below is no promise: what the last step could not reach is said."""
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dev = DPAP(model, torch.rand(4, 6), optimizer=optimizer, total_steps=40, observe_every=1, memory=0.05)
    dev.target = {"connectivity": 0.001}  # past the check at the start: less than a synapse
    with caplog.at_level(logging.WARNING, "dpap"):
        for _ in range(40):
            with dev.observing():
                model(torch.rand(4, 6))
            dev.step()
    assert f"The target of 0.0010 connectivity was missed: {dev.connectivity():.4f} is left." in caplog.messages


def test_nobody_dies_outside_the_window() -> None:
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dev = DPAP(
        model,
        torch.rand(2, 2, 6, 6),
        optimizer=optimizer,
        total_steps=100,
        start=0.3,
        stop=0.6,
        observe_every=1,
        target={"connectivity": 0.3},
    )
    steps = []
    for step in range(1, 101):
        with dev.observing():
            model(torch.randn(4, 2, 6, 6))
        report = dev.step()
        if report is not None and report.deaths:
            steps.append(step)
    assert 30 < steps[0] <= 32 and steps[-1] <= 60
