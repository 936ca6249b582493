"""Forward hooks -> activity of one pass. The only file that knows observing hooks.

A pass is one call of the model (or one `observing()` block when the loop over time lies outside it). Each site is
reduced over space at once, so nothing larger than (T, B, features) is ever kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.graph.group import Graph, Layer, Site
from dpap.hooks import OwnHook

OnLayer = Callable[[Layer, Tensor, Tensor, Tensor | None], None]
"""Receives a layer with its pre (T or 1, B, I) and post (T or 1, B, O) activity of one pass, summed or averaged over
space; and, if asked for, (I,): spikes of the pass times the positions of the layer that read them (None where the input
is no spikes)."""


class Observer:
    """Sees the sites of some layers while it is switched on.

    Args:
        model: Hooks are put on it until `close`.
        graph: Tells T.
        layers: What to see.
        on_layer: Called at the end of each pass, once per layer.
        mean_positions: Average over space; else sum.
        rectify: Take the size of what may be negative.
        weigh_arrivals: Also count arriving spikes, for a target of synaptic operations.
        whole_block: A pass is an `observing()` block, not a call of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        layers: Iterable[Layer],
        on_layer: OnLayer,
        *,
        mean_positions: bool,
        rectify: bool,
        weigh_arrivals: bool,
        whole_block: bool,
    ) -> None:
        self.num_steps, self.layers, self.on_layer = graph.num_steps, tuple(layers), on_layer
        self.mean_positions, self.rectify, self.whole_block = mean_positions, rectify, whole_block
        self.on = False
        self._seen: dict[Site, Tensor] = {}
        self._arrived: dict[Site, Tensor] = {}
        self._reading = {
            layer.pre: torch.from_numpy(layer.spike_divisor * layer.fanout)
            for layer in self.layers
            if weigh_arrivals and layer.pre is not None and layer.spike_divisor is not None
        }
        self._calls: dict[tuple[str, str], int] = defaultdict(int)
        sites = {s for layer in self.layers for s in (layer.pre, layer.post) if s is not None}
        self._sites = {(s.module, s.side, s.call): s for s in sites}
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
            self._handles.append(module.register_forward_pre_hook(OwnHook(partial(self._enter, name))))
            self._handles.append(module.register_forward_hook(OwnHook(partial(self._leave, name))))

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
        """End the block; a block that raised counts for nothing."""
        if self.whole_block and complete:
            self._deliver()
        self.on = False
        self._clear()

    def _begin(self, module: nn.Module, args: Any) -> None:
        if self._active():
            self._clear()

    def _end(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._active():
            self._deliver()
            self._clear()

    def _clear(self) -> None:
        self._seen.clear()
        self._arrived.clear()
        self._calls.clear()

    def _active(self) -> bool:
        # A forward pass inside backward (activation checkpointing) repeats one that was counted.
        return self.on and torch._C._current_graph_task_id() == -1

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._active() and args and isinstance(args[0], Tensor):
            self._record(name, "input", args[0])

    def _leave(self, name: str, module: nn.Module, args: Any, out: Any) -> None:
        if self._active() and isinstance(out, Tensor):
            self._record(name, "output", out)

    def _record(self, name: str, side: Literal["input", "output"], tensor: Tensor) -> None:
        call = self._calls[(name, side)]
        self._calls[(name, side)] += 1
        site = self._sites.get((name, side, call))
        if site is not None:
            self._seen[site] = self._reduced(site, tensor.detach())
            if site in self._reading:
                x, axis = self._time_first(site, tensor.detach())
                arriving = x * self._reading[site].to(x.device, torch.promote_types(x.dtype, torch.float32))
                self._arrived[site] = arriving.sum([d for d in range(x.dim()) if d != axis], dtype=torch.float64)

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
        if site.layout == "B":
            return x.unsqueeze(0), site.axis + 1
        if len(x) != self.num_steps:
            raise DPAPError(
                f"{len(x)} time steps arrive; the example input had {self.num_steps}.",
                where=str(site),
                fix="train with the number of time steps that DPAP was given.",
            )
        return x, site.axis

    def _deliver(self) -> None:
        for layer in self.layers:
            if layer.pre in self._seen and layer.post in self._seen:
                pre, post = self._seen[layer.pre], self._seen[layer.post]
                if layer.post_row is not None:
                    post = _per_row(post, torch.from_numpy(layer.post_row), len(layer.out_units))
                self.on_layer(layer, pre, post, self._arrived.get(layer.pre))


def _per_row(post: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum the features that belong to one row of the weight (a flattened map behind a channel)."""
    known = row >= 0
    out = post.new_zeros(*post.shape[:2], rows)
    return out.index_add_(2, row[known].to(post.device), post[..., known.to(post.device)])
