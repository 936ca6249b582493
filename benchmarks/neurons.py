"""Samples per second of our neurons against SpikingJelly (multi-step) and snnTorch, whole networks timed.

    python benchmarks/neurons.py                      # both networks, training and inference, as a table
    python benchmarks/neurons.py --net mnist --rounds 41 --json neurons.json

The libraries take turns within each round, in one process, and a ratio is the median over the rounds of the two times
of one round: what else the machine does meanwhile falls on all alike (where that is much, `--cpu-time` counts the
processor's seconds of one thread instead of the clock's). A turn is as many calls as fill a quarter of a second, or
each would mostly feel how the one before it left the allocator. Rows:

    dpap             the static image passes the first convolution (and norm) once; `Repeat(T)` before the first neuron
    dpap, repeated   like for like: the image is repeated at the input, every layer sees T * B images
    dpap, loop       as before, but the same formulas by a plain loop over time and autograd instead of our one node
    spikingjelly     `layer.Conv2d(step_mode="m")`, `neuron.LIFNode(step_mode="m")`, image repeated, as in its tutorials
    snntorch         `snn.Leaky` in a loop over time, the image passed at every step, as in its tutorials
    ..., nhwc        the same after `model.to(memory_format=torch.channels_last)`, PyTorch's advice for convolutions

Everywhere: LIF, tau = 2 (beta = 0.5), threshold 1, hard reset with gradient, arctan surrogate of slope 2, SGD with
momentum, mean spikes of the last layer into a cross-entropy. snnTorch's neuron does not scale its input by 1/tau and
resets a step later: its row compares the work, not the numbers.

SpikingJelly and snnTorch are not dependencies. Beside a CPU build of torch 2.13.0:
`pip install --no-deps torchvision==0.28.0 spikingjelly==2.0.0 snntorch==1.0.0`, then
`pip install pyyaml pillow huggingface_hub h5py scipy matplotlib loguru requests tqdm`. What is absent is left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dpap.neurons import LIF, Repeat, SpikingNeuron, functional, over_time


@dataclass(frozen=True, kw_only=True)
class Net:
    """A chain: `64` a 3 x 3 convolution (with norm, if the net has norms), `"pool"`, then fully connected widths."""

    shape: tuple[int, int, int]
    convs: tuple[int | str, ...]
    pool: type[nn.Module]
    norm: bool
    hidden: tuple[int, ...]
    batch: int
    classes: int = 10
    num_steps: int = 4


NETS = {
    "mnist": Net(
        shape=(1, 28, 28), convs=(15, "pool", 40, "pool"), pool=nn.AvgPool2d, norm=False, hidden=(300,), batch=64
    ),
    "cifar": Net(
        shape=(3, 32, 32),
        convs=(128, 128, "pool", 256, 256, "pool", 512, 512),
        pool=nn.MaxPool2d,
        norm=True,
        hidden=(512,),
        batch=16,
    ),
}
TURN_S = 0.25
TARGETS = {("mnist", "train"): 1.3, ("cifar", "train"): 1.1, ("mnist", "infer"): 2.0, ("cifar", "infer"): 1.2}


def layers_of(net: Net, neuron: Callable[[], nn.Module], pool: Callable[[int], nn.Module]) -> Iterator[nn.Module]:
    """The chain with plain PyTorch layers and the given neuron."""
    channels, height, width = net.shape
    for entry in net.convs:
        if entry == "pool":
            yield pool(2)
            height, width = height // 2, width // 2
            continue
        yield nn.Conv2d(channels, int(entry), 3, padding=1, bias=not net.norm)
        if net.norm:
            yield nn.BatchNorm2d(int(entry))
        yield neuron()
        channels = int(entry)
    yield nn.Flatten()
    widths = (channels * height * width, *net.hidden, net.classes)
    for before, after in itertools.pairwise(widths):
        yield nn.Linear(before, after)
        yield neuron()


class LoopLIF(SpikingNeuron):
    """Our formulas by a plain loop and autograd: what the one node with its own backward is measured against."""

    def rate(self) -> float:
        return 0.5

    def forward(self, x: Tensor) -> Tensor:
        return functional.plain_sequence(x, self.rate(), None, self.firing)


class Ours(nn.Module):
    """`repeat` is "late" (before the first neuron) or "input"."""

    def __init__(self, net: Net, repeat: str, neuron: type[SpikingNeuron] = LIF) -> None:
        super().__init__()
        layers = list(layers_of(net, neuron, net.pool))
        first = next(place for place, layer in enumerate(layers) if isinstance(layer, SpikingNeuron))
        layers.insert(first if repeat == "late" else 0, Repeat(net.num_steps))
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> Tensor:
        x, in_time = image, False
        for layer in self.layers:
            in_time = in_time or isinstance(layer, Repeat)
            plain = in_time and not isinstance(layer, (Repeat, SpikingNeuron))
            x = over_time(layer, x) if plain else layer(x)
        return x.mean(0)


def make_spikingjelly(net: Net) -> nn.Module:
    declare_torchvision_operators()
    from spikingjelly.activation_based import functional as sj
    from spikingjelly.activation_based import layer, neuron, surrogate

    def convert(module: nn.Module) -> nn.Module:  # their own layers, of the same arguments
        if isinstance(module, nn.Conv2d):
            return layer.Conv2d(
                module.in_channels, module.out_channels, 3, padding=1, bias=module.bias is not None, step_mode="m"
            )
        if isinstance(module, nn.BatchNorm2d):
            return layer.BatchNorm2d(module.num_features, step_mode="m")
        if isinstance(module, nn.Linear):
            return layer.Linear(module.in_features, module.out_features, step_mode="m")
        if isinstance(module, nn.Flatten):
            return layer.Flatten(step_mode="m")
        if isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)):
            return getattr(layer, type(module).__name__)(2, step_mode="m")
        return module

    def lif() -> nn.Module:
        return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=False, step_mode="m")

    class SpikingJellyNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(convert(module) for module in layers_of(net, lif, net.pool)))

        def forward(self, image: Tensor) -> Tensor:
            sj.reset_net(self)
            return self.layers(image.unsqueeze(0).repeat(net.num_steps, 1, 1, 1, 1)).mean(0)

    return SpikingJellyNet()


def make_snntorch(net: Net) -> nn.Module:
    import snntorch as snn
    from snntorch import surrogate

    def lif() -> nn.Module:
        return snn.Leaky(beta=0.5, reset_mechanism="zero", spike_grad=surrogate.atan(alpha=2.0))

    class SnnTorchNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers_of(net, lif, net.pool))

        def forward(self, image: Tensor) -> Tensor:
            membranes = {n: layer.init_leaky() for n, layer in enumerate(self.layers) if isinstance(layer, snn.Leaky)}
            spikes = []
            for _ in range(net.num_steps):
                x = image
                for number, layer in enumerate(self.layers):
                    if number in membranes:
                        x, membranes[number] = layer(x, membranes[number])
                    else:
                        x = layer(x)
                spikes.append(x)
            return torch.stack(spikes).mean(0)

    return SnnTorchNet()


def declare_torchvision_operators() -> None:
    """SpikingJelly imports torchvision, whose wheel looks for two operators that only its CUDA build brings."""
    if not hasattr(declare_torchvision_operators, "library"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        declare_torchvision_operators.library = library  # type: ignore[attr-defined]  # lives as long as the process


def channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


MAKERS: dict[str, tuple[str | None, Callable[[Net], nn.Module]]] = {
    "dpap": (None, lambda net: Ours(net, "late")),
    "dpap, repeated": (None, lambda net: Ours(net, "input")),
    "dpap, loop": (None, lambda net: Ours(net, "input", LoopLIF)),
    "spikingjelly": ("spikingjelly", make_spikingjelly),
    "snntorch": ("snntorch", make_snntorch),
    "dpap, nhwc": (None, lambda net: channels_last(Ours(net, "late"))),
    "spikingjelly, nhwc": ("spikingjelly", lambda net: channels_last(make_spikingjelly(net))),
}


def make_task(
    model: nn.Module, net: Net, task: str, device: str = "cpu", precision: torch.dtype | None = None
) -> Callable[[], None]:
    """One training step, or one inference, on fixed random images; `precision`: of autocast."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(net.batch, *net.shape, generator=generator).to(device)
    labels = torch.randint(net.classes, (net.batch,), generator=generator).to(device)
    model = model.to(device)
    cast = torch.autocast(device, precision, enabled=precision is not None)
    if task == "infer":
        model.eval()

        def infer() -> None:
            with torch.inference_mode(), cast:
                model(images)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train() -> None:
        with cast:
            answer = model(images)
        loss = nn.functional.cross_entropy(answer.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train


@dataclass(frozen=True, kw_only=True)
class Row:
    """One library on one network and task."""

    net: str
    task: str
    library: str
    samples_per_s: float
    """From its median time."""
    speed_of_dpap: float
    """Its time divided by that of `dpap` in the same round, median over rounds."""
    quartiles: tuple[float, float]
    """Of that ratio."""


def time_of(task: Callable[[], None], calls: int, clock: Callable[[], float]) -> float:
    """Seconds of one of so many calls."""
    start = clock()
    for _ in range(calls):
        task()
    return (clock() - start) / calls


def measure(
    name: str,
    task: str,
    rounds: int,
    libraries: Sequence[str],
    clock: Callable[[], float],
    *,
    net: Net | None = None,
    device: str = "cpu",
    precision: torch.dtype | None = None,
) -> list[Row]:
    """The libraries in turns. `net`: in place of the one of that name."""
    net = NETS[name] if net is None else net
    tasks: dict[str, Callable[[], None]] = {}
    for library in libraries:
        torch.manual_seed(0)
        tasks[library] = make_task(MAKERS[library][1](net), net, task, device, precision)
    for run in tasks.values():  # twice: the allocator's and the kernels' first calls
        run()
        run()
    first = libraries[0]
    calls = max(1, round(TURN_S / time_of(tasks[first], 1, clock)))
    seconds: dict[str, list[float]] = {library: [] for library in tasks}
    order = list(tasks)
    for turn in range(rounds):
        for library in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds[library].append(time_of(tasks[library], calls, clock))
    rows = []
    for library, times in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(times, seconds[first], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        rows.append(
            Row(
                net=name,
                task=task,
                library=library,
                samples_per_s=net.batch / statistics.median(times),
                speed_of_dpap=statistics.median(ratios),
                quartiles=(low, high),
            )
        )
    return rows


def show(rows: Sequence[Row], console: Console) -> None:
    for name, task in dict.fromkeys((row.net, row.task) for row in rows):
        net = NETS[name]
        goal = TARGETS[name, task]
        table = Table(
            title=f"{name}, {'training' if task == 'train' else 'inference'}: B={net.batch}, T={net.num_steps}",
            caption=f"to reach: {goal}x spikingjelly",
        )
        for heading in ("library", "samples/s", "dpap is faster by", "quartiles"):
            table.add_column(heading, justify="left" if heading == "library" else "right")
        for row in rows:
            if (row.net, row.task) == (name, task):
                low, high = row.quartiles
                ratio = f"{row.speed_of_dpap:.2f}x"
                table.add_row(row.library, f"{row.samples_per_s:.1f}", ratio, f"{low:.2f} to {high:.2f}")
        console.print(table)


def environment(clock: Callable[[], float]) -> dict[str, Any]:
    versions = {}
    for package in ("torch", "spikingjelly", "snntorch"):
        if importlib.util.find_spec(package):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions,
        "clock": clock.__name__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=[*NETS, "both"], default="both")
    parser.add_argument("--task", choices=["train", "infer", "both"], default="both")
    parser.add_argument("--rounds", type=int, help="default: 21 for mnist, 7 for cifar")
    parser.add_argument("--only", nargs="+", choices=MAKERS, help="rows besides dpap; default: all")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, for a busy machine")
    parser.add_argument("--json", type=Path, help="write the rows and the environment here")
    options = parser.parse_args()
    if options.threads or options.cpu_time:
        torch.set_num_threads(1 if options.cpu_time else options.threads)
    clock = time.thread_time if options.cpu_time else time.perf_counter
    console = Console(width=100)
    libraries = ["dpap"]
    for library, (package, _) in MAKERS.items():
        wanted = library != "dpap" and (options.only is None or library in options.only)
        if wanted and package and importlib.util.find_spec(package) is None:
            console.print(f"{library}: not installed, left out (see the head of this file).")
        elif wanted:
            libraries.append(library)
    rows: list[Row] = []
    for name in NETS if options.net == "both" else [options.net]:
        for task in ("train", "infer") if options.task == "both" else (options.task,):
            rounds = options.rounds or {"mnist": 21, "cifar": 7}[name]
            rows += measure(name, task, rounds, libraries, clock)
            show([row for row in rows if (row.net, row.task) == (name, task)], console)
    console.print(environment(clock))
    if options.json:
        options.json.write_text(
            json.dumps({"environment": environment(clock), "rows": [asdict(r) for r in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
