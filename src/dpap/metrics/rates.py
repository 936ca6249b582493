"""What is used: how often the units of each group fire, and which never do."""

from __future__ import annotations

import math
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
from dpap.time.timing import timing_of


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
        self._model, self._num_steps = model, graph.num_steps
        layers = {layer.name for layer in graph.layers}  # where nothing follows, units are seen at the layer itself
        self._sites: dict[str, dict[int, tuple[str, Site]]] = defaultdict(dict)
        for group in graph.groups:
            for site in group.sites:
                if site.side == "output" and site.module not in layers:
                    self._sites[site.module][site.call] = (group.name, site)
        self._seen: dict[tuple[str, int], dict[int, _Mean]] = defaultdict(lambda: defaultdict(_Mean))
        """(module, call) -> step -> share of each unit."""
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
            call, step = self._calls[name], 0
            self._calls[name] += 1
            if any(site.layout == "call per step" for _, site in self._sites[name].values()):
                call, step = 0, call  # every call is a step of the same units
            if call not in self._sites[name]:  # no units leave it there
                return
            site = self._sites[name][call][1]
            output = output[0] if isinstance(output, tuple) else output  # some neurons answer their state as well
            timing = timing_of(self._model)
            output = output if timing is None else timing.whole(name, "output", output)
            shares, samples = active_shares(output.detach(), site, self._num_steps)
            for later, share in enumerate(shares):
                self._seen[name, call][step + later].add(share, samples)

        return record

    def count(self, alive: Mapping[str, Tensor] = ALL) -> dict[str, FiringRate]:
        """By group name, given the units that are alive."""
        sites: dict[str, list[Tensor]] = defaultdict(list)
        for name, call in self._seen:
            sites[self._sites[name][call][0]].append(self._at(name, call).mean(1))
        found = {}
        for group, shares in sites.items():
            rate = torch.stack(shares).mean(0)
            rate = rate[alive[group].cpu()] if group in alive else rate
            found[group] = FiringRate(
                units=len(rate), silent=int((rate == 0).sum()), rate=float(rate.mean()) if len(rate) else 0.0
            )
        return found

    def per_step(self) -> dict[str, Float64[Tensor, "units T"]]:
        """By the name of the module: the rate of each unit at each step, over samples, positions and calls."""
        calls: dict[str, list[Tensor]] = defaultdict(list)
        for name, call in self._seen:
            calls[name].append(self._at(name, call))
        return {name: torch.stack(found).mean(0) for name, found in calls.items()}

    def _at(self, name: str, call: int) -> Float64[Tensor, "units T"]:
        steps = self._seen[name, call]
        return torch.stack([steps[step].value for step in sorted(steps)], dim=1)


class _Mean:
    """Of shares, weighted by their samples."""

    def __init__(self) -> None:
        self._sum, self._samples = torch.zeros((), dtype=torch.float64), 0

    def add(self, share: Tensor, samples: int) -> None:
        self._sum, self._samples = self._sum + share * samples, self._samples + samples

    @property
    def value(self) -> Tensor:
        return self._sum / self._samples


def active_shares(x: Tensor, site: Site, num_steps: int) -> tuple[Float64[Tensor, "steps units"], int]:
    """For each unit: the share of samples and positions at which its output is above 0, step by step; and samples.

    Args:
        x: What leaves the site in one call: all steps, or the one that the call is.
    """
    axis = site.axis
    if site.layout != "T,B":
        steps = num_steps if site.layout == "T*B" else 1
        x, axis = torch.unflatten(x, 0, (steps, -1)), axis + 1
    others = [d for d in range(1, x.dim()) if d != axis]
    active = (x > 0).sum(others, dtype=torch.float64) / math.prod(x.shape[d] for d in others)
    return active.cpu(), x.shape[1]
