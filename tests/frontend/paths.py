"""Where the browser tests find what they serve, and where they leave their pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
WEB = ROOT / "nodes" / "web"
FRONTENDS = Path(os.environ.get("HYPERMERGE_FRONTENDS", ROOT / "build" / "frontend"))
SCREENSHOTS = Path(os.environ.get("HYPERMERGE_SCREENSHOTS", ROOT / "build" / "screenshots"))
VERSIONS = ("1.45.21", "newest")
"""Folders of FRONTENDS."""


def static_files(version: str) -> Path:
    """The files of one comfyui-frontend-package; skips where it is not installed."""
    folder = FRONTENDS / version / "comfyui_frontend_package" / "static"
    if not folder.is_dir():
        pytest.skip(f"NO FRONTEND TESTS: comfyui-frontend-package {version} is not in {FRONTENDS / version} (make test-web)")
    return folder
