"""What the tab and the accordion are made of: the elements that javascript/hyper_merge.js turns into pads and lists of
models, lines that report, and events in the words of both Gradio versions.

The ids of fields are hyper_merge_<place>_<name>; places are txt2img, img2img and tab.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from typing import Any

import gradio as gr

from .pack import ROOT

GRADIO_3 = gr.__version__.startswith("3.")
JS = "_js" if GRADIO_3 else "js"
"""How Gradio calls the script of an event."""

FLAT = "hyper-merge-flat"
"""Class of an HTML component without space of its own around it."""

QUICK = {"queue": False, "show_progress": False}
"""Arguments of an event that is answered at once."""

WEB = os.path.join(ROOT, "nodes", "web")

# A number of its own for the job, which the host's progress bar asks after; the page's script draws the bar.
_TASK = """(...values) => {
    const task = randomId();
    document.dispatchEvent(new CustomEvent("hyper-merge", { detail: { place: "%s", task, name: "%s" } }));
    return [task, ...values.slice(1)];
}"""
_RUNNING = """() => [
    gradioApp().querySelector("#hyper_merge_%s_%s_progress")?.closest(".hyper-merge-job")?.dataset.task ?? ""]"""
_SHOW = """() => {
    switch_to_%(place)s();
    document.dispatchEvent(new CustomEvent("hyper-merge", { detail: { place: "%(place)s", open: true } }));
    return [];
}"""
_TELL = '() => { document.dispatchEvent(new CustomEvent("hyper-merge", { detail: %s })); return []; }'


def elem_id(place: str, name: str) -> str:
    return f"hyper_merge_{place}_{name}"


# ---- events ---------------------------------------------------------------------------------------------------------


def tell(place: str, **more: bool) -> dict[str, Any]:
    """Arguments of an event that only tells the page's script: a field of `place` changed.

    switched: that field is "Enable"; done: what it sent is in the weights, or could not be; again: send it again,
    because another model is loaded.
    """
    detail = {"place": place, **more}
    return {"fn": None, "inputs": [], "outputs": [], JS: _TELL % json.dumps(detail)}


def task(place: str, name: str) -> dict[str, str]:
    """The script of a button that begins a long job: its function's first argument becomes the job's number."""
    return {JS: _TASK % (place, name)}


def running(place: str, name: str) -> dict[str, str]:
    """The script of a job's Stop: its function's argument becomes the number of the job that this page has begun."""
    return {JS: _RUNNING % (place, name)}


def show(place: str) -> dict[str, Any]:
    """Arguments of an event that turns the page to the accordion of txt2img or img2img."""
    return {"fn": None, "inputs": [], "outputs": [], JS: _SHOW % {"place": place}}


def transient(*components: Any) -> None:
    """The host is not to keep their values in ui-config.json."""
    for component in components:
        component.do_not_save_to_config = True


# ---- elements -------------------------------------------------------------------------------------------------------


def _module(name: str) -> str:
    """Address of a script of nodes/web, new whenever the file is: the host serves files of its extensions as file=…"""
    from modules import util

    path = os.path.join(WEB, name)
    return f"file={util.truncate_path(path)}?{os.path.getmtime(path)}".replace(os.sep, "/")


def _element(kind: str, place: str, **data: str) -> str:
    shown = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in data.items())
    return f'<div class="hyper-merge-{kind}" data-hyper-merge="{kind}" data-place="{place}" {shown}></div>'


def pad(place: str, name: str, document: dict[str, Any] | None, limit: float, message: str) -> str:
    """The pad of a hyper-model.

    name: its file, "" for none; document: its map_document; limit: of a multiplier, both ways; message: shown without a
    map.
    """
    return _element(
        "pad",
        place,
        module=_module("pad.mjs"),
        name=name,
        map=json.dumps(document),
        limit=f"{limit:g}",
        message=message,
    )


def picker(place: str, entries: Sequence[dict[str, Any]]) -> str:
    """The list of checkpoints to tick; entries: name, folder, size."""
    return _element("picker", place, module=_module("picker.mjs"), models=json.dumps(list(entries)))


# ---- lines that report ----------------------------------------------------------------------------------------------


def note(text: str, **data: str) -> str:
    """One quiet line; `data` is for the page's script."""
    return _line("note", text, data)


def good(text: str, **data: str) -> str:
    return _line("good", text, data)


def bad(reason: BaseException | str, **data: str) -> str:
    text = str(reason) or type(reason).__name__
    return _line("bad", text.removeprefix("hyper-merge: "), data)


def _line(kind: str, text: str, data: dict[str, str]) -> str:
    shown = "".join(f' data-{key}="{html.escape(value)}"' for key, value in data.items())
    return f'<p class="hyper-merge-line hyper-merge-{kind}"{shown}>{html.escape(text)}</p>'


def heading(number: int, title: str, hint: str) -> None:
    """The title of one of the tab's steps, within the context that is open."""
    shown = f"<b>{number}</b> {html.escape(title)} <small>{html.escape(hint)}</small>"
    gr.HTML(f'<h3 class="hyper-merge-heading">{shown}</h3>', elem_classes=FLAT)


def missing(text: str) -> str:
    """What to do where the compiled part is not there."""
    return f'<div class="hyper-merge-missing"><pre>{html.escape(text)}</pre></div>'


def table(text: str) -> str:
    """A table as the command line prints it."""
    return f'<pre class="hyper-merge-table">{html.escape(text)}</pre>'
