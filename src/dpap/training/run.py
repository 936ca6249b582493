"""What a run holds in memory: made from its config, written to its folder, taken back from there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpap.config import Config, OptimizerConfig
from dpap.data import Dataset, Split, load_dataset, random_shift
from dpap.developer import DPAP
from dpap.development import DevelopmentReport
from dpap.errors import DPAPError
from dpap.models import build
from dpap.report.history import DevelopmentLine, EpochLine, Line, ResultLine, RunLine
from dpap.training.checkpoint import RunFolder, restore
from dpap.training.evaluate import require_device
from dpap.training.randomness import derived_seed, generator, seed_global

Record = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is; handed to `watch` after every batch."""

    control: bool
    epoch: int
    """From 1."""
    epochs: int
    batch: int
    """From 1."""
    batches: int
    loss: float
    """Mean of the epoch so far."""
    accuracy: float
    """Share of the epoch's samples so far that were right."""
    validation_accuracy: float | None
    """After the epoch before; None when nothing is held out."""
    connectivity: float


class NotFinite(Exception):
    """The run cannot go on from here; what is wrong, and in which batch (from 0)."""

    def __init__(self, what: str, batch: int) -> None:
        self.what, self.batch = what, batch


class Run:
    """What a run holds in memory, made from its config alone.

    Raises:
        DPAPError: no such device, a network that cannot be built or has nothing to prune, a target out of reach.
    """

    def __init__(self, config: Config) -> None:
        require_device(config.device)
        self.config = config
        self.data: Dataset = load_dataset(config.data.name).to(config.device)
        self.samples: Split = self.data.training(hold_out=config.data.hold_out)
        self.model = make_model(config, self.data).to(config.device)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.validation_accuracy: float | None = None
        self.connectivity = 1.0
        self._steps: list[DevelopmentReport] = []
        self._earlier: Record = {}
        rule = config.development.rule
        # The printed and the released rule develop once an epoch; the released one knows full batches only.
        self.every_epoch = rule in ("paper", "released")
        self.full_only = rule == "released"
        self.batch_count = self.samples.batch_count(config.data.batch_size, full_only=self.full_only)
        if self.batch_count == 0:
            raise DPAPError(
                f"A batch of {config.data.batch_size} is larger than the {len(self.samples)} training samples.",
                where="setting data.batch_size",
                fix=f"rule {rule!r} needs full batches; use smaller ones",
            )
        self.total_batches = self.batch_count * config.epochs
        self.dev = None if rule == "none" else self._make_developer()

    def _make_developer(self) -> DPAP:
        settings = self.config.development
        return DPAP(
            self.model,
            self.samples.images[:2],
            optimizer=self.optimizer,
            total_steps=self.config.epochs if self.every_epoch else self.total_batches,
            rule=settings.rule,
            score=settings.score,
            target=settings.target.named(),
            start=settings.start,
            stop=settings.stop,
            memory=settings.memory,
            development_steps=settings.development_steps,
            observe_every=settings.observe_every,
            seed=derived_seed(self.config.seed, "development"),
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, in its order and with its augmentation."""
        seed, data = self.config.seed, self.config.data
        order = generator(seed, "order", epoch)
        for batch, (images, labels) in enumerate(
            self.samples.batches(data.batch_size, generator=order, full_only=self.full_only)
        ):
            yield random_shift(images, data.shift, generator(seed, "augment", epoch, batch)), labels

    def observing(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dev is None else self.dev.observing()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Of the mean output over time: cross-entropy, or the squared distance to the one-hot label."""
        if self.config.optimizer.loss == "cross_entropy":
            return F.cross_entropy(outputs, labels)
        return F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype))

    def develop(self, epoch: int, batch: int) -> list[Line]:
        """Tell the development that a step was taken; a line for the history when somebody may have died."""
        last = batch == self.batch_count - 1
        if self.dev is None or (self.every_epoch and not last):
            return []
        report = self.dev.step()
        if report is None:
            return []
        self._steps.append(report)
        self.connectivity = report.connectivity
        return [
            DevelopmentLine(
                epoch=epoch + 1,
                step=epoch * self.batch_count + batch + 1,
                progress=report.progress,
                connectivity=report.connectivity,
                died_units=dict(report.died_units),
                isolated_units=dict(report.isolated_units),
                died_synapses=dict(report.died_synapses),
                capped=list(report.capped),
                skipped=list(report.skipped),
                warnings=list(report.warnings),
            )
        ]

    def check_finite(self, batch: int) -> None:
        """So that a checkpoint is always a state from which one can go on."""
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NotFinite(f"{name} is no longer finite", batch)

    # what is written down

    @property
    def alive(self) -> Mapping[str, Tensor]:
        return {} if self.dev is None else self.dev.alive

    def progress(self, epoch: int, batch: int, loss: float, accuracy: float) -> Progress:
        return Progress(
            control=self.dev is None,
            epoch=epoch + 1,
            epochs=self.config.epochs,
            batch=batch + 1,
            batches=self.batch_count,
            loss=loss,
            accuracy=accuracy,
            validation_accuracy=self.validation_accuracy,
            connectivity=self.connectivity,
        )

    def run_line(self) -> RunLine:
        return RunLine(
            recipe=self.config.recipe,
            seed=self.config.seed,
            rule=self.config.development.rule,
            epochs=self.config.epochs,
            batches=self.batch_count,
            samples=len(self.samples),
        )

    def epoch_line(self, epoch: int, loss: float, accuracy: float, lr: float, seconds: float, seen: int) -> EpochLine:
        return EpochLine(
            epoch=epoch + 1,
            loss=loss,
            train_accuracy=accuracy,
            validation_accuracy=self.validation_accuracy,
            lr=lr,
            connectivity=self.connectivity,
            alive_units={name: int(alive.sum()) for name, alive in self.alive.items()},
            seconds=seconds,
            samples_per_second=seen / seconds,
        )

    def record(self) -> Record:
        """development.npz: `step` (calls of `dev.step()` so far) and `progress` (K,); for each group `use/`
        (u), `survival/` (F) and `alive/` + its name, (K, units)."""
        steps = self._steps
        record: Record = {
            "step": np.array([report.step for report in steps], dtype=np.int64),
            "progress": np.array([report.progress for report in steps], dtype=np.float64),
        }
        for kind in ("use", "survival", "alive"):
            for group in getattr(steps[0], kind) if steps else ():
                record[f"{kind}/{group}"] = np.stack([getattr(report, kind)[group].cpu().numpy() for report in steps])
        if not self._earlier:
            return record
        return {n: np.concatenate([v, record[n]]) if n in record else v for n, v in self._earlier.items()}

    def state(self, history_lines: int) -> dict[str, Any]:
        """All that the next epoch depends on. Generators are not in it: they follow from the position."""
        return {
            "history_lines": history_lines,
            "development_steps": len(self.record()["step"]),
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "development": None if self.dev is None else self.dev.state_dict(),
        }

    def go_back_to(self, folder: RunFolder) -> tuple[int, list[Line]]:
        """Take the newest checkpoint of the folder, if there is one: complete epochs, and the history up to there."""
        state = folder.newest_checkpoint()
        if state is None:
            return 0, [self.run_line()]
        lines = folder.read_lines()
        if len(lines) < state["history_lines"]:
            raise DPAPError(
                f"The history has {len(lines)} lines; the checkpoint of epoch {state['epoch']} was written after "
                f"{state['history_lines']}.",
                where=str(folder.history_path),
                fix="put the lines back; without them the run cannot be continued",
            )
        if not (state["epoch"] == self.config.epochs and isinstance(lines[-1], ResultLine)):
            lines = lines[: state["history_lines"]]
        self._earlier = folder.read_development(state["development_steps"])
        if self.dev is not None:
            self.dev.load_state_dict(state["development"])  # first: it cuts a dense model to the widths of the state
            self.connectivity = self.dev.connectivity()
        restore(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["epoch"], lines

    def final_model(self) -> nn.Module:
        """Compacted where the rule allows it."""
        if self.dev is None or self.config.development.rule == "released":
            return self.model
        return self.dev.compact()


def make_model(config: Config, data: Dataset) -> nn.Module:
    """The dense network with the initial weights of the seed."""
    settings = config.model
    seed_global(config.seed, "init")
    return build(
        settings.name,
        shape=data.spec.shape,
        classes=len(data.spec.classes),
        blocks=settings.blocks,
        hidden=settings.hidden,
        neuron=settings.neuron,
        tau=settings.tau,
        surrogate=settings.surrogate,
        norm=settings.norm,
        pool=settings.pool,
        dropout=settings.dropout,
        num_steps=settings.num_steps,
        readout=settings.readout,
    )


def make_optimizer(model: nn.Module, settings: OptimizerConfig) -> torch.optim.Optimizer:
    """Weight decay is for weights alone: biases, norms and time constants (at most one axis) are left out of it."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr)


def set_rate(optimizer: torch.optim.Optimizer, settings: OptimizerConfig, step: int, total: int) -> float:
    """Set the learning rate of step `step` (from 0) of `total`."""
    lr = settings.lr * rate_share(step / total, 1 / total, settings)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def rate_share(p: float, dp: float, settings: OptimizerConfig) -> float:
    """Share of the peak rate at share p of the run: a straight line up during the warm-up, then half a cosine down."""
    if p < settings.warmup:
        return min(1.0, (p + dp) / settings.warmup)
    falling = (p - settings.warmup) / (1 - settings.warmup)
    return settings.lr_end + (1 - settings.lr_end) * (1 + math.cos(math.pi * falling)) / 2
