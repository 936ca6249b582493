"""The curves of a report, over the epochs of a run and its control."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from dpap.report.figures import Chart, Series, chart, held
from dpap.report.files import RunFiles
from dpap.report.history import EpochLine
from dpap.report.svg import Scale, by_error, linear, logarithmic, number, percent, share_of, short_percent


def curves(files: RunFiles) -> list[str]:
    """Accuracy, loss, connectivity and learning rate, as far as they were recorded."""
    return [chart(item) for item in (_accuracy(files), _loss(files), _connectivity(files), _rate(files)) if item]


def speed(files: RunFiles) -> str:
    """Seconds of training per epoch; empty where nothing was recorded."""
    made = [_series(arm, name, "", style, lambda line: line.seconds) for arm, name, style in _arms(files)]
    series = [item for item in made if item is not None]
    if not series:
        return ""
    scale = linear(0.0, max(y for item in series for y in item.y))
    title = "Training time, seconds per epoch"
    return chart(_chart(files, "speed", title, series, scale, number, number, "Without evaluation."))


def _series(
    files: RunFiles, name: str, label: str, style: str, value: Callable[[EpochLine], float | None]
) -> Series | None:
    """A curve over the epochs of a run; None when nothing was recorded."""
    found = [(line.epoch, value(line)) for line in files.history.epochs]
    known = [(float(epoch), y) for epoch, y in found if y is not None]
    if not known:
        return None
    x, y = zip(*known, strict=True)
    return Series(label=f"{name}, {label}" if label else name, style=style, x=x, y=y)


def _arms(files: RunFiles) -> list[tuple[RunFiles, str, str]]:
    """This run and its control: files, name, style."""
    arms = [(files, "this run", "run")]
    return arms if files.control is None else [*arms, (files.control, "control", "control")]


def _accuracy(files: RunFiles) -> Chart | None:
    measures: tuple[tuple[str, str, Callable[[EpochLine], float | None]], ...] = (
        ("validation", "", lambda line: line.validation_accuracy),
        ("test", " dashed", lambda line: line.test_accuracy),
        ("training", " thin", lambda line: line.train_accuracy),
    )
    alone = all(line.validation_accuracy is None and line.test_accuracy is None for line in files.history.epochs)
    made = [
        _series(arm, name, label, style + ("" if alone else line_style), value)
        for label, line_style, value in measures
        for arm, name, style in _arms(files)
    ]
    series = [item for item in made if item is not None]
    if not series:
        return None
    if files.result is not None:
        end = float(files.history.run.epochs)
        series.append(
            Series(label="this run, test at the end", style="test", x=(end,), y=(files.result.test_accuracy,))
        )
    scale, note = _accuracy_scale([y for item in series for y in item.y], files)
    return _chart(files, "accuracy", "Accuracy", series, scale, short_percent, percent, note)


def _accuracy_scale(values: list[float], files: RunFiles) -> tuple[Scale, str]:
    """Linear, or by the error where that tells good networks apart."""
    low, high = min(values), max(values)
    if high < 0.9:
        return linear(max(0.0, low - 0.05), min(1.0, high + 0.05)), ""
    best = 1 - 0.5 / files.history.run.samples if files.result is None else 1 - 0.5 / files.result.test_samples
    note = "The axis is spaced by the logarithm of the error."
    if high > best:
        note += f" What is above {short_percent(best)} lies on the upper edge."
    return by_error(low, high, best), note


def _loss(files: RunFiles) -> Chart | None:
    made = [_series(arm, name, "", style, lambda line: line.loss) for arm, name, style in _arms(files)]
    series = [item for item in made if item is not None]
    if not series:
        return None
    values = [y for item in series for y in item.y]
    low, high = min(values), max(values)
    if low > 0 and high / low > 20:
        return _chart(
            files, "loss", "Training loss", series, logarithmic(low, high), number, number, "Logarithmic axis."
        )
    return _chart(files, "loss", "Training loss", series, linear(min(0.0, low), high), number, number)


def _connectivity(files: RunFiles) -> Chart | None:
    lines, epochs = files.history.development, files.history.run.epochs
    if not lines:
        return None
    end = float(len(files.history.epochs))
    x = (0.0, *(line.progress * epochs for line in lines))
    series = [held("this run, synapses", "run", x, (1.0, *(line.connectivity for line in lines)), end)]
    groups = files.groups()
    if groups:
        alive = sum(files.development[f"alive/{g}"].sum(axis=1) for g in groups)
        total = sum(files.development[f"alive/{g}"].shape[1] for g in groups)
        steps = (0.0, *(float(p) * epochs for p in files.development["progress"]))
        series.append(
            held(
                "this run, prunable units",
                "run dashed",
                steps,
                (1.0, *(float(n) / total for n in np.asarray(alive))),
                end,
            )
        )
    if files.control is not None:
        series.append(held("control", "control", (0.0,), (1.0,), float(len(files.control.history.epochs))))
    low = min(y for item in series for y in item.y)
    scale = linear(0.0, 1.0) if low >= 0.04 else logarithmic(low, 1.0)
    note = "" if low >= 0.04 else "Logarithmic axis."
    return _chart(
        files, "connectivity", "What is alive: connectivity and units", series, scale, short_percent, share_of, note
    )


def _rate(files: RunFiles) -> Chart | None:
    made = [_series(files, "learning rate", "", "run", lambda line: line.lr)]
    series = [item for item in made if item is not None]
    if not series:
        return None
    scale = linear(0.0, max(y for item in series for y in item.y))
    return _chart(
        files, "learning-rate", "Learning rate", series, scale, number, number, "Of the last batch of each epoch."
    )


def _chart(
    files: RunFiles,
    name: str,
    title: str,
    series: Iterable[Series],
    scale: Scale,
    tick: Callable[[float], str],
    value: Callable[[float], str],
    note: str = "",
) -> Chart:
    return Chart(
        name=name,
        title=title,
        series=tuple(series),
        scale=scale,
        end=files.history.run.epochs,
        tick=tick,
        value=value,
        window=files.window,
        note=note,
    )
