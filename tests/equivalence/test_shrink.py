"""Shrinking inside a run changes no decision and no weight: masked = shrunk."""

from __future__ import annotations

import copy
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import ConvNet, SpikingNet, randomised
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpap import DPAP, DPAPError
from dpap.pruning import shrink as shrinking
from dpap.pruning.shrink import rounded, worthwhile

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.003, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05, eps=1e-6),  # a bias before a norm has rounding for a gradient
}


def batch(step: int, shape: tuple[int, ...] = (2, 6, 6), classes: int = 4) -> tuple[Tensor, Tensor]:
    """Counted: the same step sees the same data, whoever asks."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, *shape, generator=generator, dtype=torch.float64)
    return x, x.flatten(1)[:, :classes].argmax(1)


def developer(model: nn.Module, name: str = "sgd", shape: tuple[int, ...] = (2, 6, 6), **options: Any) -> DPAP:
    parameters = [p for p in model.double().parameters() if p.requires_grad]
    settings: dict[str, Any] = {"total_steps": 100, "target": {"macs": 0.4, "connectivity": 0.2}, "observe_every": 2}
    settings |= {"shrink": "always", **options}
    return DPAP(model, batch(0, shape)[0][:2], optimizer=OPTIMIZERS[name](parameters), **settings)


def train(
    dev: DPAP, steps: int, first: int = 0, ema: AveragedModel | None = None, shape: tuple[int, ...] = (2, 6, 6)
) -> list[Any]:
    reports = []
    for step in range(first, first + steps):
        x, y = batch(step, shape)
        with dev.observing():
            loss = F.cross_entropy(dev.model(x), y)
        dev.optimizers[0].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(dev.model.parameters(), 1.0)
        dev.optimizers[0].step()
        if ema is not None:
            ema.update_parameters(dev.model)
        reports.append(dev.step())
    return [report for report in reports if report is not None]


def average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def spiking_net() -> nn.Module:
    return randomised(SpikingNet(channels=(10, 12, 20)))


def assert_same_weights(never: DPAP, other: DPAP) -> None:
    """All parameters, and the statistics of living units, in dense coordinates: what was cut is zero in the other."""
    present = other._engine.shrinker.present
    here = other.model.state_dict()
    masked = {p.tensor for g in never.graph.groups for p in (*g.producers, *g.consumers) if p.masked}
    for name, tensor in never.model.state_dict().items():
        if name in masked:
            assert (tensor - present.dense(name, here[name])).abs().max() <= 1e-9, name
            continue
        x, y = present.cut(name, tensor), here[name]
        if name.endswith(("running_mean", "running_var")):
            group = next(g for g in never.graph.groups if any(p.tensor == name for p in g.producers))
            living = present.cut(name, never.alive[group.name])
            x, y = x[living], y[living]
        assert (x - y).abs().max() <= 1e-9, name


@pytest.mark.parametrize(
    ("make", "shape", "rule"),
    [(ConvNet, (2, 6, 6), "dpap"), (ConvNet, (2, 6, 6), "paper"), (spiking_net, (1, 8, 8), "dpap")],
)
def test_same_decisions_and_weights(make: Callable[[], nn.Module], shape: tuple[int, ...], rule: str) -> None:
    """Sigmoid and GELU: a dead unit may emit something, which counts nowhere. Time constants are cut, too."""
    runs, width = {}, {}
    options: dict[str, Any] = {"rule": rule} | ({"target": None} if rule == "paper" else {})
    for mode in ("never", "auto", "always"):
        torch.manual_seed(3)
        dev = developer(make(), shape=shape, shrink=mode, **options)
        runs[mode] = dev, train(dev, 60, shape=shape)
        width[mode] = sum(p.numel() for p in dev.model.parameters())
    never, expected = runs["never"]
    for dev, reports in runs.values():
        for one, other in zip(expected, reports, strict=True):
            for what in ("died_units", "died_synapses", "isolated_units"):
                assert getattr(one, what) == getattr(other, what), (what, one.step)
            for group in one.survival:
                assert (one.survival[group] - other.survival[group]).abs().max() < 1e-9
        for mask in never.synapse_masks:
            assert torch.equal(never.synapse_masks[mask], dev.synapse_masks[mask])
        assert_same_weights(never, dev)
    shrinks = [dev._engine.shrinker.shrinks for dev, _ in runs.values()]
    assert shrinks[0] == 0
    if rule == "dpap":
        assert 0 < shrinks[1] < shrinks[2]
        assert any(r.died_units for r in expected) and any(r.died_synapses for r in expected)
        assert width["never"] > width["auto"] >= width["always"]
        assert width["always"] == sum(p.numel() for p in never.compact().parameters())


@pytest.mark.slow
@pytest.mark.parametrize("score", ["norm-scale", "outgoing", "random", "magnitude", "bcm-classical"])
def test_scores_that_read_neighbours(score: str) -> None:
    """Norm scales, outgoing weights and random draws are looked up in the dense network's coordinates."""
    deaths = []
    for mode in ("never", "always"):
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 9, 3), nn.BatchNorm2d(9),
            nn.ReLU(), nn.Flatten(), nn.Linear(36, 4),
        )  # fmt: skip
        dev = developer(model, shrink=mode, score=score, only=["0", "3"], target={"macs": 0.4})
        deaths.append([r.died_units for r in train(dev, 60)])
    assert deaths[0] == deaths[1] and any(deaths[0])


class TestStepsAfterwards:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_twenty_steps_equal_the_masked_network(self, name: str) -> None:
        """With an exponential mean of the weights and clipped gradients."""
        pair = []
        for mode in ("never", "always"):
            torch.manual_seed(5)
            model = ConvNet().double()
            ema = average(model)
            dev = developer(model, name, shrink=mode, ema=ema.module)
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

    def test_schedulers_and_scalers_go_on(self) -> None:
        dev = developer(ConvNet())
        optimizer, scaler = dev.optimizers[0], torch.amp.GradScaler("cpu")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.5)
        for step in range(60):
            x, y = batch(step)
            with dev.observing():
                loss = F.cross_entropy(dev.model(x), y)
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
        dev = developer(ConvNet(), "adam")
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

    def test_hooks_of_the_user_stay_and_masks_hold(self) -> None:
        """A foreign write after the shrink revives nobody."""
        dev = developer(ConvNet())
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
        with torch.no_grad():
            for parameter in dev.model.parameters():
                parameter.fill_(1.0)
        dev.model(batch(0)[0])
        mask = dev._engine.shrinker.present.cut("fc1.weight", dev.synapse_masks["fc1.weight"])
        weight = dev.model.get_parameter("fc1.weight")
        assert (weight[~mask] == 0).all() and (weight[mask] == 1).all() and (~mask).any()

    def test_memory_formats_and_frozen_parameters(self) -> None:
        convs = nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 9, 3), nn.ReLU()
        model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(36, 4)).to(memory_format=torch.channels_last)
        model[5].bias.requires_grad_(False)
        dev = developer(model)
        train(dev, 60)
        weight = dev.model.get_parameter("2.weight")
        assert weight.shape[1] < 12 and weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous() and not dev.model.get_parameter("5.bias").requires_grad


class TestResuming:
    @pytest.mark.parametrize("mode", ["auto", "always"])
    def test_from_a_dense_model(self, mode: str) -> None:
        def fresh() -> tuple[DPAP, AveragedModel]:
            torch.manual_seed(2)
            model = ConvNet().double()
            ema = average(model)
            return developer(model, "adamw", shrink=mode, ema=ema.module), ema

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
        early = developer(ConvNet())
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

    @pytest.fixture
    def dev(self) -> DPAP:
        """The masked network just before it would shrink."""
        dev = developer(ConvNet(), "adam", shrink="never")
        train(dev, 40)
        assert not dev.alive["conv1"].all()
        return dev

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("answer", r"(?s)cannot be made smaller now: it would answer differently.*never"),
            ("state", r"Adam keeps 'odd' of shape \(5,\) for conv2.weight of shape"),
            ("reference", r"(?s)weak reference to conv2.weight.*compile"),
        ],
    )
    def test_a_failed_shrink_leaves_all_as_it_was(
        self, wrong: str, message: str, dev: DPAP, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A weak reference is what a compiled model has."""
        weight, reference = dev.model.conv2.weight, None
        if wrong == "answer":
            monkeypatch.setattr(shrinking, "differing", lambda *_: ("it would answer differently.", ""))
        elif wrong == "state":
            dev.optimizers[0].state[weight]["odd"] = torch.zeros(5)
        else:
            reference = weakref.ref(weight)
        before = {n: (id(t), t.clone()) for n, t in dev.model.state_dict(keep_vars=True).items()}
        optimizer = copy.deepcopy(dev.optimizers[0].state_dict())
        dev._engine.shrink = "always"
        with pytest.raises(DPAPError, match=message):
            dev._engine.shrink_if_due()
        for name, tensor in dev.model.state_dict(keep_vars=True).items():
            assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1]), name
        torch.testing.assert_close(dev.optimizers[0].state_dict(), optimizer, rtol=0, atol=0)
        assert [(m.in_channels, m.out_channels) for m in (dev.model.conv1, dev.model.conv2)] == [(2, 8), (8, 8)]
        assert reference is None or reference() is dev.model.conv2.weight
        dev.model(batch(0)[0]).sum().backward()

    def test_a_hard_coded_size_that_showed_late(self) -> None:
        """The size depends on the values of an attribute that changed after DPAP was made."""

        class Late(nn.Sequential):
            wide = False

            def forward(self, x: Tensor) -> Tensor:
                x = self[1](self[0](x.flatten(1)))
                return self[2](x.view(-1, 12) if self.wide else x)

        dev = developer(Late(nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, 4)), target={"macs": 0.5})
        dev.model.wide = True
        with pytest.raises(DPAPError, match="cannot be made smaller now") as caught:
            train(dev, 60)
        assert "x.view(-1, 12)" in caught.value.where
        assert dev.model.get_parameter("0.weight").shape == (12, 72)

    def test_auto_stays_masked_and_says_so(self, dev: DPAP, caplog: pytest.LogCaptureFixture) -> None:
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
        for total, steps in ((60, 60), (3000, 1500)):
            torch.manual_seed(0)
            dev = developer(ConvNet(), shrink="auto", total_steps=total, development_steps=60, stop=1.0)
            for step in range(steps):
                with dev.observing():
                    dev.model(batch(step % 7)[0])
                dev.step()
            counts.append(dev._engine.shrinker.shrinks)
        assert counts[0] < counts[1]
