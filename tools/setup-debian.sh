#!/bin/sh
# What the build needs from the system: looked for first, installed with apt-get only where it is missing.
#
#   tools/setup-debian.sh [PYTHON [browser|fuzzer]]   PYTHON is the interpreter that is going to be used (python3);
#                                                     browser: Chromium too, which the tests of the browser side drive;
#                                                     fuzzer: clang with libFuzzer too, for the tests of the C core
#
# Exit 0: all is there.  Exit 1: something is missing and could not be installed; the last line says what to do.
set -eu
python=${1:-python3}

missing=
lacks() { missing="$missing $*"; }

# A header is there when the compiler finds it: gcc without the C library's headers compiles nothing.
if ! command -v gcc >/dev/null || ! echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1; then lacks gcc libc6-dev; fi
command -v make >/dev/null || lacks make
command -v pkg-config >/dev/null || lacks pkg-config
pkg-config --exists libcjson 2>/dev/null || lacks libcjson-dev
# Not linked, but loaded for low-rank directions and LoRAs; the compiler answers with the bare name of what it does not find.
case $(gcc -print-file-name=libopenblas.so.0 2>/dev/null) in */*) ;; *) lacks libopenblas0-pthread ;; esac
if [ "${2:-}" = browser ] && ! command -v chromium >/dev/null; then lacks chromium; fi
if [ "${2:-}" = fuzzer ] && ! echo 'int LLVMFuzzerTestOneInput(const char *d, long n); int LLVMFuzzerTestOneInput(
    const char *d, long n) { return d && n < 0; }' | clang -fsanitize=fuzzer,address -x c - -o /dev/null 2>/dev/null; then
    lacks clang libclang-rt-dev
fi

if ! command -v "$python" >/dev/null; then
    if [ "$python" != python3 ]; then
        echo "$python was not found; give another interpreter: make PYTHON=python3 ..." >&2
        exit 1
    fi
    lacks python3 python3-venv python3-dev
else
    # One line: version, the interpreter that a virtual environment is made from, and what it lacks.
    about=$("$python" - <<'END'
import importlib.util, os, sys, sysconfig
lacks = []
if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
    lacks.append("venv")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    lacks.append("dev")
enough = "enough" if sys.version_info >= (3, 10) else "old"
print(enough, "%d.%d" % sys.version_info[:2], os.path.realpath(sys.executable), *lacks)
END
    ) || { echo "$python does not run; give another interpreter: make PYTHON=python3 ..." >&2; exit 1; }
    set -- $about
    enough=$1 version=$2 where=$3
    shift 3
    if [ "$enough" = old ]; then
        echo "$python is Python $version; 3.10 or later is needed: make PYTHON=python3.11 ..." >&2
        exit 1
    fi
    for part in "$@"; do
        case $where in
            /usr/bin/*) lacks "python$version-$part" ;;
            *) echo "$python ($where) lacks its $part part, and no package has it; try make PYTHON=/usr/bin/python3" >&2
               exit 1 ;;
        esac
    done
fi

[ -n "$missing" ] || exit 0
echo "Needed from the system:$missing"
install="apt-get install -y --no-install-recommends$missing"
if ! command -v apt-get >/dev/null; then
    echo "there is no apt-get here; install what corresponds to:$missing" >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    root=
elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    root=sudo
else
    echo "run this as root, then make again: $install" >&2
    exit 1
fi
$root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive $install || {
    echo "apt-get could not install them; this has to work first: $install" >&2
    exit 1
}
