"""How early a spiking network knows: its accuracy after every time step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpap.errors import DPAPError
from dpap.metrics.synops import Forward, evaluating, run, split
from dpap.time.timing import timing_of


def anytime(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    answer: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, ...]:
    """Accuracy of what a network would answer after the first t steps, t = 1 ... T, in evaluation mode; a tie goes to
    the lower class. The last one is the accuracy of the network.

    Args:
        batches: Pairs (inputs, labels).
        forward: `forward(model, inputs)` gives the readout at each step, (T, B, classes), where
            `model(inputs, every_step=True)` does not.
        answer: Makes the answer, (B, classes), of the readout at the first t steps, (t, B, classes), as the network
            itself does of all T. None: `model.answer`, which the models of this library have, else the mean.

    Raises:
        DPAPError: the network has dead time steps, so it was made for all of its T; no batch, one without labels, or
            answers without time.
    """
    timing = timing_of(model)
    if timing is not None and not all(bool(alive.all()) for alive in timing.pairs.values()):
        raise DPAPError(
            "Accuracy against steps is of networks without dead time steps: this one answers after all of its "
            f"{timing.times.num_steps}.",
            fix="measure its unpruned control, or a network that was developed without time=.",
        )
    answered = getattr(model, "answer", _mean) if answer is None else answer
    right, samples = torch.zeros((), dtype=torch.int64), 0
    with evaluating(model):
        for batch in batches:
            inputs, labels = split(batch)
            if labels is None:
                raise DPAPError("A batch has no labels.", fix="give pairs of inputs and labels.")
            outputs = run(model, inputs, forward or _every_step)
            if outputs.dim() != 3:
                raise DPAPError(
                    f"The network answers a tensor of shape {tuple(outputs.shape)}, not (T, B, classes).",
                    fix="give forward=, which answers the readout at each step.",
                )
            answers = torch.stack([answered(outputs[: t + 1]).argmax(1) for t in range(len(outputs))])
            right = right + (answers == labels.to(answers.device)).sum(1).cpu()
            samples += len(labels)
    if not samples:
        raise DPAPError("There is no batch to evaluate.", fix="check the data set: its loader is empty.")
    return tuple((right.double() / samples).tolist())


def _every_step(model: nn.Module, inputs: Any) -> Any:
    return model(inputs, every_step=True)


def _mean(steps: Float[Tensor, "t B classes"]) -> Float[Tensor, "B classes"]:
    return steps.mean(0)


__all__ = ["anytime"]
