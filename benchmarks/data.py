"""How long data take: loading a set, and making the batches of a recipe as a share of its training steps.

    python benchmarks/data.py --json benchmarks/results/data.json

Batches and training steps take turns in one run, so that what else the machine does meets both alike. Loading is timed
in this process, the first time of a set left out (it fills the cache).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from dpap.config import Config
from dpap.data import load_dataset
from dpap.recipes import recipe
from dpap.training.checkpoint import environment
from dpap.training.run import Run

RECIPES = ("mnist-snn", "mnist-ann", "cifar10-snn-small", "cifar10-snn", "cifar10-released")


def loading(name: str, repeats: int = 5) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        load_dataset(name)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def pipeline(config: Config, steps: int) -> tuple[float, float]:
    """Median milliseconds of making a batch, and of the rest of a training step."""
    run = Run(replace(config, device="cpu", optimizer=replace(config.optimizer, precision="float32")))
    making, training = [], []
    batches = run.batches(0)
    for step in range(steps + 2):
        start = time.perf_counter()
        images, labels = next(batches)
        made = time.perf_counter()
        with run.observing():
            _, loss = run.forward(images, labels)
        run.update(loss)
        done = time.perf_counter()
        if step >= 2:  # the first ones fill caches
            making.append(1000 * (made - start))
            training.append(1000 * (done - made))
    return median(making), median(training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES[:3])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found: dict[str, Any] = {"environment": environment("cpu"), "loading_s": {}, "pipeline": {}}
    for name in ("digits", "mnist", "cifar10"):
        found["loading_s"][name] = round(loading(name), 3)
        print(f"loading {name}: {found['loading_s'][name]:.2f} s", flush=True)
    for name in chosen.recipes:
        making, training = pipeline(recipe(name), chosen.steps)
        share = making / (making + training)
        found["pipeline"][name] = {
            "batch_ms": round(making, 2),
            "step_ms": round(training, 1),
            "share": round(share, 4),
        }
        print(f"{name}: batch {making:.1f} ms, rest of a step {training:.0f} ms, share {100 * share:.1f} %", flush=True)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
