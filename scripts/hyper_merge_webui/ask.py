"""Questions about the ticked checkpoints: how far apart they are, where they lie on a map, of what one is mixed."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from . import fields, host, jobs, options, parts, work


class Models(NamedTuple):
    """The components of the list of checkpoints."""

    names: Any
    """Names and patterns, one a line."""
    list: Any
    refresh: Any


def build(place: str, models: Models, point: fields.Fields) -> None:
    """Within the context that is open."""
    with gr.Accordion("Ask about the ticked models", open=False, elem_id=parts.elem_id(place, "ask")):
        with gr.Row():
            compare = work.build(place, "compare", "Compare them")
            project = work.build(place, "project", "Find them on the map")
        unknown = gr.Dropdown(
            host.model_names(), value=None, label="A checkpoint", elem_id=parts.elem_id(place, "unknown")
        )
        recover = work.build(place, "recover", "Is it a mixture of the ticked ones?")
        answer = gr.HTML("", elem_id=parts.elem_id(place, "answer"), elem_classes=parts.FLAT)
    parts.transient(unknown)
    work.connect(compare, _compare, [models.names], [answer])
    work.connect(project, _project(place), [point.hyper, models.names], [point.pad, answer])
    work.connect(recover, _recover, [unknown, models.names], [answer])


def _chosen(names: str, least: int) -> list[str]:
    found = host.chosen_models(names)
    if len(found) < least:
        raise ValueError(f"tick {'a checkpoint' if least == 1 else 'two checkpoints or more'} in the list of models")
    return found


def _compare(names: str) -> tuple[str, str]:
    return parts.table(jobs.compare(_chosen(names, 2))), ""


def _recover(unknown: str | None, names: str) -> tuple[str, str]:
    if not unknown:
        raise ValueError("choose the checkpoint whose mixture is asked for")
    parents = [name for name in _chosen(names, 1) if name != unknown]
    return parts.table(jobs.recover(unknown, parents)), ""


def _project(place: str) -> Any:
    def project(hyper: str | None, names: str) -> tuple[str, str, str]:
        if not hyper:
            raise ValueError("choose a hyper-model first")
        text, document = jobs.project(hyper, _chosen(names, 1))
        return parts.pad(place, hyper, document, options.limit(), ""), parts.table(text), ""

    return project
