"""Average pooling over 2 x 2 squares, several times as fast as PyTorch's on the CPU in its default memory layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class AvgPool2x2(nn.AvgPool2d):
    """`nn.AvgPool2d(2)`: the same sums of four in another order, so a pool of spikes is the same to the bit.

    Where nothing is to be gained (a GPU, channels_last), or the graph is read (export, compile), it is that module.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        even = x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0
        if torch.compiler.is_compiling() or x.is_cuda or not (even and x.is_contiguous()):
            return super().forward(x)
        pooled: Tensor = _MeanOfFour.apply(x)  # type: ignore[no-untyped-call]
        return pooled


class _MeanOfFour(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        *lead, height, width = x.shape
        rows = x.view(-1, height // 2, 2, width)
        columns = (rows[:, :, 0] + rows[:, :, 1]).view(*lead, height // 2, width // 2, 2)
        return (columns[..., 0] + columns[..., 1]).mul_(0.25)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        *lead, height, width = grad.shape
        quarter = grad * 0.25
        out = grad.new_empty(*lead, height, 2, 2 * width)
        first, second = out.unbind(-2)  # the two rows of each square
        first[..., 0::2] = first[..., 1::2] = quarter
        second.copy_(first)
        return out.view(*lead, 2 * height, 2 * width)
