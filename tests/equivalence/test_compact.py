"""Masked = compacted: outputs, spikes and counts, for networks whose every group has lost units."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets import ConvNet, SpikingNet, randomised
from torch import Tensor, nn

from dpap import DPAP
from dpap.neurons import SpikingNeuron
from dpap.pruning.compact import compacted
from dpap.pruning.mask import dead_masks
from dpap.pruning.slice import Present


def example(model: nn.Module) -> Tensor:
    return torch.rand(2, 1, 8, 8) if isinstance(model, SpikingNet) else torch.randn(2, 2, 6, 6)


def pruned(model: nn.Module, share: float, seed: int = 0) -> tuple[nn.Module, nn.Module, DPAP]:
    """The masked network and its compacted twin, at random masks that leave `share` of each prunable group."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dev = DPAP(model, example(model).to(next(model.parameters()).dtype), optimizer=optimizer, total_steps=100)
    generator = torch.Generator().manual_seed(seed)
    alive = {}
    for group in dev.graph.groups:
        alive[group.name] = torch.ones(group.units, dtype=torch.bool)
        if group.protected is None:
            keep = min(group.units - 1, max(2, round(share * group.units)))
            gone = torch.randperm(group.units, generator=generator)[keep:]
            alive[group.name][gone] = False
            assert len(gone) >= 1, "every prunable group must have lost one"
    parameters = dict(model.named_parameters())
    present = Present.whole(model, dev.graph)
    small = compacted(model, present, alive)
    with torch.no_grad():
        for name, dead in dead_masks(parameters, present, alive, {}).items():
            parameters[name].masked_fill_(dead, 0)
    dev.close()
    return model, small, dev


def spikes(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    seen: dict[str, Tensor] = {}
    handles = [
        m.register_forward_hook(lambda _, a, out, n=n: seen.__setitem__(n, out.detach()))
        for n, m in model.named_modules()
        if isinstance(m, SpikingNeuron)
    ]
    with torch.no_grad():
        out = model(x)
    for handle in handles:
        handle.remove()
    return seen, out


@pytest.mark.parametrize("share", [0.7, 0.5, 0.2])
@pytest.mark.parametrize("training", [False, True])
def test_spiking_exact_in_float64(share: float, training: bool) -> None:
    model = randomised(SpikingNet(channels=(10, 12, 40)).double())
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(3.0).add_(0.05 / share)  # busy: silence would prove nothing
    masked, small, _ = pruned(model, share)
    masked.train(training), small.train(training)
    x = torch.rand(32, 1, 8, 8, dtype=torch.float64) * 2
    (a, out_a), (b, out_b) = spikes(masked, x), spikes(small, x)
    alive = {"lif1": "conv1", "lif2": "conv2", "lif3": "fc1", "lif4": "fc2"}
    for name in a:
        columns = living_channels(masked, small, alive[name])
        assert torch.equal(a[name][:, :, columns], b[name]), f"spikes of {name}"
    assert torch.equal(out_a, out_b)
    assert out_a.std(0).mean() > 1e-3 * out_a.abs().mean(), "the output hardly depends on the input: nothing is proven"


def living_channels(masked: nn.Module, small: nn.Module, layer: str) -> Tensor:
    """Rows of a masked weight that are not zero; as many as the small one has."""
    weight = masked.get_submodule(layer).weight
    rows = (weight.reshape(len(weight), -1) != 0).any(1).nonzero().reshape(-1)
    assert len(rows) == small.get_submodule(layer).weight.shape[0]
    return rows


@pytest.mark.parametrize("share", [0.7, 0.5, 0.2])
@pytest.mark.parametrize("affine", [True, False])
def test_ordinary(share: float, affine: bool) -> None:
    masked, small, _ = pruned(randomised(ConvNet(affine=affine)), share)
    x = torch.randn(64, 2, 6, 6)
    for training in (False, True):
        a, b = (copy.deepcopy(m).train(training)(x).detach() for m in (masked, small))
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
        assert a.std(0).mean() > 1e-3 * a.abs().mean()


def test_shapes_and_attributes_follow() -> None:
    _, small, _ = pruned(SpikingNet(channels=(10, 12, 40)), 0.5)
    shapes = {n: tuple(p.shape) for n, p in small.state_dict().items()}
    assert shapes["conv1.weight"] == (5, 1, 3, 3) and shapes["conv2.weight"] == (6, 5, 3, 3)
    assert shapes["norm1.running_mean"] == (5,) and shapes["lif2.w"] == (6,)
    assert shapes["fc1.weight"] == (20, 24) and shapes["fc2.weight"] == (5, 20)
    modules = dict(small.named_modules())
    assert (modules["conv2"].in_channels, modules["conv2"].out_channels) == (5, 6)
    assert (modules["fc1"].in_features, modules["fc1"].out_features) == (24, 20)
    assert modules["norm1"].num_features == 5


def test_channels_last_stays() -> None:
    model = ConvNet().to(memory_format=torch.channels_last)
    _, small, _ = pruned(model, 0.5)
    assert small.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_compact_is_independent() -> None:
    model = randomised(ConvNet())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    dev = DPAP(
        model,
        example(model),
        optimizer=optimizer,
        total_steps=40,
        observe_every=1,
        memory=0.1,
        target={"connectivity": 0.4},
    )
    for _ in range(40):
        x = torch.randn(16, 2, 6, 6)
        with dev.observing():
            loss = nn.functional.cross_entropy(model(x), torch.randint(0, 4, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
    before: dict[str, Any] = {k: v.clone() for k, v in model.state_dict().items()}
    small = dev.compact()
    assert type(small) is ConvNet and small.training == model.training
    assert all(p.grad is None for p in small.parameters())
    with torch.no_grad():
        for p in small.parameters():
            p.fill_(1.0)
    small(torch.randn(2, 2, 6, 6))
    assert all((p == 1).all() for p in small.parameters()), "masks of the large network act on the small one"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    model.eval()
    again = dev.compact().eval()
    x = torch.randn(16, 2, 6, 6)
    assert (again(x) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()
    assert any(a.shape != b.shape for a, b in zip(again.parameters(), model.parameters(), strict=True))
