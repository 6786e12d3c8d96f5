"""Gets hyper-merge's compiled part into this Python: a wheel, else a build of this folder, else says what is missing.

Run by ComfyUI-Manager, by Automatic1111 and Forge before they start, or by hand: python install.py
Only hyper-merge itself is installed, without dependencies, so nothing that a host has chosen is changed: torch least of
all.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
NAME = "hyper-merge"
DEBIAN = "apt-get install gcc pkg-config libcjson-dev python3-dev"


def version() -> str | None:
    """The version that belongs to this folder; None where its sources were left out."""
    try:
        with open(os.path.join(FOLDER, "csrc", "hypermerge.h"), encoding="utf-8") as header:
            found = re.search(r'^#define HM_VERSION "([^"]+)"', header.read(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1) if found else None


def installed() -> str | None:
    """The version that this Python finds, or None; asked from elsewhere, because here lie the sources."""
    code = "import hypermerge_ext; print(hypermerge_ext.__version__)"
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def installer() -> list[str] | None:
    """The command that installs packages here: pip, or uv where there is no pip."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    uv = shutil.which("uv")
    return [uv, "pip", "install", "--python", sys.executable] if uv else None


def install(command: list[str], *arguments: str) -> str | None:
    """Runs it; None when it worked, else what it said last."""
    done = subprocess.run([*command, "--upgrade", "--no-deps", *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    # setup.py says in one sentence what it lacks; pip wraps that into many.
    ours = [line.strip() for line in lines if "hyper-merge: " in line]
    return (ours or lines or ["no reason given"])[-1]


def missing() -> list[str]:
    """What a build of this folder lacks."""
    lacking = []
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if os.name == "posix" and shutil.which(compiler) is None:
        lacking.append(f"a C compiler ({compiler})")
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        lacking.append("the headers of Python")
    if shutil.which("pkg-config") is None:
        lacking.append("pkg-config")
    elif subprocess.run(["pkg-config", "--exists", "libcjson"], capture_output=True).returncode != 0:
        lacking.append("cJSON (libcjson)")
    return lacking


def main() -> int:
    wanted, there = version(), installed()
    if there is not None and wanted in (None, there):
        return 0
    command = installer()
    if command is None:
        print(f"{NAME}: neither pip nor uv is here; install the package {NAME} into {sys.executable} yourself")
        return 1
    print(f"{NAME}: installing its compiled part")
    failed = install(command, "--only-binary", NAME, NAME if wanted is None else f"{NAME}=={wanted}")
    if failed is not None and wanted is not None:
        lacking = missing()
        if lacking:
            failed = (
                f"there is no wheel for this Python, and to build it {' and '.join(lacking)} must be installed first"
            )
            failed += f"; on Debian or Ubuntu: {DEBIAN}" if os.path.exists("/etc/debian_version") else ""
        else:
            failed = install(command, FOLDER)
    if failed is None and installed() is None:
        failed = "it was installed, but cannot be imported"
    if failed is not None:
        print(f"{NAME}: {failed}")
        print(f"{NAME}: its nodes and its tab will say so too; then run: {sys.executable} {os.path.abspath(__file__)}")
        return 1
    print(f"{NAME}: ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
