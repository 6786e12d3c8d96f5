"""A page as the web UI makes it, around the extension's own files: run by the Python of one Gradio version.

    python -P server.py FOLDER [PATH…]      PATHs: where the tests, hypermerge_ext and torch are, after Gradio's own

Prints one line of JSON: the addresses of the page, and of the same page without the compiled part.  Serves until its
standard input ends.  Under /test/… a test asks what the page does not show.
"""

from __future__ import annotations

import importlib.util
import json
import mimetypes
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path += sys.argv[2:]
for ending in (".js", ".mjs"):
    mimetypes.add_type("application/javascript", ending)

import gradio as gr  # noqa: E402  from here on what the test's own Python has is found too

from families import family, save  # noqa: E402
from webui.facade import harness, network  # noqa: E402

PLACES = ("txt2img", "img2img")


class Host:
    """The facade, and what only a page needs of the host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.webui = webui = harness.WebUI(folder, no_half=True)
        save(webui.checkpoints, family(5, seed=5, delta=0.3, dtypes="F16", shapes=network.SHAPES), prefix="n")
        webui.sd_models.list_models()
        self.options()
        self.util()
        self.tasks = SimpleNamespace(now=None, done=[])
        webui.call_queue.wrap_gradio_gpu_call = self.gpu_call
        self.slow()
        webui.load_base()
        self.scripts = self.load("hyper_merge"), self.load("hyper_merge_animation")
        self.plot = webui.scripts.plot_script()
        webui.script_callbacks.call("on_before_ui")
        webui.script_callbacks.call("on_ui_settings")
        self.doors: dict[str, Any] = {}

    def options(self) -> None:
        shared = self.webui.shared
        shared.OptionInfo = lambda default, *more, **named: SimpleNamespace(default=default)

        def add_option(key: str, info: Any) -> None:
            shared.opts.data[key] = shared.opts.data_labels[key] = info.default

        type(shared.opts).add_option = staticmethod(add_option)

    @staticmethod
    def util() -> None:
        sys.modules["modules.util"] = util = ModuleType("modules.util")
        util.truncate_path = lambda path: path
        sys.modules["modules"].util = util
        sys.modules["modules.images"] = sys.modules["modules"].images = ModuleType("modules.images")

    def load(self, name: str) -> Any:
        """As the host runs a file of scripts/."""
        spec = importlib.util.spec_from_file_location(f"{name}.py", ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def slow(self) -> None:
        """Jobs of this family are over at once; while the file `slow` is there, they take their time."""
        host = self.webui.host
        fast = host.report

        def report(label: str) -> Any:
            progress = fast(label)

            def slowly(done: int, total: int) -> None:
                for step in range(60 if (self.folder / "slow").exists() else 1):
                    progress(done * 60 + step, total * 60 + 60)
                    time.sleep(0.02 if step else 0)

            return slowly

        host.report = report

    def gpu_call(self, function: Any, extra_outputs: Any = None) -> Any:
        """The host's wrapper: queue, state, the job's number, and a line about the time below what the job says."""
        shared, tasks = self.webui.shared, self.tasks

        def called(task: str, *values: Any) -> tuple[Any, ...]:
            with self.webui.call_queue.queue_lock:
                shared.state.begin(job=task)
                tasks.now = task
                try:
                    found = list(function(task, *values))
                finally:
                    tasks.now = None
                    tasks.done.append(task)
                    shared.state.end()
            found[-1] += "<div class='performance'>Time taken: 0.1 sec.</div>"
            return tuple(found)

        return called

    # ---- the page --------------------------------------------------------------------------------------------------

    def page(self) -> Any:
        tabs = [(self.generation(place), place, place) for place in PLACES]
        for function in self.webui.script_callbacks.callbacks["on_ui_tabs"]:
            tabs += function()
        with gr.Blocks(analytics_enabled=False, title="web UI") as demo:
            self.checkpoint()
            with gr.Tabs(elem_id="tabs"):
                for blocks, label, name in tabs:
                    with gr.TabItem(label, id=name, elem_id=f"tab_{name}"):
                        blocks.render()
            self.send()
        return demo

    def send(self) -> None:
        """From txt2img to img2img the host takes the fields of both whose names are among the script's."""
        one, other = (getattr(self.doors[place], "infotext_fields", []) for place in PLACES)
        names = getattr(self.doors["txt2img"], "paste_field_names", [])
        taken, given = ([field for field, name in fields if name in names] for fields in (one, other))
        gr.Button("Send to img2img", elem_id="send_to_img2img").click(lambda *values: values, taken, given)

    def checkpoint(self) -> None:
        """The checkpoint at the top: A1111's field, which its script fills, or Forge's list, known to its own module."""
        if gr.__version__.startswith("3."):
            gr.Textbox("", label="Checkpoint", max_lines=1, elem_id="setting_sd_model_checkpoint")
            return
        sys.modules["modules_forge"] = ModuleType("modules_forge")
        sys.modules["modules_forge.main_entry"] = sys.modules["modules_forge"].main_entry = entry = SimpleNamespace()
        entry.ui_checkpoint = gr.Dropdown([], label="Checkpoint", elem_id="forge_checkpoint")
        refresh = gr.Button("Refresh", elem_id="forge_refresh_checkpoint")
        for component in (entry.ui_checkpoint, refresh):
            self.webui.script_callbacks.call("on_after_component", component, elem_id=component.elem_id)

    def generation(self, place: str) -> Any:
        door, animation = self.scripts
        script, selectable = door.HyperMerge(), animation.HyperMergeAnimation()
        self.doors[place] = script
        selectable.elem_id = lambda name: f"script_{place}_hypermerge_animation_{name}"
        with gr.Blocks(analytics_enabled=False) as blocks:
            with gr.Row():
                prompt = gr.Textbox("a cat", lines=2, label="Prompt", elem_id=f"{place}_prompt")
                generate = gr.Button("Generate", variant="primary", elem_id=f"{place}_generate")
            with gr.Row():
                with gr.Column(variant="compact"):
                    gr.Slider(1, 150, 20, step=1, label="Sampling steps")
                    with gr.Group():
                        components = script.ui(place == "img2img")
                    with gr.Accordion("Script", open=False, elem_id=f"{place}_script"):
                        selectable.ui(place == "img2img")
                with gr.Column():
                    image = gr.Textbox(label="Image", elem_id=f"{place}_image")
                    infotext = gr.Textbox(label="Infotext", elem_id=f"{place}_infotext")
                    paste = gr.Button("Paste", elem_id=f"{place}_paste")
            fields = getattr(script, "infotext_fields", [])
            paste.click(lambda text: self.pasted(fields, text), [infotext], [field for field, _ in fields])
            generate.click(
                lambda prompt, *values: self.generate(script, prompt, values), [prompt, *components], [image, infotext]
            )
        return blocks

    def generate(self, script: Any, prompt: str, values: tuple[Any, ...]) -> tuple[str, str]:
        p = self.webui.processing.StableDiffusionProcessingTxt2Img(prompt)
        p.scripts = self.webui.scripts.Runner((script, values))
        found = self.webui.run(p)
        return found.images[0], json.dumps({"Steps": "20", **found.infotexts[0]}, ensure_ascii=False)

    @staticmethod
    def pasted(fields: list[Any], text: str) -> list[Any]:
        """As the host's paste button: None leaves a field alone, a dict is an update, else the field's own type."""
        updates = []
        for component, value in fields:
            found = value(json.loads(text))
            kept = found is None or isinstance(found, dict)
            updates.append((found or gr.update()) if kept else type(component.value)(found))
        return updates

    # ---- what a test asks ------------------------------------------------------------------------------------------

    def held(self) -> dict[str, Any]:
        """What the weights should hold, and whether they do: as hypermerge_ext writes that blend."""
        webui = self.webui
        current = webui.live.current()
        if current is None:
            return {"at": None, "status": webui.live.status()}
        path = self.folder / "held.safetensors"
        webui.ext("pack").hypermerge().load(webui.hypers / current.hyper).merge(
            current.multipliers, path, dtype="fp32", force=True
        )
        exact = harness.same(webui.held(), {name: tensor.float() for name, tensor in network.read(path).items()})
        return {"at": current.multipliers, "hyper": current.hyper, "blocks": current.blocks, "exact": exact}

    def reload(self) -> dict[str, Any]:
        """ "Reload UI", but for the page itself."""
        webui, package = self.webui, sys.modules["hyper_merge_webui"]
        webui.script_callbacks.call("on_script_unloaded")
        axes = [[option.label for option in self.plot.axis_options]]
        networks = [sorted(webui.extra_networks.extra_network_registry)]
        webui.script_callbacks.callbacks.clear()
        self.load("hyper_merge")
        webui.script_callbacks.call("on_before_ui")
        axes.append([option.label for option in self.plot.axis_options])
        networks.append(sorted(webui.extra_networks.extra_network_registry))
        kept = sys.modules["hyper_merge_webui"] is package
        return {"axes": axes, "networks": networks, "kept": kept}

    def other(self) -> str:
        """Another checkpoint than the base is loaded."""
        with self.webui.host.job("other"):
            return self.webui.host.load_model(str(self.webui.checkpoints / "m0.safetensors"))

    def base(self) -> None:
        self.webui.load_base()

    def infotext(self) -> list[Any]:
        """What the API makes of an infotext, on a page that was built before there was a hyper-model."""
        hidden = self.webui.hypers.rename(self.folder / "hidden")
        try:
            with gr.Blocks():
                components, fields = self.webui.ext("accordion").build("txt2img")
        finally:
            hidden.rename(self.webui.hypers)
        asked = {"Steps": "20", "Hyper-Merge": "y.hyper.safetensors", "Hyper-Merge at": "0.5, -0.25"}
        found = []
        for component, value in fields:
            given, kind = value(asked), type(component.value)
            if isinstance(given, dict) and given.get("__type__") == "generic_update":
                given = given.get("value")
            found.append(None if kind is type(None) or given is None else kind(given))
        return found

    def progress(self, task: str) -> dict[str, Any]:
        state, active = self.webui.shared.state, task == self.tasks.now
        share = state.sampling_step / state.sampling_steps if active and state.sampling_steps else 0
        return {
            "active": active,
            "completed": task in self.tasks.done,
            "progress": share,
            "textinfo": state.textinfo if active else "Waiting...",
        }


def serve(host: Host, demo: Any) -> str:
    """Starts it as the hosts do; → its address."""
    from fastapi import Body

    demo.queue()
    app, url, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, allowed_paths=[str(ROOT)], show_api=False
    )
    lock = host.webui.call_queue.queue_lock
    calls = {name: getattr(host, name) for name in ("held", "other", "base", "reload", "infotext")}
    calls |= {"hold": lock.acquire, "release": lock.release}

    def progress(asked: dict = Body(...)) -> dict:
        return host.progress(asked["id_task"])

    app.add_api_route("/internal/progress", progress, methods=["POST"])
    app.add_api_route("/test/{name}", lambda name: calls[name](), methods=["GET"])
    return url


def inject() -> None:
    """The hosts write their scripts and styles into Gradio's page like this."""
    page = ROOT / "tests" / "webui" / "page"
    scripts = [page / "host.js", ROOT / "javascript" / "hyper_merge.js"]
    head = "".join(f'<script src="file={path}"></script>' for path in scripts)
    style = f'<link rel="stylesheet" href="file={ROOT / "style.css"}">'
    original = gr.routes.templates.TemplateResponse

    def response(*values: Any, **named: Any) -> Any:
        made = original(*values, **named)
        body = made.body.replace(b"</head>", head.encode() + b"</head>")
        made.body = body.replace(b"</body>", style.encode() + b"</body>")
        made.init_headers()
        return made

    gr.routes.templates.TemplateResponse = response


def main() -> None:
    host = Host(Path(sys.argv[1]))
    inject()
    pages = {"page": serve(host, host.page())}
    pack = host.webui.ext("pack")
    pack.missing = lambda: (
        "hyper-merge is not installed in this Python. Get it with\n    python -m pip install hyper-merge"
    )
    host.webui.ext("accordion").shown.clear()
    pages["missing"] = serve(host, host.page())
    print(json.dumps(pages), flush=True)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    done.wait()


if __name__ == "__main__":
    main()
