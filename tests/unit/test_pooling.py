"""The quick average pool is PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dpap.graph.find import find_groups
from dpap.models import build
from dpap.models.pooling import AvgPool2x2


def seen(x: torch.Tensor, pooled: torch.Tensor) -> str:
    """Name of the autograd node that made it: says which way was taken."""
    return type(pooled.grad_fn).__name__


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (3, 2, 2), (5, 1, 8, 2)])
def test_equals_pytorch_forward_and_backward(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mine, theirs = AvgPool2x2()(x), F.avg_pool2d(x, 2)
    assert "MeanOfFour" in seen(x, mine)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-15)
    grad = torch.randn_like(mine)
    torch.testing.assert_close(*(torch.autograd.grad(pooled, x, grad)[0] for pooled in (mine, theirs)), rtol=0, atol=0)


def test_spikes_are_pooled_to_the_bit() -> None:
    spikes = (torch.rand(16, 5, 8, 8) > 0.6).float()
    assert torch.equal(AvgPool2x2()(spikes), F.avg_pool2d(spikes, 2))


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(2, 3, 5, 4, requires_grad=True),
        torch.rand(2, 3, 4, 7, requires_grad=True),
        torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_(),
    ],
    ids=["odd height", "odd width", "channels last"],
)
def test_other_layouts_and_sizes_go_the_usual_way(x: torch.Tensor) -> None:
    pooled = AvgPool2x2()(x)
    assert "AvgPool" in seen(x, pooled)
    assert torch.equal(pooled, F.avg_pool2d(x, 2))


def test_the_graph_sees_an_average_pool() -> None:
    """So that pooled spikes are counted as the spikes that made them."""
    model = build("convnet", shape=(1, 8, 8), classes=3, blocks=((4,), (4,)), hidden=())
    layer = next(layer for layer in find_groups(model, torch.rand(2, 1, 8, 8)).layers if layer.name == "conv2")
    assert layer.spike_divisor is not None
    assert (layer.spike_divisor == 4).all()
