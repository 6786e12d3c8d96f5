"""The package hypermerge_ext: installed, or beside these nodes; and what to say when its compiled part is missing."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from types import ModuleType

FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The root of the node pack."""


class MissingBinary(RuntimeError):
    """The compiled part of hyper-merge is not there; the message says how to get it."""


_found: ModuleType | None = None
_looking = threading.RLock()


def hypermerge() -> ModuleType:
    """The module hypermerge_ext.  Raises MissingBinary."""
    with _looking:
        return _found if _found is not None else _find()


def _find() -> ModuleType:
    global _found
    reasons = []
    for find in (_installed, lambda: importlib.import_module("...hypermerge_ext", __package__)):
        try:
            _found = find()
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


def _installed() -> ModuleType:
    """The installed package, passing over the sources beside these nodes: Forge keeps the folders of all its extensions
    at the front of sys.path, and the sources there may have no compiled part.
    """
    name = "hypermerge_ext"
    elsewhere = [path for path in sys.path if os.path.realpath(path) != os.path.realpath(FOLDER)]
    spec = None if name in sys.modules else importlib.machinery.PathFinder.find_spec(name, elsewhere)
    if spec is None or spec.loader is None:
        return importlib.import_module(name)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


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
