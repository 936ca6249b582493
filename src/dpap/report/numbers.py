"""What is compared of a run: its numbers, read from its folder."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dpap.errors import DPAPError
from dpap.report.arm_names import SAME, setting, shown
from dpap.report.files import RunFiles, read_run
from dpap.report.history import EpochLine, LayerResult, NeuronResult

Splits = Literal["validation", "test"]
Key = tuple[int, int | None]
"""Seed, and fold of a cross-validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochNumbers:
    """One epoch of a run."""

    accuracy: float | None
    """On the split that is compared; None where it was not measured."""
    seconds: float
    """Of training in this epoch."""
    connectivity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNumbers:
    """One finished run, as far as it is compared. Operations and energy are per sample."""

    path: str
    seed: int
    fold: int | None
    """Of a cross-validation; None: the published splits."""
    config: Mapping[str, Any]
    """As in config.toml."""
    environment: Mapping[str, Any]
    split: Splits
    """Where its accuracies come from."""
    accuracy: float
    """After the last epoch."""
    best_accuracy: float | None
    """The paper's protocol: the best epoch after the last pruning, chosen on the test split. None unless recorded."""
    correct: npt.NDArray[np.bool_] | None
    """(N,) which samples of the split are answered correctly; None where that is not recorded."""
    epochs: tuple[EpochNumbers, ...]
    connectivity: float
    connectivity_conv: float | None
    macs: float
    dense_macs: float
    synops: float
    energy_pj: float
    parameters: int
    dense_parameters: int
    layers: tuple[LayerResult, ...]
    neurons: tuple[NeuronResult, ...]
    seconds: float | None
    """Of training."""
    latency_ms: float | None
    dense_latency_ms: float | None

    @property
    def is_control(self) -> bool:
        """Whether nothing was pruned."""
        return bool(setting(self.config, "development.rule") == "none")

    @property
    def key(self) -> Key:
        """What pairs it with a run of another arm."""
        return self.seed, self.fold


def read_numbers(runs: Sequence[Path], *, split: Splits | None = None, controls: bool = True) -> list[RunNumbers]:
    """The numbers of run folders and, with `controls`, of the controls inside them that are not given themselves.

    Raises:
        DPAPError: as `compare_runs`.
    """
    files = _folders(runs, controls=controls)
    check_same([(item.path, item.config) for item in files])
    return [numbers_of(item, split) for item in files]


def numbers_of(files: RunFiles, split: Splits | None = None) -> RunNumbers:
    """What is compared of one run. With split "validation" nothing that was measured on test labels is in it.

    Raises:
        DPAPError: the run is not finished, its answers are missing or damaged, or the split was not measured.
    """
    result = files.result
    if result is None:
        raise DPAPError(
            f"The run is not finished: {len(files.history.epochs)} of {files.history.run.epochs} epochs are complete.",
            where=str(files.path),
            fix=f"go on with it: dpap resume {files.path}",
        )
    split = split or ("validation" if files.setting("data.hold_out", False) else "test")
    on_test = split == "test"
    accuracy = result.test_accuracy if on_test else files.history.epochs[-1].validation_accuracy
    if accuracy is None:
        raise DPAPError(
            "The run has no validation accuracy: it trained on the validation split.",
            where=str(files.path),
            fix="compare on the test split, or train with data.hold_out = true",
        )
    return RunNumbers(
        path=str(files.path),
        seed=files.history.run.seed,
        fold=None if files.setting("data.folds", None) is None else files.setting("data.fold", 0),
        config=files.config,
        environment=files.environment,
        split=split,
        accuracy=accuracy,
        best_accuracy=result.best_test_accuracy if on_test else None,
        correct=_answers(files.path / "answers.npz", result.test_samples, result.test_correct) if on_test else None,
        epochs=tuple(_epoch(line, on_test) for line in files.history.epochs),
        connectivity=result.connectivity,
        connectivity_conv=result.connectivity_conv,
        macs=result.macs,
        dense_macs=result.dense_macs,
        synops=result.synops,
        energy_pj=result.energy_pj,
        parameters=result.parameters,
        dense_parameters=result.dense_parameters,
        layers=tuple(result.layers),
        neurons=tuple(result.neurons),
        seconds=result.seconds,
        latency_ms=result.latency_ms,
        dense_latency_ms=result.dense_latency_ms,
    )


def _folders(runs: Sequence[Path], *, controls: bool) -> list[RunFiles]:
    if not runs:
        raise DPAPError("There is no run to compare.", fix="give run folders, such as runs/digits-snn-1")
    given: dict[Path, Path] = {}
    for path in runs:
        real = path.resolve()
        if real in given:
            raise DPAPError(
                "The same run is given twice.", where=f"{given[real]} and {path}", fix="leave one of them out"
            )
        given[real] = path
    files = [read_run(path) for path in runs]
    inside = [item.control for item in files if item.control is not None] if controls else []
    return files + [item for item in inside if item.path.resolve() not in given]


def _epoch(line: EpochLine, on_test: bool) -> EpochNumbers:
    accuracy = line.test_accuracy if on_test else line.validation_accuracy
    return EpochNumbers(accuracy=accuracy, seconds=line.seconds, connectivity=line.connectivity)


def _answers(path: Path, samples: int, right: int) -> npt.NDArray[np.bool_]:
    try:
        # np.load leaves a file that it opened itself open when it turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            correct: npt.NDArray[Any] = stored["correct"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        raise DPAPError(
            f"The answers of the run cannot be read: {error}.", where=str(path), fix="restore the file from a copy"
        ) from error
    if correct.dtype != np.bool_ or correct.shape != (samples,) or int(correct.sum()) != right:
        raise DPAPError(
            f"The answers do not fit the result of the run, which has {right:,} of {samples:,} right.",
            where=str(path),
            fix="restore the file from a copy",
        )
    return correct


def check_same(runs: Sequence[tuple[Path | str, Mapping[str, Any]]]) -> None:
    """Refuse runs whose accuracies cannot be compared, such as those of different data."""
    path, config = runs[0]
    for other_path, other in runs[1:]:
        for key, problem in SAME.items():
            mine, theirs = setting(config, key), setting(other, key)
            if mine != theirs:
                raise DPAPError(
                    f"{problem}: {key} is {shown(mine)} in one and {shown(theirs)} in another, so their accuracies "
                    "cannot be compared.",
                    where=f"{path} and {other_path}",
                    fix="compare them apart",
                )
