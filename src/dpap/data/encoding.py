"""Still pictures as spikes: what a network sees of a pixel at each of T steps is 0 or 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dpap.errors import DPAPError

ENCODINGS = ("rate", "latency")
"""Beside "direct", where a network is given the picture itself at every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How pictures in [0, 1] become spikes over time. Called with pictures (B, C, H, W), gives (T, B, C, H, W).

    Attributes:
        name: "rate": at every step a pixel spikes with a probability that is its intensity, each step on its own.
            "latency": a pixel spikes once, at step round((1 - intensity)(T - 1)), bright ones first; black ones never.
        num_steps: T.

    Raises:
        DPAPError: no such encoding, or fewer than one step; pictures that are not in [0, 1].

    >>> picture = tensor([1.0, 0.5, 0.1, 0.0]).view(1, 1, 1, 4)
    >>> Encoding(name="latency", num_steps=3)(picture)[:, 0, 0, 0].tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    """

    name: str
    num_steps: int

    def __post_init__(self) -> None:
        if self.name not in ENCODINGS or self.num_steps < 1:
            raise DPAPError(
                f"An encoding is {self.name!r} over {self.num_steps} steps.",
                where="Encoding",
                fix=f"name {' or '.join(ENCODINGS)}, and at least one step",
            )

    def __call__(
        self, images: Float[Tensor, "B C H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "T B C H W"]:
        """The spikes of pictures.

        Args:
            images: In [0, 1].
            generator: On the CPU, so that the draws are the same on every device; None: the same at every call. Only
                "rate" draws. Pictures are drawn for one after another: how they are batched changes nothing.
        """
        if images.numel() and not 0 <= float(images.min()) <= float(images.max()) <= 1:
            raise DPAPError(
                f"Pictures to encode lie between {float(images.min()):g} and {float(images.max()):g}.",
                where=f"encoding {self.name!r}",
                fix="give pictures in [0, 1], or set data.encoding to direct",
            )
        if self.name == "latency":
            return self._first_spikes(images)
        draws = torch.Generator().manual_seed(0) if generator is None else generator
        count, *picture = images.shape
        chance = torch.rand(count, self.num_steps, *picture, generator=draws, dtype=torch.float32)
        return (chance.transpose(0, 1).to(images.device) < images).to(images.dtype)

    def _first_spikes(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "T B C H W"]:
        first = ((1 - images) * (self.num_steps - 1)).round()
        steps = torch.arange(self.num_steps, device=images.device).view(-1, 1, 1, 1, 1)
        return ((first == steps) & (images > 0)).to(images.dtype)
