"""A comparison in words and numbers: what is said of each arm, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape as plain
from rich.table import Table

from dpap.metrics.accuracy import Summary
from dpap.report.compare import ArmResult, Comparison, Convergence, Difference
from dpap.report.svg import (
    MISSING,
    duration,
    number,
    percent,
    share_of,
)


def said_accuracy(values: Summary) -> str:
    """Mean and standard deviation in percent.

    >>> from dpap.metrics import summary
    >>> said_accuracy(summary([0.98, 0.99]))
    '98.50 ± 0.71 %'
    """
    return percent(values.mean) if values.sd is None else f"{100 * values.mean:.2f} ± {100 * values.sd:.2f} %"


def said_difference(found: Difference | None) -> str:
    """Points, with the interval: "-0.10 [-0.32, +0.12]"."""
    if found is None:
        return MISSING
    values = found.accuracy
    if values.low is None or values.high is None:
        return f"{100 * values.mean:+.2f} (one {'seed' if len(found.seeds) == 1 else 'fold'}, no interval)"
    return f"{100 * values.mean:+.2f} [{100 * values.low:+.2f}, {100 * values.high:+.2f}]"


def said_p(found: Difference | None) -> str:
    """McNemar's p."""
    if found is None or found.answers is None:
        return MISSING
    p = found.answers.p_value
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def said_units(arm: ArmResult) -> str:
    """Living units of each layer in percent of the dense ones, in the order of the layers: "90 89 94"."""
    return " ".join(f"{100 * layer.unit_density:.0f}" for layer in arm.layers) or MISSING


def said_layers(arm: ArmResult) -> list[tuple[str, list[str]]]:
    """Of each layer: its name, and the shares of living units and synapses, firing rate and share of silent units."""
    active = {item.name: item for item in arm.neurons}
    found = []
    for layer in arm.layers:
        item = active.get(layer.name)
        densities = [share_of(layer.unit_density), share_of(layer.synapse_density)]
        found.append(
            (layer.name, [*densities, number(item.rate if item else None), share_of(item.silent if item else None)])
        )
    return found


def said_reached(found: Convergence | None) -> str:
    """How many epochs and seconds, and in how many runs when it is not all."""
    if found is None:
        return MISSING
    if found.epochs is None:
        return f"not reached (0 of {found.runs})"
    words = f"{found.epochs:.3g} epoch{'s' if found.epochs != 1 else ''}, {duration(found.seconds)}"
    return words if found.reached == found.runs else f"{words} ({found.reached} of {found.runs})"


def said_runs(arm: ArmResult) -> str:
    """How many seeds, and how many folds where there are some: "3", or "3 x 5 folds"; "7 in 5 folds" if some lack."""
    if arm.folds is None:
        return str(len(arm.seeds))
    seeds, rest = divmod(len(arm.seeds), arm.folds)
    whole = not rest and seeds == len(set(arm.seeds))
    return f"{seeds} x {arm.folds} folds" if whole else f"{len(arm.seeds)} in {arm.folds} folds"


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    show: Callable[[ArmResult], str]


def accuracy_columns(found: Comparison) -> list[Column]:
    columns = [
        Column("seeds", said_runs),
        Column(f"{found.split} accuracy", lambda arm: said_accuracy(arm.accuracy)),
        Column("to control, points", lambda arm: said_difference(arm.control)),
    ]
    if any(arm.control is not None and arm.control.answers for arm in found.arms):
        columns.append(Column("McNemar p", lambda arm: said_p(arm.control)))
    if any(arm.best_accuracy for arm in found.arms):
        columns.append(
            Column("paper protocol", lambda arm: said_accuracy(arm.best_accuracy) if arm.best_accuracy else MISSING)
        )
    return columns


def time_columns(found: Comparison) -> list[Column]:
    columns = [
        Column("training", lambda arm: duration(arm.seconds)),
        Column("latency ratio", lambda arm: number(arm.latency)),
    ]
    if any(arm.convergence for arm in found.arms):
        columns.append(Column("to the control's final accuracy", lambda arm: said_reached(arm.convergence)))
    return columns


def against_columns(found: Comparison) -> list[Column]:
    """None when no arm was compared with another one than the control."""
    others = sorted({arm.against.to for arm in found.arms if arm.against is not None})
    if not others:
        return []
    title = f"to {others[0]}, points" if len(others) == 1 else "to another arm, points"
    columns = [Column(title, lambda arm: said_difference(arm.against) + _to(arm, others))]
    if any(arm.against is not None and arm.against.answers for arm in found.arms):
        columns.append(Column("McNemar p", lambda arm: said_p(arm.against)))
    return columns


def _to(arm: ArmResult, others: Sequence[str]) -> str:
    return f" to {arm.against.to}" if arm.against is not None and len(others) > 1 else ""


SIZE_COLUMNS = (
    Column("connectivity", lambda arm: share_of(arm.connectivity)),
    Column("of conv", lambda arm: share_of(arm.connectivity_conv)),
    Column("MACs", lambda arm: share_of(arm.macs)),
    Column("SOPs", lambda arm: share_of(arm.synops)),
    Column("energy", lambda arm: share_of(arm.energy)),
    Column("parameters", lambda arm: share_of(arm.parameters)),
    Column("units, %", said_units),
)


def comparison_table(found: Comparison) -> Group:
    """Tables for a terminal: accuracies, sizes, times, then the notes."""
    tables = (
        (f"{found.data}: accuracy", accuracy_columns(found)),
        ("accuracy beside another arm", against_columns(found)),
        ("size", SIZE_COLUMNS),
        ("time", time_columns(found)),
    )
    return Group(
        *(_table(title, found, columns) for title, columns in tables if columns),
        *(plain(note) for note in found.notes),
    )


def _table(title: str, found: Comparison, columns: Sequence[Column]) -> Table:
    table = Table(title=plain(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # Only names, and the units of many layers, may be broken, and nothing may be cut off.
    table.add_column("arm", overflow="fold", min_width=8)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=column.show is not said_units, overflow="fold")
    for arm in found.arms:
        table.add_row(plain(arm.name), *(plain(column.show(arm)) for column in columns))
    return table
