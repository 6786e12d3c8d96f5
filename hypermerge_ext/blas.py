"""OpenBLAS from the package scipy-openblas32, for machines whose system has none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from . import _core


def packaged() -> Path | None:
    """The library in scipy-openblas32, which is not imported; None where it is not installed."""
    try:
        found = importlib.util.find_spec("scipy_openblas32")
    except (ImportError, ValueError):
        return None
    folders = found.submodule_search_locations if found is not None else None
    libraries = [path for folder in folders or () for path in sorted(Path(folder, "lib").glob("libscipy_openblas*"))]
    return libraries[0] if libraries else None


def offer_packaged() -> None:
    """Lets the compiled part look there first, when it needs OpenBLAS."""
    library = packaged()
    if library is not None:
        _core.blas_library(library)
