"""What a report is made from: the files of a run folder and of its control, read and checked, nothing imported."""

from __future__ import annotations

import json
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpap.errors import DPAPError
from dpap.report.history import History, ResultLine, read_history

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The files of one run, as data."""

    path: Path
    history: History
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    development: Arrays
    """`step`, `progress` (K,); `survival/<group>` and `alive/<group>` (K, units). Empty when nothing developed."""
    control: RunFiles | None = None

    @property
    def result(self) -> ResultLine | None:
        return self.history.result

    def setting(self, key: str, default: Any = None) -> Any:
        """The setting of that path, such as "model.neuron"; `default` where it is absent or the word "none"."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return default if value == "none" else value

    def groups(self) -> tuple[str, ...]:
        """The groups whose survival was recorded: those that can be pruned."""
        prefix = "survival/"
        return tuple(name.removeprefix(prefix) for name in self.development if name.startswith(prefix))


def read_run(path: Path) -> RunFiles:
    """The files of a run folder and, where its training has begun, of its control.

    Raises:
        DPAPError: a file is missing or damaged; it names the file.
    """
    run = _read_one(path)
    inner = path / "control"
    if not (inner / "history.jsonl").exists():  # no control, or one that has not completed an epoch yet
        return run
    return RunFiles(
        path=path,
        history=run.history,
        config=run.config,
        config_text=run.config_text,
        environment=run.environment,
        development=run.development,
        control=_read_one(inner),
    )


def _read_one(path: Path) -> RunFiles:
    if not (path / "config.toml").is_file():
        raise DPAPError(
            "This is no run folder: it holds no config.toml.",
            where=str(path / "config.toml"),
            fix="give the folder that `dpap train` printed",
        )
    text = _text(path / "config.toml")
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DPAPError(f"The config is not valid TOML: {error}.", where=str(path / "config.toml")) from error
    if not (path / "history.jsonl").is_file():
        raise DPAPError(
            "The run has no history: no epoch was completed.",
            where=str(path / "history.jsonl"),
            fix=f"go on with it: dpap resume {path}",
        )
    history = read_history(path / "history.jsonl")
    return RunFiles(
        path=path,
        history=history,
        config=config,
        config_text=text,
        environment=_environment(path / "environment.json"),
        development=_development(path / "development.npz") if history.development else {},
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DPAPError(f"The file cannot be read: {error}.", where=str(path)) from error


def _environment(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_text(path))
    except ValueError as error:
        raise DPAPError(f"The environment is not valid JSON: {error}.", where=str(path)) from error
    if not isinstance(values, dict):
        raise DPAPError("The environment is no JSON object.", where=str(path))
    return values


def _development(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the record of development, checked: equal lengths, and `alive` like `survival`."""
    try:
        # Opened here: NumPy leaves a file open that it does not understand. A lone array is no context manager.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {str(name): stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DPAPError(
            f"The record of development cannot be read: {error}.", where=str(path), fix="restore it from a copy"
        ) from error
    problem = _problem(arrays)
    if problem:
        raise DPAPError(f"The record of development is damaged: {problem}.", where=str(path))
    return arrays


def _problem(arrays: Arrays) -> str:
    """What is wrong with a record; empty when nothing is."""
    progress = arrays.get("progress")
    if progress is None or progress.ndim != 1:
        return "it holds no list `progress`"
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf":
            return f"{name} holds no numbers"
        if name.startswith(("survival/", "alive/")) and values.ndim != 2:
            return f"{name} has {values.ndim} axes instead of 2"
        if len(values) != len(progress):
            return f"{name} has {len(values)} steps, progress {len(progress)}"
        kind, _, group = name.partition("/")
        if kind == "survival" and arrays.get(f"alive/{group}", np.empty(0)).shape != values.shape:
            return f"alive/{group} does not fit survival/{group}"
    return ""
