"""The page of what was measured on a GPU, from the results of `gpu.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]

HEAD = """# On a GPU

Made by `python benchmarks/gpu.py --page docs/gpu.md`; measured by

```
python benchmarks/gpu.py --budget 540 --results benchmarks/results/gpu --data-dir DATA
```

Each result names its device, versions and commit in `benchmarks/results/gpu`. Accuracies are of the validation split,
of single runs.
"""
TITLES = {
    "tests": "Tests on the device",
    "throughput": "Samples per second, beside SpikingJelly and snnTorch",
    "cifar": "CIFAR-10, spiking 6Conv2FC at full width, T = 4, bf16",
    "run-time": "Time of a whole run that shrinks",
    "vgg16": "VGG16 on CIFAR-10, without spikes",
    "released": "First epochs of the authors' script as a recipe",
}


def page(results: Mapping[str, Rows]) -> str:
    """The whole page."""
    parts = [HEAD]
    for stage, title in TITLES.items():
        rows = {key: row for key, row in results.get(stage, {}).items() if "missing" not in row}
        lines = list(SECTIONS[stage](rows)) if rows else ["Not measured yet."]
        devices = sorted({row["device"] for row in rows.values()})
        parts.append(f"## {title}\n\n" + "\n".join(lines) + ("\n\nOn: " + ", ".join(devices) if devices else "") + "\n")
    return "\n".join(parts)


def _tests(rows: Rows) -> Iterator[str]:
    for row in rows.values():
        counts = row["counts"]
        yield f"{counts['passed']} passed, {counts['failure'] + counts['error']} failed, {counts['skipped']} skipped."


def _throughput(rows: Rows) -> Iterator[str]:
    yield "| network, batch | task | precision | library | samples/s | dpap is faster by |"
    yield "|---|---|---|---|---|---|"
    for key, result in rows.items():
        for row in result.get("rows", ()) if key.startswith("backend") else ():
            name = row["library"] + (f" ({row['backend']})" if row["library"].startswith("spikingjelly") else "")
            found = row.get("failed") and ("", row["failed"])
            speed = found or (f"{row['samples_per_s']:,.0f}", f"{row['speed_of_dpap']:.2f}x")
            what = f"{row['net']}, {row['batch']} | {row['task']} | {row['precision']}"
            yield f"| {what} | {name} | {' | '.join(speed)} |"
    for key, result in rows.items():
        for row in result.get("rows", ()) if key.startswith("development") else ():
            if row["arm"] == "every 4th pass":
                yield f"\nObserving costs {row['observing_share']:+.1%} of a training step ({row['net']}), "
                yield f"a development step {row['development_ms']:.0f} ms."
    memory = rows.get("memory", {})
    if memory.get("dense_bytes"):
        yield f"\nPeak memory of a training step: {memory['dense_bytes'] / 2**20:,.0f} MiB dense, "
        yield f"{memory['small_bytes'] / 2**20:,.0f} MiB at {memory['macs']:.0%} of the MACs."


def _runs(rows: Rows) -> Iterator[str]:
    yield "| arm | epochs | accuracy | connectivity | MACs | seconds per epoch |"
    yield "|---|---|---|---|---|---|"
    for key, row in rows.items():
        last = row["history"][-1]
        seconds = sum(line["seconds"] for line in row["history"]) / len(row["history"])
        done = f"{len(row['history'])} of {row['epochs']}"
        yield (
            f"| {key.partition(',')[0]} | {done} | {last['validation_accuracy']:.2%} | {last['connectivity']:.1%} | "
            f"{row.get('macs', 1.0):.0%} | {seconds:.1f} |"
        )


def _run_time(rows: Rows) -> Iterator[str]:
    for row in rows.values():
        yield f"{row['ratio']:.2f} of the control's time with {row['macs']:.0%} of the MACs left in the end; "
        yield f"validation accuracy {row['accuracy']['dpap']:.2%} beside {row['accuracy']['dense']:.2%}."


SECTIONS = {
    "tests": _tests, "throughput": _throughput, "cifar": _runs, "run-time": _run_time, "vgg16": _runs, "released": _runs
}  # fmt: skip
