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


class TestRefused:
    def test_one_step(self) -> None:
        with pytest.raises(DPAPError, match="T = 1"):
            make(x=torch.rand(1, 2, 3))

    def test_no_spiking_neurons(self) -> None:
        with pytest.raises(DPAPError, match=r"T = 1|no hidden spiking neurons"):
            make(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.rand(2, 3))

    def test_only_a_readout_spikes(self) -> None:
        class Readout(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc1, self.act, self.fc2, self.neuron = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2), LIF()

            def forward(self, x: Tensor) -> Tensor:
                return self.neuron(self.fc2(self.act(self.fc1(x)))).mean(0)

        with pytest.raises(DPAPError, match="no hidden spiking neurons"):
            make(Readout())

    def test_a_loop_over_steps(self) -> None:
        class Loop(Small):
            def forward(self, x: Tensor) -> Tensor:
                v1 = v2 = None
                out = []
                for step in x:
                    s, v1 = self.neuron1.step(self.fc1(step), v1)
                    s, v2 = self.neuron2.step(self.fc2(s), v2)
                    out.append(self.fc3(s))
                return torch.stack(out).mean(0)

        with pytest.raises(DPAPError, match="no hidden spiking neurons"):
            make(Loop())

    def test_neurons_that_run_one_step_per_call(self) -> None:
        snn = foreign.snntorch()

        class Loop(Small):
            def forward(self, x: Tensor) -> Tensor:
                mem1, mem2, out = self.neuron1.reset_mem(), self.neuron2.reset_mem(), []
                for step in x:
                    s, mem1 = self.neuron1(self.fc1(step), mem1)
                    s, mem2 = self.neuron2(self.fc2(s), mem2)
                    out.append(self.fc3(s))
                return torch.stack(out).mean(0)

        with pytest.raises(DPAPError, match="one step per call") as caught:
            make(Loop(neuron=lambda: snn.Leaky(beta=0.5)))
        assert caught.value.where == "neuron1" and "multi-step" in caught.value.fix

    def test_a_neuron_at_two_places(self) -> None:
        class Twice(Small):
            def forward(self, x: Tensor) -> Tensor:
                return self.fc3(self.neuron1(self.fc2(self.neuron1(self.fc1(x))))).mean(0)

        with pytest.raises(DPAPError, match="several places") as caught:
            make(Twice())
        assert caught.value.where == "neuron1"

    def test_a_norm_that_is_not_understood(self) -> None:
        class Strange(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("running_size", torch.ones(()))

            def forward(self, x: Tensor) -> Tensor:
                return x / self.running_size

        with pytest.raises(DPAPError, match="how a Strange averages over time is not known") as caught:
            make(Small(norm=Strange()))
        assert caught.value.where == "norm"

    def test_a_norm_whose_answer_goes_elsewhere_too(self) -> None:
        class Both(Small):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm1d(5)

            def forward(self, x: Tensor) -> Tensor:
                x = self.bn(self.fc1(x).flatten(0, 1)).unflatten(0, (-1, x.shape[1]))
                return self.fc3(self.neuron2(self.fc2(self.neuron1(x) + x))).mean(0)

        with pytest.raises(DPAPError, match="bn") as caught:
            make(Both())
        assert caught.value.where == "neuron1"

    def test_the_released_rule(self) -> None:
        with pytest.raises(DPAPError, match="prunes no time steps"):
            make(rule="released")

    def test_a_replay(self) -> None:
        deaths = Deaths.of(run(make(time=None), 40))
        make(time=None, replay=deaths)
        with pytest.raises(DPAPError, match="no time steps") as caught:
            make(replay=deaths)
        assert caught.value.fix == "leave time= out."

    @pytest.mark.parametrize("metric", ["pairs", "steps"])
    def test_a_target_without_time(self, metric: str) -> None:
        with pytest.raises(DPAPError, match=metric):
            make(time=None, target={metric: 0.5})

    @pytest.mark.parametrize("metric", ["pairs", "steps"])
    def test_a_target_below_one_step(self, metric: str) -> None:
        with pytest.raises(DPAPError, match=f"20.00% {metric} cannot be reached: one of 4 steps stays") as caught:
            make(target={metric: 0.2})
        assert "0.2500" in caught.value.fix
        make(target={metric: 0.25})

    @pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan"), "half"])
    def test_a_target_that_is_no_share(self, share: Any) -> None:
        for metric in ("pairs", "steps"):
            with pytest.raises(DPAPError, match="is no share"):
                check_time_target({metric: share}, T)

    def test_a_target_of_the_paper(self) -> None:
        with pytest.raises(DPAPError, match="knows no target"):
            make(rule="paper", target={"pairs": 0.5})

    def test_a_mode(self) -> None:
        with pytest.raises(DPAPError, match="time='sleep'") as caught:
            check_mode("sleep", dpap_rule())
        assert "leak" in caught.value.fix and "silence" in caught.value.fix

    def test_a_network_that_has_dead_steps(self) -> None:
        dev = make()
        small = dev.compact()
        with pytest.raises(DPAPError, match="dead time steps from an earlier run"):
            make(small)

    def test_a_state_of_another_run(self) -> None:
        leak, silence, none = make(), make(time="silence"), make(time=None)
        with pytest.raises(DPAPError, match="no time steps"):
            leak.load_state_dict(none.state_dict())
        with pytest.raises(DPAPError, match="pruned time steps by 'silence'"):
            leak.load_state_dict(silence.state_dict())
        with pytest.raises(DPAPError, match="pruned time steps") as caught:
            none.load_state_dict(leak.state_dict())
        assert "time='leak'" in caught.value.fix


class TestFiles:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        dev = make()
        dev.pairs["neuron1"][2, 1] = False
        dev._engine.keep_silent(dev._engine.temporal)
        save(dev.compact(), tmp_path)
        return tmp_path

    def change(self, folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        edit(manifest["time"])
        (folder / MANIFEST).write_text(json.dumps(manifest))

    def test_as_it_is(self, saved: Path) -> None:
        timing = timing_of(load(saved, Small()))
        assert timing is not None and not timing.pairs["neuron1"][2, 1]
        assert sum(int((~alive).sum()) for alive in timing.pairs.values()) == 1

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
    def test_damaged(self, saved: Path, edit: Callable[[dict[str, Any]], None]) -> None:
        self.change(saved, edit)
        with pytest.raises(DPAPError) as caught:
            load(saved, Small())
        assert MANIFEST in str(caught.value)

    def test_a_network_without_these_neurons(self, saved: Path) -> None:
        other = Small()
        other.fires = other.neuron1
        del other.neuron1
        with pytest.raises(DPAPError, match="dead time steps in neuron1"):
            load(saved, other)

    def test_who_knows_no_dead_steps_does_not_read_it(self, saved: Path, tmp_path: Path) -> None:
        assert json.loads((saved / MANIFEST).read_text())["format_version"] == 2
        save(Small(), tmp_path)
        assert json.loads((tmp_path / MANIFEST).read_text())["format_version"] == 1


# who may die ----------------------------------------------------------------------------------------------------------


def account(*alive: str, units: tuple[str, ...] = (), positions: tuple[int, ...] = ()) -> PairAccount:
    """One string for each layer, the rows of its units between spaces: "111 101" are two units and three steps."""
    tables = [np.array([[c == "1" for c in row] for row in layer.split()]) for layer in alive]
    living = [np.array([c == "1" for c in row]) for row in units] or [np.ones(len(t), dtype=bool) for t in tables]
    return PairAccount(
        names=[f"layer{n}" for n in range(len(tables))],
        alive=tables,
        units=living,
        positions=positions or (1,) * len(tables),
    )


def pairs_of(a: PairAccount, survival: list[list[list[float]]], level: float = 0.0) -> list[Any]:
    values = [np.array(f) for f in survival]
    living = [alive & u[:, None] for alive, u in zip(a.alive, a.units, strict=True)]
    return in_order(values, values, living, [f < level for f in values])


def steps_of(a: PairAccount, survival: list[list[float]], level: float = 0.0) -> list[Any]:
    values = [np.array(f) for f in survival]
    living = [a.living_steps(n) for n in range(len(values))]
    return in_order(values, values, living, [f < level for f in values])


def rows(a: PairAccount) -> list[str]:
    return [" ".join("".join("1" if x else "0" for x in row) for row in table) for table in a.alive]


NEVER_CAPPED = {"elapsed": 0.01, "capped": False}


class TestTake:
    def test_everybody_below_the_level(self) -> None:
        a = account("1111 1111")
        take(a, [], pairs_of(a, [[[0.1, 0.9, 0.2, 0.9], [0.9, 0.9, 0.9, 0.3]]], 0.25), {}, **NEVER_CAPPED)
        assert rows(a) == ["0101 1111"] and a.died_pairs == {"layer0": 2}

    def test_a_unit_keeps_its_last_step(self) -> None:
        a = account("111 001")
        take(a, [], pairs_of(a, [[[0.3, 0.2, 0.1], [0.0, 0.0, 0.0]]], 0.5), {}, **NEVER_CAPPED)
        assert rows(a) == ["100 001"], "the weakest went first, the last stays"

    def test_a_layer_step_spares_the_last_of_a_unit(self) -> None:
        a = account("1110 1001")
        take(a, steps_of(a, [[0.1, 0.2, 0.3, 0.4]], 0.35), [], {}, **NEVER_CAPPED)
        assert rows(a) == ["0010 0001"], "step 2 is the first unit's last by then"
        assert a.died_steps == {"layer0": [0, 1]} and len(a.skipped) == 1

    def test_what_a_dead_unit_holds_spares_nothing(self) -> None:
        a = account("10 11", units=("01",))
        take(a, steps_of(a, [[0.1, 0.9]], 0.5), [], {}, **NEVER_CAPPED)
        assert rows(a)[0].split()[1] == "01"
        assert (a.pairs(), a.steps()) == (0.5, 0.5)

    def test_caps_of_a_unit_and_of_a_layer(self) -> None:
        """A tenth of what lives, and one at least: of 20 steps two, of 4 one."""
        a = account("1" * 20 + " " + "1" * 20, "1111")
        low = [[[0.01 * t for t in range(20)] for _ in range(2)], [[0.0, 0.1, 0.2, 0.3]]]
        take(a, [], pairs_of(a, low, 1.0), {}, elapsed=0.01, capped=True)
        assert rows(a) == ["00" + "1" * 18 + " 00" + "1" * 18, "0111"]
        assert a.bound == {"layer0", "layer1"}
        take(a, steps_of(a, [low[0][0], low[1][0]], 1.0), [], {}, elapsed=0.01, capped=True)
        assert rows(a)[1] == "0011" and a.died_steps["layer0"] == [2], "one of 18 steps"

    def test_a_share_of_pairs(self) -> None:
        """Exact within one victim, by survival over all layers, a unit of a convolution for all its positions."""
        a = account("1111", "1111", positions=(3, 1))
        survival = [[[0.4, 0.5, 0.6, 0.7]], [[0.1, 0.9, 0.2, 0.9]]]
        take(a, [], pairs_of(a, survival), {"pairs": 0.7}, **NEVER_CAPPED)
        assert rows(a) == ["0111", "0101"] and a.pairs() == 11 / 16, "14/16, 13/16 > 0.7, and one victim of three more"

    def test_a_share_of_steps(self) -> None:
        a = account("1111 1111", "1111")
        take(a, steps_of(a, [[0.5, 0.1, 0.6, 0.7], [0.3, 0.2, 0.8, 0.9]]), [], {"steps": 0.7}, **NEVER_CAPPED)
        assert rows(a) == ["1011 1011", "0011"] and a.steps() == 5 / 8

    def test_steps_at_their_level_do_not_take_the_pairs_too_low(self) -> None:
        """Passed over, and the next, cheaper one is tried; then pairs pay what is left."""
        a = account("1111 1111 1111", "1111")
        steps = steps_of(a, [[0.1, 0.9, 0.9, 0.9], [0.2, 0.9, 0.9, 0.9]], 0.5)
        pairs = pairs_of(a, [[[0.9] * 4, [0.8, 0.7, 0.9, 0.9], [0.9] * 4], [[0.9, 0.9, 0.6, 0.9]]])
        take(a, steps, pairs, {"pairs": 14 / 16}, **NEVER_CAPPED)
        assert rows(a) == ["1111 1111 1111", "0101"]
        assert a.died_steps == {"layer1": [0]} and a.died_pairs == {"layer1": 1}

    def test_pairs_at_their_level_do_not_take_the_steps_too_low(self) -> None:
        a = account("1110 1111", "1111")
        pairs = pairs_of(a, [[[0.9, 0.1, 0.9, 0.9], [0.9, 0.9, 0.9, 0.2]], [[0.9] * 4]], 0.5)
        take(a, [], pairs, {"steps": 1.0}, **NEVER_CAPPED)
        assert rows(a) == ["1010 1111", "1111"], "the last pair at step 3 stays"
        take(a, [], pairs, {"steps": 0.8}, **NEVER_CAPPED)
        assert rows(a) == ["1010 1110", "1111"]

    def test_ties(self) -> None:
        """By use, then neuron, unit, step."""
        a = account("111 111", "111")
        even = [[[0.5] * 3] * 2, [[0.5] * 3]]
        use = [np.array([[1.0, 1.0, 0.9]] * 2), np.array([[1.0, 1.0, 0.8]])]
        values = [np.array(f) for f in even]
        order = in_order(values, use, a.alive, [f < 0 for f in values])
        for wanted, expected in ((8, ["111 111", "110"]), (7, ["110 111", "110"]), (6, ["110 110", "110"])):
            take(a, [], order, {"pairs": wanted / 9}, **NEVER_CAPPED)
            assert rows(a) == expected


class TestPaper:
    def test_pairs_die_without_floors_or_caps(self) -> None:
        """Eq. (8) with the growth chain of the fully connected layers; layer steps have no survival of their own."""
        torch.manual_seed(0)
        dev = make(Small(neuron=lambda: LIF(v_threshold=0.3)), rule="paper", time="silence", total_steps=30)
        survival = {n: f.clone() for n, f in dev._engine.temporal.survival.items()}
        assert all(bool((f == 5.0).all()) for f in survival.values())
        died = 0
        for epoch in range(6):
            x = torch.rand(T, 8, 3, generator=torch.Generator().manual_seed(epoch)) * 4
            with dev.observing():
                dev.model(x).sum().backward()
            before = {n: alive.clone() for n, alive in dev.pairs.items()}
            report = dev.step()
            assert report is not None and not report.died_steps
            died += sum(report.died_pairs.values())
            for n, f in dev._engine.temporal.survival.items():
                assert torch.equal(dev.pairs[n], before[n] & (f >= 0)), "who falls below 0 dies"
        assert died > 0

    def test_a_layer_is_not_emptied(self) -> None:
        dev = make(rule="paper", total_steps=30)
        for f in dev._engine.temporal.survival.values():
            f.fill_(-100.0)
        with pytest.raises(DPAPError, match="would silence neuron1 at every step"):
            run(dev, 1)


def test_what_a_run_says_of_time() -> None:
    torch.manual_seed(0)
    dev = make(Small(neuron=lambda: LIF(v_threshold=0.3)), target={"pairs": 0.5}, memory=0.03, shrink="never")
    reports = run(dev, 40)
    assert reports[-1].living_pairs <= 0.5 and reports[-1].living_steps >= reports[-1].living_pairs
    assert {n: tuple(alive.shape) for n, alive in reports[-1].pairs.items()} == {"neuron1": (5, T), "neuron2": (6, T)}
    assert all(
        bool(alive[dev.alive[n]].any(1).all()) for n, alive in zip(("fc1", "fc2"), dev.pairs.values(), strict=True)
    )
    assert "% of the pairs of living units and" in repr(dev)
    assert make(time=None).pairs == {}


def test_a_step_is_worth_what_the_rule_says() -> None:
    """Here the later ones are, whatever Equation (8) says."""
    heard = set()

    def late(found: Tensor, seed: int, neuron: str) -> Tensor:
        heard.add((seed, neuron))
        return torch.arange(1.0, T + 1).expand_as(found)

    dev = make(rule=dpap_rule(time_score=late), target={"pairs": 0.5}, seed=3)
    run(dev, 40)
    assert heard == {(3, "neuron1"), (3, "neuron2")}
    for pairs in dev.pairs.values():
        assert not pairs.all()
        assert (pairs[:, 1:] >= pairs[:, :-1]).all(), "of each unit the first steps died"


def test_a_score_of_time_that_is_none() -> None:
    with pytest.raises(DPAPError, match="no time score named 'randm'"):
        dpap_rule(time_score="randm")
