"""What goes wrong in a user's loop is said where it happens, or at the latest when the result is taken."""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpap import DPAP, DPAPError


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def make(model: nn.Module | None = None, **options: Any) -> DPAP:
    model = mlp() if model is None else model
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    settings = {"total_steps": 60, "development_steps": 30, "observe_every": 1, "memory": 0.05} | options
    return unchecked(model, torch.randn(2, 6), optimizer=optimizer, **settings)


def unchecked(*arguments: Any, **options: Any) -> DPAP:
    """As a user calls it: without the tests' own checks of types, which would speak first."""
    dev = DPAP.__new__(DPAP)
    inspect.unwrap(DPAP.__init__)(dev, *arguments, **options)
    return dev


def train(dev: DPAP, steps: int, *, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = dev.optimizers[0] if optimizer is None else optimizer
    for _ in range(steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(dev.steps_taken))
        with dev.observing():
            loss = nn.functional.cross_entropy(dev.model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.1}, r"(?s)target=0.1 does not say of what.*target=\{\"macs\": 0.1\}"),
        ({"prune": "weights"}, "prune='weights'"),
        ({"prune": "units", "rule": "paper"}, "takes no prune="),
        ({"prune": "synapses", "target": {"macs": 0.5}}, r'prune="synapses" does not bring macs down'),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DPAPError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("optimizer", "message"), [(None, "optimizer=None"), ([], "empty list"), (["adam"], "str is no")]
)
def test_optimizers(optimizer: Any, message: str) -> None:
    with pytest.raises(DPAPError, match=message):
        unchecked(mlp(), torch.randn(2, 6), optimizer=optimizer, total_steps=10)


@pytest.mark.parametrize(
    ("example", "message"), [(torch.zeros(0, 6), "holds no sample"), (torch.full((2, 6), torch.nan), "NaN or infinity")]
)
def test_examples(example: Tensor, message: str) -> None:
    model = mlp()
    with pytest.raises(DPAPError, match=message):
        DPAP(model, example, optimizer=torch.optim.SGD(model.parameters(), 0.1), total_steps=10)


class TestWhatMayBePruned:
    @pytest.mark.parametrize("target", [{"macs": 0.5}, {"parameters": 0.5}])
    def test_a_target_of_units_leaves_connections_alone(self, target: dict[str, float]) -> None:
        dev = make(target=target)
        train(dev, 60)
        assert not dev.synapse_masks and all(int((p != 0).sum()) == p.numel() for p in dev.compact().parameters())

    def test_connectivity_named_too_or_asked_for_prunes_both(self) -> None:
        assert make(target={"macs": 0.8, "connectivity": 0.4}).synapse_masks
        assert make(target={"macs": 0.8}, prune="both").synapse_masks

    def test_units_or_synapses_alone(self) -> None:
        units, synapses = (make(target={"connectivity": 0.5}, prune=prune) for prune in ("units", "synapses"))
        train(units, 60), train(synapses, 60)
        assert not units.synapse_masks and not all(bool(a.all()) for a in units.alive.values())
        assert not any(report for report in synapses.survival) and synapses.connectivity() <= 0.5


class TestPassesThatDoNotCount:
    def test_evaluation_is_noted_and_not_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        dev = make(start=0.1)
        with dev.observing():
            dev.model(torch.randn(4, 6))
            dev.model.eval()
            dev.model(torch.randn(4, 6))
            dev.model.train()
        assert dev._engine.window.passes == 1 and "was in evaluation mode" in caplog.text

    def test_evaluation_as_the_rule_is_an_error(self) -> None:
        dev = make()
        dev.model.eval()
        with pytest.raises(DPAPError, match=r"(?s)do not count: the model was in evaluation mode.*model.train\(\)"):
            train(dev, 60)

    def test_what_a_block_saw_that_raised_is_dropped(self) -> None:
        dev = make(start=0.1)
        with pytest.raises(RuntimeError), dev.observing():
            dev.model(torch.randn(4, 6))
            raise RuntimeError("out of memory, say")
        assert dev._engine.window.passes == 0 and not dev._engine.window.sums

    def test_one_bad_batch_that_the_user_skips_spoils_nothing(self) -> None:
        clean, other = make(target={"connectivity": 0.5}), make(target={"connectivity": 0.5})
        train(clean, 20), train(other, 19)
        with other.observing():
            other.model(torch.full((4, 6), torch.inf))
        train(other, 1)
        assert all(torch.equal(clean.survival[name], other.survival[name]) for name in clean.survival)


class TestShortfalls:
    def test_compact_before_the_window_is_over(self, caplog: pytest.LogCaptureFixture) -> None:
        dev = make(target={"connectivity": 0.3})
        train(dev, 10)
        dev.compact()
        assert "dev.step() was called 10 of 60 times" in caplog.text and "(asked for: 0.3000)" in caplog.text

    def test_a_missed_target_is_said_at_the_end(self, caplog: pytest.LogCaptureFixture) -> None:
        dev = make(target={"connectivity": 0.3})
        train(dev, 59)
        dev.target["connectivity"] = 0.01
        caplog.clear()
        train(dev, 1)
        assert "The run is over: the target was missed" in caplog.text

    def test_weights_that_became_nan_after_the_window(self, caplog: pytest.LogCaptureFixture) -> None:
        dev = make(target={"connectivity": 0.3})
        train(dev, 50)
        with torch.no_grad():
            dev.model[2].weight[:] = torch.nan
        dev.compact()
        assert "1 parameters hold NaN or infinity: 2.weight" in caplog.text

    def test_nothing_is_said_of_a_run_that_met_its_target(self, caplog: pytest.LogCaptureFixture) -> None:
        dev = make(target={"connectivity": 0.3}, shrink="never")
        train(dev, 60)
        dev.compact()
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


class TestState:
    @pytest.mark.parametrize(
        "other",
        [{"target": {"connectivity": 0.2}}, {"stop": 0.6}, {"score": "magnitude"}, {"seed": 1}, {"prune": "units"}],
    )
    def test_of_another_run_is_refused(self, other: dict[str, Any]) -> None:
        dev = make(target={"connectivity": 0.3})
        train(dev, 20)
        with pytest.raises(DPAPError, match=rf"of a run with {next(iter(other))} "):
            make(**({"target": {"connectivity": 0.3}} | other)).load_state_dict(dev.state_dict())

    @pytest.mark.parametrize("damage", ["a part is gone", "the network cannot become smaller"])
    def test_a_state_that_cannot_be_loaded_changes_nothing(self, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
        dev, fresh = make(target={"connectivity": 0.3}), make(target={"connectivity": 0.3})
        train(dev, 40)
        state, weights = dev.state_dict(), [p.detach().clone() for p in fresh.model.parameters()]
        if damage == "a part is gone":
            del state["present"]
        else:  # found out last of all, when masks are in place
            shrink, calls = fresh._engine.shrink_to, []

            def fail_once(units: Any) -> None:
                calls.append(units)
                if len(calls) == 1:
                    raise RuntimeError("no memory")
                shrink(units)

            monkeypatch.setattr(fresh._engine, "shrink_to", fail_once)
        before = fresh.state_dict()
        with pytest.raises(DPAPError, match="damaged"):
            fresh.load_state_dict(state)
        assert fresh.steps_taken == 0 and all(map(torch.equal, fresh.model.parameters(), weights))
        for own in ("alive", "synapse_masks", "survival"):
            assert all(torch.equal(v, before[own][k]) for k, v in getattr(fresh, own).items())

    def test_pickling_says_what_to_save(self) -> None:
        dev = make()
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(DPAPError, match=r"(?s)cannot be pickled.*state_dict\(\)"):
                copied(dev)
        pickle.loads(pickle.dumps(dev.model))

    def test_weights_of_the_dense_network_into_a_smaller_one(self) -> None:
        model = mlp()
        dense = copy.deepcopy(model.state_dict())
        dev = make(model, target={"macs": 0.3}, shrink="always")
        train(dev, 60)
        now = model.state_dict()
        with pytest.raises(DPAPError, match=r"(?s)These weights are of the dense network.*0.weight"):
            model.load_state_dict(dense)
        model.load_state_dict(now)


class TestOneOfEach:
    def test_a_second_dpap_on_one_model(self) -> None:
        model = mlp()
        make(model)  # it has not begun, and makes room
        dev = make(model)
        train(dev, 1)
        with pytest.raises(DPAPError, match=r"(?s)Another DPAP prunes this Sequential.*close\(\)"):
            make(model)
        make(copy.deepcopy(model))
        dev.close()
        make(model)

    def test_an_optimizer_that_was_replaced(self) -> None:
        dev = make(target={"connectivity": 0.3})
        train(dev, 10)
        with pytest.raises(DPAPError, match="none of the optimizers given to DPAP makes a step"):
            train(dev, 10, optimizer=torch.optim.SGD(dev.model.parameters(), 0.01))

    def test_steps_that_a_scaler_skips_are_no_replacement(self) -> None:
        dev = make(target={"connectivity": 0.3})
        for _ in range(20):
            with dev.observing():
                dev.model(torch.randn(8, 6))
            dev.step()

    @pytest.mark.parametrize(
        "options", [{"time": "leak"}, {"ema": nn.Linear(2, 2)}, {"target": {"connectivity": 1e-6}}]
    )
    def test_a_refusal_leaves_no_hook_behind(self, options: dict[str, Any]) -> None:
        model = mlp()
        with pytest.raises(DPAPError):
            make(model, **options)
        make(model)


class TestProcesses:
    def test_a_group_that_was_made_too_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dev = make()
        monkeypatch.setattr("dpap.development.guard.world", lambda: (0, 2))
        with pytest.raises(DPAPError, match="There are 2 processes; DPAP was made when there were 1"):
            train(dev, 10)

    def test_the_open_window_of_another_process(self) -> None:
        dev, other = make(start=0.1), make(start=0.1)
        train(dev, 2)
        shared = dev.state_dict()
        other.load_state_dict(shared | {"process": 1, "processes": 2})  # right after a development step all are alike
        train(dev, 1)
        with pytest.raises(DPAPError, match=r"of process 1 of 2 in the middle of a window"):
            other.load_state_dict(dev.state_dict() | {"process": 1, "processes": 2})


def test_activity_whose_sums_are_beyond_float32() -> None:
    dev = make()
    with pytest.raises(DPAPError, match="the activity seen there holds NaN or infinity"):
        for _ in range(10):
            with dev.observing():
                dev.model(torch.full((4, 6), 1e25))
            dev.step()


def test_a_compiled_network_becomes_smaller_once() -> None:
    dev = make(target={"macs": 0.3}, total_steps=200, stop=0.2)
    dev._engine.masks.compiled = True
    widths = []
    for _ in range(60):
        train(dev, 1)
        widths.append(tuple(len(p) for p in dev.model.parameters()))
    assert len(set(widths)) == 2
