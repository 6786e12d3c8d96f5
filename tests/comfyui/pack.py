"""The node pack as ComfyUI imports it: under a name of its own, from its root folder."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
NAME = "hyper_merge_pack"


def root() -> ModuleType:
    """The root module, with no more imported than it does itself."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


def part(name: str) -> ModuleType:
    """part("logic.keys"): a module of nodes/."""
    root()
    return importlib.import_module(f"{NAME}.nodes.{name}")
