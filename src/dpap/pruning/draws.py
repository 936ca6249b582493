"""Random draws that come out alike in two networks of different widths, so that their answers can be compared.

A seed alone is not enough: noise on the activity of 10 units and noise on that of 5 are drawn from the same stream and
agree nowhere. So draws of probabilities and of noise are replaced by one value in all places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PROBABILITY, NOISE = 0.5, 0.3
aten = torch.ops.aten


def _filled(value: float) -> Callable[..., Any]:
    def replace(func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        return out.fill_(value)

    return replace


def _bernoulli(func: Any, args: Any, kwargs: Any) -> Any:
    chance = args[0] if len(args) == 1 else args[1]
    out = func(*args, **kwargs)
    return out.copy_(torch.as_tensor(chance, device=out.device) > PROBABILITY)


def _dropout(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)


DRAWS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((aten.rand, aten.rand_like, aten.uniform, aten.uniform_), _filled(PROBABILITY)),
    **dict.fromkeys((aten.randn, aten.randn_like, aten.normal, aten.normal_, aten.normal_functional), _filled(NOISE)),
    **dict.fromkeys((aten.bernoulli, aten.bernoulli_), _bernoulli),
    aten.native_dropout: _dropout,
}
"""Operator -> what is done in its place; other draws follow the seed."""


class _SameDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replace = DRAWS.get(func.overloadpacket)
        return func(*args, **(kwargs or {})) if replace is None else replace(func, args, kwargs or {})


@contextmanager
def same_draws(seed: int = 0) -> Iterator[None]:
    """Inside, random draws are the same in every network, and PyTorch's generators are put back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        with _SameDraws():  # type: ignore[no-untyped-call]
            yield
