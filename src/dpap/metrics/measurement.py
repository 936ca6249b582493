"""Everything that is reported of a network, from one pass over the test set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn

from dpap.graph.group import Graph
from dpap.metrics.accuracy import is_correct
from dpap.metrics.connectivity import ALL, connectivity, count_parameters, sparsity_paper, unit_density
from dpap.metrics.energy import EnergyCost, EnergyEstimate, paper_proxy_pj
from dpap.metrics.rates import FiringRate, RateCounter
from dpap.metrics.synops import (
    Forward,
    SynopCount,
    SynopCounter,
    count_macs,
    count_neuron_updates,
    evaluating,
    run,
    split,
)
from dpap.time.plan import LivingSteps
from dpap.time.timing import timing_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Counts are per sample, over all steps; means over the samples that were run."""

    samples: int
    accuracy: float | None
    """Share answered rightly; None without labels."""
    correct: Bool[Tensor, " samples"] | None
    """Which were; None without labels."""
    connectivity: float
    """Living synapses / synapses of the network that the graph was made of."""
    connectivity_conv: float | None
    """The same of convolutions alone; None without any."""
    sparsity_paper: float
    unit_density: Mapping[str, float]
    """Living units / units of each group."""
    parameters: int
    macs_per_sample: int
    effective_macs_per_sample: int
    """Those of living synapses alone, zero inputs included; `synops.effective_macs_per_sample` leaves these out too."""
    macs_real_per_sample: int
    """Those whose input is real-valued; only they enter the energy."""
    synops: SynopCount
    neuron_updates_per_sample: int
    dead_pairs: float
    """rho_t: dead pairs of a unit and a time step / pairs of the living hidden neurons."""
    rates: Mapping[str, FiringRate]
    """By group; those whose activity is that of a neuron or activation module."""
    step_rates: Mapping[str, Float64[Tensor, "units T"]]
    """By the module of the neurons: spikes per neuron of each unit at each step."""
    energy: EnergyEstimate


def measure(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    alive: Mapping[str, Tensor] = ALL,
    synapses: Mapping[str, Tensor] = ALL,
    *,
    cost: EnergyCost | None = None,
    forward: Forward | None = None,
) -> Measurement:
    """Run the batches once, in evaluation mode, and count.

    Args:
        model: The model that `graph` was made of: dense and masked, or compacted with a graph of its own.
        batches: Inputs, or pairs of inputs and labels.
        alive: Group name -> bool (units,); all alive where missing.
        synapses: Weight name -> bool, like the weight; all alive where missing.
        cost: Energy of one operation; `EnergyCost.horowitz_45nm_fp32()` if not given.
        forward: `forward(model, inputs)` where the model is not called as `model(inputs)`.

    Raises:
        DPAPError: Masks that do not fit the graph, no batch, or a layer that cannot be observed.
    """
    right: list[Tensor] = []
    with SynopCounter(model, graph) as counter, RateCounter(model, graph) as rates, evaluating(model):
        for batch in batches:
            inputs, labels = split(batch)
            outputs = run(model, inputs, forward)
            if labels is not None:
                right.append(is_correct(outputs, labels))
    synops = counter.count(alive, synapses)
    timing = timing_of(model)
    time = None if timing is None else timing.living
    has_conv = any(layer.kind == "conv" for layer in graph.layers)
    return Measurement(
        samples=synops.samples,
        accuracy=float(torch.cat(right).double().mean()) if right else None,
        correct=torch.cat(right) if right else None,
        connectivity=connectivity(graph, alive, synapses),
        connectivity_conv=connectivity(graph, alive, synapses, "conv") if has_conv else None,
        sparsity_paper=sparsity_paper(graph, alive, synapses),
        unit_density=unit_density(graph, alive),
        parameters=count_parameters(model, graph, alive),
        macs_per_sample=count_macs(graph, alive, time=time),
        effective_macs_per_sample=count_macs(graph, alive, synapses=synapses, time=time),
        macs_real_per_sample=count_macs(graph, alive, inputs="real", time=time),
        synops=synops,
        neuron_updates_per_sample=count_neuron_updates(graph, alive, time=time),
        dead_pairs=0.0 if time is None else time.dead_share(alive),
        rates=rates.count(alive),
        step_rates=rates.per_step(),
        energy=estimate_energy(graph, synops, alive, synapses, cost, time=time),
    )


def estimate_energy(
    graph: Graph,
    synops: SynopCount,
    alive: Mapping[str, Tensor] = ALL,
    synapses: Mapping[str, Tensor] = ALL,
    cost: EnergyCost | None = None,
    *,
    time: LivingSteps | None = None,
) -> EnergyEstimate:
    """The energy of what was counted, the paper's proxy, and the dense networks beside it."""
    cost = cost or EnergyCost.horowitz_45nm_fp32()
    work = {
        "macs_real": count_macs(graph, alive, inputs="real", time=time),
        "sops": synops.sops_per_sample,
        "neuron_updates": count_neuron_updates(graph, alive, time=time),
    }
    dense, dense_real = count_macs(graph), count_macs(graph, inputs="real")
    sparsity, dead = sparsity_paper(graph, alive, synapses), 0.0 if time is None else time.dead_share(alive)
    one_step = sum(layer.out_units.size * layer.in_features * layer.kernel * layer.positions for layer in graph.layers)
    return EnergyEstimate(
        cost=cost.name,
        compute_pj=cost.compute_pj(**work),
        memory_pj=cost.memory_pj(**work),
        dense_snn_pj=cost.compute_pj(
            macs_real=dense_real, sops=dense - dense_real, neuron_updates=count_neuron_updates(graph)
        ),
        dense_ann_pj=cost.mac_pj * one_step,
        paper_proxy_pj=paper_proxy_pj(
            cost, macs_one_step=one_step, num_steps=graph.num_steps, sparsity=sparsity, step_sparsity=dead
        ),
        paper_proxy_share=(1.0 - sparsity) * (1.0 - dead),
    )
