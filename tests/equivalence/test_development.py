"""Properties of rule `dpap` on recorded activity, every pass observed, and its edge cases."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.records import Batch, LayerActivity, Record, make_record, rebatch
from replay import replay
from torch import Tensor

from dpap import DPAP, DevelopmentReport, Stats
from dpap.method.rules import dpap as dpap_rule
from dpap.method.rules import paper as paper_rule
from dpap.method.scores import SCORES, per_kind
from dpap.method.survival import percentile, relative, unit_floor

HIDDEN = ("conv1", "conv2", "fc")


def constant(rates: dict[str, list[float]], epochs: int) -> dict[str, np.ndarray]:
    return {name: np.tile(np.array(r), (epochs, 1)) for name, r in rates.items()}


RATES: dict[str, list[float]] = {
    "conv1": [0.0, 0.05, 0.1, 0.3, 0.5, 0.4],
    "conv2": [0.5, 0.3, 0.02, 0.4, 0.1, 0.2, 0.0, 0.6],
    "fc": [0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.05, 0.15, 0.25, 0.35, 0.5, 0.6],
    "classifier": [0.1, 0.2, 0.3, 0.2, 0.1],
}


def outcome(record: Record, **options: Any) -> tuple[list[DevelopmentReport], DPAP]:
    reports: list[DevelopmentReport] = []

    def keep(dev: DPAP, report: Any) -> None:
        if report is not None:
            reports.append(report)

    _, dev = replay(record, keep, **({"step_each": "epoch"} | options))
    return reports, dev


def same_run(a: list[DevelopmentReport], b: list[DevelopmentReport]) -> None:
    assert len(a) == len(b) and any(r.deaths for r in a)
    for one, other in zip(a, b, strict=True):
        assert one.died_units == other.died_units
        assert one.isolated_units == other.isolated_units
        assert one.died_synapses == other.died_synapses
        for name in HIDDEN:
            torch.testing.assert_close(one.survival[name], other.survival[name], rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def steady() -> Record:
    return make_record(seed=5, epochs=40, batches=4, rates=constant(RATES, 40))


class TestOrder:
    def test_independent_of_batch_order(self, steady: Record) -> None:
        turned = replace(steady, epochs=tuple(tuple(reversed(epoch)) for epoch in steady.epochs))
        same_run(outcome(steady)[0], outcome(turned)[0])

    def test_independent_of_sample_order(self, steady: Record) -> None:
        def turn(batch: Batch) -> Batch:
            return {n: LayerActivity(pre=a.pre[:, ::-1].copy(), post=a.post[:, ::-1].copy()) for n, a in batch.items()}

        turned = replace(steady, epochs=tuple(tuple(turn(b) for b in epoch) for epoch in steady.epochs))
        same_run(outcome(steady)[0], outcome(turned)[0])

    @pytest.mark.parametrize("size", [3, 16])
    def test_independent_of_batch_size_and_accumulation(self, steady: Record, size: int) -> None:
        """One step of `dev` per 32 samples, however they arrive."""
        cut = replace(steady, epochs=tuple(tuple(rebatch(epoch, size)) for epoch in steady.epochs))
        assert len(cut.epochs[0]) != len(steady.epochs[0])
        same_run(outcome(steady)[0], outcome(cut)[0])


def test_a_silent_unit_scores_nothing_and_is_the_first_to_die(steady: Record) -> None:
    reports, _ = outcome(steady)
    silent = {"conv1": 0, "conv2": 6, "fc": 0}
    for name, unit in silent.items():
        assert all(r.use[name][unit] == 0 for r in reports)
        assert all((r.use[name][r.alive[name]] > 0).sum() >= 2 for r in reports)
        deaths = [r.died_units[name] for r in reports if name in r.died_units]
        assert deaths and unit in deaths[0], f"the silent unit of {name} is not among the first"


def test_of_two_layers_the_one_with_more_rarely_firing_units_loses_more() -> None:
    rates = dict(RATES)
    rates["conv1"] = [0.01, 0.02, 0.01, 0.02, 0.5, 0.5, 0.4, 0.4]
    rates["conv2"] = [0.5, 0.4, 0.5, 0.4, 0.5, 0.45, 0.4, 0.01]
    record = make_record(seed=2, epochs=40, batches=4, rates=constant(rates, 40))
    _, dev = outcome(record)
    assert int((~dev.alive["conv1"]).sum()) > int((~dev.alive["conv2"]).sum()) >= 1


def test_duplicating_every_unit_changes_no_u() -> None:
    """Twice the units with the same activity: each has as much as before of an average that is as before."""
    record = make_record(seed=1, epochs=6, batches=3, rates=constant(RATES, 6))

    def twice(batch: Batch) -> Batch:
        out = {}
        for name, a in batch.items():
            pre = a.pre if name == "conv1" else np.concatenate([a.pre, a.pre], axis=2)
            post = a.post if name == "classifier" else np.concatenate([a.post, a.post], axis=2)
            out[name] = LayerActivity(pre=pre, post=post)
        return out

    doubled = replace(record, epochs=tuple(tuple(twice(b) for b in epoch) for epoch in record.epochs))
    widths = {name: len(RATES[name]) for name in HIDDEN}
    once, _ = outcome(record, start=0.5, stop=1.0, memory=0.3)
    both, _ = outcome(doubled, start=0.5, stop=1.0, memory=0.3, widths={n: 2 * w for n, w in widths.items()})
    for name in HIDDEN:
        u = once[0].use[name]
        torch.testing.assert_close(both[0].use[name], torch.cat([u, u]), rtol=1e-10, atol=0)


def test_who_falls_silent_in_the_middle_of_the_window_dies_before_it_closes() -> None:
    """p = 0.3, a unit as busy as its siblings until then."""
    epochs = 100
    rates = constant({n: [0.4] * len(r) for n, r in RATES.items()}, epochs)
    for name, unit in (("conv1", 2), ("conv2", 3), ("fc", 4)):
        rates[name][30:, unit] = 0.0
    record = make_record(seed=4, epochs=epochs, batches=2, rates=rates)
    reports, dev = outcome(record)
    for name, unit in (("conv1", 2), ("conv2", 3), ("fc", 4)):
        died = [r.progress for r in reports if unit in r.died_units.get(name, [])]
        assert len(died) == 1 and 0.3 < died[0] < 0.5, name
        assert int((~dev.alive[name]).sum()) <= 2, "few samples a window: chance may take one more"


@pytest.mark.slow
def test_development_steps_hardly_matter() -> None:
    """The same recorded activity at 10, 40 and 300 development steps ends within 2 points of connectivity."""
    epochs = 600
    record = make_record(seed=6, epochs=epochs, batches=1, rates=constant(RATES, epochs))
    ends = [outcome(record, development_steps=n)[1].connectivity() for n in (10, 40, 300)]
    assert max(ends) - min(ends) < 0.02, ends
    assert min(ends) > 0.05 and max(ends) < 0.9, ends


def test_one_time_step(steady: Record) -> None:
    """T = 1: the trace is the activity."""
    short = replace(
        steady,
        epochs=tuple(
            tuple({n: LayerActivity(pre=a.pre[:1], post=a.post[:1]) for n, a in b.items()} for b in epoch)
            for epoch in steady.epochs
        ),
    )
    reports, dev = outcome(short)
    assert dev.graph.num_steps == 1
    assert any(r.died_units for r in reports)


class TestEdges:
    def silent(self, names: tuple[str, ...]) -> Record:
        rates = {n: ([0.0] * len(r) if n in names else r) for n, r in RATES.items()}
        return make_record(seed=5, epochs=40, batches=2, rates=constant(rates, 40))

    def test_a_silent_group_carries_no_information(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "dpap"):
            reports, dev = outcome(self.silent(("conv2",)))
        assert all(
            (r.use["conv2"][r.alive["conv2"]] == 8 / int(r.alive["conv2"].sum())).all() for r in reports if not r.deaths
        )
        assert dev.warned["conv2"] == len(reports)
        assert sum("conv2: no unit stands out" in m for m in caplog.messages) == 1, "said once, counted after that"
        assert not any("conv2" in r.died_units for r in reports)

    def test_a_silent_row_carries_no_information(self) -> None:
        reports, dev = outcome(self.silent(("classifier",)), score=per_kind(unit="bcm", synapse="bcm"))
        assert "classifier.weight" not in {w for r in reports for w in r.died_synapses}
        assert dev.warned["classifier"] == len(reports)

    def test_units_always_at_their_threshold_are_counted(self) -> None:
        record = make_record(seed=5, epochs=40, batches=2, rates=constant(RATES, 40))

        def stuck(batch: Batch) -> Batch:
            post = batch["fc"].post.copy()
            post[:, :, 3] = 1.0
            return batch | {"fc": replace(batch["fc"], post=post), "classifier": replace(batch["classifier"], pre=post)}

        held = replace(record, epochs=tuple(tuple(stuck(b) for b in epoch) for epoch in record.epochs))
        reports, _ = outcome(held)
        assert reports[0].at_threshold.get("fc", 0) == 1 and reports[0].use["fc"][3] == 0

    def test_a_group_of_one_or_two_never_loses_any(self) -> None:
        rates = dict(RATES, conv1=[0.0, 0.5], conv2=[0.5])
        _, dev = outcome(make_record(seed=5, epochs=40, batches=2, rates=constant(rates, 40)))
        assert dev.alive["conv1"].all() and dev.alive["conv2"].all()

    def test_the_floor_holds_at_the_highest_level(self) -> None:
        rule = dpap_rule(kappa_unit=50.0)
        rates = constant({n: [0.3] * len(r) for n, r in RATES.items()}, 100)
        _, dev = outcome(make_record(seed=5, epochs=100, batches=1, rates=rates), rule=rule)
        for name in HIDDEN:
            assert int(dev.alive[name].sum()) == unit_floor(len(RATES[name]))

    def test_the_window_closes_with_q_1(self) -> None:
        """The first development step at or after `stop` is the last one; after it nothing is observed or dies."""
        record = make_record(seed=5, epochs=40, batches=1, rates=constant(RATES, 40))
        reports, dev = outcome(record, stop=0.51)
        assert reports[-1].step == 21
        assert not dev._engine.watching

    def test_a_trained_network_starts_at_once(self) -> None:
        reports, _ = outcome(make_record(seed=5, epochs=40, batches=1, rates=constant(RATES, 40)), start=0.0, stop=0.4)
        assert reports[0].step == 1 and any(r.died_units for r in reports[:4])


REPLAYED = sorted(SCORES.keys() - {"norm-scale", "taylor"})  # the replayed network has no norm and no backward pass


class TestLinks:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", REPLAYED)
    def test_every_score_runs_and_decides(self, name: str, steady: Record) -> None:
        reports, dev = outcome(steady, score=name, target={"connectivity": 0.5})
        assert any(r.deaths for r in reports)
        assert dev.connectivity() <= 0.5

    @pytest.mark.slow
    def test_scores_differ(self, steady: Record) -> None:
        survived = {}
        for name in REPLAYED:
            _, dev = outcome(steady, score=name, start=0.5, stop=1.0, memory=0.2)
            parts = [*dev.survival.values(), *(f.reshape(-1) for f in dev.synapse_survival.values())]
            survived[name] = torch.cat(parts)
        for a in survived:
            for b in survived:
                assert a == b or not torch.allclose(survived[a], survived[b], atol=1e-3), f"{a} and {b} are one"

    def test_random_is_drawn_once(self, steady: Record) -> None:
        reports, _ = outcome(steady, score="random")
        drawn = [r.use["fc"][r.alive["fc"]] / r.use["fc"][r.alive["fc"]].sum() for r in reports if r.alive["fc"].all()]
        assert len(drawn) > 2 and all(torch.allclose(d, drawn[0]) for d in drawn)
        assert reports[0].use["fc"].std() > 0

    def test_no_leak_is_the_mean_over_all_steps(self, steady: Record) -> None:
        rule = dpap_rule(leaks=False, kappa_unit=0.0, kinds=frozenset({"unit"}))
        units, _ = outcome(steady, rule=rule, start=0.5, stop=0.9)
        mean = torch.stack([r.use["fc"] for r in units]).mean(0)
        torch.testing.assert_close(units[-1].survival["fc"], mean)

    def test_no_anneal_has_its_level_at_once(self, steady: Record) -> None:
        at_once, _ = outcome(steady, rule=dpap_rule(rises=False))
        rising, _ = outcome(steady)

        def early(reports: list[DevelopmentReport]) -> int:
            return sum(r.deaths for r in reports if r.progress <= 0.2)

        assert early(at_once) > early(rising)

    @pytest.mark.parametrize("kind", ["unit", "synapse"])
    def test_units_only_and_synapses_only(self, kind: Any, steady: Record) -> None:
        reports, _ = outcome(steady, rule=dpap_rule(kinds=frozenset({kind})))
        assert any(r.died_units for r in reports) == (kind == "unit")
        assert any(r.died_synapses for r in reports) == (kind == "synapse")

    def test_a_users_function(self, steady: Record) -> None:
        seen: list[Stats] = []

        def score(stats: Stats) -> Tensor:
            seen.append(stats)
            if stats.kind == "unit":
                return stats.y
            assert stats.xy is not None and stats.xy.shape == stats.weight.shape
            return stats.xy

        reports, _ = outcome(steady, score=score)
        assert any(r.deaths for r in reports)
        assert {s.layer for s in seen} == {"conv1", "conv2", "fc", "classifier"}
        assert all(s.alive.shape == (s.weight.shape[:1] if s.kind == "unit" else s.weight.shape[:2]) for s in seen)

    def test_classical_bcm_is_silent_where_the_layer_is(self) -> None:
        from dpap.method.scores import bcm_classical

        zero = torch.zeros(3)
        stats = Stats(
            layer="a",
            kind="unit",
            seed=0,
            weight=torch.ones(3, 2),
            alive=torch.ones(3, dtype=torch.bool),
            samples=4,
            y=zero,
            theta=zero,
            theta_squared=zero,
            total_y=zero,
            total_yy=zero,
        )
        assert (bcm_classical(stats) == 0).all()


def test_the_other_spine_of_the_paper_is_another() -> None:
    record = make_record(epochs=3, batches=2)
    a, _ = outcome(record, rule=paper_rule())
    b, _ = outcome(record, rule=paper_rule(spine="product of sums"))
    assert not torch.allclose(a[-1].use["fc"], b[-1].use["fc"])


class TestSmallPieces:
    def test_percentile_is_numpys(self) -> None:
        values = torch.randn(1001, dtype=torch.float64)
        for percent in (0, 10, 75, 99.9, 100):
            assert percentile(values, percent).item() == pytest.approx(
                np.percentile(values.numpy(), percent), rel=1e-14
            )

    def test_relative_keeps_the_original_number(self) -> None:
        u = relative(torch.tensor([[1.0, 1.0, 2.0, 5.0]]), torch.tensor([[True, True, True, False]]))
        torch.testing.assert_close(u, torch.tensor([[1.0, 1.0, 2.0, 0.0]]))
