"""Small networks of convolutions of all kinds, and runs that prune their connections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpap import DPAP
from dpap.models import ConvNet


def network(kind: str) -> nn.Module:
    """Small networks in which convolutions of all kinds read convolutions."""
    if kind == "spiking":
        model: nn.Module = ConvNet(shape=(2, 8, 8), classes=4, blocks=((6, 8),), hidden=(12,), num_steps=3)
    else:
        model = nn.Sequential(
            *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 10, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(10), nn.ReLU()),
            *(nn.Conv2d(10, 8, 3, dilation=2, padding=2), nn.ReLU()),
            *(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU()),
            *(nn.Conv2d(6, 8, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)),
        )
    return model.double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x, x.flatten(1)[:, :4].argmax(1)


def developer(kind: str, **options: Any) -> DPAP:
    torch.manual_seed(0)
    model = network(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    settings: dict[str, Any] = {"total_steps": 60, "target": {"connectivity": 0.3}, "synapses": "all", "memory": 0.05}
    return DPAP(model, batch(0)[0][:2], optimizer=optimizer, **(settings | options))


def train(dev: DPAP, steps: int = 60, first: int = 0) -> list[Any]:
    reports = []
    for step in range(first, first + steps):
        x, y = batch(step)
        with dev.observing():
            loss = F.cross_entropy(dev.model(x), y)
        dev.optimizers[0].zero_grad()
        loss.backward()
        dev.optimizers[0].step()
        reports.append(dev.step())
    return [report for report in reports if report is not None]
