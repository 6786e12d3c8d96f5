"""A person at ComfyUI: builds a graph, drags on the pad, looks at widgets, undo queue and the prompts that were sent."""

from __future__ import annotations

import json
from typing import Any

from frontend.stand_in import StandIn

BUILD = """async ({ nodes, links }) => {
    const { app } = comfyAPI.app;
    const empty = { version: 0.4, nodes: [], links: [], groups: [], config: {}, extra: {}, last_node_id: 0, last_link_id: 0 };
    await app.loadGraphData(empty, true, false, app.extensionManager.workflow.activeWorkflow);
    const made = nodes.map(([type, pos, values]) => {
        const node = LiteGraph.createNode(type);
        node.pos = pos;
        app.graph.add(node);
        for (const [name, value] of Object.entries(values ?? {})) node.widgets.find((w) => w.name === name).value = value;
        return node;
    });
    for (const [from, output, to, input] of links) {
        made[from].connect(output, made[to], made[to].inputs.findIndex((slot) => slot.name === input));
    }
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0];
    app.canvas.deselectAll?.();
    app.canvas.setDirty(true, true);
    return made.map((node) => node.id);
}"""
FORGET = """(app) => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
    tracker.undoQueue.length = tracker.redoQueue.length = 0;
}"""
HARMLESS = (  # what the frontend says of its own accord
    "ERR_NAME_NOT_RESOLVED",
    "ERR_FAILED",
    "404 (Not Found)",
    "graph accessed before initialization",
    "cleanup event listeners for graph that was never set up",
)


class Comfy:
    """One page of the real frontend, on the classic canvas or with Vue nodes."""

    def __init__(self, browser: Any, server: StandIn, *, vue: bool, **context: Any):
        self.server, self.vue = server, vue
        server.settings["Comfy.VueNodes.Enabled"] = vue
        self.errors: list[str] = []
        options = {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark", **context}
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(15_000)
        self.context.set_default_navigation_timeout(90_000)
        self.page = page = self.context.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(server.url) else route.abort())
        self.open()

    def _hear(self, line: Any) -> None:
        if line.type == "error" and not any(part in line.text for part in HARMLESS):
            self.errors.append(line.text)

    def open(self) -> None:
        """Loads the page and waits until nodes can be made."""
        self.page.goto(self.server.url)
        self.page.wait_for_function(
            "() => { const tracker = window.comfyAPI?.app?.app?.extensionManager?.workflow?.activeWorkflow?.changeTracker;"
            " return tracker && !tracker.constructor.isLoadingGraph && LiteGraph.registered_node_types.HyperMergeBlend; }",
            timeout=90_000,
        )
        self.settle(500)
        self.page.keyboard.press("Escape")

    def close(self) -> None:
        self.context.close()

    # ---- graph -----------------------------------------------------------------------------------------------------

    def build(self, nodes: list[list[Any]], links: list[list[Any]]) -> list[Any]:
        """nodes: [type, [x, y], {widget: value}?]; links: [from, output, to, input name].  → node ids"""
        ids = self.page.evaluate(BUILD, {"nodes": nodes, "links": links})
        self.settle(300)  # Vue nodes grow to what they hold, which the tracker would take for a change
        self.call(FORGET)
        return ids

    def blend(self, hyper: str, x: int = 420, y: int = 90, **values: Any) -> Any:
        """The usual graph: Load → Blend → a sink; → id of Blend."""
        nodes = [["HyperMergeLoad", [70, 120], {"name": hyper}], ["HyperMergeBlend", [x, y], values], ["TestSink", [860, 120]]]
        links = [[0, 1, 1, "model"], [0, 0, 1, "hyper"], [1, 0, 2, "model"], [1, 1, 2, "clip"]]
        blend = self.build(nodes, links)[1]
        self.plot.wait_for()
        if hyper in self.server.maps:
            self.plot.locator(".model .dot").first.wait_for(state="attached")
        self.settle()
        return blend

    def settle(self, milliseconds: int = 150) -> None:
        """Lets microtasks, Vue and the canvas draw."""
        self.page.wait_for_timeout(milliseconds)

    def call(self, script: str, argument: Any = None) -> Any:
        """Evaluates `(app, argument) => …` in the page."""
        return self.page.evaluate(f"(argument) => ({script})(comfyAPI.app.app, argument)", argument)

    def widget(self, node: Any, name: str) -> Any:
        script = "(app, [id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value"
        return self.call(script, [node, name])

    def values(self, node: Any) -> list[float]:
        """λ and κ."""
        return [self.widget(node, "lam"), self.widget(node, "kap")]

    def workflow(self) -> dict[str, Any]:
        """As it would be saved."""
        return self.call("(app) => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def load(self, workflow: dict[str, Any]) -> None:
        self.call("(app, workflow) => app.loadGraphData(workflow)", workflow)
        self.settle(400)

    def api_prompt(self) -> dict[str, Any]:
        return self.call("async (app) => (await app.graphToPrompt()).output")

    def recorded(self) -> dict[str, Any]:
        """The workflow as undo knows it: after an undo that is finished, the one that it went back to."""
        return self.call("(app) => app.extensionManager.workflow.activeWorkflow.changeTracker.activeState")

    def steps(self) -> int:
        """Undo steps that could be taken back now."""
        return self.call("(app) => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length")

    def zoom(self, scale: float, x: float = 0, y: float = 0) -> None:
        script = "(app, place) => { Object.assign(app.canvas.ds, place); app.canvas.setDirty(true, true); }"
        self.call(script, {"scale": scale, "offset": [x, y]})
        self.settle(300)

    def view(self) -> list[float]:
        return self.call("(app) => [app.canvas.ds.scale, ...app.canvas.ds.offset]")

    def on_change(self, wanted: bool = True) -> None:
        """Run (On Change)."""
        self.call("(app, mode) => { app.extensionManager.queueSettings.mode = mode; }", "change" if wanted else "disabled")

    def setting(self, name: str, value: Any) -> None:
        self.call("(app, [name, value]) => app.extensionManager.setting.set(name, value)", [name, value])
        self.settle(400)

    # ---- hands -----------------------------------------------------------------------------------------------------

    @property
    def plot(self) -> Any:
        return self.page.locator(".plot[role=slider]")

    def spot(self, index: int) -> tuple[float, float]:
        """Where a model's point is on the screen."""
        return self._middle(self.plot.locator(".model .dot").nth(index))

    def handle(self) -> tuple[float, float]:
        return self._middle(self.plot.locator(".handle"))

    def centre(self) -> tuple[float, float]:
        return self._middle(self.plot)

    @staticmethod
    def _middle(locator: Any) -> tuple[float, float]:
        box = locator.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, *way: tuple[float, float], button: str = "left") -> None:
        mouse = self.page.mouse
        mouse.move(*way[0])
        mouse.down(button=button)
        for place in way[1:]:
            mouse.move(*place, steps=5)
        mouse.up(button=button)
        self.settle()

    def key(self, *keys: str) -> None:
        """"z", "Control+z".  The frontend looks at a key in the next frame; a chord is held until then, as by a hand.

        Control that is let go before, as on a busy machine, has it take the last key for a modifier alone: it records
        the graph before it goes back, and an undo may then find a step of which nothing is to be seen.
        """
        keyboard = self.page.keyboard
        for key in keys:
            *modifiers, last = key.split("+")
            for modifier in modifiers:
                keyboard.down(modifier)
            keyboard.down(last)
            if modifiers:
                self.page.evaluate("() => new Promise(requestAnimationFrame)")
            keyboard.up(last)
            for modifier in modifiers:
                keyboard.up(modifier)
        self.settle()

    def prompts_after(self, count: int, wait: int = 700) -> list[dict[str, Any]]:
        """Prompts that came since there were `count`, once no more come for a while."""
        self.settle(wait)
        return [json.loads(json.dumps(body["prompt"])) for body in self.server.prompts[count:]]
