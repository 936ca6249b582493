"""The API page is current, complete, and cannot be made while a public name is undocumented."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def make_api(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", repository / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(repository: Path) -> None:
    # In a process of its own: here the library's functions are wrapped by the shape checks.
    command = [sys.executable, str(repository / "docs" / "make_api.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_old_page_is_not_current(repository: Path, tmp_path: Path) -> None:
    script = tmp_path / "make_api.py"
    script.write_text((repository / "docs" / "make_api.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "api.md").write_text("# API\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "not current" in done.stderr


def test_every_public_name_has_a_heading(make_api: ModuleType, repository: Path) -> None:
    text = (repository / "docs" / "api.md").read_text(encoding="utf-8")
    names = [
        f"### {name}.{public}"
        for name in make_api.MODULES
        for public in make_api.public_names(importlib.import_module(name))
    ]
    assert len(names) > 50
    lines = set(text.splitlines())
    assert [name for name in names if name not in lines] == []


def undocumented() -> None: ...


@dataclass(frozen=True)
class Undocumented:
    number: int


class HalfDocumented:
    """Itself is."""

    def method(self) -> None: ...


@pytest.mark.parametrize("thing", [undocumented, Undocumented, HalfDocumented])
def test_a_name_without_a_docstring_is_an_error(make_api: ModuleType, thing: type) -> None:
    module = ModuleType("mine", "A module.")
    thing.__module__ = "mine"
    setattr(module, thing.__name__, thing)
    assert make_api.public_names(module) == [thing.__name__]
    with pytest.raises(SystemExit, match="has no docstring"):
        list(make_api.entry(module, thing.__name__))


def test_how_a_signature_is_shown(make_api: ModuleType) -> None:
    def few(a: int, *, b: str | None = "x") -> bool:
        raise NotImplementedError

    def many(first_of_the_arguments: int, second_of_the_arguments: int, *, third_of_the_arguments: float = 0.1) -> int:
        raise NotImplementedError

    assert make_api.signature(few) == "(a: int, *, b: str | None = 'x') -> bool"
    assert make_api.signature(many).splitlines() == [
        "(",
        "    first_of_the_arguments: int,",
        "    second_of_the_arguments: int,",
        "    *,",
        "    third_of_the_arguments: float = 0.1,",
        ") -> int",
    ]
