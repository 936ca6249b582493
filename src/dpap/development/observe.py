"""Forward hooks -> activity of one pass. The only file that knows observing hooks.

A pass is one call of the model (or one `observing()` block when the loop over time lies outside it). Each site is
reduced over space at once, so nothing larger than (T, B, features) is ever kept. Where a loop calls a module once per
step, its calls of a pass are put together as the T steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.group import Graph, Layer, Site
from dpap.hooks import OwnHook
from dpap.pruning.slice import Present

Seen = tuple[Layer, Tensor, Tensor, Tensor | None]
"""A layer with its pre (T or 1, B, I) and post (T or 1, B, O) activity of one pass, summed or averaged over space; and,
if asked for, (I,): spikes of the pass times the positions of the layer that read them (None where the input is no
spikes). O and I are those of the dense network; what was cut is 0."""


class Observer:
    """Sees the sites of some layers while it is switched on.

    Args:
        model: Hooks are put on it until `close`.
        graph: Tells T.
        layers: What to see.
        on_pass: Called when a block ends, once for each of its passes, with all layers.
        on_skip: Called for a pass that does not count, with the reason (`dpap.development.window.SKIPPED`).
        mean_positions: Average over space; else sum.
        rectify: Take the size of what may be negative.
        weigh_arrivals: Also count arriving spikes, for a target of synaptic operations.
        whole: Puts the time steps that were left out back into what enters or leaves a module.
        whole_block: A pass is an `observing()` block, not a call of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        layers: Iterable[Layer],
        on_pass: Callable[[list[Seen]], None],
        on_skip: Callable[[str], None],
        *,
        mean_positions: bool,
        rectify: bool,
        weigh_arrivals: bool,
        whole_block: bool,
        whole: Callable[[str, str, Tensor], Tensor] = lambda module, side, x: x,
    ) -> None:
        self.num_steps, self.layers, self.model = graph.num_steps, tuple(layers), model
        self.on_pass, self.on_skip = on_pass, on_skip
        self._passes: list[list[Seen]] = []
        """Of this block, which may still raise."""
        self.mean_positions, self.rectify, self.whole_block = mean_positions, rectify, whole_block
        self.on, self._whole = False, whole
        self._seen: dict[Site, Tensor] = {}
        self._one_by_one: dict[Site, list[Tensor]] = defaultdict(list)
        """What was seen of each step, where the steps are calls."""
        self._arrived: dict[Site, Tensor] = {}
        self.weigh_arrivals = weigh_arrivals
        self._receiving: dict[Site, Tensor] = {}
        self.fit(Present.whole(model, graph))
        self._calls: dict[tuple[str, str], int] = defaultdict(int)
        sites = {s for layer in self.layers for s in (layer.pre, layer.output_site) if s is not None}
        self._sites = {(s.module, s.side, s.call): s for s in sites}
        self._per_step = _calls_per_step(graph)
        self._handles: list[Any] = (
            []
            if whole_block
            else [
                model.register_forward_pre_hook(OwnHook(self._begin)),
                model.register_forward_hook(OwnHook(self._end)),
            ]
        )
        for name in sorted({module for module, _, _ in self._sites}):
            module = model.get_submodule(name)
            # First of all: others leave out steps at which nothing is needed.
            self._handles.append(module.register_forward_pre_hook(OwnHook(partial(self._enter, name)), prepend=True))
            self._handles.append(module.register_forward_hook(OwnHook(partial(self._leave, name))))

    def fit(self, present: Present) -> None:
        """Read activity of these widths from now on."""
        self._inputs: list[Tensor | None] = []
        """Per layer: dense input entry behind each feature that arrives; None: all are there."""
        self._rows: list[Tensor | None] = []
        """Per layer: row of the dense weight behind each feature of its post site, -1: of none; None: as they are."""
        self._reading: dict[Site, Tensor] = {}
        for layer in self.layers:
            entries = present.features(layer.in_group, layer.in_owner, layer.in_unit)
            self._inputs.append(entries)
            self._rows.append(_rows(layer, present))
            if self.weigh_arrivals and layer.pre is not None and layer.spike_divisor is not None:
                reading = torch.from_numpy(layer.spike_divisor * layer.fanout)
                self._reading[layer.pre] = reading if entries is None else reading[entries]

    def receive(self, shares: Mapping[Site, Tensor]) -> None:
        """Count of arriving spikes only this share at each step, (T,): at the others what they reach is dead."""
        self._receiving = dict(shares)

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self) -> None:
        """Begin an `observing()` block."""
        self.on = True
        self._clear()

    def finish(self, *, complete: bool) -> None:
        """End the block; what a block saw that raised does not count."""
        if self.whole_block and complete:
            self._deliver()
        passes, self._passes = self._passes, []
        self.on = False
        self._clear()
        if not complete:
            self.on_skip("raised")
            return
        for seen in passes:
            self.on_pass(seen)

    def _begin(self, module: nn.Module, args: Any) -> None:
        if self._active():
            self._clear()

    def _end(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._active():
            self._deliver()
            self._clear()

    def _clear(self) -> None:
        self._seen.clear()
        self._one_by_one.clear()
        self._arrived.clear()
        self._calls.clear()

    def _active(self) -> bool:
        # A forward pass inside backward (activation checkpointing) repeats one that was counted.
        return self.on and torch._C._current_graph_task_id() == -1

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._active() and args and isinstance(args[0], Tensor):
            self._record(name, "input", args[0])

    def _leave(self, name: str, module: nn.Module, args: Any, out: Any) -> None:
        activity = out[0] if isinstance(out, tuple) and out else out  # a neuron may answer its state behind its spikes
        if self._active() and isinstance(activity, Tensor):
            self._record(name, "output", activity)

    def _record(self, name: str, side: Literal["input", "output"], tensor: Tensor) -> None:
        call = self._calls[(name, side)]
        self._calls[(name, side)] += 1
        site = self._sites.get((name, side, call % self._per_step.get((name, side), call + 1)))
        if site is not None:
            tensor = self._whole(name, side, tensor.detach())
            if site.layout == "call per step":
                self._one_by_one[site].append(self._reduced(site, tensor))
            else:
                self._seen[site] = self._reduced(site, tensor)
            if site in self._reading:
                x, axis = self._time_first(site, tensor)
                arriving = x * self._reading[site].to(x.device, torch.promote_types(x.dtype, torch.float32))
                if site in self._receiving and len(x) == self.num_steps:
                    arriving = arriving * self._receiving[site].to(arriving).view(-1, *[1] * (arriving.dim() - 1))
                arriving = arriving.sum([d for d in range(x.dim()) if d != axis], dtype=torch.float64)
                self._arrived[site] = self._arrived[site] + arriving if site in self._arrived else arriving

    def _reduced(self, site: Site, x: Tensor) -> Tensor:
        """(T or 1, B, features), in float32 at least."""
        if self.rectify and not site.nonnegative:
            x = x.abs()
        x, axis = self._time_first(site, x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        space = [d for d in range(2, x.dim()) if d != axis]
        if not space:
            return x.to(dtype)
        return x.mean(space, dtype=dtype) if self.mean_positions else x.sum(space, dtype=dtype)

    def _time_first(self, site: Site, x: Tensor) -> tuple[Tensor, int]:
        if site.layout == "T*B":
            if x.shape[0] % self.num_steps:
                raise DPAPError(
                    f"{len(x)} samples and steps arrive together, which is no multiple of the {self.num_steps} steps "
                    "of the example input.",
                    where=str(site),
                    fix="train with the number of time steps that DPAP was given.",
                )
            return torch.unflatten(x, 0, (self.num_steps, -1)), site.axis + 1
        if site.layout in ("B", "call per step"):
            return x.unsqueeze(0), site.axis + 1
        self._check_steps(len(x), site)
        return x, site.axis

    def _check_steps(self, found: int, site: Site) -> None:
        if found != self.num_steps:
            raise DPAPError(
                f"{found} time steps arrive; the example input had {self.num_steps}.",
                where=str(site),
                fix="train with the number of time steps that DPAP was given.",
            )

    def _deliver(self) -> None:
        for site, steps in self._one_by_one.items():
            self._check_steps(len(steps), site)
            self._seen[site] = torch.cat(steps)
        seen: list[Seen] = []
        for layer, inputs, rows in zip(self.layers, self._inputs, self._rows, strict=True):
            if layer.pre in self._seen and layer.output_site in self._seen:
                pre = _spread(self._seen[layer.pre], inputs, len(layer.in_unit))
                post = _spread(self._seen[layer.output_site], rows, len(layer.out_units))
                arrived = self._arrived.get(layer.pre)
                seen.append(
                    (layer, pre, post, None if arrived is None else _spread(arrived, inputs, len(layer.in_unit)))
                )
        if not seen:
            return
        if not self.model.training:
            self.on_skip("evaluation")
        elif not _finite(seen):
            self.on_skip("not finite")
        else:
            self._passes.append(seen)


def _finite(seen: Sequence[Seen]) -> bool:
    """Whether all activity of a pass is; asked of the device once."""
    return bool(torch.stack([x.isfinite().all() for _, pre, post, _ in seen for x in (pre.to(post), post)]).all())


def _calls_per_step(graph: Graph) -> dict[tuple[str, str], int]:
    """(module, side) -> how often each step calls the module, for those that a loop over time calls."""
    sites = [s for layer in graph.layers for s in (layer.pre, layer.output_site) if s is not None]
    found: dict[tuple[str, str], int] = defaultdict(int)
    for s in sites:
        if s.layout == "call per step":
            found[(s.module, s.side)] = max(found[(s.module, s.side)], s.call + 1)
    return dict(found)


def _rows(layer: Layer, present: Present) -> Tensor | None:
    """Row of the dense weight behind each feature that the post site of a layer still has; None: feature o is row o."""
    if layer.post_row is None:
        return present.features((layer.out_group,), np.zeros_like(layer.out_units), layer.out_units)
    rows, seen = torch.from_numpy(layer.post_row), layer.post_features
    left = None if seen is None else present.features(seen.groups, seen.owner, seen.unit)
    return rows if left is None else rows[left]


def _spread(values: Tensor, places: Tensor | None, size: int) -> Tensor:
    """Put the features (last axis) at their places in the dense network; those of one place (a flattened map behind a
    channel) are summed, those of place -1 left out."""
    if places is None:
        return values
    known = places >= 0
    out = values.new_zeros(*values.shape[:-1], size)
    return out.index_add_(-1, places[known].to(values.device), values[..., known.to(values.device)])
