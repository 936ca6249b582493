"""What stands at the head of a report: the network, the result in one sentence, and what a reader must know."""

from __future__ import annotations

from shlex import quote

from markupsafe import Markup

from dpap.report import tables
from dpap.report.files import RunFiles
from dpap.report.svg import MISSING, percent, share_of

NEURONS = {"if": "IF neurons", "lif": "LIF neurons", "plif": "PLIF neurons", "relu": "ReLU"}


def what(files: RunFiles) -> str:
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


def sentence(files: RunFiles) -> Markup:
    """The result in one sentence."""
    result, run = files.result, files.history.run
    if result is None:
        done = len(files.history.epochs)
        return Markup(
            "<b>This run is not finished:</b> {} of {} epochs are complete. "
            "What follows is what is known so far; the test split has not given a result yet."
        ).format(done, run.epochs)
    reached = Markup("classifies <b>{}</b> of the {:,} test samples correctly").format(
        percent(result.test_accuracy), result.test_samples
    )
    if run.rule == "none":
        return Markup("Nothing was pruned in this run: the dense network {}. One seed, no interval.").format(reached)
    words = Markup("With <b>{}</b> of its synapses the network {}").format(share_of(result.connectivity), reached)
    if files.control is None:
        return words + ". One seed, no interval, and no control beside it."
    if files.control.result is None:
        return words + ". Its unpruned control is not finished. One seed, no interval."
    control = files.control.result
    difference = tables.points(result.test_accuracy - control.test_accuracy)
    count = result.test_correct - control.test_correct
    samples = f", {abs(count):,} of {result.test_samples:,} samples" if count else ""
    return Markup("{}; its unpruned control reaches {}. The difference is <b>{}</b>{} (one seed, no interval).").format(
        words, percent(control.test_accuracy), difference, samples
    )


def notices(files: RunFiles) -> list[str]:
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
            "the last pruning, chosen on the test split itself."
        )
    born, wasted = (
        sum(sum(getattr(line, name).values()) for line in files.history.development)
        for name in ("born_synapses", "wasted_synapses")
    )
    if born:
        again = share_of(wasted / born)
        found.append(f"{born:,} connections grew again while pruning went on; {again} of them were pruned again.")
    if structure := files.setting("development.structure"):
        how = ", its connections shuffled within each layer" if files.setting("development.shuffled") else ""
        found.append(
            f"A control: the structure of {structure} was trained from the start{how}; nothing was pruned here."
        )
    if files.setting("optimizer.ema") is not None:
        found.append("What is measured and saved is a running mean of the weights.")
    return found
