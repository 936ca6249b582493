"""What a run holds in memory: made from its config, written to its folder, taken back from there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpap.config import LEVELS, Config, DevelopmentConfig, OptimizerConfig
from dpap.data import Dataset, Split
from dpap.data.augment import Augment
from dpap.data.spec import unit_range
from dpap.developer import DPAP
from dpap.development.replay import Deaths
from dpap.development.report import DevelopmentReport
from dpap.errors import DPAPError
from dpap.method.named import RULES
from dpap.method.rules import Rule, dpap
from dpap.method.scores import per_kind
from dpap.metrics import accuracy
from dpap.models import build
from dpap.pruning.mask import MaskKeeper
from dpap.report.history import DevelopmentLine, EpochLine, Line, ResultLine, RunLine
from dpap.training.checkpoint import RunFolder, restore
from dpap.training.data import evaluation_batch, in_format, load_data, training_samples, training_spec
from dpap.training.evaluate import memory_format, placed, require_device
from dpap.training.losses import LOSSES, PER_STEP
from dpap.training.randomness import derived_seed, generator, seed_global
from dpap.training.structure import Structure, structure_of

Record = dict[str, npt.NDArray[Any]]
REPORTED = {f.name for f in fields(DevelopmentLine)} & {f.name for f in fields(DevelopmentReport)} - {"step"}
"""What a line of the history takes over from the report of a development step."""


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
    samples: int
    """That the run trains on."""
    parameters: int
    """Of the network as it is now."""


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
        self.data: Dataset = load_data(config).to(config.device)
        self.samples: Split = training_samples(self.data, config.data)
        self.training_spec = training_spec(self.data.spec, config.data)
        self.augment = Augment(
            crop=config.data.crop,
            flip=config.data.flip,
            erasing=config.data.erasing,
            randaugment=config.data.randaugment,
            fill=self.training_spec.mean or (0.5,),
            rotation=config.data.rotation,
            drop=config.data.drop,
            jitter=config.data.jitter,
        )
        self._augmented(self.samples.images[:2], 0, 0)  # refused now, or never
        self.memory_format = memory_format(config.channels_last)
        self.evaluation_batch = evaluation_batch(self.data.spec)
        structure = self._structure()
        model = make_model(config, self.data) if structure is None else structure.model
        self.model = placed(model, config.device, config.channels_last)
        decay = config.optimizer.ema
        self.averaged = None if decay is None else averaged(self.model, decay)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.fixed = None if structure is None else MaskKeeper(self.model, [self.optimizer], self._copies)
        if self.fixed is not None and structure is not None:
            self.fixed.update({name: mask.to(config.device) for name, mask in structure.dead.items()})
        self.scaler = torch.amp.GradScaler(config.device, enabled=config.optimizer.precision == "float16")
        self.validation_accuracy: float | None = None
        self.test_accuracy: float | None = None
        self.connectivity = 1.0 if structure is None else structure.connectivity
        self._steps: list[DevelopmentReport] = []
        self._earlier: Record = {}
        rule = config.development.rule
        # The printed and the released rule develop once an epoch; the released one knows full batches only.
        self.every_epoch = rule in ("paper", "released")
        self.full_only = rule == "released" or config.data.full_batches
        self.batch_count = self.samples.batch_count(config.data.batch_size, full_only=self.full_only)
        if self.batch_count == 0:
            raise DPAPError(
                f"A batch of {config.data.batch_size} is larger than the {len(self.samples)} training samples.",
                where="setting data.batch_size",
                fix=f"rule {rule!r}, or data.full_batches, needs full batches; use smaller ones",
            )
        if len(self.samples) % config.data.batch_size == 1 and config.model.norm and not self.full_only:
            raise DPAPError(
                f"The last batch of {len(self.samples)} training samples in batches of {config.data.batch_size} is a "
                "single sample, of which a norm can take no statistics.",
                where="setting data.batch_size",
                fix="choose another one, or set data.full_batches=true",
            )
        self.total_batches = self.batch_count * config.epochs
        self.dev = None if rule in ("none", "fixed") else self._make_developer()

    def _structure(self) -> Structure | None:
        """What rule "fixed" starts from; None for the others."""
        seed, settings = self.config.seed, self.config.development
        if settings.structure is None:
            return None
        dense = make_model(replace(self.config, seed=derived_seed(seed, "structure")), self.data)
        return structure_of(settings.structure, dense, self.data, shuffle=seed if settings.shuffled else None)

    @property
    def _copies(self) -> list[nn.Module]:
        return [] if self.averaged is None else [self.averaged.module]

    def _make_developer(self) -> DPAP:
        settings = self.config.development
        return DPAP(
            self.model,
            self.data.spec.prepared(self.samples.images[:2]),
            optimizer=self.optimizer,
            total_steps=self.config.epochs if self.every_epoch else self.total_batches,
            rule=make_rule(settings),
            target=settings.target.named(),
            prune=cast(Any, settings.prune),
            synapses=cast(Any, settings.synapses) if settings.rule == "dpap" else None,
            regrow=cast(Any, settings.regrow),
            start=settings.start,
            stop=settings.stop,
            memory=settings.memory,
            development_steps=settings.development_steps,
            observe_every=settings.observe_every,
            seed=derived_seed(self.config.seed, "development"),
            ema=self._copies,
            shrink=cast(Any, settings.shrink),
            time=cast(Any, settings.time),
            spiking_input=self.data.spec.timed,
            replay=None if settings.replay is None else Deaths.read(settings.replay),
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, in its order and with its augmentation."""
        seed, data = self.config.seed, self.config.data
        order = generator(seed, "order", epoch)
        raw = self.samples.batches(data.batch_size, generator=order, full_only=self.full_only)
        for batch, (images, labels) in enumerate(raw):
            yield in_format(self._augmented(images, epoch, batch), self.memory_format), labels

    def _augmented(self, images: Tensor, epoch: int, batch: int) -> Tensor:
        """Stored samples of a batch as the network sees them in training."""
        seed, spec = self.config.seed, self.training_spec
        draws = generator(seed, "augment", epoch, batch)
        if spec.num_steps is not None:
            return spec.prepared(self.augment.of_frames(images.to(torch.get_default_dtype()), draws))
        images = self.augment(unit_range(images), draws)
        if spec.encoding is not None:
            return spec.prepared(images, generator(seed, "encode", epoch, batch))
        return self.augment.after_normalization(spec.normalized(images), draws)

    def observing(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dev is None else self.dev.observing()

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The network's answer (B, classes) and the loss, in the precision of the config."""
        settings = self.config.optimizer
        every_step = settings.loss in PER_STEP
        with torch.autocast(
            self.config.device, getattr(torch, settings.precision), enabled=settings.precision != "float32"
        ):
            outputs = self.model(images, every_step=True) if every_step else self.model(images)
        outputs = outputs.float()  # a loss is a sum over many: never in half precision
        loss = LOSSES[settings.loss](outputs, labels, settings.label_smoothing)
        return (cast(Any, self.model).answer(outputs) if every_step else outputs), loss

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer, and of the mean of the weights."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.optimizer.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    @property
    def measured(self) -> nn.Module:
        """The network whose accuracy is measured: the mean of the weights where there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def develop(self, epoch: int, batch: int) -> list[Line]:
        """Tell the development that a step was taken; a line for the history when something may have been pruned."""
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
                **{name: copy(getattr(report, name)) for name in REPORTED},
            )
        ]

    def measure_epoch(self) -> None:
        """Accuracies that the config asks for after every epoch; nothing in the run depends on them."""
        if self.config.data.hold_out:
            self.validation_accuracy = accuracy(
                self.measured, self.data.batches(self.data.validation, self.evaluation_batch)
            )
        if self.config.test_each_epoch:
            self.test_accuracy = accuracy(self.measured, self.data.batches(self.data.test, self.evaluation_batch))

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
            samples=len(self.samples),
            parameters=sum(p.numel() for p in self.model.parameters()),
        )

    def run_line(self) -> RunLine:
        return RunLine(
            recipe=self.config.recipe,
            seed=self.config.seed,
            rule=self.config.development.rule,
            epochs=self.config.epochs,
            batches=self.batch_count,
            samples=len(self.samples),
            data=self.data.spec.name,
            credit=self.data.spec.credit,
        )

    def epoch_line(self, epoch: int, loss: float, accuracy: float, lr: float, seconds: float, seen: int) -> EpochLine:
        return EpochLine(
            epoch=epoch + 1,
            loss=loss,
            train_accuracy=accuracy,
            validation_accuracy=self.validation_accuracy,
            test_accuracy=self.test_accuracy,
            lr=lr,
            connectivity=self.connectivity,
            alive_units={name: int(alive.sum()) for name, alive in self.alive.items()},
            seconds=seconds,
            samples_per_second=seen / seconds,
        )

    def record(self) -> Record:
        """development.npz: `step` (calls of `dev.step()` so far) and `progress` (K,); for each group `use/`
        (u), `survival/` (F) and `alive/` + its name, (K, units); for each neuron with dead time steps `pairs/` + its
        name, (K, units, T)."""
        steps = self._steps
        record: Record = {
            "step": np.array([report.step for report in steps], dtype=np.int64),
            "progress": np.array([report.progress for report in steps], dtype=np.float64),
        }
        for kind in ("use", "survival", "alive", "pairs"):
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
            "averaged": None if self.averaged is None else dict(self.averaged.state_dict()),
            "scaler": self.scaler.state_dict(),
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
        if self.averaged is not None:
            restore(self.averaged, state["averaged"])
        self.scaler.load_state_dict(state["scaler"])
        return state["epoch"], lines

    def final_model(self) -> nn.Module:
        """The measured network, compacted where the rule allows it; training is over then."""
        if self.averaged is not None:
            restore(self.model, self.averaged.module.state_dict())
        if self.dev is None or self.config.development.rule == "released":
            return self.model
        return self.dev.compact()


def make_rule(settings: DevelopmentConfig) -> Rule:
    """The rule with the scores and levels of the config."""
    if settings.rule != "dpap":
        return RULES[settings.rule]()
    given: dict[str, Any] = {name: getattr(settings, name) for name in (*LEVELS, "time_score", "crowding")}
    if settings.unit_score is not None or settings.synapse_score is not None:
        given["score"] = per_kind(unit=settings.unit_score or "spine", synapse=settings.synapse_score or "spine")
    return dpap(**{name: value for name, value in given.items() if value is not None})


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy that follows the model: mean <- decay mean + (1 - decay) weight, running statistics of norms included."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]


def make_model(config: Config, data: Dataset) -> nn.Module:
    """The dense network with the initial weights of the seed."""
    seed_global(config.seed, "init")
    spec, settings = data.spec, config.model
    return build(settings.name, shape=spec.shape, classes=len(spec.classes), **settings.arguments())


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
    """Share of the peak rate at share p of the run: a straight line up during the warm-up, half a cosine down, flat."""
    if p < settings.warmup:
        return settings.warmup_from + (1 - settings.warmup_from) * min(1.0, (p + dp) / settings.warmup)
    falling = min(1.0, (p - settings.warmup) / max(1 - settings.warmup - settings.cooldown, dp))
    return settings.lr_end + (1 - settings.lr_end) * (1 + math.cos(math.pi * falling)) / 2
