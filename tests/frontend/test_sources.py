"""Rules for the scripts that a host's page loads: they share it with the host and with everybody else's."""

from __future__ import annotations

import re

import pytest

from frontend.paths import WEB

SCRIPTS = sorted(path for path in WEB.iterdir() if path.suffix in (".js", ".mjs"))
FORBIDDEN = re.compile(
    r"\b(?:window|globalThis|self)\s*(?:\.|\[)|\.prototype\b|\b__proto__\b|\beval\s*\(|\bnew\s+Function\b"
    r"|\bdocument\.(?:body|head|documentElement)\.(?:append|prepend|insert)|\bconsole\.|\blocalStorage\b|\bdocument\.write"
    r"|https?://(?!www\.w3\.org/)|\bimport\s*\(|\bXMLHttpRequest\b|(?<!\.)\bfetch\s*\("
)
IMPORT = re.compile(r'\bfrom\s+"([^"]+)"')


def code(text: str) -> str:
    """JavaScript without its comments."""
    return re.sub(r"/\*.*?\*/|(?<![:\w])//[^\n]*", "", text, flags=re.DOTALL)


def test_the_rules_see_what_they_forbid():
    bad = ["window.x = 1;", "Node.prototype.draw = f", 'fetch("/x")', "import('./a.mjs')", "src = 'https://cdn.example/x'"]
    good = ["// window.x", "/* eval(1) */", "api.fetchApi(a); this.fetch()"]
    assert [bool(FORBIDDEN.search(code(line))) for line in bad + good] == [True] * len(bad) + [False] * len(good)
    assert {path.name for path in SCRIPTS} >= {"pad.mjs", "hyper_merge.js"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_nothing_is_written_into_the_page_that_is_not_ours(path):
    text = code(path.read_text(encoding="utf-8"))
    assert [line.strip() for line in text.splitlines() if FORBIDDEN.search(line)] == []


def test_who_imports_what():
    wanted = {path.name: set(IMPORT.findall(code(path.read_text(encoding="utf-8")))) for path in SCRIPTS}
    assert wanted.pop("hyper_merge.js") == {
        "../../scripts/app.js",
        "../../scripts/api.js",
        "./pad.mjs",
        "./picker.mjs",
        "./text_view.mjs",
    }
    assert all(imports == set() for imports in wanted.values()), "only hyper_merge.js knows a host"


def test_only_what_comfyui_is_to_run_by_itself_ends_in_js():
    assert [path.name for path in WEB.rglob("*.js")] == ["hyper_merge.js"]
    assert re.search(r'registerExtension\(\{\s*name: "hyper-merge\.', (WEB / "hyper_merge.js").read_text(encoding="utf-8"))
