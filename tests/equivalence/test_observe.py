"""What `DPAP` observes against a slow account: plain loops over passes, steps, positions and samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from nets import ConvNet, SpikingNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpap import DPAP, DPAPError
from dpap.method.plasticity import WindowSums
from dpap.neurons import LIF, over_time


def make(model: nn.Module, example: Any, **options: Any) -> DPAP:
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    settings: dict[str, Any] = {
        "total_steps": 1000,
        "start": 0.0,
        "stop": 0.5,
        "development_steps": 10,
        "observe_every": 1,
    }
    return DPAP(model, example, optimizer=optimizer, **(settings | options))


def window(dev: DPAP, weight: str, call: int = 0) -> dict[str, np.ndarray]:
    sums = dev._engine.window.sums[(weight, call)]
    assert isinstance(sums, WindowSums)
    return {"n": np.array(sums.samples), **{k: v.numpy() for k, v in sums.sums.items()}}


def slow_trace(steps: Iterable[np.ndarray]) -> np.ndarray:
    """Mean over steps of S^t = S^(t-1) / 2 + o^t, step by step."""
    running, total, count = 0.0, 0.0, 0
    for step in steps:
        running = 0.5 * np.asarray(running) + step
        total = total + running
        count += 1
    return np.asarray(total / count)


def slow_sums(pre: list[np.ndarray], post: list[np.ndarray]) -> dict[str, np.ndarray]:
    """From per-pass (B, I) and (B, O), sample by sample."""
    out: dict[str, Any] = {"n": 0, "y": 0.0, "total_y": 0.0, "total_yy": 0.0, "xy": 0.0, "xyy": 0.0}
    for x_pass, y_pass in zip(pre, post, strict=True):
        for x, y in zip(x_pass, y_pass, strict=True):
            out["n"] += 1
            out["y"] += y
            out["total_y"] += x.sum() * y
            out["total_yy"] += x.sum() * y * y
            out["xy"] += np.outer(y, x)
            out["xyy"] += np.outer(y * y, x)
    return {k: np.asarray(v) for k, v in out.items()}


def agree(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, value in expected.items():
        if name in found:
            np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-12, err_msg=name)


def recorded(model: nn.Module, names: dict[str, str]) -> dict[str, list[np.ndarray]]:
    """What passes through modules, seen by hooks of the test's own: name -> tensors."""
    seen: dict[str, list[np.ndarray]] = {}
    for name, side in names.items():

        def keep(module: nn.Module, args: Any, out: Tensor, name: str = name, side: str = side) -> None:
            tensor = args[0] if side == "input" else out
            seen.setdefault(name, []).append(tensor.detach().double().numpy().copy())

        model.get_submodule(name).register_forward_hook(keep)
    return seen


class TestSpiking:
    @pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 1, 3)])
    def test_every_layer(self, sizes: tuple[int, ...]) -> None:
        """Any batch size: (T*B), (T, B) and constant sites, pooled and flattened exactly as the synapse sees it."""
        model = SpikingNet().double()
        with torch.no_grad():  # busy neurons, so that every sum is there to be wrong
            for p in model.parameters():
                p.mul_(2.0)
        dev = make(model, torch.rand(2, 1, 8, 8, dtype=torch.float64))
        seen = recorded(
            model,
            {"conv1": "input", "lif1": "output", "conv2": "input", "lif2": "output", "fc1": "input", "lif3": "output"}
            | {"fc2": "input", "lif4": "output"},
        )
        for b in sizes:
            with dev.observing():
                model(torch.rand(b, 1, 8, 8, dtype=torch.float64) * 3)

        def spikes(name: str, flat: bool = False) -> list[np.ndarray]:
            passes = []
            for tensor, b in zip(seen[name], sizes, strict=True):
                steps = tensor.reshape(4, b, *tensor.shape[1:]) if flat else tensor
                passes.append(slow_trace(s.mean(axis=(2, 3)) if s.ndim == 4 else s for s in steps))
            return passes

        image = [np.abs(x).mean(axis=(2, 3)) for x in seen["conv1"]]
        layers = {
            "conv1.weight": (image, spikes("lif1")),
            "conv2.weight": (spikes("conv2", flat=True), spikes("lif2")),
            "fc1.weight": (spikes("fc1", flat=False), spikes("lif3")),
            "fc2.weight": (spikes("fc2"), spikes("lif4")),
        }
        for weight, (pre, post) in layers.items():
            assert sum(float(y.sum()) for y in post) > 0, f"{weight} is silent and proves nothing"
            agree(window(dev, weight), slow_sums(pre, post))

    def test_float32_sums_under_autocast(self) -> None:
        model = SpikingNet()
        dev = make(model, torch.rand(2, 1, 8, 8))
        with dev.observing(), torch.autocast("cpu", torch.bfloat16):
            model(torch.rand(3, 1, 8, 8))
        for sums in dev._engine.window.sums.values():
            assert all(t.dtype == torch.float32 for t in sums.sums.values())

    def test_another_number_of_steps_is_refused(self) -> None:
        class Events(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.lif = nn.Linear(4, 6), nn.Linear(6, 2), LIF()

            def forward(self, x: Tensor) -> Tensor:
                return self.b(self.lif(over_time(self.a, x))).mean(0)

        model = Events()
        dev = make(model, torch.rand(4, 3, 4))
        with pytest.raises(DPAPError, match="5 time steps arrive; the example input had 4"), dev.observing():
            model(torch.rand(5, 4, 4))


class TestOrdinary:
    def test_every_layer(self) -> None:
        """Signed activity counts by its size; a convolution by its mean over positions."""
        model = ConvNet().double()
        dev = make(model, torch.rand(2, 2, 6, 6, dtype=torch.float64))
        seen = recorded(
            model,
            {"conv1": "input", "act1": "output", "conv2": "input", "act2": "output", "fc1": "input", "act3": "output"}
            | {"fc2": "output"},
        )
        for b in (4, 3):
            with dev.observing():
                model(torch.randn(b, 2, 6, 6, dtype=torch.float64))

        def means(name: str) -> list[np.ndarray]:
            return [np.abs(t).mean(axis=(2, 3)) if t.ndim == 4 else np.abs(t) for t in seen[name]]

        agree(window(dev, "conv1.weight"), slow_sums(means("conv1"), means("act1")))
        agree(window(dev, "conv2.weight"), slow_sums(means("conv2"), means("act2")))
        agree(window(dev, "fc1.weight"), slow_sums(means("fc1"), means("act3")))
        agree(window(dev, "fc2.weight"), slow_sums(means("act3"), means("fc2")))
        assert "xy" not in window(dev, "conv2.weight"), "a convolution loses units only"

    def test_functional_activations_and_a_reused_module(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.c, self.d = (nn.Linear(5, 5) for _ in range(4))
                self.act = nn.Tanh()

            def forward(self, x: Tensor) -> Tensor:
                x = self.act(self.b(self.act(self.a(x))))
                return self.d(torch.relu(self.c(x)))

        model = Net().double()
        dev = make(model, torch.rand(2, 5, dtype=torch.float64))
        x = torch.randn(6, 5, dtype=torch.float64)
        with dev.observing():
            model(x)
        with torch.no_grad():
            h1 = model.a(x).tanh()
            h2 = model.b(h1).tanh()
            h3 = model.c(h2).relu()
            out = model.d(h3)
        chain = [t.abs().numpy() for t in (x, h1, h2, h3, out)]
        for name, pre, post in zip("abcd", chain[:-1], chain[1:], strict=True):
            agree(window(dev, f"{name}.weight"), slow_sums([pre], [post]))

    def test_a_functional_activation_before_a_flatten(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.c, self.f = nn.Conv2d(1, 3, 3), nn.Linear(12, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.f(torch.relu(self.c(x)).flatten(1))

        model = Net().double()
        dev = make(model, torch.rand(2, 1, 4, 4, dtype=torch.float64))
        x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
        with dev.observing():
            model(x)
        post = (
            model.c(x).relu().flatten(2).sum(2).detach().numpy()
        )  # as the reader receives it: all positions of the channel
        agree(window(dev, "c.weight"), slow_sums([np.abs(x.numpy()).mean(axis=(2, 3))], [post]))


class TestWhichPasses:
    def make(self, **options: Any) -> tuple[nn.Module, DPAP]:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        return model, make(model, torch.rand(2, 3), **options)

    def samples(self, dev: DPAP) -> int:
        return max((s.samples for s in dev._engine.window.sums.values()), default=0)

    def test_the_first_of_a_window_and_then_every_kth(self) -> None:
        model, dev = self.make(total_steps=100, development_steps=10, observe_every=4)
        counts = []
        for _ in range(20):
            with dev.observing():
                model(torch.rand(1, 3))
            counts.append(self.samples(dev))
            dev.step()
        assert counts == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3] * 2

    def test_only_inside_observing(self) -> None:
        model, dev = self.make()
        model(torch.rand(5, 3))
        assert self.samples(dev) == 0
        with dev.observing():
            model(torch.rand(5, 3))
        assert self.samples(dev) == 5

    def test_from_three_memories_before_start_until_stop(self) -> None:
        model, dev = self.make(total_steps=100, development_steps=100, start=0.2, stop=0.4, memory=0.05)
        seen = []
        for step in range(100):
            with dev.observing():
                model(torch.rand(1, 3))
            if self.samples(dev):
                seen.append(step)
            dev.step()
        assert (seen[0], seen[-1]) == (5, 39)

    def test_a_pass_that_raises_counts_for_nothing(self) -> None:
        model, dev = self.make()
        with pytest.raises(RuntimeError), dev.observing():
            model(torch.rand(5, 7))
        with dev.observing():
            model(torch.rand(2, 3))
        assert self.samples(dev) == 2

    def test_activation_checkpointing_is_counted_once(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.act, self.b = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)
                self.saving = False

            def forward(self, x: Tensor) -> Tensor:
                if self.saving:
                    return self.b(checkpoint(lambda t: self.act(self.a(t)), x, use_reentrant=False))
                return self.b(self.act(self.a(x)))

        model = Net()
        dev = make(model, torch.rand(2, 3))
        model.saving = True
        with dev.observing():
            model(torch.rand(6, 3)).sum().backward()
        assert self.samples(dev) == 6

    def test_a_loop_outside_the_model(self) -> None:
        """`forward=` holds the loop over time: the block is the pass."""
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        dev = make(model, torch.rand(2, 3), forward=lambda m, x: m(x) * 2)
        with dev.observing():
            model(torch.rand(7, 3))
        assert self.samples(dev) == 7


def test_in_a_foreign_flat_loop() -> None:
    """The example of the design on a network that knows nothing of us, in somebody else's loop."""
    import dpap

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    x = torch.randn(256, 1, 8, 8)
    y = torch.stack([x[:, 0, :4, :4], x[:, 0, :4, 4:], x[:, 0, 4:, :4], x[:, 0, 4:, 4:]], 1).abs().sum((2, 3)).argmax(1)
    loader = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    criterion = nn.CrossEntropyLoss()
    epochs = 25

    dev = dpap.DPAP(model, loader[0][0], optimizer=optimizer, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, labels in loader:
            with dev.observing():
                loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            dev.step()
    small = dev.compact()

    model.eval(), small.eval()
    assert type(small) is nn.Sequential
    dense = sum(p.numel() for p in dev.masked().parameters())
    assert sum(p.numel() for p in small.parameters()) < 0.8 * dense
    assert sum(p.numel() for p in model.parameters()) < dense, "it shrank while it trained"
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
        assert (small(x).argmax(1) == y).float().mean() > 0.9
    assert not any(h for m in small.modules() for n, h in vars(m).items() if n.endswith("hooks") and h)
