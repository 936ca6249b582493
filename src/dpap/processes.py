"""Several processes train copies of one network: what they saw is summed, what they decide is compared.

Everything here is for `torch.distributed`'s default group, and does nothing where there is one process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dpap.errors import DPAPError


def world() -> tuple[int, int]:
    """(number of this process, number of processes)."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all processes, in one message for each type of number; these tensors stay as they are.

    Each process passes tensors of the same shapes, in the same order.
    """
    out = list(tensors)
    kinds = dict.fromkeys((t.dtype, t.device) for t in tensors)
    for kind in kinds:
        places = [n for n, t in enumerate(tensors) if (t.dtype, t.device) == kind]
        flat = torch.cat([tensors[n].reshape(-1) for n in places])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensors[n].numel() for n in places])
        for n, part in zip(places, parts, strict=True):
            out[n] = part.view(tensors[n].shape)
    return out


def of_first(value: float, device: torch.device) -> float:
    """What the first process has."""
    if world()[1] == 1:
        return value
    told = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(told, src=0)
    return float(told.item())


def agree(what: Iterable[Tensor | str], device: torch.device, error: DPAPError) -> None:
    """Compare a hash across processes, on all of them.

    Raises:
        DPAPError: The one given, where they differ.
    """
    count = world()[1]
    if count == 1:
        return
    digest = hashlib.sha256()
    for part in what:
        digest.update(part.encode() if isinstance(part, str) else part.detach().cpu().contiguous().numpy().tobytes())
    mine = torch.tensor([int.from_bytes(digest.digest()[:8], "big", signed=True)], device=device)
    all_of_them = [torch.zeros_like(mine) for _ in range(count)]
    dist.all_gather(all_of_them, mine)
    if any(not torch.equal(mine, other) for other in all_of_them):
        raise error
