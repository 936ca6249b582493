"""The sections of a report that are about time; None for a network without it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpap.errors import DPAPError
from dpap.report.figures import Chart, Series, chart, held
from dpap.report.files import RunFiles
from dpap.report.history import StepResult
from dpap.report.svg import linear, number, percent, share_of, short_percent
from dpap.report.time_figures import LayerPairs, pair_map, raster, sample_frames, step_rates

READOUTS = {"last": "the potential at step t", "max": "the highest potential so far"}
"""What the answer after t steps is, where it is no mean."""


def time_section(files: RunFiles) -> dict[str, Any] | None:
    """Which units live at which time step, how much fires there, and how early the answer is right."""
    charts = [item for item in (_living(files), _anytime(files)) if item is not None]
    pruned = [layer for layer in layers(files) if f"pairs/{layer.name}" in files.development]
    content = {
        "words": _words(files),
        "charts": [chart(item) for item in charts],
        "pairs": [pair_map(layer) for layer in pruned],
        "dead_pair": _dead_pair(files),
        **_rates(files),
    }
    return content if any(content[key] for key in ("words", "charts", "pairs", "rates")) else None


def samples_section(files: RunFiles) -> dict[str, Any] | None:
    """A few samples as the network sees them, and what its neurons fire on the first."""
    frames, labels = files.activity.get("frames"), files.activity.get("label")
    if labels is None:
        return None
    shown = (
        [] if frames is None else [sample_frames(_title(files, k), f, f"sample {k + 1}") for k, f in enumerate(frames)]
    )
    rasters = [
        raster(layer, spikes)
        for layer in layers(files)
        if (spikes := files.activity.get(f"raster/{layer.name}")) is not None
    ]
    if not shown and not rasters:
        return None
    return {
        "frames": shown,
        "events": frames is not None and frames.shape[2] == 2,
        "rasters": rasters,
        "sample": _title(files, 0) if rasters else "",
    }


def silent_share(files: RunFiles) -> float | None:
    """Of the dead pairs of living units, those that never fired in the unpruned control on the test split; None where
    no pair is dead or the control left no record."""
    dead = silent = 0
    for layer in layers(files):
        fired = None if files.control is None else files.control.activity.get(f"fired/{layer.name}")
        if f"pairs/{layer.name}" not in files.development or fired is None:
            continue
        gone = layer.units[:, None] & ~layer.pairs
        dead += layer.positions * int(gone.sum())
        silent += layer.positions * int((gone & (fired == 0)).sum())
    return silent / dead if dead else None


def layers(files: RunFiles) -> list[LayerPairs]:
    """The layers of spiking neurons of the finished network; all pairs live where none were pruned.

    Raises:
        DPAPError: what the files say of a layer does not fit together.
    """
    return [layer for item in (files.result.steps if files.result else []) if (layer := _layer(files, item))]


def _layer(files: RunFiles, item: StepResult) -> LayerPairs | None:
    control = {} if files.control is None else files.control.activity
    records = {
        "pairs": files.development.get(f"pairs/{item.name}"),
        "fired": files.activity.get(f"fired/{item.name}"),
        "raster": files.activity.get(f"raster/{item.name}"),
        "fired in the control": control.get(f"fired/{item.name}"),
    }
    shapes = {name: array.shape[-2:] for name, array in records.items() if array is not None}
    if not shapes:
        return None
    shape = next(iter(shapes.values()))
    alive = files.development.get(f"alive/{item.group}", np.ones((1, shape[0]), dtype=bool))
    shapes["alive and rates"] = (alive.shape[1], len(item.rates))
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{name} {units} x {steps}" for name, (units, steps) in shapes.items())
        raise DPAPError(
            f"What is recorded of the units and steps of {item.name} does not fit together: {said}.",
            where=str(files.path),
            fix="restore development.npz and activity.npz from a copy",
        )
    pairs = records["pairs"]
    return LayerPairs(
        name=item.name,
        group=item.group,
        positions=item.positions,
        units=alive[-1].astype(bool),
        pairs=np.ones(shape, dtype=bool) if pairs is None else pairs[-1].astype(bool),
    )


# the parts


def _words(files: RunFiles) -> str:
    """What was pruned of time, in a sentence; empty where time was not pruned."""
    result = files.result
    if result is None or not result.dead_pairs:
        return ""
    silent = silent_share(files)
    beside = "" if silent is None else f"; {share_of(silent)} of these never fired in the unpruned control"
    return (
        f"{share_of(result.dead_pairs)} of the pairs of a living hidden neuron and a time step are dead{beside}. "
        f"{share_of(result.living_steps)} of the time steps of the hidden layers live. {_spared(files)}"
    )


def _silenced(files: RunFiles) -> bool:
    return bool(files.setting("development.time") == "silence")


def _dead_pair(files: RunFiles) -> str:
    if _silenced(files):
        return "its membrane integrates the input current, but may not fire"
    return "it gets no input current and gives no spike"


def _spared(files: RunFiles) -> str:
    """Whose work a dead step saves."""
    if _silenced(files):
        return (
            "A dead pair integrates all the same, so its layer works at every step. Spared are the spikes, and where a "
            "whole layer is dead the work of the layers that read it alone."
        )
    return "Where a whole layer is dead, its own work is spared, and that of the layers that read it alone."


def _living(files: RunFiles) -> Chart | None:
    lines, epochs = files.history.development, files.history.run.epochs
    if all(line.living_pairs == 1 and line.living_steps == 1 for line in lines):
        return None
    x, end = (0.0, *(line.progress * epochs for line in lines)), float(len(files.history.epochs))
    return Chart(
        name="living-steps",
        title="What is alive: pairs and layer steps",
        series=(
            held("pairs of a neuron and a step", "run", x, (1.0, *(line.living_pairs for line in lines)), end),
            held("steps of whole layers", "run dashed", x, (1.0, *(line.living_steps for line in lines)), end),
        ),
        scale=linear(0.0, 1.0),
        end=epochs,
        tick=short_percent,
        value=share_of,
        window=files.window,
        note="Shares of the hidden layers: of the pairs of living neurons, and of the time steps of the layers.",
    )


def _anytime(files: RunFiles) -> Chart | None:
    arms = [("this run", "run", files)] + ([("control", "control", files.control)] if files.control else [])
    series = tuple(
        Series(label=label, style=style, x=tuple(float(t) for t in range(1, len(found) + 1)), y=tuple(found))
        for label, style, arm in arms
        if arm.result is not None and (found := arm.result.anytime)
    )
    if not series:
        return None
    values = [y for item in series for y in item.y]
    read = READOUTS.get(files.setting("model.readout", ""), "the mean readout of these")
    note = f"Share of the test samples that are answered correctly after the first t steps, by {read}."
    if files.result is not None and not files.result.anytime:
        note += " A network with dead pairs answers after all of its steps, so it has no curve."
    return Chart(
        name="anytime",
        title="Accuracy against time steps",
        series=series,
        scale=linear(max(0.0, min(values) - 0.05), min(1.0, max(values) + 0.05)),
        end=max(len(item.y) for item in series),
        axis="time step",
        tick=short_percent,
        value=percent,
        note=note,
    )


def _rates(files: RunFiles) -> dict[str, Any]:
    """Figures of the firing rates at each step, with the key of their colours."""
    result = files.result
    if result is None or not result.steps:
        return {"rates": []}
    control = files.control.result if files.control is not None else None
    before = {item.name: item.rates for item in control.steps} if control is not None else {}
    most = max((rate for rates in (*before.values(), *(i.rates for i in result.steps)) for rate in rates), default=0.0)
    dead = {layer.name: layer.dead_steps for layer in layers(files)}
    keys = [("run", "this run")] + ([("control", "control")] if before else [])
    keys += [("dead-step", "dead step")] if any(dead.values()) else []
    figures = [
        step_rates(item.group, item.rates, before.get(item.name), dead.get(item.name, ()), most or 1.0)
        for item in result.steps
    ]
    return {"rates": figures, "rate_keys": keys, "most": number(most)}


def _title(files: RunFiles, sample: int) -> str:
    label, answer = (str(files.activity[name][sample]) for name in ("label", "answer"))
    return f"{label}, answered {label}" if label == answer else f"{label}, answered {answer}"


__all__ = ["layers", "samples_section", "silent_share", "time_section"]
