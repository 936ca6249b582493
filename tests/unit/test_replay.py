"""Deaths of one run replayed in another: as many per layer and step, other victims; records that do not fit."""

from __future__ import annotations

import json
import logging
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import tiny
from torch import Tensor, nn

from dpap import DPAP, DevelopmentReport, DPAPError, Stats, find_groups
from dpap.config import DevelopmentConfig, from_dict, to_toml
from dpap.development.replay import Deaths, StepDeaths
from dpap.method.rules import dpap as dpap_rule
from dpap.pruning.account import Account
from dpap.pruning.choose import Candidates, Taker
from dpap.report.history import read_history
from dpap.training.loop import train


class Residual(nn.Module):
    """Two blocks whose outputs are added: their units live and die together; linear layers behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 10), (10, 14), (14, 10)))
        self.act1, self.act2, self.act3, self.act4 = (nn.ReLU() for _ in range(4))
        self.hidden, self.classifier = nn.Linear(10 * 16, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.stem(x))
        x = self.act3(x + self.outer(self.act2(self.inner(x))))
        return self.classifier(self.act4(self.hidden(x.flatten(1))))


TOTAL = 60


def make(seed: int = 0, **options: Any) -> DPAP:
    torch.manual_seed(seed)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), options.pop("lr", 0.02))
    settings = {"total_steps": TOTAL, "observe_every": 1, "development_steps": 30, "memory": 0.05}
    return DPAP(model, torch.rand(2, 1, 4, 4), optimizer=optimizer, **settings | options)


def run(dev: DPAP, first: int = 0, steps: int = TOTAL) -> list[DevelopmentReport]:
    reports = []
    for step in range(first, first + steps):
        x = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        with dev.observing():
            loss = nn.functional.cross_entropy(dev.model(x), (3 * x.mean((1, 2, 3))).long())
        dev.optimizers[0].zero_grad()
        loss.backward()
        dev.optimizers[0].step()
        report = dev.step()
        if report is not None:
            reports.append(report)
    return reports


@pytest.fixture(scope="module")
def recorded() -> list[DevelopmentReport]:
    return run(make(target={"connectivity": 0.15}))


def victims(reports: list[DevelopmentReport]) -> list[tuple[int, dict[str, list[int]]]]:
    return [(r.step, {n: (~alive).nonzero().flatten().tolist() for n, alive in r.alive.items()}) for r in reports]


@pytest.mark.parametrize("score", ["random", "magnitude", "activity"])
def test_as_many_die_of_each_layer_at_each_step_but_others(recorded: list[DevelopmentReport], score: str) -> None:
    deaths = Deaths.of(recorded)
    assert sum(sum(at.units.values()) for at in deaths.steps) > 10
    assert {n for at in deaths.steps for n in at.units} >= {"hidden", "inner"}, "units, of tied groups too"
    assert sum(deaths.steps[-1].synapses.values()) < 500 < sum(deaths.steps[0].synapses.values()) - 500
    dev = make(seed=1, score=score, replay=deaths)
    again = run(dev)
    for one, other in zip(deaths.steps, Deaths.of(again).steps, strict=True):
        assert (one.step, one.units) == (other.step, other.units)
        for name, left in one.synapses.items():  # a unit that dies may hold more synapses than its like in the record
            assert 0.95 * left - 5 <= other.synapses[name] <= left, (one.step, name)
    assert again[-1].connectivity == pytest.approx(recorded[-1].connectivity, abs=0.002)
    assert not any("the record" in note for r in again for note in r.skipped)
    assert not any(r.capped for r in again), "caps were in force when the record was made"
    assert victims(again) != victims(recorded)
    for name, alive in recorded[-1].alive.items():
        assert int(dev.alive[name].sum()) == int(alive.sum())


def test_isolated_units_count_as_deaths_of_their_group(recorded: list[DevelopmentReport]) -> None:
    name = next(iter(recorded[-1].alive))
    one = replace(recorded[-1], died_units={name: [1]}, isolated_units={name: [2, 3]}, living_synapses={"w": 4})
    assert Deaths.of([one]).steps == (StepDeaths(step=one.step, units={name: 3}, synapses={"w": 4}),)


def test_the_same_score_without_memory_finds_the_same_victims() -> None:
    """Survival of a run that forgets at once is the use of now, by which a replay goes."""
    options: dict[str, Any] = {"lr": 0.0, "memory": 1e-6, "score": "magnitude", "start": 0.2}
    first = make(**options, rule=dpap_rule(kappa_unit=0.95, kappa_synapse=0.3))
    reports = run(first)
    assert not any(r.isolated_units for r in reports) and sum(r.deaths for r in reports) > 100
    second = make(**options, replay=Deaths.of(reports))
    assert victims(run(second)) == victims(reports)
    for name, mask in first.synapse_masks.items():
        assert torch.equal(mask, second.synapse_masks[name])


def test_memory_has_no_say(recorded: list[DevelopmentReport]) -> None:
    """A score drawn anew at each step: whoever is used least in this window dies, whatever was before."""
    drawn = torch.Generator().manual_seed(3)

    def score(stats: Stats) -> Tensor:
        return torch.rand(stats.weight.shape[: 1 if stats.kind == "unit" else 2], generator=drawn)

    deaths = Deaths.of(recorded)
    deaths = replace(deaths, steps=tuple(replace(at, synapses={}) for at in deaths.steps))
    found = 0
    for report in run(make(score=score, replay=deaths)):
        for name, dead in report.died_units.items():
            found += len(dead)
            assert report.use[name][dead].max() <= report.use[name][report.alive[name]].min()
    assert found > 10


def test_resumed_equals_uninterrupted(recorded: list[DevelopmentReport]) -> None:
    options: dict[str, Any] = {"score": "random", "replay": Deaths.of(recorded)}
    whole = make(**options)
    run(whole)
    first = make(**options)
    run(first, steps=20)
    second = make(**options)
    second.load_state_dict(first.state_dict())
    second.model.load_state_dict(first.model.state_dict())
    run(second, first=20, steps=TOTAL - 20)
    for name, mask in whole.synapse_masks.items():
        assert torch.equal(mask, second.synapse_masks[name])
    assert all(torch.equal(alive, second.alive[name]) for name, alive in whole.alive.items())


def edited(reports: list[DevelopmentReport], at: int, **changes: Any) -> Deaths:
    deaths = Deaths.of(reports)
    steps = list(deaths.steps)
    steps[at] = replace(steps[at], **changes)
    return replace(deaths, steps=tuple(steps))


def test_what_a_floor_forbids_is_said_and_carried(
    recorded: list[DevelopmentReport], caplog: pytest.LogCaptureFixture
) -> None:
    """19 of 20 units: two stay, at this step and at all that follow."""
    quiet = replace(Deaths.of(recorded), steps=tuple(StepDeaths(step=r.step) for r in recorded))
    steps = list(quiet.steps)
    steps[-3] = replace(steps[-3], units={"hidden": 19})
    dev = make(replay=replace(quiet, steps=tuple(steps)))
    with caplog.at_level(logging.WARNING, "dpap"):
        reports = run(dev)
    assert [len(r.died_units.get("hidden", [])) for r in reports[-4:]] == [0, 18, 0, 0]
    assert [r.skipped for r in reports[-4:]] == [[], *[["1 of hidden that the record prunes"]] * 3]
    assert [m for m in caplog.messages if "record" in m] == ["1 of hidden that the record prunes were kept."]


def test_what_was_missed_is_made_up_for() -> None:
    """Of two units one died before; the other takes 8 of the 72 synapses with it, so that 2 more leave 62."""
    graph = find_groups(nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 4)), torch.rand(2, 8))
    deaths = Deaths(
        total_steps=9,
        units={"0": 10, "2": 4},
        steps=(
            StepDeaths(step=3, units={"0": 2}, synapses={"0.weight": 68}),
            StepDeaths(step=4, synapses={"0.weight": 62}),
            StepDeaths(step=5, units={"0": 3}, synapses={"0.weight": 30}),
        ),
    )
    alive = {"0": np.arange(10) > 0, "2": np.ones(4, dtype=bool)}
    masks = {"0.weight": np.ones((10, 8), dtype=bool), "2.weight": np.ones((4, 10), dtype=bool)}
    masks["0.weight"][0], masks["2.weight"][:, 0] = False, False
    taker = Taker(account=Account.of(graph, alive, masks), elapsed=0.1, capped=False)
    use = torch.arange(1.0, 11)
    units = Candidates.of([(0, use, use, torch.from_numpy(alive["0"]))], 0.0, 0.0)
    synapses = [torch.arange(1.0, mask.size + 1).reshape(mask.shape) for mask in masks.values()]
    parts = [
        (n, u, u, torch.from_numpy(mask)) for n, (u, mask) in enumerate(zip(synapses, masks.values(), strict=True))
    ]
    deaths.take(taker, units, Candidates.of(parts, 0.0, 0.0), 4)
    assert taker.units == [(0, 1)]
    assert taker.synapses == [(0, 16), (0, 17)], "of those who are left, the least used"
    assert not taker.account.skipped


def test_what_cannot_die_is_said_at_every_step() -> None:
    """Of 24 synapses onto six units, one stays for each."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    deaths = Deaths(
        total_steps=20,
        units={"0": 6, "2": 2},
        steps=(
            StepDeaths(step=8, synapses={"0.weight": 4, "2.weight": 12}),
            StepDeaths(step=9, synapses={"0.weight": 4, "2.weight": 11}),
        ),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dev = DPAP(model, torch.rand(2, 4), optimizer=optimizer, total_steps=20, score="magnitude", replay=deaths)
    reports = {}
    for step in range(1, 11):
        with dev.observing():
            model(torch.rand(8, 4))
        reports[step] = dev.step()
    found = [report for step, report in reports.items() if step >= 8 and report is not None]
    assert [r.died_synapses for r in found] == [{"0.weight": 18}, {"2.weight": 1}, {}]
    assert all("2 of 0.weight that the record prunes" in r.skipped for r in found)


class TestErrors:
    def test_no_reports(self) -> None:
        with pytest.raises(DPAPError, match="no report to take a record from"):
            Deaths.of([])

    def test_another_network(self, recorded: list[DevelopmentReport]) -> None:
        deaths = Deaths.of(recorded)
        wider = replace(deaths, units={**deaths.units, "hidden": 21})
        with pytest.raises(DPAPError, match="another network: hidden has 21 units there, 20 here"):
            make(replay=wider)
        with pytest.raises(DPAPError, match="another network: extra has 3 units there, none here"):
            make(replay=replace(deaths, units={**deaths.units, "extra": 3}))

    def test_another_length_or_window(self, recorded: list[DevelopmentReport]) -> None:
        deaths = Deaths.of(recorded)
        assert deaths.total_steps == TOTAL
        with pytest.raises(DPAPError, match="total_steps 60; this one has 120"):
            make(replay=deaths, total_steps=120)
        with pytest.raises(DPAPError, match=r"prunes at step \d+, where nothing can be pruned in this run"):
            make(replay=deaths, start=0.3)
        with pytest.raises(DPAPError, match="at step 30"):
            make(replay=deaths, stop=0.45)
        with pytest.raises(DPAPError, match="at step"):
            make(replay=deaths, development_steps=20)

    def test_parts_that_cannot_die_here(self, recorded: list[DevelopmentReport]) -> None:
        deaths = Deaths.of(recorded)
        with pytest.raises(DPAPError, match=r"prunes .*weight, where nothing can be pruned"):
            make(replay=deaths, rule=dpap_rule(kinds=frozenset({"unit"})))
        with pytest.raises(DPAPError, match="prunes inner, where nothing can be pruned"):
            make(replay=deaths, ignore="inner")

    def test_another_rule_and_a_target(self, recorded: list[DevelopmentReport]) -> None:
        deaths = Deaths.of(recorded)
        with pytest.raises(DPAPError, match="of rule 'paper'; this run has 'dpap'"):
            make(replay=replace(deaths, rule="paper"))
        with pytest.raises(DPAPError, match="Rule 'paper' knows no replay"):
            make(replay=deaths, rule="paper")
        with pytest.raises(DPAPError, match="A replay and a target both say how much"):
            make(replay=deaths, target={"connectivity": 0.5})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "first"
    train(tiny("digits-ann", epochs="3"), path)
    return path


class TestRuns:
    """Through config and run folder."""

    def test_a_control_has_the_counts_of_its_record(self, folder: Path, tmp_path: Path) -> None:
        deaths = Deaths.read(folder)
        assert deaths.rule == "dpap" and sum(sum(at.units.values()) for at in deaths.steps)
        scores = {"development__unit_score": "random", "development__synapse_score": "random"}
        config = tiny("digits-ann", epochs="3", development__replay=str(folder), **scores)
        assert config.development.target.named() is None, "the record says how many"
        train(config, tmp_path / "control")
        again = Deaths.read(tmp_path / "control")
        assert [(at.step, at.units) for at in again.steps] == [(at.step, at.units) for at in deaths.steps]
        results = [read_history(path / "history.jsonl").result for path in (folder, tmp_path / "control")]
        assert results[0] is not None and results[1] is not None
        assert results[0].alive_units == results[1].alive_units
        assert results[0].macs == results[1].macs
        assert results[0].connectivity == pytest.approx(results[1].connectivity, abs=0.003)

    def test_settings(self) -> None:
        config = tiny(development__replay="runs/x")
        assert from_dict(tomllib.loads(to_toml(config))) == config
        assert config.as_control().development.rule == "none"
        with pytest.raises(DPAPError, match=r"development\.replay = 'runs/x' is not allowed"):
            DevelopmentConfig(rule="paper", replay="runs/x")

    def test_folders_without_a_record(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DPAPError, match=r"no record of deaths.*history\.jsonl"):
            Deaths.read(tmp_path)
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        (tmp_path / "history.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
        with pytest.raises(DPAPError, match="The run is not over"):
            Deaths.read(tmp_path)
        assert json.loads(lines[-1])["type"] == "result"
