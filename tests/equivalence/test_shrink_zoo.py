"""Networks of many builds shrink while they train: the same deaths, and the same weights, as with masks alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ZOO

from dpap import DPAP

SMALL = (
    *("inception", "u-net", "speech", "shuffle", "shuffle v2", "gated", "tied", "two views", "grouped"),
    *("transformer", "encoder"),
)
LARGE = ("resnet18",)
QUICK = ("inception", "speech", "tied", "encoder")
NETWORKS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*SMALL, *LARGE)]


def trained(name: str, mode: str) -> tuple[DPAP, list[dict[str, list[int]]]]:
    entry, steps = ZOO[name], 12 if name in LARGE else 24
    torch.manual_seed(0)
    model = entry.build().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its random numbers follow the width
    x = torch.randn(4, *entry.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Norms over 16 values, as the large ones have here, multiply a difference of rounding by ten at every step of 1e-3.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5 if name in LARGE else 1e-3, momentum=0.9)
    settings = {"total_steps": steps, "start": 0.25, "stop": 1.0, "memory": 0.05, "observe_every": 1}
    dev = DPAP(model, x[:2], optimizer=optimizer, target={"macs": 0.7}, shrink=mode, **settings)
    deaths = []
    for step in range(steps - 2):
        with dev.observing():
            loss = _loss(model(x + 0.1 * step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report = dev.step()
        if report is not None:
            deaths.append(report.died_units | {f"isolated {n}": u for n, u in report.isolated_units.items()})
    return dev, deaths


def _loss(output: object) -> Tensor:
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return sum((F.smooth_l1_loss(leaf, torch.ones_like(leaf)) for leaf in leaves), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_equals_masked(name: str) -> None:
    (never, expected), (always, found) = (trained(name, mode) for mode in ("never", "always"))
    assert expected == found and any(expected)
    assert always._engine.shrinker.shrinks > 0 == never._engine.shrinker.shrinks
    masked = {p.tensor for g in never.graph.groups for p in (*g.producers, *g.consumers) if p.masked}
    present, other = always._engine.shrinker.present, dict(never.model.named_parameters(remove_duplicate=False))
    for parameter, tensor in always.model.named_parameters(remove_duplicate=False):
        if parameter in masked:
            whole = present.dense(parameter, tensor.detach())
            assert (whole - other[parameter].detach()).abs().max() <= 1e-9 * (1 + whole.abs().max()), parameter
    small = sum(p.numel() for p in always.model.parameters())
    assert small == sum(p.numel() for p in never.compact().parameters())
    assert small < sum(p.numel() for p in never.model.parameters())
