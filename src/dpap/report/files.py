"""What a report is made from: the files of a run folder and of its control, read and checked, nothing imported."""

from __future__ import annotations

import json
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpap.errors import DPAPError
from dpap.report.history import History, ResultLine, read_history

Arrays = Mapping[str, npt.NDArray[Any]]

AXES = {"survival": 2, "alive": 2, "pairs": 3, "fired": 2, "raster": 2, "label": 1, "answer": 1, "frames": 5}
"""Of the arrays whose names begin so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The files of one run, as data."""

    path: Path
    history: History
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    development: Arrays
    """`step`, `progress` (K,); `survival/<group>` and `alive/<group>` (K, units); `pairs/<neuron>` (K, units, T) where
    time steps were pruned. Empty when nothing developed."""
    activity: Arrays
    """What `dpap.training.activity` describes; empty where there is no time, or the run is not finished."""
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

    @property
    def window(self) -> tuple[float, float] | None:
        """Epochs between which units are pruned; None where the rule knows no window."""
        run = self.history.run
        if run.rule in ("none", "paper", "released"):
            return None
        start, stop = self.setting("development.start"), self.setting("development.stop")
        return None if start is None or stop is None else (start * run.epochs, stop * run.epochs)

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
    return replace(run, control=_read_one(inner))


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
    activity = path / "activity.npz"
    return RunFiles(
        path=path,
        history=history,
        config=config,
        config_text=text,
        environment=_environment(path / "environment.json"),
        development=_checked(path / "development.npz", "of development", _problem) if history.development else {},
        activity=_checked(activity, "of activity", _activity_problem) if activity.exists() else {},
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


def _checked(path: Path, of: str, problem_of: Callable[[Arrays], str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a record in which nothing is wrong."""
    try:
        # Opened here: NumPy leaves a file open that it does not understand. A lone array is no context manager.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {str(name): stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DPAPError(
            f"The record {of} cannot be read: {error}.", where=str(path), fix="restore it from a copy"
        ) from error
    problem = problem_of(arrays)
    if problem:
        raise DPAPError(f"The record {of} is damaged: {problem}.", where=str(path))
    return arrays


def _problem(arrays: Arrays) -> str:
    """What is wrong with a record of development: unequal lengths, or `alive` unlike `survival`; empty: nothing."""
    progress = arrays.get("progress")
    if progress is None or progress.ndim != 1:
        return "it holds no list `progress`"
    for name, values in arrays.items():
        if values.dtype.kind not in "biuf":
            return f"{name} holds no numbers"
        axes = AXES.get(name.partition("/")[0], values.ndim)
        if values.ndim != axes:
            return f"{name} has {values.ndim} axes instead of {axes}"
        if len(values) != len(progress):
            return f"{name} has {len(values)} steps, progress {len(progress)}"
        kind, _, group = name.partition("/")
        if kind == "survival" and arrays.get(f"alive/{group}", np.empty(0)).shape != values.shape:
            return f"alive/{group} does not fit survival/{group}"
    return ""


def _activity_problem(arrays: Arrays) -> str:
    """What is wrong with a record of activity; empty when nothing is."""
    if not {"label", "answer"} <= arrays.keys():
        return "it holds no lists `label` and `answer`"
    for name, values in arrays.items():
        kind = name.partition("/")[0]
        if (values.dtype.kind != "U") if kind in ("label", "answer") else (values.dtype.kind not in "uif"):
            return f"{name} holds no {'names' if kind in ('label', 'answer') else 'numbers'}"
        if values.ndim != AXES.get(kind, values.ndim):
            return f"{name} has {values.ndim} axes instead of {AXES[kind]}"
        if kind in ("answer", "frames") and len(values) != len(arrays["label"]):
            return f"{name} has {len(values)} samples, label {len(arrays['label'])}"
    return ""
