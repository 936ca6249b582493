"""Residual networks: ResNet-18 and ResNet-50, and SEW-ResNet-18, which spikes.

Convolutions and norms have the names they have in torchvision, so published weights load by name.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from dpap.models.parts import mean_over_steps, scaled, spiking_neuron
from dpap.neurons.encoding import Repeat, over_time

MakeBlock = Callable[[int, int, int], nn.Module]
"""(channels in, inner channels, stride) -> a residual block."""


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias: a norm follows."""
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    """What brings the block's input to the shape of its output; None where it has that shape."""
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and the input beside them: ReLU(norm(conv(ReLU(norm(conv(x))))) + x)."""

    expansion = 1

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, inner, 3, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(inner, inner, 3)
        self.bn2 = nn.BatchNorm2d(inner)
        self.downsample = _shortcut(channels, inner, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activity: Tensor = self.relu2(out + (x if self.downsample is None else self.downsample(x)))
        return activity


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (it has the stride) and 1 x 1 convolutions to four times the inner channels, the input beside."""

    expansion = 4

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out = self.expansion * inner
        self.conv1 = _conv(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(inner, inner, 3, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = _conv(inner, out, 1)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        activity: Tensor = self.relu3(out + (x if self.downsample is None else self.downsample(x)))
        return activity


class SEWBlock(nn.Module):
    """Two 3 x 3 convolutions with neurons and the input beside them, on (T, B, C, H, W): neuron(norm(conv(..))) + x.

    The ADD connection of Fang et al., NeurIPS 2021 (arXiv 2102.04159): the sum of two spikes is 2, and no neuron
    comes after it, so a silent block is the identity.
    """

    expansion = 1

    def __init__(self, channels: int, inner: int, stride: int, make_neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = _conv(channels, inner, 3, stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.sn1 = make_neuron()
        self.conv2 = _conv(inner, inner, 3)
        self.bn2 = nn.BatchNorm2d(inner)
        self.sn2 = make_neuron()
        self.downsample = _shortcut(channels, inner, stride)
        self.sn3 = None if self.downsample is None else make_neuron()

    def forward(self, x: Tensor) -> Tensor:
        out = self.sn1(over_time(lambda step: self.bn1(self.conv1(step)), x))
        out = self.sn2(over_time(lambda step: self.bn2(self.conv2(step)), out))
        if self.downsample is not None and self.sn3 is not None:
            x = self.sn3(over_time(self.downsample, x))
        summed: Tensor = out + x
        return summed


class _Backbone(nn.Module):
    """The layers that all of them have: a stem, four stages of blocks, a pool, a classifier.

    The stem is a 7 x 7 convolution and a pool, a quarter of the side, for images of 64 pixels and more; for smaller
    ones a 3 x 3 convolution that keeps the size of the map.
    """

    def __init__(
        self,
        make_block: MakeBlock,
        expansion: int,
        depths: tuple[int, int, int, int],
        *,
        shape: tuple[int, int, int],
        classes: int,
        width: float,
    ) -> None:
        super().__init__()
        large = min(shape[1:]) >= 64
        channels = scaled(64, width)
        self.conv1 = _conv(shape[0], channels, 7, 2) if large else _conv(shape[0], channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        stages = []
        for number, depth in enumerate(depths):
            inner = scaled(64 * 2**number, width)
            blocks = []
            for place in range(depth):
                blocks.append(make_block(channels, inner, 2 if number and not place else 1))
                channels = expansion * inner
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> Tensor:
        """All the blocks, one after the other."""
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x

    def classify(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, classes)."""
        outputs: Tensor = self.fc(self.avgpool(x).flatten(1))
        return outputs


class ResNet(_Backbone):
    """A residual network (He et al., CVPR 2016), (B, C, H, W) to (B, classes).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: Blocks of each of the four stages.
        shape: One image: (channels, height, width).
        classes: Width of the classifier.
        width: Factor on the channels of all layers.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        shape: tuple[int, int, int],
        classes: int,
        width: float = 1.0,
    ) -> None:
        super().__init__(block, block.expansion, depths, shape=shape, classes=classes, width=width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.stages(self.maxpool(self.relu(self.bn1(self.conv1(x))))))


class SEWResNet(_Backbone):
    """A spiking residual network (Fang et al., NeurIPS 2021): input, output and `every_step` as of `ConvNet`.

    Args:
        depths: Blocks of each of the four stages.
        make_neuron: Makes each of its neurons.
        num_steps: T, for constant images.
        shape, classes, width: As of `ResNet`.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        make_neuron: Callable[[], nn.Module],
        num_steps: int,
        *,
        shape: tuple[int, int, int],
        classes: int,
        width: float = 1.0,
    ) -> None:
        def make_block(channels: int, inner: int, stride: int) -> nn.Module:
            return SEWBlock(channels, inner, stride, make_neuron)

        super().__init__(make_block, SEWBlock.expansion, depths, shape=shape, classes=classes, width=width)
        self.repeat = Repeat(num_steps)
        self.sn1 = make_neuron()

    def forward(self, x: Tensor, *, every_step: bool = False) -> Tensor:
        current = over_time(self._stem, x) if x.dim() == 5 else self.repeat(self._stem(x))
        out = self.stages(over_time(self.maxpool, self.sn1(current)))
        out = over_time(self.classify, out)
        return out if every_step else self.answer(out)

    def answer(self, steps: Float[Tensor, "t B classes"]) -> Float[Tensor, "B classes"]:
        """As of `ConvNet`: the mean current of the classifier."""
        return mean_over_steps(steps)

    def _stem(self, x: Tensor) -> Tensor:
        current: Tensor = self.bn1(self.conv1(x))
        return current


def resnet18(*, shape: tuple[int, int, int], classes: int, width: float = 1.0) -> ResNet:
    """ResNet-18: 11,689,512 parameters with 1000 classes of 224-pixel images, 11,173,962 on CIFAR-10."""
    return ResNet(BasicBlock, (2, 2, 2, 2), shape=shape, classes=classes, width=width)


def resnet50(*, shape: tuple[int, int, int], classes: int, width: float = 1.0) -> ResNet:
    """ResNet-50: 25,557,032 parameters with 1000 classes of 224-pixel images, 23,520,842 on CIFAR-10."""
    return ResNet(Bottleneck, (3, 4, 6, 3), shape=shape, classes=classes, width=width)


def sew_resnet18(
    *,
    shape: tuple[int, int, int],
    classes: int,
    width: float = 1.0,
    neuron: str = "lif",
    tau: float = 2.0,
    v_threshold: float = 1.0,
    surrogate: str = "arctan",
    learn_slope: bool = False,
    detach_reset: bool = False,
    num_steps: int = 4,
) -> SEWResNet:
    """SEW-ResNet-18: as many parameters as ResNet-18, if its neurons have none; settings of neurons as of `ConvNet`."""

    def make_neuron() -> nn.Module:
        return spiking_neuron(
            neuron,
            tau=tau,
            v_threshold=v_threshold,
            surrogate=surrogate,
            learn_slope=learn_slope,
            detach_reset=detach_reset,
        )

    return SEWResNet((2, 2, 2, 2), make_neuron, num_steps, shape=shape, classes=classes, width=width)
