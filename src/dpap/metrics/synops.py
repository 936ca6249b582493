"""What is done: multiply-accumulates, synaptic operations, neuron updates; per sample, over all steps.

A synaptic operation (SOP) is one spike that arrives at one living synapse, with multiplicity: a value that an average
pool made of three spikes counts three. What is a spike is known from the graph, never guessed from values being 0 or 1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpap.errors import DPAPError
from dpap.graph.group import Graph, Layer, NeuronSite, Site
from dpap.metrics.connectivity import ALL, check_living, check_widths, living_fan_out
from dpap.time.plan import LivingSteps
from dpap.time.timing import timing_of

Forward = Callable[[nn.Module, Any], Any]


def count_macs(
    graph: Graph,
    alive: Mapping[str, Tensor] = ALL,
    *,
    synapses: Mapping[str, Tensor] | None = None,
    inputs: Literal["all", "real"] = "all",
    time: LivingSteps | None = None,
) -> int:
    """Multiply-accumulates of every convolution and linear layer of the compacted network, per sample.

    Living outputs x living inputs x kernel x output positions x steps: padding counts, a constant direct-encoded input
    counts once, and a dead synapse between living units still counts (the matrix is dense).

    Args:
        synapses: Count living synapses alone (effective MACs); NeuroBench's count of that name leaves out inputs that
            are zero as well (`SynopCount.effective_macs_per_sample`).
        inputs: "real" counts only the layers whose input is real-valued, which an energy estimate books as MACs.
        time: Which units live when: steps at which a layer has nothing to compute do not count.
    """
    check_living(graph, alive, synapses or ALL)
    return sum(
        int(living_fan_out(layer, alive, synapses or ALL).sum()) * _macs_per_synapse(layer, time)
        for layer in graph.layers
        if inputs == "all" or layer.spike_divisor is None
    )


def _macs_per_synapse(layer: Layer, time: LivingSteps | None) -> int:
    if time is None or layer.steps == 1:
        return layer.macs_per_synapse
    return layer.macs_per_synapse // layer.steps * time.runs(layer.name)


def count_neuron_updates(graph: Graph, alive: Mapping[str, Tensor] = ALL, *, time: LivingSteps | None = None) -> int:
    """Membrane updates of spiking neurons: living neurons x living steps, per sample; a leak alone is none."""
    check_living(graph, alive, ALL)
    return sum(_living_updates(site, alive, time) * site.positions for site in graph.neurons)


@dataclass(frozen=True, slots=True, kw_only=True)
class SynopCount:
    """Means over the samples that were run."""

    samples: int
    sops_per_sample: float
    """Spikes arriving at living synapses."""
    effective_acs_per_sample: float
    """NeuroBench's reading: non-zero inputs x living synapses, of layers that read spikes as such."""
    effective_macs_per_sample: float
    """NeuroBench's reading: the same of all other layers; an averaged spike is a real value there. Where the input of
    a real-valued layer cannot be observed, all of it counts."""
    sops_per_layer: Mapping[str, float]
    """By the layer's name, its calls added; layers with a real-valued input do not appear."""


class SynopCounter:
    """Records, while it is entered, what arrives at the layers of a model; then counts, for any units that are alive.

    ::

        with SynopCounter(model, graph) as counter:
            for x, _ in batches:
                model(x)
        counter.count(alive, synapses).sops_per_sample

    A count is linear in what arrives, so sums per input entry are all that is kept.

    Dead time steps of the model (of `compact`, `masked`, `load`) are heeded: what arrives there is no operation.

    Args:
        model: The model that `graph` was made of.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        check_widths(model, graph)
        self._timing = timing = timing_of(model)
        receives = [None if timing is None else timing.living.receives(layer) for layer in graph.layers]
        self._receives = {index: steps for index, steps in enumerate(receives) if steps is not None}
        self._sample_steps = 0
        self._model, self._graph = model, graph
        self._spikes: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._nonzero: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._calls: Counter[str] = Counter()
        self._handles: list[RemovableHandle] = []
        self._layers: dict[str, list[int]] = defaultdict(list)
        for index, layer in enumerate(graph.layers):
            if layer.pre is not None:
                self._layers[layer.pre.module].append(index)
        self._first = min((i for indices in self._layers.values() for i in indices), default=-1)

    @property
    def samples(self) -> int:
        """Samples that were run."""
        if self._first < 0:
            return 0
        pre = self._graph.layers[self._first].pre
        looped = pre is not None and pre.layout == "call per step"
        return self._sample_steps // self._graph.num_steps if looped else self._sample_steps

    def __enter__(self) -> SynopCounter:
        self._handles.append(self._model.register_forward_pre_hook(lambda *_: self._calls.clear()))
        for name in self._layers:
            hook = self._hook(name)
            # First of all: a network with dead time steps leaves some out.
            self._handles.append(self._model.get_submodule(name).register_forward_pre_hook(hook, prepend=True))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_: nn.Module, args: tuple[Any, ...]) -> None:
            indices = self._layers[name]
            # In a loop over time outside the layer, all calls of a pass are steps of the same few layers.
            index = indices[self._calls[name] % len(indices)]
            self._calls[name] += 1
            x = args[0].detach()
            self._record(index, x if self._timing is None else self._timing.whole(name, "input", x))

        return record

    def _record(self, index: int, x: Tensor) -> None:
        layer = self._graph.layers[index]
        assert layer.pre is not None
        if index == self._first:
            self._sample_steps += _samples(x, layer.pre, self._graph.num_steps)
        parts = x.chunk(self._graph.num_steps) if index in self._receives else (x,)  # step by step, where it matters
        if layer.spike_divisor is not None:
            divisor = torch.from_numpy(layer.spike_divisor)
            self._spikes[index] = self._spikes[index] + torch.stack([arrivals(p, layer, divisor) for p in parts])
        nonzero = [arrivals(p != 0, layer, torch.ones(())) for p in parts]
        self._nonzero[index] = self._nonzero[index] + torch.stack(nonzero)

    def count(self, alive: Mapping[str, Tensor] = ALL, synapses: Mapping[str, Tensor] = ALL) -> SynopCount:
        """Operations per sample, given the units that are alive.

        Raises:
            DPAPError: No batch was run, or a layer saw none or cannot be observed.
        """
        check_living(self._graph, alive, synapses)
        if not self.samples:
            raise DPAPError(
                "No sample was counted.", fix="run at least one batch through the model while the counter is entered."
            )
        sops: dict[str, float] = defaultdict(float)
        nonzero = {"acs": 0.0, "macs": 0.0}
        for index, layer in enumerate(self._graph.layers):
            receives = self._receives.get(index)
            steps = [None] if receives is None else receives.T
            fan_out = torch.stack([living_fan_out(layer, alive, synapses, rows) for rows in steps]).double()
            if layer.pre is None and layer.spike_divisor is None:  # never seen: every input counts as non-zero
                nonzero["macs"] += float(fan_out.sum()) * layer.macs_per_synapse
                continue
            if layer.spike_divisor is not None:
                sops[layer.name] += float((self._seen(self._spikes, index) * fan_out).sum()) / self.samples
            reading = "acs" if reads_spikes(layer) else "macs"
            nonzero[reading] += float((self._seen(self._nonzero, index) * fan_out).sum()) / self.samples
        return SynopCount(
            samples=self.samples,
            sops_per_sample=sum(sops.values()),
            effective_acs_per_sample=nonzero["acs"],
            effective_macs_per_sample=nonzero["macs"],
            sops_per_layer=dict(sops),
        )

    def _seen(self, sums: dict[int, Tensor], index: int) -> Tensor:
        if index not in sums:
            layer = self._graph.layers[index]
            raise DPAPError(
                "Synaptic operations cannot be counted: nothing was seen to enter a layer.",
                where=layer.name,
                fix="call it as a module of its own on every pass, and measure the model before it is compiled.",
            )
        return sums[index]


def count_synops(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    alive: Mapping[str, Tensor] = ALL,
    synapses: Mapping[str, Tensor] = ALL,
    *,
    forward: Forward | None = None,
) -> SynopCount:
    """Run the batches in evaluation mode and count the synaptic operations.

    Args:
        batches: Inputs, or pairs of inputs and labels.
        forward: `forward(model, inputs)` where the model is not called as `model(inputs)`.
    """
    with SynopCounter(model, graph) as counter, evaluating(model):
        for batch in batches:
            run(model, split(batch)[0], forward)
    return counter.count(alive, synapses)


# the parts -----------------------------------------------------------------------------------------------------------


def arrivals(x: Tensor, layer: Layer, scale: Tensor) -> Float64[Tensor, " I"]:
    """For each input entry of a layer: sum over batch, time and space of value x scale x number of reads.

    Args:
        x: What enters the layer, in the layout of its site.
        scale: () or one sample's shape: spikes behind a value.
    """
    assert layer.pre is not None
    lead = 2 if layer.pre.layout == "T,B" else 1
    axis = layer.pre.axis - lead
    per_position = x.sum(dim=tuple(range(lead)), dtype=torch.float64).cpu() * scale
    weighted = (per_position.movedim(axis, 0) * torch.as_tensor(layer.fanout)).reshape(x.shape[layer.pre.axis], -1)
    return weighted.sum(1)


def _living_updates(site: NeuronSite, alive: Mapping[str, Tensor], time: LivingSteps | None) -> int:
    """Of one position of each unit."""
    units = None if site.group is None else alive.get(site.group)
    pairs = None if time is None else time.updates(site.name)
    if pairs is not None:
        return int(pairs.sum() if units is None else pairs[units.cpu()].sum())
    return (site.features if units is None else int(units.sum())) * site.steps


def reads_spikes(layer: Layer) -> bool:
    """Whether every value that enters is itself a count of spikes, not an average of some."""
    return layer.spike_divisor is not None and bool((layer.spike_divisor == 1).all())


def _samples(x: Tensor, site: Site, num_steps: int) -> int:
    """Samples that enter in one call."""
    if site.layout == "T,B":
        return x.shape[1]
    return x.shape[0] // num_steps if site.layout == "T*B" else x.shape[0]


def split(batch: Any) -> tuple[Any, Tensor | None]:
    """(inputs, labels) of a batch; a batch that is no pair has no labels."""
    return (batch[0], batch[1]) if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)


def run(model: nn.Module, inputs: Any, forward: Forward | None) -> Any:
    """One forward pass, by the user's function where there is one."""
    return model(inputs) if forward is None else forward(model, inputs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
