"""Networks of many builds: each with the groups that are prunable in it, worked out by hand from its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import foreign
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A network of the zoo."""

    build: Callable[[], nn.Module]
    prunable: dict[str, int]
    """Name of the group -> units."""
    shape: tuple[int, ...] = (3, 64, 64)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norm scales, shifts, means, variances and biases away from where they begin, so that equality tests see them;
    dropout never drops."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        leaf = name.rpartition(".")[2]
        if not tensor.is_floating_point():
            continue
        if leaf == "bias":
            draw(tensor, -0.2, 0.4)
        elif leaf == "running_mean":
            draw(tensor, -0.2, 0.2)
        elif tensor.dim() == 1 or leaf == "gamma":  # scales, variances, slopes
            draw(tensor, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


@torch.no_grad()
def lively(model: nn.Module, x: Tensor) -> nn.Module:
    """Let signals get through a deep network, and through what is left of it: outputs that hardly vary would prove
    nothing. Each layer's output gets a deviation of about 1 and, where it has a bias, a mean of 0.5, so that rectifiers
    let some of it pass; the statistics of batch norms are fitted."""

    def scale(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        axis = out.dim() - 1 if isinstance(module, nn.Linear) else 1
        varies = out.std(0)[out.std(0) > 1e-12]
        factor = 1 / varies.mean() if len(varies) else torch.ones(())
        module.weight.mul_(factor)
        if module.bias is None:
            return out * factor
        places = [d for d in range(out.dim()) if d != axis]
        shape = [-1 if d == axis else 1 for d in range(out.dim())]
        raw = (out - module.bias.view(shape)) * factor
        module.bias.add_(0.5 - module.bias - raw.mean(places))
        return raw + module.bias.view(shape)

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    handles = [layer.register_forward_hook(scale) for layer in layers]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(x)
    for handle in handles:
        handle.remove()
    model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        norm.running_mean.mul_(0.9).sub_(0.1)
        norm.running_var.mul_(1.2).add_(0.01)
    return model


# written by hand ------------------------------------------------------------------------------------------------------


class Inception(nn.Module):
    """Four branches side by side, as in GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Conv2d(8, 6, 1)
        self.b = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 3, padding=1))
        self.c = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 5, padding=2))
        self.d = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 3, 1))
        self.norm, self.relu = nn.BatchNorm2d(20), nn.ReLU()
        self.fc = nn.Linear(20 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.norm(torch.cat([self.a(x), self.b(x), self.c(x), self.d(x)], 1)))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8))
        self.bottom = nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), nn.GELU())
        self.up2 = nn.ConvTranspose2d(10, 7, 2, stride=2)
        self.merge2 = nn.Sequential(nn.Conv2d(15, 9, 3, padding=1), nn.ReLU())
        self.merge1 = nn.Sequential(nn.Conv2d(15, 5, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.avg_pool2d(b, 2))
        d = self.merge2(torch.cat([self.up2(c), b], 1))
        d = F.interpolate(d, scale_factor=2, mode="bilinear")
        return self.head(self.merge1(torch.cat([d, a], dim=1)))


class Speech(nn.Module):
    """Separable one-dimensional convolutions with squeeze and excitation on a waveform."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 9, stride=4)
        self.norm = nn.BatchNorm1d(8)
        self.depth = nn.Conv1d(8, 16, 5, padding=2, groups=8)
        self.point = nn.Conv1d(16, 12, 1)
        self.squeeze, self.excite = nn.Linear(12, 6), nn.Linear(6, 12)
        self.relu = nn.ReLU()
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = self.relu(self.point(F.leaky_relu(self.depth(x))))
        gate = torch.sigmoid(self.excite(self.relu(self.squeeze(x.mean(-1)))))
        return self.head((x * gate.unsqueeze(-1)).amax(-1))


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between them; whole groups are units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 1)
        self.grouped = nn.Conv2d(24, 48, 3, padding=1, groups=6)
        self.norm, self.relu = nn.BatchNorm2d(48), nn.ReLU()
        self.last = nn.Conv2d(48, 10, 1)
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.grouped(self.relu(self.first(x)))))
        n, c, h, w = x.shape
        x = x.view(n, self.grouped.groups, c // self.grouped.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.relu(self.last(x)).mean((2, 3)))


class ShuffleV2(nn.Module):
    """Half of the channels pass, half are worked on, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.depth, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.shuffle, self.relu = nn.ChannelShuffle(2), nn.ReLU()
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.relu(self.first(x)).chunk(2, 1)
        right = self.relu(self.b(self.depth(self.relu(self.a(right)))))
        return self.fc(self.shuffle(torch.cat([left, right], 1)).mean((2, 3)))


class Gated(nn.Module):
    """A multi-layer perceptron with gates: by chunks, by a split, by F.glu, by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(12, 32), nn.Linear(16, 28), nn.Linear(14, 24), nn.Linear(12, 20)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.a(x).chunk(2, dim=-1)
        x = F.silu(gate) * value
        x = self.b(x)
        gate, value = x.split(x.shape[-1] // 2, dim=-1)
        x = F.glu(self.c(torch.sigmoid(gate) * value))
        x = self.d(x)
        half = x.shape[-1] // 2
        return self.head(torch.tanh(x[:, :half]) * x[:, half:])


class Tied(nn.Module):
    """Two layers with one weight, one module called twice, and a norm that two branches share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.left, self.right = nn.Linear(10, 8, bias=False), nn.Linear(10, 8)
        self.right.weight = self.left.weight
        self.again = nn.Linear(8, 8)
        self.norm, self.relu = nn.BatchNorm1d(8), nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.norm(self.left(x))) + torch.tanh(self.norm(self.right(x)))
        x = self.relu(self.again(x))
        return self.head(self.relu(self.again(x)))


class TwoViews(nn.Module):
    """One encoder for two inputs: its first layer reads the network's input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU())
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(x), self.encoder(x.flip(1))], 1))


class Grouped(nn.Module):
    """Group norms, layer scale, grouped and transposed convolutions in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 12, 3, padding=1)
        self.norm = nn.GroupNorm(4, 12)
        self.scale = nn.Parameter(torch.ones(12, 1, 1, 1))
        self.up = nn.ConvTranspose3d(12, 8, 2, stride=2, groups=4)
        self.last = nn.Conv3d(8, 10, 1)
        self.slope = nn.PReLU(10)
        self.gamma = nn.Parameter(torch.ones(10))
        self.fc = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x))) * self.scale
        x = self.slope(self.last(F.relu(self.up(x))))
        return self.fc((x * self.gamma.view(-1, 1, 1, 1)).mean((2, 3, 4)))


class Heads(nn.Module):
    """Attention with a layer each for queries, keys and values, written out with matrix products."""

    def __init__(self, dim: int = 12, heads: int = 4, head_dim: int = 6) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(dim)
        self.q_proj, self.k_proj = nn.Linear(dim, heads * head_dim), nn.Linear(dim, heads * head_dim)
        self.v_proj, self.proj = nn.Linear(dim, heads * head_dim), nn.Linear(heads * head_dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self._heads(self.q_proj(y)), self._heads(self.k_proj(y)), self._heads(self.v_proj(y))
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return x + self.proj((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Tokens, positions, two blocks, a mean and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.position = nn.Parameter(torch.randn(1, 7, 12))
        self.blocks = nn.Sequential(Heads(), Heads(heads=3, head_dim=4))
        self.mlp = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 18), nn.GELU(), nn.Linear(18, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embed(x) + self.position)
        return self.head((x + self.mlp(x)).mean(1))


class Encoder(nn.Module):
    """torch's own transformer layer: its heads stay, its feed-forward units may go."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class Rearranged(nn.Module):
    """A generator: vectors become maps, pixels are shuffled; a decoder reads them by an einsum and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 9)
        self.vector = nn.Linear(9, 8 * 4 * 4)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 3, padding="same")
        self.last = nn.Conv2d(3, 5, 1)
        self.key = nn.Linear(9, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        words = self.words(x)
        maps = F.relu(self.norm(self.vector(words.mean(1)).unflatten(1, (-1, 4, 4))))
        maps = F.relu(self.last(F.pad(F.pixel_shuffle(self.wide(maps), 2), (1, 1, 0, 0))))
        key = self.key(words[:, 0])
        return self.head(torch.einsum("bchw,bc->bc", maps, key))


# timm -----------------------------------------------------------------------------------------------------------------


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: foreign.timm().create_model(name, num_classes=10, **options)


def _resnet18() -> dict[str, int]:
    inner = {f"layer{s}.{b}.conv1": 32 * 2**s for s in (1, 2, 3, 4) for b in (0, 1)}
    return {"conv1": 64} | inner | {f"layer{s}.0.conv2": 32 * 2**s for s in (2, 3, 4)}


def _resnet50() -> dict[str, int]:
    groups = {"conv1": 64}
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            groups |= {f"layer{stage}.{block}.conv{n}": 32 * 2**stage for n in (1, 2)}
        groups[f"layer{stage}.0.conv3"] = 128 * 2**stage
    return groups


_INVERTED = ((1, 16), (2, 24), (3, 32), (4, 64), (3, 96), (3, 160), (1, 320))


def _mobilenet() -> dict[str, int]:
    """The first layer of each stage names its stream; the first block expands nothing."""
    groups, before = {"conv_stem": 32}, 32
    for stage, (blocks, width) in enumerate(_INVERTED):
        for block in range(blocks):
            if stage:
                groups[f"blocks.{stage}.{block}.conv_pw"] = 6 * before
            if block == 0:
                groups[f"blocks.{stage}.0.conv_pw{'l' if stage else ''}"] = width
            before = width
    return groups | {"conv_head": 1280}


def _efficientnet() -> dict[str, int]:
    groups, before = {"conv_stem": 32}, 32
    widths = ((1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320))
    for stage, (blocks, width) in enumerate(widths):
        for block in range(blocks):
            name = f"blocks.{stage}.{block}"
            groups[f"{name}.se.conv_reduce"] = before // 4
            if stage:
                groups[f"{name}.conv_pw"] = 6 * before
            if block == 0:
                groups[f"{name}.conv_pw{'l' if stage else ''}"] = width
            before = width
    return groups | {"conv_head": 1280}


def _densenet() -> dict[str, int]:
    groups = {"features.conv0": 64}
    for stage, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{stage}.denselayer{layer}"
            groups |= {f"{name}.conv1": 128, f"{name}.conv2": 32}
    return groups | {f"features.transition{n}.conv": 64 * 2**n for n in (1, 2, 3)}


def _convnext() -> dict[str, int]:
    widths = ((3, 96), (3, 192), (9, 384), (3, 768))
    return {f"stages.{s}.blocks.{b}.mlp.fc1": 4 * w for s, (n, w) in enumerate(widths) for b in range(n)}


def _regnet() -> dict[str, int]:
    """Convolutions in groups of 8 channels: each group is a unit, with the channels that it reads."""
    groups, before = {"stem.conv": 32}, 32
    for stage, (blocks, width) in enumerate(((1, 24), (1, 56), (4, 152), (7, 368)), 1):
        for block in range(1, blocks + 1):
            name = f"s{stage}.b{block}"
            groups |= {f"{name}.conv1.conv": width // 8, f"{name}.se.fc1": round(before / 4)}
            before = width
        groups[f"s{stage}.b1.conv3.conv"] = width
    return groups


def _vit() -> dict[str, int]:
    return {f"blocks.{n}.attn.qkv": 3 for n in range(12)} | {f"blocks.{n}.mlp.fc1": 768 for n in range(12)}


def _vgg() -> dict[str, int]:
    widths = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    places = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
    hidden = {"pre_logits.fc1": 512, "pre_logits.fc2": 4096}
    return {f"features.{p}": w for p, w in zip(places, widths, strict=True)} | hidden


ZOO: dict[str, Entry] = {
    "inception": Entry(
        Inception,
        {"stem.0": 8, "a": 6, "b.0": 5, "b.2": 7, "c.0": 4, "c.2": 4, "d.1": 3},
        (3, 12, 12),
    ),
    "u-net": Entry(
        UNet, {"down1.0": 6, "down2.0": 8, "bottom.0": 10, "up2": 7, "merge2.0": 9, "merge1.0": 5}, (3, 16, 16)
    ),
    "speech": Entry(Speech, {"first": 8, "point": 12, "squeeze": 6}, (1, 200)),
    "shuffle": Entry(Shuffle, {"first": 6, "last": 10}, (3, 8, 8)),
    "shuffle v2": Entry(ShuffleV2, {"a": 8, "first": 8}, (3, 8, 8)),
    "gated": Entry(Gated, {"a": 16, "b": 14, "c": 12, "d": 10}, (12,)),
    "tied": Entry(Tied, {"first": 10, "left": 8}, (6,)),
    "two views": Entry(TwoViews, {"encoder.0": 9, "encoder.2": 7}, (6,)),
    "grouped": Entry(Grouped, {"first": 4, "last": 10}, (1, 4, 4, 4)),
    "transformer": Entry(Transformer, {"blocks.0.q_proj": 4, "blocks.1.q_proj": 3, "mlp.1": 18}, (7, 5)),
    "encoder": Entry(Encoder, {"layer.linear1": 20}, (7, 5)),
    "rearranged": Entry(Rearranged, {"vector": 8, "wide": 3, "last": 5}, (6,)),
    "resnet18": Entry(_timm("resnet18"), _resnet18()),
    "resnet50": Entry(_timm("resnet50"), _resnet50()),
    "vgg16_bn": Entry(_timm("vgg16_bn", mlp_ratio=0.125), _vgg()),
    "mobilenetv2_100": Entry(_timm("mobilenetv2_100"), _mobilenet()),
    "efficientnet_b0": Entry(_timm("efficientnet_b0"), _efficientnet()),
    "densenet121": Entry(_timm("densenet121"), _densenet()),
    "convnext_tiny": Entry(_timm("convnext_tiny", ls_init_value=1.0), _convnext()),
    "regnety_002": Entry(_timm("regnety_002"), _regnet()),
    "vit_tiny": Entry(_timm("vit_tiny_patch16_224", img_size=64), _vit()),
}
