"""The sections of a report: from the files of a run to what the templates show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from shlex import quote
from typing import Any

import numpy as np

from dpap.report import tables
from dpap.report.curves import curves, speed
from dpap.report.figures import Bar, BarRow, bars
from dpap.report.files import RunFiles
from dpap.report.history import NeuronResult, ResultLine
from dpap.report.network_figure import network
from dpap.report.survival_figure import SurvivalMap, survival_key, survival_map, survival_scale
from dpap.report.svg import energy, number, share_of
from dpap.report.time_page import samples_section, silent_share, time_section

Content = Mapping[str, Any]

# Of EnergyCost.horowitz_45nm_fp32; a result that does not add up to its energy with these is not split into parts.
MAC_PJ, SOP_PJ, UPDATE_PJ = 4.6, 0.9, 4.6


def _curves(files: RunFiles) -> Content | None:
    charts = curves(files)
    return {"charts": charts} if charts else None


def _before_after(files: RunFiles) -> Content | None:
    if files.result is None or not files.result.layers:
        return None
    layers = files.result.layers
    units = sum(layer.outputs - layer.alive_outputs for layer in layers)
    synapses = sum(layer.synapses - layer.living_synapses for layer in layers)
    total = sum(layer.synapses for layer in layers)
    isolated = sum(len(dead) for line in files.history.development for dead in line.isolated_units.values())
    if not synapses:
        words = "Nothing was pruned: the network at the end is the network at the beginning."
    else:
        words = (
            f"{units:,} of {sum(layer.outputs for layer in layers):,} units and {synapses:,} of {total:,} synapses "
            f"({share_of(synapses / total)}) were pruned"
        )
        words += f"; {isolated:,} of the units because nothing living fed or read them any more." if isolated else "."
    return {"words": words, "network": network(layers)}


def _survival(files: RunFiles) -> Content | None:
    groups = files.groups()
    progress = files.development.get("progress", np.empty(0))
    maps = [
        SurvivalMap(
            group=group,
            survival=files.development[f"survival/{group}"].astype(float),
            alive=files.development[f"alive/{group}"].astype(bool),
        )
        for group in groups
        if files.development[f"survival/{group}"].size
    ]
    if not maps or not len(progress):
        return None
    ends = survival_scale(maps)
    begin = files.setting("development.start") if files.window else None
    below = "a slowly rising threshold" if files.window else "0"
    words = (
        f"Each row is a unit, each column one of the {len(progress):,} development steps. Units are sorted by how long "
        "they lived, the longest-lived on top; a row ends where its unit was pruned. Survival F is the memory of how "
        f"much a unit is used; a unit whose F falls below {below} is pruned."
        + (" The dashed line is where the window of development begins." if files.window else "")
    )
    figures = [survival_map(item, progress, files.history.run.epochs, ends, begin) for item in maps]
    return {"words": words, "key": survival_key(*ends), "maps": figures}


def _activity(files: RunFiles) -> Content | None:
    result = files.result
    if result is None or not result.neurons:
        return None
    control = files.control.result if files.control is not None else None
    before = {item.name: item for item in control.neurons} if control is not None else {}
    keys = [("run", "this run")] + ([("control", "control")] if before else [])
    spiking = files.setting("model.neuron", "relu") != "relu"
    what = "Firing rate" if spiking else "Share of outputs above 0"
    note = "Mean spikes of a living neuron in one time step" if spiking else "Mean over the living units"
    rates = [_activity_row(item, before, lambda n: n.rate, number) for item in result.neurons]
    silent = [_activity_row(item, before, _silent_share, share_of) for item in result.neurons]
    words = "never fired" if spiking else "were never above 0"
    return {
        "figures": [
            bars("rates", what, rates, keys, note=note + ", over the test split."),
            bars(
                "silent", "Silent units", silent, keys, note=f"Living units that {words} on the test split.", most=0.05
            ),
        ]
    }


def _activity_row(
    item: NeuronResult,
    before: Mapping[str, NeuronResult],
    value: Callable[[NeuronResult], float],
    show: Callable[[float], str],
) -> BarRow:
    arms = [(item, "run")] + ([(before[item.name], "control")] if item.name in before else [])
    said = show(value(item))
    if value is _silent_share:
        said = f"{item.silent:,} of {item.units:,}"
    if item.name in before:
        other = before[item.name]
        said += (
            f", control {other.silent:,} of {other.units:,}"
            if value is _silent_share
            else f", control {show(value(other))}"
        )
    return BarRow(label=item.name, value=said, bars=tuple(Bar(parts=((value(arm), style),)) for arm, style in arms))


def _silent_share(item: NeuronResult) -> float:
    return item.silent / item.units if item.units else 0.0


def _cost(files: RunFiles) -> Content | None:
    result = files.result
    if result is None:
        return None
    control = files.control.result if files.control is not None else None
    shown = tables.metrics_with(silent_share(files))
    beside = control.layers if control is not None else []
    return {
        "metrics": tables.metrics(shown, result, control, files.setting("development.time")),
        "layers": tables.layers(result.layers, beside) if result.layers else None,
        "figures": [_energy(result, control), speed(files)],
        "comparisons": tables.comparisons(result, control),
        "measured_on": _measured_on(files),
        "times": tables.times(result, control),
    }


def _energy(result: ResultLine, control: ResultLine | None) -> str:
    rows = [_energy_row("This run", result)]
    if control is not None:
        rows.append(_energy_row("Unpruned control", control))
    names = {
        "Dense, nothing saved by silence": result.dense_snn_pj,
        "Dense, without spikes": result.dense_ann_pj,
        "The paper's proxy": result.paper_proxy_pj,
        "Memory traffic of this run, apart": result.memory_pj,
    }
    keys = [
        ("b1", "MACs with real-valued input"),
        ("b2", "SOPs"),
        ("b3", "neuron updates"),
        ("other", "for comparison"),
    ]
    if not tables.spikes(result):
        del names["Dense, nothing saved by silence"]
        names = {name.replace("Dense, without spikes", "Dense network"): value for name, value in names.items()}
        del keys[1:3]
    rows += [
        BarRow(label=name, value=energy(value), bars=(Bar(parts=((value, "other"),)),)) for name, value in names.items()
    ]
    return bars("energy", "Energy per sample, estimate", rows, keys, note="45 nm, 32-bit floating point; compute only.")


def _energy_row(name: str, result: ResultLine) -> BarRow:
    parts: tuple[tuple[float, str], ...] = (
        (MAC_PJ * result.macs_real, "b1"),
        (SOP_PJ * result.synops, "b2"),
        (UPDATE_PJ * result.neuron_updates, "b3"),
    )
    if abs(sum(length for length, _ in parts) - result.energy_pj) > 1e-6 * max(result.energy_pj, 1.0):
        parts = ((result.energy_pj, "b1"),)
    return BarRow(label=name, value=energy(result.energy_pj), bars=(Bar(parts=parts),))


def _measured_on(files: RunFiles) -> str:
    environment, result = files.environment, files.result
    words = f"Measured on {environment.get('device_name', environment.get('device', 'an unknown device'))}"
    if result is not None and result.threads is not None:
        words += f", {result.threads} thread{'s' if result.threads != 1 else ''}"
    if result is not None and result.latency_batch is not None:
        words += f"; latency with batches of {result.latency_batch:,} samples"
    return words + "."


def _reproduce(files: RunFiles) -> Content:
    lines = files.history.development
    noted = (
        ("Warnings of development", [w for line in lines for w in line.warnings]),
        ("Kept by a floor", [w for line in lines for w in line.skipped]),
        ("Put off by a cap", [w for line in lines for w in line.capped]),
    )
    return {
        "command": f"dpap train {quote(str(files.path / 'config.toml'))}",
        "config": files.config_text,
        "environment": files.environment,
        "notes": [(title, f"{len(found):,}", _counted(found)) for title, found in noted if found],
        "no_warnings": bool(lines) and not any(line.warnings for line in lines),
    }


def _counted(lines: Iterable[str]) -> list[str]:
    """Equal lines once, with how often they came."""
    return [f"{line} ({count} times)" if count > 1 else line for line, count in Counter(lines).most_common()]


SECTIONS: tuple[tuple[str, str, Callable[[RunFiles], Content | None]], ...] = (
    ("curves", "Over the run", _curves),
    ("before-after", "Before and after", _before_after),
    ("survival", "Survival of units", _survival),
    ("time", "Time steps", time_section),
    ("samples", "Samples and spikes", samples_section),
    ("activity", "Activity", _activity),
    ("cost", "Operations, energy, time", _cost),
    ("reproduce", "Reproduce", _reproduce),
)
"""Id, title, and what the macro of that name in `templates/sections.html` is given; None leaves the section out."""
