"""Golden runs: what small fixed runs end with, as hashes. A change of structure must not change one bit of them.

    python tests/golden/golden.py record hashes.json    # before the change
    python tests/golden/golden.py check hashes.json     # after it; exit code 1 and the names of what differs

Hashed are weights, masks, survival, the rest of the saved state, and the history without time fields. Floating-point
results belong to one processor and one build of PyTorch, so a file of hashes is compared only where it was recorded.
The foreign loops need `make foreign`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import dpap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import foreign

TIME_FIELDS = {"seconds", "samples_per_second", "latency_ms", "dense_latency_ms", "threads"}
SHORT = ("--no-control", "--epochs", "6")


def digest(value: Any) -> str:
    """A hash of tensors, numbers and texts in nested dicts and lists; the order of keys does not matter."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in sorted(part, key=str):
                found.update(f"{key}:".encode())
                add(part[key])
        elif isinstance(part, (list, tuple)):
            found.update(f"[{len(part)}]".encode())
            for entry in part:
                add(entry)
        elif isinstance(part, Tensor):
            dense = part.detach().cpu().contiguous()
            found.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
            found.update(dense.numpy().tobytes())
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()[:16]


# runs of the command line ---------------------------------------------------------------------------------------------


def run_folder(folder: Path) -> dict[str, str]:
    """Hashes of a finished run."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    history = [{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in lines]
    last = max(folder.glob("checkpoint/epoch-*"))
    return {
        "history": digest(history),
        "model": digest(load_file(folder / "model" / "model.safetensors")),
        "state": digest(load_file(last / "tensors.safetensors")),
    }


def command(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "dpap", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def recipe(folder: Path, name: str, *options: str) -> dict[str, str]:
    command("train", name, *SHORT, "--out", str(folder), *options)
    return run_folder(folder)


def resumed(folder: Path) -> dict[str, str]:
    """A run that loses what it wrote after its last but one checkpoint, and goes on from there."""
    command("train", "digits-snn", *SHORT, "--out", str(folder), "--shrink", "always")
    last = max(folder.glob("checkpoint/epoch-*"))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    command("resume", str(folder))
    return run_folder(folder)


# loops of a user ------------------------------------------------------------------------------------------------------


def loop(model: nn.Module, samples: Tensor, **options: Any) -> dict[str, str]:
    """Forty steps of a plain training loop; samples are (T, B, ...) with the classes 0 to 2 in turn."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = torch.arange(samples.shape[1]) % 3
    dev = dpap.DPAP(
        model, samples[:, :4], optimizer=optimizer, total_steps=40, development_steps=10, observe_every=1, **options
    )
    losses = []
    for _ in range(40):
        with dev.observing():
            out = model(samples)
        loss = F.cross_entropy(out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dev.step()
        losses.append(loss.detach())
    state = dev.state_dict()
    kept = ("alive", "synapse_masks", "survival", "synapse_survival", "time", "dense")
    return {
        "history": digest(losses),
        "model": digest(model.state_dict()),
        "compact": digest(dev.compact().state_dict()),
        "state": digest({name: state[name] for name in kept}),
    }


def events() -> Tensor:
    """(T, B, 2, 8, 8): digits as a simulated event camera sees them."""
    from dpap.data import load_dataset
    from dpap.data.saccade import saccade_frames

    images = load_dataset("digits").test.images[:24, 0]
    frames = saccade_frames((images * 255 / images.max()).round().byte().numpy(), 6)
    found = torch.as_tensor(frames if not isinstance(frames, tuple) else frames[0]).float()
    return F.adaptive_avg_pool2d(found.flatten(0, 1), 8).unflatten(0, found.shape[:2]).transpose(0, 1).contiguous()


def timed(folder: Path) -> dict[str, str]:
    """`time="leak"` on simulated events, with targets of units, pairs and steps."""
    from dpap.neurons import LIF, over_time

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif1 = nn.Conv2d(2, 8, 3, padding=1), LIF(v_threshold=0.3)
            self.pool = nn.AvgPool2d(2)
            self.fc1, self.lif2 = nn.Linear(8 * 16, 24), LIF(v_threshold=0.3)
            self.fc2 = nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = over_time(self.pool, self.lif1(over_time(self.conv, x)))
            return over_time(self.fc2, self.lif2(over_time(self.fc1, x.flatten(2)))).mean(0)

    target = {"connectivity": 0.4, "pairs": 0.6, "steps": 0.8}
    return loop(Net(), events(), time="leak", target=target, spiking_input=True, shrink="always")


def jelly(folder: Path) -> dict[str, str]:
    """SpikingJelly, all steps at once."""
    sj = foreign.spikingjelly()
    net = nn.Sequential(
        sj.layer.Conv2d(2, 8, 3, padding=1, bias=False),
        sj.layer.BatchNorm2d(8),
        sj.neuron.LIFNode(v_threshold=0.4),
        sj.layer.AvgPool2d(2),
        sj.layer.Flatten(),
        sj.layer.Linear(8 * 16, 16),
        sj.neuron.ParametricLIFNode(v_threshold=0.3),
        sj.layer.Linear(16, 3),
    )
    sj.functional.set_step_mode(net, "m")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            sj.functional.reset_net(self.net)
            return self.net(x).mean(0)

    return loop(Net(), events(), target={"macs": 0.5}, spiking_input=True)


def snn(folder: Path) -> dict[str, str]:
    """snnTorch in the user's own loop over time."""
    library = foreign.snntorch()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(128, 24), library.Leaky(beta=torch.rand(24), threshold=0.3, learn_beta=True)
            self.fc2, self.lif2 = nn.Linear(24, 16), library.Leaky(beta=0.8, threshold=0.3)
            self.fc3 = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            out = []
            for step in x.flatten(2):
                spikes, mem1 = self.lif1(self.fc1(step), mem1)
                spikes, mem2 = self.lif2(self.fc2(spikes), mem2)
                out.append(self.fc3(spikes))
            return torch.stack(out).mean(0)

    return loop(Net(), events(), target={"connectivity": 0.3, "macs": 0.6}, spiking_input=True)


RUNS: dict[str, Callable[[Path], dict[str, str]]] = {
    "digits-snn, always shrinking": lambda folder: recipe(folder, "digits-snn", "--shrink", "always"),
    "digits-ann": lambda folder: recipe(folder, "digits-ann"),
    "paper": lambda folder: recipe(folder, "digits-snn", *rule("paper")),
    "released": lambda folder: recipe(folder, "digits-snn", *rule("released")),
    "resumed": resumed,
    "time": timed,
    "SpikingJelly": jelly,
    "snnTorch": snn,
}


def rule(name: str) -> tuple[str, ...]:
    """A rule that knows no target, in place of the recipe's."""
    targets = [("--set", f"development.target.{metric}=none") for metric in ("connectivity", "macs")]
    return "--set", f"development.rule={name}", *(word for target in targets for word in target)


def machine() -> str:
    """Processors of one name may compute other bits: family, model and stepping tell them apart."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    keys = [found[key] for key in ("model name", "cpu family", "model", "stepping") if key in found]
    return f"{' '.join(keys) or platform.processor()}, PyTorch {torch.__version__}"


def hashes() -> dict[str, dict[str, str]]:
    found = {}
    for name, run in RUNS.items():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = run(Path(folder) / "run")
        print(f"{name}: {found[name]}", flush=True)
    return found


def main(action: str, file: Path) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if action == "record":
        file.write_text(json.dumps({"machine": machine(), "runs": hashes()}, indent=1) + "\n")
        return 0
    before = json.loads(file.read_text())
    if before["machine"] != machine():
        print(f"{file} was recorded on {before['machine']}; record it anew here, at a commit known to be right.")
        return 1
    now = hashes()
    different = [
        f"{run}: {part}" for run, parts in before["runs"].items() for part in parts if now[run][part] != parts[part]
    ]
    print("\n".join(["Different:", *different]) if different else "All golden runs are the same.")
    return 1 if different else 0


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "check"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
