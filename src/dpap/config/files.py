"""Configs as TOML files and as nested dicts; changes by the path of a setting."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import tomli_w

from dpap.config.fields import Section, plain, unknown_setting
from dpap.config.sections import Config
from dpap.errors import DPAPError


def from_dict(values: Mapping[str, Any]) -> Config:
    """A config from nested mappings, as a TOML file gives them; what is left out takes its default.

    Raises:
        DPAPError: an unknown key (the nearest are shown), a value of the wrong type or out of range.
    """
    return Config(**values)


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
        if name not in getattr(setting, "__dataclass_fields__", {}):
            raise unknown_setting(key, _all_keys(config))
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


LATER = (
    *("recipe", "development.target.effective_macs"),
    *(f"development.{name}" for name in ("prune", "synapses", "regrow", "structure", "shuffled", "crowding")),
)
"""Settings that a complete file may leave out: files of earlier versions are complete without them."""


def to_dict(config: Any) -> dict[str, Any]:
    """Every setting that applies as nested dicts of plain values; an absent one is the word "none"."""
    values = {item.name: getattr(config, item.name) for item in fields(config) if config.applies(item.name)}
    return {name: to_dict(value) if isinstance(value, Section) else plain(value) for name, value in values.items()}


def to_toml(config: Config) -> str:
    """The complete config as TOML; `from_dict(tomllib.loads(to_toml(config))) == config`."""
    return tomli_w.dumps(to_dict(config))


def _all_keys(config: Any) -> list[str]:
    keys: list[str] = []
    for item in fields(config):
        value = getattr(config, item.name)
        keys += _all_keys(value) if isinstance(value, Section) else [config.key(item.name)]
    return keys
