"""Runs that take a second or two, for tests."""

from __future__ import annotations

from dpap.config import Config, override
from dpap.recipes import recipe

CONVNET = {"model.blocks": "[[4, 6]]", "model.hidden": "[12]", "model.pooled": "none", "model.dropout": "0.2"}
TINY = CONVNET | {
    "device": "cpu",
    "epochs": "6",
    "control": "false",
    "data.duration": "none",  # of events alone
    "data.name": "digits",  # inside the package: every recipe is tried, whatever data are here
    "data.batch_size": "256",
    "data.hold_out": "true",
    "data.crop": "1",
    "data.train_normalization": "data",  # the other one is of colour images
    "optimizer.lr": "0.01",
    "optimizer.warmup": "0.05",
    "optimizer.precision": "float32",
    "development.development_steps": "30",
    "development.observe_every": "1",
    "development.target.macs": "none",
    "development.target.connectivity": "0.4",
}


def tiny(name: str = "digits-snn", **changes: str) -> Config:
    """The recipe of that name made small; `changes` are settings with `__` for a dot."""
    config = recipe(name)
    if config.development.rule == "released":
        changes = {"development__target__connectivity": "none"} | changes  # it knows no target
    settings = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    if config.model.name != "convnet":
        settings = {key: value for key, value in settings.items() if key not in CONVNET} | {"model.width": "0.125"}
    if config.model.name == "recurrent":
        settings["model.num_steps"] = "8"  # a still picture says nothing new in a hundred
    for key, value in settings.items():
        config = override(config, {key: value})
    return config
