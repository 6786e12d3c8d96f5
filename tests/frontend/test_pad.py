"""The pad by itself: what hands and keys do to the value, what it calls back, how it draws, what it leaves alone."""

from __future__ import annotations

import itertools

import pytest

from frontend.bare import Bare, open_page
from frontend.maps import family
from frontend.paths import WEB

CLOSE = pytest.approx


@pytest.fixture(scope="module")
def page(browser):
    context = browser.new_context(viewport={"width": 700, "height": 720}, has_touch=True)
    page = open_page(context, WEB, complaints := [])
    page.complaints = complaints
    yield page
    context.close()


@pytest.fixture
def pad(page, demo_map):
    """pad(map?, **options) → Bare, one at a time; the page must not have complained afterwards."""

    def make(document="demo", **options) -> Bare:
        return Bare(page, demo_map if document == "demo" else document, **options)

    page.emulate_media(color_scheme="light")
    yield make
    assert page.complaints == []


def multipliers(bare: Bare, index: int) -> list[float]:
    return bare.map["points"][index]["multipliers"]


# ---- mouse ----------------------------------------------------------------------------------------------------------


def test_a_drag_is_one_begin_many_inputs_one_change_one_end(pad):
    bare = pad()
    x, y = bare.centre()
    bare.drag((x, y), (x + 20, y - 20), (x + 40, y - 10))
    heard = bare.heard()
    assert heard[0] == ["begin", None] and heard[-1] == ["end", None]
    assert [name for name, _ in heard].count("begin") == [name for name, _ in heard].count("end") == 1
    inputs = [value for name, value in heard if name == "input"]
    assert len(inputs) >= 3 and inputs[0][0] > 0 and inputs[0][1] > 0
    assert heard[-2] == ["change", inputs[-1]] and bare.value == inputs[-1]
    assert bare.handle() == CLOSE((x + 40, y - 10), abs=1)


def test_a_press_without_a_move_on_the_handle_changes_nothing(pad):
    bare = pad(value=[0.3, 0.2])
    x, y = bare.handle()
    bare.drag((x + 4, y - 3), (x + 5, y - 3))
    assert bare.value == [0.3, 0.2]
    assert [name for name, _ in bare.heard()] == ["begin", "end"]


def test_a_click_takes_the_handle_there_and_other_buttons_do_nothing(pad):
    bare = pad()
    x, y = bare.centre()
    bare.page.mouse.click(x + 30, y + 25)
    there = bare.value
    assert there[0] > 0.2 and there[1] < -0.2
    for button in ("right", "middle"):
        bare.page.mouse.click(x - 30, y, button=button)
    assert bare.value == there


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_zoomed_by_a_transform_every_model_is_where_it_is_drawn(pad, scale):
    bare = pad(scale=scale)
    for index in range(len(bare.map["points"])):
        bare.page.mouse.click(*bare.spot(index))
        assert bare.value == multipliers(bare, index)
    assert bare.goto.locator("option").first.text_content() == bare.map["points"][-1]["name"]


def test_near_a_model_the_handle_snaps_and_with_alt_or_ctrl_it_does_not(pad):
    bare = pad()
    x, y = bare.spot(2)
    start = bare.centre()
    bare.drag(start, (x + 6, y - 5))
    assert bare.value == multipliers(bare, 2)
    for key in ("Alt", "Control"):
        bare.page.keyboard.down(key)
        bare.drag(bare.handle(), start, (x + 6, y - 5))
        bare.page.keyboard.up(key)
        assert bare.value != multipliers(bare, 2)
        assert bare.value == CLOSE(multipliers(bare, 2), abs=0.12)
    bare.drag(bare.handle(), (start[0] + 5, start[1] + 5))
    assert bare.value == [0, 0]  # the base holds the handle too


def test_shift_keeps_to_one_axis(pad):
    bare = pad(value=[0.2, 0.3])
    x, y = bare.handle()
    bare.page.keyboard.down("Shift")
    bare.drag((x, y), (x + 50, y + 12))
    bare.page.keyboard.up("Shift")
    assert bare.value[0] > 0.5 and bare.value[1] == CLOSE(0.3, abs=2e-3)


def test_a_double_click_beside_a_model_and_a_click_on_its_name_take_its_multipliers(pad):
    bare = pad()
    x, y = bare.spot(4)
    bare.page.mouse.dblclick(x + 12, y - 10)
    assert bare.value == multipliers(bare, 4)
    bare.heard()
    name = bare.map["points"][1]["name"]
    bare.page.locator("#host text", has_text=name).first.click()
    assert bare.value == multipliers(bare, 1)
    assert [kind for kind, _ in bare.heard()] == ["begin", "input", "change", "end"]


def test_beyond_the_models_is_marked_and_beyond_the_edge_is_reached(pad):
    bare = pad()
    x, y = bare.centre()
    unit = (bare.spot(6)[0] - x) / multipliers(bare, 6)[0]  # px per 1
    bare.drag((x, y), (x + 2.5 * unit, y))
    assert bare.value == CLOSE([2.5, 0], abs=0.02)
    assert bare.page.locator("#host .map.out").count() == 1
    assert bare.goto.locator("option").first.text_content() == "beyond the models"
    # Let go, the view has become wide enough to show where that is.
    assert bare.handle() == CLOSE((x + 2.5 * (bare.spot(6)[0] - x) / multipliers(bare, 6)[0], y), abs=2)
    assert bare.handle()[0] < bare.plot.bounding_box()["x"] + 318
    bare.page.mouse.click(*bare.spot(3))
    assert bare.page.locator("#host .map.out").count() == 0
    assert (bare.spot(6)[0] - x) / multipliers(bare, 6)[0] == CLOSE(unit, rel=0.01)  # and is as before


def test_limits_hold(pad):
    bare = pad(limits=[-1.5, 1.5])
    x, y = bare.centre()
    bare.drag((x, y), (x + 600, y - 600))
    assert bare.value == [1.5, 1.5]
    bare.value = [0, 0, 3]  # typed elsewhere, beyond what a hand reaches: not its business
    bare.page.evaluate("map => pad.setMap(map)", family(9, 4))
    bare.value = [0, 0, 3]
    bare.drag(bare.handle(), (x, y + 40))
    assert bare.value[2] == 3


def test_escape_gives_back_what_was_there(pad):
    bare = pad(value=[0.25, 0.5])
    bare.drag(bare.handle(), bare.centre(), release=False)
    assert bare.value == [0, 0]
    bare.page.keyboard.press("Escape")
    assert bare.value == [0.25, 0.5]
    bare.page.mouse.move(10, 10)
    bare.page.mouse.up()
    assert bare.value == [0.25, 0.5]
    names = [name for name, _ in bare.heard()]
    assert names[-1] == "end" and "change" not in names


def test_a_pad_taken_down_under_the_hand_closes_its_undo_step(pad):
    bare = pad()
    bare.drag(bare.handle(), bare.spot(0), release=False)
    bare.page.evaluate("pad.destroy()")
    bare.page.mouse.up()
    names = [name for name, _ in bare.heard()]
    assert names[0] == "begin" and names[-2:] == ["change", "end"] and names.count("end") == 1
    assert bare.page.evaluate("host.shadowRoot.childElementCount") == 0
    bare.page.evaluate("new module.Pad(host).setMap(null)")  # the element can be used again
    assert bare.page.locator("#host .plot").count() == 1


# ---- touch, keys ----------------------------------------------------------------------------------------------------


def test_a_finger_drags_and_the_page_does_not_scroll(pad):
    bare = pad()
    x, y = bare.centre()
    way = [(x, y)] + [(x + 5 * n, y + 6 * n) for n in range(1, 9)]
    bare.touch(*way)
    assert bare.handle() == CLOSE(way[-1], abs=1)
    names = [name for name, _ in bare.heard()]
    assert names.count("begin") == names.count("change") == names.count("end") == 1
    assert bare.page.evaluate("scrollY") == 0
    assert bare.plot.evaluate("plot => getComputedStyle(plot).touchAction") == "none"


def test_a_second_finger_is_not_followed(pad):
    bare = pad()
    x, y = bare.centre()
    session = bare.page.context.new_cdp_session(bare.page)
    one, two = {"x": x + 40, "y": y, "id": 1}, {"x": x - 90, "y": y + 90, "id": 2}
    for kind, places in (("touchStart", [one]), ("touchStart", [one, two]), ("touchMove", [one, {**two, "x": x - 60}])):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    assert bare.value[0] > 0.3 and bare.value[1] == CLOSE(0, abs=0.01)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_arrows_move_in_small_large_and_tiny_steps(pad):
    bare = pad()
    bare.plot.focus()
    for keys, expected in (
        ("ArrowRight", [0.01, 0]),
        ("ArrowUp", [0.01, 0.01]),
        ("Shift+ArrowLeft", [-0.09, 0.01]),
        ("Alt+ArrowDown", [-0.09, 0.009]),
        ("Home", [0, 0]),
    ):
        bare.page.keyboard.press(keys)
        assert bare.value == CLOSE(expected, abs=1e-9), keys


def test_an_arrow_held_down_is_one_change(pad):
    bare = pad()
    bare.plot.focus()
    bare.page.keyboard.down("ArrowRight")
    for _ in range(5):
        bare.page.keyboard.down("ArrowRight")  # as the keyboard repeats it
    bare.page.keyboard.down("ArrowUp")
    bare.page.keyboard.up("ArrowRight")
    bare.page.keyboard.up("ArrowUp")
    heard = [name for name, _ in bare.heard()]
    assert heard == ["begin", *["input"] * 7, "change", "end"]
    assert bare.value == CLOSE([0.06, 0.01])


def test_focus_lost_ends_a_held_key(pad):
    bare = pad()
    bare.plot.focus()
    bare.page.keyboard.down("ArrowRight")
    bare.page.locator("#after").focus()
    assert [name for name, _ in bare.heard()] == ["begin", "input", "change", "end"]


def test_digits_and_letters_go_through_the_models(pad):
    bare = pad()
    bare.plot.focus()
    count = len(bare.map["points"])
    bare.page.keyboard.press("3")
    assert bare.value == multipliers(bare, 2)
    for key, index in (("n", 3), ("n", 4), ("p", 3), ("1", 0), ("p", count - 1), ("n", 0)):
        bare.page.keyboard.press(key)
        assert bare.value == multipliers(bare, index), key
    bare.page.keyboard.press("0")
    assert bare.value == [0, 0]
    bare.page.keyboard.press("9")  # there is no ninth model
    assert bare.value == [0, 0]


def test_only_keys_that_mean_something_here_are_kept_from_the_page(pad):
    bare = pad()
    bare.page.evaluate("window.keys = []; addEventListener('keydown', (e) => keys.push([e.key, e.defaultPrevented]))")
    bare.plot.focus()
    for key in ("ArrowLeft", "5", "q", "Control+z", "Delete", "Escape", "Home"):
        bare.page.keyboard.press(key)
    seen = [key for key, _ in bare.page.evaluate("keys")]
    assert seen == ["q", "Control", "z", "Delete", "Escape"]
    assert not any(prevented for _, prevented in bare.page.evaluate("keys"))


def test_tab_leads_through_pad_and_reset_and_the_ring_shows(pad):
    bare = pad(value=[0.5, 0.5])
    bare.page.locator("#before").focus()
    inner = "host.shadowRoot.activeElement?.classList[0]"
    order = []
    for _ in range(3):
        bare.page.keyboard.press("Tab")
        order.append(bare.page.evaluate(inner))
    assert order == ["goto", "reset", "plot"]
    assert bare.plot.evaluate("plot => getComputedStyle(plot, '::after').borderTopStyle") == "solid"
    bare.page.keyboard.press("Tab")
    assert bare.page.evaluate("document.activeElement.id") == "after"
    bare.reset.focus()
    bare.page.keyboard.press("Enter")
    assert bare.value == [0, 0]


def test_the_list_takes_a_model_and_says_where_the_handle_is(pad):
    bare = pad()
    status = bare.goto.locator("option").first
    assert status.text_content() == "base"
    bare.goto.select_option(label=bare.map["points"][5]["name"])
    assert bare.value == multipliers(bare, 5) and status.text_content() == bare.map["points"][5]["name"]
    assert [name for name, _ in bare.heard()] == ["begin", "input", "change", "end"]
    bare.value = [value * 0.8 for value in multipliers(bare, 5)]
    assert status.text_content() == f"near {bare.map['points'][5]['name']}"
    bare.goto.select_option(label="base")
    assert bare.value == [0, 0]


def test_what_a_screen_reader_hears(pad):
    bare = pad()
    bare.page.mouse.click(*bare.spot(0))
    at = multipliers(bare, 0)
    assert bare.plot.get_attribute("role") == "slider" and bare.plot.get_attribute("aria-label")
    assert float(bare.plot.get_attribute("aria-valuenow")) == CLOSE(at[0])
    numbers = f"λ {at[0]:+.3f}, κ {at[1]:+.3f}".replace("-", "−")
    assert bare.plot.get_attribute("aria-valuetext") == f"{numbers}, {bare.map['points'][0]['name']}"
    assert [bare.plot.get_attribute(name) for name in ("aria-valuemin", "aria-valuemax")] == ["-10", "10"]
    assert bare.reset.get_attribute("aria-label") and bare.goto.get_attribute("aria-label")


# ---- what it leaves alone -------------------------------------------------------------------------------------------


def test_the_wheel_and_the_mouse_events_of_the_page_stay_its_own(pad):
    bare = pad()
    bare.page.evaluate("""() => { window.events = [];
        for (const kind of ["wheel", "pointerdown", "mousedown", "mouseup", "click"])
            addEventListener(kind, (event) => events.push([kind, event.defaultPrevented])); }""")
    x, y = bare.centre()
    bare.page.mouse.move(x, y)
    bare.page.mouse.wheel(0, 120)
    bare.page.wait_for_function("scrollY > 0")
    bare.page.mouse.wheel(0, -500)
    bare.page.wait_for_function("scrollY === 0")
    bare.drag((x + 30, y), (x + 50, y))
    events = bare.page.evaluate("events")
    assert {kind for kind, _ in events} == {"wheel", "pointerdown", "mousedown", "mouseup", "click"}
    assert not any(prevented for _, prevented in events)


def test_styles_of_the_page_do_not_reach_in(pad):
    rude = "* { color: lime !important; font-size: 40px !important } svg { width: 16px; height: 16px }"
    bare = pad(css=f"{rude} .bar, .plot {{ display: none }}", theme="light")
    assert bare.plot.bounding_box()["height"] > 250
    assert bare.plot.locator(".model text").first.evaluate("e => getComputedStyle(e).fontSize") == "11px"
    assert bare.plot.locator(".model text").first.evaluate("e => getComputedStyle(e).fill") != "rgb(0, 255, 0)"


def test_nothing_is_left_in_the_window(pad):
    bare = pad()
    names = bare.page.evaluate("""() => { const frame = document.createElement("iframe"); document.body.append(frame);
        const names = Object.keys(window).filter((name) => !(name in frame.contentWindow)); frame.remove(); return names; }""")
    assert set(names) <= {"module", "show", "heard", "pad", "0", "keys", "events"}  # all of them the tests' own


# ---- what it shows --------------------------------------------------------------------------------------------------


def overlap(a: dict, b: dict) -> bool:
    return (
        min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"]) > 0.5
        and min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"]) > 0.5
    )


BOXES = """(plot, kind) => [...plot.querySelectorAll(kind)].map((part) => {
    const { x, y, width, height } = part.getBBox(); return { x, y: y + 2, width, height: height - 4 }; })"""


@pytest.mark.parametrize(
    "count, directions, names",
    [(2, 1, "m{}"), (8, 2, "m{:02d}"), (64, 2, "photoRealisticMix_v{}-pruned-fp16"), (20, 1, "m{:02d}")],
)
def test_names_cover_neither_each_other_nor_the_models(pad, screenshots, count, directions, names):
    bare = pad(family(count, directions, names=names), value=[0.3, 0.25], theme="dark" if count > 8 else "light")
    bare.page.locator("#host").screenshot(path=screenshots / f"pad-{count}-models-{directions}-directions.png")
    drawn = bare.plot.evaluate(BOXES, ".model text")
    dots = bare.plot.evaluate(BOXES, ".model .dot")
    assert len(dots) == count
    assert len(drawn) >= min(count, 8)
    assert not any(overlap(a, b) for a, b in itertools.combinations(drawn, 2))
    assert not any(overlap(text, dot) for text in drawn for dot in dots)
    box = bare.plot.bounding_box()
    assert all(0 <= text["x"] and text["x"] + text["width"] <= box["width"] for text in drawn)


def test_the_nearest_model_is_always_named(pad):
    bare = pad(family(64))
    for index in range(64):
        bare.value = multipliers(bare, index)
        name = bare.map["points"][index]["name"]
        assert bare.page.locator("#host .close").count() == 1
        shown = bare.plot.locator(".close text, .callout text").all_text_contents()
        assert shown == [name], index


def test_under_the_mouse_a_model_tells_its_numbers(pad, demo_map):
    bare = pad()
    bare.page.mouse.move(*bare.spot(3))
    point = demo_map["points"][3]
    texts = bare.plot.locator(".callout text").all_text_contents()
    assert texts[0] == point["name"]
    assert f"κ {point['multipliers'][1]:+.3f}" in texts[1]
    assert texts[2] == f"{100 * point['residual']:.0f} % of it lies off this map"
    bare.page.mouse.move(5, 5)
    assert bare.plot.locator(".callout text").count() == 0


def test_rings_grow_with_the_residual(pad):
    document = family(12)
    bare = pad(document)
    radii = [float(bare.plot.locator(".model > .ring").nth(m).get_attribute("r")) for m in range(12)]
    by_residual = sorted(range(12), key=lambda m: document["points"][m]["residual"])
    assert [radii[m] for m in by_residual] == sorted(radii) and len(set(radii)) == 12


def test_the_axes_tell_their_share_and_their_given_name(pad, demo_map):
    named = {**demo_map, "axes": [{**demo_map["axes"][0], "name": "cold ↔ hot"}, demo_map["axes"][1]]}
    bare = pad(named)
    texts = bare.plot.locator(".share").all_text_contents()
    shares = [f"{100 * share:.0f} %" for share in demo_map["explained"]]
    assert texts == [f"cold ↔ hot →{shares[0]}", f"↑ κ{shares[1]}"]


def test_a_model_that_was_not_merged_looks_different_and_can_be_taken(pad, demo_map):
    stranger = {**demo_map["points"][0], "name": "newcomer", "merged": False, "at": [0.3, 0.2], "multipliers": [0.3, 0.2]}
    bare = pad({**demo_map, "points": [*demo_map["points"], stranger]})
    assert bare.plot.locator(".model.projected").count() == 1
    bare.page.mouse.click(*bare.spot(8))
    assert bare.value == [0.3, 0.2]


def test_one_direction_is_a_slider(pad):
    bare = pad(family(5, 1), css="#host { height: 130px !important }")
    y = bare.centre()[1]
    assert [bare.spot(m)[1] for m in range(5)] == CLOSE([y] * 5, abs=0.6)
    bare.drag(bare.handle(), (bare.centre()[0] + 60, y + 30))
    assert bare.value[0] > 0.3 and bare.value[1] == 0
    bare.page.mouse.click(*bare.spot(2))
    assert bare.value[0] == multipliers(bare, 2)[0]
    bare.plot.focus()
    bare.page.keyboard.press("ArrowUp")
    assert bare.value[0] == CLOSE(multipliers(bare, 2)[0] + 0.01, abs=1e-4)


def test_multipliers_of_directions_that_the_map_lacks_go_with_the_next_move(pad):
    """After another hyper-model with fewer: a host refuses them, and nobody sees them here.  Escape gives them back."""
    bare = pad(family(5, 1), value=[0.1, 0.5, 0.25])
    assert bare.value == [0.1, 0.5, 0.25]  # looking at it changes nothing
    bare.drag(bare.handle(), (bare.centre()[0] + 60, bare.centre()[1]), release=False)
    assert bare.value[0] > 0.3 and bare.value[1:] == [0, 0]
    bare.page.keyboard.press("Escape")
    assert bare.value == [0.1, 0.5, 0.25]
    bare.page.mouse.up()
    bare.plot.focus()
    bare.page.keyboard.press("ArrowRight")
    assert bare.value == CLOSE([0.11, 0, 0])


def test_axes_that_no_map_has_are_left_alone(pad):
    """They stand in workflows, which people exchange."""
    bare = pad(family(9, 4))
    for axes in ([0, 0], [-1, 0], [0, 4], ["x", "y"], [0.5, 1], [0], [0, 1, 2], [0, 0, 1], "01", []):
        bare.page.evaluate("axes => { pad.axes = axes }", axes)
        assert bare.page.evaluate("pad.axes") == [0, 1]
    bare.page.evaluate("pad.axes = [3, 1]")
    assert bare.page.evaluate("pad.axes") == [3, 1]


def test_of_four_directions_two_are_moved_and_chosen(pad):
    bare = pad(family(9, 4), value=[0.1, 0.2, 0.3, 0.4])
    x, y = bare.centre()
    bare.drag(bare.handle(), (x + 40, y + 40))
    assert bare.value[2:] == [0.3, 0.4] and bare.value[0] > 0 > bare.value[1]
    bare.page.locator("#host select.axis").nth(1).select_option(label="c4")
    assert ["axes", [0, 3]] in bare.heard()
    before = bare.value
    bare.drag(bare.handle(), (x - 30, y - 30))
    assert bare.value[1:3] == before[1:3] and bare.value[0] < 0 < bare.value[3]
    bare.page.locator("#host select.axis").nth(0).select_option(label="c4")  # taken already: they change places
    assert ["axes", [3, 0]] in bare.heard()
    bare.goto.select_option(label="model-06")
    assert bare.value == multipliers(bare, 6)  # all four


def test_a_driven_axis_is_shown_and_not_moved(pad):
    bare = pad(value=[0.5, 0.1])
    bare.page.evaluate("pad.driven = ['set by Sweep', null]")
    bare.drag(bare.handle(), bare.centre(), bare.spot(3))
    assert bare.value[0] == 0.5 and bare.value[1] != 0.1
    driven = bare.page.locator("#host .driven")
    assert driven.count() == 1 and driven.get_attribute("title") == "set by Sweep"
    bare.page.evaluate("pad.driven = ['set by Sweep', 'set by Sweep']")
    before = bare.value
    bare.heard()
    bare.page.mouse.click(*bare.centre())
    bare.plot.focus()
    bare.page.keyboard.press("ArrowUp")
    assert bare.value == before and "change" not in [name for name, _ in bare.heard()]
    assert bare.plot.get_attribute("aria-disabled") == "true"


def test_a_base_of_nothing_shows_the_models_and_starts_in_their_middle(pad):
    bare = pad(family(6, far_base=True))
    spots = [bare.spot(m) for m in range(6)]
    xs = [x for x, _ in spots]
    bare.value = multipliers(bare, 0)
    assert max(bare.spot(m)[0] for m in range(6)) - min(bare.spot(m)[0] for m in range(6)) > 100 > max(xs) - min(xs)
    bare.reset.click()
    points = bare.map["points"]
    assert bare.value == CLOSE([sum(p["multipliers"][k] for p in points) / 6 for k in range(2)])


def test_without_a_map_it_still_moves_and_says_why_it_is_empty(pad):
    bare = pad(None, message="Run once to see the map")
    assert bare.plot.locator(".message").text_content() == "Run once to see the map"
    bare.page.mouse.click(bare.centre()[0] + 50, bare.centre()[1])
    assert bare.value[0] > 0.3
    bare.page.evaluate("map => pad.setMap(map)", family(3))
    assert bare.plot.locator(".message").text_content() == "" and bare.plot.locator(".model").count() == 3


def test_values_from_outside_call_nothing_back(pad):
    bare = pad()
    bare.value = [0.5, -3.0]
    bare.page.evaluate("pad.applied = [0.1, 0.2]")
    assert bare.heard() == [] and bare.value == [0.5, -3.0]
    assert bare.plot.locator(".applied").is_visible()


def test_another_size_is_another_drawing_and_hidden_is_none(pad):
    bare = pad()
    first = bare.spot(6)
    bare.page.evaluate("host.style.width = '600px'; host.style.height = '500px'")
    bare.page.wait_for_function("host.shadowRoot.querySelector('.map').getAttribute('viewBox').startsWith('0 0 598')")
    assert bare.spot(6)[0] > first[0] + 50
    bare.page.evaluate("host.hidden = true")
    bare.page.evaluate("() => { host.hidden = false; return new Promise((done) => setTimeout(done, 100)); }")
    bare.page.mouse.click(*bare.spot(6))
    assert bare.value == multipliers(bare, 6)


def test_both_themes_by_choice_and_by_the_readers_system(pad):
    ground = "getComputedStyle(host).backgroundColor"
    bare = pad()
    bare.page.emulate_media(color_scheme="dark")
    dark = bare.page.evaluate(ground)
    bare.page.emulate_media(color_scheme="light")
    light = bare.page.evaluate(ground)
    assert dark != light
    bare.page.evaluate("pad.theme = 'dark'")
    assert bare.page.evaluate(ground) == dark
    bare.page.evaluate("pad.theme = 'auto'")
    assert bare.page.evaluate(ground) == light


# ---- its small parts ------------------------------------------------------------------------------------------------


def test_hull_and_names(pad):
    page = pad(None).page
    square = [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert page.evaluate("points => module.convexHull(points)", [*square, [0.5, 0.5], [0.5, 0], [0, 0]]) == square
    assert page.evaluate("points => module.convexHull(points)", [[0, 0], [2, 2], [1, 1]]) == [[0, 0], [2, 2]]
    inside = "([hull, point]) => module.inHull(hull, point)"
    for point, expected in (([0.5, 0.5], True), ([1, 1], True), ([1.02, 0.5], False), ([-0.1, -0.1], False)):
        assert page.evaluate(inside, [square, point]) is expected
    assert page.evaluate(inside, [[[-1, 0], [1, 0]], [0.5, 0]]) and not page.evaluate(inside, [[[-1, 0], [1, 0]], [1.5, 0]])
    short = "names => module.shortNames(names)"
    assert page.evaluate(short, ["a", "b"]) == ["a", "b"]
    long = [f"photoRealisticMix_v{n}-pruned-fp16" for n in (9, 10, 20)]
    assert page.evaluate(short, long) == ["v9", "v10", "v20"]
    assert page.evaluate(short, ["a very long name of a single model v12"]) == ["a very long …model v12"]
    same = ["one and the same long name"] * 2
    assert all(page.evaluate(short, same))
