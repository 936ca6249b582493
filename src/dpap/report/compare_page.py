"""A comparison as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpap.report.compare import Comparison, listed
from dpap.report.compare_plots import plots
from dpap.report.compare_table import (
    SIZE_COLUMNS,
    Column,
    accuracy_columns,
    against_columns,
    said_layers,
    time_columns,
)
from dpap.report.render import render, write_page


def write_comparison(found: Comparison, path: Path) -> Path:
    """Write the page of a comparison; readers see the old page or the new one, never a part.

    Raises:
        DPAPError: it cannot be written.
    """
    return write_page(comparison_page(found), path, "comparison")


def comparison_page(found: Comparison) -> str:
    """A comparison as one HTML document: no network, no script, no other file, light and dark."""
    layers = [[f"{arm.name}: {layer}", *shown] for arm in found.arms for layer, shown in said_layers(arm)]
    return render(
        "compare.html",
        found=found,
        seeds=listed(sorted({seed for arm in found.arms for seed in arm.seeds})),
        plots=plots(found),
        accuracy=_table(found, [*accuracy_columns(found), *against_columns(found)]),
        size=_table(found, SIZE_COLUMNS),
        time=_table(found, time_columns(found)),
        converged=any(arm.convergence for arm in found.arms),
        layers=(["arm and layer", "units", "synapses", "rate", "silent"], layers),
        folders=[
            f"{arm.name}, seed {seed}: {path}"
            for arm in found.arms
            for seed, path in zip(arm.seeds, arm.paths, strict=True)
        ],
    )


def _table(found: Comparison, columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Head and lines."""
    head = ["arm", *(column.title for column in columns)]
    return head, [[arm.name, *(column.show(arm) for column in columns)] for arm in found.arms]
