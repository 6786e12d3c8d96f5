"""What the tests share: the package must be the built one, and children must find the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # oracle.py, families.py

import hypermerge_ext  # noqa: E402  after the path; without its compiled part this says how to build it

# A shell that starts the tests in the background has them ignore SIGINT, and their children too: nothing could then be
# interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PACKAGE_ROOT = Path(hypermerge_ext.__file__).resolve().parent.parent

# Runs a command and prints its exit status and the peak of its resident memory in KiB.  A process between pytest and
# the command, because the peak of a child begins with the memory that its parent had when it started it.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.stderr)
"""


def _snapshot(folder) -> dict[str, tuple[int, int]]:
    return {entry.name: (entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(folder)}


@pytest.fixture(scope="session")
def snapshot():
    """snapshot(folder): every file, hidden ones too, with size and time."""
    return _snapshot


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment in which child processes find this very package."""
    path = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def cli(environment):
    """Runs hyper-merge in a process of its own: cli("solve", …, cwd=…) → CompletedProcess with text."""

    def run(*arguments, env=None, **more):
        command = [sys.executable, "-m", "hypermerge_ext", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**environment, **(env or {})}, **more
        )

    return run


@pytest.fixture(scope="session")
def refused(cli):
    """Runs a command that must be refused: exit 1, one line on stderr (returned), no file changed."""

    def run(folder, *arguments):
        before = _snapshot(folder)
        done = cli(*arguments, cwd=folder)
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("hyper-merge: error: ")
        assert _snapshot(folder) == before
        return done.stderr

    return run


@pytest.fixture(scope="session")
def peak_memory(environment):
    """Runs hyper-merge in a child; returns its peak resident memory in bytes."""

    def run(*arguments, cwd):
        command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "hypermerge_ext", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=True)
        code, kibibytes, *errors = done.stdout.split(maxsplit=2)
        assert code == "0", errors
        return int(kibibytes) * 1024

    return run


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium under Playwright's hand; skipped, and said so, where either is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("NO BROWSER TESTS: chromium is not installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
