"""The package hypermerge_ext: installed, or beside these nodes; and what to say when its compiled part is missing."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The root of the node pack."""


class MissingBinary(RuntimeError):
    """The compiled part of hyper-merge is not there; the message says how to get it."""


_found: ModuleType | None = None


def hypermerge() -> ModuleType:
    """The module hypermerge_ext.  Raises MissingBinary."""
    global _found
    if _found is not None:
        return _found
    reasons = []
    for name, package in (("hypermerge_ext", None), ("...hypermerge_ext", __package__)):
        try:
            _found = importlib.import_module(name, package)
            return _found
        except ImportError as reason:
            reasons.append(str(reason))
    raise MissingBinary(
        f"hyper-merge is not installed in this Python ({reasons[0]}). Get it with\n"
        f"    {sys.executable} -m pip install hyper-merge\n"
        "or build it, with a C compiler and cJSON at hand, with\n"
        f"    {sys.executable} {os.path.join(FOLDER, 'install.py')}\n"
        "then start ComfyUI again."
    )


def part(name: str) -> ModuleType:
    """A module of hypermerge_ext: part("stored").  Raises MissingBinary, also for a package too old to have it."""
    package = hypermerge()
    try:
        return importlib.import_module(f"{package.__name__}.{name}")
    except ModuleNotFoundError as reason:
        if not (reason.name or "").startswith(package.__name__):
            raise
        raise MissingBinary(
            f"the installed hyper-merge {package.__version__} is older than these nodes. Bring it up to date with\n"
            f"    {sys.executable} -m pip install --upgrade hyper-merge\nthen start ComfyUI again."
        ) from reason
