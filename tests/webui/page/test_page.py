"""The tab and the accordion in the real Gradio of both hosts, over the stand-in for the rest of them."""

from __future__ import annotations

import json
import math

import pytest

import hypermerge_ext as hm
from webui.page.driver import Page

HYPER = "x.hyper.safetensors"


def near(one, other, most=0.02):
    return math.dist(one, other) <= most


def test_the_page_comes_up_and_says_nothing_wrong(page, screenshot):
    page.find("txt2img", "pad").locator(".plot").wait_for(state="attached")
    assert not page.find("txt2img", "pad").is_visible()  # the accordion is closed
    assert page.held()["at"] is None
    page.tab("Hyper-Merge")
    page.find("tab", "pad").wait_for()
    listed = page.find("tab", "picker").locator("li")
    page.until(lambda: listed.count() == len([name for name in page.files("Stable-diffusion") if "yaml" not in name]))
    assert "m0" in page.find("tab", "table").inner_text()
    assert not page.find("tab", "models").is_visible() and not page.find("tab", "solve_stop").is_visible()
    screenshot(page, "tab-dark")


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_pad_and_list_follow_the_theme(browser, server, theme, screenshot):
    page = Page(browser, server.urls["page"], server.folder, theme)
    page.until(lambda: page.page.locator("[data-hyper-merge][data-theme]").count() == 4)
    themes = page.page.locator("[data-hyper-merge]").evaluate_all("all => all.map((one) => one.dataset.theme)")
    assert themes == [theme] * 4
    page.open("txt2img")
    screenshot(page, f"accordion-{theme}")
    page.close()
    assert page.errors == []


def test_solving_puts_the_new_model_into_every_list(page, screenshot):
    page.tab("Hyper-Merge")
    page.tick("m0", "m1", "m2", "n0")
    assert page.value("tab", "models").split() == [f"{name}.safetensors" for name in ("m0", "m1", "m2", "n0")]
    assert not page.find("tab", "further").is_visible()  # x has two directions
    page.type("tab", "name", "four")
    page.type("tab", "directions", 3)
    page.press("tab", "solve")
    assert "MB" in page.done("tab", "solve")
    page.until(lambda: page.models("tab").count() == 4)
    made = page.value("tab", "hyper")
    assert made.startswith("four-") and made in page.files("hyper_merge")
    page.until(lambda: "n0" in page.find("tab", "table").inner_text())
    page.type("tab", "further", "0.25")
    page.press("tab", "use_txt2img")
    page.until(lambda: page.models("txt2img").count() == 4)
    assert page.value("txt2img", "hyper") == made and page.value("txt2img", "enabled")
    page.until(lambda: page.value("txt2img", "further") == "0.25" and page.find("txt2img", "further").is_visible())
    assert page.find("txt2img", "pad").locator("select.axis").count() == 2
    page.until(lambda: "not the base" in page.find("txt2img", "status").inner_text())
    page.enable("txt2img")
    page.until(lambda: page.find("txt2img", "status").inner_text().strip() == "off")


def test_stop_stands_in_the_buttons_place_and_leaves_nothing(page, screenshot):
    page.tab("Hyper-Merge")
    before = page.files("hyper_merge")
    slow = page.folder / "slow"
    slow.touch()
    try:
        page.tick("n1", "n2", "n3")
        page.press("tab", "solve")
        page.find("tab", "solve_stop").wait_for(state="visible")
        page.page.locator(".progressDiv").wait_for()
        page.until(lambda: "solving" in page.page.locator(".progressDiv").inner_text())
        assert not page.find("tab", "solve").is_visible()
        screenshot(page, "solving")
        page.press("tab", "solve_stop")
        assert page.done("tab", "solve") == "Stopped; nothing was written."
    finally:
        slow.unlink()
    assert page.files("hyper_merge") == before
    assert page.page.locator(".progressDiv").count() == 0


def test_stop_means_the_job_of_its_own_page(page, browser, server):
    other, slow = Page(browser, server.urls["page"], server.folder), page.folder / "slow"
    before = page.files("hyper_merge")
    for opened, names in ((page, ("n0", "n1", "n2")), (other, ("n1", "n2", "n3"))):
        opened.tab("Hyper-Merge")
        opened.tick(*names)
    slow.touch()
    try:
        page.press("tab", "solve")
        page.until(lambda: "solving" in page.page.locator(".progressDiv").inner_text())
        other.press("tab", "solve")
        other.press("tab", "solve_stop")
    finally:
        slow.unlink()
    assert other.done("tab", "solve") == "Stopped; nothing was written."
    assert "MB" in page.done("tab", "solve")
    other.close()
    assert other.errors == []
    (made,) = page.files("hyper_merge") - before
    (page.folder / "models" / "hyper_merge" / made).unlink()


def test_a_refusal_is_said_below_the_button(page):
    page.tab("Hyper-Merge")
    page.tick("m0")
    page.press("tab", "solve")
    assert "two checkpoints or more" in page.done("tab", "solve")
    assert page.find("tab", "solve_status").locator("p").get_attribute("class").endswith("hyper-merge-bad")


def test_a_drag_moves_the_loaded_model_bit_for_bit(page, screenshot):
    page.open("txt2img")
    page.drag("txt2img", (0.7, 0.4))
    assert page.held()["at"] is None  # not enabled: the map moves, the model does not
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is not None)
    page.drag("txt2img", (0.3, 0.6), (0.62, 0.3), steps=15)
    page.until(lambda: near(page.held()["at"], page.numbers("txt2img"), 1e-9))
    assert page.held()["exact"] and not near(page.numbers("txt2img"), (0, 0), 0.1)
    status = page.find("txt2img", "status")
    page.until(lambda: "λ" in status.inner_text())
    assert page.find("txt2img", "pad").locator(".applied").is_visible()
    title = page.page.locator("#hyper_merge_txt2img > .label-wrap").inner_text()
    assert "x" in title and f"{page.numbers('txt2img')[0]:+.3f}".replace("-", "−") in title
    screenshot(page, "live")
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is None)
    page.until(lambda: status.inner_text().strip() == "off")


def test_fields_and_pad_are_two_hands_on_the_same_values(page):
    page.open("txt2img")
    start = page.handle("txt2img")
    page.type("txt2img", "lam", 0.5)
    page.type("txt2img", "kap", -0.4)
    page.until(lambda: page.handle("txt2img") != start)
    x, y = page.handle("txt2img")
    assert x > start[0] + 10 and y > start[1] + 10
    page.page.mouse.click(*page.spot("txt2img", 1))
    page.until(lambda: near(page.numbers("txt2img"), page.page.evaluate(MULTIPLIERS, ["txt2img", 1]), 1e-6))
    page.find("txt2img", "pad").locator(".reset").click()
    page.until(lambda: page.numbers("txt2img") == (0, 0))


MULTIPLIERS = """([place, index]) => JSON.parse(
    document.querySelector(`#hyper_merge_${place}_pad [data-map]`).dataset.map).points[index].multipliers"""


def test_during_a_job_only_the_newest_place_waits(page):
    page.open("txt2img")
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is not None)
    page.test("hold")
    try:
        page.drag("txt2img", (0.2, 0.2), (0.8, 0.2), steps=5)
        page.until(lambda: "waits" in page.find("txt2img", "status").inner_text())
        page.drag("txt2img", (0.3, 0.7), (0.4, 0.6), steps=5)
        page.page.wait_for_timeout(500)
        assert page.test("held")["at"] == [0, 0]
    finally:
        page.test("release")
    page.until(lambda: near(page.held()["at"], page.numbers("txt2img"), 1e-9))
    assert page.held()["exact"]
    page.until(lambda: "λ" in page.find("txt2img", "status").inner_text())  # and the line says so
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is None)


def test_what_a_picture_was_made_with_is_pasted_back(page):
    page.open("txt2img")
    image = page.page.locator("#txt2img_image").locator("textarea, input").first
    infotext = page.page.locator("#txt2img_infotext").locator("textarea, input").first
    page.generate()
    page.until(image.input_value)
    base = image.input_value()
    page.enable("txt2img")
    page.type("txt2img", "lam", 0.75)
    page.type("txt2img", "kap", -0.125)
    page.type("txt2img", "text_encoder", 0.5)
    page.generate()
    page.until(lambda: image.input_value() != base)
    moved, said = image.input_value(), infotext.input_value()
    params = json.loads(said)
    assert params["Hyper-Merge"] == HYPER and params["Hyper-Merge at"] == "0.75, -0.125"
    page.find("txt2img", "pad").locator(".reset").click()
    page.type("txt2img", "text_encoder", 1)
    page.enable("txt2img")
    page.generate()
    page.until(lambda: image.input_value() == base)
    infotext.fill(said)
    page.page.locator("#txt2img_paste").first.click()
    page.until(lambda: page.numbers("txt2img") == (0.75, -0.125))
    assert page.value("txt2img", "enabled") and float(page.value("txt2img", "text_encoder")) == 0.5
    page.generate()
    page.until(lambda: image.input_value() == moved)
    infotext.fill(json.dumps({"Steps": "20"}))
    page.page.locator("#txt2img_paste").first.click()
    page.until(lambda: not page.value("txt2img", "enabled"))
    page.until(lambda: page.held()["at"] is None)


def test_the_blend_goes_along_to_img2img(page):
    page.open("txt2img")
    page.type("txt2img", "lam", 0.25)
    page.type("txt2img", "kap", -0.5)
    page.type("txt2img", "text_encoder", 0.5)
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] == [0.25, -0.5])
    page.page.locator("#send_to_img2img").first.click()
    page.until(lambda: page.value("img2img", "enabled") and page.numbers("img2img") == (0.25, -0.5))
    assert float(page.value("img2img", "text_encoder")) == 0.5 and page.value("img2img", "hyper") == HYPER
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is None)


def test_what_another_hyper_model_has_no_field_for_is_zero(page):
    """Else it would be refused for a value that nobody sees, nor can change."""
    hypers = page.folder / "models" / "hyper_merge"
    line = hypers / "line.hyper.safetensors"
    hm.solve(sorted((page.folder / "models" / "Stable-diffusion").glob("m?.safetensors")), directions=1).save(line)
    try:
        page.open("txt2img")
        page.press("txt2img", "refresh")
        page.type("txt2img", "lam", 0.5)
        page.type("txt2img", "kap", 0.25)
        page.choose("txt2img", "hyper", "line")
        page.find("txt2img", "kap").wait_for(state="hidden")
        page.enable("txt2img")
        status = page.find("txt2img", "status")
        page.until(lambda: "λ" in status.inner_text() or "κ" in status.inner_text())
        assert status.inner_text().strip().startswith("line · λ 0.5")
        page.choose("txt2img", "hyper", "x.hyper")
        page.find("txt2img", "kap").wait_for(state="visible")
        assert page.numbers("txt2img") == (0.5, 0)
        page.enable("txt2img")
        page.until(lambda: page.held()["at"] is None)
    finally:
        line.unlink()


def test_names_are_text_and_not_markup(page):
    """Of files, and of the models in them: anybody may have made these."""
    odd = "<img src=x onerror=window.hacked=1>"
    models, hypers = (page.folder / "models" / name for name in ("Stable-diffusion", "hyper_merge"))
    model, hyper = page.folder / f"{odd}.safetensors", hypers / f"{odd}.hyper.safetensors"
    model.write_bytes((models / "m0.safetensors").read_bytes())
    hm.solve([model, models / "m1.safetensors", models / "m2.safetensors"]).save(hyper)
    try:
        page.open("txt2img")
        page.press("txt2img", "refresh")
        page.choose("txt2img", "hyper", odd)
        page.enable("txt2img")
        page.until(lambda: odd in page.find("txt2img", "status").inner_text())
        page.until(lambda: odd in page.page.locator("#hyper_merge_txt2img > .label-wrap").inner_text())
        page.enable("txt2img")
        page.tab("Hyper-Merge")
        page.press("tab", "refresh")
        page.choose("tab", "hyper", odd)
        page.until(lambda: odd in page.find("tab", "table").inner_text())
        page.press("tab", "load_base")
        assert odd in page.done("tab", "load_base")
        assert page.page.evaluate("window.hacked") is None and page.page.locator("img[src=x]").count() == 0
        page.until(lambda: page.held()["at"] is None)
    finally:
        hyper.unlink()
        page.test("base")
        (models / f"{odd} base.safetensors").unlink(missing_ok=True)


def test_the_button_with_an_arrow_alone_has_a_name(page):
    page.open("txt2img")
    refresh = page.page.get_by_role("button", name="Look again for hyper-models")
    assert refresh.first.inner_text().strip() == "⟳" and refresh.first.get_attribute("title")


def test_a_point_of_the_tab_is_used_and_kept(page, screenshot):
    page.tab("Hyper-Merge")
    page.models("tab").first.wait_for(state="attached")
    page.drag("tab", (0.65, 0.35))
    point = page.numbers("tab")
    page.type("tab", "checkpoint_name", "kept")
    page.press("tab", "save_checkpoint")
    assert page.done("tab", "save_checkpoint").startswith("kept.safetensors")
    assert "kept.safetensors" in page.files("Stable-diffusion")
    page.page.locator("#tab_hyper_merge button", has_text="LoRA").first.click()
    page.press("tab", "save_lora")
    assert "relative error" in page.done("tab", "save_lora")
    assert any(name.startswith("x") for name in page.files("Lora"))
    screenshot(page, "kept")
    page.press("tab", "use_txt2img")
    page.until(lambda: page.value("txt2img", "enabled"))
    page.page.locator("#txt2img_prompt").wait_for(state="visible")
    assert page.numbers("txt2img") == point
    page.until(lambda: near(page.held()["at"], point, 1e-9))
    page.find("txt2img", "pad").wait_for(state="visible")  # the accordion is opened
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is None)


def test_another_base_is_refused_and_the_right_one_offered(page, screenshot):
    page.open("txt2img")
    page.type("txt2img", "lam", 0.3)
    page.test("other")
    try:
        page.enable("txt2img")
        offer = page.find("txt2img", "load_base")
        offer.wait_for(state="visible")
        assert page.held()["at"] is None
        screenshot(page, "other-base")
        offer.click()
        page.until(lambda: page.held()["at"] is not None)
        assert page.held()["at"] == [0.3, 0] and page.held()["exact"]
        page.until(lambda: not offer.is_visible())
        page.shows_checkpoint("x base.safetensors")
        page.enable("txt2img")
        page.until(lambda: page.held()["at"] is None)
    finally:
        page.test("base")


def test_a_base_that_is_written_now_is_in_the_list_at_the_top(page):
    page.page.locator("#hyper_merge_txt2img > .label-wrap").click()
    made = page.folder / "models" / "Stable-diffusion" / "later base.safetensors"
    hypers = page.folder / "models" / "hyper_merge"
    (hypers / "later.hyper.safetensors").write_bytes((hypers / HYPER).read_bytes())
    try:
        page.press("txt2img", "refresh")
        page.choose("txt2img", "hyper", "later")
        page.test("other")
        page.enable("txt2img")
        page.find("txt2img", "load_base").click()
        page.shows_checkpoint("later base.safetensors")
        page.enable("txt2img")
        page.until(lambda: page.held()["at"] is None)
    finally:
        page.test("base")
        (hypers / "later.hyper.safetensors").unlink()
        made.unlink(missing_ok=True)


def test_pad_and_list_speak_the_hosts_language(page):
    page.tab("Hyper-Merge")
    search = page.find("tab", "picker").locator("input[type=search]")
    assert search.get_attribute("placeholder") == "Modelle filtern"
    assert page.find("tab", "picker").locator(".count").inner_text() == "0 gewählt"
    pad = page.find("tab", "pad")
    pad.locator(".goto option:checked", has_text="Basis").wait_for(state="attached")
    assert pad.locator(".reset").get_attribute("title") == "Zum Anfang (Pos1)"
    assert pad.locator(".goto").get_attribute("title") == "Take the multipliers of a model"  # has no translation


def test_an_infotext_for_a_page_that_was_built_without_hyper_models(page, server):
    enabled, hyper, *point = page.test("infotext")[:4]
    assert [enabled, *point] == [True, 0.5, -0.25]
    # Forge's API does not get as far as this: it fails at every infotext.
    assert hyper == ("y.hyper.safetensors" if server.version.startswith("3.") else None)


def test_a_file_that_came_after_the_page_was_made_is_in_its_list(browser, server):
    folder = server.folder / "models" / "hyper_merge"
    (folder / "later.hyper.safetensors").write_bytes((folder / HYPER).read_bytes())
    page = Page(browser, server.urls["page"], server.folder)
    page.tab("Hyper-Merge")
    page.choose("tab", "hyper", "later")
    page.until(lambda: "later" in page.find("tab", "table").inner_text())
    page.close()
    (folder / "later.hyper.safetensors").unlink()
    assert page.errors == []


def test_questions_about_the_ticked_models(page, screenshot):
    page.tab("Hyper-Merge")
    page.tick("m0", "m1", "n4")
    page.page.locator("#hyper_merge_tab_ask > .label-wrap").click()
    answer = page.find("tab", "answer")
    page.press("tab", "compare")
    page.until(lambda: "n4" in answer.inner_text())
    page.press("tab", "project")
    page.until(lambda: page.models("tab").count() == 6)
    page.choose("tab", "unknown", "m2.safetensors")
    page.press("tab", "recover")
    page.until(lambda: "not explained" in answer.inner_text())
    screenshot(page, "questions")


def test_presets_fill_the_field_of_blocks_and_reach_the_weights(page):
    page.open("txt2img")
    page.enable("txt2img")
    page.page.locator("#hyper_merge_txt2img .label-wrap", has_text="Blocks").click()
    page.choose("txt2img", "preset", "output blocks only")
    page.until(lambda: page.value("txt2img", "blocks") == "* = x0\nOUT = x1")
    page.until(lambda: page.held().get("blocks") == "* = x0\nOUT = x1")
    page.type("txt2img", "blocks", "OUT = nonsense")
    page.until(lambda: "nonsense" in page.find("txt2img", "status").inner_text())
    page.type("txt2img", "blocks", "")
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is None)


def test_reload_takes_everything_out_and_puts_it_in_once(page):
    page.open("txt2img")
    page.enable("txt2img")
    page.until(lambda: page.held()["at"] is not None)
    found = page.test("reload")
    assert page.held()["at"] is None  # the base again
    (without, again), (no_token, token) = found["axes"], found["networks"]
    assert without == ["Nothing"] and len(again) == len(set(again)) > 5
    assert "hm" not in no_token and "hm" in token and found["kept"]


def test_without_its_binary_the_page_comes_up_and_says_what_to_do(browser, server):
    page = Page(browser, server.urls["missing"], server.folder)
    page.tab("Hyper-Merge")
    page.page.locator(".hyper-merge-missing").wait_for()
    assert "pip install hyper-merge" in page.page.locator(".hyper-merge-missing").inner_text()
    assert page.page.locator("[data-hyper-merge]").count() == 0
    page.close()
    assert page.errors == []
