"""What `gpu.py` and its stages share: steps, and the store of their results."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dpap.atomic import replace_file
from dpap.errors import DPAPError

PACKAGES = ("torch", "triton", "cupy-cuda13x", "spikingjelly", "snntorch", "numpy")
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to measure.

    Args:
        key: Names it in the results.
        run: (deadline on the monotonic clock, function that writes down an intermediate result) -> result. A result
            with the key "missing" says what it lacked; one with "partial", that time ran out.
        seconds: How long it will take, as far as known.
    """

    key: str
    run: Callable[[float, Callable[[Result], None]], Result]
    seconds: Callable[[], float] = lambda: 0.0


@dataclass
class Store:
    """The results of all stages, a JSON file for each."""

    folder: Path
    tiny: bool
    commit: str = "unknown"
    _rows: dict[str, dict[str, Result]] = field(default_factory=dict)

    def rows(self, stage: str) -> dict[str, Result]:
        """Key -> result, incomplete ones included.

        Raises:
            DPAPError: They are of the other kind, tiny or real.
        """
        if stage not in self._rows:
            path = self.folder / f"{stage}.json"
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tiny": self.tiny, "rows": {}}
            if found["tiny"] != self.tiny:
                kinds = ("tiny", "real") if found["tiny"] else ("real", "tiny")
                raise DPAPError(
                    f"The results there are {kinds[0]}, and these would be {kinds[1]}.",
                    where=str(path),
                    fix="name another folder with --results.",
                )
            self._rows[stage] = found["rows"]
        return self._rows[stage]

    def done(self, stage: str, key: str) -> bool:
        return not self.rows(stage).get(key, {"missing": ""}).keys() & {"missing", "partial"}

    def put(self, stage: str, key: str, result: Result) -> None:
        """Write one result down, with what it was measured on."""
        self.rows(stage)[key] = {**result, **environment(self.commit)}
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"stage": stage, "tiny": self.tiny, "rows": self.rows(stage)}
        replace_file(self.folder / f"{stage}.json", (json.dumps(content, indent=1) + "\n").encode())


def environment(commit: str) -> Result:
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "versions": versions, "commit": commit}


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the stages are told."""

    device: str
    tiny: bool
    store: Store
