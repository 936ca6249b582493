"""The tables of a report: numbers beside the control's, each with its definition in words. Data, no markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpap.report.history import LayerResult, ResultLine
from dpap.report.svg import MISSING, compact, duration, energy, percent, share_of

Value = Callable[[ResultLine], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One of the numbers at the head of a report."""

    name: str
    value: str
    control: str
    """The control's; empty without a control."""
    compared: str
    """The difference to the control's, or the ratio."""
    ratio: float | None
    """To the control's, for a bar; None for no bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a table: each cell is a value and what stands in small print below it."""

    name: str
    cells: Sequence[tuple[str, str]]
    kind: str = ""
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Head and lines; `style` is a class of the style sheet."""

    head: Sequence[str]
    rows: Sequence[Row]
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a result: how it is shown, and what it means."""

    name: str
    show: Callable[[float | None], str]
    value: Value
    meaning: str
    in_silence: str = ""
    """What it means where dead pairs are kept from firing and from nothing else; empty: the same."""
    ratio: bool = True
    """Whether a ratio to the control's says something."""


ACCURACY = Metric(
    name="Accuracy",
    show=percent,
    value=lambda r: r.test_accuracy,
    meaning="Share of the test samples whose largest output is that of their label, for the network of the last epoch.",
    ratio=False,
)
CONNECTIVITY = Metric(
    name="Connectivity",
    show=share_of,
    value=lambda r: r.connectivity,
    meaning="Living synapses / synapses of the dense network, over all convolutions and linear layers. A synapse lives "
    "when its own mask is 1 and both the unit it drives and the unit that feeds it are alive. Sparsity is 1 minus it.",
)
MACS = Metric(
    name="MACs",
    show=compact,
    value=lambda r: r.macs,
    meaning="Multiply-accumulates of the small network as dense tensors, over all steps at which a layer has anything "
    "to compute, padding counted. A constant image that passes the first layer once counts once.",
)
EFFECTIVE_MACS = Metric(
    name="Effective MACs",
    show=compact,
    value=lambda r: r.effective_macs,
    meaning="Multiply-accumulates of living connections alone, zero inputs included: what hardware has to do that "
    "skips weights that are zero.",
)
SOPS = Metric(
    name="SOPs",
    show=compact,
    value=lambda r: r.synops,
    meaning="Synaptic operations: one spike that arrives at one living synapse, counted on the spikes that were fired.",
)
PARAMETERS = Metric(
    name="Parameters",
    show=compact,
    value=lambda r: r.parameters,
    meaning="Numbers that the small network stores as dense tensors; a dead synapse between living units still takes "
    "its place.",
    ratio=True,
)
ENERGY = Metric(
    name="Energy, estimate",
    show=energy,
    value=lambda r: r.energy_pj,
    meaning="4.6 pJ x MACs with real-valued input + 0.9 pJ x SOPs + 4.6 pJ x neuron updates (45 nm, 32-bit floating "
    "point; Horowitz, ISSCC 2014). Compute only; nothing is measured.",
)

UPDATES = Metric(
    name="Neuron updates",
    show=compact,
    value=lambda r: r.neuron_updates,
    meaning="Living pairs of a spiking neuron and a time step, each of which is charged once: living neurons x T, less "
    "the dead pairs. A leak alone is no update.",
    in_silence="Pairs of a living spiking neuron and a time step, each of which is charged once: living neurons x T. A "
    "dead pair is charged as well, so none is spared.",
)
DEAD_PAIRS = Metric(
    name="Dead pairs, rho_t",
    show=share_of,
    value=lambda r: r.dead_pairs,
    meaning="Dead pairs of a unit and a time step / pairs of the living hidden neurons (units of a convolution times "
    "their positions). A dead pair gets no input current and gives no spike; its membrane leaks.",
    in_silence="Dead pairs of a unit and a time step / pairs of the living hidden neurons (units of a convolution "
    "times their positions). The membrane of a dead pair integrates its input current, but may not fire, and is not "
    "reset.",
    ratio=False,
)
LIVING_STEPS = Metric(
    name="Living layer steps",
    show=share_of,
    value=lambda r: r.living_steps,
    meaning="Time steps of hidden layers at which at least one living unit lives / layers x T. At a dead one the layer "
    "computes nothing.",
    in_silence="Time steps of hidden layers at which at least one living unit may fire / layers x T. At a dead one the "
    "layer integrates and is silent; a layer that reads silent ones alone computes nothing.",
    ratio=False,
)

SPIKING = (SOPS, UPDATES)
TIMED = (DEAD_PAIRS, LIVING_STEPS)
TILES = (ACCURACY, CONNECTIVITY, MACS, SOPS, PARAMETERS, ENERGY)
METRICS = (
    ACCURACY,
    CONNECTIVITY,
    Metric(
        name="Connectivity of convolutions",
        show=share_of,
        value=lambda r: r.connectivity_conv,
        meaning="One linear layer often holds most weights and few operations, so the convolutions are given apart.",
    ),
    Metric(
        name="Sparsity as papers report it",
        show=percent,
        value=lambda r: r.sparsity_paper,
        meaning="Share of own zero weights, for comparison only: weights that would read a dead unit do not count.",
        ratio=False,
    ),
    PARAMETERS,
    MACS,
    EFFECTIVE_MACS,
    Metric(
        name="MACs with real-valued input",
        show=compact,
        value=lambda r: r.macs_real,
        meaning="Those that cannot be replaced by additions: in a spiking network usually the first layer, else all.",
    ),
    SOPS,
    UPDATES,
    DEAD_PAIRS,
    LIVING_STEPS,
    ENERGY,
    Metric(
        name="Memory traffic, apart",
        show=energy,
        value=lambda r: r.memory_pj,
        meaning="If no word is ever reused, from an 8 KB SRAM at 5 pJ per 32-bit word. Not part of the estimate above.",
    ),
)


def metrics_with(silent: float | None) -> tuple[Metric, ...]:
    """`METRICS`, and behind the dead pairs the share of them that never fired in the unpruned control."""
    if silent is None:
        return METRICS
    beside = Metric(
        name="Of these, silent in the control",
        show=share_of,
        value=lambda r: silent if r.dead_pairs else None,
        meaning="Dead pairs whose unit never fired at that step, at any position, for any test sample, in the unpruned "
        "control / dead pairs: what a count of silence would have found.",
        ratio=False,
    )
    place = METRICS.index(DEAD_PAIRS) + 1
    return (*METRICS[:place], beside, *METRICS[place:])


def duration_ms(milliseconds: float) -> str:
    """
    >>> duration_ms(0.4321), duration_ms(1234.0)
    ('0.432 ms', '1,234 ms')
    """
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def compared(metric: Metric, mine: ResultLine, control: ResultLine | None) -> str:
    """The difference in points, or the ratio, to the control; empty when there is none to speak of."""
    if control is None:
        return ""
    a, b = metric.value(mine), metric.value(control)
    if a is None or b is None:
        return ""
    if metric is ACCURACY:
        return points(a - b)
    return share_of(a / b) if metric.ratio and b else ""


def points(difference: float) -> str:
    """
    >>> points(-0.0012)
    '-0.12 points'
    """
    return f"{100 * difference:+.2f} points"


def spikes(result: ResultLine) -> bool:
    """Whether the network has spiking neurons; without them SOPs and neuron updates are 0 and are not shown."""
    return result.neuron_updates > 0


def tiles(result: ResultLine, control: ResultLine | None) -> list[Tile]:
    """The six numbers that matter, each with the control's and their ratio."""
    return [_tile(metric, result, control) for metric in TILES if spikes(result) or metric not in SPIKING]


def _tile(metric: Metric, result: ResultLine, control: ResultLine | None) -> Tile:
    value = metric.value(result)
    beside = metric.value(control) if control is not None else None
    said = compared(metric, result, control)
    of = "" if metric is ACCURACY else " of control"
    return Tile(
        name=metric.name,
        value=metric.show(value),
        control="" if control is None else metric.show(beside),
        compared=said + of if said else MISSING,
        ratio=value / beside if value is not None and beside and metric is not ACCURACY else None,
    )


def metrics(rows: Sequence[Metric], result: ResultLine, control: ResultLine | None, time: str | None = None) -> Table:
    """Numbers of this run and the control, with their definitions. Lines without any value are left out.

    Args:
        time: How time steps were pruned, "leak" or "silence"; None: not at all.
    """
    body = []
    for metric in rows:
        values = [metric.value(r) for r in (result, control) if r is not None]
        absent = (metric in SPIKING and not spikes(result)) or (metric in TIMED and not result.dead_pairs)
        if absent or all(value is None for value in values):
            continue
        shown = [metric.show(value) for value in values]
        shown += [] if control is None else [compared(metric, result, control)]
        meaning = metric.in_silence if metric.in_silence and time == "silence" else metric.meaning
        body.append(Row(name=metric.name, cells=[(cell, "") for cell in shown], meaning=meaning))
    beside = [] if control is None else ["control", "ratio"]
    return Table(
        head=["per sample", "this run", *beside, "what it is"],
        rows=body,
        style="metrics" if control is not None else "metrics alone",
    )


def times(result: ResultLine, control: ResultLine | None) -> Table:
    """What was measured with a clock, beside the unpruned network; no lines when nothing was."""
    rows = (
        (
            "Training",
            duration,
            result.seconds,
            control.seconds if control is not None else None,
            "All training steps, without evaluation. Measured once; the control ran after this run.",
        ),
        (
            "Latency of a batch",
            duration_ms,
            result.latency_ms,
            result.dense_latency_ms,
            "Median over runs of the finished network and of the same network before pruning, taking turns.",
        ),
    )
    body = [
        Row(
            name=name,
            cells=[
                (show(mine), ""),
                (MISSING if unpruned is None else show(unpruned), ""),
                (share_of(mine / unpruned) if unpruned else "", ""),
            ],
            meaning=meaning,
        )
        for name, show, mine, unpruned, meaning in rows
        if mine is not None
    ]
    return Table(head=["measured", "this run", "unpruned", "ratio", "what it is"], rows=body, style="metrics")


def layers(rows: Sequence[LayerResult], control: Sequence[LayerResult]) -> Table:
    """A line for each layer: units, synapses and operations, with those before it in small print."""
    beside = {layer.name: layer for layer in control}
    spiking = any(layer.sops is not None for layer in rows)
    body = []
    for layer in rows:
        cells = [
            (f"{layer.alive_outputs:,}", f"of {layer.outputs:,}"),
            (compact(layer.living_synapses), f"of {compact(layer.synapses)}"),
            (compact(layer.macs), f"of {compact(layer.dense_macs)}"),
        ]
        if spiking:
            other = beside[layer.name].sops if layer.name in beside else None
            cells.append(
                (
                    "real input" if layer.sops is None else compact(layer.sops),
                    "" if other is None else f"control {compact(other)}",
                )
            )
        body.append(Row(name=layer.name, kind="convolution" if layer.kind == "conv" else "linear", cells=cells))
    head = ["layer", "units", "synapses", "MACs"] + (["SOPs"] if spiking else [])
    return Table(head=head, rows=body, style="layers")


def comparisons(result: ResultLine, control: ResultLine | None) -> Table:
    """The energies that the estimate is compared with, in words."""
    own = ", on its own spikes" if spikes(result) else ""
    rows = [
        ("This run" + own, result.energy_pj, "the estimate above"),
        ("Unpruned control" + own, control.energy_pj if control else None, "the fair comparison"),
        (
            "Dense network, nothing saved by silence",
            result.dense_snn_pj if spikes(result) else None,
            "every spike-driven synapse adds at every step",
        ),
        (
            "Dense network without spikes" if spikes(result) else "Dense network",
            result.dense_ann_pj,
            "the MACs of one step, 4.6 pJ each",
        ),
        (
            "The paper's proxy, Eq. (15)",
            result.paper_proxy_pj,
            "dense operations of one step x T x (1 - sparsity) x (1 - dead pairs), 0.9 pJ each; no firing rate enters",
        ),
    ]
    body = [
        Row(name=name, cells=[(energy(value), "")], meaning=meaning)
        for name, value, meaning in rows
        if value is not None
    ]
    return Table(head=["compute, per sample", "estimate", "what it is"], rows=body, style="metrics two")


__all__ = ["METRICS", "TILES", "Table", "Tile", "comparisons", "layers", "metrics", "points", "tiles", "times"]
