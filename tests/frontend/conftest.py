"""A map to show in the browser, and a folder for screenshots.

What is missing is skipped, and said so in pytest's summary: `make test` installs playwright, Debian's chromium, and the
frontend packages (build/frontend) where it can.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frontend.paths import ROOT, SCREENSHOTS


@pytest.fixture(scope="session")
def demo_map() -> dict:
    """The map document of the embedded family, solved now: what the routes of the hosts send."""
    import hypermerge_ext as hm
    from hypermerge_ext.pictures.geometry import map_document

    models = sorted((ROOT / "demo" / "models").glob("*-*.safetensors"))
    assert len(models) == 8
    return json.loads(json.dumps(map_document(hm.solve(models))))


@pytest.fixture(scope="session")
def screenshots() -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
