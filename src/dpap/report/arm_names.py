"""What arms are called: by the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OF_RUNS = ("development.structure", "development.replay")
"""Settings that name a run of the same seed: the folder above it is that of the arm."""
IGNORED = frozenset({"seed", "data.fold", "control", "recipe", "test_each_epoch", "development.shrink"})
"""Settings on which no result depends beyond rounding, and the seed and the fold, over which results are averaged."""
SAME = {
    "data.name": "The runs are of different data sets",
    "data.path": "The runs are of different data sets",
    "data.hold_out": "Some runs hold the validation split out, others train on it",
    "data.folds": "The runs were tested on different splits",
    "data.limit": "The runs were trained on different parts of the data",
}
"""Settings without which accuracies mean different things, with what is wrong when they differ."""


def setting(config: Mapping[str, Any], key: str) -> Any:
    """A setting by its path; None where it is absent or the word "none", but for the rule of that name."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value == "none" and key != "development.rule" else value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their paths."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def identity(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """What two runs of an arm have in common. Without pruning, how one would have pruned does not matter. A setting
    that is "none" is as good as absent, as it is in runs that are older than it."""
    settings = flat(config)
    settings |= {key: str(Path(settings[key]).parent) for key in OF_RUNS if settings.get(key, "none") != "none"}
    dense = settings.get("development.rule") == "none"
    return frozenset(
        (key, json.dumps(value))
        for key, value in settings.items()
        if key == "development.rule"
        or (key not in IGNORED and value != "none" and not (dense and key.startswith("development.")))
    )


def family_of(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """What an arm has in common with its control: all but how it is pruned."""
    return frozenset((key, value) for key, value in identity(config) if not key.startswith("development."))


def data_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be equal for accuracies to be comparable."""
    return tuple(setting(config, key) for key in SAME)


def labels(configs: Sequence[Mapping[str, Any]], *, targets: bool = True) -> list[str]:
    """Short names for arms, of the settings in which they differ.

    Args:
        targets: Whether the target is part of the name.
    """
    apart = IGNORED - {"recipe"}
    wholes = [{k: v for k, v in c.items() if k not in apart and not k.startswith("development.")} for c in configs]
    by_recipe = {(json.dumps(w.pop("recipe", "")), json.dumps(w, sort_keys=True)) for w in wholes}
    one_to_one = len(by_recipe) == len({r for r, _ in by_recipe}) == len({w for _, w in by_recipe})
    pruned = [c for c in configs if c.get("development.rule") != "none"]
    differing = [k for k in _differing(pruned) if k.startswith("development.")]
    if not targets:
        differing = [k for k in differing if not k.startswith("development.target.")]
    names = []
    for config, whole in zip(configs, wholes, strict=True):
        parts = [str(config.get("recipe"))] if one_to_one and len(by_recipe) > 1 else _said(whole, _differing(wholes))
        dense = config.get("development.rule") == "none"
        own = ["control"] if dense else _said(config, differing)
        names.append(", ".join(own + parts) or str(config.get("development.rule")))
        if not dense and not own and differing:
            names[-1] = ", ".join([str(config["development.rule"]), *parts])
    return names


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]


def _said(config: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """These settings in words, those that are "none" left out."""
    last = [key.rpartition(".")[2] for key in keys]
    return [
        f"{short if last.count(short) == 1 else key} {shown(config[key])}"
        for key, short in zip(keys, last, strict=True)
        if config.get(key, "none") != "none"
    ]


def shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
