"""Makes docs/api.md from signatures and docstrings: `python docs/make_api.py`; with `--check`, says if it is current.

A public name without a docstring is an error. Public is what a module's `__all__` names; where it has none, every
class, function and registry that the module defines, unless it begins with an underscore.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "dpap",
    "dpap.neurons",
    "dpap.models",
    "dpap.data",
    "dpap.data.augment",
    "dpap.metrics",
    "dpap.method.scores",
)
MODULES += ("dpap.method.rules", "dpap.development.replay", "dpap.recipes", "dpap.report.history", "dpap.report.page")
MODULES += ("dpap.report.compare",)
PAGE = Path(__file__).with_name("api.md")
HEAD = """# API

All public names, with the first paragraph of what they say about themselves; `help(name)` says the rest. Made by
`python docs/make_api.py`. Everything else may change without notice.
"""


class _Plain(str):
    """Shown without quotes."""

    __repr__ = str.__str__


def public_names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        named = (name for name in module.__all__ if not name.startswith("__"))
        return [name for name in named if not inspect.ismodule(getattr(module, name))]  # a module has its own section
    return [name for name, value in vars(module).items() if not name.startswith("_") and _is_own(module, name, value)]


def _is_own(module: ModuleType, name: str, value: Any) -> bool:
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__module__ == module.__name__
    return name.isupper() and isinstance(value, Mapping) and all(callable(entry) for entry in value.values())


def paragraph(thing: Any, name: str) -> str:
    """The first paragraph of a docstring."""
    text = inspect.getdoc(thing) or ""
    if not text or (inspect.isclass(thing) and text.startswith(f"{thing.__name__}(")):  # made up by `dataclass`
        raise SystemExit(f"{name} has no docstring")
    return " ".join(text.split("\n\n")[0].split())


def signature(thing: Callable[..., Any], width: int = 100) -> str:
    """Arguments as they are written, without quotes and addresses; each on its own line where they are many."""
    found = inspect.signature(thing)
    shown = []
    for p in found.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not any(part.startswith("*") for part in shown):
            shown.append("*")
        note = _Plain(p.annotation) if isinstance(p.annotation, str) else p.annotation
        default = _Plain(p.default.__name__) if inspect.isfunction(p.default) else p.default
        if isinstance(default, frozenset):  # whose own order is another in each process
            default = _Plain(f"frozenset({{{', '.join(sorted(map(repr, default)))}}})")
        shown += [] if p.name == "self" else [str(p.replace(annotation=note, default=default))]
    after = "" if inspect.isclass(thing) else f" -> {found.return_annotation}"
    text = f"({', '.join(shown)}){after}"
    return text if len(text) <= width else "(\n    " + ",\n    ".join(shown) + f",\n){after}"


def entry(module: ModuleType, name: str) -> Iterator[str]:
    """A heading, how to call it, what it is; of a class its methods, of a registry what is in it."""
    thing, full = getattr(module, name), f"{module.__name__}.{name}"
    yield f"### {full}"
    if isinstance(thing, Mapping):
        yield "A registry: " + ", ".join(f"`{key}`" for key in thing) + "."
    elif not (inspect.isclass(thing) or inspect.isfunction(thing)):
        yield f"`{sorted(thing) if isinstance(thing, frozenset) else thing}`"
    else:
        yield f"```\n{name}{signature(thing)}\n```"
        yield paragraph(thing, full)
    if inspect.isclass(thing):
        methods = [(n, f) for n, f in vars(thing).items() if inspect.isfunction(f) and not n.startswith("_")]
        said = [(f, f"- `{n}{signature(f, 999)}`: {paragraph(getattr(thing, n), f'{full}.{n}')}") for n, f in methods]
        yield "\n".join(line for f, line in said if f.__doc__)  # nothing that is only inherited


def page() -> str:
    parts = [HEAD.rstrip()]
    for name in MODULES:
        module = importlib.import_module(name)
        parts += [f"## {name}", paragraph(module, name)]
        parts += [part for public in public_names(module) for part in entry(module, public) if part]
    return re.sub(r" at 0x[0-9a-f]+", "", "\n\n".join(parts)) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/api.md is not current: run python docs/make_api.py")
