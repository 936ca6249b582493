"""The experiments behind docs/results.md: every study is a list of runs, each a complete config with a name.

    python benchmarks/studies.py scores --workers 2        # runs what is missing of one study, into runs/studies
    python benchmarks/studies.py --list

Resumable: a finished run is not run again, an interrupted one goes on. `benchmarks/results.py` makes the tables.
Studies that choose constants hold the validation split out and never look at the test split for a choice; they train
on a fixed subset, which their names say. Headline runs train on everything and use the test split once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpap.config import Config, DevelopmentConfig, TargetConfig, to_toml
from dpap.recipes import recipe
from dpap.report.history import read_history
from dpap.report.numbers import Key

RUNS = Path("runs/studies")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One run of a study."""

    study: str
    name: str
    """Of what is compared; runs that differ in their seed alone share it."""
    config: Config
    paper: str = ""
    """What was published for it, by whom: sparsity and accuracy."""
    against: str = ""
    """Name of another arm that it is also set beside."""

    @property
    def path(self) -> Path:
        seed, fold = self.key
        return RUNS / self.study / self.name / (str(seed) if fold is None else f"{seed}-{fold}")

    @property
    def key(self) -> Key:
        """Seed and fold, as runs are paired by."""
        return self.config.seed, None if self.config.data.folds is None else self.config.data.fold


def change(config: Config, **sections: Mapping[str, Any]) -> Config:
    """A config with fields of its sections changed: `change(config, data={"limit": 12_000})`."""
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in sections.items()})


def pruned(config: Config, target: Mapping[str, float] | None = None, **settings: Any) -> Config:
    return change(config, development={"target": TargetConfig(**(target or {})), **settings})


def control(config: Config) -> Config:
    return config.as_control()


def small(name: str, samples: int, epochs: int) -> Config:
    """A recipe on a subset with the validation split held out: what constants are chosen on."""
    config = replace(recipe(name), epochs=epochs, threads=1, control=False)
    return change(config, data={"limit": samples, "hold_out": True})


def seeded(study: str, name: str, config: Config, seeds: int, paper: str = "", against: str = "") -> Iterator[Arm]:
    for seed in range(seeds):
        own = replace(config, seed=seed, control=False, threads=1)
        yield Arm(study=study, name=name, config=own, paper=paper, against=against)


def crossed(study: str, name: str, config: Config, seeds: int, folds: int = 5, against: str = "") -> Iterator[Arm]:
    """Every fold of a cross-validation, with every seed."""
    for fold in range(folds):
        yield from seeded(study, name, change(config, data={"folds": folds, "fold": fold}), seeds, against=against)


def rates() -> Iterator[Arm]:
    """Learning rate of the MNIST recipe, unpruned, on 12,000 images."""
    base = small("mnist-snn", 12_000, 10)
    for lr in (1e-3, 2e-3, 4e-3):
        yield from seeded("rates", f"lr-{lr:g}", change(control(base), optimizer={"lr": lr}), 1)


SYNAPSE_SCORES = ("weighted-input", "taylor", "bcm", "bcm-net", "magnitude", "bcm-alone", "random")
DEFAULT = "weighted-input"
"""What E1 chose; `bcm-net` was specified, `bcm` tried in between."""


def scores() -> Iterator[Arm]:
    """E1: which score of a synapse, on 12,000 images of MNIST, 2Conv2FC at 90, 95 and 98 %; the units' score is the
    default everywhere."""
    base = small("mnist-snn", 12_000, 6)
    yield from seeded("scores", "control", control(base), 5)
    for percent, seeds in {98: 5, 95: 3, 90: 1}.items():
        for score in SYNAPSE_SCORES:
            config = pruned(base, {"connectivity": 1 - percent / 100}, synapse_score=score)
            against = "" if score == DEFAULT else f"{DEFAULT}-{percent}"
            fewer = min(seeds, {"random": 2, "bcm-alone": 2 if percent == 98 else 0}.get(score, seeds))
            yield from seeded("scores", f"{score}-{percent}", config, fewer, against=against)


def scores_2fc() -> Iterator[Arm]:
    """E1 where linear layers are all there is: 12,000 images of MNIST, 784-800-10."""
    base = small("mnist-snn-2fc", 12_000, 6)
    yield from seeded("scores-2fc", "control", control(base), 5)
    for percent in (95, 98):
        for score in SYNAPSE_SCORES:
            config = pruned(base, {"connectivity": 1 - percent / 100}, synapse_score=score)
            against = "" if score == DEFAULT else f"{DEFAULT}-{percent}"
            yield from seeded("scores-2fc", f"{score}-{percent}", config, 5, against=against)


FORMER, BETWEEN = "bcm-net", "bcm"
"""Default scores of synapses before E1 was over; studies that were run with one say so."""
UNIT_SCORES = ("bcm", "activity", "magnitude", "norm-scale", "outgoing", "random")


def units() -> Iterator[Arm]:
    """E2: which score of a unit, on 12,000 images of MNIST, spiking 2Conv2FC, at 30 % of the MACs; synapses scored by
    `bcm-net`."""
    base = small("mnist-snn", 12_000, 6)
    yield from seeded("units", "control", control(base), 2)
    for score in UNIT_SCORES:
        yield from seeded(
            "units", f"{score}-30", pruned(base, {"macs": 0.30}, unit_score=score, synapse_score=FORMER), 1
        )


def units_ann() -> Iterator[Arm]:
    """E2 without spikes: 12,000 images of MNIST, 2Conv2FC with ReLU, at 10 % of the MACs; synapses scored by `bcm`."""
    base = small("mnist-ann", 12_000, 6)
    yield from seeded("units-ann", "control", control(base), 3)
    for score in UNIT_SCORES:
        yield from seeded(
            "units-ann", f"{score}-10", pruned(base, {"macs": 0.10}, unit_score=score, synapse_score=BETWEEN), 3
        )


def units_cifar() -> Iterator[Arm]:
    """E2 on CIFAR-10: 3,000 images, 4 epochs of 6Conv2FC at a quarter of its width, at 30 and 50 % of the MACs."""
    base = small("cifar10-snn-small", 3_000, 4)
    yield from seeded("units-cifar", "control", control(base), 1)
    for percent in (30, 50):
        for score in ("spine", "magnitude", "random", "activity", "norm-scale", "outgoing"):
            config = pruned(base, {"macs": percent / 100}, unit_score=score)
            yield from seeded("units-cifar", f"{score}-{percent}", config, 1)


def window() -> Iterator[Arm]:
    """E3: when and how often to develop, one setting at a time, on 12,000 images of MNIST, 784-800-10 at 98 %; synapses
    scored by `bcm-net`."""
    base = pruned(small("mnist-snn-2fc", 12_000, 6), {"connectivity": 0.02}, synapse_score=FORMER)
    yield from seeded("window", "control", control(base), 3)
    yield from seeded("window", "default", base, 3)
    changes: dict[str, dict[str, float]] = {
        "early": {"start": 0.05, "stop": 0.25},
        "late": {"start": 0.40, "stop": 0.90},
        "long": {"start": 0.10, "stop": 0.80},
        "steps-25": {"development_steps": 25},
        "steps-300": {"development_steps": 300},
        "memory-0.01": {"memory": 0.01},
        "memory-0.10": {"memory": 0.10, "start": 0.30, "stop": 0.70},  # observing starts 3 memories before `start`
        "as-memory-0.10": {"start": 0.30, "stop": 0.70},
    }
    for name, settings in changes.items():
        yield from seeded("window", name, change(base, development=settings), 3)


def levels() -> Iterator[Arm]:
    """E4: the level below which units and synapses are pruned when no target is set, one kind at a time, on three
    networks; synapses scored by `bcm`."""
    for name, samples, epochs in (("digits-snn", 1_000, 40), ("mnist-snn-2fc", 12_000, 6), ("mnist-ann", 12_000, 6)):
        base = change(small(name, samples, epochs), development={"synapse_score": BETWEEN})
        yield from seeded("levels", f"{name}-control", control(base), 1)
        yield from seeded("levels", f"{name}-default", pruned(base), 1)
        for kappa in (0.4, 0.8):
            yield from seeded("levels", f"{name}-unit-{kappa}", pruned(base, kappa_unit=kappa), 1)
        for kappa in (0.7, 1.3):
            yield from seeded("levels", f"{name}-synapse-{kappa}", pruned(base, kappa_synapse=kappa), 1)


def whole(name: str) -> Config:
    """A recipe on all training images, for the test split; the curve of test accuracies is recorded, nothing chosen."""
    return replace(recipe(name), threads=1, control=False, test_each_epoch=True)


def mnist_snn() -> Iterator[Arm]:
    """MNIST, all 60,000 training images, spiking 2Conv2FC, T = 4. `net-...` are `dpap` with synapses scored by
    `bcm-net`, as first specified, `bcm-...` with `bcm`."""
    base, study = whole("mnist-snn"), "mnist-snn"
    targets: dict[str, tuple[dict[str, float], str]] = {
        "95": ({"connectivity": 0.05, "macs": 0.40}, ""),
        "84": ({"connectivity": 0.16}, "DPAP: 99.56 at 84.22 %"),
        "61": ({"connectivity": 0.39}, "DPAP: 99.59 at 61.25 %"),
        "97": ({"connectivity": 0.03, "macs": 0.40}, ""),
        "98.5": ({"connectivity": 0.015, "macs": 0.40}, ""),
    }
    for percent, (target, paper) in targets.items():
        yield from seeded(study, f"dpap-{percent}", pruned(base, target), 3 if percent == "95" else 1, paper)
    smaller = targets["95"][0]
    yield from seeded(study, "control", control(base), 3, "DPAP: 99.46")
    for score in ("magnitude", "random"):
        config = pruned(base, smaller, unit_score=score, synapse_score=score)
        yield from seeded(study, f"{score}-95", config, 3 if score == "magnitude" else 1, against="dpap-95")
    for percent, (target, paper) in targets.items():
        yield from seeded(study, f"net-{percent}", pruned(base, target, synapse_score=FORMER), 1, paper)
    yield from seeded(study, "bcm-95", pruned(base, smaller, synapse_score=BETWEEN), 1)


def mnist_snn_long() -> Iterator[Arm]:
    """The same for 20 epochs: whether time is what the pruned networks lack."""
    base, study = replace(whole("mnist-snn"), epochs=20), "mnist-snn-long"
    yield from seeded(study, "control", control(base), 1, "DPAP: 99.46")
    yield from seeded(study, "dpap-95", pruned(base, {"connectivity": 0.05, "macs": 0.40}), 1)


def mnist_ann() -> Iterator[Arm]:
    """MNIST, all 60,000 training images, 2Conv2FC with ReLU. `bcm-90` has synapses scored by `bcm`."""
    base = whole("mnist-ann")
    smaller = {"connectivity": 0.10, "macs": 0.40}
    yield from seeded("mnist-ann", "control", control(base), 2, "DPAP: 99.20")
    yield from seeded("mnist-ann", "dpap-90", pruned(base, smaller), 2, "DPAP: 99.24 at 56.00 %")
    yield from seeded("mnist-ann", "bcm-90", pruned(base, smaller, synapse_score=BETWEEN), 1)


def mnist_2fc() -> Iterator[Arm]:
    """MNIST, all 60,000 training images, spiking 784-800-10, T = 4. The width is ours: the paper gives none.
    `bcm-97.75` has synapses scored by `bcm`."""
    base, study = whole("mnist-snn-2fc"), "mnist-2fc"
    smaller = {"connectivity": 0.0225}
    yield from seeded(study, "control", control(base), 1, "DPAP: 98.81")
    yield from seeded(study, "dpap-97.75", pruned(base, smaller), 1, "CH-SNN: 98.97 at 97.75 %")
    yield from seeded(study, "dpap-77", pruned(base, {"connectivity": 0.2264}), 1, "DPAP: 98.74 at 77.36 %")
    yield from seeded(study, "bcm-97.75", pruned(base, smaller, synapse_score=BETWEEN), 1)


def cifar10_small() -> Iterator[Arm]:
    """CIFAR-10, 5,000 training images, 3 epochs of 6Conv2FC at a quarter of its width, T = 4: it runs end to end."""
    base = change(replace(whole("cifar10-snn-small"), epochs=3), data={"limit": 5_000})
    smaller = pruned(base, {"connectivity": 0.25, "macs": 0.50})
    yield from seeded("cifar10-small", "control", control(base), 1)
    yield from seeded("cifar10-small", "dpap-75", smaller, 1)


def eighth(epochs: int = 10, **model: Any) -> Config:
    """6Conv2FC at an eighth of its width (16-16-32-32-64-64, 64) on 4,000 images of CIFAR-10: what two cores can do."""
    config = change(small("cifar10-snn-small", 4_000, epochs), data={"batch_size": 50, "erasing": 0.0, "crop": 0})
    return change(config, optimizer={"lr": 4e-3}, model={"width": 0.5, **model}, development={"shrink": "never"})


def connections(config: Config, percent: int, score: str, **settings: Any) -> Config:
    """Connections of all layers are pruned, down to `percent` of them."""
    return pruned(config, {"connectivity": percent / 100}, synapses="all", synapse_score=score, **settings)


def with_structure(study: str, name: str, config: Config, of: str, seeds: int, *, shuffled: bool) -> Iterator[Arm]:
    """The structure that another arm found, trained from the start."""
    for arm in seeded(study, name, config, seeds, against=of):
        folder = str(RUNS / study / of / str(arm.config.seed))
        fixed = DevelopmentConfig(rule="fixed", structure=folder, shuffled=shuffled)
        yield replace(arm, config=replace(arm.config, development=fixed))


def kernels(study: str, base: Config, seeds: int) -> Iterator[Arm]:
    """What is compared in both networks; the widths of the narrow ones give the effective MACs of the pruned ones."""
    yield from seeded(study, "control", control(base), seeds)
    for percent, width in ((5, 0.25), (2, 0.177)):
        for score in ("taylor", "magnitude", "random"):
            against = "" if score == "taylor" else f"taylor-{percent}"
            yield from seeded(study, f"{score}-{percent}", connections(base, percent, score), seeds, against=against)
        narrow = control(change(base, model={"width": width}))
        yield from seeded(study, f"narrow-{percent}", narrow, seeds, against=f"taylor-{percent}")
    yield from seeded(study, "taylor-20", connections(base, 20, "taylor"), seeds)


def kernels_ann() -> Iterator[Arm]:
    """Connections of convolutions with ReLU: 6Conv2FC at an eighth of its width, 4,000 images of CIFAR-10, 10 epochs.
    Scores, controls, and other ways to prune connections, at 20, 5 and 2 % of them."""
    study, base = "kernels-ann", eighth(neuron="relu", num_steps=1)
    yield from kernels(study, base, 3)
    for name, shuffled in (("reinit-5", False), ("shuffled-5", True)):
        yield from with_structure(study, name, base, "taylor-5", 3, shuffled=shuffled)
    sparse = {"start": 0.0, "stop": 0.75}
    for rule, window in (("gmp", {}), ("set", sparse), ("rigl", sparse)):
        config = pruned(base, {"connectivity": 0.05}, rule=rule, **window)
        yield from seeded(study, f"{rule}-5", config, 2, against="taylor-5")
    for regrow in ("gradient", "hebb", "random"):
        config = connections(base, 5, "taylor", regrow=regrow)
        yield from seeded(study, f"regrow-{regrow}-5", config, 2, against="taylor-5")
    both = connections(base, 5, "taylor", prune="both")
    yield from seeded(study, "both-5", both, 2, against="taylor-5")
    for crowding in (0.0, 1.0):
        config = connections(base, 5, "magnitude", crowding=crowding)
        yield from seeded(study, f"crowding-{crowding:g}-5", config, 2, against="magnitude-5")
    yield from seeded(study, "weighted-input-5", connections(base, 5, "weighted-input"), 2, against="taylor-5")
    units = pruned(base, {"macs": 0.25}, unit_score="magnitude")
    yield from seeded(study, "units-25", units, 2, against="narrow-5")


def kernels_snn() -> Iterator[Arm]:
    """Connections of convolutions with spiking neurons, T = 4: 6Conv2FC at an eighth of its width, 4,000 images of
    CIFAR-10, 10 epochs, at 20, 5 and 2 % of the connections."""
    yield from kernels("kernels-snn", eighth(), 2)


def nmnist() -> Iterator[Arm]:
    """N-MNIST, a subset of 1,100 recordings, 5 folds (880 to learn from, 220 tested), T = 20, 2Conv2FC: 60 % of the
    weights and half of the pairs of a unit and a step are pruned. In `random` units, synapses and steps are drawn."""
    base = replace(recipe("nmnist-snn"), threads=1, control=False)
    drawn = change(base, development={"unit_score": "random", "synapse_score": "random", "time_score": "random"})
    yield from crossed("nmnist", "control", control(base), 3)
    yield from crossed("nmnist", "dpap", base, 3)
    yield from crossed("nmnist", "random", drawn, 1, against="dpap")


def mnist_saccade() -> Iterator[Arm]:
    """MNIST as a simulated event camera sees it, 12,000 training recordings, T = 10, 2Conv2FC. In `random` units,
    synapses and steps are drawn; `control-5` is unpruned and sees half as many frames, each twice as long; `dpap-5`
    sees these and loses units and synapses alone, to the same targets."""
    base = change(replace(recipe("mnist-saccade-snn"), threads=1, control=False), data={"limit": 12_000})
    shorter = change(pruned(base, {"connectivity": 0.10, "macs": 0.28}, time=None), model={"num_steps": 5})
    drawn = change(base, development={"unit_score": "random", "synapse_score": "random", "time_score": "random"})
    yield from seeded("mnist-saccade", "control", control(base), 3)
    yield from seeded("mnist-saccade", "dpap", base, 3)
    yield from seeded("mnist-saccade", "control-5", change(control(base), model={"num_steps": 5}), 3, against="control")
    yield from seeded("mnist-saccade", "dpap-5", shorter, 3, against="dpap")
    yield from seeded("mnist-saccade", "random", drawn, 1, against="dpap")


STUDIES: dict[str, Callable[[], Iterator[Arm]]] = {
    "rates": rates,
    "scores": scores,
    "scores-2fc": scores_2fc,
    "units": units,
    "units-ann": units_ann,
    "units-cifar": units_cifar,
    "window": window,
    "levels": levels,
    "mnist-snn": mnist_snn,
    "mnist-snn-long": mnist_snn_long,
    "mnist-ann": mnist_ann,
    "mnist-2fc": mnist_2fc,
    "cifar10-small": cifar10_small,
    "kernels-ann": kernels_ann,
    "kernels-snn": kernels_snn,
    "nmnist": nmnist,
    "mnist-saccade": mnist_saccade,
}


def finished(path: Path) -> bool:
    """Whether the run came to its result."""
    history = path / "history.jsonl"
    return history.exists() and read_history(history).result is not None


def run_arm(arm: Arm) -> None:
    """In a process of its own, so that several share the cores and none can disturb another."""
    if finished(arm.path):
        return
    if (arm.path / "config.toml").exists():
        command = ["resume", str(arm.path)]
    else:
        arm.path.parent.mkdir(parents=True, exist_ok=True)
        config = arm.path.parent / f"{arm.path.name}.toml"
        config.write_text(to_toml(arm.config), encoding="utf-8")
        command = ["train", str(config), "--out", str(arm.path)]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dpap", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    ended = f"{time.perf_counter() - started:.0f} s"
    print(f"{arm.path}  {ended if done.returncode == 0 else done.stderr.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", choices=[[], *STUDIES], default=[])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args()
    for name in chosen.studies or STUDIES:
        arms = list(STUDIES[name]())
        missing = [arm for arm in arms if not finished(arm.path)]
        print(f"{name}: {len(arms)} runs, {len(missing)} missing. {(STUDIES[name].__doc__ or '').strip()}", flush=True)
        if not chosen.list:
            with ThreadPoolExecutor(chosen.workers) as pool:
                list(pool.map(run_arm, missing))


if __name__ == "__main__":
    main()
