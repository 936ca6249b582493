"""The tables of mutants follow the code: a line that moved or changed would otherwise be noticed only when they run."""

from __future__ import annotations

from pathlib import Path

import graph_mutants
import mutants
import pytest


@pytest.mark.parametrize("table", [mutants.MUTANTS, graph_mutants.MUTANTS], ids=["method", "graph"])
def test_every_mutant_changes_one_place(table: tuple[mutants.Mutant, ...], repository: Path) -> None:
    texts = {name: (repository / "src" / "dpap" / name).read_text(encoding="utf-8") for name in {m.file for m in table}}
    stale = [(m.file, m.old) for m in table if texts[m.file].count(m.old) != 1]
    assert not stale
    assert all(m.old != m.new for m in table)
