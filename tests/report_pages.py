"""Pages as tests read them, and ways to spoil the files that they are made from."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "rect", "line", "path", "circle", "polygon"}


class Reader(HTMLParser):
    """Elements, ids and words of a page; whatever is opened must be closed, in order."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, words: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(words)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def ids(self) -> list[str]:
        return [identity for _, attributes in self.elements if (identity := attributes.get("id"))]

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]


def drawing(markup: str, name: str) -> ET.Element:
    """The SVG of that id."""
    found = re.search(rf'<svg id="{re.escape(name)}".*?</svg>', markup, flags=re.DOTALL)
    assert found, f"no drawing {name}"
    return ET.fromstring(found[0])


def classed(root: ET.Element, class_: str) -> list[dict[str, str]]:
    return [item.attrib for item in root.iter() if item.get("class") == class_]


# damage


def without(run: Path, name: str) -> None:
    (run / name).unlink()


def cut(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2 - 4])  # in the middle of a line


def other(run: Path, name: str) -> None:
    (run / name).write_bytes(b"\xff\xfe[1, 2]")
