"""All that there is to measure on a GPU, in one command that may be stopped and gone on with.

    python benchmarks/gpu.py --budget 540 --results benchmarks/results/gpu --data-dir DATA
    python benchmarks/gpu.py --list --results benchmarks/results/gpu       # what is missing; starts nothing
    python benchmarks/gpu.py --device cpu --tiny --results FOLDER          # every stage in miniature, to try this out
    python benchmarks/gpu.py --page docs/gpu.md --results benchmarks/results/gpu

The stages run in the order of `STAGES`, each for its share of the budget (seconds); what a stage leaves over goes to
the next ones. A result is written as JSON after every step, with device, versions and commit, and not measured again. A
step that was cut off is done anew by the next call. A step for which something is missing (a library, the data) says
what, and is tried again.

Where nothing can be installed, wheels have to be brought along: `pip download --no-deps` for that machine's Python,
then `pip install --no-index --no-deps --target DIR`, and DIR in PYTHONPATH. What is needed beside Python 3.12,
torch 2.11 for CUDA 13, triton 3.6, numpy, safetensors and jaxtyping:

    dpap         rich 15.0.0, markdown-it-py 4.3.0, mdurl 0.1.2, Pygments 2.21.0
    tests        pytest 9.2.0, pluggy 1.7.0, iniconfig 2.3.1, beartype 0.23.1
    throughput   spikingjelly 2.0.0, snntorch 1.0.0, loguru 0.7.3

dpap itself runs from the checkout. SpikingJelly 2.0 has three implementations of its neurons on CUDA: torch, Triton,
and native CUDA, which took the place of CuPy and has to be built (`SJ_BUILD_NATIVE_CUDA=1`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import gpu_stages  # noqa: E402
import torch  # noqa: E402
from gpu_page import page  # noqa: E402
from gpu_store import Context, Result, Step, Store  # noqa: E402

from dpap.atomic import replace_file  # noqa: E402
from dpap.errors import DPAPError, unknown_name  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """A part of the measurements; `share`: of the budget."""

    name: str
    share: float
    steps: Callable[[Context], Iterator[Step]]


STAGES = (
    Stage("tests", 0.11, gpu_stages.tests),
    Stage("throughput", 0.24, gpu_stages.throughput),
    Stage("cifar", 0.40, gpu_stages.cifar),
    Stage("run-time", 0.10, gpu_stages.run_time),
    Stage("vgg16", 0.08, gpu_stages.vgg16),
    Stage("released", 0.07, gpu_stages.released),
)
"""In order: what later ones rest on comes first."""


def run(context: Context, budget: float, chosen: list[Stage]) -> None:
    """Do what is missing, each stage until its share, and what earlier ones left over, is used up."""
    begun, allowed = time.monotonic(), 0.0
    for stage in chosen:
        allowed += stage.share * budget
        deadline = begun + allowed
        for step in stage.steps(context):
            if context.store.done(stage.name, step.key):
                continue
            left = deadline - time.monotonic()
            if left <= step.seconds():
                print(f"{stage.name}, {step.key}: not begun, {max(left, 0):.0f} s are left", flush=True)
                break
            started = time.monotonic()

            def note(result: Result, stage: Stage = stage, step: Step = step) -> None:
                context.store.put(stage.name, step.key, {**result, "partial": True})

            try:
                result = step.run(deadline, note)
            except Exception as error:  # whatever fails there, the other stages go on
                result = {"missing": f"{type(error).__name__}: {error}"}
            context.store.put(stage.name, step.key, {**result, "step_seconds": time.monotonic() - started})
            said = result.get("missing", "part of it" if "partial" in result else "done")
            print(f"{stage.name}, {step.key}: {said} ({time.monotonic() - started:.0f} s)", flush=True)


def missing(context: Context, chosen: list[Stage]) -> list[str]:
    """Stage and step of what has no result yet, or a part of one."""
    found = []
    for stage in chosen:
        for step in stage.steps(context):
            if not context.store.done(stage.name, step.key):
                row = context.store.rows(stage.name).get(step.key, {})
                found.append(f"{stage.name}, {step.key}: {row.get('missing', 'in part' if row else 'not measured')}")
    return found


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540, help="seconds for all stages together")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 is; or DPAP_DATA")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks on the digits inside the package")
    parser.add_argument("--stages", nargs="+", help="only these")
    parser.add_argument("--commit", help="of the code, where there is no git")
    parser.add_argument("--list", action="store_true", help="say what is missing")
    parser.add_argument("--page", type=Path, help="write the page of the results")
    options = parser.parse_args(arguments)
    if options.data_dir is not None:
        os.environ["DPAP_DATA"] = str(options.data_dir.resolve())
    store = Store(options.results, options.tiny, options.commit or _commit())
    context = Context(device=options.device, tiny=options.tiny, store=store)
    for name in options.stages or ():
        if name not in [stage.name for stage in STAGES]:
            raise unknown_name("stage", name, [stage.name for stage in STAGES])
    chosen = [stage for stage in STAGES if options.stages is None or stage.name in options.stages]
    if options.page is not None:
        replace_file(options.page, page({stage.name: store.rows(stage.name) for stage in STAGES}).encode())
    elif options.list:
        print("\n".join(missing(context, chosen)) or "Nothing is missing.")
    else:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise DPAPError("There is no CUDA device.", fix="try this out with --device cpu --tiny.")
        for stage in chosen:
            store.rows(stage.name)  # refused before anything is measured, or not at all
        run(context, options.budget, chosen)


if __name__ == "__main__":
    try:
        main()
    except DPAPError as error:
        sys.exit(f"Error: {error}")
