"""Neurons: one node for T steps = T steps one by one = a plain loop written here = the exported program.

The reference is a loop over time and autograd; a spike is a step with a primitive's gradient: step + (g - g.detach()).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpap.neurons import (
    IF,
    LIF,
    PLIF,
    ArcTan,
    QuadraticGate,
    Rectangular,
    Repeat,
    Sigmoid,
    SpikingNeuron,
    kernel,
    over_time,
)

Primitive = Callable[[Tensor, Tensor], Tensor]


def triangle(x: Tensor, a: Tensor) -> Tensor:
    left = 0.5 * (1 + a * x).clamp(min=0) ** 2
    right = 1 - 0.5 * (1 - a * x).clamp(min=0) ** 2
    return torch.where(x < 0, left, right)


PRIMITIVES: dict[type, Primitive] = {
    ArcTan: lambda x, a: torch.atan(math.pi / 2 * a * x) / math.pi + 0.5,
    QuadraticGate: triangle,
    Sigmoid: lambda x, a: 1 / (1 + torch.exp(-a * x)),
    Rectangular: lambda x, a: (a * x + 0.5).clamp(0, 1),
}


def reference(neuron: SpikingNeuron, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Spikes of a plain loop, and the leaves whose gradients are compared: the input, then the neuron's parameters."""
    firing = neuron.firing
    g_of = PRIMITIVES[type(firing.surrogate)]
    alpha = torch.tensor(firing.surrogate.alpha, dtype=x.dtype) if neuron.alpha is None else neuron.alpha
    k: Any = None
    if isinstance(neuron, LIF):
        k = 1 / neuron.tau
    elif isinstance(neuron, PLIF):
        k = 1 / (1 + torch.exp(-neuron.w))
        if k.ndim:
            k = k.reshape(1, -1, *[1] * (x.ndim - 3))
    rest = firing.v_reset or 0.0
    v = torch.full_like(x[0], rest)
    spikes = []
    for x_t in x:
        h = v + x_t if k is None else v + k * (x_t - (v - rest))
        g = g_of(h - firing.v_threshold, alpha)
        s = (h >= firing.v_threshold).to(x.dtype) + (g - g.detach())
        fired = s.detach() if firing.detach_reset else s
        v = h - firing.v_threshold * fired if firing.v_reset is None else h * (1 - fired) + firing.v_reset * fired
        spikes.append(s)
    return torch.stack(spikes), [x, *neuron.parameters()]


def assert_equal_to_reference(neuron: SpikingNeuron, x: Tensor, arranged: Tensor | None = None) -> None:
    """Spikes equal, and the gradients of everything within 1e-12 of their size; `arranged` is `x` through some view."""
    given = x if arranged is None else arranged
    spikes = neuron(given)
    expected, leaves = reference(neuron, given.clone())
    assert torch.equal(spikes, expected)
    assert 0.02 < spikes.mean() < 0.98
    upstream = torch.randn_like(expected)
    got = torch.autograd.grad(spikes, [x, *leaves[1:]], upstream, retain_graph=True)
    wanted = torch.autograd.grad(expected, [x, *leaves[1:]], upstream)
    for actual, want in zip(got, wanted, strict=True):
        assert want.abs().max() > 1e-6
        assert (actual - want).abs().max() <= 1e-12 * want.abs().max().clamp(min=1)


KINDS: dict[str, Callable[..., SpikingNeuron]] = {
    "IF": IF,
    "LIF": lambda **options: LIF(2.7, **options),
    "LIF, tau 1": lambda **options: LIF(1.0, **options),
    "PLIF": lambda **options: PLIF(1.6, **options),
    "PLIF, channels": lambda **options: PLIF(2.5, 3, **options),
}
RESETS: dict[str, dict[str, Any]] = {
    f"{name}{', detached' * detached}": {"v_reset": v_reset, "detach_reset": detached}
    for name, v_reset in (("hard", 0.0), ("hard, -0.3", -0.3), ("soft", None))
    for detached in (False, True)
}


def make(kind: str, **options: Any) -> SpikingNeuron:
    neuron = KINDS[kind](**{"v_threshold": 0.8, "surrogate": ArcTan(1.3), **options}).double()
    if isinstance(neuron, PLIF):
        neuron.w.data.add_(torch.randn_like(neuron.w) * 0.5)
    return neuron


def current(*shape: int) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * 1.2 + 0.4).requires_grad_()


@pytest.fixture(params=[7, 65536], ids=["many pieces", "one piece"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PIECE", request.param)


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("learn_slope", [False, True], ids=["fixed slope", "learned slope"])
@pytest.mark.parametrize("surrogate", PRIMITIVES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_autograd_through_a_plain_loop(
    kind: str, reset: str, surrogate: type, learn_slope: bool
) -> None:
    neuron = make(kind, surrogate=surrogate(1.3), learn_slope=learn_slope, **RESETS[reset])
    assert_equal_to_reference(neuron, current(6, 4, 3, 2, 3))


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("num_steps", [1, 2, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_steps(kind: str, num_steps: int) -> None:
    assert_equal_to_reference(make(kind, learn_slope=True), current(num_steps, 20, 3))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    "time inside": lambda x: x.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),
    "batch inside": lambda x: x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3),
    "every second step": lambda x: x.repeat_interleave(2, 0)[::2],
    "a slice": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "expanded channel": lambda x: x[:, :, :1].expand(-1, -1, 3, -1, -1),
    "constant": lambda x: x[0].expand(5, -1, -1, -1, -1),
    "repeated": lambda x: Repeat(5)(x[0]),
    "repeated, channels last": lambda x: Repeat(5)(x[0].contiguous(memory_format=torch.channels_last)),
    "repeated slice": lambda x: Repeat(5)(x[0, ..., 1:]),
}


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_in_memory(kind: str, layout: str) -> None:
    """Channels-last stays so, with the steps folded into the batch as well."""
    x = current(6, 4, 3, 2, 3)
    given = LAYOUTS[layout](x)
    assert_equal_to_reference(make(kind, learn_slope=layout == "repeated"), x, given)
    if layout in ("contiguous", "channels last", "repeated, channels last"):
        spikes = LIF()(given)
        assert spikes.stride()[1:] == given.stride()[1:]
        expected = torch.contiguous_format if layout == "contiguous" else torch.channels_last
        assert spikes.flatten(0, 1).is_contiguous(memory_format=expected)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_the_upstream_gradient(kind: str) -> None:
    neuron, x = make(kind), current(6, 4, 3, 2, 3)
    weights = torch.randn(6, 4, 3, 2, 3, dtype=torch.float64)
    for upstream in (
        LAYOUTS["channels last"](weights),
        weights[0].expand(6, -1, -1, -1, -1),  # what a mean over time sends
        torch.ones((), dtype=torch.float64).expand(6, 4, 3, 2, 3),  # what a sum sends
    ):
        found, expected = (torch.autograd.grad(neuron(x), x, up)[0] for up in (upstream, upstream.contiguous()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_steps_at_once_equal_one_by_one(kind: str, reset: str, dtype: torch.dtype) -> None:
    """Bit for bit in float32 too: both forms do the same arithmetic."""
    neuron = make(kind, learn_slope=True, **RESETS[reset]).to(dtype)
    x = current(30, 8, 3, 5).detach().to(dtype).requires_grad_()
    spikes, v = [], None
    for x_t in x:
        spike, v = neuron.step(x_t, v)
        spikes.append(spike)
    at_once, one_by_one = neuron(x), torch.stack(spikes)
    assert torch.equal(at_once, one_by_one)
    assert 0.02 < at_once.mean() < 0.98
    leaves, upstream = [x, *neuron.parameters()], torch.randn_like(at_once)
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-12}[dtype]
    for got, want in zip(
        torch.autograd.grad(at_once, leaves, upstream), torch.autograd.grad(one_by_one, leaves, upstream), strict=True
    ):
        assert (got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_threads_and_modes_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    neuron, x = make(kind), current(4, 64, 3, 7, 7)
    upstream = torch.randn_like(x)
    results = []
    for piece, threads in product((64, 1000, 65536), (1, 2)):
        monkeypatch.setattr(kernel, "PIECE", piece)
        torch.set_num_threads(threads)
        spikes = neuron(x)
        results.append((spikes, torch.autograd.grad(spikes, x, upstream)[0]))
    for spikes, gradient in results[1:]:
        assert torch.equal(spikes, results[0][0])
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=1e-13)
    with torch.no_grad():
        assert torch.equal(neuron(x), results[0][0])
    with torch.inference_mode():
        assert torch.equal(neuron(x.detach().clone()), results[0][0])


class Net(nn.Module):
    """A convolution, the image repeated behind it, neurons of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.repeat, self.first = nn.Conv2d(1, 3, 3, padding=1), Repeat(5), PLIF(channels=3)
        self.second, self.fc, self.third = IF(v_reset=None), nn.Linear(48, 6), LIF(v_reset=-0.2, learn_slope=True)

    def forward(self, image: Tensor) -> Tensor:
        x = self.second(self.first(self.repeat(self.conv(image))))
        return self.third(over_time(self.fc, x.flatten(2)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("grad", [False, True])
def test_exported_program_gives_the_same_spikes(grad: bool) -> None:
    """And without gradients it is lean."""
    net, image = Net().double(), torch.randn(7, 1, 4, 4, dtype=torch.float64)
    for parameter in (net.conv.weight, net.fc.weight, net.fc.bias):
        parameter.data.mul_(6)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(net, (image[:3],), dynamic_shapes=({0: batch},))
    spikes = net(image)
    assert torch.equal(program.module()(image), spikes)
    assert 0.02 < spikes.mean() < 0.98
    used = " ".join(str(node.target) for node in program.graph.nodes)
    assert grad or ("lerp" in used and "atan" not in used and "detach" not in used)


COMPILED = """
import torch
from torch import nn
from dpap.neurons import IF, LIF, PLIF, Repeat

torch.manual_seed(0)
neurons = PLIF(init_tau=1.5, learn_slope=True), IF(v_reset=None), LIF(v_reset=-0.2, v_threshold=0.4)
net = nn.Sequential(nn.Linear(6, 8), Repeat(5), *neurons).double()
net[0].weight.data.mul_(6)
x = torch.randn(7, 6, dtype=torch.float64)
eager, fast = net(x), torch.compile(net, backend="aot_eager", fullgraph=True)(x)
assert torch.equal(fast, eager) and 0.02 < eager.mean() < 0.98
upstream, leaves = torch.randn_like(eager), list(net.parameters())
for got, want in zip(torch.autograd.grad(fast, leaves, upstream), torch.autograd.grad(eager, leaves, upstream)):
    assert want.abs().max() > 1e-6 and (got - want).abs().max() <= 1e-12 * want.abs().max().clamp(min=1)
print("equal")
"""


@pytest.mark.slow
def test_compiled_equals_eager_with_gradients(repository: Path) -> None:
    """In a process of its own: what checks shapes in the tests wraps functions as the compiler cannot follow."""
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    command = [sys.executable, "-c", COMPILED]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "equal", run.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str, reset: str) -> None:
    neuron = make(kind, learn_slope=True, **RESETS[reset]).cuda()
    assert_equal_to_reference(neuron, current(6, 4, 3, 2, 3).detach().cuda().requires_grad_())
