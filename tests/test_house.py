"""Rules of the house that no compiler checks: what the C core must not do, how long a file may be, what is tested."""

from __future__ import annotations

import re
from pathlib import Path

import hypermerge_ext

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".ci", "bench", "csrc", "demo", "hypermerge_ext", "javascript", "nodes", "scripts", "tests", "tools")
KINDS = {".c", ".css", ".h", ".js", ".md", ".mjs", ".py", ".pyi", ".sh", ".txt", ""}
ASIDE = {"tests", "fuzz", "bench"}  # folders of csrc that hold programs, which may print and exit

CORE = sorted(
    path for path in (ROOT / "csrc").rglob("*.[ch]") if path.relative_to(ROOT / "csrc").parts[0] not in ASIDE
)


def is_cache(path: Path) -> bool:
    """What tools leave beside the sources: __pycache__, .ruff_cache, demo/out …"""
    parts = path.relative_to(ROOT).parts
    return any(part in ("__pycache__", "out") or part.startswith(".") and part != ".ci" for part in parts)


FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix in KINDS and not is_cache(path)
) + sorted(path for path in ROOT.iterdir() if path.is_file() and path.suffix in KINDS - {".txt"})

# Functions that print, end the process, or change what belongs to all of it.
FORBIDDEN = re.compile(
    r"\b(?:v?f?printf|v?dprintf|f?puts|f?putc|putchar|perror|syslog"
    r"|_?exit|_Exit|quick_exit|atexit|abort|assert|raise|kill"
    r"|setenv|putenv|unsetenv|setlocale|signal|sigaction|chdir|umask|srand|rand|strtok|system|popen|fork)\s*\("
)
ALLOCATION = re.compile(r"\b(?:malloc|calloc|realloc|aligned_alloc|posix_memalign|strn?dup|v?asprintf)\s*\(")


def code(text: str) -> str:
    """C without comments and the insides of literals; lines keep their numbers."""

    def blank(found: re.Match[str]) -> str:
        piece = found[0]
        return ('""' if piece[0] in "\"'" else " ") + "\n" * piece.count("\n")

    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.DOTALL)


def found(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """file:line: text, for each line of code that matches."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(code(path.read_text(encoding="utf-8")).splitlines(), start=1)
        if pattern.search(line)
    ]


def test_the_rules_see_what_they_forbid():
    harmless = '/* abort(); */ snprintf(a, 1, "exit(1) %s", b); hm_raise(); // puts("")'
    lines = ['printf("x");', harmless, "x = '\"'; exit (1);"]
    assert [bool(FORBIDDEN.search(line)) for line in code("\n".join(lines)).splitlines()] == [True, False, True]
    assert ALLOCATION.search(code("p = malloc(3);")) and not ALLOCATION.search(code("p = hm_malloc(3); /* malloc() */"))
    assert len(CORE) > 30 and len(FILES) > len(CORE)


def test_core_neither_prints_nor_ends_the_process():
    assert found(FORBIDDEN, CORE) == []
    assert found(re.compile(r"\bstd(?:out|err|in)\b"), CORE) == []


def test_core_knows_no_python():
    include = re.compile(r'#\s*include\s*[<"]\s*Python\.h')
    assert [path.name for path in CORE if include.search(path.read_text(encoding="utf-8"))] == []


def test_core_allocates_in_one_place():
    assert found(ALLOCATION, [path for path in CORE if path != ROOT / "csrc" / "base" / "memory.c"]) == []


def test_no_file_is_longer_than_700_lines():
    lengths = {path.relative_to(ROOT).as_posix(): path.read_bytes().count(b"\n") for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 700} == {}


def test_nothing_is_left_for_later():
    mark = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    assert [path.relative_to(ROOT).as_posix() for path in FILES if mark.search(path.read_text(encoding="utf-8"))] == []


def test_the_installed_package_is_what_is_tested():
    package = Path(hypermerge_ext.__file__).resolve()
    assert not package.is_relative_to(ROOT / "hypermerge_ext"), "the sources were imported, not the installed package"
    assert (package.parent / "_core.abi3.so").is_file()
