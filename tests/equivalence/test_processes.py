"""Several processes decide as one would: gloo on the CPU, each run in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = r"""
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from dpap import DPAP, DPAPError
from dpap.neurons import LIF

folder, *modes = sys.argv[1:]
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
if count > 1 and modes != ["late"]:
    dist.init_process_group("gloo")
STEPS = 60
OPTIONS = {
    "dense": dict(target={"connectivity": 0.3}),
    "time": dict(target={"sops": 0.4, "pairs": 0.6}, time="leak"),
    "apart": dict(target={"connectivity": 0.3}),
    "late": {},
    "shrink": dict(shrink="auto"),
    "paper": dict(rule="paper"),
    "unlike": dict(target={"connectivity": 0.3 + 0.1 * rank}),
}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 20), LIF(v_threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(20, 16), LIF(v_threshold=0.3)
        self.fc3 = nn.Linear(16, 3)
    def forward(self, x):
        return self.fc3(self.lif2(self.fc2(self.lif1(self.fc1(x))))).mean(0)

def outcome(mode):
    torch.manual_seed(rank if mode == "apart" else 0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    dev = DPAP(net, torch.rand(3, 4, 6), optimizer=optimizer, total_steps=STEPS, development_steps=30, observe_every=2,
               memory=0.05, **{"shrink": "never", **OPTIONS[mode]})
    if mode == "late":
        dist.init_process_group("gloo")
    wrapped = DistributedDataParallel(net) if count > 1 and mode != "apart" else net
    for step in range(STEPS):
        x = 2 * torch.rand(3, 12, 6, generator=torch.Generator().manual_seed(step))
        mine = x[:, rank::count]
        y = mine.mean(0)[:, :3].argmax(1)
        with dev.observing():
            loss = nn.functional.cross_entropy(wrapped(mine), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step(); dev.step()
    return {
        "alive": {k: v.tolist() for k, v in dev.alive.items()},
        "synapses": {k: v.tolist() for k, v in dev.synapse_masks.items()},
        "pairs": {k: v.tolist() for k, v in dev.pairs.items()},
        "weights": [p.tolist() for p in net.parameters()],
    }

results = {}
for mode in modes:
    try:
        results[mode] = outcome(mode)
    except DPAPError as error:
        results[mode] = {"error": str(error)}
with open(os.path.join(folder, f"{rank}.json"), "w") as file:
    json.dump(results, file)
if dist.is_initialized():
    dist.barrier()
os._exit(0)  # the threads of gloo are not always taken down in order at the end of the interpreter, which aborts
"""


def run(folder: Path, processes: int, *modes: str) -> list[dict[str, Any]]:
    """Of each process: mode -> what came of it."""
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0", "--standalone"]
    done = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), str(program), str(folder), *modes],
        capture_output=True, text=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_with_half_a_batch_each_equal_one(tmp_path: Path) -> None:
    modes = ("dense", "time")
    first, second = run(tmp_path / "two", 2, *modes)
    (alone,) = run(tmp_path / "one", 1, *modes)
    assert first == second, "the processes parted"
    for mode in modes:
        two, one = first[mode], alone[mode]
        for part in ("alive", "synapses", "pairs"):
            assert two[part] == one[part]
        for mine, theirs in zip(two["weights"], one["weights"], strict=True):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=1e-9, atol=1e-12)
        assert any(not flag for rows in one["synapses"].values() for row in rows for flag in row)
        assert mode == "dense" or any(not flag for rows in one["pairs"].values() for row in rows for flag in row)


REFUSED = {
    "apart": "would prune differently",  # nobody makes the weights of the two alike
    "shrink": 'pass shrink="never"',
    "paper": "slides its threshold batch by batch",
    "unlike": "different arguments",
}


def test_what_would_part_the_processes_is_refused_in_all_of_them(tmp_path: Path) -> None:
    for result in run(tmp_path / "run", 2, *REFUSED):
        for mode, message in REFUSED.items():
            assert message in result[mode]["error"]


@pytest.mark.slow
def test_processes_that_begin_after_dpap_are_refused(tmp_path: Path) -> None:
    for result in run(tmp_path / "run", 2, "late"):
        assert "init_process_group before DPAP is made" in result["late"]["error"]
