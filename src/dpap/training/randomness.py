"""Randomness that is counted, not carried: what is drawn depends on where the run is, not on how it got there.

A generator is seeded by (seed, purpose, epoch, batch), so a position in a run is two integers and a resumed run draws
what an uninterrupted one would have drawn, without saving the state of any generator.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

Purpose = Literal["init", "order", "augment", "encode", "dropout", "development", "structure"]


def derived_seed(seed: int, purpose: Purpose, epoch: int = 0, batch: int = 0) -> int:
    """63 bits from a hash of the four: neighbouring positions get unrelated numbers, on every machine the same.

    >>> derived_seed(0, "order", epoch=1) == derived_seed(0, "order", epoch=1)
    True
    >>> derived_seed(0, "order", epoch=1) == derived_seed(0, "augment", epoch=1)
    False
    """
    text = f"{seed}/{purpose}/{epoch}/{batch}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def generator(seed: int, purpose: Purpose, epoch: int = 0, batch: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one position: the same draws whatever device the run uses."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, epoch, batch))


def seed_global(seed: int, purpose: Purpose, epoch: int = 0, batch: int = 0) -> None:
    """Seed PyTorch's own generators, for what takes no generator: dropout layers and the initialisation of layers."""
    torch.manual_seed(derived_seed(seed, purpose, epoch, batch))
