"""What every test stands on: shapes checked while the tests run, fixed seeds, markers that skip by themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Before the first import of dpap: annotated shapes and types of the library are checked at every call. Not in graph/,
# which annotates no shapes: a custom operator reads its function's own globals, which a wrapper hides.
SOURCE = Path(__file__).resolve().parent.parent / "src" / "dpap"
PARTS = {path.stem for path in SOURCE.iterdir() if path.suffix in ("", ".py")} - {"graph", "__init__", "__pycache__"}
# Nor where a user's arguments arrive: they are refused in words.
PARTS |= {f"development.{path.stem}" for path in (SOURCE / "development").glob("*.py")}
PARTS -= {"development", "development.engine", "developer"}
if os.environ.get("DPAP_CHECK_SHAPES") == "1":  # in `make test-all`, for the tests of the method
    install_import_hook([f"dpap.{part}" for part in sorted(PARTS)], "shape_checks.check")

torch.set_num_threads(1)  # the tests are many and small; equal results must not rest on how many cores there are


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skips = {
        "gpu": pytest.mark.skip(reason="no CUDA device") if not torch.cuda.is_available() else None,
        "data": pytest.mark.skip(reason="DPAP_DATA is not set") if "DPAP_DATA" not in os.environ else None,
    }
    for item in items:
        for name, skip in skips.items():
            if skip is not None and name in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state, and leaves the default dtype, the threads and the data folder,
    which the command line names for its process, as they were."""
    torch.manual_seed(0)
    dtype, threads, data = torch.get_default_dtype(), torch.get_num_threads(), os.environ.get("DPAP_DATA")
    yield
    os.environ.pop("DPAP_DATA", None)
    if data is not None:
        os.environ["DPAP_DATA"] = data
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Where the larger data sets lie; only for tests marked `data`."""
    return Path(os.environ["DPAP_DATA"])
