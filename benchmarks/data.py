"""How long data take: loading a set, reading events and making frames of them, and making the batches of a recipe as a
share of its training steps.

    python benchmarks/data.py --json benchmarks/results/data.json

Batches and training steps take turns in one run, so that what else the machine does meets both alike. Loading is timed
in this process, the first time of a set left out (it fills the cache). Events are read from files that are written
here, one of each format, on one core; loading N-MNIST is what a run waits for when its frames are in the cache.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

from dpap.config import Config
from dpap.data import load_dataset
from dpap.data.events import Events, frames, read_aedat2, read_aedat3, read_bin, read_events_npz, read_spikes
from dpap.recipes import recipe
from dpap.training.checkpoint import environment
from dpap.training.run import Run

RECIPES = ("mnist-snn", "nmnist-snn", "mnist-ann", "cifar10-snn-small", "cifar10-snn", "cifar10-released")


def seconds_of(call: Callable[[], object], repeats: int = 5) -> float:
    """Median; the first call is left out."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def recording(count: int, side: int) -> Events:
    """So many events in 8 seconds, anywhere on a sensor of that side."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, side, (2, count)).astype(np.int16)
    time = np.sort(random.integers(0, 1 << 23, count))
    return Events(t=time, x=x, y=y, p=random.random(count) < 0.5, sensor=(side, side))


def event_readers(folder: Path, count: int) -> dict[str, Callable[[], Events]]:
    """A file of each format in `folder`, and what reads it."""
    events = recording(count, 34)
    t, x, y, p = (column.astype(np.int64) for column in (events.t, events.x, events.y, events.p))
    five = ((x << 32) | (y << 24) | (p << 23) | t).astype(">u8").view(np.uint8).reshape(-1, 8)[:, 3:]
    (folder / "a.bin").write_bytes(five.tobytes())
    jaer = np.stack([((127 - y) << 8) | ((127 - x) << 1) | (1 - p), t], 1).astype(">u4")
    (folder / "a2.aedat").write_bytes(b"#!AER-DAT2.0\r\n" + jaer.tobytes())
    words = np.stack([(x << 17) | (y << 2) | (p << 1) | 1, t], 1).astype("<u4")
    packets = [words[first : first + 4096] for first in range(0, count, 4096)]
    heads = [struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(part), len(part), len(part)) for part in packets]
    body = b"".join(head + part.tobytes() for head, part in zip(heads, packets, strict=True))
    (folder / "a3.aedat").write_bytes(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + body)
    np.savez(folder / "a.npz", t=t.astype(np.uint32), x=x.astype(np.uint8), y=y.astype(np.uint8), p=p.astype(np.uint8))
    readers: dict[str, Callable[[], Events]] = {
        "bin": partial(read_bin, folder / "a.bin", (34, 34)),
        "aedat2": partial(read_aedat2, folder / "a2.aedat"),
        "aedat3": partial(read_aedat3, folder / "a3.aedat"),
        "npz": partial(read_events_npz, folder / "a.npz", (34, 34)),
    }
    for name, read in readers.items():
        found = read()
        assert all((getattr(found, key) == getattr(events, key)).all() for key in "txyp"), name
    return readers


def spike_file(path: Path, recordings: int, spikes: int) -> None:
    """A file laid out as those of SHD: lists of times and of units, half precision and whole numbers."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, kind in (("times", np.float16), ("units", np.uint16)):
            column = file.create_dataset(f"spikes/{name}", (recordings,), dtype=h5py.vlen_dtype(kind))
            for row in range(recordings):
                drawn = np.sort(random.random(spikes)) if name == "times" else random.integers(0, 700, spikes)
                column[row] = drawn.astype(kind)
        file["labels"] = np.zeros(recordings, np.uint16)


def event_speeds(count: int = 5_000_000) -> dict[str, float]:
    """Million events a second: reading each format, and framing in 20 steps."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, read in event_readers(Path(folder), count).items():
            found[f"read {name}"] = count / 1e6 / seconds_of(read)
        spike_file(path := Path(folder) / "a.h5", recordings := count // 8_000, 8_000)
        seconds = seconds_of(lambda: [read() for read, _ in read_spikes(path, 700)])
        found["read hdf5, recordings of 8,000 events"] = recordings * 8_000 / 1e6 / seconds
    for side in (128, 34):
        events = recording(count, side)
        for by in ("time", "count"):
            found[f"frames of {side} x {side} by {by}"] = count / 1e6 / seconds_of(partial(frames, events, 20, by=by))
    short = [events.between(first, first + 7_000) for first in range(0, 8_000_000, 20_000)]  # as long as N-MNIST's
    seconds = seconds_of(lambda: [frames(one, 20) for one in short])
    found["frames of 34 x 34, recordings of 4,000 events"] = sum(map(len, short)) / 1e6 / seconds
    return {name: round(speed, 1) for name, speed in found.items()}


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
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES[:4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    found: dict[str, Any] = {"environment": environment("cpu"), "events_per_us": event_speeds()}
    for name, speed in found["events_per_us"].items():
        print(f"{name}: {speed:.0f} million events/s", flush=True)
    found |= {"loading_s": {}, "pipeline": {}}
    for name in ("digits", "mnist", "cifar10", "nmnist"):
        found["loading_s"][name] = round(seconds_of(partial(load_dataset, name)), 3)
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
