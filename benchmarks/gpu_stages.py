"""The stages of `gpu.py`: each yields its steps."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import development
import neurons
import shrinking
import torch
from gpu_store import Context, Result, Step

from dpap import DPAP
from dpap.config import Config, override
from dpap.graph.find import find_groups
from dpap.metrics import count_macs
from dpap.models import build
from dpap.recipes import recipe
from dpap.training.loop import train_epoch
from dpap.training.run import Run

ROOT = Path(__file__).resolve().parents[1]
Note = Callable[[Result], None]


# a: the tests marked gpu ----------------------------------------------------------------------------------------------


def tests(context: Context) -> Iterator[Step]:
    """CUDA equals the CPU; masks, shrinking, resuming, half precision."""
    yield Step(key="pytest", run=partial(_pytest, context))


def _pytest(context: Context, deadline: float, note: Note) -> Result:
    if importlib.util.find_spec("pytest") is None:
        return {"missing": "pytest is not installed"}
    chosen = ["tests/device", "-k", "cpu and masked"]
    if not context.tiny:  # to collect all tests would take as long as these
        marked = [file for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text("utf-8")]
        chosen = [*map(str, marked), "-m", "gpu"]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *chosen]
        limit = min(60.0, deadline - time.monotonic())
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
        except subprocess.TimeoutExpired:
            return {"missing": f"the tests took more than {limit:.0f} s"}
        if not report.exists():
            return {"missing": (done.stdout + done.stderr)[-500:]}
        cases = list(xml.parse(report).getroot().iter("testcase"))
    states = {
        f"{case.get('classname')}.{case.get('name')}": next((part.tag for part in case if part.tag in STATES), "passed")
        for case in cases
    }
    counts = {state: list(states.values()).count(state) for state in ("passed", *STATES)}
    bad = {name: state for name, state in states.items() if state in ("failure", "error")}
    return {"counts": counts, "not passed": bad}


STATES = ("failure", "error", "skipped")


# b: samples per second ------------------------------------------------------------------------------------------------

BATCHES = {"mnist": 256, "cifar": 128}
BACKENDS = ("torch", "triton", "cuda")
"""SpikingJelly reads the one to use from the environment when it is imported, so each has a process of its own."""


def throughput(context: Context) -> Iterator[Step]:
    """Beside SpikingJelly and snnTorch; what observing and developing cost; memory before and after a shrink."""
    for backend in BACKENDS[: 1 if context.tiny else None]:
        yield Step(key=f"backend {backend}", run=partial(_backend, context, backend))
    for name in ["mnist"] if context.tiny else BATCHES:
        yield Step(key=f"development {name}", run=partial(_development, context, name))
    yield Step(key="memory", run=partial(_memory, context))


def net_of(name: str, tiny: bool) -> neurons.Net:
    net = neurons.NETS[name]
    if tiny:
        return replace(net, shape=(1, 8, 8), convs=(4, "pool", 6, "pool"), hidden=(12,), batch=4, num_steps=2)
    return replace(net, batch=BATCHES[name])


def _backend(context: Context, backend: str, deadline: float, note: Note) -> Result:
    """Rows of one back end, from a process that writes each as a line as soon as it has it."""
    rows: list[Result] = []
    command = [sys.executable, __file__, context.device, "tiny" if context.tiny else "real", backend]
    env = {**os.environ, "SJ_LIF_CUDA_IMPLEMENTATION": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("{"):
                rows.append(json.loads(line))
                note({"rows": rows})
            if time.monotonic() > deadline:
                process.kill()
                return {"rows": rows, "partial": True}
        problem = process.stderr.read()[-500:]
    if not rows:
        return {"missing": problem}
    return {"rows": rows}


def compare(device: str, tiny: bool, backend: str) -> None:
    """In a process of its own: print a line for each library, network, task, precision and memory layout."""

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    neurons.TURN_S = 0.01 if tiny else 0.1
    for name in ["mnist"] if tiny else BATCHES:
        for layout in ("", ", nhwc"):
            for precision in (None, torch.bfloat16):
                for task in ("train", "infer"):
                    wanted = ["dpap" + layout, "spikingjelly" + layout]
                    wanted += ["snntorch"] if backend == "torch" and not layout else []
                    here = [w for w in wanted if _installed(neurons.MAKERS[w][0])]
                    chosen: dict[str, Any] = {"net": net_of(name, tiny), "device": device, "precision": precision}
                    for row in _measured(name, task, 3 if tiny else 9, here, clock, chosen):
                        row |= {"backend": backend, "precision": "bf16" if precision else "fp32"}
                        row |= {"batch": chosen["net"].batch}
                        print(json.dumps(row), flush=True)


def _measured(name: str, task: str, rounds: int, libraries: list[str], clock: Any, chosen: Any) -> list[Result]:
    """Rows of the libraries; one that fails has a row that says why, and the others are measured without it."""
    failed: list[Result] = []
    for library in list(libraries):
        try:
            neurons.measure(name, task, 1, [library], clock, **chosen)
        except Exception as error:  # whatever another library does
            libraries.remove(library)
            failed.append({"net": name, "task": task, "library": library, "failed": f"{type(error).__name__}: {error}"})
    rows = neurons.measure(name, task, rounds, libraries, clock, **chosen) if libraries else []
    return [asdict(row) for row in rows] + failed


def _installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None


def _development(context: Context, name: str, deadline: float, note: Note) -> Result:
    rows = development.measure(name, 2 if context.tiny else 8, net_of(name, context.tiny), context.device)
    return {"rows": [asdict(row) for row in rows]}


def _memory(context: Context, deadline: float, note: Note) -> Result:
    """Peak of a training step at the dense widths and at a quarter of the MACs."""
    net = net_of("mnist" if context.tiny else "cifar", context.tiny)
    model = development.Chain(net).to(context.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    steps = 20
    dev = DPAP(
        model, torch.rand(2, *net.shape, device=context.device), optimizer=optimizer, total_steps=steps,
        target={"macs": 0.25}, start=0.0, stop=0.9, memory=0.05, development_steps=steps, shrink="always",
    )  # fmt: skip
    peaks: list[int | None] = []
    for _ in range(steps + 1):
        x = torch.rand(net.batch, *net.shape, device=context.device)
        if context.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with dev.observing():
            loss = model(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        peaks.append(torch.cuda.max_memory_allocated() if context.device == "cuda" else None)
        if dev.steps_taken < steps:
            dev.step()
    macs = count_macs(dev.graph, dev.alive) / count_macs(dev.graph)
    return {"dense_bytes": peaks[1], "small_bytes": peaks[-1], "macs": macs, "batch": net.batch}


# c to f: runs ---------------------------------------------------------------------------------------------------------

TINY = {
    "data.name": "digits", "data.limit": 200, "data.erasing": 0, "data.crop": 0, "data.flip": "false",
    "data.batch_size": 50, "optimizer.precision": "float32", "threads": 1,
}  # fmt: skip


def _config(context: Context, name: str, epochs: int, **settings: object) -> Config:
    """A recipe on this device, accuracies from the validation split: the test split is for the runs of the pages."""
    changes: dict[str, object] = {
        "device": context.device, "epochs": epochs, "control": "false", "data.hold_out": "true",
        "test_each_epoch": "false",
    }  # fmt: skip
    if context.tiny:
        relu = name == "cifar10-vgg16"
        changes |= TINY | {
            "model.blocks": "[[4, 6]]", "model.hidden": "[12]", "model.num_steps": 1 if relu else 2, "model.pooled": 1,
            "data.randaugment": 0, "data.train_normalization": "data",
        }  # fmt: skip
    changes |= {key.replace("__", "."): value for key, value in settings.items()}
    return override(recipe(name), {key: str(value) for key, value in changes.items()})


def _trained(config: Config, deadline: float, note: Note) -> Result:
    """An epoch after the other, written down after each; "partial" where the deadline came first."""
    run = Run(config)
    history: list[Result] = []
    result: Result = {"history": history, "recipe": config.recipe, "seed": config.seed, "samples": len(run.samples)}
    result |= {"accuracies": "of the validation split", "epochs": config.epochs}
    for epoch in range(config.epochs):
        if epoch and time.monotonic() + history[-1]["seconds"] > deadline:
            return result | {"partial": True}
        line: Any = train_epoch(run, epoch)[-1]
        history.append(asdict(line))
        if run.dev is not None:
            result["macs"] = count_macs(run.dev.graph, run.dev.alive) / count_macs(run.dev.graph)
            result["connectivity"] = run.connectivity
        note(result)
    return result


def _expected(context: Context, stage: str, epochs: int) -> float:
    """Seconds of so many epochs, by the slowest run of the stage so far."""
    rows = context.store.rows(stage).values()
    return epochs * max((line["seconds"] for row in rows for line in row.get("history", ())), default=0.0)


LEVELS = (2, 6, 12)
"""Epochs of each arm: all arms with few, then with more."""
ARMS: dict[str, dict[str, object]] = {
    "control": {"development__rule": "none"},
    "dpap-50": {"development__target__connectivity": 0.5, "development__target__macs": "none"},
    "dpap-20": {"development__target__connectivity": 0.2, "development__target__macs": "none"},
    "magnitude-20": {
        "development__target__connectivity": 0.2, "development__target__macs": "none",
        "development__unit_score": "magnitude", "development__synapse_score": "magnitude",
    },
}  # fmt: skip


def cifar(context: Context) -> Iterator[Step]:
    """CIFAR-10, spiking 6Conv2FC at full width, T = 4, bf16."""
    for epochs in (1, 2) if context.tiny else LEVELS:
        for arm, settings in ARMS.items():
            config = partial(_config, context, "cifar10-snn", epochs, **settings)
            run = partial(_run_of, config)
            yield Step(key=f"{arm}, {epochs} epochs", run=run, seconds=partial(_expected, context, "cifar", epochs))
        run = partial(_narrow, context, epochs)
        yield Step(key=f"narrow, {epochs} epochs", run=run, seconds=partial(_expected, context, "cifar", epochs))


def _run_of(config: Callable[[], Config], deadline: float, note: Note) -> Result:
    return _trained(config(), deadline, note)


def _narrow(context: Context, epochs: int, deadline: float, note: Note) -> Result:
    """Nothing pruned: all widths smaller by one factor, so that the MACs are those of `dpap-20` in the end."""
    pruned = context.store.rows("cifar").get(f"dpap-20, {epochs} epochs", {})
    if "macs" not in pruned:
        return {"missing": f"dpap-20, {epochs} epochs, whose MACs it takes"}
    config = _config(context, "cifar10-snn", epochs, development__rule="none")
    dense = _macs(config)
    width = pruned["macs"] ** 0.5
    for _ in range(3):
        config = _config(context, "cifar10-snn", epochs, development__rule="none", model__width=round(width, 4))
        width *= (pruned["macs"] / (_macs(config) / dense)) ** 0.5
    return _trained(config, deadline, note) | {"width": config.model.width, "macs": _macs(config) / dense}


def _macs(config: Config) -> float:
    shape = (1, 8, 8) if config.data.name == "digits" else (3, 32, 32)
    model = build(config.model.name, shape=shape, classes=10, **config.model.arguments())
    return count_macs(find_groups(model, torch.rand(2, *shape)))


def run_time(context: Context) -> Iterator[Step]:
    """A run that loses three quarters of its MACs, and its control, epoch by epoch in turns."""
    epochs = 3 if context.tiny else 6
    settings = {"development__start": 0.05, "development__stop": 0.4, "development__memory": 0.02}
    settings |= {"development__shrink": "always" if context.tiny else "auto", "optimizer__warmup": 0.04}
    config = partial(
        _config, context, "cifar10-snn", epochs, **settings,
        development__target__connectivity="none", development__target__macs=0.25,
    )  # fmt: skip
    seconds = partial(_expected, context, "cifar", 2 * epochs)
    yield Step(key="in turns", run=lambda deadline, note: shrinking.whole_run(config()), seconds=seconds)


def vgg16(context: Context) -> Iterator[Step]:
    """An ordinary network."""
    epochs = 1 if context.tiny else 4
    for arm, settings in {"control": {"development__rule": "none"}, "dpap": {}}.items():
        run = partial(_run_of, partial(_config, context, "cifar10-vgg16", epochs, **settings))
        yield Step(key=arm, run=run, seconds=partial(_expected, context, "vgg16", epochs))


def released(context: Context) -> Iterator[Step]:
    """The authors' script as a recipe: as many of its 300 epochs as there is time for, all with its learning rates."""
    run = partial(_run_of, partial(_config, context, "cifar10-released", 2 if context.tiny else 300))
    yield Step(key="first epochs", run=lambda deadline, note: _first(run(deadline, note), context))


def _first(result: Result, context: Context) -> Result:
    """A few epochs are all that is asked for."""
    return {key: value for key, value in result.items() if key != "partial" or not result["history"]}


if __name__ == "__main__":
    compare(sys.argv[1], sys.argv[2] == "tiny", sys.argv[3])
