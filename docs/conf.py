"""Sphinx: `make docs` builds these pages and the API and runs the notebooks; a warning is an error."""

import re
from importlib import metadata

project = "dpap"
author = "the dpap developers"
release = metadata.version("dpap")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"dpap {release}"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False

myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

# Docstrings are plain text with `names` in backticks, read with help(): |w| and x * y are no markup there.
default_role = "code"


def _plain(app, what, name, obj, options, lines):
    for k, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...", "..", ":")):
            lines[k] = re.sub(r"(?<!\\)([|*])", r"\\\1", line)


def setup(app):
    app.connect("autodoc-process-docstring", _plain, priority=900)
