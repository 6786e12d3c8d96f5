"""Rules for the script that the host loads into its page, and for what the extension shows it by."""

from __future__ import annotations

import re

from frontend.test_sources import FORBIDDEN, code
from webui.page.conftest import ROOT

SCRIPT = ROOT / "javascript" / "hyper_merge.js"


def test_the_script_leaves_the_page_alone_but_for_what_it_mounts():
    text = code(SCRIPT.read_text("utf-8"))
    found = [line.strip() for line in text.splitlines() if FORBIDDEN.search(line)]
    assert len(found) == 2 and all("await import(new URL(element.dataset.module" in line for line in found)
    assert text.strip().startswith("(() => {") and text.strip().endswith("})();")  # it leaves no names behind


def test_the_host_finds_one_script_and_it_is_no_copy_of_the_pad():
    assert [path.name for path in (ROOT / "javascript").iterdir()] == ["hyper_merge.js"]
    assert "class Pad " not in SCRIPT.read_text("utf-8") and "class Picker " not in SCRIPT.read_text("utf-8")


def test_styles_touch_only_what_is_ours():
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "style.css").read_text("utf-8"), flags=re.DOTALL)
    selectors = [part.strip() for rule in re.findall(r"([^{}]+)\{", text) for part in rule.split(",")]
    assert len(selectors) > 20 and [one for one in selectors if ".hyper-merge" not in one] == []
