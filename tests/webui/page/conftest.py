"""Pages in the real Gradio 3.41.2 (Automatic1111) and 4.40.0 (Forge), each served by a Python of its own.

`make test` makes build/gradio/VERSION with the Python of the tests, which must be 3.12 or older for these versions: the
server finds torch and hypermerge_ext where the tests do.  What is missing is skipped, and said so in pytest's summary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from webui.page.driver import Page

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
GRADIO = Path(os.environ.get("HYPERMERGE_GRADIO", ROOT / "build" / "gradio"))
SCREENSHOTS = Path(os.environ.get("HYPERMERGE_SCREENSHOTS", ROOT / "build" / "screenshots"))
VERSIONS = ("3.41.2", "4.40.0")


class Server:
    """A page of the extension, the same without its compiled part, and the folder of the web UI behind both."""

    def __init__(self, version: str, folder: Path) -> None:
        python = GRADIO / version / "bin" / "python"
        if not python.exists():
            pytest.skip(
                f"NO GRADIO TESTS: Gradio {version} is not in {python.parents[1]} (make test-web, Python <= 3.12)"
            )
        import hypermerge_ext

        # The built package first; then what belongs to this Python.
        found = [Path(hypermerge_ext.__file__).parents[1], sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
        paths = [str(path) for path in dict.fromkeys([HERE.parents[1], *found])]
        self.version, self.folder = version, folder
        self.log = folder.with_suffix(".log")
        with open(self.log, "w") as log:
            command = [str(python), "-P" if sys.version_info >= (3, 11) else "-s", str(HERE / "server.py"), str(folder)]
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "PYTHONDONTWRITEBYTECODE": "1"}
            self.process = subprocess.Popen(
                [*command, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        for line in self.process.stdout:
            if line.startswith("{"):
                self.urls = json.loads(line)
                return
        pytest.fail(f"the page of Gradio {version} did not come up:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture(scope="module", params=VERSIONS)
def server(request, tmp_path_factory):
    started = Server(request.param, tmp_path_factory.mktemp("webui") / "data")
    yield started
    started.close()


@pytest.fixture
def page(browser, server):
    """A page that a person has just opened; what its scripts complain of fails the test."""
    opened = Page(browser, server.urls["page"], server.folder)
    yield opened
    opened.close()
    assert opened.errors == []


@pytest.fixture
def screenshot(server):
    """screenshot(page, name)"""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page, name):
        page.page.screenshot(path=SCREENSHOTS / f"webui-{server.version}-{name}.png", full_page=True)

    return take
