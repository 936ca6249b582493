"""Small networks that the tests prune."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpap.neurons import LIF, PLIF, Repeat, over_time


class ConvNet(nn.Module):
    """An ordinary network with what leaks most: norms with and without affine, biases, padding, a flatten."""

    def __init__(self, affine: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(8, affine=affine)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(8, affine=affine)
        self.act2 = nn.GELU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(8 * 3 * 3, 12, bias=bias)
        self.act3 = nn.Sigmoid()
        self.fc2 = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.pool(self.act2(self.norm2(self.conv2(x))))
        return self.fc2(self.act3(self.fc1(x.flatten(1))))


class SpikingNet(nn.Module):
    """A spiking network of the paper's shape, small: conv, pool, conv, pool, fc, fc, with per-channel neurons."""

    def __init__(self, num_steps: int = 4, channels: tuple[int, int, int] = (6, 8, 20)) -> None:
        super().__init__()
        a, b, c = channels
        self.conv1 = nn.Conv2d(1, a, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(a)
        self.repeat = Repeat(num_steps)
        self.lif1 = LIF()
        self.pool1 = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(a, b, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(b, affine=False)
        self.lif2 = PLIF(channels=b)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(b * 4, c)
        self.lif3 = LIF(v_threshold=0.5)
        self.fc2 = nn.Linear(c, 5)
        self.lif4 = LIF(v_threshold=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.repeat(self.norm1(self.conv1(x))))
        x = over_time(self.conv2, over_time(self.pool1, x))
        x = over_time(self.pool2, self.lif2(over_time(self.norm2, x)))
        x = self.lif3(self.fc1(x.flatten(2)))
        return self.lif4(self.fc2(x)).mean(0)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norm scales, shifts, means, variances and biases away from where they begin, so that equality tests see them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        tensor.data.copy_(drawn)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.affine:
                draw(module.weight, 0.5, 1.5)
                draw(module.bias, -0.2, 0.6)
            if module.running_mean is not None and module.running_var is not None:
                draw(module.running_mean, -0.2, 0.2)
                draw(module.running_var, 0.5, 1.5)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            draw(module.bias, -0.2, 0.4)
        elif isinstance(module, PLIF):
            draw(module.w, -1.0, 1.0)
    return model


def _neuron(channels: int) -> nn.Module:
    return LIF(v_threshold=0.4)


class FramesNet(nn.Module):
    """Frames (T, B, 2, 6, 6), each layer called once with all steps, (T * B, ...): conv, pool, conv, fc, fc.

    `neuron` makes a layer's neurons from its number of channels.
    """

    def __init__(self, neuron: Callable[[int], nn.Module] = _neuron, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.neuron1 = neuron(6)
        self.pool = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.neuron2 = neuron(8)
        self.fc1 = nn.Linear(8 * 9, 12)
        self.neuron3 = neuron(12)
        self.fc2 = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(over_time(self.norm1, over_time(self.conv1, x)))
        x = over_time(self.conv2, over_time(self.pool, x))
        x = self.neuron2(over_time(self.norm2, x))
        x = self.neuron3(over_time(self.fc1, x.flatten(2)))
        return over_time(self.fc2, x).mean(0)


class TimeConv(nn.Conv2d):
    """Takes (T, B, C, H, W) itself, as the multi-step layers of other libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        flat = super().forward(x.flatten(0, 1))
        return flat.view(x.shape[0], x.shape[1], *flat.shape[1:])


class TimeNorm(nn.BatchNorm2d):
    """Likewise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


class TimeFirstNet(FramesNet):
    """The same network of modules that see (T, B, ...)."""

    def __init__(self, neuron: Callable[[int], nn.Module] = _neuron, classes: int = 4) -> None:
        super().__init__(neuron, classes)
        self.conv1, self.norm1 = TimeConv(2, 6, 3, padding=1), TimeNorm(6)
        self.conv2, self.norm2 = TimeConv(6, 8, 3, padding=1), TimeNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.norm1(self.conv1(x)))
        x = self.neuron2(self.norm2(self.conv2(over_time(self.pool, x))))
        return self.fc2(self.neuron3(self.fc1(x.flatten(2)))).mean(0)


class SewNet(FramesNet):
    """A residual block whose spikes are added: two layers of neurons behind one group of units."""

    def __init__(self, neuron: Callable[[int], nn.Module] = _neuron, classes: int = 4) -> None:
        super().__init__(neuron, classes)
        self.conv2, self.norm2, self.neuron2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), neuron(6)
        self.fc1 = nn.Linear(6 * 9, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(over_time(self.norm1, over_time(self.conv1, x)))
        x = x + self.neuron2(over_time(self.norm2, over_time(self.conv2, x)))
        x = self.neuron3(over_time(self.fc1, over_time(self.pool, x).flatten(2)))
        return over_time(self.fc2, x).mean(0)


class SkippedNet(FramesNet):
    """Pre-activation: what conv1 gives is read by neurons behind a norm, and past these by a skip connection."""

    def __init__(self, neuron: Callable[[int], nn.Module] = _neuron, classes: int = 4) -> None:
        super().__init__(neuron, classes)
        self.conv2, self.norm2, self.neuron2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), neuron(6)
        self.fc1 = nn.Linear(6 * 9, 12)

    def forward(self, x: Tensor) -> Tensor:
        current = over_time(self.conv1, x)
        x = current + over_time(self.conv2, self.neuron1(over_time(self.norm1, current)))
        x = over_time(self.pool, self.neuron2(over_time(self.norm2, x)))
        x = self.neuron3(over_time(self.fc1, x.flatten(2)))
        return over_time(self.fc2, x).mean(0)
