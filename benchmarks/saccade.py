"""The simulated event camera beside the real one: statistics, and networks trained on one and tested on the other.

    python benchmarks/saccade.py --real nmnist-1100.tar.xz --json benchmarks/results/saccade.json

`--real` is a folder or an archive (.zip, .tar.*) that holds `Train/<label>/<number>.bin` and perhaps
`Test/<label>/<number>.bin`, named as in N-MNIST: number k is MNIST image k. Each real recording is compared with the
simulated one of the same MNIST image. MNIST itself is looked for as everywhere (DPAP_DATA).

- Everything is counted in frames of 15 ms from time 0 to 315 ms; three saccades of 105 ms have 7 frames each.
- "Same image" correlations are Pearson's over the numbers of one sample, real against simulated: of the event image
  (34 x 34 counts), or of the frames (21 x 2 x 34 x 34 counts).
- The network is a plain convolutional one that sees the counts of the three saccades as 6 channels, so that it can
  tell movements and polarities apart. It is tested on recordings of images that it was not trained on: in 5 folds over
  the training samples, and on the test samples after training on all training samples.

About two and a half minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dpap.data.events.places import members, names_in
from dpap.data.events.readers import parse_bin
from dpap.data.events.recording import Events, frames
from dpap.data.idx import parse_idx
from dpap.data.saccade import saccade_events, saccade_frames
from dpap.data.saccade_camera import Saccades
from dpap.data.sources import MNIST
from dpap.data.store import read_parts
from dpap.errors import DPAPError
from dpap.training.checkpoint import environment

STEPS, SACCADES = 21, 3
FOLDS, EPOCHS = 5, 12
WAITED, QUANTILES = 200, (0.05, 0.25, 0.5, 0.75)
NAME = re.compile(r"(?:^|/)(Train|Test)/(\d)/(\d+)\.bin$")
PARTS = {"Train": "train", "Test": "t10k"}


@dataclass(frozen=True)
class Pair:
    """Real and simulated recordings of the same images, as frames (N, T, 2, H, W)."""

    real: np.ndarray
    simulated: np.ndarray
    pictures: np.ndarray
    labels: np.ndarray
    beyond: float
    """Share of the real events that come later than the frames end."""
    waits: dict[str, list[float]]
    """Of the first `WAITED` recordings: quantiles of the milliseconds between two events of a pixel."""

    def source(self, name: str) -> torch.Tensor:
        """(N, 6, H, W): counts of each saccade and polarity."""
        counts: np.ndarray = getattr(self, name)
        summed = counts.reshape(len(counts), SACCADES, -1, *counts.shape[2:]).sum(2, dtype=np.float32)
        return torch.from_numpy(summed).flatten(1, 2) / 4


def load(place: Path, part: str, saccades: Saccades, seed: int) -> Pair:
    """The recordings of "Train" or "Test", in the order of their numbers."""
    found = [match for name in names_in(place) if (match := NAME.search(name)) and match[1] == part]
    if not found:
        raise DPAPError(f"There is no {part}/<label>/<number>.bin.", where=str(place), fix="give N-MNIST as published")
    found.sort(key=lambda match: int(match[3]))
    numbers, labels = (np.array([int(match[group]) for match in found]) for group in (3, 2))
    real = np.empty((len(found), STEPS, 2, *saccades.window), np.uint8)
    beyond = total = 0
    kept = {}
    for row, read, where in members(place, [match.string for match in found]):
        events = parse_bin(read(), saccades.window, where)
        real[row] = frames(events, STEPS, duration=saccades.duration, start=0)
        if row < WAITED:
            kept[row] = events
        beyond, total = beyond + int((events.t >= saccades.duration).sum()), total + len(events)
    parts = read_parts(MNIST)
    pictures, known = (
        parse_idx(parts[name], name)[numbers - 1].numpy()
        for name in (f"{PARTS[part]}-images-idx3-ubyte", f"{PARTS[part]}-labels-idx1-ubyte")
    )
    assert (known == labels).all(), "number k is not MNIST image k"
    indices = (numbers - 1 + (60_000 if part == "Test" else 0)).tolist()
    simulated = saccade_frames(pictures, STEPS, saccades, seed=seed, indices=indices)
    looked = [saccade_events(pictures[row], saccades, seed=seed, index=indices[row]) for row in kept]
    waits = {"real": quantiles(list(kept.values())), "simulated": quantiles(looked)}
    return Pair(real, simulated, pictures, labels, beyond / total, waits)


# --------------------------------------------------------------------------------------------------------- statistics


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's, sample by sample."""
    one, other = (array.reshape(len(array), -1).astype(np.float64) for array in (one, other))
    one, other = (array - array.mean(1, keepdims=True) for array in (one, other))
    return np.asarray((one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1)))


def statistics(counts: np.ndarray, pictures: np.ndarray) -> dict[str, Any]:
    """Of one source: means over the samples, with standard deviations."""
    events = counts.sum((1, 2, 3, 4), dtype=np.int64)
    on = counts[:, :, 1].sum((1, 2, 3), dtype=np.int64) / events
    steps = counts.sum((2, 3, 4), dtype=np.int64) / events[:, None]
    thirds = steps.reshape(len(steps), SACCADES, -1).sum(2)
    image = counts.sum((1, 2), dtype=np.int64)
    border = (image.shape[1] - pictures.shape[1]) // 2
    padded = np.pad(pictures, ((0, 0), (border, border), (border, border)))
    with_picture = correlation(image, padded)
    active = (image > 0).mean((1, 2))
    return {
        "samples": len(counts),
        "events": spread(events),
        "on_share": spread(on),
        "saccade_shares": [spread(third) for third in thirds.T],
        "active_pixels": spread(active),
        "correlation_with_picture": spread(with_picture),
        "profile": (steps.mean(0)).round(4).tolist(),
    }


def quantiles(recordings: list[Events]) -> list[float]:
    waits = []
    for events in recordings:
        order = np.lexsort((events.t, events.x, events.y))
        same = (np.diff(events.x[order]) == 0) & (np.diff(events.y[order]) == 0)
        waits.append(np.diff(events.t[order])[same])
    return (np.quantile(np.concatenate(waits), QUANTILES) / 1000).round(2).tolist()


def spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": round(float(values.mean()), 4),
        "sd": round(float(values.std(ddof=1)), 4),
        "median": round(float(np.median(values)), 4),
    }


def agreement(pair: Pair) -> dict[str, Any]:
    """Real against simulated, sample by sample."""
    real, simulated = (counts.sum((1, 2, 3, 4), dtype=np.int64) for counts in (pair.real, pair.simulated))
    profiles = [counts.sum((0, 2, 3, 4), dtype=np.int64) for counts in (pair.real, pair.simulated)]
    one, other = (profile / profile.sum() for profile in profiles)
    images = [counts.sum((1, 2), dtype=np.int64) for counts in (pair.real, pair.simulated)]
    others = np.roll(images[1], 1, axis=0)
    return {
        "same_event_image": spread(correlation(*images)),
        "other_event_image": spread(correlation(images[0], others)),
        "same_frames": spread(correlation(pair.real, pair.simulated)),
        "polarities_swapped": spread(correlation(pair.real, pair.simulated[:, :, ::-1])),
        "events_of_samples": round(float(np.corrcoef(real, simulated)[0, 1]), 4),
        "profile_moved": round(float(np.abs(one - other).sum() / 2), 4),
        "real_events_after_the_end": round(pair.beyond, 6),
        "milliseconds_between_events_of_a_pixel": {"quantiles": QUANTILES, **pair.waits},
    }


# ----------------------------------------------------------------------------------------------------------- transfer


def trained(images: torch.Tensor, labels: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(images.shape[1], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(10)),
    )
    model(images[:1])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batch, steps = 50, EPOCHS * (len(images) // 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(batch):
            if len(rows) < batch:
                continue
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def right(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent."""
    return round(100 * float((model(images).argmax(1) == labels).double().mean()), 3)


def in_folds(pair: Pair, seed: int) -> dict[str, float]:
    """Accuracy in percent over all samples, each tested by the network that was not trained on its image."""
    labels = torch.from_numpy(pair.labels)
    fold = torch.arange(len(labels)) % FOLDS
    return transfer(pair, pair, seed, [(fold != k, fold == k) for k in range(FOLDS)])


def on_test(train: Pair, test: Pair, seed: int) -> dict[str, float]:
    everything = torch.ones(len(train.labels), dtype=torch.bool), torch.ones(len(test.labels), dtype=torch.bool)
    return transfer(train, test, seed, [everything])


def transfer(train: Pair, test: Pair, seed: int, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Mean accuracy over the parts, "trained on -> tested on"."""
    found: dict[str, list[float]] = {}
    for learnt, tested in parts:
        for one in ("real", "simulated"):
            model = trained(train.source(one)[learnt], torch.from_numpy(train.labels)[learnt], seed)
            for other in ("real", "simulated"):
                score = right(model, test.source(other)[tested], torch.from_numpy(test.labels)[tested])
                found.setdefault(f"{one} -> {other}", []).append(score)
    return {name: sum(scores) / len(scores) for name, scores in found.items()}


def over_seeds(runs: list[Mapping[str, float]]) -> dict[str, Any]:
    return {
        name: {"of_seeds": [round(run[name], 2) for run in runs], **spread(np.array([run[name] for run in runs]))}
        for name in runs[0]
    }


# -------------------------------------------------------------------------------------------------------------- speed


def speed(pictures: np.ndarray, saccades: Saccades) -> dict[str, float]:
    """Samples a second straight to 10 frames: by the clock, and by the processor's time of one thread."""
    saccade_frames(pictures[:64], 10, saccades)
    clock, processor = time.perf_counter(), time.thread_time()
    saccade_frames(pictures, 10, saccades)
    return {
        "by_the_clock": round(len(pictures) / (time.perf_counter() - clock)),
        "by_processor_time": round(len(pictures) / (time.thread_time() - processor)),
    }


# -------------------------------------------------------------------------------------------------------------- shown


def show(found: dict[str, Any], console: Console) -> None:
    for part in ("train", "test"):
        if part not in found:
            continue
        table = Table("", "real", "simulated", title=f"{part}: {found[part]['real']['samples']} samples, mean (sd)")
        real, simulated = found[part]["real"], found[part]["simulated"]
        for name, value in real.items():
            if isinstance(value, dict):
                table.add_row(name, *(f"{s['mean']:.4g} ({s['sd']:.2g})" for s in (value, simulated[name])))
        for number in range(SACCADES):
            both = (source["saccade_shares"][number] for source in (real, simulated))
            table.add_row(f"share of saccade {number + 1}", *(f"{s['mean']:.3f} ({s['sd']:.3f})" for s in both))
        console.print(table)
        console.print(found[part]["agreement"])
    for name in ("folds", "test_samples"):
        if name in found:
            table = Table("trained -> tested", "accuracy, %", "sd of seeds", title=f"networks, {name}")
            for way, scores in found[name].items():
                table.add_row(way, f"{scores['mean']:.2f}", f"{scores['sd']:.2f}")
            console.print(table)
    console.print("samples a second:", found["samples_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder or archive of N-MNIST")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated camera")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind; 0: statistics only")
    parser.add_argument("--no-test", action="store_true", help="leave the test samples out")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    saccades = Saccades()
    pairs = {
        part.lower(): load(chosen.real, part, saccades, chosen.seed)
        for part in PARTS
        if part == "Train" or not chosen.no_test
    }
    found: dict[str, Any] = {"environment": environment("cpu"), "saccades": asdict(saccades), "seed": chosen.seed}
    for part, pair in pairs.items():
        found[part] = {
            "real": statistics(pair.real, pair.pictures),
            "simulated": statistics(pair.simulated, pair.pictures),
            "agreement": agreement(pair),
        }
    found["samples_per_s"] = speed(pairs["train"].pictures, saccades)
    if chosen.seeds:
        seeds = range(chosen.seeds)
        found["folds"] = over_seeds([in_folds(pairs["train"], seed) for seed in seeds])
        if "test" in pairs:
            found["test_samples"] = over_seeds([on_test(pairs["train"], pairs["test"], seed) for seed in seeds])
    show(found, Console())
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
