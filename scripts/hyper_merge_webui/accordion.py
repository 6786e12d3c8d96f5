"""The accordion in txt2img and img2img."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from . import fields, host, jobs, live, parts, work
from .settings import Settings, read_infotext

TITLE = "Hyper-Merge"
"""Also the name in the API's alwayson_scripts: it must not change."""

shown: dict[str, list[Any]] = {}
"""Components by place, in the order of Settings.of: what the tab sets with "Use in txt2img"."""


def build(place: str) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Inside the host's page.  → components in the order of Settings.of, and its infotext_fields."""
    with gr.Accordion(TITLE, open=False, elem_id=f"hyper_merge_{place}", elem_classes="hyper-merge"):
        with gr.Row(elem_classes="hyper-merge-head"):
            enabled = gr.Checkbox(False, label="Enable", elem_id=parts.elem_id(place, "enabled"))
            status = gr.HTML(parts.note(""), elem_id=parts.elem_id(place, "status"), elem_classes=parts.FLAT)
        with gr.Column(visible=False) as offer:
            base = work.build(place, "load_base", "Load base")
        found = fields.build(place)
        apply, look = (
            gr.Button(name, elem_id=parts.elem_id(place, name.lower()), elem_classes="hyper-merge-hidden")
            for name in ("Apply", "Look")
        )
    components = [enabled, *found.values]
    parts.transient(enabled)
    enabled.change(**parts.tell(place, switched=True))
    apply.click(move, components, [status, offer], **parts.QUICK).then(**parts.tell(place, done=True))
    look.click(look_again, components, [status, offer], **parts.QUICK).then(**parts.tell(place, done=True))
    work.connect(base, load_base, [found.hyper]).then(**parts.tell(place, again=True))
    shown[place] = components
    return components, infotext_fields(components)


def build_missing() -> list[Any]:
    """The same without the compiled part: it says what to do."""
    with gr.Accordion(TITLE, open=False, elem_classes="hyper-merge"):
        gr.HTML(parts.note("Its compiled part is not installed; the tab Hyper-Merge says what to do."))
    return []


# ---- what happens ---------------------------------------------------------------------------------------------------


def move(*values: Any) -> tuple[Any, Any]:
    """A slider moved: the loaded model follows.  → the line that says so, and whether the base is offered."""
    return _answer(values, live.want)


def look_again(*values: Any) -> tuple[Any, Any]:
    """After a move that had to wait: the same for what is there now, without moving anything."""
    return _answer(values, lambda settings: live.WAITS if live.waits() else live.status())


def _answer(values: tuple[Any, ...], ask: Callable[[Settings], str]) -> tuple[Any, Any]:
    try:
        settings = Settings.of(*values)
    except ValueError as reason:
        return parts.bad(reason), gr.update(visible=False)
    text = ask(settings)
    held, more = live.current(), {"waits": "yes"} if text == live.WAITS or live.waits() else {}
    if held is None:
        # While it waits for a job, or no model is loaded yet, nothing is wrong; with another base there is a way out.
        offered = "“Load base”" in text
        wrong = settings.enabled and (offered or (text == live.status() and host.loaded_model() is not None))
        return (parts.bad if wrong else parts.note)(text, **more), gr.update(visible=offered)
    at = "[" + ", ".join(f"{value:.9g}" for value in held.multipliers) + "]"
    line = parts.good if held == settings else parts.note
    return line(text, at=at, **more), gr.update(visible=False)


def load_base(name: str | None) -> str:
    """The host loads what the directions belong to."""
    title = jobs.load_base(name or "")
    return parts.good(f"Loaded {title}", title=title)


# ---- infotext -------------------------------------------------------------------------------------------------------


def infotext_fields(components: list[Any]) -> list[tuple[Any, Any]]:
    """What the host's paste button sets: everything, also to "off" from a picture without Hyper-Merge."""
    return list(zip(components, PASTED))


def _taking(value: Callable[[Settings], Any]) -> Callable[[Mapping[str, Any]], Any]:
    # A text without any parameters, only a prompt, says nothing about us.
    return lambda params: value(read_infotext(params)) if "Steps" in params else None


def _point(index: int) -> Callable[[Settings], Any]:
    return lambda settings: settings.multipliers[index] if index < len(settings.multipliers) else 0.0


def _listed(settings: Settings) -> Any:
    """A name that is not in the list is added to it, so that the page can show it and say that it is not there."""
    names = fields.hyper_list()
    if not settings.enabled:
        return gr.update(choices=names)
    return gr.update(choices=[*names, *({settings.hyper} - set(names))], value=settings.hyper)


PASTED: list[Callable[[Mapping[str, Any]], Any]] = [
    _taking(lambda settings: settings.enabled),
    _taking(_listed),
    _taking(_point(0)),
    _taking(_point(1)),
    _taking(lambda settings: settings.further),
    _taking(lambda settings: settings.text_encoder),
    _taking(lambda settings: settings.blocks),
]
"""Each component's value from an infotext, in the order of Settings.of.

By these the host's "Send to" buttons also know which fields of one tab are which of the other's: so both have the same.
"""
