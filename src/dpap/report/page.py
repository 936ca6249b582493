"""`report.html`: a run on one page that needs nothing but itself.

    page(run)           the page as text; depends on the files of the run folder alone
    write_report(run)   writes it into the folder

What the page says is read from the files of the run (`files.py`), worked out in `head.py` and `sections.py`, and laid
out by the templates.
"""

from __future__ import annotations

from pathlib import Path

from dpap.report import tables
from dpap.report.files import read_run
from dpap.report.head import notices, sentence, what
from dpap.report.render import render, write_page
from dpap.report.sections import SECTIONS

NAME = "report.html"


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder; readers see the old page or the new one, never a part.

    Raises:
        DPAPError: a file of the run is missing or damaged (it names the file), or the page cannot be written.
    """
    return write_page(page(run), run / NAME, "report")


def page(run: Path) -> str:
    """The report of a run as one HTML document: no network, no other file, light and dark.

    Raises:
        DPAPError: a file of the run is missing or damaged; it names the file.
    """
    files = read_run(run)
    control = files.control.result if files.control is not None else None
    return render(
        "run.html",
        recipe=files.history.run.recipe,
        credit=files.history.run.credit,
        what=what(files),
        lead=sentence(files),
        tiles=tables.tiles(files.result, control) if files.result is not None else [],
        notices=notices(files),
        sections=[(name, title, content) for name, title, make in SECTIONS if (content := make(files)) is not None],
        version=files.environment.get("dpap", ""),
    )


__all__ = ["NAME", "page", "write_report"]
