"""Who is used: how often the units of each group fire, and which never do."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpap.graph.group import Graph, Site
from dpap.metrics.connectivity import ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringRate:
    """Of one group over the samples that were run."""

    units: int
    """Living ones."""
    silent: int
    """Living units whose output was never above 0."""
    rate: float
    """Mean over living units, positions, steps and samples of "the output is above 0": spikes per neuron and step of a
    spiking network."""


class RateCounter:
    """Records, while it is entered, how often the output of each unit is above 0.

    Seen are the outputs of neuron and activation modules; a group without one (a classifier) does not appear.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self._model = model
        layers = {layer.name for layer in graph.layers}  # where nothing follows, units are seen at the layer itself
        self._sites: dict[str, dict[int, tuple[str, Site]]] = defaultdict(dict)
        for group in graph.groups:
            for site in group.sites:
                if site.side == "output" and site.module not in layers:
                    self._sites[site.module][site.call] = (group.name, site)
        self._shares: dict[str, list[Tensor]] = defaultdict(list)
        self._sizes: dict[str, list[int]] = defaultdict(list)
        self._calls: Counter[str] = Counter()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> RateCounter:
        self._handles.append(self._model.register_forward_pre_hook(lambda *_: self._calls.clear()))
        for name in self._sites:
            self._handles.append(self._model.get_submodule(name).register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_: nn.Module, args: Any, output: Any) -> None:
            call = self._calls[name]
            self._calls[name] += 1
            if any(site.layout == "call per step" for _, site in self._sites[name].values()):
                call = 0  # every call is a step of the same units
            if call not in self._sites[name]:  # no units leave it there
                return
            group, site = self._sites[name][call]
            output = output[0] if isinstance(output, tuple) else output  # some neurons answer their state as well
            self._shares[group].append(active_share(output.detach(), site))
            self._sizes[group].append(output.shape[1] if site.layout == "T,B" else output.shape[0])

        return record

    def count(self, alive: Mapping[str, Tensor] = ALL) -> dict[str, FiringRate]:
        """By group name, given who is alive."""
        found = {}
        for name, shares in self._shares.items():
            weight = torch.tensor(self._sizes[name], dtype=torch.float64)
            rate = (torch.stack(shares) * weight[:, None]).sum(0) / weight.sum()
            rate = rate[alive[name].cpu()] if name in alive else rate
            found[name] = FiringRate(
                units=len(rate), silent=int((rate == 0).sum()), rate=float(rate.mean()) if len(rate) else 0.0
            )
        return found


def active_share(x: Tensor, site: Site) -> Float64[Tensor, " units"]:
    """For each unit: the share of steps, samples and positions at which its output is above 0."""
    return (x > 0).movedim(site.axis, 0).flatten(1).double().mean(1).cpu()
