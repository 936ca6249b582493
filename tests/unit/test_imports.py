"""Imports point one way: the command line knows everything, the method's equations know nothing but tensors."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import dpap

SOURCE = Path(dpap.__file__).parent
SHAPES = {"__future__", "collections", "copy", "dataclasses", "functools", "math", "typing", "torch", "jaxtyping"}

# What each part may import of dpap, besides itself. A part without a place here fails the test.
ALLOWED: dict[str, set[str]] = {
    "atomic": set(),
    "errors": set(),
    "hooks": set(),
    "method": {"errors"},
    "neurons": {"errors"},
    "models": {"errors", "neurons"},
    "data": {"atomic", "errors"},
    "report": {"atomic", "errors", "metrics"},
    "graph": {"errors", "hooks", "neurons"},
    "metrics": {"errors", "graph", "time"},
    "time": {"errors", "graph", "hooks", "neurons"},
    # metrics: a target of latency is met by measuring
    "pruning": {"errors", "graph", "hooks", "method", "metrics", "processes", "time"},
    "processes": {"errors"},
    # report: the one reader of a run's history outside reports, since a record says how many die
    "development": {"errors", "graph", "hooks", "method", "processes", "pruning", "report", "time"},
    "developer": {"development", "errors", "graph", "hooks", "method", "processes", "pruning", "time"},
    "tensors": {"atomic", "errors"},
    "io": {"errors", "graph", "models", "tensors", "time"},
    "config": {"data", "errors", "method", "models"},
    "recipes": {"config", "errors"},
    "training": {
        "config",
        "data",
        "developer",
        "development",
        "errors",
        "graph",
        "io",
        "method",
        "metrics",
        "models",
        "pruning",
        "report",
        "tensors",
        "time",
    },
    "inspection": {"graph", "method", "metrics"},
    "inspection_table": {"graph", "inspection"},
    "find_model": {"config", "data", "errors", "io", "models", "recipes", "training"},
    "cli": {
        "config",
        "data",
        "errors",
        "find_model",
        "inspection",
        "inspection_table",
        "recipes",
        "report",
        "training",
    },
    "__main__": {"cli"},
}


def modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of every module of the package but its front page."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ("dpap", *path.relative_to(SOURCE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "dpap":
            found.append((name, path))
    assert found, "no module found: the test would check nothing"
    return found


def imports(name: str, path: Path) -> set[str]:
    """Absolute dotted names of everything the file imports, inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    filter(None, [".".join(package.split(".")[: len(package.split(".")) - node.level + 1]), base])
                )
            found |= {f"{base}.{alias.name}" if _is_module(f"{base}.{alias.name}") else base for alias in node.names}
    return found


def _is_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return name.startswith("dpap.") and (path.is_dir() or path.with_suffix(".py").exists())


def part(name: str) -> str:
    """`graph` for `dpap.graph.walk`."""
    return name.split(".")[1] if "." in name else name


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_its_part_may(name: str, path: Path) -> None:
    assert part(name) in ALLOWED, f"{name} has no place in the table of this test"
    wanted = {part(other) for other in imports(name, path) if other == "dpap" or other.startswith("dpap.")}
    assert "dpap" not in wanted, f"{name} imports the front page, which imports it"
    surplus = wanted - ALLOWED[part(name)] - {part(name)}
    assert not surplus, f"{name} imports {sorted(surplus)}"


@pytest.mark.parametrize("name", ["plasticity", "survival"])
def test_the_equations_import_only_torch_and_shapes(name: str) -> None:
    roots = {other.split(".")[0] for other in imports(f"dpap.method.{name}", SOURCE / "method" / f"{name}.py")}
    assert roots - {"dpap"} <= SHAPES


def test_no_module_imports_itself_by_a_detour() -> None:
    files = dict(modules())
    left = {name: {o for o in imports(name, path) if o in files} - {name} for name, path in files.items()}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_nobody_imports_a_private_name(name: str, path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dpap"):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.endswith("__")]
            assert not private, f"{name} imports {private} of {node.module}"


def test_the_table_points_one_way() -> None:
    order: list[str] = []
    left = {name: set(allowed) for name, allowed in ALLOWED.items()}
    while left:
        free = sorted(name for name, needs in left.items() if needs <= set(order))
        assert free, f"a circle among {sorted(left)}"
        order += free
        for name in free:
            del left[name]
    assert order[-2:] == ["cli", "__main__"]


def test_the_command_line_is_imported_by_nobody_but_its_other_name() -> None:
    assert [name for name, allowed in ALLOWED.items() if "cli" in allowed] == ["__main__"]
    assert not [name for name, allowed in ALLOWED.items() if "__main__" in allowed]


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages([str(SOURCE)], "dpap.")])
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_importing_dpap_is_quiet_and_leaves_the_command_line_out() -> None:
    code = "import sys, dpap; print(sorted(m for m in sys.modules if m in ('typer', 'rich', 'dpap.cli', 'matplotlib')))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_one_version(repository: Path) -> None:
    assert version("dpap") == dpap.__version__, "installed before the version changed: run `make setup`"
    assert f"\nversion: {dpap.__version__}\n" in (repository / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\]", changelog, flags=re.MULTILINE)
    assert "## [Unreleased]" in changelog
    assert not released or released[0] == dpap.__version__
