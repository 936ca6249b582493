"""A small vision transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.models.parts import scaled


class Attention(nn.Module):
    """Self-attention on (B, N, dim). Heads can be taken out: `num_heads` says how many the layers hold."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return mixed


class MLP(nn.Module):
    """A hidden layer of four times the width, with GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and an MLP, each after a norm and beside its input."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., ICLR 2021), (B, C, H, W) to (B, classes), with the mean over tokens.

    Args:
        shape: One image: (channels, height, width).
        classes: Width of the classifier.
        patch: Side of a token in pixels.
        depth: Blocks.
        num_heads: Attention heads of a block.
        head_dim: Width of a head; a token has `num_heads * head_dim` numbers.

    Raises:
        DPAPError: The image is no whole number of patches.
    """

    def __init__(
        self, *, shape: tuple[int, int, int], classes: int, patch: int, depth: int, num_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        channels, height, across = shape
        if height % patch or across % patch:
            raise DPAPError(
                f"An image of {height} x {across} pixels is no whole number of patches of {patch} x {patch}.",
                where="the shape of an image",
                fix=f"use images whose sides are multiples of {patch}, or another network",
            )
        dim = num_heads * head_dim
        self.patch_embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.empty(1, (height // patch) * (across // patch), dim))
        self.blocks = nn.Sequential(*(Block(dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        outputs: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return outputs


def vit(*, shape: tuple[int, int, int], classes: int, width: float = 1.0) -> ViT:
    """A small ViT: 6 blocks, 3 heads of 64, patches of 4 pixels (16 from 64-pixel images on); 2,693,194 parameters on
    CIFAR-10. `width` is a factor on the width of a head.
    """
    patch = 4 if min(shape[1:]) < 64 else 16
    return ViT(shape=shape, classes=classes, patch=patch, depth=6, num_heads=3, head_dim=scaled(64, width))
