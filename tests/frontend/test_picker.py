"""The list of checkpoints by itself: what is ticked, what a pattern chooses, what it makes of hostile text."""

from __future__ import annotations

import fnmatch

import pytest

from frontend.bare import open_page
from frontend.paths import WEB

NAMES = [
    "a/one.safetensors",
    "a/two [x].safetensors",
    "b.safetensors",
    "c-1.safetensors",
    "<img src=x onerror=alert(1)>",
]


@pytest.fixture(scope="module")
def page(browser):
    context = browser.new_context(viewport={"width": 500, "height": 500})
    page = open_page(context, WEB, complaints := [])
    page.complaints = complaints
    script = (WEB / "picker.mjs").read_text("utf-8")
    page.route("http://pad.test/picker.mjs", lambda route: route.fulfill(content_type="text/javascript", body=script))
    page.evaluate("async () => { window.lists = await import('/picker.mjs') }")
    yield page
    context.close()


@pytest.fixture
def picker(page):
    page.evaluate(
        """names => {
            frame.innerHTML = '<div id="host" style="height: 240px"></div>';
            window.heard = [];
            window.picker = new lists.Picker(host, { onChange: (text) => heard.push(text) });
            picker.setModels(names.map((name) => ({ name, size: 2e9 })));
        }""",
        NAMES,
    )
    yield page
    assert page.complaints == []


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "a/*",
        "?.safetensors",
        "*[x]*",
        "[bc]*",
        "[!a]*",
        "c-[0-9].*",
        "[z-a]*",
        "[",
        "[]",
        "a[",
        "*.(x|y)",
        "^$",
        "\\*",
    ],
)
def test_patterns_choose_what_python_chooses(picker, pattern):
    """While a pattern is being typed it may be anything; the list must not stop because of it."""
    matched = picker.evaluate(
        "([pattern, names]) => names.filter((name) => lists.matches(pattern, name))", [pattern, NAMES]
    )
    assert matched == [name for name in NAMES if fnmatch.fnmatchcase(name, pattern)]
    picker.evaluate("pattern => { picker.value = pattern }", pattern)
    assert picker.locator("#host .count").text_content() == f"{len(set(matched) | {pattern} & set(NAMES))} chosen"


def test_ticks_are_lines_and_names_are_text(picker):
    picker.evaluate("picker.value = 'unknown\\na/*'")
    boxes = picker.locator("#host input[type=checkbox]")
    assert boxes.count() == len(NAMES) and picker.locator("#host img").count() == 0
    assert [boxes.nth(n).is_checked() for n in range(5)] == [True, True, False, False, False]
    boxes.nth(2).focus()
    picker.keyboard.press("Space")
    assert picker.evaluate("heard.splice(0)") == ["unknown\na/*\nb.safetensors"]
    assert boxes.nth(2).is_checked() and boxes.nth(2).evaluate("box => box.getRootNode().activeElement === box")
    picker.keyboard.press("Space")
    assert picker.evaluate("heard.splice(0)") == ["unknown\na/*"]
