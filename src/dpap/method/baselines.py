"""What others do with single connections, in the same harness: `gmp`, `set`, `rigl`. For comparison, as published.

They rank the connections of a layer by |w| as it is, without memory. `gmp` (Zhu & Gupta 2018) prunes the same share of
every layer, more and more. `set` (Mocanu et al. 2018) and `rigl` (Evci et al. 2020) are sparse from the start and
exchange the weakest connections of each layer at every development step, `set` for any, `rigl` for those with the
largest gradient. No unit is pruned but those left without inputs or outputs; in an exchange the strongest input of a
unit and the strongest output of an input stay.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dpap.method.regrowth import Regrow
from dpap.method.rules import Rule, dpap
from dpap.method.scores import magnitude
from dpap.method.survival import Link


def layer_rank(score: Tensor, alive: Tensor) -> Tensor:
    """Place among the living of the layer, from 0 (the weakest) to below 1: one level prunes the same share of all.

    >>> layer_rank(torch.tensor([[3.0, 1.0], [9.0, 0.5]]), torch.tensor([[True, True], [False, True]])).tolist()
    [[0.75, 0.5], [0.0, 0.25]]
    """
    order = torch.where(alive, score, -torch.inf).reshape(-1).argsort(stable=True)
    rank = torch.empty(order.numel(), dtype=score.dtype, device=score.device)
    rank[order] = torch.arange(order.numel(), dtype=score.dtype, device=score.device) / order.numel()
    return torch.where(alive, rank.view_as(score), 0)


def _of_the_literature(name: str, *links: Link, regrow: Regrow | None = None, sparse: bool = False) -> Rule:
    return replace(
        dpap(score=magnitude, kinds=frozenset({"synapse"}), kappa_synapse=0.0),
        name=name,
        links=lambda layer, kind, clock: links,
        gamma=lambda clock: 0.0,
        synapses="all",
        crowding=0.0,
        regrow=regrow,
        sparse_start=sparse,
        settled=False,
        adjustable=False,
        time_kinds=frozenset(),
    )


def gmp() -> Rule:
    """Gradual magnitude pruning: the smallest |w| of each layer, the same share of all layers."""
    return _of_the_literature("gmp", layer_rank)


def set_() -> Rule:
    """Sparse evolutionary training: newborn connections are drawn."""
    return _of_the_literature("set", regrow="random", sparse=True)


def rigl() -> Rule:
    """The rigged lottery: newborn connections are those with the largest gradient."""
    return _of_the_literature("rigl", regrow="gradient", sparse=True)
