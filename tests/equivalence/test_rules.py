"""The fast rules against the slow oracles, on the same recorded activity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracles import dpap as dpap_oracle
from oracles import paper as paper_oracle
from oracles import released as released_oracle
from oracles.hand_worked import HAND_WORKED
from oracles.records import Record, make_record
from replay import replay

from dpap import DPAP, DPAPError, Stats
from dpap.method.plasticity import SlidingSums, WindowSums
from dpap.method.rules import paper as paper_rule
from dpap.method.rules import released as released_rule

HIDDEN = ("conv1", "conv2", "fc")


@pytest.fixture(scope="module")
def record() -> Record:
    return make_record()


def same(mine: torch.Tensor, oracle: np.ndarray, what: str) -> None:
    """Equal but for rounding; NaN in the oracle marks what is dead and means nothing."""
    known = ~np.isnan(oracle)
    assert mine.shape == oracle.shape and known.any()
    np.testing.assert_allclose(mine.numpy()[known], oracle[known], rtol=1e-10, atol=1e-12, err_msg=what)


def sums_of(dev: DPAP, layer: str) -> SlidingSums:
    sums = dev._engine.window.sums[(f"{layer}.weight", 0)]
    assert isinstance(sums, SlidingSums)
    return sums


class TestReleased:
    def test_same_accumulators_and_same_dead_at_every_epoch(self, record: Record) -> None:
        expected = released_oracle.run(record)
        seen: list[dict[str, tuple[frozenset[int], frozenset[int]]]] = []

        def compare(dev: DPAP, report: object) -> None:
            epoch = len(seen)
            dead = {}
            for name in HIDDEN:
                oracle, sums = expected[epoch][name], sums_of(dev, name)
                assert oracle.margin > 1e-9, "a decision rests on rounding: make another record"
                assert sums.theta is not None
                same(sums.theta, oracle.theta, f"theta of {name}, epoch {epoch}")
                same(sums.sums["y"], oracle.activity, f"A of {name}, epoch {epoch}")
                same(sums.sums["bcm_rows"], oracle.bcm.sum(1), f"row sums of {name}, epoch {epoch}")
                same(dev.survival[name], oracle.unit_survival, f"F of {name}, epoch {epoch}")
                np.testing.assert_array_equal(dev.alive[name].numpy(), oracle.unit_mask)
                synapses: frozenset[int] = frozenset()
                if name == "fc":
                    same(sums.sums["bcm"], oracle.bcm, f"BCM, epoch {epoch}")
                    same(dev.synapse_survival["fc.weight"], oracle.synapse_survival, f"F, epoch {epoch}")
                    np.testing.assert_array_equal(dev.synapse_masks["fc.weight"].numpy(), oracle.synapse_mask)
                    weight = dev.model.get_parameter("fc.weight")
                    np.testing.assert_array_equal((weight != 0).numpy(), oracle.weight_mask)
                    synapses = frozenset(np.flatnonzero(~oracle.synapse_mask).tolist())
                dead[name] = (frozenset(oracle.dead_units), synapses)
            seen.append(dead)

        _, dev = replay(record, compare, step_each="epoch", rule="released")
        assert len(seen) == 60
        assert "classifier.weight" not in dev.synapse_masks
        for kind, names, part in (
            ("convolution units", HIDDEN[:2], 0),
            ("fc units", HIDDEN[2:], 0),
            ("synapses", HIDDEN[2:], 1),
        ):
            dying = {
                epoch
                for epoch in range(1, 60)
                for name in names
                if seen[epoch][name][part] > seen[epoch - 1][name][part]
            }
            assert len(dying) >= 5, f"{kind} die in only {len(dying)} epochs: the record proves too little"

    def test_bias_and_norm_stay_and_weights_grow_again(self, record: Record) -> None:
        """The mask is applied once: the released script neither shrinks nor guards."""
        model, dev = replay(record, lambda *_: None, step_each="epoch", rule="released")
        dead = ~dev.alive["conv2"]
        assert dead.any()
        assert (model.conv2.weight[dead] == 0).all()
        assert (model.conv2.bias[dead] != 0).all()
        optimizer = dev.optimizers[0]
        optimizer.param_groups[0]["lr"] = 0.1
        model.conv2.weight.grad = torch.ones_like(model.conv2.weight)
        optimizer.step()
        assert (model.conv2.weight[dead] != 0).all()
        with pytest.raises(DPAPError, match="does not make a smaller network"):
            dev.compact()

    def test_the_spine_is_a_product_of_two_scaled_sums(self) -> None:
        """Not the scaled product, which is the same only where both sums have a silent unit at the bottom."""
        stats = Stats(
            layer="a",
            kind="unit",
            seed=0,
            weight=torch.ones(3, 2),
            alive=torch.ones(3, dtype=torch.bool),
            samples=4,
            y=torch.tensor([1.0, 3.0, 2.0]),
            theta=torch.zeros(3),
            bcm_rows=torch.tensor([-1.0, 2.0, 5.0]),
        )
        assert released_rule().score(stats).tolist() == [0.0, 0.5, 0.5]

    def test_another_batch_size_is_refused(self) -> None:
        record = make_record(epochs=1, batches=2)
        short = {k: type(v)(pre=v.pre[:, :5], post=v.post[:, :5]) for k, v in record.epochs[0][1].items()}
        cut = Record(chain=record.chain, epochs=((record.epochs[0][0], short),))
        with pytest.raises(DPAPError, match="drop_last"):
            replay(cut, lambda *_: None, step_each="epoch", rule="released")


class TestPaper:
    @pytest.mark.parametrize("spine", ["per_sample", "trace_times_sum"])
    def test_same_sums_and_same_dead_at_every_epoch(self, record: Record, spine: paper_oracle.Spine) -> None:
        expected = paper_oracle.run(record, spine=spine)
        seen: list[int] = []

        def compare(dev: DPAP, report: object) -> None:
            epoch = len(seen)
            deaths = 0
            for name in (*HIDDEN, "classifier"):
                oracle = expected[epoch][name]
                theta = sums_of(dev, name).theta
                assert theta is not None
                alive = oracle.alive  # what a dead unit would emit is seen by the oracle alone
                same(theta[torch.from_numpy(alive)], oracle.theta[alive], f"theta of {name}, epoch {epoch}")
                np.testing.assert_array_equal(dev.alive[name].numpy(), alive)
                if name in HIDDEN:
                    same(dev.survival[name], oracle.unit_survival, f"F of {name}, epoch {epoch}")
                    assert report.isolated_units.get(name, []) == list(oracle.isolated)
                if name in ("fc", "classifier"):
                    living = ~np.isnan(oracle.synapse_u)
                    same(
                        dev.synapse_survival[f"{name}.weight"][torch.from_numpy(living)],
                        oracle.synapse_survival[living],
                        f"F of synapses of {name}, epoch {epoch}",
                    )
                    deaths += int((~oracle.synapses).sum())
            seen.append(deaths)

        _, dev = replay(
            record,
            compare,
            step_each="epoch",
            rule=paper_rule(spine="sum of products" if spine == "per_sample" else "product of sums"),
        )
        assert len(seen) == 60 and seen[-1] > 0
        assert any(not dev.alive[name].all() for name in HIDDEN)
        dev.compact()

    def test_with_beta_10_and_the_smooth_exponent_no_filter_can_die(self) -> None:
        """Importance 0 in every epoch is the worst that can happen; the library's own chain, 2000 epochs."""
        from dpap.method.survival import Clock, grow, survival_step

        def worst(beta: float) -> float:
            rule = paper_rule(beta=beta)
            survival, lowest = torch.tensor([rule.initial], dtype=torch.float64), math.inf
            for epoch in range(2000):
                clock = Clock(progress=0.5, elapsed=0.01, start=0.1, stop=0.5, memory=0.03, epoch=epoch)
                growth = grow(
                    torch.zeros(1, dtype=torch.float64), torch.tensor([True]), rule.links("conv", "unit", clock)[1:]
                )
                survival = survival_step(survival, growth, rule.gamma(clock))
                if epoch < 100:  # later only the leak is left, towards 0 and never below
                    lowest = min(lowest, survival.item())
            return lowest

        assert worst(10.0) > 0
        assert worst(5.0) < 0


class TestDpap:
    @pytest.mark.parametrize("target", [None, 0.3])
    def test_same_decisions_at_every_step(self, target: float | None) -> None:
        record = make_record(seed=3, epochs=50, batches=4)
        torch.manual_seed(0)
        reports = []

        def keep(dev: DPAP, report: object) -> None:
            if report is not None:
                reports.append((report, {n: m.clone() for n, m in dev.synapse_masks.items()}, dict(dev.survival)))

        _, dev = replay(
            record,
            keep,
            step_each="batch",
            target=None if target is None else {"connectivity": target},
        )
        weights = {n: _initial_weight(record, n) for n in ("conv1", "conv2", "fc", "classifier")}
        expected = dpap_oracle.run(record, weights, target=target)
        assert len(reports) == len(expected)
        for (report, masks, survival), step in zip(reports, expected, strict=True):
            assert report.step == step.tick.call
            for name in HIDDEN:
                alive = step.alive[name]
                same(report.use[name], step.unit_u[name], f"u of {name} at {report.step}")
                same(survival[name], step.unit_survival[name], f"F of {name} at {report.step}")
                np.testing.assert_array_equal(report.alive[name].numpy(), alive)
                assert sorted(report.died_units.get(name, [])) == sorted(step.died_units.get(name, []))
                assert sorted(report.isolated_units.get(name, [])) == sorted(step.isolated_units.get(name, []))
            for name in ("fc", "classifier"):
                assert report.died_synapses.get(f"{name}.weight", 0) == len(step.died_synapses.get(name, []))
                feeding = step.alive["conv2" if name == "fc" else "fc"].repeat(4 if name == "fc" else 1)
                living = step.synapses[name] & step.alive[name][:, None] & feeding[None, :]
                np.testing.assert_array_equal(masks[f"{name}.weight"].numpy(), living)
            assert report.connectivity == pytest.approx(step.connectivity, abs=1e-12)
        assert any(step.died_units.get(n) for step in expected for n in HIDDEN)
        assert any(step.died_synapses.get("fc") for step in expected)
        if target is not None:
            # Exact within one victim; the dearest one, a channel of conv2, holds 108 of 2,572 weights and feeds 80.
            assert target - (108 + 80) / 2572 <= dev.connectivity() <= target

    @pytest.mark.parametrize("case", HAND_WORKED, ids=lambda c: c.name)
    def test_hand_worked(self, case) -> None:  # type: ignore[no-untyped-def]
        """Sums, R, A, D, u of a window against numbers worked on paper."""
        from dpap.method.plasticity import activity, bcm_closed_form, mean_trace_weights, unit_spine
        from dpap.method.scores import get_score
        from dpap.method.survival import relative

        seen = case.batch["layer"]
        over = [torch.from_numpy(np.abs(a).mean(axis=3) if a.ndim == 4 else np.abs(a)) for a in (seen.pre, seen.post)]
        num_steps = len(over[1])
        weights = mean_trace_weights(num_steps, 0.5)
        image = case.layer.in_unit[0] == -1
        first = torch.full((num_steps,), 1 / num_steps, dtype=torch.float64) if image else weights
        same(activity(over[0], first), case.x, "x")
        same(activity(over[1], weights), case.y, "y")
        living = np.ones(case.layer.inputs, dtype=bool)
        if not image:
            living = case.alive[case.chain[-2].name][list(case.layer.in_unit)]
        sums = WindowSums(
            case.layer.outputs, case.layer.inputs, pairs=True, dtype=torch.float64, device=torch.device("cpu")
        )
        sums.add(over[0], over[1], torch.from_numpy(living), first, weights)
        for name, expected in (
            ("x", case.sum_x),
            ("y", case.sum_y),
            ("total_y", case.sum_Xy),
            ("total_yy", case.sum_Xyy),
        ):
            same(sums.sums[name], expected, name)
        for name, expected in (("xy", case.sum_xy), ("xyy", case.sum_xyy)):
            if expected is not None:
                same(sums.sums[name], expected, name)
        if case.previous_theta is not None:
            sums.theta = torch.from_numpy(case.previous_theta)
        weight = torch.zeros(case.layer.outputs, case.layer.inputs, dtype=torch.float64)
        if case.weight is not None:
            weight = torch.from_numpy(case.weight)
        alive = torch.from_numpy(case.alive["layer"])
        stats = sums.stats("layer", "unit", 0, weight, alive)
        same(stats.theta, case.theta, "theta")
        n = stats.samples
        assert stats.total_y is not None and stats.total_yy is not None
        change = bcm_closed_form(stats.total_yy / n, stats.total_y / n, stats.theta, stats.eps)
        same(change, case.R, "R")
        spine = unit_spine(change, stats.y / n)
        same(spine, case.D, "D")
        same(relative(spine, alive), case.unit_u, "u")
        same(get_score("spine")(stats), case.D, "the default score of units")
        if case.s is not None:
            synapses = torch.from_numpy(case.synapses["layer"] & case.alive["layer"][:, None] & living)
            stats = sums.stats("layer", "synapse", 0, weight, synapses)
            score = get_score("spine")(stats)
            same(score, case.s, "s")
            same(relative(score, synapses), case.synapse_u, "u of synapses")


def _initial_weight(record: Record, name: str) -> np.ndarray:
    from replay import Replay

    torch.manual_seed(0)
    model = Replay({layer.name: layer.outputs for layer in record.chain}).double()
    return model.get_parameter(f"{name}.weight").detach().numpy()
