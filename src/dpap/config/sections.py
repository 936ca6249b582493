"""What a run is, completely: sections of settings, checked when made."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, cast, get_args

from pydantic import AfterValidator, Field

from dpap.config.fields import (
    BelowOne,
    Count,
    NotNegative,
    OneOf,
    OrNone,
    Positive,
    Section,
    Share,
    ShareLeft,
    Whole,
    Widths,
    bad_value,
    from_table,
    section,
    shown,
)
from dpap.data import DATASETS, EVENTS, NEED_PATH, EventSettings
from dpap.data.encoding import ENCODINGS
from dpap.errors import DPAPError
from dpap.method.named import RULES
from dpap.method.regrowth import Regrow
from dpap.method.rules import KINDS
from dpap.method.scores import SCORES, TIME_SCORES
from dpap.models import MODELS, NEURONS, POOLS, READOUTS, SPIKING, SURROGATES, settings_of

NORMALIZATIONS = ("data", "imagenet")
LOSSES = ("cross_entropy", "mse", "tet")


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(value)
    return value


@section
class DataConfig(Section):
    section: ClassVar[str] = "data"

    name: Annotated[str, OneOf("data set", DATASETS)] = "digits"
    batch_size: Count = 64
    full_batches: bool = False
    """Leave out the last batch of an epoch where it is smaller than the others. Rule "released" always does."""
    hold_out: bool = False
    """True: the validation split stays out of training and is measured every epoch. False: it is trained on."""
    path: OrNone[str] = None
    """Folder or file of the data sets "images", "npz" and "events"."""
    folds: OrNone[Annotated[int, Field(ge=3), "a whole number, at least 3"]] = None
    """Cross-validation over all samples there are, for subsets too small for a test split: joined, and dealt into so
    many folds. None: the splits as published."""
    fold: Whole = 0
    """The one of `folds` that is the test split, from 0; the next one is the validation split."""
    limit: OrNone[Count] = None
    """Train on a fixed, stratified part of about so many samples: a subset is not the benchmark."""
    crop: Whole = 0
    """Pixels of black border of which random crops are taken: training samples are moved by so much at most."""
    flip: bool = False
    """Mirror training samples left to right, each with probability 1/2; refused where a label would not hold."""
    erasing: Share = 0.0
    """Probability that a random rectangle of a training image becomes noise."""
    randaugment: Annotated[float, Field(ge=0, le=10), "a number from 0 to 10"] = 0.0
    """Magnitude of RandAugment, two operations an image; 0: none."""
    train_normalization: Annotated[str, OneOf("normalization", NORMALIZATIONS)] = "data"
    """Mean and standard deviation that training images are normalised with: of the data set, as in evaluation, or of
    "imagenet", which differs from evaluation (as in the authors' script)."""
    encoding: Annotated[str, OneOf("encoding", ("direct", *ENCODINGS))] = "direct"
    """What a spiking network sees of pictures: "direct", the picture itself at every one of `model.num_steps` steps;
    "rate" or "latency", spikes (neither normalised)."""
    framing: Annotated[str, OneOf("framing", ("time", "count"))] = "time"
    """With the settings below: of events alone, whose recordings become `model.num_steps` frames of counts, of equal
    time or of equally many events."""
    duration: OrNone[Count] = None
    """Microseconds from a recording's first event that the frames share; none: up to its last."""
    sensor: OrNone[Annotated[tuple[Count, Count], Field(strict=False), "[height, width]"]] = None
    """Of the recordings of data set "events", where the files do not say."""
    on_bad_sample: Annotated[str, OneOf("answer", ("error", "skip"))] = "error"
    """A recording that is empty, damaged or makes no sense: an error, or left out and counted."""
    test_on_train: bool = False
    """Where there are too few recordings to set some aside, test on those trained on: it shows that a run works."""
    rotation: Annotated[float, Field(ge=0, le=45), "a number from 0 to 45"] = 0.0
    """Turn training recordings by so many degrees at most."""
    drop: BelowOne = 0.0
    """Leave out this share of the events of training recordings, each by chance."""
    jitter: Whole = 0
    """Move training recordings by so many frames at most, earlier or later."""

    def __post_init__(self) -> None:
        if (self.name in NEED_PATH) != (self.path is not None):
            needs = "a folder or file" if self.path is None else f'none: data set "{self.name}" knows its own place'
            raise bad_value(self.key("path"), self.path, needs)
        for item in fields(self):
            if getattr(self, item.name) != item.default and not self.applies(item.name):
                of = "pictures" if self.events else "events"
                raise bad_value(self.key(item.name), getattr(self, item.name), f"its default: it is for {of} alone")
        if self.encoding != "direct" and self.erasing:
            raise bad_value(self.key("erasing"), self.erasing, f'0 with encoding = "{self.encoding}": noise is no rate')
        if self.fold >= (self.folds or 1):
            most = "0 without data.folds" if self.folds is None else f"below data.folds = {self.folds}"
            raise bad_value(self.key("fold"), self.fold, most)
        if self.test_on_train and self.folds is not None:
            raise bad_value(self.key("folds"), self.folds, "none with data.test_on_train: there is nothing to deal")
        if self.test_on_train and not self.hold_out:
            raise bad_value(self.key("test_on_train"), True, "false, or hold_out true: the splits are the same samples")

    def applies(self, name: str) -> bool:
        return name not in (OF_PICTURES if self.events else OF_EVENTS)

    @property
    def events(self) -> bool:
        """Whether the data are recordings of events."""
        return self.name in EVENTS

    def event_settings(self, num_steps: int) -> EventSettings:
        """How recordings become frames."""
        return EventSettings(
            num_steps=num_steps,
            by=cast(Any, self.framing),
            duration=self.duration,
            on_bad_sample=cast(Any, self.on_bad_sample),
            sensor=self.sensor,
            test_on_train=self.test_on_train,
        )


OF_PICTURES = frozenset({"erasing", "randaugment", "train_normalization", "encoding"})
OF_EVENTS = frozenset({"framing", "duration", "sensor", "on_bad_sample", "test_on_train", "rotation", "drop", "jitter"})


@section
class ModelConfig(Section):
    """A network by name, and its settings; one that the network does not know keeps its default."""

    section: ClassVar[str] = "model"

    name: Annotated[str, OneOf("model", MODELS)] = "convnet"
    width: Positive = 1.0
    """Factor on all widths, to the nearest whole number."""
    blocks: Annotated[
        tuple[Annotated[Widths, Field(min_length=1)], ...],
        Field(strict=False),
        "lists of widths, such as [[16, 32], [64]]",
    ] = ((16, 32),)
    """Channels of the convolutions, a list for each block."""
    kernel: Annotated[int, Field(ge=1), AfterValidator(_odd), "an odd whole number"] = 3
    """Side of the convolutions' kernels."""
    pooled: OrNone[Whole] = None
    """So many blocks, from the first, end with a 2 x 2 pooling; none: all of them."""
    pool: Annotated[str, OneOf("pooling", POOLS)] = "avg"
    hidden: Widths = (128,)
    """Neurons of the hidden fully connected layers."""
    neuron: Annotated[str, OneOf("neuron", NEURONS)] = "lif"
    tau: Annotated[float, Field(ge=1, allow_inf_nan=False), "a number, at least 1"] = 2.0
    v_threshold: Positive = 1.0
    surrogate: Annotated[str, OneOf("surrogate", SURROGATES)] = "arctan"
    learn_slope: bool = False
    """Learn the surrogate's slope."""
    detach_reset: bool = False
    """No gradient passes through the reset."""
    norm: bool = True
    fc_neuron: OrNone[Annotated[str, OneOf("neuron", NEURONS)]] = None
    """With the three settings below: the hidden fully connected layers where they differ; none: as above."""
    fc_v_threshold: OrNone[Positive] = None
    fc_surrogate: OrNone[Annotated[str, OneOf("surrogate", SURROGATES)]] = None
    fc_norm: OrNone[bool] = None
    dropout: BelowOne = 0.0
    votes: Count = 1
    """Outputs of the classifier for each class; their mean counts."""
    num_steps: Count = 4
    """T: steps of the network, and so frames of a recording of events, and of an encoding."""
    readout: Annotated[str, OneOf("readout", READOUTS)] = "current"
    """current: mean current of the classifier; spikes: mean spikes of a neuron behind it; membrane, last and max: the
    mean potential of a leaky integrator behind it, the potential at the last step, and the highest one."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default and not self.applies(item.name):
                raise DPAPError(
                    f'{self.key(item.name)} = {shown(value)} does not apply to model.name = "{self.name}".',
                    where=f"setting {self.key(item.name)}",
                    fix=f"leave it out; settings of that network: {', '.join(settings_of(self.name))}",
                )
        if self.name in ("sew-resnet18", "recurrent") and self.neuron not in SPIKING:
            raise bad_value(self.key("neuron"), self.neuron, f'a neuron that spikes with name = "{self.name}"')
        if self.neuron == "relu" and self.num_steps != 1:
            raise bad_value(self.key("num_steps"), self.num_steps, '1 with neuron = "relu", which has no time')
        if self.neuron == "relu" and self.readout != "current":
            raise bad_value(self.key("readout"), self.readout, '"current" with neuron = "relu", which has no time')
        if self.fc_neuron is not None and (self.fc_neuron == "relu") != (self.neuron == "relu"):
            raise bad_value(self.key("fc_neuron"), self.fc_neuron, f'a neuron like neuron = "{self.neuron}", or none')

    def applies(self, name: str) -> bool:
        return name == "name" or name in settings_of(self.name)

    def arguments(self) -> dict[str, Any]:
        """Of `dpap.models.build`, beside the name and what the data say."""
        return {name: getattr(self, name) for name in settings_of(self.name)}

    @property
    def spiking(self) -> bool:
        """Whether the network has time."""
        return self.applies("neuron") and self.neuron in SPIKING


@section
class OptimizerConfig(Section):
    section: ClassVar[str] = "optimizer"

    name: Annotated[str, OneOf("optimizer", ("adamw", "sgd"))] = "adamw"
    lr: Annotated[float, Field(gt=0, le=1000), "a number above 0, at most 1000"] = 1e-3
    """The peak; it is reached after `warmup` and falls along a cosine to `lr * lr_end`."""
    weight_decay: NotNegative = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1), "a number from 0 to below 1; only sgd uses it"] = 0.9
    warmup: Share = 0.05
    """Share of the run."""
    warmup_from: Share = 0.0
    """Share of the peak at which the warm-up begins."""
    lr_end: Share = 0.0
    """Share of the peak that is left at the end."""
    cooldown: Share = 0.0
    """Share of the run, at its end, that stays at `lr_end`."""
    loss: Annotated[str, OneOf("loss", LOSSES)] = "cross_entropy"
    """cross_entropy and mse (with the one-hot label, for rates) of the network's answer; tet: cross-entropy of the
    readout at each step, averaged."""
    label_smoothing: BelowOne = 0.0
    clip: OrNone[Positive] = None
    """Largest norm of the gradient."""
    ema: OrNone[Annotated[float, Field(gt=0, lt=1), "a number above 0 and below 1"]] = None
    """Decay per training step of a running mean of the weights, which is then what is measured and saved."""
    precision: Annotated[str, OneOf("precision", ("float32", "bfloat16", "float16"))] = "float32"
    """Of convolutions and linear layers (autocast); float16 only on CUDA, with a scaled loss."""

    def __post_init__(self) -> None:
        if self.warmup + self.cooldown > 1:
            raise bad_value(self.key("cooldown"), self.cooldown, f"at most 1 - warmup = {1 - self.warmup:g}")


@section
class TargetConfig(Section):
    """The share of the dense network that stays; all "none": the rule decides how much is pruned."""

    section: ClassVar[str] = "development.target"

    connectivity: OrNone[ShareLeft] = None
    parameters: OrNone[ShareLeft] = None
    macs: OrNone[ShareLeft] = None
    effective_macs: OrNone[ShareLeft] = None
    sops: OrNone[ShareLeft] = None
    latency: OrNone[ShareLeft] = None
    """Measured in the run, so that two runs of the same seed need not be equal."""
    pairs: OrNone[ShareLeft] = None
    """Pairs of a living unit and a time step; with development.time."""
    steps: OrNone[ShareLeft] = None
    """Time steps of a layer, likewise."""

    def named(self) -> dict[str, float] | None:
        """Only what is set; None when nothing is."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None} or None


LEVELS = ("kappa_unit", "kappa_synapse", "kappa_pair", "kappa_step")
OF_THE_DEFAULT = ("unit_score", "synapse_score", "time_score", "crowding", *LEVELS)
"""Settings of rule "dpap" alone: its links."""


@section
class DevelopmentConfig(Section):
    """Arguments of `dpap.DPAP`."""

    section: ClassVar[str] = "development"

    rule: Annotated[str, OneOf("rule", (*RULES, "none", "fixed"))] = "dpap"
    """"none": nothing is observed and nothing is pruned, the unpruned control. "fixed": the structure of a finished run
    from the start, with new weights."""
    unit_score: OrNone[Annotated[str, OneOf("score", SCORES)]] = None
    """What a unit is worth, by name; none: as the rule says."""
    synapse_score: OrNone[Annotated[str, OneOf("score", SCORES)]] = None
    """The same for a synapse."""
    kappa_unit: OrNone[NotNegative] = None
    """Level at the end of the window, as a share of the average unit's use, where no target says how much is pruned;
    none: as the rule says."""
    kappa_synapse: OrNone[NotNegative] = None
    """The same for synapses."""
    start: Share = 0.10
    stop: Share = 0.50
    memory: Positive = 0.03
    development_steps: Count = 100
    observe_every: Count = 4
    shrink: Annotated[str, OneOf("policy", ("auto", "never", "always"))] = "auto"
    """When pruned units leave the tensors during training; which are pruned is the same."""
    time: OrNone[Annotated[str, OneOf("mode", ("leak", "silence"))]] = None
    """Prune time steps as well: a dead pair of a unit and a step receives nothing ("leak") or cannot fire ("silence",
    as in the paper); none: every step lives."""
    kappa_pair: OrNone[NotNegative] = None
    """Level at the end of the window for the steps of a unit; none: as the rule says."""
    kappa_step: OrNone[NotNegative] = None
    """The same for the steps of a layer."""
    time_score: OrNone[Annotated[str, OneOf("time score", TIME_SCORES)]] = None
    """What a time step is worth to the others of its unit; none: as the rule says."""
    replay: OrNone[str] = None
    """Folder of a finished run: as many are pruned of each layer at each step as there, and the scores say which. The
    record takes the place of the target, which is set to none."""
    prune: OrNone[Annotated[str, OneOf("choice", tuple(KINDS))]] = None
    """What may be pruned: "units", "synapses" or "both"; none: both, but units alone for a target of macs, parameters
    or latency without connectivity, and synapses alone where all layers lose them to a target."""
    synapses: Annotated[str, OneOf("choice", ("linear", "all"))] = "linear"
    """Which layers lose single connections: linear ones, or all, where the kernel between two channels is one."""
    structure: OrNone[str] = None
    """Folder of the finished run whose structure rule "fixed" trains."""
    shuffled: bool = False
    """With its connections at other places of each layer, drawn once."""
    regrow: OrNone[Annotated[str, OneOf("choice", get_args(Regrow))]] = None
    """Which pruned connections grow again while pruning goes on, in exchange for the weakest; none: none."""
    crowding: OrNone[NotNegative] = None
    """With synapses = "all" and a target: how much larger a share of their connections layers with few inputs keep, 0
    to 1; none: as the rule says."""
    target: Annotated[TargetConfig, from_table(TargetConfig)] = TargetConfig()

    def __post_init__(self) -> None:
        if self.replay is not None:
            object.__setattr__(self, "target", TargetConfig())
        if self.start >= self.stop:
            raise bad_value(self.key("start"), self.start, f"below {self.key('stop')} = {self.stop}")
        for name in (*OF_THE_DEFAULT, "replay", "prune", "regrow"):
            if getattr(self, name) is not None and self.rule not in ("dpap", "none"):
                raise bad_value(self.key(name), getattr(self, name), f'"none": rule "{self.rule}" has none to choose')
        if self.synapses == "all" and self.rule not in ("dpap", "none"):
            raise bad_value(self.key("synapses"), "all", f'"linear": rule "{self.rule}" has none to choose')
        if (self.structure is None) == (self.rule == "fixed"):
            said = 'a folder for rule "fixed", and "none" for any other'
            raise bad_value(self.key("structure"), self.structure, said)
        for name in ("pairs", "steps"):
            if getattr(self.target, name) is not None and self.time is None:
                raise bad_value(self.target.key(name), getattr(self.target, name), f"none without {self.key('time')}")


@section
class Config(Section):
    """One run."""

    recipe: str = "custom"
    """Where the config comes from; names the run's folder."""
    seed: Whole = 0
    epochs: Count = 10
    device: Annotated[str, OneOf("device", ("cpu", "cuda"))] = "cpu"
    threads: OrNone[Count] = None
    """CPU threads of PyTorch; none: as many as it takes by itself. Another number gives other bits."""
    control: bool = True
    """Also train the unpruned control: same seed, same batches, rule "none"."""
    channels_last: bool = False
    """Memory format of images and convolutions; it changes the last bits, and what is faster."""
    test_each_epoch: bool = False
    """Measure the test split after every epoch: for curves, and for the paper's protocol, which picks the best epoch.
    Nothing in the run depends on it."""
    data: Annotated[DataConfig, from_table(DataConfig)] = DataConfig()
    model: Annotated[ModelConfig, from_table(ModelConfig)] = ModelConfig()
    optimizer: Annotated[OptimizerConfig, from_table(OptimizerConfig)] = OptimizerConfig()
    development: Annotated[DevelopmentConfig, from_table(DevelopmentConfig)] = DevelopmentConfig()

    def __post_init__(self) -> None:
        if self.optimizer.ema is not None and self.development.rule == "released":
            raise bad_value(
                "optimizer.ema", self.optimizer.ema, 'none: rule "released" does not mask a mean of weights'
            )
        if self.optimizer.precision == "float16" and self.device != "cuda":
            raise bad_value("optimizer.precision", "float16", '"float32" or "bfloat16" on a CPU')
        if (self.data.events or self.data.encoding != "direct") and not self.model.spiking:
            raise bad_value(
                "model.name", self.model.name, f'a network with time, for data.name = "{self.data.name}" over time'
            )
        if (
            self.data.events
            and self.data.framing == "count"
            and self.development.time
            and self.development.rule != "none"
        ):
            raise bad_value(
                "data.framing", "count", '"time" with development.time: step t must mean the same in every sample'
            )
        if self.optimizer.loss == "tet" and not self.model.spiking:
            raise bad_value("optimizer.loss", "tet", '"cross_entropy" or "mse" with a network that has no time')

    def as_control(self) -> Config:
        """The same run, on the same batches, without development."""
        data = replace(self.data, full_batches=self.data.full_batches or self.development.rule == "released")
        unpruned = replace(self.development, rule="none", structure=None)
        return replace(self, control=False, data=data, development=unpruned)
