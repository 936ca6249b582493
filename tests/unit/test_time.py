"""Pruning of time steps: what is refused, and who may die, by cases made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpap import DPAP, DPAPError, load, save
from dpap.development.replay import Deaths
from dpap.development.temporal import check_mode
from dpap.io import MANIFEST
from dpap.method.rules import dpap as dpap_rule
from dpap.neurons import LIF
from dpap.pruning.pairs import PairAccount, check_time_target, in_order, take
from dpap.time.timing import timing_of

T = 4


class Small(nn.Module):
    """Two layers of neurons on (T, B, 3)."""

    def __init__(self, *, neuron: Callable[[], nn.Module] = LIF, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.neuron1 = nn.Linear(3, 5), neuron()
        self.norm = norm or nn.Identity()
        self.fc2, self.neuron2 = nn.Linear(5, 6), neuron()
        self.fc3 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.norm(self.fc1(x)))
        return self.fc3(self.neuron2(self.fc2(x))).mean(0)


def make(model: nn.Module | None = None, x: Tensor | None = None, **options: Any) -> DPAP:
    model = model or Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    settings: dict[str, Any] = {"total_steps": 40, "time": "leak", "observe_every": 1}
    return DPAP(model, torch.rand(T, 2, 3) if x is None else x, optimizer=optimizer, **(settings | options))


def run(dev: DPAP, steps: int, x: Tensor | None = None) -> list[Any]:
    reports = []
    for step in range(steps):
        batch = torch.rand(T, 2, 3, generator=torch.Generator().manual_seed(step)) * 4 if x is None else x
        with dev.observing():
            dev.model(batch).sum().backward()
        reports.append(dev.step())
    return [r for r in reports if r is not None]


def written(forward: Callable[[Any, Tensor], Tensor], **options: Any) -> nn.Module:
    """The small network, used in another way."""
    return type("Written", (Small,), {"forward": forward})(**options)


def loop(net: Small, x: Tensor) -> Tensor:
    v1 = v2 = None
    out = []
    for step in x:
        s, v1 = net.neuron1.step(net.fc1(step), v1)
        s, v2 = net.neuron2.step(net.fc2(s), v2)
        out.append(net.fc3(s))
    return torch.stack(out).mean(0)


def snntorch_loop() -> nn.Module:
    snn = foreign.snntorch()

    def forward(net: Any, x: Tensor) -> Tensor:
        mem1, mem2, out = net.neuron1.reset_mem(), net.neuron2.reset_mem(), []
        for step in x:
            s, mem1 = net.neuron1(net.fc1(step), mem1)
            s, mem2 = net.neuron2(net.fc2(s), mem2)
            out.append(net.fc3(s))
        return torch.stack(out).mean(0)

    return written(forward, neuron=lambda: snn.Leaky(beta=0.5))


def norm_and_more(net: Any, x: Tensor) -> Tensor:
    x = net.norm(net.fc1(x).flatten(0, 1)).unflatten(0, (-1, x.shape[1]))
    return net.fc3(net.neuron2(net.fc2(net.neuron1(x) + x))).mean(0)


class Strange(nn.Module):
    """A norm that is not understood."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_size", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.running_size


def twice(net: Any, x: Tensor) -> Tensor:
    return net.fc3(net.neuron1(net.fc2(net.neuron1(net.fc1(x))))).mean(0)


def only_a_readout(net: Any, x: Tensor) -> Tensor:
    return net.neuron1(no_neurons(net, x)).mean(0)


def no_neurons(net: Any, x: Tensor) -> Tensor:
    return net.fc3(net.fc2(net.fc1(x).relu()).relu())


REFUSED: dict[str, tuple[Callable[[], object], str, str, str]] = {
    # What is wrong -> who makes it, the message, parts of "where" and of "what to do".
    "one step": (lambda: make(x=torch.rand(1, 2, 3)), "T = 1", "", ""),
    "no neurons": (lambda: make(written(no_neurons)), "T = 1|no hidden spiking neurons", "", ""),
    "only a readout": (lambda: make(written(only_a_readout)), "no hidden spiking neurons", "", ""),
    "a loop": (lambda: make(written(loop)), "no hidden spiking neurons", "", ""),
    "one step per call": (lambda: make(snntorch_loop()), "one step per call", "neuron1", "multi-step"),
    "two places": (lambda: make(written(twice)), "several places", "neuron1", ""),
    "a norm": (lambda: make(Small(norm=Strange())), "how a Strange averages over time is not known", "norm", ""),
    "a norm read twice": (lambda: make(written(norm_and_more, norm=nn.BatchNorm1d(5))), "norm", "neuron1", ""),
    "the released rule": (lambda: make(rule="released"), "prunes no time steps", "", ""),
    "pairs without time": (lambda: make(time=None, target={"pairs": 0.5}), "pairs", "", ""),
    "steps without time": (lambda: make(time=None, target={"steps": 0.5}), "steps", "", ""),
    "below one step": (
        lambda: make(target={"steps": 0.2}), "20.00% steps cannot be reached: one of 4 steps stays", "", "0.2500",
    ),
    "pairs below one step": (lambda: make(target={"pairs": 0.2}), "20.00% pairs cannot be reached", "", "0.2500"),
    "a target of the paper": (lambda: make(rule="paper", target={"pairs": 0.5}), "knows no target", "", ""),
    "a mode": (lambda: check_mode("sleep", dpap_rule()), "time='sleep'", "", 'choose "leak" or "silence"'),
    "dead steps already": (lambda: make(make().compact()), "dead time steps from an earlier run", "", ""),
    "a state without time": (lambda: make().load_state_dict(make(time=None).state_dict()), "no time steps", "", ""),
    "a state of another mode": (
        lambda: make().load_state_dict(make(time="silence").state_dict()), "pruned time steps by 'silence'", "", "",
    ),
    "a state with time": (
        lambda: make(time=None).load_state_dict(make().state_dict()), "pruned time steps", "", "time='leak'",
    ),
    "a replay": (lambda: make(replay=Deaths.of(run(make(time=None), 40))), "no time steps", "", "leave time= out."),
    "a score": (lambda: dpap_rule(time_score="randm"), "no time score named 'randm'", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    wrong, message, where, fix = REFUSED[case]
    with pytest.raises(DPAPError, match=message) as caught:
        wrong()
    assert where in ("", caught.value.where) and fix in caught.value.fix


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan"), "half"])
def test_a_target_that_is_no_share(share: Any) -> None:
    for metric in ("pairs", "steps"):
        with pytest.raises(DPAPError, match="is no share"):
            check_time_target({metric: share}, T)
        check_time_target({metric: 0.25}, T)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    dev = make()
    dev.pairs["neuron1"][2, 1] = False
    dev._engine.keep_silent(dev._engine.temporal)
    save(dev.compact(), tmp_path)
    return tmp_path


def test_a_file_as_it_is(saved: Path, tmp_path: Path) -> None:
    """Who knows no dead steps does not read it: it is of another version."""
    timing = timing_of(load(saved, Small()))
    assert timing is not None and not timing.pairs["neuron1"][2, 1]
    assert sum(int((~alive).sum()) for alive in timing.pairs.values()) == 1
    other = Small()
    other.fires = other.neuron1
    del other.neuron1
    with pytest.raises(DPAPError, match="dead time steps in neuron1"):
        load(saved, other)
    assert json.loads((saved / MANIFEST).read_text())["format_version"] == 2
    save(Small(), tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["format_version"] == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda time: time.pop("graph"),
        lambda time: time.pop("mode"),
        lambda time: time.update(mode="sleep"),
        lambda time: time["graph"].update(num_steps=7),
        lambda time: time["graph"].update(num_steps="many"),
        lambda time: time["graph"].update(neurons=[]),
        lambda time: time["graph"]["neurons"][0].update(units=3),
        lambda time: time["graph"]["neurons"][0].update(surprise=1),
        lambda time: time["pairs"].pop("neuron1"),
        lambda time: time["pairs"].update(neuron1="fc1.bias"),
        lambda time: time["pairs"].update(neuron1="nowhere"),
        lambda time: time.update(graph=3),
    ],
)
def test_a_damaged_file(saved: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    edit(manifest["time"])
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DPAPError) as caught:
        load(saved, Small())
    assert MANIFEST in str(caught.value)


def account(*alive: str, units: tuple[str, ...] = (), positions: tuple[int, ...] = ()) -> PairAccount:
    """One string for each layer, the rows of its units between spaces: "111 101" are two units and three steps."""
    tables = [np.array([[c == "1" for c in row] for row in layer.split()]) for layer in alive]
    living = [np.array([c == "1" for c in row]) for row in units] or [np.ones(len(t), dtype=bool) for t in tables]
    names = [f"layer{n}" for n in range(len(tables))]
    return PairAccount(names=names, alive=tables, units=living, positions=positions or (1,) * len(tables))


def taken(
    a: PairAccount,
    *,
    pairs: list[Any] | None = None,
    steps: list[Any] | None = None,
    level: float = 0.0,
    target: dict[str, float] | None = None,
    capped: bool = False,
) -> list[str]:
    """Who lives after deaths in the order of these survivals."""
    orders = []
    living_steps = [a.living_steps(n) for n in range(len(a.alive))]
    living_pairs = [alive & u[:, None] for alive, u in zip(a.alive, a.units, strict=True)]
    for survival, living in ((steps, living_steps), (pairs, living_pairs)):
        values = [np.array(f) for f in survival or []]
        orders.append(in_order(values, values, living, [f < level for f in values]) if survival else [])
    take(a, *orders, target or {}, elapsed=0.01, capped=capped)
    return rows(a)


def rows(a: PairAccount) -> list[str]:
    return [" ".join("".join("1" if x else "0" for x in row) for row in table) for table in a.alive]


class TestTake:
    def test_pairs(self) -> None:
        """Everybody below the level dies; of a unit the weakest first, and its last step stays."""
        a = account("1111 1111")
        assert taken(a, pairs=[[[0.1, 0.9, 0.2, 0.9], [0.9, 0.9, 0.9, 0.3]]], level=0.25) == ["0101 1111"]
        assert a.died_pairs == {"layer0": 2}
        assert taken(account("111 001"), pairs=[[[0.3, 0.2, 0.1], [0.0, 0.0, 0.0]]], level=0.5) == ["100 001"]

    def test_a_layer_step_spares_the_last_of_a_unit(self) -> None:
        a = account("1110 1001")
        assert taken(a, steps=[[0.1, 0.2, 0.3, 0.4]], level=0.35) == ["0010 0001"], "step 2 is the first unit's last"
        assert a.died_steps == {"layer0": [0, 1]} and len(a.skipped) == 1
        dead = account("10 11", units=("01",))
        assert taken(dead, steps=[[0.1, 0.9]], level=0.5)[0].split()[1] == "01", "what a dead unit holds spares nothing"
        assert (dead.pairs(), dead.steps()) == (0.5, 0.5)

    def test_caps_of_a_unit_and_of_a_layer(self) -> None:
        """A tenth of what lives, and one at least: of 20 steps two, of 4 one."""
        a = account("1" * 20 + " " + "1" * 20, "1111")
        low = [[[0.01 * t for t in range(20)] for _ in range(2)], [[0.0, 0.1, 0.2, 0.3]]]
        assert taken(a, pairs=low, level=1.0, capped=True) == ["00" + "1" * 18 + " 00" + "1" * 18, "0111"]
        assert a.bound == {"layer0", "layer1"}
        assert taken(a, steps=[low[0][0], low[1][0]], level=1.0, capped=True)[1] == "0011"
        assert a.died_steps["layer0"] == [2], "one of 18 steps"

    def test_shares(self) -> None:
        """Exact within one victim, by survival over all layers, a unit of a convolution for all its positions."""
        a = account("1111", "1111", positions=(3, 1))
        survival = [[[0.4, 0.5, 0.6, 0.7]], [[0.1, 0.9, 0.2, 0.9]]]
        assert taken(a, pairs=survival, target={"pairs": 0.7}) == ["0111", "0101"]
        assert a.pairs() == 11 / 16, "14/16, 13/16 > 0.7, and one victim of three more"
        a = account("1111 1111", "1111")
        survival = [[0.5, 0.1, 0.6, 0.7], [0.3, 0.2, 0.8, 0.9]]
        assert taken(a, steps=survival, target={"steps": 0.7}) == ["1011 1011", "0011"] and a.steps() == 5 / 8

    def test_neither_takes_the_other_too_low(self) -> None:
        """A step at its level is passed over and the next, cheaper one tried; then pairs pay what is left."""
        a = account("1111 1111 1111", "1111")
        steps = [[0.1, 0.9, 0.9, 0.9], [0.2, 0.9, 0.9, 0.9]]
        pairs = [[[0.9] * 4, [0.8, 0.7, 0.9, 0.9], [0.9] * 4], [[0.9, 0.9, 0.6, 0.9]]]
        found = taken(a, steps=steps, pairs=pairs, level=0.5, target={"pairs": 14 / 16})
        assert found == ["1111 1111 1111", "0101"]
        assert a.died_steps == {"layer1": [0]} and a.died_pairs == {"layer1": 1}
        a = account("1110 1111", "1111")
        pairs = [[[0.9, 0.1, 0.9, 0.9], [0.9, 0.9, 0.9, 0.2]], [[0.9] * 4]]
        assert taken(a, pairs=pairs, level=0.5, target={"steps": 1.0}) == ["1010 1111", "1111"], "the last at step 3"
        assert taken(a, pairs=pairs, level=0.5, target={"steps": 0.8}) == ["1010 1110", "1111"]

    def test_ties(self) -> None:
        """By use, then neuron, unit, step."""
        a = account("111 111", "111")
        values = [np.full((2, 3), 0.5), np.full((1, 3), 0.5)]
        use = [np.array([[1.0, 1.0, 0.9]] * 2), np.array([[1.0, 1.0, 0.8]])]
        order = in_order(values, use, a.alive, [f < 0 for f in values])
        for wanted, expected in ((8, ["111 111", "110"]), (7, ["110 111", "110"]), (6, ["110 110", "110"])):
            take(a, [], order, {"pairs": wanted / 9}, elapsed=0.01, capped=False)
            assert rows(a) == expected


def test_pairs_die_by_the_paper_without_floors_or_caps() -> None:
    """Eq. (8) with the growth chain of the fully connected layers; layer steps have no survival of their own."""
    dev = make(Small(neuron=lambda: LIF(v_threshold=0.3)), rule="paper", time="silence", total_steps=30)
    survival = dev._engine.temporal.survival
    assert all(bool((f == 5.0).all()) for f in survival.values())
    died = 0
    for epoch in range(6):
        before = {n: alive.clone() for n, alive in dev.pairs.items()}
        x = torch.rand(T, 8, 3, generator=torch.Generator().manual_seed(epoch)) * 4
        (report,) = run(dev, 1, x)
        assert not report.died_steps
        died += sum(report.died_pairs.values())
        for n, f in dev._engine.temporal.survival.items():
            assert torch.equal(dev.pairs[n], before[n] & (f >= 0)), "who falls below 0 dies"
    assert died > 0
    dev = make(rule="paper", total_steps=30)
    for f in dev._engine.temporal.survival.values():
        f.fill_(-100.0)
    with pytest.raises(DPAPError, match="would silence neuron1 at every step"):
        run(dev, 1)


def test_a_step_is_worth_what_the_rule_says() -> None:
    """Here the later ones are, whatever Equation (8) says."""
    heard = set()

    def late(found: Tensor, seed: int, neuron: str) -> Tensor:
        heard.add((seed, neuron))
        return torch.arange(1.0, T + 1).expand_as(found)

    dev = make(rule=dpap_rule(time_score=late), target={"pairs": 0.5}, seed=3)
    reports = run(dev, 40)
    assert heard == {(3, "neuron1"), (3, "neuron2")}
    for pairs in dev.pairs.values():
        assert not pairs.all()
        assert (pairs[:, 1:] >= pairs[:, :-1]).all(), "of each unit the first steps died"
        assert pairs.any(1).all()
    assert reports[-1].living_pairs <= 0.5 and reports[-1].living_steps >= reports[-1].living_pairs
    assert {n: tuple(alive.shape) for n, alive in reports[-1].pairs.items()} == {"neuron1": (5, T), "neuron2": (6, T)}
    assert "% of the pairs of living units and" in repr(dev) and make(time=None).pairs == {}
