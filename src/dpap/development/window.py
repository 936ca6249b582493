"""What the passes between two development steps left behind: plain sums, and the passes that did not count."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dpap.errors import DPAPError
from dpap.graph.group import Layer
from dpap.method.plasticity import WindowSums
from dpap.method.rules import Rule, Sums, costly_sums
from dpap.processes import summed, world

log = logging.getLogger(__name__)

SKIPPED = {
    "evaluation": (
        "the model was in evaluation mode",
        "call model.train() before the passes to be observed; to keep norms or dropout as they are, put those modules "
        "alone into evaluation mode.",
    ),
    "raised": ("the block raised an error", "let the passes inside `with dev.observing():` end."),
    "not finite": (
        "activity held NaN or infinity",
        "lower the learning rate or clip gradients, and go on from the last checkpoint.",
    ),
}
"""Why a pass does not count: in words, and what to do when it becomes the rule."""


@dataclass(slots=True)
class Window:
    """The sums of all layers since the last development step.

    Args:
        rule: Whose sums are kept.
        num_steps: T of the network.
        layers: All that are observed.
        devices: Weight -> where its sums lie.
        dtype: Of sums that were never added to.
        pairs: Weights of which every synapse has sums of its own.
        timed: (weight, call) of the layers where Eq. (8) is summed.
        arriving: Weights at which arriving spikes are counted, for a target of synaptic operations.
    """

    rule: Rule
    num_steps: int
    layers: Sequence[Layer]
    devices: Mapping[str, torch.device]
    dtype: torch.dtype
    pairs: frozenset[str]
    timed: frozenset[tuple[str, int]]
    arriving: frozenset[str]
    sums: dict[tuple[str, int], Sums] = field(default_factory=dict)
    arrivals: dict[str, Tensor] = field(default_factory=dict)
    """Weight -> (I,): spikes x positions that read them."""
    backward: dict[str, Tensor] = field(default_factory=dict)
    """Sum and weight ("taylor fc1.weight") -> (O, I), over the backward passes; those that the rule reads."""
    passes: int = 0
    """Counted passes."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> passes that were not counted, of the window."""
    noted: set[str] = field(default_factory=set)
    """Reasons that were logged."""

    @torch.no_grad()
    def add(
        self, layer: Layer, pre: Tensor, post: Tensor, arrivals: Tensor | None, alive: Mapping[str, Tensor]
    ) -> None:
        """Account for one pass of one layer. `alive`: group -> (units,)."""
        sums = self._opened(layer, post.dtype, post.device)
        weights = self.rule.trace_weights(self.num_steps)
        first = self.rule.input_weights(self.num_steps) if not layer.in_group else weights
        living = self.living_inputs(layer, alive).to(post.device)
        if self.rule.permanent:  # what dead units emit counts nowhere, whether they are still in the tensors or not
            pre = pre.to(post) * living
            post = post * alive[layer.out_group][torch.from_numpy(layer.out_units)].to(post)
        with torch.autocast(post.device.type, enabled=False):  # the products below would be taken in bf16
            sums.add(pre.to(post), post, living, first, weights)
        if arrivals is not None:
            total = self.arrivals.setdefault(layer.weight, torch.zeros_like(arrivals))
            total += arrivals

    def add_backward(self, kind: str, weight: str, values: Tensor) -> None:
        """Account for one backward pass."""
        key = f"{kind} {weight}"
        self.backward[key] = self.backward[key] + values if key in self.backward else values

    def learned(self, kind: str, weight: str) -> Tensor:
        """A sum over the backward passes.

        Raises:
            DPAPError: There was none.
        """
        if f"{kind} {weight}" not in self.backward:
            raise DPAPError(
                f"There was no backward pass since the last development step, of which the {kind} sums are taken.",
                where=weight,
                fix="call loss.backward() between two calls of dev.step(); score= and regrow= have choices that need "
                "none.",
            )
        return self.backward[f"{kind} {weight}"]

    def skip(self, reason: str) -> None:
        """Note a pass that does not count."""
        self.skipped[reason] += 1
        if reason not in self.noted:
            self.noted.add(reason)
            log.warning("A pass inside observing() was not counted: %s.", SKIPPED[reason][0])

    def _opened(self, layer: Layer, dtype: torch.dtype, device: torch.device) -> Sums:
        key = (layer.weight, layer.call)
        if key not in self.sums:
            needed = costly_sums(self.rule)
            self.sums[key] = self.rule.new_sums(
                len(layer.out_units),
                len(layer.in_unit),
                pairs=layer.weight in self.pairs and "pairs" in needed,
                dtype=dtype,
                device=device,
                **({"stdp": True} if "stdp" in needed else {}),
                **({"num_steps": self.num_steps} if key in self.timed else {}),
            )
        return self.sums[key]

    def living_inputs(self, layer: Layer, alive: Mapping[str, Tensor]) -> Tensor:
        """(I,): whether the unit behind each input entry is alive; what is no unit counts as alive."""
        living = torch.ones(len(layer.in_unit), dtype=torch.bool)
        if self.rule.permanent:
            for n, name in enumerate(layer.in_group):
                mine = torch.from_numpy(layer.in_owner == n)
                living[mine] = alive[name][torch.from_numpy(layer.in_unit)[mine]]
        return living

    # what was seen ------------------------------------------------------------------------------------------------

    def pooled(self) -> Window:
        """What all processes saw: plain sums, so one message does. Itself where there is one process."""
        if world()[1] == 1:
            return self
        mine = {key: self._opened(layer, self.dtype, self.devices[layer.weight]) for layer, key in self._keys()}
        device = next(iter(self.devices.values()))
        counts = [self.passes, *(self.skipped[r] for r in SKIPPED), *(s.samples for s in mine.values())]
        tensors = [torch.tensor(counts, dtype=torch.float64, device=device)]
        tensors += [tensor for sums in mine.values() for tensor in sums.sums.values()]
        arrivals = {
            layer.weight: self.arrivals.get(
                layer.weight, torch.zeros(len(layer.in_unit), dtype=torch.float64, device=self.devices[layer.weight])
            )
            for layer in self.layers
            if layer.weight in self.arriving
        }
        tensors += [*arrivals.values(), *self.backward.values()]
        counted, *found = summed(tensors)
        passes, *rest = (int(n) for n in counted.tolist())
        parts = iter(found)
        sums: dict[tuple[str, int], Sums] = {}
        for (key, own), samples in zip(mine.items(), rest[len(SKIPPED) :], strict=True):
            assert isinstance(own, WindowSums), "checked when DPAP is made"
            sums[key] = own.with_sums(samples, {name: next(parts) for name in own.sums})
        return replace(
            self,
            sums=sums,
            arrivals={weight: next(parts) for weight in arrivals},
            backward={key: next(parts) for key in self.backward},
            passes=passes,
            skipped=Counter(dict(zip(SKIPPED, rest, strict=False))),
        )

    def _keys(self) -> list[tuple[Layer, tuple[str, int]]]:
        return [(layer, (layer.weight, layer.call)) for layer in self.layers]

    def of(self, layer: Layer) -> Sums:
        """The sums of a layer.

        Raises:
            DPAPError: No pass of it was counted.
        """
        sums = self.sums.get((layer.weight, layer.call))
        if sums is not None and sums.samples:
            return sums
        raise DPAPError(
            f"No batch was observed at {layer.pre} and {layer.output_site} between development steps.",
            where=layer.name,
            fix="run the forward pass inside `with dev.observing():`, and make DPAP before torch.compile (a compiled "
            "model skips hooks that were added after its first call).",
        )

    def check(self, where: str) -> None:
        """Passes that do not count must stay the exception.

        Raises:
            DPAPError: More passes of the window did not count than did.
        """
        reason, count = max(self.skipped.items(), key=lambda item: item[1], default=("", 0))
        if sum(self.skipped.values()) > self.passes:
            what, fix = SKIPPED[reason]
            raise DPAPError(
                f"{count} of the {self.passes + sum(self.skipped.values())} observed passes since the last development "
                f"step do not count: {what}.",
                where=where,
                fix=fix,
            )

    def arrivals_per_sample(self, weight: str) -> Any:
        """(I,) as an array; None where no spikes arrive."""
        if weight not in self.arrivals:
            return None
        samples = next(sums.samples for (name, _), sums in reversed(self.sums.items()) if name == weight)
        return self.arrivals[weight].cpu().numpy() / samples

    def close(self) -> None:
        """A development step was made: thresholds move on, sums start again."""
        for sums in self.sums.values():
            sums.close()
        self.arrivals.clear()
        self.backward.clear()
        self.passes = 0
        self.skipped.clear()

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": {"passes": self.passes, **self.skipped},
            "arrivals": {k: v.clone() for k, v in self.arrivals.items()},
            "backward": {k: v.clone() for k, v in self.backward.items()},
            "sums": {f"{weight}@{call}": sums.state_dict() for (weight, call), sums in self.sums.items()},
        }

    def loaded(self, state: Mapping[str, Any]) -> Window:
        """This window with the sums of a saved one."""
        counts = dict(state.get("counts", {}))
        other = replace(
            self,
            sums={},
            arrivals={k: v.clone() for k, v in state["arrivals"].items()},
            backward={k: v.clone() for k, v in state.get("backward", {}).items()},
            passes=int(counts.pop("passes", 0)),
            skipped=Counter({reason: int(count) for reason, count in counts.items()}),
        )
        for layer, (weight, call) in self._keys():
            saved = state["sums"].get(f"{weight}@{call}")
            if saved is not None:
                device = self.devices[weight]
                sums = other._opened(layer, saved["y"].dtype, device)
                sums.load_state_dict({k: v.to(device) if isinstance(v, Tensor) else v for k, v in saved.items()})
        return other
