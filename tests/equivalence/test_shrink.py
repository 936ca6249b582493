"""Shrinking inside a run changes no decision and no weight: masked = shrunk."""

from __future__ import annotations

import copy
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from nets import ConvNet, SpikingNet, randomised
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpap import DPAP, DPAPError
from dpap.data import load_dataset
from dpap.data.spec import unit_range
from dpap.pruning import shrink as shrinking
from dpap.pruning.shrink import rounded, worthwhile
from dpap.recipes import recipe
from dpap.training.run import make_model

MODES = ("never", "auto", "always")
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.003, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05, eps=1e-6),  # a bias before a norm has rounding for a gradient
}


@contextmanager
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def batch(step: int, shape: tuple[int, ...] = (2, 6, 6), classes: int = 4) -> tuple[Tensor, Tensor]:
    """Counted: the same step sees the same data, whoever asks."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, *shape, generator=generator, dtype=torch.float64)
    return x, x.flatten(1)[:, :classes].argmax(1)


def developer(model: nn.Module, make: Callable[[Any], torch.optim.Optimizer], **options: Any) -> DPAP:
    x = batch(0)[0][:2]
    settings: dict[str, Any] = {"total_steps": 100, "target": {"macs": 0.4, "connectivity": 0.2}, "observe_every": 2}
    return DPAP(model, x, optimizer=make(model.parameters()), **(settings | options))


def train(dev: DPAP, steps: int, first: int = 0, ema: AveragedModel | None = None) -> list[Any]:
    reports = []
    for step in range(first, first + steps):
        x, y = batch(step)
        with dev.observing():
            loss = F.cross_entropy(dev.model(x), y)
        dev.optimizers[0].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(dev.model.parameters(), 1.0)
        dev.optimizers[0].step()
        if ema is not None:
            ema.update_parameters(dev.model)
        report = dev.step()
        if report is not None:
            reports.append(report)
    return reports


def average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def dense(dev: DPAP, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state of the model in the shapes of the dense network: what was cut is zero."""
    present = dev._engine.shrinker.present
    return {n: present.dense(n, t.detach()) for n, t in (tensors or dev.model.state_dict()).items()}


def assert_same_weights(a: DPAP, b: DPAP, tolerance: float = 1e-9) -> None:
    """All parameters, and the statistics of living units, in dense coordinates."""
    one, other = dense(a), dense(b)
    gone = b._engine.shrinker.present if b._engine.shrinker.shrinks else a._engine.shrinker.present
    for name in one:
        x, y = gone.cut(name, one[name]), gone.cut(name, other[name])
        if name.endswith(("running_mean", "running_var")):
            group = next(g for g in a.graph.groups if any(p.tensor == name for p in g.producers))
            living = gone.cut(name, a.alive[group.name])
            x, y = x[living], y[living]
        assert (x - y).abs().max() <= tolerance, name
    masked = {p.tensor for g in a.graph.groups for p in (*g.producers, *g.consumers) if p.masked}
    for name in masked & one.keys():
        assert (one[name] - other[name]).abs().max() <= tolerance, f"{name}: a cut entry was not zero in the other one"


class TestSameDecisions:
    @pytest.mark.slow
    def test_the_whole_digits_recipe(self) -> None:
        """Every development step prunes the same, and the weights end equal to 1e-9, in float64."""
        runs = {mode: self.digits(mode, "adamw") for mode in MODES}
        (never, expected), (auto, _), (always, _) = runs["never"], runs["auto"], runs["always"]
        assert any(r.died_units for r in expected) and any(r.died_synapses for r in expected)
        for dev, reports in runs.values():
            assert len(reports) == len(expected)
            for one, other in zip(expected, reports, strict=True):
                assert one.died_units == other.died_units and one.died_synapses == other.died_synapses, one.step
                assert one.isolated_units == other.isolated_units, one.step
            for mask in never.synapse_masks:
                assert torch.equal(never.synapse_masks[mask], dev.synapse_masks[mask])
            assert_same_weights(never, dev)
        assert never._engine.shrinker.shrinks == 0 < auto._engine.shrinker.shrinks < always._engine.shrinker.shrinks
        width = {mode: sum(p.numel() for p in runs[mode][0].model.parameters()) for mode in MODES}
        assert width["never"] > width["auto"] >= width["always"]
        assert width["always"] == sum(p.numel() for p in never.compact().parameters())

    def digits(self, mode: str, name: str) -> tuple[DPAP, list[Any]]:
        config, data = recipe("digits-snn"), load_dataset("digits")
        epochs, size = 6, config.data.batch_size
        images = data.spec.normalized(unit_range(data.train.images)).double()
        steps = len(images) // size
        with in_float64():
            torch.manual_seed(0)
            model = make_model(config, data).double()
        torch.set_num_threads(1)
        optimizer = OPTIMIZERS[name](model.parameters())
        dev = DPAP(
            model,
            images[:2],
            optimizer=optimizer,
            total_steps=epochs * steps,
            target={"connectivity": 0.10, "macs": 0.5},
            shrink=mode,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
        reports = []
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
            for part in order[: steps * size].split(size):
                with dev.observing():
                    loss = F.cross_entropy(model(images[part]), data.train.labels[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                report = dev.step()
                if report is not None:
                    reports.append(report)
        return dev, reports

    @pytest.mark.parametrize("rule", ["dpap", "paper"])
    def test_rules_and_signed_activities(self, rule: str) -> None:
        """Sigmoid and GELU: a dead unit may emit something, which counts nowhere."""
        runs = []
        for mode in ("never", "always"):
            torch.manual_seed(3)
            options: dict[str, Any] = {"rule": rule, "target": None} if rule == "paper" else {}
            dev = developer(ConvNet().double(), OPTIMIZERS["sgd"], shrink=mode, **options)
            runs.append((dev, train(dev, 60)))
        (never, expected), (always, reports) = runs
        for one, other in zip(expected, reports, strict=True):
            assert one.died_units == other.died_units and one.died_synapses == other.died_synapses
            for group in one.survival:
                assert (one.survival[group] - other.survival[group]).abs().max() < 1e-9
        assert_same_weights(never, always)
        assert always._engine.shrinker.shrinks or rule == "paper"

    @pytest.mark.slow
    def test_scores_that_read_neighbours(self) -> None:
        """Norm scales, outgoing weights and random draws are looked up in the dense network's coordinates."""
        for score in ("norm-scale", "outgoing", "random", "magnitude", "bcm-classical"):
            deaths = []
            for mode in ("never", "always"):
                torch.manual_seed(3)
                model = nn.Sequential(
                    nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 9, 3), nn.BatchNorm2d(9),
                    nn.ReLU(), nn.Flatten(), nn.Linear(36, 4),
                ).double()  # fmt: skip
                options: dict[str, Any] = {"shrink": mode, "score": score, "only": ["0", "3"], "target": {"macs": 0.4}}
                dev = developer(model, OPTIMIZERS["sgd"], **options)
                deaths.append([r.died_units for r in train(dev, 60)])
            assert deaths[0] == deaths[1] and any(deaths[0]), score


class TestStepsAfterwards:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_twenty_steps_equal_the_masked_network(self, name: str) -> None:
        """With an exponential mean of the weights and clipped gradients."""
        pair = []
        for mode in ("never", "always"):
            torch.manual_seed(5)
            model = ConvNet().double()
            ema = average(model)
            dev = developer(model, OPTIMIZERS[name], shrink=mode, ema=ema.module)
            train(dev, 50, ema=ema)
            shrinks = dev._engine.shrinker.shrinks
            train(dev, 20, first=50, ema=ema)
            pair.append((dev, ema, shrinks))
        (never, mean, _), (always, shrunk_mean, shrinks) = pair
        assert shrinks > 0 and always._engine.shrinker.shrinks == shrinks, "all shrinks lie before the steps compared"
        assert_same_weights(never, always)
        here = dict(shrunk_mean.module.named_parameters())
        for parameter, tensor in mean.module.named_parameters():
            assert (tensor - always._engine.shrinker.present.dense(parameter, here[parameter])).abs().max() <= 1e-9
        x = batch(999)[0]
        with torch.no_grad():
            mean.eval(), shrunk_mean.eval()
            assert torch.allclose(mean(x), shrunk_mean(x), rtol=0, atol=1e-9)

    def test_every_living_parameter_is_in_the_optimizer_and_moves(self) -> None:
        dev = developer(ConvNet().double(), OPTIMIZERS["adam"], shrink="always")
        before = {name: id(p) for name, p in dev.model.named_parameters()}
        train(dev, 60)
        assert dev._engine.shrinker.shrinks > 0
        assert {name: id(p) for name, p in dev.model.named_parameters()} == before
        inside = {id(p) for group in dev.optimizers[0].param_groups for p in group["params"]}
        old = {name: p.detach().clone() for name, p in dev.model.named_parameters()}
        train(dev, 1, first=60)
        for name, parameter in dev.model.named_parameters():
            assert id(parameter) in inside
            assert set(dev.optimizers[0].state[parameter]) >= {"exp_avg", "exp_avg_sq"}
            assert dev.optimizers[0].state[parameter]["exp_avg"].shape == parameter.shape
            assert (parameter != old[name]).any(), name

    def test_schedulers_and_scalers_go_on(self) -> None:
        model = ConvNet().double()
        dev = developer(model, OPTIMIZERS["sgd"], shrink="always")
        optimizer = dev.optimizers[0]
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
        scaler = torch.amp.GradScaler("cpu")
        for step in range(60):
            x, y = batch(step)
            with dev.observing():
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            dev.step()
        assert dev._engine.shrinker.shrinks > 0
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5**6)


class TestAUsersLoop:
    def test_losses_that_are_kept(self) -> None:
        """The last training loss, and a validation loss whose graph was never used."""
        torch.manual_seed(0)
        dev = developer(ConvNet().double(), OPTIMIZERS["adam"], shrink="always")
        kept, stale = [], 0
        for step in range(60):
            x, y = batch(step)
            with dev.observing():
                loss = F.cross_entropy(dev.model(x), y)
            dev.optimizers[0].zero_grad()
            loss.backward()
            dev.optimizers[0].step()
            validation = F.cross_entropy(dev.model(x), y)
            shrinks = dev._engine.shrinker.shrinks
            dev.step()
            if dev._engine.shrinker.shrinks > shrinks:
                stale += 1
                with pytest.raises(DPAPError, match="from before the network became smaller"):
                    validation.backward(retain_graph=True)
            kept += [loss, validation]
        assert stale > 1

    def test_hooks_of_the_user_stay(self) -> None:
        dev = developer(ConvNet().double(), OPTIMIZERS["sgd"], shrink="always")
        calls: list[str] = []
        weight = dev.model.get_parameter("conv1.weight")
        weight.register_hook(lambda gradient: calls.append("gradient"))
        weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
        dev.model.get_submodule("conv1").register_forward_hook(lambda *_: calls.append("forward"))
        train(dev, 60)
        assert weight.shape[0] < 8
        calls.clear()
        train(dev, 1, first=60)
        assert calls.count("gradient") == calls.count("accumulated") == calls.count("forward") == 1

    def test_masks_hold_in_what_is_left(self) -> None:
        """A foreign write after the shrink revives nobody."""
        dev = developer(ConvNet().double(), OPTIMIZERS["sgd"], shrink="always")
        train(dev, 60)
        assert dev._engine.shrinker.shrinks > 0
        with torch.no_grad():
            for parameter in dev.model.parameters():
                parameter.fill_(1.0)
        dev.model(batch(0)[0])
        mask = dev._engine.shrinker.present.cut("fc1.weight", dev.synapse_masks["fc1.weight"])
        weight = dev.model.get_parameter("fc1.weight")
        assert (weight[~mask] == 0).all() and (weight[mask] == 1).all() and (~mask).any()

    def test_memory_formats_and_frozen_parameters(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
        )
        model = model.double().to(memory_format=torch.channels_last)
        model[5].bias.requires_grad_(False)
        dev = developer(model, lambda p: torch.optim.SGD([q for q in p if q.requires_grad], 0.05), shrink="always")
        train(dev, 60)
        weight = dev.model.get_parameter("2.weight")
        assert weight.shape[1] < 12 and weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous() and not dev.model.get_parameter("5.bias").requires_grad

    def test_tied_parameters_stay_tied(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(72, 10), nn.Linear(10, 10)
                self.third, self.act = nn.Linear(10, 10), nn.ReLU()
                self.third.weight = self.second.weight
                self.out = nn.Linear(10, 4)

            def forward(self, x: Tensor) -> Tensor:
                x = self.act(self.first(x.flatten(1)))
                x = x + self.act(self.second(x))
                return self.out(x + self.act(self.third(x)))

        dev = developer(Tied().double(), OPTIMIZERS["adam"], shrink="always", target={"macs": 0.5})
        train(dev, 60)
        second, third = dev.model.get_submodule("second"), dev.model.get_submodule("third")
        assert second.weight is third.weight and second.weight.shape[0] < 10
        assert second.in_features == third.in_features == second.weight.shape[1] == third.out_features

    def test_a_spiking_network(self) -> None:
        runs = []
        for mode in ("never", "always"):
            torch.manual_seed(1)
            model = randomised(SpikingNet(channels=(10, 12, 20)).double())
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            x = torch.rand(8, 1, 8, 8, dtype=torch.float64)
            dev = DPAP(model, x, optimizer=optimizer, total_steps=60, target={"macs": 0.4}, shrink=mode)
            for _ in range(40):
                with dev.observing():
                    loss = model(x).square().mean() + model(x).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                dev.step()
            runs.append(dev)
        assert runs[1]._engine.shrinker.shrinks > 0
        assert runs[1].model.get_submodule("lif2").w.shape[0] == int(runs[1].alive["conv2"].sum()) < 12
        assert_same_weights(*runs)


class TestResuming:
    @pytest.mark.parametrize("mode", ["auto", "always"])
    def test_from_a_dense_model(self, mode: str) -> None:
        def fresh() -> tuple[DPAP, AveragedModel]:
            torch.manual_seed(2)
            model = ConvNet().double()
            ema = average(model)
            return developer(model, OPTIMIZERS["adamw"], shrink=mode, ema=ema.module), ema

        whole, mean = fresh()
        train(whole, 80, ema=mean)
        first, first_mean = fresh()
        train(first, 40, ema=first_mean)
        assert first._engine.shrinker.shrinks > 0
        parts = (first, first.model, first.optimizers[0], first_mean)
        saved = [copy.deepcopy(part.state_dict()) for part in parts]
        second, second_mean = fresh()
        for part, state in zip((second, second.model, second.optimizers[0], second_mean), saved, strict=True):
            part.load_state_dict(state)
        train(second, 40, first=40, ema=second_mean)
        for one, other in ((whole.model, second.model), (mean, second_mean)):
            for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
                assert torch.equal(a, b), name

    @pytest.mark.slow
    def test_a_wider_state_is_refused(self) -> None:
        early = developer(ConvNet().double(), OPTIMIZERS["sgd"], shrink="always")
        state = early.state_dict()
        train(early, 60)
        before = copy.deepcopy(early.model.state_dict())
        with pytest.raises(DPAPError, match="of a wider network: conv1 has units there that were cut here"):
            early.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(before.values(), early.model.state_dict().values(), strict=True))


class TestRefused:
    @pytest.mark.parametrize("name", ["LBFGS", "Adafactor", "Muon"])
    def test_optimizers_that_mix_entries(self, name: str) -> None:
        model = nn.Sequential(nn.Linear(72, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
        make = lambda: getattr(torch.optim, name)(model.parameters())  # noqa: E731
        with pytest.raises(DPAPError, match=f"{name} updates each entry from others"):
            DPAP(model, torch.randn(2, 72), optimizer=make(), total_steps=100)
        DPAP(model, torch.randn(2, 72), optimizer=make(), total_steps=100, shrink="never").close()

    def everything(self, dev: DPAP) -> list[Any]:
        model = {n: (id(t), t.clone()) for n, t in dev.model.state_dict(keep_vars=True).items()}
        optimizer = copy.deepcopy(dev.optimizers[0].state_dict())
        return [model, optimizer, [(m.in_channels, m.out_channels) for m in (dev.model.conv1, dev.model.conv2)]]

    def unchanged(self, dev: DPAP, before: list[Any]) -> None:
        after = self.everything(dev)
        for name, (identity, tensor) in before[0].items():
            assert after[0][name][0] == identity and torch.equal(after[0][name][1], tensor), name
        torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
        assert after[2] == before[2]

    def until_the_first_deaths(self, dev: DPAP) -> None:
        """The masked network just before it would shrink."""
        dev._engine.shrink = "never"
        train(dev, 40)
        assert not dev.alive["conv1"].all()
        dev._engine.shrink = "always"

    def test_a_failed_shrink_leaves_all_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dev = developer(ConvNet().double(), OPTIMIZERS["adam"])
        self.until_the_first_deaths(dev)
        before = self.everything(dev)
        monkeypatch.setattr(shrinking, "differing", lambda *_: ("it would answer differently.", ""))
        with pytest.raises(DPAPError, match=r"(?s)cannot be made smaller now: it would answer differently.*never"):
            dev._engine.shrink_if_due()
        self.unchanged(dev, before)

    def test_state_that_does_not_fit(self) -> None:
        dev = developer(ConvNet().double(), OPTIMIZERS["adam"])
        self.until_the_first_deaths(dev)
        dev.optimizers[0].state[dev.model.conv2.weight]["odd"] = torch.zeros(5)
        before = self.everything(dev)
        with pytest.raises(DPAPError, match=r"Adam keeps 'odd' of shape \(5,\) for conv2.weight of shape"):
            dev._engine.shrink_if_due()
        self.unchanged(dev, before)

    def test_a_weak_reference_as_of_a_compiled_model(self) -> None:
        dev = developer(ConvNet().double(), OPTIMIZERS["adam"])
        self.until_the_first_deaths(dev)
        reference = weakref.ref(dev.model.conv2.weight)
        before = self.everything(dev)
        with pytest.raises(DPAPError, match=r"(?s)weak reference to conv2.weight.*compile"):
            dev._engine.shrink_if_due()
        self.unchanged(dev, before)
        assert reference() is dev.model.conv2.weight
        dev.model(batch(0)[0]).sum().backward()

    def test_a_hard_coded_size_that_showed_late(self) -> None:
        """The size depends on the values of an attribute that changed after DPAP was made."""

        class Late(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.act, self.out = nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, 4)
                self.wide = False

            def forward(self, x: Tensor) -> Tensor:
                x = self.act(self.first(x.flatten(1)))
                return self.out(x.view(-1, 12) if self.wide else x)

        dev = developer(Late().double(), OPTIMIZERS["sgd"], shrink="always", target={"macs": 0.5})
        dev.model.wide = True
        with pytest.raises(DPAPError, match="cannot be made smaller now") as caught:
            train(dev, 60)
        assert "x.view(-1, 12)" in caught.value.where
        assert dev.model.get_parameter("first.weight").shape == (12, 72)

    def test_auto_stays_masked_and_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        dev = developer(ConvNet().double(), OPTIMIZERS["adam"])
        self.until_the_first_deaths(dev)
        dev._engine.shrink = "auto"
        reference = weakref.ref(dev.model.conv2.weight)
        train(dev, 20, first=40)
        assert dev.model.conv2.weight.shape == (8, 8, 3, 3) and reference() is not None
        assert caplog.text.count("Dead units stay as zeros until compact()") == 1
        assert sum(p.numel() for p in dev.compact().parameters()) < sum(p.numel() for p in dev.model.parameters())

    def test_wrapped_models(self) -> None:
        model = ConvNet().double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        x = batch(0)[0]
        with pytest.raises(DPAPError, match=r"(?s)compiled.*before torch.compile"):
            DPAP(torch.compile(model, backend="eager"), x, optimizer=optimizer, total_steps=10)
        with pytest.raises(DPAPError, match=r"(?s)several processes.*model\.module"):
            DPAP(nn.DataParallel(model), x, optimizer=optimizer, total_steps=10)

    @pytest.mark.slow
    def test_a_model_that_was_compiled_afterwards(self) -> None:
        """It shrinks once, after the last development step, since each width is compiled anew. In a process of its own:
        the shape checker does not compile."""
        done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["[30]", "True"]


COMPILED = """
import logging, torch
from torch import nn
from dpap import DPAP

logging.basicConfig()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
dev = DPAP(model, torch.randn(2, 8), optimizer=optimizer, total_steps=60, target={"macs": 0.4})
compiled = torch.compile(model, backend="aot_eager")
widths = []
for step in range(60):
    x = torch.randn(16, 8)
    with dev.observing():
        loss = nn.functional.cross_entropy(compiled(x), x[:, :3].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    width = model[0].weight.shape[0]
    dev.step()
    if model[0].weight.shape[0] < width:
        widths.append(step + 1)
print(widths, model[0].weight.shape[0] < 64)
"""


class TestPolicy:
    def test_worth_it(self) -> None:
        assert worthwhile(100.0, 90.0, passes_left=101) and not worthwhile(100.0, 90.0, passes_left=100)
        assert not worthwhile(100.0, 100.0, passes_left=1e9)

    def test_rounding_keeps_the_first_dead(self) -> None:
        alive = {"small": torch.arange(10) > 4, "large": torch.arange(70) > 50}
        here = {name: torch.ones_like(living) for name, living in alive.items()}
        units = rounded(alive, here)
        assert torch.equal(units["small"], alive["small"])
        assert units["large"].nonzero().reshape(-1).tolist() == [0, 1, 2, 3, 4, *range(51, 70)]
        here["large"][:3] = False
        assert rounded(alive, here)["large"].nonzero().reshape(-1).tolist() == [3, 4, 5, 6, 7, *range(51, 70)]
        here["large"] = alive["large"]
        assert torch.equal(rounded(alive, here)["large"], alive["large"]), "what was cut does not come back"

    @pytest.mark.slow
    def test_auto_waits_until_it_pays(self) -> None:
        """Late in a run nothing is worth a shrink; early much is."""
        counts = []
        for total in (60, 3000):
            torch.manual_seed(0)
            dev = developer(ConvNet().double(), OPTIMIZERS["sgd"], total_steps=total, development_steps=60, stop=1.0)
            for step in range(total if total == 60 else 1500):
                with dev.observing():
                    dev.model(batch(step % 7)[0])
                dev.step()
            counts.append(dev._engine.shrinker.shrinks)
        assert counts[0] < counts[1] and counts[1] > 0
