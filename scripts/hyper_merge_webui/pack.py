"""What this extension shares with the nodes for ComfyUI: nodes/logic, which knows no host.

Imported under a name of its own, because the host's extensions share sys.modules and ComfyUI has a module `nodes` too.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The extension's folder."""

_NAME = "hyper_merge_pack"


def _logic(name: str) -> Any:
    """A module of nodes/logic."""
    if _NAME not in sys.modules:
        root = ModuleType(_NAME)
        root.__path__ = [ROOT]
        sys.modules[_NAME] = root
    return importlib.import_module(f"{_NAME}.nodes.logic.{name}")


base = _logic("base")
binary = _logic("binary")
cache = _logic("cache")
directions = _logic("directions")
hyper = _logic("hyper")
keys = _logic("keys")
points = _logic("points")
text = _logic("text")

hypermerge = binary.hypermerge
part = binary.part
MissingBinary = binary.MissingBinary
Hyper = hyper.Hyper
Part = directions.Part
identity_of = hyper.identity_of


def missing() -> str | None:
    """What to do about a compiled part that is not there, for the tab; None when it is there."""
    try:
        hypermerge()
    except MissingBinary as reason:
        return str(reason).replace("start ComfyUI again", "start the web UI again")
    return None
