"""Builds hypermerge_ext._core: the C core in csrc/ and the binding, one binary for CPython 3.10 and later.

Everything but the extension is declared in pyproject.toml.  Environment switches, for those who work on the C code:
    HM_BUILD_SANITIZE=address,undefined   instrument everything (run Python with libasan preloaded)
    HM_BUILD_DEBUG=1                      -O0, with debug information
    HM_BUILD_WERROR=1                     many warnings, each an error
    CC, CFLAGS, LDFLAGS                   as usual
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import subprocess
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = os.path.dirname(os.path.abspath(__file__))
ASIDE = {"tests", "fuzz", "bench"}  # folders of csrc that are programs of their own
REMEDY = "install what is missing, on Debian or Ubuntu with: apt-get install gcc pkg-config libcjson-dev python3-dev"


def version() -> str:
    """The version: HM_VERSION in csrc/hypermerge.h, the only place that states it."""
    with open(os.path.join(ROOT, "csrc", "hypermerge.h"), encoding="utf-8") as header:
        found = re.search(r'^#define HM_VERSION "([^"]+)"', header.read(), re.MULTILINE)
    if found is None:
        raise SystemExit("hyper-merge: csrc/hypermerge.h does not define HM_VERSION")
    return found.group(1)


def sources() -> list[str]:
    """Every C file of the core and of the binding, relative to the root as setuptools wants it, in a fixed order."""
    core = glob.glob("csrc/**/*.c", root_dir=ROOT, recursive=True)
    core = [path for path in core if path.replace(os.sep, "/").split("/")[1] not in ASIDE]
    return sorted(core) + sorted(glob.glob("hypermerge_ext/*.c", root_dir=ROOT))


def refuse(reason: str) -> SystemExit:
    """One sentence instead of a compiler's traceback."""
    return SystemExit(f"hyper-merge: {reason}; {REMEDY}")


class build_core(build_ext):
    """build_ext which first looks whether the tools are there, and takes cJSON's flags from pkg-config."""

    def run(self) -> None:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
        if os.name == "posix" and shutil.which(compiler) is None:
            raise refuse(f"the C compiler ({compiler}) was not found")
        if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
            raise refuse("the headers of Python (Python.h) were not found")
        for extension in self.extensions:
            extension.extra_compile_args += self.cjson("--cflags")
            extension.extra_link_args += self.cjson("--libs")
        super().run()

    @staticmethod
    def cjson(what: str) -> list[str]:
        """Flags for libcjson; `what` is --cflags or --libs."""
        try:
            done = subprocess.run(["pkg-config", what, "libcjson"], capture_output=True, text=True, check=True)
        except FileNotFoundError:
            raise refuse("pkg-config was not found") from None
        except subprocess.CalledProcessError:
            raise refuse("pkg-config does not know libcjson") from None
        return shlex.split(done.stdout)


compile_args = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
link_args = ["-pthread", "-ldl"]
if os.environ.get("HM_BUILD_WERROR") == "1":
    compile_args += ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
if os.environ.get("HM_BUILD_DEBUG") == "1":
    compile_args += ["-O0", "-g3", "-UNDEBUG"]
if sanitizers := os.environ.get("HM_BUILD_SANITIZE"):
    compile_args += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"]
    link_args += [f"-fsanitize={sanitizers}"]

setup(
    version=version(),
    ext_modules=[
        Extension(
            "hypermerge_ext._core",
            sources=sources(),
            depends=glob.glob("csrc/**/*.h", root_dir=ROOT, recursive=True) + ["hypermerge_ext/_core.h"],
            include_dirs=["csrc", "hypermerge_ext"],
            define_macros=[("Py_LIMITED_API", "0x030A0000"), ("_GNU_SOURCE", None)],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": build_core},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
