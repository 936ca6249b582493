"""Everything the documentation shows is run: code of the pages, examples in docstrings. Public names are documented."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import foreign
import pytest
import torch

import dpap

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
"""(a library that dpap does not need, code)."""
MODULES = sorted(module.name for module in pkgutil.walk_packages(dpap.__path__, "dpap."))


def libraries(page: Path) -> list[str]:
    """What the blocks of a page need: "" for those that need nothing but dpap."""
    return sorted({library for library, _ in BLOCK.findall(page.read_text(encoding="utf-8"))})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "library"),
    [pytest.param(p, library, id=f"{p.name} {library}".strip()) for p in PAGES for library in libraries(p)],
)
def test_code_of_a_page_runs(page: Path, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in order and in one namespace, as a reader would type them, in an empty folder.

    Those below `<!-- needs: LIBRARY -->` run apart from the others, and not where that library is not installed.
    """
    if library:
        getattr(foreign, library)()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # frames of recordings are cached
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        if (match.group(1) or "") == library:
            line = text[: match.start(2)].count("\n")
            # Blank lines in front: an error names the line of the page.
            exec(compile("\n" * line + match.group(2), str(page), "exec"), namespace)


def test_the_front_page_shows_code() -> None:
    assert BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    shared = {"torch": torch, "tensor": torch.tensor, "dpap": dpap}
    shared = {name: value for name, value in shared.items() if not hasattr(module, name)}
    results = doctest.testmod(module, extraglobs=shared, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0


def test_some_docstring_has_an_example() -> None:
    finder = doctest.DocTestFinder()
    assert any(test.examples for name in MODULES for test in finder.find(importlib.import_module(name)))


@pytest.mark.parametrize("name", dpap.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    thing = getattr(dpap, name)
    if name.startswith("__"):  # __version__
        return
    assert (inspect.getdoc(thing) or "").strip(), f"dpap.{name} has no docstring"
    if inspect.isclass(thing) and thing.__module__.startswith("dpap."):
        for attribute, value in vars(thing).items():
            if inspect.isfunction(value) and not attribute.startswith("_"):
                assert (inspect.getdoc(value) or "").strip(), f"dpap.{name}.{attribute} has no docstring"


def test_the_public_names_are_few_and_exist() -> None:
    assert 1 <= len(dpap.__all__) <= 20
    assert len(set(dpap.__all__)) == len(dpap.__all__)
    assert all(hasattr(dpap, name) for name in dpap.__all__)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_a_heading_find_it(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", page.read_text(encoding="utf-8"))
    missing = [
        f"{file}#{anchor}" for file, anchor in targets if anchor not in anchors(page.parent / file if file else page)
    ]
    assert not missing


CARD_HEADINGS = (
    "What it does",
    "How to use it",
    "How we implement it",
    "Suggested values and where each comes from",
    "Where we differ from the paper and from the authors' released script, and why",
    "What we measured, with what did not help",
    "Limits",
    "Credit and citation",
    "API",
)


def test_the_method_card_has_its_headings() -> None:
    card = (ROOT / "docs" / "method-card.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.+)$", card, flags=re.MULTILINE)) == CARD_HEADINGS
    assert "TODO" not in card


def test_values_of_the_method_card_are_those_of_the_code() -> None:
    """A default that changes must change on the card too."""
    card = (ROOT / "docs" / "method-card.md").read_text(encoding="utf-8")
    values = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", card.split("## Where we differ")[0], flags=re.MULTILINE))
    arguments = inspect.signature(dpap.DPAP.__init__).parameters
    rule = inspect.signature(importlib.import_module("dpap.method.rules").dpap).parameters
    assert values["`start`, `stop`"] == f"{arguments['start'].default:.2f}, {arguments['stop'].default:.2f} of the run"
    assert values["`memory`"] == f"{arguments['memory'].default} of the run"
    assert values["`development_steps`"] == f"{arguments['development_steps'].default} a run"
    assert values["`observe_every`"] == str(arguments["observe_every"].default)
    assert values["kappa of units"] == str(rule["kappa_unit"].default)
    assert values["kappa of synapses"] == str(rule["kappa_synapse"].default)
    assert f"the recipe has {importlib.import_module('dpap.recipes').cifar10_released().epochs} epochs" in card


def test_all_scores_are_in_the_table() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z-]+)`", page.split("## Scores")[1].split("## ")[0], flags=re.MULTILINE)
    assert sorted(named) == sorted(importlib.import_module("dpap.method.scores").SCORES)
