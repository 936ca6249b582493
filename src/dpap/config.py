"""What a run is, completely: frozen dataclasses, checked when made, and their TOML form.

`to_toml(config)` writes every setting that applies, so the `config.toml` of a run folder re-runs it; `read_config`
reads one back. Settings that may be absent are written as the word "none".
"""

from __future__ import annotations

import math
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from dpap.data import DATASETS, EVENTS, NEED_PATH, EventSettings
from dpap.data.encoding import ENCODINGS
from dpap.errors import DPAPError, unknown_name
from dpap.method.rules import KINDS, RULES
from dpap.method.scores import SCORES, TIME_SCORES
from dpap.models import MODELS, NEURONS, POOLS, READOUTS, SPIKING, SURROGATES, settings_of

T = TypeVar("T")
NORMALIZATIONS = ("data", "imagenet")
LOSSES = ("cross_entropy", "mse", "tet")


# Fields of a section. What these return is for `dataclass` to read; as with `dataclasses.field`, no type fits it.


def setting(default: object, allowed: str, ok: Callable[[Any], bool]) -> Any:
    """A field with a default, the words that say what is allowed, and the check."""
    return field(default=default, metadata={"allowed": allowed, "ok": ok})


def choice(default: str | None, kind: str, known: Iterable[str]) -> Any:
    """A field that takes one name of a registry."""
    return field(default=default, metadata={"kind": kind, "known": tuple(known)})


def count(default: int, least: int = 1) -> Any:
    return setting(default, f"a whole number, at least {least}", lambda n: n >= least)


def share(default: float) -> Any:
    return setting(default, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def positive(default: float | None) -> Any:
    return setting(default, f"a number above 0{_or_none(default)}", lambda x: 0 < x < math.inf)


def not_negative(default: float | None) -> Any:
    return setting(default, f"a number, at least 0{_or_none(default)}", lambda x: 0 <= x < math.inf)


def _or_none(default: float | None) -> str:
    return ", or none" if default is None else ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a config. Checks the type and the value of every field when made."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            key = self.key(item.name)
            value = _fitted(key, getattr(self, item.name), hints[item.name])
            object.__setattr__(self, item.name, value)
            if value is None:
                continue
            if "known" in item.metadata and value not in item.metadata["known"]:
                raise _at(key, unknown_name(item.metadata["kind"], value, item.metadata["known"]))
            if "ok" in item.metadata and not item.metadata["ok"](value):
                raise bad_value(key, value, item.metadata["allowed"])

    def key(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name

    def applies(self, name: str) -> bool:
        """Whether the setting of that name means something beside the others; if not, it is not written down."""
        return True


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    section: ClassVar[str] = "data"

    name: str = choice("digits", "data set", DATASETS)
    batch_size: int = count(64)
    full_batches: bool = False
    """Leave out the last batch of an epoch where it is smaller than the others. Rule "released" always does."""
    hold_out: bool = False
    """True: the validation split stays out of training and is measured every epoch. False: it is trained on."""
    path: str | None = None
    """Folder or file of the data sets "images", "npz" and "events"."""
    folds: int | None = setting(None, "a whole number, at least 3, or none", lambda n: n >= 3)
    """Cross-validation over all samples there are, for subsets too small for a test split: joined, and dealt into so
    many folds. None: the splits as published."""
    fold: int = count(0, least=0)
    """The one of `folds` that is the test split, from 0; the next one is the validation split."""
    limit: int | None = setting(None, "a whole number, at least 1, or none", lambda n: n >= 1)
    """Train on a fixed, stratified part of about so many samples: a subset is not the benchmark."""
    crop: int = count(0, least=0)
    """Pixels of black border of which random crops are taken: training samples are moved by so much at most."""
    flip: bool = False
    """Mirror training samples left to right, each with probability 1/2; refused where a label would not hold."""
    erasing: float = share(0.0)
    """Probability that a random rectangle of a training image becomes noise."""
    randaugment: float = setting(0.0, "a number from 0 to 10", lambda x: 0 <= x <= 10)
    """Magnitude of RandAugment, two operations an image; 0: none."""
    train_normalization: str = choice("data", "normalization", NORMALIZATIONS)
    """Mean and standard deviation that training images are normalised with: of the data set, as in evaluation, or of
    "imagenet", which differs from evaluation (as in the authors' script)."""
    encoding: str = choice("direct", "encoding", ("direct", *ENCODINGS))
    """What a spiking network sees of pictures: "direct", the picture itself at every one of `model.num_steps` steps;
    "rate" or "latency", spikes (neither normalised)."""
    framing: str = choice("time", "framing", ("time", "count"))
    """With the settings below: of events alone, whose recordings become `model.num_steps` frames of counts, of equal
    time or of equally many events."""
    duration: int | None = setting(None, "a whole number, at least 1, or none", lambda n: n >= 1)
    """Microseconds from a recording's first event that the frames share; none: up to its last."""
    sensor: tuple[int, ...] | None = setting(
        None, "[height, width], or none", lambda sides: len(sides) == 2 and min(sides) > 0
    )
    """Of the recordings of data set "events", where the files do not say."""
    on_bad_sample: str = choice("error", "answer", ("error", "skip"))
    """A recording that is empty, damaged or makes no sense: an error, or left out and counted."""
    test_on_train: bool = False
    """Where there are too few recordings to set some aside, test on those trained on: it shows that a run works."""
    rotation: float = setting(0.0, "a number from 0 to 45", lambda x: 0 <= x <= 45)
    """Turn training recordings by so many degrees at most."""
    drop: float = setting(0.0, "a number from 0 to below 1", lambda x: 0 <= x < 1)
    """Leave out this share of the events of training recordings, each by chance."""
    jitter: int = count(0, least=0)
    """Move training recordings by so many frames at most, earlier or later."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
            sensor=None if self.sensor is None else (self.sensor[0], self.sensor[1]),
            test_on_train=self.test_on_train,
        )


OF_PICTURES = frozenset({"erasing", "randaugment", "train_normalization", "encoding"})
OF_EVENTS = frozenset({"framing", "duration", "sensor", "on_bad_sample", "test_on_train", "rotation", "drop", "jitter"})


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """A network by name, and its settings; one that the network does not know keeps its default."""

    section: ClassVar[str] = "model"

    name: str = choice("convnet", "model", MODELS)
    width: float = positive(1.0)
    """Factor on all widths, to the nearest whole number."""
    blocks: tuple[tuple[int, ...], ...] = setting(
        ((16, 32),),
        "lists of widths, such as [[16, 32], [64]]",
        lambda blocks: all(block and min(block) > 0 for block in blocks),
    )
    """Channels of the convolutions, a list for each block."""
    kernel: int = setting(3, "an odd whole number", lambda n: n >= 1 and n % 2 == 1)
    """Side of the convolutions' kernels."""
    pooled: int | None = setting(None, "a whole number, at least 0, or none", lambda n: n >= 0)
    """So many blocks, from the first, end with a 2 x 2 pooling; none: all of them."""
    pool: str = choice("avg", "pooling", POOLS)
    hidden: tuple[int, ...] = setting(
        (128,), "a list of widths, such as [128]", lambda hidden: min(hidden, default=1) > 0
    )
    """Neurons of the hidden fully connected layers."""
    neuron: str = choice("lif", "neuron", NEURONS)
    tau: float = setting(2.0, "a number, at least 1", lambda x: 1 <= x < math.inf)
    v_threshold: float = positive(1.0)
    surrogate: str = choice("arctan", "surrogate", SURROGATES)
    learn_slope: bool = False
    """Learn the surrogate's slope."""
    detach_reset: bool = False
    """No gradient passes through the reset."""
    norm: bool = True
    fc_neuron: str | None = choice(None, "neuron", NEURONS)
    """With the three settings below: the hidden fully connected layers where they differ; none: as above."""
    fc_v_threshold: float | None = positive(None)
    fc_surrogate: str | None = choice(None, "surrogate", SURROGATES)
    fc_norm: bool | None = None
    dropout: float = setting(0.0, "a number from 0 to below 1", lambda x: 0 <= x < 1)
    votes: int = count(1)
    """Outputs of the classifier for each class; their mean counts."""
    num_steps: int = count(4)
    """T: steps of the network, and so frames of a recording of events, and of an encoding."""
    readout: str = choice("current", "readout", READOUTS)
    """current: mean current of the classifier; spikes: mean spikes of a neuron behind it; membrane, last and max: the
    mean potential of a leaky integrator behind it, the potential at the last step, and the highest one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default and not self.applies(item.name):
                raise DPAPError(
                    f'{self.key(item.name)} = {_shown(value)} does not apply to model.name = "{self.name}".',
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


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    section: ClassVar[str] = "optimizer"

    name: str = choice("adamw", "optimizer", ("adamw", "sgd"))
    lr: float = setting(1e-3, "a number above 0, at most 1000", lambda lr: 0 < lr <= 1000)
    """The peak; it is reached after `warmup` and falls along a cosine to `lr * lr_end`."""
    weight_decay: float = not_negative(0.01)
    momentum: float = setting(0.9, "a number from 0 to below 1; only sgd uses it", lambda x: 0 <= x < 1)
    warmup: float = share(0.05)
    """Share of the run."""
    warmup_from: float = share(0.0)
    """Share of the peak at which the warm-up begins."""
    lr_end: float = share(0.0)
    """Share of the peak that is left at the end."""
    cooldown: float = share(0.0)
    """Share of the run, at its end, that stays at `lr_end`."""
    loss: str = choice("cross_entropy", "loss", LOSSES)
    """cross_entropy and mse (with the one-hot label, for rates) of the network's answer; tet: cross-entropy of the
    readout at each step, averaged."""
    label_smoothing: float = setting(0.0, "a number from 0 to below 1", lambda x: 0 <= x < 1)
    clip: float | None = setting(None, "a number above 0, or none", lambda x: 0 < x < math.inf)
    """Largest norm of the gradient."""
    ema: float | None = setting(None, "a number above 0 and below 1, or none", lambda x: 0 < x < 1)
    """Decay per training step of a running mean of the weights, which is then what is measured and saved."""
    precision: str = choice("float32", "precision", ("float32", "bfloat16", "float16"))
    """Of convolutions and linear layers (autocast); float16 only on CUDA, with a scaled loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup + self.cooldown > 1:
            raise bad_value(self.key("cooldown"), self.cooldown, f"at most 1 - warmup = {1 - self.warmup:g}")


@dataclass(frozen=True, kw_only=True)
class TargetConfig(Section):
    """The share of the dense network that stays; all "none": how much dies is left to the rule."""

    section: ClassVar[str] = "development.target"

    connectivity: float | None = setting(None, "a number above 0, at most 1, or none", lambda x: 0 < x <= 1)
    parameters: float | None = setting(None, "a number above 0, at most 1, or none", lambda x: 0 < x <= 1)
    macs: float | None = setting(None, "a number above 0, at most 1, or none", lambda x: 0 < x <= 1)
    sops: float | None = setting(None, "a number above 0, at most 1, or none", lambda x: 0 < x <= 1)
    latency: float | None = setting(None, "a number above 0, at most 1, or none", lambda x: 0 < x <= 1)
    """Measured in the run, so that two runs of the same seed need not be equal."""
    pairs: float | None = setting(None, "a number above 0, at most 1, or none", lambda x: 0 < x <= 1)
    """Pairs of a living unit and a time step; with development.time."""
    steps: float | None = setting(None, "a number above 0, at most 1, or none", lambda x: 0 < x <= 1)
    """Time steps of a layer, likewise."""

    def named(self) -> dict[str, float] | None:
        """Only what is set; None when nothing is."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None} or None


LEVELS = ("kappa_unit", "kappa_synapse", "kappa_pair", "kappa_step")
OF_THE_DEFAULT = ("unit_score", "synapse_score", "time_score", *LEVELS)
"""Settings of rule "dpap" alone: its links."""


@dataclass(frozen=True, kw_only=True)
class DevelopmentConfig(Section):
    """Arguments of `dpap.DPAP`."""

    section: ClassVar[str] = "development"

    rule: str = choice("dpap", "rule", (*RULES, "none"))
    """"none": nothing is observed and nothing dies, the unpruned control."""
    unit_score: str | None = choice(None, "score", SCORES)
    """What a unit is worth, by name; none: as the rule says."""
    synapse_score: str | None = choice(None, "score", SCORES)
    """The same for a synapse."""
    kappa_unit: float | None = not_negative(None)
    """Level at the end of the window, as a share of the average unit's use, where no target says how much dies; none:
    as the rule says."""
    kappa_synapse: float | None = not_negative(None)
    """The same for synapses."""
    start: float = share(0.10)
    stop: float = share(0.50)
    memory: float = positive(0.03)
    development_steps: int = count(100)
    observe_every: int = count(4)
    shrink: str = choice("auto", "policy", ("auto", "never", "always"))
    """When dead units leave the tensors during training; who dies is the same."""
    time: str | None = choice(None, "mode", ("leak", "silence"))
    """Prune time steps as well: a dead pair of a unit and a step receives nothing ("leak") or cannot fire ("silence",
    as in the paper); none: every step lives."""
    kappa_pair: float | None = not_negative(None)
    """Level at the end of the window for the steps of a unit; none: as the rule says."""
    kappa_step: float | None = not_negative(None)
    """The same for the steps of a layer."""
    time_score: str | None = choice(None, "time score", TIME_SCORES)
    """What a time step is worth to the others of its unit; none: as the rule says."""
    replay: str | None = None
    """Folder of a finished run: as many die of each layer at each step as there, and the scores say who. The record
    takes the place of the target, which is set to none."""
    prune: str | None = choice(None, "choice", tuple(KINDS))
    """What may be pruned: "units", "synapses" or "both"; none: both, but units alone for a target of macs, parameters
    or latency without connectivity."""
    target: TargetConfig = field(default_factory=TargetConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replay is not None:
            object.__setattr__(self, "target", TargetConfig())
        if self.start >= self.stop:
            raise bad_value(self.key("start"), self.start, f"below {self.key('stop')} = {self.stop}")
        for name in (*OF_THE_DEFAULT, "replay", "prune"):
            if getattr(self, name) is not None and self.rule not in ("dpap", "none"):
                raise bad_value(self.key(name), getattr(self, name), f'"none": rule "{self.rule}" has none to choose')
        for name in ("pairs", "steps"):
            if getattr(self.target, name) is not None and self.time is None:
                raise bad_value(self.target.key(name), getattr(self.target, name), f"none without {self.key('time')}")


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One run."""

    recipe: str = "custom"
    """Where the config comes from; names the run's folder."""
    seed: int = count(0, least=0)
    epochs: int = count(10)
    device: str = choice("cpu", "device", ("cpu", "cuda"))
    threads: int | None = setting(None, "a whole number, at least 1, or none", lambda n: n >= 1)
    """CPU threads of PyTorch; none: as many as it takes by itself. Another number gives other bits."""
    control: bool = True
    """Also train the unpruned control: same seed, same batches, rule "none"."""
    channels_last: bool = False
    """Memory format of images and convolutions; it changes the last bits, and what is faster."""
    test_each_epoch: bool = False
    """Measure the test split after every epoch: for curves, and for the paper's protocol, which picks the best epoch.
    Nothing in the run depends on it."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    development: DevelopmentConfig = field(default_factory=DevelopmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        return replace(self, control=False, data=data, development=replace(self.development, rule="none"))


def from_dict(values: Mapping[str, Any]) -> Config:
    """A config from nested mappings, as a TOML file gives them; what is left out takes its default.

    Raises:
        DPAPError: an unknown key (the nearest are shown), a value of the wrong type or out of range.
    """
    return _section(Config, values)


def override(config: Config, changes: Mapping[str, str]) -> Config:
    """`config` with settings changed, such as `optimizer.lr` to "0.01". Text that is no TOML value is a string.

    All are changed before anything is checked: some settings only go together.
    """
    tree = to_dict(config)
    for key, text in changes.items():
        _change(config, tree, key, text)
    return from_dict(tree)


def _change(config: Config, tree: dict[str, Any], key: str, text: str) -> None:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    node: Any = tree
    setting: Any = config
    for name in [*parents, last]:
        if not isinstance(setting, Section) or name not in [item.name for item in fields(setting)]:
            raise _unknown_key(key, _all_keys(config))
        setting = getattr(setting, name)
    if isinstance(setting, Section):
        known = ", ".join(to_dict(setting))
        raise DPAPError(f"{key!r} is a section, not a setting.", where=f"--set {key}", fix=f"name one of {known}")
    for name in parents:
        node = node[name]
    node[last] = value


def read_config(path: Path) -> Config:
    """The config of a run folder; a setting that is newer than the file takes its default."""
    return checked(read_toml(path), path)


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DPAPError(f"The config cannot be read: {error.strerror}.", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DPAPError(f"The config is not valid TOML: {error}.", where=str(path), fix="correct that line") from error


def checked(values: Mapping[str, Any], path: Path) -> Config:
    """The config of these values, read from that file."""
    try:
        return from_dict(values)
    except DPAPError as error:
        raise DPAPError(error.what, where=f"{error.where} in {path}", fix=error.fix) from error


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others in their place."""
    out = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def missing_settings(values: Mapping[str, Any], config: Config) -> list[str]:
    """The settings that apply to a config and that the values it was made of leave out."""
    return [key for key in _leaves(to_dict(config)) if key not in _leaves(values) and key not in LATER]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return found


LATER = ("recipe", "development.prune")
"""Settings that a complete file may leave out: files of earlier versions are complete without them."""


def to_dict(config: Section) -> dict[str, Any]:
    """Every setting that applies as nested dicts of plain values; an absent one is the word "none"."""
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config) if config.applies(item.name)}


def to_toml(config: Config) -> str:
    """The complete config as TOML; `from_dict(tomllib.loads(to_toml(config))) == config`."""
    return _toml_table(to_dict(config), "")


def bad_value(key: str, value: object, allowed: str) -> DPAPError:
    return DPAPError(f"{key} = {_shown(value)} is not allowed.", where=f"setting {key}", fix=f"give {key} {allowed}")


def _at(key: str, error: DPAPError) -> DPAPError:
    return DPAPError(error.what, where=f"setting {key}", fix=error.fix)


def _shown(value: object) -> str:
    return "none" if value is None else repr(_plain(value))


def _section(cls: type[T], values: Mapping[str, Any]) -> T:
    assert issubclass(cls, Section)
    hints = get_type_hints(cls)
    prefix = f"{cls.section}." if cls.section else ""
    known = [item.name for item in fields(cls)]
    made = {}
    for name, value in values.items():
        if name not in known:
            raise _unknown_key(prefix + name, [prefix + other for other in known])
        made[name] = _fitted(prefix + name, value, hints[name])
    return cls(**made)


def _unknown_key(key: str, known: Iterable[str]) -> DPAPError:
    return _at(key, unknown_name("setting", key, known))


def _all_keys(config: Section) -> list[str]:
    keys: list[str] = []
    for item in fields(config):
        value = getattr(config, item.name)
        keys += _all_keys(value) if isinstance(value, Section) else [config.key(item.name)]
    return keys


def _fitted(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint` says: whole numbers become floats where these are meant, lists become tuples."""
    origin = get_origin(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, (Mapping, hint)):
            raise bad_value(key, value, "a section of settings")
        return _section(hint, value) if isinstance(value, Mapping) else value
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return None if value is None or value == "none" else _fitted(key, value, inner)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise bad_value(key, value, _words(hint))
        try:
            return tuple(_fitted(key, entry, get_args(hint)[0]) for entry in value)
        except DPAPError:
            raise bad_value(key, value, _words(hint)) from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise bad_value(key, value, _words(hint))
    return value


def _words(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"a list, each entry {_words(get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return "none" if value is None else value


def _toml_table(values: Mapping[str, Any], path: str) -> str:
    """Plain values first, then one table for each section: all that TOML asks for."""
    lines = [f"{key} = {_toml_value(value)}\n" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            name = f"{path}{key}"
            lines.append(f"\n[{name}]\n{_toml_table(value, name + '.')}")
    return "".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    if isinstance(value, str):
        return '"' + "".join(_toml_character(c) for c in value) + '"'
    return repr(value)


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\u{ord(character):04x}" if ord(character) < 32 or ord(character) == 127 else character
