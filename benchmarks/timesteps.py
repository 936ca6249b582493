"""What dead time steps save: a finished network with the work at its dead steps left out, done, and beside its control.

    python benchmarks/timesteps.py runs/studies/nmnist/dpap/0-0 --control runs/studies/nmnist/control/0-0

The three take turns on the same batch of test samples: one forward pass in evaluation mode, and one forward and
backward pass in training mode. Left out against done is what skipping saves; the control also has all units and
synapses. The share of living layer steps stands beside: steps at which a hidden layer has a living unit.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from dpap.config import read_config
from dpap.io import load
from dpap.time.timing import Timing, timing_of, without_timing
from dpap.training.data import load_data

console = Console()


def unskipped(model: nn.Module) -> nn.Module:
    """The same network, which computes its dead steps and throws them away."""
    other = copy.deepcopy(model)
    timing = timing_of(other)
    if timing is None:
        raise SystemExit("The network has no dead time steps: train it with development.time.")
    without_timing(other)
    Timing(other, timing.times, timing.mode, skip=False).update(timing.pairs)
    return other


def inference(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(x)


def training(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(x), y).backward()


def in_turns(
    models: Mapping[str, nn.Module],
    work: Callable[[nn.Module, Tensor, Tensor], None],
    x: Tensor,
    y: Tensor,
    repeats: int,
) -> dict[str, float]:
    """Median seconds of each; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            begun = time.perf_counter()
            work(model, x, y)
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--control", type=Path, help="folder of its unpruned control")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    data = load_data(read_config(chosen.run / "config.toml"))
    x, y = next(data.batches(data.test, chosen.batch))
    model = load(chosen.run / "model")
    models = {"left out": model, "done": unskipped(model)}
    if chosen.control is not None:
        models["control"] = load(chosen.control / "model")
    timing = timing_of(model)
    assert timing is not None, "`unskipped` has looked"
    living = statistics.fmean(float(pairs.any(0).double().mean()) for pairs in timing.pairs.values())
    found: dict[str, Any] = {
        "run": chosen.run.as_posix(), "torch": torch.__version__, "threads": chosen.threads, "batch": chosen.batch,
        "living_steps": living, "window": timing.window, "num_steps": timing.times.num_steps,
    }  # fmt: skip
    console.print(f"{living:.0%} of the layer steps live, steps {timing.window} of {timing.times.num_steps} are read")
    for work in (inference, training):
        seconds = in_turns(models, work, x, y, chosen.repeats)
        found[work.__name__] = seconds
        ratios = [
            f"{seconds['left out'] / taken:.2f} of {name}" for name, taken in seconds.items() if name != "left out"
        ]
        console.print(f"{work.__name__}: {', '.join(ratios)} ({1e3 * seconds['left out']:.0f} ms)")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
