"""A real network whose neurons say what a record tells them, so that `DPAP` and an oracle see the same activity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from oracles.records import CLASSES, IMAGE_CHANNELS, SIDE, Batch, Record
from torch import Tensor, nn

from dpap import DPAP
from dpap.neurons import IF, over_time


class Player(IF):
    """A neuron that gives out what it was handed, whatever it receives; without a record it is an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.recorded is None else self.recorded


class Replay(nn.Module):
    """image -> conv1 -> conv2 -> average pool -> flatten -> fc -> classifier, as in a `Record`."""

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(IMAGE_CHANNELS, widths["conv1"], 3, padding=1)
        self.neuron1 = Player()
        self.conv2 = nn.Conv2d(widths["conv1"], widths["conv2"], 3, padding=1)
        self.neuron2 = Player()
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(widths["conv2"] * (SIDE // 2) ** 2, widths["fc"])
        self.neuron3 = Player()
        self.classifier = nn.Linear(widths["fc"], CLASSES)
        self.neuron4 = Player()

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(over_time(self.conv1, x))
        x = self.neuron2(over_time(self.conv2, x))
        x = over_time(self.pool, x).flatten(2)
        x = self.neuron3(self.fc(x))
        return self.neuron4(self.classifier(x)).mean(0)

    def play(self, batch: Batch) -> Tensor:
        """The image of a batch; sets what the neurons will say."""
        for name, player in (
            ("conv1", self.neuron1),
            ("conv2", self.neuron2),
            ("fc", self.neuron3),
            ("classifier", self.neuron4),
        ):
            post = torch.from_numpy(batch[name].post)
            player.recorded = post.unflatten(3, (SIDE, SIDE)) if post.dim() == 4 else post
        return torch.from_numpy(batch["conv1"].pre).unflatten(3, (SIDE, SIDE))


def replay(
    record: Record,
    on_step: Callable[[DPAP, Any], None],
    *,
    step_each: str,
    widths: Mapping[str, int] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Replay, DPAP]:
    """Show a record to `DPAP` in float64, every pass observed; `on_step(dev, report)` after each `dev.step()`.

    Args:
        record: What is seen.
        on_step: Called with the object and what its step returned.
        step_each: "epoch" or "batch": when `dev.step()` is called.
        widths: Units of conv1, conv2, fc; those of the record by default.
        seed: Of the weights.
        options: For `DPAP`.
    """
    torch.manual_seed(seed)
    model = Replay(widths or {layer.name: layer.outputs for layer in record.chain}).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = len(record.epochs) if step_each == "epoch" else sum(len(e) for e in record.epochs)
    image = torch.from_numpy(record.epochs[0][0]["conv1"].pre).unflatten(3, (SIDE, SIDE))
    options = {"shrink": "never"} | options  # what was recorded has the dense widths
    dev = DPAP(model, image, optimizer=optimizer, total_steps=steps, observe_every=1, **options)
    for epoch in record.epochs:
        for batch in epoch:
            image = model.play(batch)
            with dev.observing():
                model(image)
            if step_each == "batch":
                on_step(dev, dev.step())
        if step_each == "epoch":
            on_step(dev, dev.step())
    return model, dev
