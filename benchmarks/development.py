"""What development costs: observing, plasticity and masks as a share of a training step, on two spiking networks.

    python benchmarks/development.py                     # both networks, as a table
    python benchmarks/development.py --net mnist --rounds 40 --json development.json

Three arms take turns in one process, step by step, on the same batches and from the same weights: no DPAP object, DPAP
with default sampling (every 4th pass is observed), DPAP with every pass observed. A round is four training steps of
each arm, so that it holds one observed pass of the default arm; the order of the arms turns. What else the machine does
falls on all alike; medians and quartiles of per-round ratios are reported, and beside them the same of the process's
CPU time, which a busy machine disturbs less.

Development steps are rare (about 100 in a run), so each is timed apart, taken out of its round, and then spread over
the steps that lie between two of them in a run of the length named in the table. All arms that have a DPAP object
prune: masks exist, and are kept at zero at every optimizer step, in the rounds that count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from neurons import NETS, Net, layers_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import dpap
from dpap.neurons import LIF, Repeat, SpikingNeuron, over_time

ROUND = 4
"""Training steps of each arm in a round: the default distance between two observed passes."""
DEVELOP_EVERY = 2
"""Rounds between two development steps of the benchmark; in a real run there are more."""
WINDOW = 0.40
"""Share of a run in which units are pruned. Here it comes first, and only its beginning is run."""
RUN_STEPS = {"mnist": 20 * 938, "cifar": 40 * 3125}
"""Steps of a real run, over which its 100 development steps are spread: 20 epochs of MNIST, 40 of CIFAR-10."""


class Chain(nn.Module):
    """The layers of a net; its image passes the first convolution (and norm) once, and is then repeated T times."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        layers = list(layers_of(net, LIF, net.pool))
        self.first = next(place for place, layer in enumerate(layers) if isinstance(layer, SpikingNeuron))
        self.temporal = [isinstance(layer, SpikingNeuron) for layer in layers]
        self.layers, self.repeat = nn.ModuleList(layers), Repeat(net.num_steps)

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = self.repeat(x) if place == self.first else x
            x = layer(x) if self.temporal[place] or place < self.first else over_time(layer, x)
        return x.mean(0)


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds on the clock, and of the processor."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Spent:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


@dataclass
class Arm:
    """One network in training, and what its rounds took."""

    net: Net
    observe_every: int | None
    """None: no DPAP object."""
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of DPAP."""
    rounds: list[Spent] = field(default_factory=list)
    """Without development steps."""
    developments: list[Spent] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = Chain(self.net).to(self.device)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter *= 8.0 if parameter.dim() > 1 else 1.0  # untrained, it would be silent
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.dev: dpap.DPAP | None = None
        if self.observe_every is not None:
            self.dev = dpap.DPAP(
                self.model,
                torch.rand(2, *self.net.shape, device=self.device),
                optimizer=self.optimizer,
                total_steps=100 * DEVELOP_EVERY * ROUND,
                target={"connectivity": 0.1},
                start=0.0,
                stop=WINDOW,
                observe_every=self.observe_every,
                shrink="never",  # what shrinking saves is another benchmark
                **self.options,
            )

    def observing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.dev is None else self.dev.observing()

    def train_step(self, images: Tensor, labels: Tensor) -> Spent:
        begun, developing = Spent.now(), Spent()
        with self.observing():
            loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.dev is not None:
            before = Spent.now()
            if self.dev.step() is not None:
                developing = Spent.now() - before
                self.developments.append(developing)
        return Spent.now() - begun - developing


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm on one network."""

    net: str
    arm: str
    step_ms: float
    """Median time of a training step, without development steps."""
    observing_share: float
    """Extra time per step over the arm without DPAP, median over rounds."""
    observing_quartiles: tuple[float, float]
    observing_cpu_share: float
    """The same in CPU time of the process."""
    development_ms: float
    """Median time of a development step."""
    development_share: float
    """The same, spread over the steps between two of them in a real run."""
    total_share: float
    connectivity: float
    """At the end, to show that masks were in place."""


def measure(
    name: str, rounds: int, net: Net | None = None, device: str = "cpu", options: Mapping[str, Any] | None = None
) -> list[Row]:
    """The arms in turns. `net`: in place of the one of that name; `options`: more arguments of DPAP."""
    net = NETS[name] if net is None else net
    observed = {"without": None, "every 4th pass": ROUND, "every pass": 1}
    arms = {label: Arm(net, every, device, options or {}) for label, every in observed.items()}
    generator = torch.Generator().manual_seed(0)
    order = list(arms)
    for turn in range(rounds + DEVELOP_EVERY):  # the first window, before any mask, is not counted
        spent = dict.fromkeys(arms, Spent())
        for step in range(ROUND):
            images = torch.rand(net.batch, *net.shape, generator=generator).to(device)
            labels = torch.randint(net.classes, (net.batch,), generator=generator).to(device)
            first = (turn * ROUND + step) % len(order)
            for arm in order[first:] + order[:first]:
                spent[arm] += arms[arm].train_step(images, labels)
        if turn >= DEVELOP_EVERY:
            for arm in arms:
                arms[arm].rounds.append(spent[arm])
    return [_row(name, label, arm, arms["without"].rounds) for label, arm in arms.items()]


def _row(name: str, label: str, arm: Arm, plain: list[Spent]) -> Row:
    ratios = [mine.wall / base.wall - 1 for mine, base in zip(arm.rounds, plain, strict=True)]
    cpu = [mine.cpu / base.cpu - 1 for mine, base in zip(arm.rounds, plain, strict=True)]
    low, observing, high = statistics.quantiles(ratios, n=4)
    step = statistics.median(spent.wall for spent in plain) / ROUND
    development = statistics.median(spent.wall for spent in arm.developments) if arm.developments else 0.0
    share = development / (step * RUN_STEPS[name] / 100)
    return Row(
        net=name,
        arm=label,
        step_ms=1e3 * statistics.median(spent.wall for spent in arm.rounds) / ROUND,
        observing_share=observing,
        observing_quartiles=(low, high),
        observing_cpu_share=statistics.median(cpu),
        development_ms=1e3 * development,
        development_share=share,
        total_share=observing + share,
        connectivity=1.0 if arm.dev is None else arm.dev.connectivity(),
    )


def show(rows: list[Row], console: Console) -> None:
    for name in dict.fromkeys(row.net for row in rows):
        net = NETS[name]
        table = Table(
            title=f"{name}: B={net.batch}, T={net.num_steps}, a run of {RUN_STEPS[name]:,} steps",
            caption="to reach: at most 2 % with every 4th pass observed (cifar)",
        )
        for heading in (
            "observed",
            "step",
            "observing",
            "quartiles",
            "in CPU time",
            "one development",
            "developing",
            "in all",
        ):
            table.add_column(heading, justify="left" if heading == "observed" else "right")
        for row in rows:
            if row.net == name:
                table.add_row(
                    row.arm,
                    f"{row.step_ms:.1f} ms",
                    f"{row.observing_share:+.1%}",
                    "{:+.1%} to {:+.1%}".format(*row.observing_quartiles),
                    f"{row.observing_cpu_share:+.1%}",
                    f"{row.development_ms:.0f} ms",
                    f"{row.development_share:+.2%}",
                    f"{row.total_share:+.1%}",
                )
        console.print(table)


def environment() -> dict[str, object]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=[*NETS, "both"], default="both")
    parser.add_argument("--rounds", type=int, help="two or more; default: 30 for mnist, 8 for cifar")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--synapses", choices=["linear", "all"], default="linear", help="layers that lose connections")
    parser.add_argument("--score", help="of connections")
    parser.add_argument("--json", type=Path, help="write the rows and the environment here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(width=120)
    default: Callable[[str], int] = {"mnist": 30, "cifar": 8}.__getitem__
    rows: list[Row] = []
    for name in NETS if options.net == "both" else [options.net]:
        arguments = {"synapses": options.synapses} | ({"score": options.score} if options.score else {})
        found = measure(name, options.rounds or default(name), options=arguments)
        show(found, console)
        rows += found
    console.print(environment())
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
