"""The examples run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_minimal(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = repository / "examples" / "minimal.py"
    spec = importlib.util.spec_from_file_location("minimal", path)
    assert spec is not None
    assert spec.loader is not None
    minimal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal)
    pruned, control = minimal.main(epochs=4)
    assert pruned > 0.6
    assert control > 0.9
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert re.search(r"^pruned +[\d.]+% +(9\.9\d|10\.00)%", rows[1])
    assert re.search(r"^not pruned +[\d.]+% +100\.00%", rows[2])
    assert len(path.read_text().splitlines()) <= 150


def test_the_header_states_the_measured_result(repository: Path) -> None:
    header = (repository / "examples" / "minimal.py").read_text().split('"""')[1]
    assert re.search(r"Measured with \d+ seeds .*: [\d.]+ ± [\d.]+ %.* seconds on ", header.replace("\n", " ")), (
        "mean over seeds, seconds, hardware"
    )
