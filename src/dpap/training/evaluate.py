"""What a saved network does on the test split: accuracy and counts, measured on the network as it was saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dpap.data import Dataset, Split, load_dataset
from dpap.errors import DPAPError
from dpap.graph.front import find_groups
from dpap.graph.group import Graph
from dpap.io import kept_units, load
from dpap.metrics import accuracy, count_macs, count_parameters, count_synapses, measure, stored_synapses
from dpap.models import build, built_from
from dpap.report.history import ResultLine
from dpap.training.checkpoint import RunFolder

BATCH = 256
"""Samples evaluated at once; it changes no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A finished run and its unpruned control."""

    path: Path
    result: ResultLine
    control: ResultLine | None
    """None for a run without one."""


def split_accuracy(model: nn.Module, split: Split) -> float:
    """Share of the samples of a split that are answered rightly, in evaluation mode."""
    return accuracy(model, split.batches(BATCH))


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
    data = load_dataset(config.data.name)
    control = RunFolder(folder.control_path)
    return Evaluation(
        path=path,
        result=evaluate_saved(folder.model_path, data, device=config.device),
        control=evaluate_saved(control.model_path, data, device=config.device) if control.model_path.exists() else None,
    )


def require_device(device: str) -> None:
    """Raise a DPAPError when PyTorch cannot use the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise DPAPError(
            "There is no CUDA device that PyTorch can use.",
            where="device = 'cuda'",
            fix="use --device cpu, or install a PyTorch build that matches the driver",
        )


def evaluate_saved(folder: Path, data: Dataset, *, device: str = "cpu", seconds: float | None = None) -> ResultLine:
    """Load the network in `folder` and measure it on the test split.

    Connectivity is against the dense network, built anew: living are the weights that are in the saved network and, in
    its linear layers, not zero (a dead synapse is stored as zero).

    Raises:
        DPAPError: the folder holds no network of this library's models, or it is damaged.
    """
    model = load(folder).to(device)
    test = data.test.to(device)
    graph = find_groups(model, test.images[:2])
    dense, dense_graph = _dense(model, test.images[:2])
    alive = _alive(folder, graph)
    synapses = stored_synapses(model, graph)
    found = measure(model, graph, test.batches(BATCH), alive, synapses)
    assert found.accuracy is not None, "the test split has labels"
    conv = count_synapses(dense_graph, kind="conv")
    return ResultLine(
        test_accuracy=found.accuracy,
        test_correct=round(found.accuracy * found.samples),
        test_samples=found.samples,
        connectivity=count_synapses(graph, alive, synapses) / count_synapses(dense_graph),
        connectivity_conv=count_synapses(graph, alive, synapses, "conv") / conv if conv else None,
        parameters=found.parameters,
        macs=found.macs_per_sample,
        synops=found.synops.sops_per_sample,
        energy_pj=found.energy.compute_pj,
        dense_parameters=count_parameters(dense, dense_graph),
        dense_macs=count_macs(dense_graph),
        alive_units={g.name: int(alive[g.name].sum()) if g.name in alive else g.units for g in graph.groups},
        units={g.name: g.units for g in dense_graph.groups},
        seconds=seconds,
    )


def _dense(model: nn.Module, example: Tensor) -> tuple[nn.Module, Graph]:
    made = built_from(model)
    assert made is not None, "load() built it"
    with torch.random.fork_rng(devices=[]):
        dense = build(made.name, **made.arguments).to(example.device).eval()
    return dense, find_groups(dense, example)


def _alive(folder: Path, graph: Graph) -> dict[str, Tensor]:
    """Who lives in a network that was saved with its dead units in place; nothing for one that was cut."""
    alive = {}
    for name, (units, kept) in kept_units(folder).items():
        if graph.group(name).units == units:
            alive[name] = torch.zeros(units, dtype=torch.bool)
            alive[name][kept] = True
    return alive
