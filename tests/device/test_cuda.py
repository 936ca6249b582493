"""What must hold on a GPU as on the CPU. Each test runs on the CPU too, so that it is known to be right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from nets import SpikingNet
from torch import nn

from dpap import DPAP

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS = 30


def made(device: str, dtype: torch.dtype = torch.float64, **options: Any) -> DPAP:
    torch.manual_seed(0)
    model = SpikingNet(3).to(device, dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)  # untrained, it would be silent
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = {"target": {"connectivity": 0.4}, "memory": 0.05, "observe_every": 1, "stop": 0.8} | options
    example = torch.rand(4, 1, 8, 8, dtype=dtype, device=device)
    return DPAP(model, example, optimizer=optimizer, total_steps=STEPS, development_steps=STEPS, **settings)


def train(dev: DPAP, until: int = STEPS, precision: torch.dtype | None = None) -> None:
    """Batches are drawn on the CPU, so that every device sees the same."""
    parameter = next(dev.model.parameters())
    scaler = torch.amp.GradScaler(parameter.device.type, enabled=precision == torch.float16)
    for step in range(dev.steps_taken, until):
        x = torch.rand(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step)).to(parameter)
        cast = torch.autocast(parameter.device.type, precision, enabled=precision is not None)
        with dev.observing(), cast:
            out = dev.model(x)
        loss = nn.functional.cross_entropy(out.float(), torch.arange(8, device=x.device) % 5)
        dev.optimizers[0].zero_grad()
        scaler.scale(loss).backward()
        scaler.step(dev.optimizers[0])
        scaler.update()
        dev.step()


@pytest.mark.gpu
def test_cuda_prunes_what_the_cpu_prunes() -> None:
    here, there = made("cpu", shrink="never"), made("cuda", shrink="never")
    there.model.load_state_dict(here.model.state_dict())
    train(here, 8), train(there, 8)  # spikes flip with the order of a sum, and then the runs part
    for part in ("alive", "synapse_masks"):
        theirs = getattr(there, part)
        assert all(torch.equal(mask, theirs[name].cpu()) for name, mask in getattr(here, part).items())
    for mine, theirs in zip(here.model.parameters(), there.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.cpu(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_masked_stays_zero(device: str) -> None:
    dev = made(device, shrink="never")
    train(dev)
    dead = ~dev.synapse_masks["fc1.weight"]
    assert dead.any() and not dev.model.fc1.weight[dead.to(device)].any()
    small, masked = dev.compact().eval(), dev.masked().eval()
    assert next(small.parameters()).device.type == device
    x = torch.rand(16, 1, 8, 8, dtype=torch.float64, device=device)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_a_network_that_shrinks_ends_as_one_that_does_not(device: str) -> None:
    always, never = (made(device, shrink=shrink, target={"macs": 0.5}) for shrink in ("always", "never"))
    train(always), train(never)
    for name, alive in never.alive.items():
        assert torch.equal(alive, always.alive[name])
    assert sum(p.numel() for p in always.model.parameters()) < sum(p.numel() for p in never.model.parameters())
    for mine, theirs in zip(always.compact().parameters(), never.compact().parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
def test_resumed_equals_uninterrupted(device: str) -> None:
    whole, first, second = made(device), made(device), made(device)
    train(whole), train(first, 15)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizers[0].load_state_dict(copy.deepcopy(first.optimizers[0].state_dict()))
    train(second)
    for name, survival in whole.survival.items():
        assert torch.equal(survival, second.survival[name])
    assert all(map(torch.equal, whole.model.parameters(), second.model.parameters()))


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float16, marks=pytest.mark.gpu),
    ],
)
def test_half_precision(device: str, precision: torch.dtype) -> None:
    dev = made(device, torch.float32, shrink="always")
    train(dev, precision=precision)
    assert all(bool(p.isfinite().all()) for p in dev.model.parameters())
    assert all(survival.dtype == torch.float32 for survival in dev.survival.values())
    assert dev.connectivity() <= 0.4
