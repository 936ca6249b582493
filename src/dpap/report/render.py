"""Pages from templates: one HTML document that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dpap.atomic import replace_file
from dpap.errors import DPAPError


@cache
def _templates() -> Environment:
    # Whatever is not marked as markup is escaped: names of recipes, layers and files are the user's.
    return Environment(
        loader=PackageLoader("dpap.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def script() -> str:
    """The script of a run's report. The page is complete without it; it only shows values under the pointer."""
    return _templates().get_template("script.js").render()


def render(template: str, **values: Any) -> str:
    """A page: no network, no other file, light and dark."""
    script_hash = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    return _templates().get_template(template).render(policy=policy, **values)


def write_page(page: str, path: Path, what: str) -> Path:
    """Write a page; readers see the old one or the new one, never a part.

    Raises:
        DPAPError: it cannot be written.
    """
    try:
        replace_file(path, page.encode())
    except OSError as error:
        raise DPAPError(f"The {what} cannot be written: {error.strerror}.", where=str(path)) from error
    return path
