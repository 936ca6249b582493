"""What smaller networks save: inference at several widths, a whole run that shrinks, and the price of a shrink.

    python benchmarks/shrinking.py                        # all three
    python benchmarks/shrinking.py inference --threads 2 --json shrinking.json
    python benchmarks/shrinking.py run --samples 12000 --epochs 6

Inference: spiking 6Conv2FC (CIFAR-10, full width) dense and without some of its units take turns in one process; the
ratio of medians stands beside the ratio of multiply-accumulates, which is the most that can be had.
Run: a run that ends with half its units and its unpruned control take turns, epoch by epoch, on the same batches.
Shrink: inside that run, the time of each shrink in training steps of the network as it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dpap.config import Config, override
from dpap.graph.find import find_groups
from dpap.metrics import count_macs
from dpap.metrics.latency import latency
from dpap.models import build
from dpap.pruning.compact import compacted
from dpap.pruning.shrink import Shrinker
from dpap.pruning.slice import Present
from dpap.recipes import recipe
from dpap.training.loop import train_epoch
from dpap.training.run import Run

KEPT = (0.7, 0.5, 0.3)
VECTOR = 16
"""Channels that a convolution on the CPU computes together (AVX-512, float32)."""
console = Console()


def inference(batch: int, repeats: int) -> list[dict[str, Any]]:
    """Dense against narrower networks, every group cut to the same share of its units; exactly, and to the nearest
    multiple of `VECTOR`, since kernels compute whole vectors of channels."""
    settings = recipe("cifar10-snn").model  # the data themselves are not needed
    shape = (3, 32, 32)
    model = build(settings.name, shape=shape, classes=10, **settings.arguments()).eval()
    x = torch.rand(batch, *shape)
    graph = find_groups(model, x[:2])
    rows = []
    for kept, multiple in [(kept, multiple) for multiple in (1, VECTOR) for kept in KEPT]:
        alive = {}
        for group in graph.groups:
            alive[group.name] = torch.ones(group.units, dtype=torch.bool)
            if group.protected is None:
                alive[group.name][multiple * round(kept * group.units / multiple) :] = False
        small = compacted(model, Present.whole(model, graph), alive)
        seconds, dense_seconds = latency([small, model], x, repeats=repeats)
        ideal = count_macs(graph) / count_macs(graph, alive)
        found = dense_seconds / seconds
        rows.append(
            {
                "kept": kept, "multiple": multiple, "dense_ms": 1e3 * dense_seconds, "small_ms": 1e3 * seconds,
                "faster": found, "ideal": ideal,
            }
        )  # fmt: skip
        console.print(
            f"{kept:.0%} of the units, multiples of {multiple}: {found:.2f} times as fast, {ideal:.2f} by MACs: "
            f"{found / ideal:.0%} of the ideal"
        )
    return rows


def whole_run(config: Config) -> dict[str, Any]:
    """A run and its control in turns, epoch by epoch."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    arms = {"dense": Run(config.as_control()), "dpap": Run(config)}
    shrinks = _timed_shrinks()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    steps: list[float] = []
    for epoch in range(config.epochs):
        for name in sorted(arms, reverse=epoch % 2 == 1):  # the order turns
            begun = time.perf_counter()
            train_epoch(arms[name], epoch)
            seconds[name].append(time.perf_counter() - begun)
        steps.append(seconds["dense"][-1] / arms["dense"].batch_count)
        ratio = seconds["dpap"][-1] / seconds["dense"][-1]
        console.print(
            f"epoch {epoch + 1}: {ratio:.2f} of the dense epoch, connectivity {arms['dpap'].connectivity:.1%}"
        )
    dev = arms["dpap"].dev
    assert dev is not None
    prunable = [g.name for g in dev.graph.groups if g.protected is None]
    units = sum(int(dev.alive[n].sum()) for n in prunable) / sum(len(dev.alive[n]) for n in prunable)
    accuracy = {name: run.validation_accuracy for name, run in arms.items()}
    total = sum(seconds["dpap"]) / sum(seconds["dense"])
    in_steps = [taken / statistics.median(steps) for taken in shrinks]
    macs = count_macs(dev.graph, dev.alive) / count_macs(dev.graph)
    console.print(f"the whole run: {total:.3f} of the dense one; {units:.0%} of the units, {macs:.0%} of the MACs left")
    console.print(f"validation accuracy {accuracy['dpap']:.2%} beside {accuracy['dense']:.2%}")
    console.print(
        f"{len(shrinks)} shrinks: {statistics.median(in_steps):.2f} dense training steps in the median, "
        f"{max(in_steps):.2f} at most"
    )
    return {
        "config": config.recipe, "seconds": seconds, "ratio": total, "units": units,
        "macs": macs, "accuracy": accuracy, "shrinks_in_steps": in_steps, "target": config.development.target.named(),
    }  # fmt: skip


def _timed_shrinks() -> list[float]:
    """Seconds of every shrink from now on."""
    taken: list[float] = []
    original: Callable[..., bool] = Shrinker.shrink

    def shrink(self: Shrinker, units: Any) -> bool:
        begun = time.perf_counter()
        done = original(self, units)
        if done:
            taken.append(time.perf_counter() - begun)
        return done

    Shrinker.shrink = shrink  # type: ignore[method-assign]
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], "inference", "run"], default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16, help="samples of an inference pass")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--recipe", default="mnist-snn", help="of the run")
    parser.add_argument("--samples", type=int, default=12_000, help="training images of the run")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--macs", type=float, default=0.25, help="target of the run: half the units leave a quarter")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the run's config")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    parts = chosen.parts or ["inference", "run"]
    found: dict[str, Any] = {"torch": torch.__version__, "machine": platform.processor(), "threads": chosen.threads}
    if "inference" in parts:
        found["inference"] = inference(chosen.batch, chosen.repeats)
    if "run" in parts:
        settings = {
            "epochs": chosen.epochs, "threads": chosen.threads, "control": "false", "data.limit": chosen.samples,
            "data.hold_out": "true", "development.target.connectivity": "none", "development.target.macs": chosen.macs,
        } | dict(setting.split("=", 1) for setting in chosen.set)  # fmt: skip
        found["run"] = whole_run(override(recipe(chosen.recipe), {key: str(value) for key, value in settings.items()}))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
