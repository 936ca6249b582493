"""`report.html`: a run on one page that needs nothing but itself.

    page(run)           the page as text; depends on the files of the run folder alone
    write_report(run)   writes it into the folder

What the page says is read from the files of the run (`files.py`), drawn by `figures.py`, tabulated by `tables.py`.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from shlex import quote

import numpy as np

from dpap.atomic import replace_file
from dpap.errors import DPAPError
from dpap.report import tables
from dpap.report.figures import (
    Bar,
    BarRow,
    Chart,
    Series,
    SurvivalMap,
    bars,
    chart,
    held,
    network,
    survival_key,
    survival_map,
    survival_scale,
)
from dpap.report.files import RunFiles, read_run
from dpap.report.history import EpochLine, NeuronResult, ResultLine
from dpap.report.style import SCRIPT, STYLE
from dpap.report.svg import (
    MISSING,
    Scale,
    by_error,
    energy,
    linear,
    logarithmic,
    number,
    percent,
    share_of,
    short_percent,
    tag,
)
from dpap.report.time_page import samples_section, silent_share, time_section

NAME = "report.html"

# Of EnergyCost.horowitz_45nm_fp32; a result that does not add up to its energy with these is not split into parts.
MAC_PJ, SOP_PJ, UPDATE_PJ = 4.6, 0.9, 4.6

NEURONS = {"if": "IF neurons", "lif": "LIF neurons", "plif": "PLIF neurons", "relu": "ReLU"}


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder; readers see the old page or the new, never a part.

    Raises:
        DPAPError: a file of the run is missing or damaged (it names the file), or the page cannot be written.
    """
    content, path = page(run).encode(), run / NAME
    try:
        replace_file(path, content)
    except OSError as error:
        raise DPAPError(f"The report cannot be written: {error.strerror}.", where=str(path)) from error
    return path


def page(run: Path) -> str:
    """The report of a run as one HTML document: no network, no other file, light and dark.

    Raises:
        DPAPError: a file of the run is missing or damaged; it names the file.
    """
    files = read_run(run)
    sections = [(name, title, content) for name, title, make in SECTIONS if (content := make(files))]
    body = [
        _head(files, [(name, title) for name, title, _ in sections]),
        tag("main", *(tag("section", tag("h2", title), content, id=name) for name, title, content in sections)),
        tag(
            "footer",
            f"Written by dpap {escape(str(files.environment.get('dpap', '')))} from the files of the run folder.",
        ),
    ]
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # The page may load nothing and run no other script than its own, whatever a name in it contains.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(files.history.run.recipe)} · dpap report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


# the head


def _head(files: RunFiles, sections: Iterable[tuple[str, str]]) -> str:
    run = files.history.run
    links = [tag("a", escape(title), href=f"#{name}") for name, title in sections]
    content = [
        tag("p", "dpap report", class_="kind"),
        tag("h1", escape(run.recipe)),
        tag("p", escape(_what(files)), class_="what"),
        tag("p", escape(f"Data: {run.credit}."), class_="what", id="credit") if run.credit else "",
        tag("p", _sentence(files), class_="lead", id="lead"),
    ]
    if files.result is not None:
        control = files.control.result if files.control is not None else None
        content.append(tables.tiles(files.result, control))
    if notices := _notices(files):
        content.append(tag("ul", *(tag("li", escape(notice)) for notice in notices), class_="notices"))
    return tag("header", *content, tag("nav", *links, aria_label="Sections"))


def _what(files: RunFiles) -> str:
    """Network, data, seed and rule in one line."""
    run = files.history.run
    neuron = str(files.setting("model.neuron", ""))
    steps = files.setting("model.num_steps", 1)
    width = files.setting("model.width", 1)
    parts = [_network_words(files) + (f" at width {width:g}" if width != 1 else "")]
    parts.append(f"{NEURONS.get(neuron, neuron)}" + (f", {steps} time steps" if steps != 1 else ""))
    if (readout := files.setting("model.readout", "current")) != "current":
        parts.append(f"readout {readout}")
    data = run.data or files.setting("data.name", MISSING)
    parts.append(f"data set {data}, {run.samples:,} training samples")
    if folds := files.setting("data.folds"):
        parts.append(f"fold {files.setting('data.fold', 0)} (from 0) of a {folds}-fold cross-validation")
    parts.append(f"rule {run.rule}")
    for kind in ("unit", "synapse"):
        if run.rule != "none" and (score := files.setting(f"development.{kind}_score")):
            parts.append(f"{kind}s scored by {score}")
    if mode := files.setting("development.time"):
        score = files.setting("development.time_score")
        parts.append(f"time steps pruned by {mode}" + (f", scored by {score}" if score else ""))
    parts.append(f"{run.epochs} epochs, seed {run.seed}")
    return " · ".join(part for part in parts if part)


def _network_words(files: RunFiles) -> str:
    """The convolutional network in short, as 16C3-32C3-AP2-256FC; empty for another model."""
    blocks, hidden = files.setting("model.blocks"), files.setting("model.hidden")
    if not isinstance(blocks, list) or not isinstance(hidden, list):
        return str(files.setting("model.name", ""))
    kernel, pooled = files.setting("model.kernel", 3), files.setting("model.pooled")
    pool = "MP2" if files.setting("model.pool") == "max" else "AP2"
    parts = []
    for k, block in enumerate(blocks):
        parts += [f"{width}C{kernel}" for width in block]
        if pooled is None or k < pooled:
            parts.append(pool)
    words = "-".join([*parts, *(f"{width}FC" for width in hidden)])
    return words if len(words) <= 60 else words[:57].rpartition("-")[0] + "-…"


def _sentence(files: RunFiles) -> str:
    """The result in one sentence, as markup."""
    result, run = files.result, files.history.run
    if result is None:
        done = len(files.history.epochs)
        return (
            f"<b>This run is not finished:</b> {done} of {run.epochs} epochs are complete. "
            "What follows is what is known so far; the test split has not given a result yet."
        )
    reached = f"answers <b>{percent(result.test_accuracy)}</b> of the {result.test_samples:,} test samples rightly"
    if run.rule == "none":
        return f"Nothing was pruned in this run: the dense network {reached}. One seed, no interval."
    words = f"With <b>{share_of(result.connectivity)}</b> of its synapses the network {reached}"
    if files.control is None:
        return f"{words}. One seed, no interval, and no control beside it."
    if files.control.result is None:
        return f"{words}. Its unpruned control is not finished. One seed, no interval."
    control = files.control.result
    difference = tables.points(result.test_accuracy - control.test_accuracy)
    count = result.test_correct - control.test_correct
    samples = f", {abs(count):,} of {result.test_samples:,} samples" if count else ""
    return (
        f"{words}; its unpruned control reaches {percent(control.test_accuracy)}. "
        f"The difference is <b>{difference}</b>{samples} (one seed, no interval)."
    )


def _notices(files: RunFiles) -> list[str]:
    """What a reader must know before the numbers are compared with others."""
    found = []
    if files.result is None:
        found.append(f"To go on with the run: dpap resume {quote(str(files.path))}")
    if (limit := files.setting("data.limit")) is not None:
        found.append(f"The training data were limited to about {limit:,} samples: this is not the benchmark's result.")
    if not files.setting("data.hold_out", False):
        found.append(
            "No validation split was held out: all training data were trained on, so there is no validation curve."
        )
    if files.setting("test_each_epoch", False):
        found.append(
            "The test split was measured after every epoch, for the curve alone: the result is the last epoch's."
        )
    if files.result is not None and files.result.best_test_accuracy is not None:
        found.append(
            f"Paper protocol, for comparison only: {percent(files.result.best_test_accuracy)}, the best epoch after "
            "the last death, chosen on the test split itself."
        )
    if files.setting("optimizer.ema") is not None:
        found.append("What is measured and saved is a running mean of the weights.")
    return found


# curves


def _curves(files: RunFiles) -> str:
    charts = [item for item in (_accuracy(files), _loss(files), _connectivity(files), _rate(files)) if item]
    if not charts:
        return ""
    return tag("div", *map(chart, charts), class_="grid")


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


# the network, survival, activity


def _network(files: RunFiles) -> str:
    if files.result is None or not files.result.layers:
        return ""
    layers = files.result.layers
    units = sum(layer.outputs - layer.alive_outputs for layer in layers)
    synapses = sum(layer.synapses - layer.living_synapses for layer in layers)
    total = sum(layer.synapses for layer in layers)
    isolated = sum(len(dead) for line in files.history.development for dead in line.isolated_units.values())
    if not synapses:
        words = "Nothing died: the network at the end is the network at the beginning."
    else:
        words = (
            f"{units:,} of {sum(layer.outputs for layer in layers):,} units and {synapses:,} of {total:,} synapses "
            f"({share_of(synapses / total)}) died"
        )
        words += f"; {isolated:,} of the units because nothing living fed or read them any more." if isolated else "."
    return tag("p", words) + network(layers)


def _survival(files: RunFiles) -> str:
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
        return ""
    ends = survival_scale(maps)
    begin = files.setting("development.start") if files.window else None
    words = (
        f"A row is a unit, a column one of the {len(progress):,} development steps. Units are sorted by the time of "
        "their death, the longest-lived on top; where a row ends, the unit died. Survival F is the memory of how much "
        f"a unit is used; whoever falls below {'a slowly rising level' if files.window else '0'} dies."
        + (" The dashed line is where the window of development begins." if files.window else "")
    )
    figures = [survival_map(item, progress, files.history.run.epochs, ends, begin) for item in maps]
    return (
        tag("p", words)
        + tag("div", survival_key(*ends), class_="survival-key")
        + tag("div", *figures, class_="maps", id="survival-maps")
    )


def _activity(files: RunFiles) -> str:
    result = files.result
    if result is None or not result.neurons:
        return ""
    control = files.control.result if files.control is not None else None
    before = {item.name: item for item in control.neurons} if control is not None else {}
    keys = [("run", "this run")] + ([("control", "control")] if before else [])
    spiking = files.setting("model.neuron", "relu") != "relu"
    what = "Firing rate" if spiking else "Share of outputs above 0"
    note = "Mean spikes of a living neuron in one time step" if spiking else "Mean over the living units"
    rates = [_activity_row(item, before, lambda n: n.rate, number) for item in result.neurons]
    silent = [_activity_row(item, before, _silent_share, share_of) for item in result.neurons]
    words = "never fired" if spiking else "were never above 0"
    return tag("p", "Measured on the test split, on the living units of each layer.") + tag(
        "div",
        bars("rates", what, rates, keys, note=note + ", over the test split."),
        bars("silent", "Silent units", silent, keys, note=f"Living units that {words} on the test split.", most=0.05),
        class_="grid",
    )


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


# cost


def _cost(files: RunFiles) -> str:
    result = files.result
    if result is None:
        return ""
    control = files.control.result if files.control is not None else None
    parts = [
        tag(
            "p",
            "Counts are per sample, over all time steps, on the test split. They come from the graph of the network "
            "and the spikes that arrive; energy is an estimate; time is measured, never inferred from counts.",
        ),
        tables.metrics(tables.metrics_with(silent_share(files)), result, control, files.setting("development.time")),
    ]
    if result.layers:
        parts += [
            tag("h3", "Layer by layer"),
            tables.layers(result.layers, control.layers if control is not None else []),
        ]
    parts += [
        tag("div", _energy(result, control), _speed(files), class_="grid"),
        tag("h3", "What the energy is compared with"),
        tables.comparisons(result, control),
    ]
    parts += [tag("h3", "Time"), tag("p", _measured_on(files)), tables.times(result, control)]
    return "".join(parts)


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


def _speed(files: RunFiles) -> str:
    made = [_series(arm, name, "", style, lambda line: line.seconds) for arm, name, style in _arms(files)]
    series = [item for item in made if item is not None]
    if not series:
        return ""
    scale = linear(0.0, max(y for item in series for y in item.y))
    return chart(
        _chart(
            files,
            "speed",
            "Training time, seconds per epoch",
            series,
            scale,
            number,
            number,
            "Evaluation left out.",
        )
    )


def _measured_on(files: RunFiles) -> str:
    environment, result = files.environment, files.result
    words = f"Measured on {escape(str(environment.get('device_name', environment.get('device', 'an unknown device'))))}"
    if result is not None and result.threads is not None:
        words += f", {result.threads} thread{'s' if result.threads != 1 else ''}"
    if result is not None and result.latency_batch is not None:
        words += f"; latency with batches of {result.latency_batch:,} samples"
    return words + "."


# reproduce


def _reproduce(files: RunFiles) -> str:
    parts = [
        tag("p", "The config below is complete: save it as config.toml, or use the one in the run folder."),
        tag("pre", tag("code", escape(f"dpap train {quote(str(files.path / 'config.toml'))}"))),
        tag("details", tag("summary", "config.toml"), tag("pre", tag("code", escape(files.config_text)))),
        tag("details", tag("summary", "Environment"), tables.pairs(files.environment)),
    ]
    for title, lines in (
        ("Warnings of development", [w for line in files.history.development for w in line.warnings]),
        ("Deaths that a floor forbade", [w for line in files.history.development for w in line.skipped]),
        ("Deaths that a cap put off", [w for line in files.history.development for w in line.capped]),
    ):
        if lines:
            parts.append(_counted(title, lines))
    if files.history.development and not any(line.warnings for line in files.history.development):
        parts.append(tag("p", "Development gave no warnings."))
    return "".join(parts)


def _counted(title: str, lines: Iterable[str]) -> str:
    """A folded list in which equal lines stand once, with how often they came."""
    counted = Counter(lines)
    items = [
        tag("li", escape(line + (f" ({count} times)" if count > 1 else ""))) for line, count in counted.most_common()
    ]
    return tag("details", tag("summary", f"{title}: {sum(counted.values()):,}"), tag("ul", *items, class_="list"))


SECTIONS: tuple[tuple[str, str, Callable[[RunFiles], str]], ...] = (
    ("curves", "Over the run", _curves),
    ("before-after", "Before and after", _network),
    ("survival", "Survival of units", _survival),
    ("time", "Time steps", time_section),
    ("samples", "Samples and spikes", samples_section),
    ("activity", "Activity", _activity),
    ("cost", "Operations, energy, time", _cost),
    ("reproduce", "Reproduce", _reproduce),
)

__all__ = ["NAME", "page", "write_report"]
