"""Run folders made up without training, for tests of the report: small and large, finished or not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dpap.config import Config, override, to_toml
from dpap.recipes import recipe
from dpap.report.history import (
    DevelopmentLine,
    EpochLine,
    LayerResult,
    Line,
    NeuronResult,
    ResultLine,
    RunLine,
    StepResult,
    to_text,
)

ENVIRONMENT = {"dpap": "0.1.0", "torch": "2.13.0", "device": "cpu", "device_name": "a processor", "threads": 2}


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """What a made-up run is like."""

    widths: tuple[int, ...] = (16, 32, 256)
    """Of the hidden layers."""
    names: tuple[str, ...] = ("conv1", "conv2", "fc1")
    linear: int = 1
    """How many of them, from the last, are linear."""
    epochs: int = 12
    done: int | None = None
    """Complete epochs of a run that is not finished; None: finished."""
    control: bool = True
    control_done: int | None = None
    deaths: bool = True
    rule: str = "dpap"
    recipe: str = "digits-snn"
    spiking: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    accuracy: float = 0.98
    steps: int = 1
    """T that is on record; time was pruned where it is above 1 and units die."""
    frames: tuple[int, int, int] | None = None
    """Shape of a frame of events; None: still pictures."""
    data: tuple[str, str] = ("", "")
    """Name and credit of the data set on record; empty in older runs."""

    @property
    def is_pruned(self) -> bool:
        return self.rule != "none"


def write_run(path: Path, like: MadeUp | None = None) -> Path:
    """A run folder, and in it its control."""
    like = like or MadeUp()
    path.mkdir(parents=True)
    (path / "config.toml").write_text(to_toml(config(like)), encoding="utf-8")
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    (path / "history.jsonl").write_text(to_text(lines(like)), encoding="utf-8")
    with (path / "development.npz").open("wb") as file:
        np.savez(file, **record(like))  # type: ignore[arg-type]
    if like.steps > 1 and like.done is None:
        with (path / "activity.npz").open("wb") as file:
            np.savez(file, **activity(like))  # type: ignore[arg-type]
    if like.control:
        arm = replace(like, control=False, rule="none", deaths=False, done=like.control_done, accuracy=0.985)
        write_run(path / "control", arm)
    return path


def config(like: MadeUp) -> Config:
    made = recipe("digits-snn" if like.spiking else "digits-ann")
    values = {"epochs": str(like.epochs), "development.rule": like.rule, "data.hold_out": "true", **like.settings}
    for key, value in values.items():
        made = override(made, {key: value})
    return replace(made, recipe=like.recipe)


def share_done(like: MadeUp) -> float:
    return 1.0 if like.done is None else like.done / like.epochs


def progress(like: MadeUp) -> np.ndarray[Any, Any]:
    """Two hundredths of the run apart, until the window ends or the run stops."""
    last = min(0.5, share_done(like))
    return np.arange(0.02, last + 1e-9, 0.02) if like.is_pruned else np.empty(0)


def record(like: MadeUp) -> dict[str, np.ndarray[Any, Any]]:
    """Survival wanders; from 0.1 of the run on the lowest die, one after the other, up to a third."""
    p = progress(like)
    arrays = {"step": np.arange(len(p)), "progress": p}
    if not len(p):
        return arrays
    random = np.random.default_rng(0)
    for name, units in zip(like.names, like.widths, strict=True):
        base = random.uniform(0.6, 1.4, units)
        survival = base + np.cumsum(random.normal(0, 0.02, (len(p), units)), axis=0)
        dead = np.clip((p - 0.1) / 0.4, 0, 1) * (units // 3 if like.deaths else 0)
        arrays[f"survival/{name}"] = survival.astype(np.float32)
        arrays[f"alive/{name}"] = np.argsort(np.argsort(base))[None, :] >= dead.astype(int)[:, None]
        if like.steps > 1:
            arrays[f"pairs/neuron_{name}"] = np.stack([pairs(like, units, float(done)) for done in p])
    return arrays


def pairs(like: MadeUp, units: int, progress: float) -> np.ndarray[Any, Any]:
    """(units, T) of a layer: once deaths have begun the first step is dead, and the last one of every third unit."""
    living = np.ones((units, like.steps), dtype=bool)
    if like.deaths and progress > 0.1:
        living[:, 0] = False
        living[::3, -1] = False
    return living


def shares(like: MadeUp) -> tuple[float, float]:
    """Living pairs and living steps of the layers at the end, by hand from `pairs`; the units weigh their positions."""
    arrays = record(like)
    there = living = 0
    for k, name in enumerate(like.names if like.deaths else ()):
        mine = arrays[f"pairs/neuron_{name}"][-1][arrays[f"alive/{name}"][-1]]
        there, living = there + positions(like, k) * mine.size, living + positions(like, k) * int(mine.sum())
    return (living / there, 1 - 1 / like.steps) if there else (1.0, 1.0)


def positions(like: MadeUp, layer: int) -> int:
    return 64 if layer < len(like.names) - like.linear else 1


def fired(like: MadeUp) -> dict[str, np.ndarray[Any, Any]]:
    """(units, T) of each layer: more with every step, nothing where a pair is dead. In the control the first half of
    the units says nothing at the first step."""
    found, arrays = {}, record(like)
    for k, (name, units) in enumerate(zip(like.names, like.widths, strict=True)):
        rates = np.tile(np.linspace(0.02, 0.1 + 0.05 * k, like.steps), (units, 1))
        if like.is_pruned:
            rates = rates * pairs(like, units, 1.0) * arrays[f"alive/{name}"][-1][:, None]
        else:
            rates[: units // 2, 0] = 0
        found[name] = rates.astype(np.float32)
    return found


def activity(like: MadeUp) -> dict[str, np.ndarray[Any, Any]]:
    """One sample of still pictures, or three of events: a dot that wanders."""
    samples = 1 if like.frames is None else 3
    arrays = {"label": np.array(["zero", "one", ODD][:samples]), "answer": np.array(["zero", "seven", ODD][:samples])}
    for name, rates in fired(like).items():
        arrays[f"fired/neuron_{name}"] = rates
        arrays[f"raster/neuron_{name}"] = (rates > 0.05).astype(np.float32)
    if like.frames is not None:
        frames = np.zeros((samples, like.steps, *like.frames), dtype=np.uint8)
        channels, height, width = like.frames
        for step in range(like.steps):
            frames[:, step, :, step % height, step % width] = np.arange(1, channels + 1) % 200
        arrays["frames"] = frames
    return arrays


def step_results(like: MadeUp) -> list[StepResult]:
    alive = record(like)
    found = []
    for k, (name, rates) in enumerate(fired(like).items()):
        living = rates[alive[f"alive/{name}"][-1]] if f"alive/{name}" in alive else rates
        found.append(
            StepResult(
                name=f"neuron_{name}",
                group=name,
                positions=positions(like, k),
                rates=[float(rate) for rate in living.mean(axis=0)],
            )
        )
    return found


def lines(like: MadeUp) -> list[Line]:
    found: list[Line] = [
        RunLine(
            recipe=like.recipe,
            seed=int(like.settings.get("seed", "0")),
            rule=like.rule,
            epochs=like.epochs,
            batches=17,
            samples=1078,
            data=like.data[0],
            credit=like.data[1],
        )
    ]
    p, alive = progress(like), record(like)
    steps = iter(range(len(p)))
    step = next(steps, None)
    connectivity = 1.0
    for epoch in range(1, (like.epochs if like.done is None else like.done) + 1):
        while step is not None and p[step] * like.epochs <= epoch:
            connectivity = 1 - 0.9 * min(max((p[step] - 0.1) / 0.4, 0), 1) if like.deaths else 1.0
            found.append(
                DevelopmentLine(
                    epoch=epoch,
                    step=step,
                    progress=float(p[step]),
                    connectivity=connectivity,
                    living_pairs=shares(like)[0] if like.steps > 1 and p[step] > 0.1 else 1.0,
                    living_steps=shares(like)[1] if like.steps > 1 and p[step] > 0.1 else 1.0,
                    warnings=list(like.warnings) if step == 0 else [],
                )
            )
            step = next(steps, None)
        error = (1 - like.accuracy) + 0.6 * math.exp(-epoch / 2)
        found.append(
            EpochLine(
                epoch=epoch,
                loss=2.3 * error,
                train_accuracy=1 - error / 2,
                validation_accuracy=1 - error,
                test_accuracy=1 - error - 0.001 if like.settings.get("test_each_epoch") else None,
                lr=4e-3 * (1 - epoch / like.epochs),
                connectivity=connectivity,
                alive_units={n: int(alive[f"alive/{n}"][-1].sum()) for n in like.names if f"alive/{n}" in alive},
                seconds=0.5,
                samples_per_second=2156.0,
            )
        )
    return found if like.done is not None else [*found, result(like)]


def result(like: MadeUp) -> ResultLine:
    """Counts that fit each other: what lives is what the record says, three tenths of the rest of the synapses."""
    arrays = record(like)
    living = [
        int(arrays[f"alive/{n}"][-1].sum()) if f"alive/{n}" in arrays else w
        for n, w in zip(like.names, like.widths, strict=True)
    ]
    layers, inputs, alive_inputs = [], 1, 1
    names, widths, living = (*like.names, "classifier"), (*like.widths, 10), [*living, 10]
    for k, (name, units, alive) in enumerate(zip(names, widths, living, strict=True)):
        is_conv = k < len(like.names) - like.linear
        kernel, positions = (9, 64) if is_conv else (1, 1)
        synapses, whole = units * inputs * kernel, alive * alive_inputs * kernel
        layers.append(
            LayerResult(
                name=name,
                kind="conv" if is_conv else "linear",
                outputs=units,
                alive_outputs=alive,
                inputs=inputs,
                alive_inputs=alive_inputs,
                synapses=synapses,
                living_synapses=whole if is_conv or not like.deaths else max(whole // 5, 1),
                macs=whole * positions,
                dense_macs=synapses * positions,
                sops=None if k == 0 or not like.spiking else 0.1 * whole * positions,
            )
        )
        inputs, alive_inputs = units, alive
    synapses, macs = sum(layer.synapses for layer in layers), sum(layer.macs for layer in layers)
    dense = sum(layer.dense_macs for layer in layers)
    real = layers[0].macs if like.spiking else macs
    sops = sum(layer.sops or 0.0 for layer in layers)
    updates = 256 * sum(living) if like.spiking else 0
    return ResultLine(
        test_accuracy=like.accuracy,
        test_correct=round(450 * like.accuracy),
        test_samples=450,
        best_test_accuracy=0.9876 if like.settings.get("test_each_epoch") else None,
        connectivity=sum(layer.living_synapses for layer in layers) / synapses,
        connectivity_conv=0.5,
        sparsity_paper=0.8,
        parameters=synapses // 2,
        dense_parameters=synapses,
        macs=macs,
        dense_macs=dense,
        macs_real=real,
        dense_macs_real=layers[0].dense_macs,
        synops=sops,
        neuron_updates=updates,
        dense_neuron_updates=256 * sum(widths),
        energy_pj=4.6 * real + 0.9 * sops + 4.6 * updates,
        memory_pj=30.0 * sops,
        dense_snn_pj=0.9 * dense,
        dense_ann_pj=4.6 * dense / 4,
        paper_proxy_pj=0.2 * dense,
        alive_units=dict(zip(names, living, strict=True)),
        units=dict(zip(names, widths, strict=True)),
        layers=layers,
        neurons=[
            NeuronResult(name=name, units=alive, silent=alive // 10, rate=0.05 + 0.02 * k)
            for k, (name, alive) in enumerate(zip(like.names, living, strict=False))
        ],
        dead_pairs=1 - shares(like)[0] if like.steps > 1 else 0.0,
        living_steps=shares(like)[1] if like.steps > 1 else 1.0,
        steps=step_results(like) if like.steps > 1 else [],
        anytime=[like.accuracy - 0.3 / t for t in range(1, like.steps + 1)]
        if like.steps > 1 and not like.deaths
        else [],
        latency_ms=3.25,
        dense_latency_ms=6.5,
        latency_batch=64,
        threads=2,
        seconds=6.0,
    )


VGG = MadeUp(
    widths=(64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 4096, 4096),
    names=(*(f"features.stage{k // 3 + 1}.block{k % 3 + 1}.convolution" for k in range(13)), "fc1", "fc2"),
    linear=2,
    epochs=300,
    recipe="cifar10-vgg16-with-a-rather-long-name-that-somebody-gave-it",
    settings={"test_each_epoch": "true"},
)
ODD = '<script>alert("x")</script>&amp;</svg>'
KINDS: Mapping[str, MadeUp] = {
    "spiking": MadeUp(),
    "without control": MadeUp(control=False),
    "time": MadeUp(steps=10, frames=(2, 34, 34), settings={"development.time": "leak"}),
    "time without control": MadeUp(steps=4, control=False, settings={"development.time": "leak"}),
    "time, nothing dead": MadeUp(steps=4, deaths=False),
    "time, not finished": MadeUp(steps=4, done=5, control=False, settings={"development.time": "leak"}),
    "long recordings": MadeUp(steps=100, frames=(700, 1, 1), settings={"development.time": "leak"}),
    "ordinary": MadeUp(spiking=False),
    "nothing dead": MadeUp(deaths=False),
    "dense": MadeUp(rule="none", control=False, deaths=False),
    "not finished": MadeUp(done=5, control=False),
    "just begun": MadeUp(done=1, control=False, epochs=300),
    "control not finished": MadeUp(control_done=3),
    "one epoch": MadeUp(epochs=1),
    "poor": MadeUp(accuracy=0.31),
    "paper's rule": MadeUp(rule="paper"),
    "large": VGG,
    "odd names": MadeUp(recipe=ODD, names=(ODD, "b&b", "c\"d'e"), warnings=(f"{ODD} says nothing",)),
}
