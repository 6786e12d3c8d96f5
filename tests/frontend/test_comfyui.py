"""The nodes' browser side in ComfyUI's real frontend: an old and the newest one, classic canvas and Vue nodes."""

from __future__ import annotations

import pytest

pytest.importorskip("aiohttp", reason="NO FRONTEND TESTS: aiohttp is not installed")

from frontend.definitions import FOUR, HYPER, definitions  # noqa: E402
from frontend.driver import Comfy  # noqa: E402
from frontend.maps import family  # noqa: E402
from frontend.paths import VERSIONS, WEB, static_files  # noqa: E402
from frontend.stand_in import StandIn  # noqa: E402

MODELS = [
    {"name": "demo/hot-faint.safetensors", "folder": "demo", "size": 293000, "modified": 0},
    {"name": "demo/cold-dense.safetensors", "folder": "demo", "size": 293000, "modified": 0},
    *({"name": f"sdxl/v{n}.safetensors", "folder": "checkpoints", "size": 6938078334, "modified": 0} for n in range(20)),
]


@pytest.fixture(scope="module", params=[(version, vue) for version in VERSIONS for vue in (False, True)],
                ids=lambda param: f"{param[0]}-{'vue' if param[1] else 'classic'}")  # fmt: skip
def session(request, browser, demo_map):
    """(Comfy, StandIn) of one frontend and renderer, kept for all tests of this file."""
    version, vue = request.param
    server = StandIn(static_files(version), WEB, definitions(), {HYPER: demo_map, FOUR: family(9, 4)}, MODELS)
    comfy = Comfy(browser, server, vue=vue)
    comfy.name = f"{version}-{'vue' if vue else 'classic'}"
    yield comfy, server
    comfy.close()
    server.close()


@pytest.fixture
def comfy(session):
    comfy, server = session
    server.outputs.clear()
    comfy.on_change(False)
    yield comfy
    assert comfy.errors == []


@pytest.fixture
def server(session):
    return session[1]


def at(server: StandIn, index: int, name: str = HYPER) -> list[float]:
    return server.maps[name]["points"][index]["multipliers"]


def node_of(workflow: dict, kind: str) -> dict:
    """The one node of that type, less what drawing it decides."""
    (node,) = (node for node in workflow["nodes"] if node["type"] == kind)
    return {key: value for key, value in node.items() if key not in ("order", "size")}


def test_the_pad_is_the_map_of_what_load_gives(comfy, server, screenshots):
    comfy.blend(HYPER)
    assert comfy.plot.locator(".model").count() == len(server.maps[HYPER]["points"])
    assert comfy.plot.locator(".share").count() == 2
    assert comfy.plot.bounding_box()["height"] > 200
    comfy.drag(comfy.handle(), comfy.spot(3), [c + 25 for c in comfy.spot(3)])
    comfy.page.mouse.move(5, 500)
    comfy.settle()
    comfy.page.screenshot(path=screenshots / f"comfyui-{comfy.name}-dark.png")


def went_to(comfy, node, wanted, patience=15_000):
    """Do undo and redo get there, and are done?  They configure the whole graph, for which a busy machine takes a while."""
    for _ in range(patience // 100):
        recorded = node_of(comfy.recorded(), "HyperMergeBlend")
        if comfy.values(node) == wanted == recorded["widgets_values"][:2]:
            break
        comfy.settle(100)
    comfy.settle(300)
    # What it went back to is there as it was recorded, or the next look would be a step of its own and take redo away.
    # So it is with ours; a node without widgets comes back with an empty list of them in 1.45.21, also without the pad.
    return comfy.values(node) == wanted and node_of(comfy.workflow(), "HyperMergeBlend") == recorded


def test_a_drag_moves_the_widgets_and_is_one_undo_step(comfy, server):
    blend = comfy.blend(HYPER)
    steps = comfy.steps()
    comfy.drag(comfy.handle(), comfy.spot(0), comfy.spot(3))
    assert comfy.values(blend) == at(server, 3)
    assert comfy.steps() == steps + 1
    comfy.drag(comfy.handle(), comfy.spot(6))
    assert comfy.steps() == steps + 2
    comfy.page.mouse.click(640, 800)
    comfy.key("Control+z")
    assert went_to(comfy, blend, at(server, 3))
    assert comfy.handle() == pytest.approx(comfy.spot(3), abs=1.5)  # the pad went back too
    for key, wanted, left in (("z", [0, 0], 0), ("y", at(server, 3), 1), ("y", at(server, 6), 2), ("z", at(server, 3), 1)):
        comfy.key(f"Control+{key}")
        assert went_to(comfy, blend, wanted)
        assert comfy.steps() == steps + left


def test_what_is_sent_and_saved_is_as_if_there_were_no_pad(comfy, server):
    blend = comfy.blend(HYPER)
    comfy.drag(comfy.handle(), comfy.spot(5))
    lam, kap = at(server, 5)
    inputs = comfy.api_prompt()[str(blend)]["inputs"]
    assert inputs.pop("model") and inputs.pop("hyper")
    assert inputs == {"lam": lam, "kap": kap, "further": "", "strength_clip": 1, "directions": "file", "method": "auto"}
    node = node_of(comfy.workflow(), "HyperMergeBlend")
    assert node["widgets_values"] == [lam, kap, "", 1, "file", "auto"]
    assert "pad" not in str(node)


def test_on_change_one_drag_is_one_prompt(comfy, server):
    blend = comfy.blend(HYPER)
    comfy.on_change()
    count = len(server.prompts)
    comfy.drag(comfy.handle(), comfy.spot(0), comfy.centre(), comfy.spot(3))
    prompts = comfy.prompts_after(count)
    assert len(prompts) == 1
    assert [prompts[0][str(blend)]["inputs"][name] for name in ("lam", "kap")] == at(server, 3)


def test_on_change_a_held_key_is_one_prompt_and_the_step_is_undone(comfy, server):
    blend = comfy.blend(HYPER)
    comfy.on_change()
    comfy.plot.focus()
    count, steps = len(server.prompts), comfy.steps()
    for _ in range(6):
        comfy.page.keyboard.down("ArrowRight")  # the second and further ones as the keyboard repeats it
    comfy.page.keyboard.up("ArrowRight")
    prompts = comfy.prompts_after(count)
    assert [prompt[str(blend)]["inputs"]["lam"] for prompt in prompts] == [pytest.approx(0.06)]
    assert comfy.steps() == steps + 1
    comfy.on_change(False)
    comfy.key("Control+z")  # from within the pad
    assert went_to(comfy, blend, [0, 0])


def test_reset_list_and_digits_are_steps_too(comfy, server):
    blend = comfy.blend(HYPER)
    steps = comfy.steps()
    comfy.page.locator(".goto").select_option(index=3)
    comfy.settle()
    assert comfy.values(blend) == at(server, 1)
    comfy.plot.focus()
    comfy.key("5")
    assert comfy.values(blend) == at(server, 4)
    comfy.page.locator("button.reset").click()
    comfy.settle()
    assert comfy.values(blend) == [0, 0] and comfy.steps() == steps + 3


def test_keys_that_mean_something_here_are_no_commands_of_comfyui(comfy):
    blend = comfy.blend(HYPER)
    comfy.plot.click(position={"x": 30, "y": 200})
    state = "(app) => app.graph.nodes.map((node) => [node.id, [...node.pos], node.mode, Boolean(node.flags?.collapsed)])"
    before = comfy.call(state)
    comfy.plot.focus()
    comfy.key("n", "p", "ArrowLeft", "ArrowDown", "0", "Home")
    assert comfy.call(state) == before and comfy.values(blend) == [0, 0]


def test_the_pad_follows_other_hands(comfy, server):
    blend = comfy.blend(HYPER)
    script = """(app, [id, lam, kap]) => { const node = app.graph.getNodeById(id); app.canvas.emitBeforeChange();
        node.widgets.find((w) => w.name === "lam").value = lam; node.widgets.find((w) => w.name === "kap").value = kap;
        app.canvas.emitAfterChange(); }"""
    comfy.call(script, [blend, *at(server, 6)])
    comfy.settle()
    assert comfy.handle() == pytest.approx(comfy.spot(6), abs=1.5)
    other = """(app, name) => { app.canvas.emitBeforeChange();
        app.graph.nodes.find((node) => node.type === "HyperMergeLoad").widgets[0].value = name; app.canvas.emitAfterChange(); }"""
    comfy.call(other, FOUR)
    comfy.page.wait_for_function("() => true")
    comfy.settle(400)
    assert comfy.plot.locator(".model").count() == 9 and server.asked[-1] == FOUR


def test_a_saved_workflow_comes_back_as_it_was(comfy, server):
    blend = comfy.blend(HYPER)
    comfy.drag(comfy.handle(), comfy.spot(2))
    workflow = comfy.workflow()
    comfy.blend(HYPER)
    comfy.load(workflow)
    assert comfy.values(blend) == at(server, 2)
    comfy.plot.locator(".model .dot").first.wait_for(state="attached")
    assert comfy.handle() == pytest.approx(comfy.spot(2), abs=1.5)
    assert node_of(comfy.workflow(), "HyperMergeBlend") == node_of(workflow, "HyperMergeBlend")
    comfy.drag(comfy.handle(), comfy.spot(4))
    assert comfy.values(blend) == at(server, 4)


def test_a_linked_input_is_shown_as_driven(comfy, server):
    nodes = [["HyperMergeLoad", [70, 120], {"name": HYPER}], ["HyperMergeBlend", [420, 90]], ["HyperMergeProject", [70, 420]]]
    links = [[0, 1, 1, "model"], [0, 0, 1, "hyper"], [0, 0, 2, "hyper"], [2, 0, 1, "lam"]]
    blend = comfy.build(nodes, links)[1]
    comfy.plot.locator(".model .dot").first.wait_for(state="attached")
    assert comfy.page.locator(".numbers .driven").get_attribute("title") == "set by HyperMerge Project"
    comfy.drag(comfy.handle(), comfy.spot(3))
    assert comfy.widget(blend, "lam") == 0 and comfy.widget(blend, "kap") == at(server, 3)[1]
    assert comfy.api_prompt()[str(blend)]["inputs"]["lam"][1] == 0  # still the link
    cut = "node.disconnectInput(node.inputs.findIndex((input) => input.name === 'lam'))"
    comfy.call(f"(app, id) => {{ const node = app.graph.getNodeById(id); {cut}; }}", blend)
    comfy.settle()
    assert comfy.page.locator(".numbers .driven").count() == 0
    comfy.drag(comfy.handle(), comfy.spot(3))
    assert comfy.values(blend) == at(server, 3)


@pytest.mark.parametrize("scale, offset", [(0.55, (300, 150)), (1.6, (-420, -260))])
def test_on_a_zoomed_canvas_a_model_is_where_it_is_drawn(comfy, server, screenshots, scale, offset):
    blend = comfy.blend(HYPER)
    comfy.zoom(scale, *offset)
    for index in (0, 3, 6):
        comfy.page.mouse.click(*comfy.spot(index))
        comfy.settle()
        assert comfy.values(blend) == at(server, index)
    comfy.page.screenshot(path=screenshots / f"comfyui-{comfy.name}-zoom-{scale}.png")


def test_the_wheel_zooms_and_the_middle_button_moves_the_canvas_through_the_pad(comfy):
    comfy.blend(HYPER)
    before = comfy.view()
    comfy.page.mouse.move(*comfy.centre())
    comfy.page.mouse.wheel(0, -120)
    comfy.settle(400)
    zoomed = comfy.view()
    assert 1 < zoomed[0] / before[0] < 1.25  # once, not twice
    comfy.zoom(1)
    x, y = comfy.centre()
    comfy.drag((x, y), (x + 60, y + 30), button="middle")
    assert comfy.view()[1:] == pytest.approx([60, 30], abs=3)


def test_a_finger_drags(comfy, server):
    blend = comfy.blend(HYPER)
    steps = comfy.steps()
    session = comfy.context.new_cdp_session(comfy.page)
    (x, y), (u, v) = comfy.handle(), comfy.spot(7)
    way = [(x + (u - x) * n / 6, y + (v - y) * n / 6) for n in range(7)]
    for n, place in enumerate(way):
        kind = "touchMove" if n else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": place[0], "y": place[1]}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()
    comfy.settle()
    assert comfy.values(blend) == at(server, 7)
    assert comfy.steps() == steps + 1
    assert comfy.view() == [1, 0, 0]


def test_four_directions_fill_further_and_the_axes_are_kept(comfy, server):
    blend = comfy.blend(FOUR)
    comfy.page.locator(".goto").select_option(label="model-04")
    comfy.settle()
    lam, kap, *further = at(server, 4, FOUR)
    assert comfy.values(blend) == [lam, kap]
    assert comfy.widget(blend, "further") == ", ".join(str(value) for value in further)
    comfy.page.locator("select.axis").nth(1).select_option(label="c4")
    comfy.settle()
    comfy.drag(comfy.handle(), comfy.centre())
    assert comfy.values(blend) == [0, kap] and comfy.widget(blend, "further") == str(further[0])
    workflow = comfy.workflow()
    comfy.blend(HYPER)
    comfy.load(workflow)
    comfy.plot.locator(".model .dot").first.wait_for(state="attached")
    assert comfy.page.locator("select.axis").nth(1).evaluate("list => list.selectedOptions[0].text") == "c4"


def test_what_another_hyper_model_left_behind_goes_with_the_next_drag(comfy, server):
    """Four directions were set, this one has two: the node would refuse the rest.  Undo brings it back."""
    blend = comfy.blend(HYPER, further="0.3, 0.1")
    assert comfy.widget(blend, "further") == "0.3, 0.1"
    comfy.drag(comfy.handle(), comfy.spot(3))
    assert comfy.values(blend) == at(server, 3) and comfy.widget(blend, "further") == ""
    comfy.page.mouse.click(640, 800)
    comfy.key("Control+z")
    assert went_to(comfy, blend, [0, 0])
    assert comfy.widget(blend, "further") == "0.3, 0.1"


def test_a_light_palette_makes_a_light_pad(comfy, screenshots):
    comfy.blend(HYPER)
    host = "(plot) => getComputedStyle(plot.getRootNode().host).backgroundColor"
    dark = comfy.plot.evaluate(host)
    comfy.setting("Comfy.ColorPalette", "light")
    light = comfy.plot.evaluate(host)
    comfy.plot.hover(position={"x": 3, "y": 3})
    comfy.page.screenshot(path=screenshots / f"comfyui-{comfy.name}-light.png")
    comfy.setting("Comfy.ColorPalette", "dark")
    assert (dark, light) == ("rgb(30, 32, 37)", "rgb(254, 254, 254)")
    assert comfy.plot.evaluate(host) == dark


def test_after_a_solve_has_run_its_map_appears(comfy, server):
    nodes = [["HyperMergeSolve", [70, 90]], ["HyperMergeBlend", [480, 90]], ["TestSink", [900, 120]]]
    comfy.build(nodes, [[0, 0, 1, "hyper"], [1, 0, 2, "model"]])
    assert comfy.page.locator(".message").text_content() == "Run once to see the map"
    server.outputs["HyperMergeSolve"] = {"hyper_merge": [{"name": HYPER}], "text": ["2 directions explain 85 %"]}
    server.outputs["HyperMergeBlend"] = {"hyper_merge": [{"name": HYPER, "at": [0.25, 0.5]}]}
    comfy.call("(app) => app.queuePrompt(0, 1)")
    comfy.plot.locator(".model .dot").first.wait_for(state="attached")
    assert comfy.plot.locator(".applied").is_visible()  # where the picture was made
    assert comfy.page.locator(".note").text_content() == "2 directions explain 85 %"


def test_a_hyper_model_that_is_gone_says_so(comfy):
    comfy.build([["HyperMergeLoad", [70, 120]], ["HyperMergeBlend", [420, 90]]], [])
    assert comfy.page.locator(".message").text_content() == "Connect a hyper-model to see its map"
    comfy.blend("gone.hyper.safetensors")
    comfy.settle(300)
    assert comfy.page.locator(".message").text_content() == "gone.hyper.safetensors: no such hyper-model"


def test_through_a_reroute_and_a_bypassed_node(comfy):
    nodes = [["HyperMergeLoad", [70, 120], {"name": HYPER}], ["Reroute", [360, 60]], ["HyperMergeBlend", [480, 90]]]
    comfy.build(nodes, [[0, 0, 1, ""], [1, 0, 2, "hyper"]])
    comfy.plot.locator(".model .dot").first.wait_for(state="attached")
    loads = [["HyperMergeLoad", [70, y], {"name": name}] for y, name in ((120, HYPER), (420, FOUR))]
    comfy.build([*loads, ["HyperMergeBlend", [480, 90]]], [[0, 0, 1, "hyper"], [1, 0, 2, "hyper"]])
    comfy.call("(app) => { app.canvas.emitBeforeChange(); app.graph.nodes[1].mode = 4; app.canvas.emitAfterChange(); }")
    comfy.settle(400)
    assert comfy.plot.locator(".model").count() == 8


def test_ticking_models_writes_the_list_of_solve(comfy, screenshots):
    solve = comfy.build([["HyperMergeSolve", [420, 90], {"models": "sdxl/v1?.safetensors"}]], [])[0]
    steps = comfy.steps()
    box = lambda name: comfy.page.locator(f".name:text-is('{name}')")  # noqa: E731
    box("demo/hot-faint.safetensors").click()
    comfy.settle()
    box("demo/cold-dense.safetensors").click()
    comfy.settle()
    lines = ["sdxl/v1?.safetensors", "demo/hot-faint.safetensors", "demo/cold-dense.safetensors"]
    assert comfy.widget(solve, "models").split("\n") == lines
    assert comfy.steps() == steps + 2
    assert comfy.page.locator(".count").text_content() == "12 chosen"  # ten by the pattern
    comfy.page.screenshot(path=screenshots / f"comfyui-{comfy.name}-solve.png")
    box("demo/hot-faint.safetensors").click()
    comfy.settle()
    text = f"{lines[0]}\n{lines[2]}"
    assert comfy.widget(solve, "models") == text
    comfy.page.locator("input[type=search]").fill("COLD")
    assert comfy.page.locator("li label").count() == 1
    assert node_of(comfy.workflow(), "HyperMergeSolve")["widgets_values"][:4] == [text, "mean", 2, ""]


def test_info_shows_its_text(comfy, server):
    comfy.build([["HyperMergeLoad", [70, 120], {"name": HYPER}], ["HyperMergeInfo", [420, 90]]], [[0, 0, 1, "hyper"]])
    server.outputs["HyperMergeInfo"] = {"text": ["8 models, 2 directions\nλ 55 %"]}
    comfy.call("(app) => app.queuePrompt(0, 1)")
    comfy.page.locator("pre:has-text('8 models')").wait_for()


def test_in_a_subgraph_the_pad_works_too(comfy, server):
    blend = comfy.blend(HYPER)
    script = """(app, id) => { const node = app.graph.getNodeById(id);
        const load = app.graph.nodes.find((node) => node.type === "HyperMergeLoad");
        const { node: outer } = app.graph.convertToSubgraph(new Set([node, load]));
        app.canvas.setGraph(outer.subgraph); }"""
    comfy.call(script, blend)
    comfy.zoom(1)
    comfy.settle(500)
    comfy.plot.locator(".model .dot").first.wait_for(state="attached")
    steps = comfy.steps()
    comfy.page.locator(".goto").select_option(index=4)
    comfy.settle()
    inner = "app.canvas.graph.nodes.find((node) => node.type === 'HyperMergeBlend')"
    assert comfy.call(f"(app) => {inner}.widgets.slice(0, 2).map((widget) => widget.value)") == at(server, 2)
    assert comfy.steps() == steps + 1
    sent = [node["inputs"] for node in comfy.api_prompt().values() if node["class_type"] == "HyperMergeBlend"]
    assert [[inputs["lam"], inputs["kap"]] for inputs in sent] == [at(server, 2)]
    comfy.call("(app) => app.canvas.setGraph(app.graph)")
    comfy.settle()


@pytest.mark.parametrize("session", [("newest", False)], indirect=True, ids=["newest-classic"])
def test_without_our_scripts_the_same_prompt_is_sent(comfy, server, browser, tmp_path):
    comfy.blend(HYPER, lam=0.25)
    comfy.drag(comfy.handle(), comfy.spot(1))
    workflow, prompt = comfy.workflow(), comfy.api_prompt()
    bare = StandIn(server.static, tmp_path, definitions(), {}, [])
    other = Comfy(browser, bare, vue=comfy.vue)
    other.load(workflow)
    inputs = {node: entry["inputs"] for node, entry in other.api_prompt().items()}
    assert other.plot.count() == 0
    assert inputs == {node: entry["inputs"] for node, entry in prompt.items()}
    other.close()
    bare.close()


def test_removed_nodes_leave_nothing(comfy):
    comfy.blend(HYPER)
    comfy.call("(app) => { for (const node of [...app.graph.nodes]) app.graph.remove(node); }")
    comfy.settle()
    assert comfy.plot.count() == 0
    kept = comfy.page.evaluate("Object.keys(window).filter((name) => /hyper.?merge|^pad$/i.test(name))")
    assert kept == []
