"""Configs: checked when made, complete as TOML, helpful about mistakes."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dpap.config import (
    Config,
    DataConfig,
    DevelopmentConfig,
    ModelConfig,
    OptimizerConfig,
    TargetConfig,
    from_dict,
    override,
    read_config,
    to_dict,
    to_toml,
)
from dpap.data import DATASETS, NEED_PATH
from dpap.errors import DPAPError
from dpap.models import MODELS, build, settings_of
from dpap.recipes import RECIPES, config_of_file

SECTIONS = (Config, DataConfig, ModelConfig, OptimizerConfig, DevelopmentConfig, TargetConfig)


@pytest.mark.parametrize("cls", SECTIONS)
def test_sections_are_frozen_and_keyword_only(cls: type) -> None:
    with pytest.raises(TypeError):
        cls(1)
    made = cls()
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, name, getattr(made, name))


def test_toml_round_trip_of_every_recipe() -> None:
    assert RECIPES
    for make in RECIPES.values():
        config = make()
        assert from_dict(tomllib.loads(to_toml(config))) == config


def test_toml_round_trip_of_unusual_values() -> None:
    config = Config(
        recipe='a "quoted" \\ name\nwith a \x7f break',
        threads=3,
        control=False,
        model=ModelConfig(blocks=((3,), (4, 5)), hidden=(), neuron="plif", dropout=0.25, readout="spikes"),
        optimizer=OptimizerConfig(name="sgd", lr=1e-05, clip=1.5, weight_decay=0.1 + 0.2, loss="mse"),
        development=DevelopmentConfig(
            unit_score="magnitude", kappa_synapse=0.25, target=TargetConfig(macs=0.5, connectivity=1 / 3)
        ),
    )
    assert from_dict(tomllib.loads(to_toml(config))) == config


def test_toml_is_complete() -> None:
    def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in tree.items():
            found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
        return found

    written = keys(tomllib.loads(to_toml(Config())))
    assert written == keys(to_dict(Config()))
    assert {"epochs", "threads", "optimizer.clip", "development.target.connectivity", "model.num_steps"} <= written


def test_absent_settings_are_the_word_none() -> None:
    assert 'clip = "none"' in to_toml(Config())
    assert from_dict({"optimizer": {"clip": "none"}}).optimizer.clip is None
    assert override(Config(), {"development.target.connectivity": "none"}).development.target.named() is None


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("epochs", -3, "a whole number, at least 1"),
        ("epochs", 0, "a whole number, at least 1"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("epochs", "many", "a whole number"),
        ("seed", -1, "a whole number, at least 0"),
        ("threads", 0, "a whole number, at least 1, or none"),
        ("control", 1, "true or false"),
        ("data.batch_size", 0, "a whole number, at least 1"),
        ("data.crop", -1, "a whole number, at least 0"),
        ("data.limit", 0, "a whole number, at least 1, or none"),
        ("data.folds", 2, "a whole number, at least 3, or none"),
        ("data.fold", 1, "0 without data.folds"),
        ("data.erasing", 1.5, "a number from 0 to 1"),
        ("data.randaugment", 11, "a number from 0 to 10"),
        ("data.path", "here", "none: data set"),
        ("model.kernel", 4, "an odd whole number"),
        ("model.pooled", -1, "a whole number, at least 0, or none"),
        ("model.v_threshold", 0, "a number above 0"),
        ("model.width", 0, "a number above 0"),
        ("model.width", "wide", "a number"),
        ("model.fc_v_threshold", 0, "a number above 0, or none"),
        ("model.fc_neuron", "relu", 'a neuron like neuron = "lif", or none'),
        ("model.votes", 0, "a whole number, at least 1"),
        ("optimizer.warmup_from", -0.1, "a number from 0 to 1"),
        ("optimizer.cooldown", 0.96, "at most 1 - warmup = 0.95"),
        ("optimizer.label_smoothing", 1.0, "a number from 0 to below 1"),
        ("optimizer.ema", 1.0, "a number above 0 and below 1, or none"),
        ("optimizer.ema", 0.0, "a number above 0 and below 1, or none"),
        ("optimizer.precision", "float16", '"float32" or "bfloat16" on a CPU'),
        ("development.kappa_unit", -1.0, "a number, at least 0, or none"),
        ("test_each_epoch", 1, "true or false"),
        ("model.blocks", [[]], "lists of widths"),
        ("model.blocks", [[16, 0]], "lists of widths"),
        ("model.blocks", [16], "lists of widths"),
        ("model.hidden", 128, "a list of widths"),
        ("model.hidden", [0], "a list of widths"),
        ("model.tau", 0.5, "a number, at least 1"),
        ("model.dropout", 1.0, "a number from 0 to below 1"),
        ("model.num_steps", 0, "a whole number, at least 1"),
        ("optimizer.lr", 0, "a number above 0"),
        ("optimizer.lr", float("inf"), "a number above 0"),
        ("optimizer.lr", float("nan"), "a number above 0"),
        ("optimizer.weight_decay", -0.1, "a number, at least 0"),
        ("optimizer.momentum", 1, "below 1"),
        ("optimizer.warmup", 1.5, "a number from 0 to 1"),
        ("optimizer.clip", 0, "a number above 0, or none"),
        ("development.start", 0.6, "below development.stop = 0.5"),
        ("development.stop", 1.01, "a number from 0 to 1"),
        ("development.memory", 0, "a number above 0"),
        ("development.target.connectivity", 0, "a number above 0, at most 1, or none"),
        ("development.target.connectivity", 1.1, "a number above 0, at most 1, or none"),
        ("development.target", 0.1, "a section of settings"),
    ],
)
def test_bad_values_name_key_value_and_what_is_allowed(key: str, value: object, allowed: str) -> None:
    tree: Any = value
    for name in reversed(key.split(".")):
        tree = {name: tree}
    with pytest.raises(DPAPError) as caught:
        from_dict(tree)
    assert key in caught.value.where
    assert repr(value) in caught.value.what
    assert allowed in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("development.rule", "dpep", "'dpap'"),
        ("development.unit_score", "magnitud", "'magnitude'"),
        ("development.synapse_score", "weighted", "'weighted-input'"),
        ("data.train_normalization", "imagnet", "'imagenet'"),
        ("optimizer.precision", "bfloat", "'bfloat16'"),
        ("model.fc_surrogate", "quadratic", "'quadratic_gate'"),
        ("device", "cdua", "'cuda'"),
        ("data.name", "digit", "'digits'"),
        ("model.name", "convnt", "'convnet'"),
        ("model.neuron", "lfi", "'lif'"),
        ("model.surrogate", "arctn", "'arctan'"),
        ("model.pool", "avrg", "'avg'"),
        ("model.readout", "curent", "'current'"),
        ("optimizer.name", "adam", "'adamw'"),
        ("optimizer.loss", "crossentropy", "'cross_entropy'"),
    ],
)
def test_unknown_names_show_the_nearest(key: str, value: str, nearest: str) -> None:
    with pytest.raises(DPAPError) as caught:
        override(Config(), {key: value})
    assert key in caught.value.where
    assert f"did you mean {nearest}" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "epochs"),
        ("optimizer.learning_rate.peak", "optimizer."),
        ("optimizer.l", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("development.targets.connectivity", "development.target.connectivity"),
    ],
)
def test_unknown_keys_show_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(DPAPError, match="no setting named") as caught:
        override(Config(), {key: "1"})
    assert nearest in caught.value.fix


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[optimizer]\nlearn_rate = 0.1\n")
    with pytest.raises(DPAPError, match=r"'optimizer\.learn_rate'") as caught:
        read_config(path)
    assert str(path) in caught.value.where


def test_a_file_that_names_a_recipe_starts_from_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('recipe = "digits-ann"\nepochs = 3\n[optimizer]\nlr = 0.01\n')
    mine, recipe = config_of_file(path), RECIPES["digits-ann"]()
    assert mine == dataclasses.replace(recipe, epochs=3, optimizer=dataclasses.replace(recipe.optimizer, lr=0.01))
    assert mine.model.neuron == "relu"


@pytest.mark.parametrize(("head", "said"), [("", "names no recipe"), ('recipe = "digit-ann"\n', "'digit-ann'")])
def test_a_file_without_a_recipe_says_everything_or_is_refused(head: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(head + '[model]\nneuron = "relu"\nnum_steps = 1\n')
    with pytest.raises(DPAPError, match=rf"{said}.* leaves \d+ settings out: seed, epochs"):
        config_of_file(path)
    whole = dataclasses.replace(RECIPES["digits-ann"](), recipe="mine")
    path.write_text(to_toml(whole).replace('prune = "none"\n', ""))  # as a version without that setting wrote it
    assert config_of_file(path) == whole


def test_a_file_that_is_no_toml_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(DPAPError, match="No such file"):
        read_config(tmp_path / "none.toml")
    path = tmp_path / "config.toml"
    path.write_text("epochs = = 3")
    with pytest.raises(DPAPError, match="not valid TOML"):
        read_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DPAPError, match="not valid TOML"):
        read_config(path)


def test_override_reads_toml_values_and_plain_words() -> None:
    config = Config()
    assert override(config, {"optimizer.lr": "1"}).optimizer.lr == 1.0
    assert override(config, {"model.blocks": "[[8], [16, 16]]"}).model.blocks == ((8,), (16, 16))
    assert override(config, {"data.hold_out": "true"}).data.hold_out is True
    assert override(config, {"development.rule": "paper"}).development.rule == "paper"
    assert override(config, {"development.rule": '"paper"'}).development.rule == "paper"
    assert override(config, {"development.target.macs": "0.5"}).development.target.named() == {"macs": 0.5}
    assert config == Config()


def test_a_section_is_no_setting() -> None:
    with pytest.raises(DPAPError, match="is a section") as caught:
        override(Config(), {"optimizer": "1"})
    assert "lr" in caught.value.fix


def test_networks_without_time() -> None:
    with pytest.raises(DPAPError, match=r"model\.num_steps = 4"):
        ModelConfig(neuron="relu")
    with pytest.raises(DPAPError, match=r"model\.readout = 'spikes'"):
        ModelConfig(neuron="relu", num_steps=1, readout="spikes")
    for name in ("sew-resnet18", "recurrent"):
        with pytest.raises(DPAPError, match=r"model\.neuron = 'relu'") as caught:
            ModelConfig(name=name, neuron="relu", num_steps=1)
        assert "a neuron that spikes" in caught.value.fix
    ModelConfig(neuron="relu", num_steps=1)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("resnet18", {"blocks": ((8,),)}),
        ("resnet50", {"neuron": "if"}),
        ("resnet18", {"num_steps": 1}),
        ("vit", {"dropout": 0.1}),
        ("sew-resnet18", {"readout": "spikes"}),
    ],
)
def test_settings_that_a_network_does_not_know_are_refused(name: str, setting: dict[str, Any]) -> None:
    (key,) = setting
    with pytest.raises(DPAPError, match=f'model.{key} = .* does not apply to model.name = "{name}"') as caught:
        ModelConfig(name=name, **setting)
    assert "width" in caught.value.fix
    assert caught.value.where == f"setting model.{key}"
    ModelConfig(**setting) if key != "num_steps" else ModelConfig(neuron="relu", **setting)


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_named_by_a_config_that_comes_back(name: str) -> None:
    config = Config(model=ModelConfig(name=name, width=0.25))
    written = tomllib.loads(to_toml(config))
    assert from_dict(written) == config
    assert set(written["model"]) == {"name", *settings_of(name)}, "what does not apply is not written down"
    assert config.model.arguments().keys() == set(settings_of(name))
    assert build(name, shape=(1, 8, 8), classes=3, **config.model.arguments()) is not None


def test_another_network_by_override() -> None:
    config = override(Config(), {"model.name": "sew-resnet18", "model.neuron": "plif", "model.width": "0.5"})
    assert (config.model.name, config.model.neuron, config.model.width) == ("sew-resnet18", "plif", 0.5)
    assert override(config, {"model.name": "convnet", "model.hidden": "[8]"}).model.hidden == (8,)
    with pytest.raises(DPAPError, match=r"model\.hidden = \[8\] does not apply"):
        override(config, {"model.hidden": "[8]"})
    with pytest.raises(DPAPError, match="no setting named 'model.widht'"):
        override(config, {"model.widht": "1"})


def test_which_networks_have_time() -> None:
    assert ModelConfig().spiking
    assert ModelConfig(name="sew-resnet18").spiking
    assert not ModelConfig(neuron="relu", num_steps=1).spiking
    assert not any(ModelConfig(name=name).spiking for name in ("resnet18", "resnet50", "vit"))
    with pytest.raises(DPAPError, match=r"optimizer\.loss = 'tet'"):
        Config(model=ModelConfig(name="resnet18"), optimizer=OptimizerConfig(loss="tet"))
    Config(model=ModelConfig(name="sew-resnet18"), optimizer=OptimizerConfig(loss="tet"))


def test_half_precision_needs_a_gpu() -> None:
    settings = OptimizerConfig(precision="float16")
    assert Config(device="cuda", optimizer=settings).optimizer.precision == "float16"
    with pytest.raises(DPAPError, match=r"optimizer\.precision = 'float16'"):
        Config(optimizer=settings)
    assert Config(optimizer=OptimizerConfig(precision="bfloat16")).device == "cpu"


def test_a_loss_of_every_step_needs_time() -> None:
    ann = ModelConfig(neuron="relu", num_steps=1)
    with pytest.raises(DPAPError, match=r"optimizer\.loss = 'tet'"):
        Config(model=ann, optimizer=OptimizerConfig(loss="tet"))
    Config(model=ann, optimizer=OptimizerConfig(loss="mse"))
    Config(optimizer=OptimizerConfig(loss="tet"))


def test_data_sets_of_ones_own_need_a_path_and_others_have_none() -> None:
    assert {"images", "npz", "events"} == NEED_PATH
    assert DATASETS.keys() >= NEED_PATH
    for name in NEED_PATH:
        with pytest.raises(DPAPError, match=r"data\.path = none") as caught:
            DataConfig(name=name)
        assert "a folder or file" in caught.value.fix
        assert DataConfig(name=name, path="mine").path == "mine"


@pytest.mark.parametrize(
    "setting",
    [{"unit_score": "hebb"}, {"synapse_score": "hebb"}, {"kappa_synapse": 0.1}, {"time_score": "random"}],
)
@pytest.mark.parametrize("rule", ["paper", "released"])
def test_rules_that_are_fixed_take_no_score_and_no_level(rule: str, setting: dict[str, Any]) -> None:
    with pytest.raises(DPAPError, match=f"development.{next(iter(setting))}") as caught:
        DevelopmentConfig(rule=rule, **setting)
    assert f'rule "{rule}" has none to choose' in caught.value.fix
    DevelopmentConfig(rule="dpap", **setting)
    DevelopmentConfig(rule="none", **setting)


def test_the_control_differs_in_the_rule_alone() -> None:
    config = Config(seed=3)
    control = config.as_control()
    assert control.development.rule == "none"
    assert control.control is False
    assert dataclasses.replace(control, control=True, development=config.development) == config


def test_settings_that_only_go_together_are_changed_together() -> None:
    own = override(Config(), {"data.name": "npz", "data.path": "mine.npz"})
    assert (own.data.name, own.data.path) == ("npz", "mine.npz")
    assert override(own, {"data.path": "none", "data.name": "digits"}) == Config()
    assert override(Config(), {"model.num_steps": "1", "model.neuron": "relu"}).model.neuron == "relu"


def test_a_mean_of_weights_is_not_masked_by_the_released_rule() -> None:
    with pytest.raises(DPAPError, match=r"optimizer.ema = 0.9 is not allowed"):
        override(Config(), {"optimizer.ema": "0.9", "development.rule": "released"})


def test_the_control_of_a_released_run_sees_the_same_batches() -> None:
    released = override(Config(), {"development.rule": "released"})
    assert released.as_control().data.full_batches
    assert not Config().as_control().data.full_batches


def test_time_steps_are_pruned_where_a_step_means_the_same_in_every_sample() -> None:
    events = DataConfig(name="nmnist", framing="count")
    pruned = DevelopmentConfig(time="leak")
    with pytest.raises(DPAPError, match="data.framing"):
        Config(data=events, development=pruned)
    Config(data=events)
    Config(data=dataclasses.replace(events, framing="time"), development=pruned)
    with pytest.raises(DPAPError, match="development.target.pairs"):
        DevelopmentConfig(target=TargetConfig(pairs=0.5))
    with pytest.raises(DPAPError, match="development.target.steps"):
        DevelopmentConfig(target=TargetConfig(steps=0.5))
