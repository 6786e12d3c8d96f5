"""A person at the web UI's page: ticks, drags, types and reads."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Error

HARMLESS = ("ERR_FAILED", "preload CSS", "404 (Not Found)", "manifest.json", "iframeResizer")
"""What the page says of fonts and libraries from afar, which are not fetched here."""


class Page:
    """One page in a browser context of its own."""

    def __init__(self, browser: Any, url: str, folder: Path, theme: str = "dark") -> None:
        self.url, self.folder = url, folder
        self.errors: list[str] = []
        self.context = browser.new_context(viewport={"width": 1400, "height": 1000}, color_scheme=theme)
        self.context.set_default_timeout(20_000)
        self.page = page = self.context.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(url) else route.abort())
        page.goto(f"{url}?__theme={theme}")
        page.wait_for_selector("#txt2img_prompt")

    def _hear(self, line: Any) -> None:
        if line.type == "error" and not any(part in line.text for part in HARMLESS):
            self.errors.append(line.text)

    def close(self) -> None:
        self.context.close()

    # ---- what is there ---------------------------------------------------------------------------------------------

    def find(self, place: str, name: str) -> Any:
        """A component of ours; Gradio may give one id to two elements, one in the other."""
        return self.page.locator(f"#hyper_merge_{place}_{name}").first

    def value(self, place: str, name: str) -> Any:
        """Of a field."""
        field = self.find(place, name).locator("input[type=number], input[type=checkbox], input, textarea").first
        return field.is_checked() if field.get_attribute("type") == "checkbox" else field.input_value()

    def numbers(self, place: str) -> tuple[float, float]:
        """λ and κ."""
        return float(self.value(place, "lam")), float(self.value(place, "kap"))

    def models(self, place: str) -> Any:
        """Points of models on the pad."""
        return self.find(place, "pad").locator(".model .dot")

    def test(self, name: str) -> Any:
        """What the server says at /test/NAME."""
        with urllib.request.urlopen(f"{self.url}test/{name}") as answer:
            return json.load(answer)

    def held(self) -> dict[str, Any]:
        """What the weights of the loaded model hold."""
        return self.test("held")

    def files(self, *parts: str) -> set[str]:
        """Names in a folder of models/."""
        return {path.name for path in self.folder.joinpath("models", *parts).iterdir()}

    # ---- hands -----------------------------------------------------------------------------------------------------

    def tab(self, name: str) -> None:
        self.page.locator("#tabs > .tab-nav > button", has_text=name).first.click()

    def open(self, place: str) -> None:
        """The accordion."""
        self.page.locator(f"#hyper_merge_{place} > .label-wrap").click()
        self.models(place).first.wait_for(state="attached")

    def tick(self, *names: str) -> None:
        for name in names:
            self.find("tab", "picker").locator(f"input[value='{name}.safetensors']").click()

    def type(self, place: str, name: str, value: Any) -> None:
        field = self.find(place, name).locator("input[type=number], input, textarea").first
        field.fill(str(value))
        field.blur()

    def press(self, place: str, name: str) -> None:
        self.find(place, name).click()

    def choose(self, place: str, name: str, text: str) -> None:
        """In a list that opens; what it holds may still be on its way."""
        option = self.page.locator("ul.options li", has_text=text).first

        def chosen() -> bool:
            self.page.keyboard.press("Escape")
            self.find(place, name).locator("input").blur()
            self.find(place, name).locator("input").click()
            if not option.is_visible():
                return False
            try:
                option.click(timeout=3000)
            except Error:  # a new list came from the server while this one was opening
                return False
            return True

        self.until(chosen)

    def generate(self) -> None:
        self.page.locator("#txt2img_generate").first.click()

    def shows_checkpoint(self, name: str) -> None:
        """Waits until it is the one at the top of the page."""
        top = self.page.locator("#setting_sd_model_checkpoint, #forge_checkpoint").locator("textarea, input").first
        self.until(lambda: top.input_value().startswith(name))

    def enable(self, place: str) -> None:
        self.find(place, "enabled").locator("input").click()

    def spot(self, place: str, index: int) -> tuple[float, float]:
        return self._middle(self.models(place).nth(index))

    def handle(self, place: str) -> tuple[float, float]:
        return self._middle(self.find(place, "pad").locator(".handle"))

    @staticmethod
    def _middle(locator: Any) -> tuple[float, float]:
        box = locator.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, place: str, *way: tuple[float, float], steps: int = 8) -> None:
        """The handle, over places as shares of the plot's width and height."""
        plot = self.find(place, "pad").locator(".plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        self.page.mouse.move(*self.handle(place))
        self.page.mouse.down()
        for x, y in way:
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=steps)
        self.page.mouse.up()

    # ---- waiting ---------------------------------------------------------------------------------------------------

    def until(self, true: Any, seconds: float = 15) -> None:
        """Waits until the function gives something true."""
        for _ in range(int(seconds * 10)):
            if true():
                return
            self.page.wait_for_timeout(100)
        assert true()

    def done(self, place: str, name: str) -> str:
        """Waits until that job is over; what it says below its button."""
        status = self.find(place, f"{name}_status")
        status.locator("p").first.wait_for(state="attached")
        self.find(place, name).wait_for(state="visible")
        return status.inner_text().strip()
