"""The object: its arguments, its clock, its state, what it says when something is wrong."""

from __future__ import annotations

import copy
import inspect
import logging
from typing import Any

import pytest
import torch
from nets import ConvNet, SpikingNet
from torch import Tensor, nn

import dpap
from dpap import DPAP, DevelopmentReport, DPAPError, Stats
from dpap.method.named import RULES, resolve
from dpap.method.rules import dpap as dpap_rule


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def make(model: nn.Module | None = None, lr: float = 0.05, **options: Any) -> DPAP:
    model = mlp() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return DPAP(model, torch.randn(2, 6), optimizer=optimizer, **({"total_steps": 100} | options))


def train(dev: DPAP, steps: int, first: int = 0) -> list[DevelopmentReport]:
    """Counted batches: the same step sees the same data, whoever asks."""
    reports = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator)
        with dev.observing():
            loss = nn.functional.cross_entropy(dev.model(x), x[:, :3].argmax(1))
        dev.optimizers[0].zero_grad()
        loss.backward()
        dev.optimizers[0].step()
        report = dev.step()
        if report is not None:
            reports.append(report)
    return reports


class TestClock:
    @pytest.mark.parametrize(("total", "wanted"), [(100, 100), (1000, 100), (37, 37), (250, 100), (7, 5)])
    def test_development_steps_are_spread_over_the_run(self, total: int, wanted: int) -> None:
        dev = make(total_steps=total, development_steps=wanted, start=0.0, stop=1.0, memory=0.5)
        steps = [r.step for r in train(dev, total)]
        assert len(steps) == wanted and steps[-1] == total
        gaps = {b - a for a, b in zip([0, *steps], steps, strict=False)}
        assert max(gaps) - min(gaps) <= 1

    def test_epochs_are_legal_steps(self) -> None:
        dev = make(total_steps=20)
        reports = train(dev, 20)
        assert [r.step for r in reports] == list(range(2, 11)), "the first window began before observing did"

    def test_elapsed_counts_from_the_previous_development_step(self) -> None:
        dev = make(
            total_steps=100,
            development_steps=25,
            start=0.2,
            stop=0.6,
            memory=0.04,
            rule=dpap_rule(kappa_unit=0.0, kappa_synapse=0.0),
        )
        reports = train(dev, 60)
        gamma = torch.tensor(-0.04 / 0.04).exp()
        torch.testing.assert_close(reports[0].survival["0"], gamma + (1 - gamma) * reports[0].use["0"])
        torch.testing.assert_close(
            reports[1].survival["0"], gamma * reports[0].survival["0"] + (1 - gamma) * reports[1].use["0"]
        )

    def test_after_the_end(self) -> None:
        dev = make(total_steps=10, start=0.2)
        train(dev, 10)
        with pytest.raises(DPAPError, match="more than the total_steps=10 times"):
            dev.step()


class TestArguments:
    def test_it_says_what_it_holds(self) -> None:
        dev = make(ignore=["0"])
        assert dev.shrink == "auto"
        assert "ignored: 0.weight" in repr(dev)
        assert f"step 0 of {dev.total_steps}" in repr(dev)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rule": "dpep"}, "did you mean 'dpap'"),
            ({"score": "magnitud"}, "did you mean 'magnitude'"),
            ({"rule": "paper", "score": "random"}, "takes no score="),
            ({"total_steps": 0}, "total_steps=0 is no count"),
            ({"observe_every": 0}, "observe_every=0 is no count"),
            ({"development_steps": -1}, "development_steps=-1"),
            ({"start": 0.5, "stop": 0.5}, "is no window"),
            ({"stop": 1.2}, "is no window"),
            ({"start": -0.1}, "is no window"),
            ({"memory": 0.0}, "memory=0.0 is no share"),
            ({"start": 0.5, "stop": 0.501}, "holds less than one"),
            ({"total_steps": 4, "start": 0.1, "stop": 0.3}, "holds less than one"),
            ({"rule": "released"}, "no network without spikes"),
            ({"score": "stdp"}, "T = 1"),
            ({"ignore": "*"}, "nothing to prune"),
        ],
    )
    def test_bad_ones_are_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(DPAPError, match=message):
            make(**options)

    def test_bad_types_are_named(self) -> None:
        """Past the runtime checker of the tests, which users do not have."""
        schedule = make().schedule
        object.__setattr__(schedule, "total_steps", 2.5)
        with pytest.raises(DPAPError, match=r"total_steps=2\.5 is no count"):
            schedule.__post_init__()
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(DPAPError, match=r"(?s)shrink='sometimes'.*auto.*never.*always"):
            inspect.unwrap(DPAP.__init__)(
                DPAP.__new__(DPAP), model, torch.randn(2, 6), optimizer=optimizer, total_steps=100, shrink="sometimes"
            )

    def test_nothing_to_prune_says_why(self) -> None:
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(DPAPError) as caught:
            DPAP(model, torch.rand(2, 2, 5, 5), optimizer=optimizer, total_steps=100)
        assert "0: network output" in caught.value.where

    def test_an_optimizer_without_the_parameters(self) -> None:
        model = mlp()
        foreign = torch.optim.SGD(copy.deepcopy(model).parameters(), 0.1)
        with pytest.raises(DPAPError, match=r"parameters are in none of the optimizers given: 0\.bias, 0\.weight"):
            DPAP(model, torch.randn(2, 6), optimizer=foreign, total_steps=100)

    def test_several_optimizers_and_foreign_parameters(self) -> None:
        model, other = mlp(), nn.Linear(2, 2)
        parts = list(model.parameters())
        optimizers = [torch.optim.SGD(parts[:2], 0.1), torch.optim.AdamW([*parts[2:], *other.parameters()], 0.01)]
        dev = DPAP(model, torch.randn(2, 6), optimizer=optimizers, total_steps=100)
        assert dev.optimizers == optimizers

    def test_rules_by_object(self) -> None:
        rule = dpap_rule(kappa_unit=0.3)
        assert make(rule=rule).rule is rule
        assert {resolve(name, score=None).name for name in RULES} == set(RULES)


class TestWhatIsSeen:
    def test_a_site_never_observed_is_named(self) -> None:
        dev = make()
        with pytest.raises(DPAPError, match="No batch was observed at input of 0 and output of 1"):
            for _ in range(100):
                dev.step()

    def test_a_hook_that_was_skipped_is_named(self) -> None:
        """As a compiled model does it: the pass goes by another way."""
        dev = make()
        inner = dev.model
        assert isinstance(inner, nn.Sequential)
        with pytest.raises(DPAPError, match="make DPAP before torch.compile"):
            for _ in range(100):
                with dev.observing():
                    nn.functional.linear(torch.randn(4, 6), inner[0].weight)
                dev.step()

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_activity_that_is_not_finite(self, value: float) -> None:
        dev = make(score="magnitude")
        with pytest.raises(
            DPAPError, match=r"1 of the 1 observed passes .* do not count: activity held NaN or infinity"
        ):
            for _ in range(100):
                with dev.observing():
                    dev.model(torch.full((4, 6), value))
                dev.step()

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (
                lambda s: torch.full(s.weight.shape[:1] if s.kind == "unit" else s.weight.shape[:2], torch.nan),
                "score is not finite",
            ),
            (lambda s: torch.ones(3), r"answered \(3,\)"),
            (lambda s: 1.0, "answered float"),
            (lambda s: -torch.ones(s.weight.shape[:1] if s.kind == "unit" else s.weight.shape[:2]), "is negative"),
        ],
    )
    def test_a_users_score_is_checked(self, answer: Any, message: str) -> None:
        dev = make(score=answer)
        with pytest.raises(DPAPError, match=message):
            train(dev, 100)

    def test_a_score_that_wants_what_is_not_kept(self) -> None:
        from dpap.method.scores import stdp

        def score(stats: Stats) -> Tensor:
            return stdp(stats)

        with pytest.raises(ValueError, match="reads the sum 'stdp'"):
            train(make(score=score), 100)


class TestPreview:
    def test_it_says_what_would_die_and_does_nothing(self) -> None:
        dev = make(development_steps=20, total_steps=100)
        with pytest.raises(DPAPError, match="Nothing has been observed"):
            dev.preview()
        previews, reports = [], []
        for step in range(60):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
            with dev.observing():
                dev.model(x)
            if step % 5 == 4 and dev._engine.watching:
                before = copy.deepcopy(dev.state_dict())
                dev._engine.steps_taken += 1  # as the step that comes would count it
                previews.append(dev.preview())
                dev._engine.steps_taken -= 1
                assert str(before) == str(dev.state_dict())
            report = dev.step()
            if report is not None:
                reports.append(report)
        assert len(previews) == len(reports) > 3
        assert any(r.deaths for r in reports)
        for said, done in zip(previews, reports, strict=True):
            assert said.died_units == done.died_units and said.died_synapses == done.died_synapses


class TestState:
    @pytest.mark.parametrize("at", [5, 12, 15, 33, 60])
    def test_resumed_equals_uninterrupted(self, at: int) -> None:
        torch.manual_seed(1)
        whole = make(observe_every=2, target={"connectivity": 0.3})
        start = copy.deepcopy(whole.model.state_dict())
        train(whole, 100)

        torch.manual_seed(1)
        first = make(observe_every=2, target={"connectivity": 0.3})
        first.model.load_state_dict(start)
        train(first, at)
        saved = copy.deepcopy((first.model.state_dict(), first.optimizers[0].state_dict(), first.state_dict()))
        second = make(observe_every=2, target={"connectivity": 0.3})
        second.load_state_dict(saved[2])  # first: it cuts the model to the widths of the state
        second.model.load_state_dict(saved[0])
        second.optimizers[0].load_state_dict(saved[1])
        train(second, 100 - at, first=at)

        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True))
        assert whole.model[0].weight.shape[0] < 10, "it shrank on the way"
        for name in whole.survival:
            assert torch.equal(whole.alive[name], second.alive[name])
            assert torch.equal(whole.survival[name], second.survival[name])
        for name in whole.synapse_masks:
            assert torch.equal(whole.synapse_masks[name], second.synapse_masks[name])
        assert whole.connectivity() < 0.31

    def test_a_loaded_state_is_masked_at_once(self) -> None:
        dev = make(target={"connectivity": 0.3}, shrink="never")
        train(dev, 60)
        fresh = make(target={"connectivity": 0.3}, shrink="never")
        fresh.load_state_dict(dev.state_dict())
        weight = fresh.model.get_parameter("0.weight")
        assert (weight[~dev.alive["0"]] == 0).all() and (~dev.synapse_masks["0.weight"]).any()
        assert (weight[~dev.synapse_masks["0.weight"]] == 0).all()

    def test_a_state_from_before_the_first_observation(self) -> None:
        dev = make()
        dev.load_state_dict(make().state_dict())
        assert not dev._engine.window.sums
        train(dev, 100)

    def test_the_sliding_threshold_is_part_of_it(self) -> None:
        network = SpikingNet()
        x = torch.rand(4, 1, 8, 8)

        def one(rule: str) -> DPAP:
            model = copy.deepcopy(network)
            return DPAP(model, x, optimizer=torch.optim.SGD(model.parameters(), 0.0), total_steps=6, rule=rule)

        for rule in ("paper", "released"):
            dev, again = one(rule), one(rule)
            for _ in range(3):
                with dev.observing():
                    dev.model(x)
                dev.step()
            again.load_state_dict(dev.state_dict())
            for d in (dev, again):
                with d.observing():
                    d.model(x)
                d.step()
            for name in dev.survival:
                assert torch.equal(dev.survival[name], again.survival[name])
            dev.close(), again.close()

    def test_of_another_run_or_network_is_refused(self) -> None:
        state = make().state_dict()
        with pytest.raises(DPAPError, match="total_steps 100; this one has 50"):
            make(total_steps=50).load_state_dict(state)
        with pytest.raises(DPAPError, match="rule 'dpap'; this one has 'paper'"):
            make(rule="paper").load_state_dict(state)
        wider = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        dev = make(wider)
        before = str(dev.state_dict())
        with pytest.raises(DPAPError, match=r"alive of 0 is \(10,\), here \(12,\)"):
            dev.load_state_dict(state)
        assert str(dev.state_dict()) == before


def test_compact_masks_first() -> None:
    """Weights written since the last forward pass do not bring dead synapses into the small network."""
    dev = make(target={"connectivity": 0.3}, shrink="never")
    train(dev, 60)
    weights = [p for p in dev.model.parameters() if p.dim() == 2]
    for parameter in dev.model.parameters():
        parameter.data.fill_(1.0)
    small = dev.compact()
    living = sum(int(p.sum()) for p in small.parameters() if p.dim() == 2)
    assert living == round(dev.connectivity() * sum(p.numel() for p in weights))


class TestLearningRate:
    def run(self, schedule: Any, caplog: pytest.LogCaptureFixture) -> str:
        dev = make()
        with caplog.at_level(logging.WARNING, "dpap"):
            for step in range(100):
                dev.optimizers[0].param_groups[0]["lr"] = schedule(step / 100)
                train(dev, 1, first=step)
        return caplog.text

    def test_still_rising_at_start(self, caplog: pytest.LogCaptureFixture) -> None:
        assert "still rises at start=0.1" in self.run(lambda p: 0.05 * min(1, p / 0.2), caplog)

    def test_gone_at_stop(self, caplog: pytest.LogCaptureFixture) -> None:
        assert "at stop=0.5 is under a quarter" in self.run(lambda p: 0.05 * max(0.0, 1 - 2 * p), caplog)

    def test_silent_otherwise(self, caplog: pytest.LogCaptureFixture) -> None:
        assert "learning rate" not in self.run(lambda p: 0.05 * min(1, p / 0.05) * (1 - p), caplog).lower()


def test_dropped_warnings_of_a_rule_without_floors() -> None:
    """`paper` has no floor: emptying a layer is an error that names it, and nothing is changed."""
    from dpap.method.rules import paper

    model = SpikingNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    dev = DPAP(model, torch.rand(2, 1, 8, 8), optimizer=optimizer, total_steps=200, rule=paper(beta=0.001))
    for p in model.parameters():
        p.data.zero_()  # silence: everybody reads 0.5, and in a linear layer that is decay
    with pytest.raises(DPAPError, match="would empty"):
        for _ in range(200):
            with dev.observing():
                model(torch.rand(2, 1, 8, 8))
            alive = {k: v.clone() for k, v in dev.alive.items()}
            dev.step()
    assert all(torch.equal(alive[k], dev.alive[k]) for k in alive)


def test_the_public_names_are_few() -> None:
    assert set(dpap.__all__) >= {"DPAP", "DPAPError", "DevelopmentReport", "Stats", "find_groups"}
    assert all(hasattr(dpap, name) for name in dpap.__all__)
    assert ConvNet is not None
