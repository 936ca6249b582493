"""What every recipe keeps to."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import tiny

from dpap.config import from_dict, to_toml
from dpap.errors import DPAPError
from dpap.models import MODELS, build
from dpap.recipes import DEFAULT_RECIPE, RECIPES, recipe
from dpap.report.history import read_history
from dpap.training.data import spec_of
from dpap.training.loop import train


def test_there_are_recipes_and_a_default() -> None:
    assert {"digits-snn", "digits-ann"} <= RECIPES.keys()
    assert DEFAULT_RECIPE in RECIPES


def test_every_network_has_a_recipe() -> None:
    assert {make().model.name for make in RECIPES.values()} == MODELS.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_keeps_its_name(name: str) -> None:
    doc = RECIPES[name].__doc__
    assert doc is not None
    assert doc.strip().endswith(".")
    assert recipe(name).recipe == name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_and_the_same_at_every_call(name: str) -> None:
    config = recipe(name)
    assert recipe(name) == config
    assert from_dict(tomllib.loads(to_toml(config))) == config
    assert config.control


@pytest.mark.parametrize("name", RECIPES)
def test_development_begins_after_the_warm_up_and_ends_while_the_rate_is_high(name: str) -> None:
    config = recipe(name)
    assert config.optimizer.warmup <= config.development.start
    assert config.development.stop <= 0.6  # half a cosine is above a quarter of its peak until two thirds of the run


LARGE = ("cifar10-resnet18", "cifar10-resnet50")  # built like "cifar10-resnet18-small"
# Made small, some recipes are the same but for their names.
DIFFERENT = {replace(tiny(name), recipe="one"): name for name in reversed(RECIPES) if name not in LARGE}
QUICK = {"digits-snn", "digits-ann"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DIFFERENT.values()]
)
def test_a_tiny_run_of_a_recipe_learns_and_reaches_its_target(name: str, tmp_path: Path) -> None:
    done = train(tiny(name), tmp_path / "run")
    epochs = read_history(tmp_path / "run" / "history.jsonl").epochs
    assert epochs[-1].loss < epochs[0].loss
    if recipe(name).development.rule == "dpap":
        assert 0.35 < done.result.connectivity < 0.41  # the last unit to die may be 5 % of so small a network
    assert epochs[-1].connectivity == pytest.approx(done.result.connectivity, abs=1e-12)


def test_the_network_of_nmnist_is_the_papers() -> None:
    config = recipe("nmnist-snn")
    spec = spec_of(config)
    model = build(config.model.name, shape=spec.shape, classes=len(spec.classes), **config.model.arguments())
    assert sum(weight.numel() for name, weight in model.named_parameters() if weight.dim() > 1) == 776_670
    assert spec.num_steps == 20


@pytest.mark.parametrize("name", [name for name in RECIPES if recipe(name).data.events])
def test_recipes_of_events_leave_nothing_out_and_test_on_other_samples(name: str) -> None:
    config = recipe(name)
    assert not config.data.test_on_train
    assert config.data.on_bad_sample == "error"


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(DPAPError, match="did you mean 'digits-snn'"):
        recipe("digit-snn")
