"""Who may die: the account after every death against one drawn up anew, floors, caps, isolation, targets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import ConvNet, SpikingNet
from torch import Tensor, nn

from dpap import DPAP, DevelopmentReport, DPAPError, Stats, find_groups
from dpap.config import TargetConfig
from dpap.graph.group import Graph
from dpap.method.plasticity import Kind
from dpap.method.rules import dpap as dpap_rule
from dpap.pruning import pace
from dpap.pruning.account import Account, Victim
from dpap.pruning.choose import Candidates, Taker
from dpap.pruning.slice import Alive, Present
from dpap.pruning.targets import check_target


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
        account = dev._engine.survivors.account()
        reached = account.count(metric) / dense.count(metric)
        assert share - 0.06 <= reached <= share
        small = dev.compact()
        if metric == "parameters":
            assert account.parameters() == sum(p.numel() for p in small.parameters())

    def test_macs_and_connectivity_together(self) -> None:
        model = SpikingNet(2, (20, 20, 40))
        dense = opened(graph_of(model, 2, 1, 8, 8))
        dev = run(model, torch.rand(4, 1, 8, 8), target={"macs": 0.5, "connectivity": 0.2})
        account = dev._engine.survivors.account()
        assert 0.25 <= account.macs() / dense.macs() <= 0.5, "units that lost all their synapses go beyond it"
        assert 0.17 <= dev.connectivity() <= 0.2

    def test_synaptic_operations_are_measured(self) -> None:
        torch.manual_seed(1)
        model = SpikingNet(4, (4, 12, 200))  # single synapses carry enough to meet a target closely
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(3.0)
        model.eval().training = True  # norms as they are, and passes that count
        dev = run(model, torch.rand(64, 1, 8, 8), target={"sops": 0.4}, shrink="never")  # `spent` reads dense widths
        account = dev._engine.survivors.account()
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

    def test_a_unit_that_two_weights_drive_needs_one_input_of_either(self) -> None:
        class Sum(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.out = nn.Linear(4, 20), nn.Linear(4, 20), nn.Linear(20, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.out(torch.relu(self.a(x) + self.b(x)))  # type: ignore[no-any-return]

        dev = run(Sum(), torch.rand(4, 4), target={"connectivity": 0.025}, score="magnitude")  # five synapses of 200
        assert dev.connectivity() in (0.02, 0.025)  # to within what a unit takes along
        with pytest.raises(DPAPError, match=r"at least 2\.00%"):
            run(Sum(), torch.rand(4, 4), target={"connectivity": 0.019}, score="magnitude")

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
    dev.target["connectivity"] = 0.001  # past the check at the start: less than a synapse
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


# latency, with a clock that the tests set: nothing here is timed ------------------------------------------------------


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 60), nn.Linear(60, 60), nn.Linear(60, 4)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act2(self.second(self.act1(self.first(x)))))


def wide_macs(alive: Alive) -> float:
    a, b = (int(alive[name].sum()) for name in ("first", "second"))
    return (8 * a + a * b + 4 * b) / (8 * 60 + 60 * 60 + 4 * 60)


class FakeClock:
    """Latency as a function of the share of MACs; remembers what was asked."""

    def __init__(self, law: Callable[[float], float]) -> None:
        self.law = law
        self.asked: list[float] = []

    def __call__(self, model: nn.Module, present: Present, alive: Alive, example: Any, forward: Any) -> float:
        share = wide_macs(alive)
        self.asked.append(share)
        return self.law(share)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], FakeClock]:
    def install(law: Callable[[float], float]) -> FakeClock:
        fake = FakeClock(law)
        monkeypatch.setattr(pace, "latency_share", fake)
        return fake

    return install


def paced(target: dict[str, float], **options: Any) -> DPAP:
    torch.manual_seed(0)
    model = Wide()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    settings = {"total_steps": 60, "observe_every": 1, "memory": 0.05, "score": "magnitude"}
    return DPAP(model, torch.rand(4, 8), optimizer=optimizer, target=target, **settings | options)


def going(dev: DPAP, first: int = 0, steps: int = 60) -> list[DevelopmentReport]:
    reports = []
    for step in range(first, first + steps):
        with dev.observing():
            dev.model(torch.rand(8, 8, generator=torch.Generator().manual_seed(step)))
        report = dev.step()
        if report is not None:
            reports.append(report)
    return reports


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("dpap")]


def overhead(share: float) -> float:
    """Half of the time is spent whatever the widths: half the MACs are three quarters of the time."""
    return 0.5 + 0.5 * share


LAWS = {"all in MACs": lambda s: s, "overhead": overhead, "better than MACs": lambda s: s**2}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("target", [0.9, 0.7])
def test_units_die_until_the_target_is_measured(
    clock: Any, caplog: pytest.LogCaptureFixture, law: Callable[[float], float], target: float
) -> None:
    fake = clock(law)
    dev = paced({"latency": target})
    with caplog.at_level(logging.WARNING, "dpap"):
        going(dev)
    reached = law(wide_macs(dev.alive))
    assert target - 0.05 <= reached <= target
    assert not said(caplog)
    in_window = len(fake.asked) - 1  # one at the start
    assert 3 <= in_window <= pace.MEASUREMENTS + pace.CORRECTIONS


def test_the_schedule_is_followed_through_the_window(clock: Any) -> None:
    """What is measured on the way is what the cubic schedule says, not the share of MACs."""
    fake = clock(lambda share: share**2)
    dev = paced({"latency": 0.4}, total_steps=100)
    followed = []
    for report in going(dev, steps=49):
        q = (report.progress - 0.1) / 0.4
        if q > 0.3 and not report.capped:  # before, nothing has been measured
            followed.append((wide_macs(report.alive) ** 2, 0.4 + 0.6 * (1 - q) ** 3))
    assert len(followed) > 10
    for measured, scheduled in followed:
        assert measured == pytest.approx(scheduled, abs=0.06)
    assert len(fake.asked) <= 1 + pace.MEASUREMENTS


def test_measurements_are_spread_evenly(clock: Any) -> None:
    fake = clock(lambda share: share)
    dev = paced({"latency": 0.8}, total_steps=1000)
    steps = []
    for step in range(499):
        asked = len(fake.asked)
        going(dev, first=step, steps=1)
        steps += [step + 1] if len(fake.asked) > asked else []
    gaps = [b - a for a, b in pairwise(steps)]
    assert len(steps) == pace.MEASUREMENTS - 1, "the last is that of the end"
    assert max(gaps) - min(gaps) <= 10 and steps[0] > 100


def test_a_wild_measurement_takes_no_more_than_half(clock: Any) -> None:
    clock(lambda share: 1.0 if share == 1 else 100.0 if share > 0.5 else share)
    dev = paced({"latency": 0.8}, start=0.1, stop=0.5, development_steps=10)
    before = 1.0
    for report in going(dev):
        after = wide_macs(report.alive)
        assert after >= 0.5 * before - 0.05
        before = after


def test_a_missed_target_is_said(clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    fake = clock(lambda share: 0.8 if share > 0.5 else 0.3)  # said to be possible at the start, and never seen again
    dev = paced({"latency": 0.5}, only="second")
    fake.law = lambda share: 0.8
    with caplog.at_level(logging.WARNING, "dpap"):
        going(dev)
    assert said(caplog) == ["The target of 0.5000 latency was missed: 0.8000 was measured."]
    assert int(dev.alive["second"].sum()) == 6, "all that a floor allows"


def test_a_correction_goes_a_little_beyond(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured at 0.9 where 0.6 is wanted: of the MACs that are left, a hundredth less than two thirds may stay."""
    fake = clock(lambda share: 0.2)
    dev = paced({"latency": 0.6})
    going(dev, steps=29)
    answers, asked, until = iter([0.9, 0.1]), [], Taker.units_until

    def watched(self: Taker, candidates: Candidates, metric: str, most: float, **options: Any) -> bool:
        asked.append(most / self.account.count(metric))
        return until(self, candidates, metric, most, **options)

    fake.law = lambda share: next(answers)
    monkeypatch.setattr(Taker, "units_until", watched)
    going(dev, first=29, steps=1)
    assert asked == [pytest.approx(0.99 * 0.6 / 0.9)]


def test_patience_ends(clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A clock that always says a little too much: a bounded number of measurements, then the truth."""
    fake = clock(lambda share: 0.2)
    dev = paced({"latency": 0.5})
    going(dev, steps=29)
    asked = len(fake.asked)
    fake.law = lambda share: 0.5001
    with caplog.at_level(logging.WARNING, "dpap"):
        going(dev, first=29, steps=31)
    assert len(fake.asked) - asked == 1 + pace.CORRECTIONS
    assert "missed: 0.5001 was measured" in caplog.text


def test_with_connectivity(clock: Any) -> None:
    clock(overhead)
    dev = paced({"latency": 0.8, "connectivity": 0.2})
    going(dev)
    assert overhead(wide_macs(dev.alive)) <= 0.8
    assert 0.15 <= dev.connectivity() <= 0.2
    assert (~dev.synapse_masks["second.weight"][dev.alive["second"]][:, dev.alive["first"]]).any()


def test_preview_measures_and_changes_nothing(clock: Any) -> None:
    clock(overhead)
    dev = paced({"latency": 0.7})
    going(dev, steps=20)
    with dev.observing():
        dev.model(torch.rand(8, 8))
    before = str(dev.state_dict())
    dev._engine.steps_taken += 3
    assert dev.preview().deaths
    dev._engine.steps_taken -= 3
    assert str(dev.state_dict()) == before


def test_a_resumed_pace_equals_an_uninterrupted_one(clock: Any) -> None:
    """With a clock that always says the same."""
    clock(overhead)
    whole, first, second = (paced({"latency": 0.75}) for _ in range(3))
    going(whole)
    going(first, steps=21)
    assert first.state_dict()["exchange"] < 1
    second.load_state_dict(first.state_dict())
    going(second, first=21, steps=39)
    assert all(torch.equal(alive, second.alive[name]) for name, alive in whole.alive.items())


class TestLatencyRefused:
    def test_out_of_reach(self, clock: Any) -> None:
        fake = clock(overhead)
        with pytest.raises(DPAPError, match=r"target of 40\.00% latency cannot be reached.*at least 4\d\.\d\d%"):
            paced({"latency": 0.4})
        assert fake.asked == [pytest.approx((8 * 6 + 6 * 6 + 4 * 6) / 4320)], "every group at its floor"
        paced({"latency": 0.5})  # nearer than a clock may err: tried

    def test_nobody_who_could_pay(self, clock: Any) -> None:
        fake = clock(overhead)
        with pytest.raises(DPAPError, match=r"at least 100\.00%"):
            paced({"latency": 0.9}, rule=dpap_rule(kinds=frozenset({"synapse"})))
        assert fake.asked == []

    def test_clashes(self, clock: Any) -> None:
        clock(overhead)
        for other in ("macs", "parameters", "sops"):
            with pytest.raises(DPAPError, match="cannot be named together"):
                paced({"latency": 0.8, other: 0.5})
        with pytest.raises(DPAPError, match="is no share"):
            paced({"latency": 1.5})
        with pytest.raises(DPAPError, match="knows no target"):
            paced({"latency": 0.8}, rule="paper", score=None)


@pytest.mark.parametrize("loop", [False, True])
def test_what_latency_is_measured_of(monkeypatch: pytest.MonkeyPatch, loop: bool) -> None:
    """The compacted network against the dense widths, on the example as it was given, through `forward=`."""
    seen: list[tuple[int, bool, int]] = []

    def fake(models: list[nn.Module], inputs: Tensor, **options: Any) -> list[float]:
        for model in models:
            model.eval()
            out = model(inputs)
            weights = dict(model.named_parameters())
            seen.append((sum(p.numel() for p in weights.values()), model.training, len(out)))
        return [1.0, 4.0]

    monkeypatch.setattr(pace, "latency", fake)
    model, example = ConvNet(), torch.rand(3, 2, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    options: dict[str, Any] = {"forward": lambda m, batch: m(batch["image"])} if loop else {}
    given = {"image": example} if loop else example
    dev = DPAP(model, given, optimizer=optimizer, total_steps=50, target={"latency": 0.6}, **options)
    assert dev._engine.pace is not None
    dense = sum(p.numel() for p in model.parameters())
    (small, _, batch), (whole, _, _) = seen
    assert whole == dense and small < 0.3 * dense and batch == 3
    alive = {**dev.alive, "conv1": torch.arange(8) < 5}
    share = pace.latency_share(model, dev._engine.shrinker.present, alive, given, options.get("forward"))
    assert share == 0.25
    assert model.training, "the model itself is left alone"


def test_latency_is_really_measured() -> None:
    """With the clock of the machine: only that a number comes out."""
    model = Wide()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dev = DPAP(model, torch.rand(4, 8), optimizer=optimizer, total_steps=50)
    assert pace.latency_share(model, dev._engine.shrinker.present, dev.alive, torch.rand(4, 8), None) > 0


def test_latency_is_a_setting() -> None:
    assert TargetConfig(latency=0.6, connectivity=0.1).named() == {"connectivity": 0.1, "latency": 0.6}
