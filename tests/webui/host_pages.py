"""The page of the real A1111 and of the real Forge, in a browser; screenshots go to build/screenshots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from webui.host_cases import AT, ELSEWHERE, ROOT
from webui.page.driver import Page

SCREENSHOTS = Path(os.environ.get("HYPERMERGE_SCREENSHOTS", ROOT / "build" / "screenshots"))
OF_THE_HOST = "Cannot read properties of undefined (reading 'props')"  # A1111's page at each Generate, also without us
SMALL = {"txt2img_steps": 2, "txt2img_width": 64, "txt2img_height": 64}


class HostPage(Page):
    """The whole page takes a busy machine a while."""

    def __init__(self, browser: Any, host: Any) -> None:
        super().__init__(browser, host.server.url + "/", host.data)
        self.kind = host.kind
        self.page.locator("#hyper_merge_txt2img").wait_for(state="attached", timeout=60_000)
        self.page.wait_for_timeout(2000)  # scripts of the host hang themselves into the page after it is there

    def shown(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{self.kind}-{name}.png", full_page=True)

    def small(self) -> None:
        """A picture that takes a second."""
        self.page.locator("#txt2img_prompt textarea").first.fill("a red fox")
        for name, value in SMALL.items():
            field = self.page.locator(f"#{name} input[type=number]").first
            field.fill(str(value))
            field.blur()

    def blending(self, lam: float, kap: float) -> None:
        """The next picture is a small one, of this point."""
        self.open("txt2img")
        self.small()
        self.enable("txt2img")
        self.at("txt2img", lam, kap)

    def infotext(self) -> str:
        return self.page.locator("#html_info_txt2img").first.inner_text()

    def made(self) -> str:
        """Presses Generate; the infotext of the picture."""
        before = self.infotext()
        self.generate()
        self.until(lambda: "Steps:" in self.infotext() and self.infotext() != before, 90)
        return self.infotext()

    def at(self, place: str, lam: float, kap: float) -> None:
        self.type(place, "lam", lam)
        self.type(place, "kap", kap)


class Pages:
    """Runs after Cases, with the same host and its base loaded."""

    @pytest.fixture(autouse=True)
    def _base_again(self, host):
        yield
        host.api("set", enabled=False)

    @pytest.fixture
    def opened(self, host, browser):
        """opened() → another page of the same server; what its scripts complain of fails the test."""
        pages: list[HostPage] = []

        def another() -> HostPage:
            pages.append(HostPage(browser, host))
            return pages[-1]

        yield another
        for page in pages:
            page.close()
        assert [error for page in pages for error in page.errors if error != OF_THE_HOST] == []

    def test_tab_and_accordions_are_there(self, host, opened):
        page = opened()
        page.open("txt2img")
        assert page.models("txt2img").count() == 3
        page.shown("txt2img")
        page.tab("img2img")
        page.open("img2img")
        assert page.models("img2img").count() == 3
        page.tab("Hyper-Merge")
        page.until(lambda: page.models("tab").count() == 3)
        assert "model-1" in page.find("tab", "table").inner_text()
        page.shown("tab")

    def test_a_slider_moves_the_loaded_model(self, host, opened):
        page = opened()
        page.open("txt2img")
        page.enable("txt2img")
        page.at("txt2img", *AT)
        page.until(lambda: host.held() == AT, 30)
        page.drag("txt2img", (0.3, 0.3))
        page.until(lambda: host.held() not in (None, AT), 30)
        page.until(lambda: host.held() == page.numbers("txt2img"), 30)
        page.shown("moved")
        page.enable("txt2img")
        page.until(lambda: host.held() is None, 30)

    def test_generate_and_paste(self, host, opened):
        """Infotext from the page's own picture, read back by the paste button of a fresh page."""
        page = opened()
        page.blending(0.25, -1.5)
        page.type("txt2img", "text_encoder", 0.5)
        text = page.made()
        assert "Hyper-Merge at: " in text
        page.shown("generated")
        fresh = opened()
        fresh.page.locator("#txt2img_prompt textarea").first.fill(text)
        fresh.page.locator("#paste").first.click()
        fresh.until(lambda: fresh.value("txt2img", "enabled") is True, 30)
        fresh.until(
            lambda: fresh.numbers("txt2img") == (0.25, -1.5) and fresh.value("txt2img", "text_encoder") == "0.5"
        )
        fresh.until(lambda: host.held() == (0.25, -1.5), 30)

    def test_the_blend_goes_along_to_img2img(self, host, opened):
        """With the picture's size and prompt, by the host's own button below the picture."""
        page = opened()
        page.blending(0.25, -0.5)
        page.made()
        page.page.locator("#txt2img_send_to_img2img").first.click()
        page.until(lambda: page.value("img2img", "enabled") is True, 30)
        page.until(lambda: page.numbers("img2img") == (0.25, -0.5) and page.value("img2img", "hyper") == host.hyper)

    def test_two_tabs_of_the_browser(self, host, opened):
        """The weights are one; each page says what they hold, and each picture is its own page's."""
        one, two = opened(), opened()
        for page, at in ((one, AT), (two, ELSEWHERE)):
            page.blending(*at)
            page.until(lambda at=at: host.held() == at, 30)
        assert one.numbers("txt2img") == AT and two.numbers("txt2img") == ELSEWHERE
        first, second = one.made(), two.made()
        assert "0.6, -0.8" in first and "-0.5, 0.4" in second
        assert host.held() == ELSEWHERE

    def test_solve_on_the_page(self, host, opened):
        page = opened()
        page.tab("Hyper-Merge")
        page.tick("model-0", "model-1")
        page.type("tab", "directions", 1)
        page.press("tab", "solve")
        said = page.done("tab", "solve")
        assert "MB" in said or "already" in said
        page.until(lambda: page.models("tab").count() == 2)
        page.shown("solved")
        page.press("tab", "load_base")
        said = page.find("tab", "load_base_status")
        page.until(lambda: "Loaded" in said.inner_text(), 90)
        name = said.inner_text().strip().removeprefix("Loaded ").split(" [")[0]
        top = page.page.locator("#setting_sd_model_checkpoint input, .model_selection input").first
        page.until(lambda: name in top.input_value(), 30)  # the list at the top knows a file that is new
        host.job("load-base", name=host.hyper)
