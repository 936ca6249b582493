"""Neurons: potentials and gradients worked by hand, what they keep and copy, and what they refuse."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpap.errors import DPAPError
from dpap.neurons import IF, LIF, PLIF, LeakyIntegrator, Repeat, SpikingNeuron, functional, kernel, over_time
from dpap.neurons.encoding import repeated_from

NEURONS: dict[str, Callable[..., SpikingNeuron]] = {"if": IF, "lif": LIF, "plif": PLIF}


def sequence(*values: float) -> Tensor:
    """(T, 1, 1) in float64."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def run(neuron: SpikingNeuron, *currents: float) -> tuple[list[float], list[float]]:
    """Spikes and potentials after the reset, step by step."""
    spikes, potentials, v = [], [], None
    for x in sequence(*currents):
        spike, v = neuron.step(x, v)
        spikes.append(spike.item())
        potentials.append(v.item())
    return spikes, potentials


# Every case is exact in binary, so potentials are compared exactly.
HAND_WORKED: list[tuple[SpikingNeuron, list[float], list[int], list[float]]] = [
    # h: 0.5, 1.0 (fires at the threshold itself), 0.75, 0.25
    (IF(), [0.5, 0.5, 0.75, -0.5], [0, 1, 0, 0], [0.5, 0.0, 0.75, 0.25]),
    # h: 0.75, 1.5, 1.25, 3.25 (one spike only, the rest stays), 2.25
    (IF(v_reset=None), [0.75, 0.75, 0.75, 3.0, 0.0], [0, 1, 1, 1, 1], [0.75, 0.5, 0.25, 2.25, 1.25]),
    # starts at -1; h: 0, 1.5, -0.5
    (IF(v_reset=-1.0), [1.0, 1.5, 0.5], [0, 1, 0], [0.0, -1.0, -0.5]),
    # h = (v + x) / 2: 0.75, 1.125, 0.75, 0.375
    (LIF(), [1.5, 1.5, 1.5, 0.0], [0, 1, 0, 0], [0.75, 0.0, 0.75, 0.375]),
    # h = 3/4 v + x/4: 1.0, 1.0, 1.75
    (LIF(tau=4.0, v_reset=None), [4.0, 4.0, 7.0], [1, 1, 1], [0.0, 0.0, 0.75]),
    # h = v + (x - (v + 1)) / 2, from -1: -0.5, -0.25, 1.375, -1.0 (rests at -1)
    (LIF(v_reset=-1.0), [1.0, 1.0, 4.0, 0.0], [0, 0, 1, 0], [-0.5, -0.25, -1.0, -1.0]),
    # tau = 1 forgets at once: h = x
    (LIF(tau=1.0), [0.5, 0.75, 1.0], [0, 0, 1], [0.5, 0.75, 0.0]),
    (LIF(v_threshold=0.5), [0.75, 0.75], [0, 1], [0.375, 0.0]),
    (PLIF(), [1.5, 1.5, 1.5, 0.0], [0, 1, 0, 0], [0.75, 0.0, 0.75, 0.375]),  # w = 0 is tau 2
]


@pytest.mark.parametrize(("neuron", "currents", "spikes", "potentials"), HAND_WORKED, ids=lambda value: str(value)[:30])
def test_hand_worked(
    neuron: SpikingNeuron, currents: list[float], spikes: list[float], potentials: list[float]
) -> None:
    assert run(neuron, *currents) == (spikes, potentials)
    assert neuron(sequence(*currents)).flatten().tolist() == spikes


def test_functions_by_hand() -> None:
    x = sequence(1.5, 1.5, 1.5)
    assert functional.if_sequence(x).flatten().tolist() == [1, 1, 1]
    assert functional.lif_sequence(x, tau=2.0).flatten().tolist() == [0, 1, 0]
    assert functional.lif_sequence(x, torch.tensor(2.0)).flatten().tolist() == [0, 1, 0]
    assert functional.plif_sequence(x, torch.tensor(0.0)).flatten().tolist() == [0, 1, 0]
    assert [v.item() for v in functional.if_step(x[0], x[1])] == [1, 0]
    assert [v.item() for v in functional.lif_step(x[0], x[1] - 1, tau=2.0)] == [1, 0]
    assert [v.item() for v in functional.plif_step(x[0], None, torch.tensor(0.0))] == [0, 0.75]


def test_parameters_and_copies() -> None:
    assert list(LIF(learn_slope=True).state_dict()) == ["alpha"]
    neuron = PLIF(init_tau=3.0, channels=4, learn_slope=True)
    assert {name: tuple(p.shape) for name, p in neuron.named_parameters()} == {"alpha": (), "w": (4,)}
    torch.testing.assert_close(neuron.rate(), torch.full((4,), 1 / 3))
    twin = copy.deepcopy(neuron)
    assert twin.firing == neuron.firing and twin.w is not neuron.w
    x = torch.randn(5, 3, 4) + 1
    first = neuron(x)
    neuron(torch.randn(2, 7, 4))
    assert torch.equal(neuron(x), first), "it keeps no state between calls"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_low_precision_keeps_its_state_in_float32(make: Callable[..., SpikingNeuron], dtype: torch.dtype) -> None:
    neuron = make()
    x = (torch.randn(6, 4, 50) + 1).to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    spikes, expected = neuron(x), neuron(wide)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), expected)
    weights = torch.randn_like(expected).to(dtype)
    gradient = torch.autograd.grad((spikes * weights).sum(), x)[0]
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, torch.autograd.grad((expected * weights).sum(), wide)[0].to(dtype))
    assert neuron.step(x[0])[1].dtype == torch.float32


@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_under_autocast(make: Callable[..., SpikingNeuron]) -> None:
    layer, neuron = nn.Linear(8, 8), make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        current = over_time(layer, torch.randn(4, 3, 8) * 2)
        spikes = neuron(current)
        spike, v = neuron.step(current[0])
    assert current.dtype == spikes.dtype == spike.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    assert torch.equal(spikes.float(), neuron(current.float()))
    spikes.float().mean().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


class Allocations(TorchDispatchMode):
    """Elements of every new storage."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self.sizes: list[int] = []
        self.alive: list[Tensor] = []  # or an address would be used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in [*args, *(kwargs or {}).values()] if isinstance(t, Tensor)]
        self.seen.update(tensor.untyped_storage().data_ptr() for tensor in given)
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.seen:
                self.seen.add(tensor.untyped_storage().data_ptr())
                self.alive.append(tensor)
                self.sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_forward_stores_no_membranes(make: Callable[..., SpikingNeuron], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PIECE", 100)
    neuron, x = make(), torch.randn(10, 4, 500)
    with torch.no_grad(), Allocations() as counted:
        neuron(x)
    assert sorted(counted.sizes)[-1] == x.numel()  # the spikes
    assert sum(counted.sizes) <= x.numel() + 500
    x.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        neuron(x)
    large = [tensor for tensor in saved if tensor.numel() > 1]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


def test_constant_input_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PIECE", 100)
    image, num_steps = torch.randn(4, 500, requires_grad=True), 10
    with Allocations() as counted:
        spikes = LIF()(Repeat(num_steps)(image))
    assert [size for size in counted.sizes if size > 400] == [spikes.numel()]
    upstream = torch.randn_like(spikes)
    with Allocations() as counted:
        spikes.backward(upstream)
    assert max(counted.sizes) == image.numel()  # one gradient, not ten
    expanded = torch.randn(4, 500).expand(num_steps, 4, 500)  # by whatever means
    with Allocations() as counted:
        LIF()(expanded)
    assert [size for size in counted.sizes if size > 400] == [spikes.numel()]


def test_double_backward_is_refused() -> None:
    x = torch.randn(3, 2, 2, requires_grad=True)
    with pytest.raises(DPAPError, match="differentiated again"):
        torch.autograd.grad(LIF()(x).sum(), x, create_graph=True)
    torch.autograd.grad(LIF()(x).sum(), x, retain_graph=True)

    spikes, v = [], None  # the way out that the error names
    for x_t in x:
        spike, v = LIF().step(x_t, v)
        spikes.append(spike)
    gradient = torch.autograd.grad(torch.stack(spikes).sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(gradient.sum(), x)[0].abs().sum() > 0


def test_gradient_only_where_asked() -> None:
    neuron = PLIF(learn_slope=True)
    neuron.w.requires_grad_(False)
    neuron(torch.randn(3, 2, 2)).sum().backward()
    assert neuron.w.grad is None
    assert neuron.alpha is not None
    assert neuron.alpha.grad is not None
    assert not IF()(torch.randn(3, 2, 2)).requires_grad


@pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
def test_empty_batch_and_single_step(make: Callable[..., SpikingNeuron]) -> None:
    neuron = make()
    empty = torch.zeros(4, 0, 3, requires_grad=True)
    neuron(empty).sum().backward()
    assert empty.grad is not None and empty.grad.shape == (4, 0, 3)
    x = torch.randn(1, 3, 5, requires_grad=True)
    spikes = neuron(x)
    assert torch.equal(spikes[0], neuron.step(x[0])[0])
    spikes.sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0


def test_repeat_is_a_view() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    repeated = Repeat(5)(x)
    assert repeated.shape == (5, 2, 3, 4)
    assert (repeated.data_ptr(), repeated.stride(0)) == (x.data_ptr(), 0)
    repeated.sum().backward()
    assert x.grad is not None and (x.grad == 5).all()


def test_who_is_taken_for_a_repeated_tensor() -> None:
    """Not one made of it, nor one whose own gradient somebody asked for."""
    image = torch.randn(2, 3, requires_grad=True)
    repeated = Repeat(4)(image)
    assert repeated_from(repeated) is image
    for other in (repeated * 2, repeated.detach(), repeated[:2]):
        assert repeated_from(other) is None
    seen: list[Tensor] = []
    repeated.register_hook(seen.append)  # type: ignore[no-untyped-call]
    assert repeated_from(repeated) is None
    LIF()(repeated).sum().backward()
    assert [tuple(gradient.shape) for gradient in seen] == [(4, 2, 3)]

    kept = Repeat(4)(image)
    kept.retain_grad()
    with torch.no_grad():
        unrelated = Repeat(4)(image)
    assert repeated_from(unrelated.requires_grad_()) is None
    for tensor in (kept, unrelated):
        LIF()(tensor).sum().backward()
        assert tensor.grad is not None and tensor.grad.shape == (4, 2, 3)


def test_over_time_is_a_loop_over_time() -> None:
    layer, x = nn.Conv2d(2, 3, 3, stride=2), torch.randn(4, 5, 2, 9, 9)
    torch.testing.assert_close(over_time(layer, x), torch.stack([layer(x_t) for x_t in x]))
    fast = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 5))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(over_time(layer, fast), over_time(layer, x))
    assert over_time(nn.Flatten(), Repeat(4)(x[0])).shape == (4, 5, 162)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "tau below 1": (lambda: LIF(tau=0.99), "tau"),
    "tau not a number": (lambda: LIF(tau=float("nan")), "tau"),
    "tau infinite": (lambda: LIF(tau=float("inf")), "tau"),
    "tau below 1, step": (lambda: functional.lif_step(torch.zeros(2), None, 0.5), "tau"),
    "tau below 1, sequence": (lambda: functional.lif_sequence(torch.zeros(2, 2), 0.5), "tau"),
    "initial tau 1": (lambda: PLIF(init_tau=1.0), "tau"),
    "tau of an integrator": (lambda: LeakyIntegrator(0.5), "LeakyIntegrator was given tau="),
    "no channels": (lambda: PLIF(channels=0), "channels"),
    "threshold at the reset": (lambda: IF(v_threshold=0.0), "threshold"),
    "threshold below the start": (lambda: IF(v_threshold=-1.0, v_reset=None), "threshold"),
    "threshold not a number": (lambda: IF(v_threshold=float("nan")), "threshold"),
    "reset infinite": (lambda: IF(v_reset=float("-inf")), "reset"),
    "no steps": (lambda: Repeat(0), "steps"),
    "no time axis": (lambda: functional.sequence(torch.zeros(3), None, None, IF().firing), "(T, B"),
    "T = 0": (lambda: IF()(torch.zeros(0, 2, 3)), "(0, 2, 3)"),
    "integers": (lambda: functional.sequence(torch.zeros(3, 2).int(), None, None, IF().firing), "int32"),
    "integer step": (lambda: functional.step(torch.zeros(3).int(), None, None, None, IF().firing), "int32"),
    "wrong channels": (lambda: PLIF(channels=3)(torch.zeros(2, 5, 4)), "(2, 5, 4)"),
    "no channel axis": (lambda: PLIF(channels=5)(torch.zeros(2, 5)), "(2, 5)"),
    "wrong channels, step": (lambda: PLIF(channels=3).step(torch.zeros(5, 4)), "(5, 4)"),
    "w with two axes": (lambda: functional.plif_sequence(torch.zeros(2, 5, 4), torch.zeros(4, 1)), "(4, 1)"),
    "slopes": (lambda: functional.if_sequence(torch.zeros(2, 5), alpha=torch.ones(5)), "(5,)"),
    "slopes, step": (lambda: functional.if_step(torch.zeros(5), alpha=torch.ones(1)), "(1,)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(DPAPError, match=re.escape(message)):
        make()


def test_a_leaky_integrator() -> None:
    """tau = 4 and inputs 4, 8, 0: potentials 1, 1 + 7/4, and 3/4 of that; sums in float32 under autocast."""
    x = torch.tensor([[4.0], [8.0], [0.0]])
    assert LeakyIntegrator(4.0)(x).flatten().tolist() == [1.0, 2.75, 2.0625]
    assert torch.equal(LeakyIntegrator(1.0)(x), x), "without memory it is its input"
    real = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(LeakyIntegrator(3.0), (real,))
    x = torch.rand(4, 2, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        potentials = LeakyIntegrator(2.0)(x)
    assert potentials.dtype == torch.float32
    torch.testing.assert_close(potentials, LeakyIntegrator(2.0)(x.float()), rtol=0, atol=0)
    assert LeakyIntegrator(2.0)(x.double()).dtype == torch.float64
