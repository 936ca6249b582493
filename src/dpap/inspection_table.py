"""An inspection as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from dpap.graph.group import Graph, TensorSlice
from dpap.inspection import Inspection

MOST = 8
"""Names in a list of a table; the JSON form has them all."""


def tables(found: Inspection) -> Group:
    """For a terminal: groups, layers, totals."""
    title = escape(found.name)
    title += "" if found.input is None else f", input {' x '.join(map(str, found.input))}"
    title += f", {found.totals.steps} steps" if found.totals.steps > 1 else ""
    return Group(title, "", _groups(found.graph), "", _layers(found), "", _totals(found))


def _groups(graph: Graph) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right", no_wrap=True)
    table.add_column("")
    for group in graph.groups:
        state = f"[yellow]protected[/]: {escape(group.protected)}" if group.protected else "[green]prunable[/]"
        said = (
            ("made by", _owners(group.producers)),
            ("read by", _owners(group.consumers)),
            ("seen at", _names(str(site) for site in group.sites)),
        )
        lines = [state, *(f"{title} {names}" for title, names in said if names)]
        table.add_row(escape(group.name), str(group.units), "\n".join(lines))
    return table


def _owners(pieces: Sequence[TensorSlice]) -> str:
    return _names(piece.tensor.rpartition(".")[0] or piece.tensor for piece in pieces)


def _names(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - MOST} more" if len(distinct) > MOST else ""
    return escape(", ".join(distinct[:MOST])) + more


def _layers(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("weight", justify="right", overflow="fold")
    for heading in ("weights", "share", "MACs", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    timed = found.totals.steps > 1
    if timed:
        table.add_column("reads", no_wrap=True)
    for layer in found.layers:
        table.add_row(
            escape(layer.name),
            "x".join(map(str, layer.shape)),
            f"{layer.weights:,}",
            _share(layer.weights, found.totals.weights),
            f"{layer.macs:,}",
            _share(layer.macs, found.totals.macs),
            *([layer.reads] if timed else []),
        )
    return table


def _totals(found: Inspection) -> Table:
    table = Table("in all", box=None, pad_edge=False)
    for heading in ("dense", "at the floors", "may go"):
        table.add_column(heading, justify="right")
    totals = found.totals
    for title, dense, least in (
        ("MACs per sample", totals.macs, totals.least_macs),
        ("parameters", totals.parameters, totals.least_parameters),
    ):
        table.add_row(title, f"{dense:,}", f"{least:,}", _share(dense - least, dense))
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
