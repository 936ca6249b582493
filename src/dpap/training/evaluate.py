"""What a saved network does on the test split: accuracy and counts, measured on the network as it was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from dpap.data import Dataset
from dpap.errors import DPAPError
from dpap.graph.find import find_groups
from dpap.graph.group import Graph
from dpap.io import kept_units, load
from dpap.metrics import (
    anytime,
    count_macs,
    count_neuron_updates,
    count_parameters,
    estimate_energy,
    latency,
    measure,
    stored_synapses,
)
from dpap.metrics.connectivity import distinct_layers, living_fan_out, living_inputs, living_outputs
from dpap.models import build, built_from
from dpap.report.history import LayerResult, NeuronResult, ResultLine
from dpap.time.plan import LivingSteps
from dpap.time.timing import timing_of
from dpap.training.activity import Activity, activity, living_step_share, step_results
from dpap.training.checkpoint import RunFolder
from dpap.training.data import evaluation_batch, in_format, load_data

LATENCY_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A finished run and its unpruned control."""

    path: Path
    result: ResultLine
    control: ResultLine | None
    """None for a run without one."""


def evaluate_run(path: Path) -> Evaluation:
    """Measure the saved network of a finished run, and of its control, anew.

    Raises:
        DPAPError: no run folder, or the run is not finished.
    """
    folder = RunFolder.open(path)
    if not folder.model_path.exists():
        raise DPAPError(
            "The run is not finished: it holds no model/ yet.",
            where=str(path),
            fix=f"go on with it: dpap resume {path}",
        )
    config = folder.config()
    require_device(config.device)
    data = load_data(config)

    def result(of: RunFolder) -> ResultLine:
        return evaluate_saved(of.model_path, data, device=config.device, channels_last=config.channels_last).result

    control = RunFolder(folder.control_path)
    return Evaluation(
        path=path, result=result(folder), control=result(control) if control.model_path.exists() else None
    )


def require_device(device: str) -> None:
    """Raise a DPAPError when PyTorch cannot use the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise DPAPError(
            "There is no CUDA device that PyTorch can use.",
            where="device = 'cuda'",
            fix="use --device cpu, or install a PyTorch build that matches the driver",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A saved network on the test split."""

    result: ResultLine
    correct: Bool[Tensor, " samples"]
    """Which test samples it answers rightly."""
    activity: Activity
    """What its neurons did, step by step; empty where there is no time."""


def evaluate_saved(
    folder: Path,
    data: Dataset,
    *,
    device: str = "cpu",
    channels_last: bool = False,
    seconds: float | None = None,
    best_test_accuracy: float | None = None,
) -> Measured:
    """Load the network in `folder` and measure it on the test split.

    Connectivity is against the dense network, built anew: living are the weights that are in the saved network and, in
    its linear layers, not zero (a dead synapse is stored as zero).

    Args:
        seconds, best_test_accuracy: What the run knows and the saved network does not; see `ResultLine`.

    Raises:
        DPAPError: the folder holds no network of this library's models, or it is damaged.
    """
    model = placed(load(folder), device, channels_last)
    data = data.to(device)
    shown = data.test.images[:LATENCY_BATCH]
    example = data.spec.prepared(shown[:2])
    graph = find_groups(model, example, spiking_input=data.spec.timed)
    dense, dense_graph = _dense(model, example, spiking_input=data.spec.timed)
    alive = _alive(folder, graph)
    synapses = stored_synapses(model, graph)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return data.batches(data.test, evaluation_batch(data.spec))

    found = measure(model, graph, batches(), alive, synapses)
    assert found.accuracy is not None, "the test split has labels"
    assert found.correct is not None
    dense_energy = estimate_energy(dense_graph, found.synops)
    timing = timing_of(model)
    time = None if timing is None else timing.living
    layers = _layers(graph, dense_graph, alive, synapses, found.synops.sops_per_layer, time)
    conv = [layer for layer in layers if layer.kind == "conv"]
    sparsity = _sparsity_paper(layers)
    small_seconds, dense_seconds = latency(
        [model, placed(dense, device, channels_last)],
        in_format(data.spec.prepared(shown), memory_format(channels_last)),
    )
    result = ResultLine(
        test_accuracy=found.accuracy,
        test_correct=int(found.correct.sum()),
        test_samples=found.samples,
        best_test_accuracy=best_test_accuracy,
        connectivity=_connectivity(layers),
        connectivity_conv=_connectivity(conv) if conv else None,
        sparsity_paper=sparsity,
        parameters=found.parameters,
        dense_parameters=count_parameters(dense, dense_graph),
        macs=found.macs_per_sample,
        dense_macs=count_macs(dense_graph),
        effective_macs=found.effective_macs_per_sample,
        macs_real=found.macs_real_per_sample,
        dense_macs_real=count_macs(dense_graph, inputs="real"),
        synops=found.synops.sops_per_sample,
        neuron_updates=found.neuron_updates_per_sample,
        dense_neuron_updates=count_neuron_updates(dense_graph),
        energy_pj=found.energy.compute_pj,
        memory_pj=found.energy.memory_pj,
        dense_snn_pj=dense_energy.dense_snn_pj,
        dense_ann_pj=dense_energy.dense_ann_pj,
        paper_proxy_pj=(1 - sparsity) * (1 - found.dead_pairs) * dense_energy.paper_proxy_pj,
        dead_pairs=found.dead_pairs,
        living_steps=1.0 if time is None else living_step_share(time, alive),
        steps=step_results(graph, found.step_rates, alive) if graph.num_steps > 1 else [],
        anytime=list(anytime(model, batches())) if graph.num_steps > 1 and not found.dead_pairs else [],
        alive_units={g.name: int(alive[g.name].sum()) if g.name in alive else g.units for g in graph.groups},
        units={g.name: g.units for g in dense_graph.groups},
        layers=layers,
        neurons=[NeuronResult(name=name, **asdict(rate)) for name, rate in found.rates.items()],
        latency_ms=1000 * small_seconds,
        dense_latency_ms=1000 * dense_seconds,
        latency_batch=len(shown),
        threads=torch.get_num_threads() if device == "cpu" else None,
        seconds=seconds,
    )
    recorded = activity(model, graph, data, found.step_rates, kept_units(folder)) if graph.num_steps > 1 else {}
    return Measured(result=result, correct=found.correct, activity=recorded)


def placed(model: nn.Module, device: str, channels_last: bool) -> nn.Module:
    """The model on its device, its convolutions in the memory format."""
    return model.to(device).to(memory_format=memory_format(channels_last))  # type: ignore[no-any-return,call-overload]


def memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _layers(
    graph: Graph,
    dense: Graph,
    alive: Mapping[str, Tensor],
    synapses: Mapping[str, Tensor],
    sops: Mapping[str, float],
    time: LivingSteps | None,
) -> list[LayerResult]:
    """Each layer beside its dense form, which has the same name; one that several calls share is listed once."""
    small = {layer.name: layer for layer in distinct_layers(graph)}
    found = []
    for layer in distinct_layers(dense):
        now = small[layer.name]
        found.append(
            LayerResult(
                name=layer.name,
                kind=layer.kind,
                outputs=layer.out_units.size,
                alive_outputs=int(living_outputs(now, alive).sum()),
                inputs=layer.in_owner.size,
                alive_inputs=int(living_inputs(now, alive).sum()),
                synapses=layer.out_units.size * layer.in_features * layer.kernel,
                living_synapses=int(living_fan_out(now, alive, synapses).sum()) * layer.kernel,
                macs=_layer_macs(graph, layer.name, alive, time),
                dense_macs=_layer_macs(dense, layer.name, {}),
                sops=sops.get(layer.name),
            )
        )
    return found


def _layer_macs(graph: Graph, name: str, alive: Mapping[str, Tensor], time: LivingSteps | None = None) -> int:
    layers = tuple(layer for layer in graph.layers if layer.name == name)
    return count_macs(replace(graph, layers=layers), alive, time=time)


def _connectivity(layers: Sequence[LayerResult]) -> float:
    return sum(layer.living_synapses for layer in layers) / sum(layer.synapses for layer in layers)


def _sparsity_paper(layers: Sequence[LayerResult]) -> float:
    """Own zero weights over all: those that a living unit reads from a dead one do not count as zero there."""
    kept = sum(
        layer.living_synapses
        + layer.alive_outputs * (layer.inputs - layer.alive_inputs) * layer.synapses / (layer.outputs * layer.inputs)
        for layer in layers
    )
    return 1 - kept / sum(layer.synapses for layer in layers)


def _dense(model: nn.Module, example: Tensor, *, spiking_input: bool) -> tuple[nn.Module, Graph]:
    made = built_from(model)
    assert made is not None, "load() built it"
    with torch.random.fork_rng(devices=[]):
        dense = build(made.name, **made.arguments).to(example.device).eval()
    return dense, find_groups(dense, example, spiking_input=spiking_input)


def _alive(folder: Path, graph: Graph) -> dict[str, Tensor]:
    """Which units live in a network that was saved with its pruned units in place; nothing for one that was cut."""
    alive = {}
    for name, (units, kept) in kept_units(folder).items():
        if graph.group(name).units == units:
            alive[name] = torch.zeros(units, dtype=torch.bool)
            alive[name][kept] = True
    return alive
