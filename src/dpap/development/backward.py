"""What the backward passes say of each synapse, before gradients are masked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dpap.development.plan import Plan
from dpap.hooks import OwnHook
from dpap.method.rules import backward_sums
from dpap.pruning.slice import Present

Add = Callable[[str, str, Tensor], None]
"""(sum, weight, values (O, I))."""


class BackwardWatch:
    """Hands on |dL/dw| ("gradient") and |w dL/dw| ("taylor") of the prunable synapses, kernels summed, in each backward
    pass.

    Args:
        plan: Whose synapses, and which sums; hooks are put on their weights until `close`.
        present: What the tensors still hold of the dense network.
        wanted: Whether the pass counts.
        add: Where it goes.
    """

    def __init__(self, plan: Plan, present: Callable[[], Present], wanted: Callable[[], bool], add: Add) -> None:
        self._sums = sorted(backward_sums(plan.rule))
        self._present, self._wanted, self._add = present, wanted, add
        self._transposed = {layer.weight for layer in plan.synaptic if layer.transposed}
        self._handles: list[Any] = [
            plan.parameters[layer.weight].register_post_accumulate_grad_hook(OwnHook(partial(self._seen, layer.weight)))  # type: ignore[no-untyped-call]
            for layer in plan.synaptic
            if self._sums
        ]

    @torch.no_grad()
    def _seen(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is None or not self._wanted():
            return
        for kind in self._sums:
            values = parameter.grad.nan_to_num(0, posinf=0, neginf=0)
            values = values.abs() if kind == "gradient" else values * parameter
            values = self._present().dense(name, values)
            values = values.transpose(0, 1) if name in self._transposed else values
            values = values.flatten(2).sum(2) if values.dim() > 2 else values
            self._add(kind, name, values.abs())

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
