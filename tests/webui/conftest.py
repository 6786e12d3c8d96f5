"""The stand-in for the web UI, for the tests that need no host."""

from __future__ import annotations

import pytest


@pytest.fixture
def open_webui(tmp_path):
    """open_webui(**flags) → a WebUI; the next one begins anew."""
    from webui.facade import harness  # needs torch, which the tests of the page do without

    opened = []

    def start(**more):
        harness.purge()
        webui = harness.WebUI(tmp_path / f"webui{len(opened)}", **more)
        opened.append(webui)
        return webui

    yield start
    for webui in opened:
        webui.close()


@pytest.fixture
def webui(open_webui):
    """A web UI in which the base of x.hyper.safetensors is loaded."""
    started = open_webui(no_half=True)
    started.load_base()
    return started
