"""`history.jsonl`: what happened in a run, one JSON object a line.

The field `type` of a line says which of the classes below it is: "run" (the first line), "development" (one after each
development step), "epoch" (one after each epoch), "result" (the last, once the run is over). Reports read this file,
never live objects. Two runs are equal when their lines are, but for `TIME_FIELDS`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dpap.errors import DPAPError

SCHEMA = 2
TIME_FIELDS = ("seconds", "samples_per_second", "latency_ms", "dense_latency_ms", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """What is being run."""

    recipe: str
    seed: int
    rule: str
    epochs: int
    batches: int
    """Batches of an epoch."""
    samples: int
    """Training samples of an epoch."""
    data: str = ""
    """The data set as it was found: a part of a published set has another name. This and `credit`: empty in older
    runs."""
    credit: str = ""
    """Who made the data, under which licence they are used, and which part of a published set they are."""
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochLine:
    """One epoch."""

    epoch: int
    """From 1."""
    loss: float
    """Mean over the samples of the epoch, of the batch's loss before its update."""
    train_accuracy: float
    """Share of the epoch's samples that were right, each judged before its batch's update."""
    validation_accuracy: float | None
    """None when no validation split is held out."""
    test_accuracy: float | None
    """None unless the config asks for it; nothing in the run depends on it."""
    lr: float
    """Learning rate of the last batch."""
    connectivity: float
    """Living synapses / synapses of the dense network."""
    alive_units: dict[str, int]
    """Group -> living units."""
    seconds: float
    samples_per_second: float
    """Training samples per second, evaluation left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevelopmentLine:
    """One development step."""

    epoch: int
    """From 1."""
    step: int
    """Training steps so far."""
    progress: float
    """Share of the run that is over."""
    connectivity: float
    died_units: dict[str, list[int]] = field(default_factory=dict)
    """Group -> original indices, isolated ones left out."""
    isolated_units: dict[str, list[int]] = field(default_factory=dict)
    """Group -> units that were pruned because nothing living feeds them, or reads them."""
    died_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> how many."""
    living_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> how many are left, of the weights that lose them one by one; empty in older runs."""
    born_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> synapses that grew again, as many as were pruned for them; where regrowth is asked for."""
    wasted_synapses: dict[str, int] = field(default_factory=dict)
    """Weight -> synapses that had grown again in this run and were pruned in this step."""
    died_pairs: dict[str, int] = field(default_factory=dict)
    """Neuron -> single pairs of a unit and a time step. This and what follows: where time steps are pruned."""
    died_steps: dict[str, list[int]] = field(default_factory=dict)
    """Neuron -> time steps at which the whole layer was pruned."""
    living_pairs: float = 1.0
    """Living pairs / pairs of the living hidden neurons."""
    living_steps: float = 1.0
    """Living time steps of layers / all of them."""
    capped: list[str] = field(default_factory=list)
    """Groups and weights of which more would have been pruned without a cap."""
    skipped: list[str] = field(default_factory=list)
    """What was kept, with the reason."""
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResult:
    """One convolution or linear layer of the finished network beside its dense form. Operations are per sample."""

    name: str
    kind: str
    """"conv" or "linear"."""
    outputs: int
    alive_outputs: int
    inputs: int
    """Units that feed it: channels of a convolution, entries of a linear layer's input."""
    alive_inputs: int
    synapses: int
    living_synapses: int
    macs: int
    dense_macs: int
    sops: float | None
    """None where the input is real-valued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronResult:
    """The neurons of one layer of the finished network, over the test split."""

    name: str
    units: int
    """Living ones."""
    silent: int
    """Living units that never fired (whose output was never above 0)."""
    rate: float
    """Mean spikes per living neuron and step; of an ordinary network, the share of outputs that is not 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The spiking neurons of one module at each time step, over the test split."""

    name: str
    """Of the module."""
    group: str
    """Whose units they are."""
    positions: int
    """Neurons of a unit."""
    rates: list[float]
    """At each of the T steps: mean spikes per neuron of a living unit; a dead pair counts as 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """The finished network on the test split. Operations and energies are per sample."""

    test_accuracy: float
    test_correct: int
    test_samples: int
    best_test_accuracy: float | None
    """The paper's protocol, for comparison only: the best epoch after the last pruning, chosen on the test split
    itself. None unless the config has the test split measured after every epoch."""
    connectivity: float
    connectivity_conv: float | None
    """None for a network without convolutions."""
    sparsity_paper: float
    """Share of own zero weights, as papers report it."""
    parameters: int
    dense_parameters: int
    macs: float
    dense_macs: float
    effective_macs: float | None = None
    """Of living connections alone; None in older runs."""
    macs_real: float
    """Those with a real-valued input; only they enter the energy."""
    dense_macs_real: float
    synops: float
    neuron_updates: float
    dense_neuron_updates: float
    energy_pj: float
    """Estimate, compute only."""
    memory_pj: float
    """Estimate, memory traffic only."""
    dense_snn_pj: float
    """Estimate of the dense network if every neuron fired at every step."""
    dense_ann_pj: float
    """Estimate of the dense network as an ordinary one, a single pass."""
    paper_proxy_pj: float
    """The paper's energy: dense operations of one step x T x (1 - sparsity) x (1 - dead pairs), at the
    price of an accumulation."""
    alive_units: dict[str, int]
    units: dict[str, int]
    layers: list[LayerResult]
    neurons: list[NeuronResult]
    dead_pairs: float = 0.0
    """rho_t: dead pairs of a unit and a time step / pairs of the living hidden neurons."""
    living_steps: float = 1.0
    """Living time steps of layers of hidden neurons / all of them."""
    steps: list[StepResult] = field(default_factory=list)
    """In order of execution; empty where there is no time."""
    anytime: list[float] = field(default_factory=list)
    """Test accuracy of what the network answers after the first t steps, t = 1 ... T; empty with dead pairs, or without
    time."""
    latency_ms: float | None
    """Median time of one batch of `latency_batch` samples through the finished network, in evaluation mode."""
    dense_latency_ms: float | None
    """The same of the dense network, in the same interleaved runs."""
    latency_batch: int | None
    threads: int | None
    """CPU threads while the latency was measured; None on another device."""
    seconds: float | None
    """Of training, evaluation left out; None when the network was measured apart from its run."""


Line = RunLine | EpochLine | DevelopmentLine | ResultLine
LINES: Mapping[str, type[Line]] = {
    "run": RunLine,
    "epoch": EpochLine,
    "development": DevelopmentLine,
    "result": ResultLine,
}
_NAMES = {cls: name for name, cls in LINES.items()}
_PARTS: Mapping[str, type[LayerResult | NeuronResult | StepResult]] = {
    "layers": LayerResult,
    "neurons": NeuronResult,
    "steps": StepResult,
}
"""Fields of a result that hold objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A history file, its lines by type and in order."""

    run: RunLine
    epochs: tuple[EpochLine, ...]
    development: tuple[DevelopmentLine, ...]
    result: ResultLine | None
    """None while the run is not over."""


def to_text(lines: Iterable[Line]) -> str:
    """JSON, one line each, ends with a line break. NaN and inf are refused: JSON has neither."""
    return "".join(json.dumps({"type": _NAMES[type(line)], **asdict(line)}, allow_nan=False) + "\n" for line in lines)


def from_text(text: str, where: str) -> list[Line]:
    """The lines of a history.

    Raises:
        DPAPError: a line is not JSON, of an unknown type, or has other fields; with its number.
    """
    return [_line(raw, f"line {number} of {where}") for number, raw in enumerate(text.splitlines(), 1)]


def read_history(path: Path) -> History:
    """The history in a file.

    Raises:
        DPAPError: it cannot be read, or is no history of this schema.
    """
    try:
        lines = from_text(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DPAPError(f"The history cannot be read: {error}.", where=str(path)) from error
    if not lines or not isinstance(lines[0], RunLine):
        raise DPAPError("The history does not begin with a line of type 'run'.", where=str(path))
    results = [line for line in lines if isinstance(line, ResultLine)]
    return History(
        run=lines[0],
        epochs=tuple(line for line in lines if isinstance(line, EpochLine)),
        development=tuple(line for line in lines if isinstance(line, DevelopmentLine)),
        result=results[-1] if results else None,
    )


def without_time(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The lines as dicts, without what a clock wrote: equal for equal runs."""
    return [
        {"type": _NAMES[type(line)], **{k: v for k, v in asdict(line).items() if k not in TIME_FIELDS}}
        for line in lines
    ]


def _line(raw: str, where: str) -> Line:
    try:
        values = json.loads(raw)
        cls = LINES[values.pop("type")]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DPAPError(
            "This is no line of a history.", where=where, fix="use the file as `dpap train` wrote it"
        ) from error
    _check_fields(values, cls, _NAMES[cls], where)
    if cls is ResultLine:
        for name, part in _PARTS.items():
            for entry in values.setdefault(name, []):
                _check_fields(entry, part, f"{_NAMES[cls]}/{name}", where)
            values[name] = [part(**entry) for entry in values[name]]
    return cls(**values)


LATER = frozenset({"data", "credit", "living_synapses", "born_synapses", "wasted_synapses", "steps", "anytime"}) | {
    *("died_pairs", "died_steps", "living_pairs", "living_steps", "dead_pairs", "effective_macs"),
}
"""Fields that older runs do not have; they are left at their default."""


def _check_fields(values: Any, cls: type[Any], name: str, where: str) -> None:
    known = {item.name for item in fields(cls)}
    if not isinstance(values, dict) or not known - LATER <= values.keys() <= known:
        raise DPAPError(
            f"A line of type {name!r} has other fields than schema {SCHEMA} says.",
            where=where,
            fix="read it with the dpap that wrote it",
        )
