"""The folder of a run: what is in it, and how it is written so that a run can end at any moment and go on from there.

    config.toml        the whole config; `dpap train config.toml` runs it again
    environment.json   what it ran on
    history.jsonl      what happened (`dpap.report.history`)
    development.npz    step, progress, and use/<group>, survival/<group>, alive/<group> of each development step
    checkpoint/        the state after each of the last two epochs
    model/             the network at the end (`dpap.load`)
    answers.npz        correct (N,): which test samples that network answers rightly
    activity.npz       what its neurons did at each time step (`dpap.training.activity`); only where there is time
    control/           the unpruned control, a run folder of its own

An epoch is complete once its checkpoint is there. A checkpoint says how far the other files had come, and going on
from it cuts off what they hold beyond that.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from dpap.config import Config, from_dict, read_config, to_dict, to_toml
from dpap.errors import DPAPError
from dpap.report.history import History, Line, from_text, read_history, to_text
from dpap.tensors import dpap_version, read_state, write_atomic, write_state, writing

log = logging.getLogger(__name__)

KEEP = 2  # the newest may be damaged by what ended the run; the one before it is then still there


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """A new folder with the config and the environment.

        Raises:
            DPAPError: the folder is there already and not empty, or cannot be written; nothing is left behind then.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DPAPError(
                "The run folder is there already.",
                where=str(path),
                fix=f"give another --out, or go on with it: dpap resume {path}",
            )
        made = not path.exists()
        try:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            folder = cls(path)
            write_atomic(folder.environment_path, json.dumps(environment(config.device), indent=1).encode())
            write_atomic(folder.config_path, to_toml(config).encode())
        except BaseException:
            if made:
                shutil.rmtree(path, ignore_errors=True)
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A folder that is there.

        Raises:
            DPAPError: it is no run folder.
        """
        folder = cls(path)
        if not folder.config_path.is_file():
            raise DPAPError(
                "This is no run folder: it holds no config.toml.",
                where=str(path),
                fix="give the folder that `dpap train` printed",
            )
        return folder

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def history_path(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def development_path(self) -> Path:
        return self.path / "development.npz"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoint"

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def control_path(self) -> Path:
        return self.path / "control"

    def warn_of_changes(self) -> None:
        """Say so when the run goes on where its bits may come out otherwise than where it began."""
        try:
            before = json.loads(self.environment_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        now = environment(self.config().device)
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            log.warning("The run began elsewhere, so its end may differ in the last bits: %s.", ", ".join(changed))

    def config(self) -> Config:
        return read_config(self.config_path)

    def history(self) -> History:
        return read_history(self.history_path)

    # history and development, up to a checkpoint

    def read_lines(self) -> list[Line]:
        """All lines of the history; none when it is not there yet."""
        if not self.history_path.exists():
            return []
        return from_text(self.history_path.read_text(encoding="utf-8"), str(self.history_path))

    def write_lines(self, lines: Sequence[Line]) -> None:
        write_atomic(self.history_path, to_text(lines).encode())

    def write_development(self, record: Mapping[str, npt.NDArray[Any]]) -> None:
        _write_arrays(self.development_path, record)

    def read_development(self, steps: int) -> dict[str, npt.NDArray[Any]]:
        """The record of the first `steps` development steps.

        Raises:
            DPAPError: the file is missing, damaged, or shorter than that.
        """
        if steps == 0:
            return {}
        try:
            with np.load(self.development_path, allow_pickle=False) as arrays:
                record = {name: arrays[name][:steps] for name in arrays.files}
        except (OSError, ValueError, EOFError) as error:
            raise DPAPError(
                f"The record of development cannot be read: {error}.", where=str(self.development_path)
            ) from error
        if any(len(values) < steps for values in record.values()):
            raise DPAPError(f"The record of development ends before step {steps}.", where=str(self.development_path))
        return record

    def write_answers(self, correct: Bool[Tensor, " N"]) -> None:
        _write_arrays(self.path / "answers.npz", {"correct": correct.cpu().numpy()})

    def write_activity(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        if arrays:
            _write_arrays(self.path / "activity.npz", arrays)

    # checkpoints

    def write_checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
        """The state after `epoch` epochs; all but the last two checkpoints go."""
        folder = self.checkpoints_path / f"epoch-{epoch:04d}"
        if folder.exists():  # from before a resume that had to go back to an older one
            shutil.rmtree(folder)
        write_state(folder, {"epoch": epoch, "config": to_dict(self.config()), **state})
        begun = self.checkpoints_path.glob(".epoch-*")  # what a run that was killed while writing left behind
        for old in (*self._checkpoints()[:-KEEP], *begun):
            shutil.rmtree(old)

    def newest_checkpoint(self) -> dict[str, Any] | None:
        """The newest state that can be read; None when no epoch was completed.

        Raises:
            DPAPError: there are checkpoints but all are damaged, or the config was changed since.
        """
        problem: DPAPError | None = None
        for folder in reversed(self._checkpoints()):
            try:
                state = read_state(folder)
            except DPAPError as error:
                log.warning("A checkpoint is passed over. %s", error)
                problem = problem or error
                continue
            if not self._began_with(state["config"]):
                raise DPAPError(
                    "The config was changed after the run began, so it cannot go on.",
                    where=str(self.config_path),
                    fix=f"change it back, or start a new run: dpap train {self.config_path}",
                )
            return state
        if problem is not None:
            raise problem
        return None

    def _checkpoints(self) -> list[Path]:
        return sorted(self.checkpoints_path.glob("epoch-*"))

    def _began_with(self, saved: dict[str, Any] | str) -> bool:
        """Whether the config of the folder is the one a checkpoint was written with."""
        if isinstance(saved, str):  # version 0.1.0 kept a checksum of the file
            return saved == hashlib.sha256(self.config_path.read_bytes()).hexdigest()
        return from_dict(saved) == self.config()


def _write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def restore(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put saved tensors, with their strides, into a model of the same shapes. Parameters stay the objects they are.

    Raises:
        DPAPError: other names, shapes or types; the model is untouched then.
    """
    present: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for name in present.keys() ^ values.keys():
        raise DPAPError("The checkpoint is of another network.", where=name)
    for name, value in values.items():
        if (value.shape, value.dtype) != (present[name].shape, present[name].dtype):
            raise DPAPError(
                f"The checkpoint is of another network: {name} is {tuple(value.shape)} there, "
                f"{tuple(present[name].shape)} here.",
                where=name,
            )
    with torch.no_grad():
        for name, value in values.items():
            tensor = present[name]
            if tensor.stride() != value.stride():
                tensor.data = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=tensor.device)
            tensor.copy_(value)


def environment(device: str) -> dict[str, Any]:
    """What a run runs on; no paths, no names of people or machines."""
    return {
        "dpap": dpap_version(),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """Of the checkout that the library runs from, "-dirty" behind it where files were changed; None elsewhere."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
