"""What came out of a run, as the table that the command line ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from dpap.report.history import ResultLine
from dpap.training.checkpoint import RunFolder
from dpap.training.evaluate import Evaluation


def result_table(done: Evaluation) -> Table:
    """What came out, beside the control."""
    samples = done.result.test_samples
    table = Table(
        caption=f"{samples:,} test samples: one of them is {100 / samples:.2f} points.", caption_justify="left"
    )
    table.add_column("on the test split")
    table.add_column("this run", justify="right")
    if done.control is not None:
        table.add_column("unpruned control", justify="right")
        table.add_column("ratio", justify="right")
    for name, show, mine, theirs in _rows(done):
        values = [mine] if done.control is None else [mine, theirs]
        if not any(values):  # a network without spikes has no synaptic operations
            continue
        cells = ["" if number is None else show(number) for number in values]
        if done.control is not None:
            cells.append(_compared(name, values))
        table.add_row(name, *cells)
    return table


Row = tuple[str, Callable[[float], str], float | None, float | None]


def _rows(done: Evaluation) -> list[Row]:
    """Name, how it is shown, of this run, of its control."""
    rows: list[Row] = [
        (name, show, value(done.result), None if done.control is None else value(done.control))
        for name, show, value in ROWS
    ]
    folder = RunFolder(done.path)
    small, dense = (_kilobytes(of.model_path) for of in (folder, RunFolder(folder.control_path)))
    rows.append(("saved network (KB)", _whole, small, dense))
    # Of one measurement, in turns: two that lie minutes apart would compare the machine's moods.
    result, batch = done.result, done.result.latency_batch
    rows.append((f"latency (ms, batch of {batch})", _tenths, result.latency_ms, result.dense_latency_ms))
    rows.append(("training (s)", _tenths, result.seconds, None if done.control is None else done.control.seconds))
    return rows


def _kilobytes(model: Path) -> float | None:
    return sum(file.stat().st_size for file in model.iterdir()) / 1000 if model.is_dir() else None


def _compared(name: str, values: list[float | None]) -> str:
    mine, theirs = values
    if mine is None or theirs is None or not theirs:
        return ""
    return f"{100 * (mine - theirs):+.2f} points" if name == ACCURACY else _percent(mine / theirs)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _tenths(value: float) -> str:
    return f"{value:,.1f}"


ACCURACY = "test accuracy"
ROWS: tuple[tuple[str, Callable[[float], str], Callable[[ResultLine], float | None]], ...] = (
    (ACCURACY, _percent, lambda r: r.test_accuracy),
    ("connectivity", _percent, lambda r: r.connectivity),
    ("connectivity, convolutions", _percent, lambda r: r.connectivity_conv),
    ("parameters", _whole, lambda r: r.parameters),
    ("MACs per sample", _whole, lambda r: r.macs),
    ("effective MACs per sample", _whole, lambda r: r.effective_macs),
    ("SOPs per sample", _whole, lambda r: r.synops),
    ("energy per sample (nJ, est.)", _tenths, lambda r: r.energy_pj / 1000),
)
