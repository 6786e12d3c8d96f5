"""The pad in an empty page, without any host: served from nodes/web, driven by real mouse, keyboard and touch events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; padding: 20px; font: 14px serif; } #host { width: 320px; height: 320px; } </style><style id="more"></style>
<button id="before">before</button><div id="frame"></div><button id="after">after</button><div style="height: 3000px"></div>
<script type="module">
import * as module from "/pad.mjs";
window.module = module;
window.show = (css, map, options) => {
    window.pad?.destroy();
    more.textContent = css;
    frame.innerHTML = '<div id="host"></div>';
    window.heard = [];
    const hear = (name) => (value) => heard.push([name, value === undefined ? null : value]);
    window.pad = new module.Pad(host, { ...options, onBegin: hear("begin"), onInput: hear("input"), onChange: hear("change"),
        onEnd: hear("end"), onAxes: hear("axes") });
    pad.setMap(map);
    document.activeElement.blur();
    scrollTo(0, 0);
    return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
};
</script>"""


def open_page(context: Any, web: Path, errors: list[str]) -> Any:
    """An empty page that knows pad.mjs; whatever it complains of is added to `errors`."""
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.route("**/*", lambda route: route.fulfill(status=404, body=""))
    page.route("http://pad.test/favicon.ico", lambda route: route.fulfill(status=204))
    page.route("http://pad.test/", lambda route: route.fulfill(content_type="text/html", body=PAGE))
    script = (web / "pad.mjs").read_text("utf-8")
    page.route("http://pad.test/pad.mjs", lambda route: route.fulfill(content_type="text/javascript", body=script))
    page.goto("http://pad.test/")
    page.wait_for_function("window.show")
    return page


class Bare:
    """A pad of 320 × 320 px in an empty page; `scale` is a CSS transform of its frame, as of a zoomed canvas."""

    def __init__(self, page: Any, map_document: dict | None, *, css: str = "", scale: float = 1.0, **options: Any):
        css += f"#frame {{ transform: scale({scale}); transform-origin: 0 0; width: 320px; }}"
        self.map = map_document
        self.page = page
        page.mouse.move(0, 0)
        page.evaluate("([css, map, options]) => show(css, map, options)", [css, map_document, options])
        self.plot = page.locator("#host .plot")
        self.goto = page.locator("#host .goto")
        self.reset = page.locator("#host .reset")

    @property
    def value(self) -> list[float]:
        return self.page.evaluate("pad.value")

    @value.setter
    def value(self, values: list[float]) -> None:
        self.page.evaluate("values => { pad.value = values }", values)

    def heard(self) -> list[list[Any]]:
        """What the pad called back since the last time: [[name, argument], …]."""
        return self.page.evaluate("heard.splice(0)")

    def spot(self, index: int) -> tuple[float, float]:
        """Where model `index` is, in px of the window."""
        box = self.plot.locator(".model .dot").nth(index).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def centre(self) -> tuple[float, float]:
        box = self.plot.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def handle(self) -> tuple[float, float]:
        box = self.plot.locator(".handle").bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, *way: tuple[float, float], release: bool = True) -> None:
        """Presses the left button at the first place and moves through the others."""
        mouse = self.page.mouse
        mouse.move(*way[0])
        mouse.down()
        for place in way[1:]:
            mouse.move(*place, steps=4)
        if release:
            mouse.up()

    def touch(self, *way: tuple[float, float]) -> None:
        """The same with one finger, by the browser's own touch input."""
        session = self.page.context.new_cdp_session(self.page)
        send = lambda kind, places: session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})  # noqa: E731
        for n, (x, y) in enumerate(way):
            send("touchMove" if n else "touchStart", [{"x": x, "y": y}])
        send("touchEnd", [])
        session.detach()
