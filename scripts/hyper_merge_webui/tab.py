"""The tab Hyper-Merge: pick models, solve, look and choose a point, keep it."""

from __future__ import annotations

import os
from typing import Any

import gradio as gr

from . import accordion, ask, fields, host, jobs, keep, pack, parts, work

PLACE = "tab"
DTYPES = ["keep", "fp16", "bf16", "fp32"]
BASES = ["mean", "none"]


def tabs() -> list[tuple[Any, str, str]]:
    """For on_ui_tabs."""
    missing = pack.missing()
    with gr.Blocks(analytics_enabled=False) as page:
        if missing:
            gr.HTML(parts.missing(missing))
        else:
            _page()
    return [(page, accordion.TITLE, "hyper_merge")]


def _page() -> None:
    with gr.Row(equal_height=False, elem_classes=["hyper-merge", "hyper-merge-page"]):
        with gr.Column(scale=5, min_width=360):
            models = _models()
            solve, answers, base = _solve(models)
            table = _table()
            questions = gr.Column()
        with gr.Column(scale=6, min_width=420):
            parts.heading(3, "Look", "drag the point; a click on a name takes you to that model")
            point = fields.build(PLACE)
            _use(point)
            keep.build(PLACE, point)
        with questions:
            ask.build(PLACE, models, point)
    _connect_solve(solve, answers, point)
    point.hyper.change(_table_of, [point.hyper], [table], **parts.QUICK)
    models.refresh.click(
        lambda: (_picker(), gr.update(choices=[*BASES, *host.model_names()])),
        [],
        [models.list, base],
        **parts.QUICK,
    )


# ---- 1 models -------------------------------------------------------------------------------------------------------


def _models() -> ask.Models:
    parts.heading(1, "Models", "two or more checkpoints of one architecture")
    listed = gr.HTML(_picker(), elem_id=parts.elem_id(PLACE, "picker"), elem_classes=parts.FLAT)
    with gr.Column(elem_classes="hyper-merge-hidden"):  # the list writes into the one and presses the other
        names = gr.Textbox("", lines=2, label="Models", elem_id=parts.elem_id(PLACE, "models"))
        refresh = gr.Button("Refresh", elem_id=parts.elem_id(PLACE, "models_refresh"))
    parts.transient(names)
    names.change(**parts.tell(PLACE))
    return ask.Models(names, listed, refresh)


def _picker() -> str:
    entries = []
    for name in host.model_names():
        try:
            entries.append({"name": name, "folder": "", "size": os.path.getsize(host.model_path(name))})
        except OSError:  # it went between the list and the look
            continue
    return parts.picker(PLACE, entries)


# ---- 2 solve --------------------------------------------------------------------------------------------------------


def _solve(models: ask.Models) -> tuple[work.Work, list[Any], Any]:
    """→ the job, its inputs in the order of jobs.solve, and the list of bases among them."""

    def named(name: str) -> str:
        return parts.elem_id(PLACE, name)

    parts.heading(2, "Solve", "a base, and the few directions along which they differ")
    with gr.Row():
        base = gr.Dropdown([*BASES, *host.model_names()], value="mean", label="Base", elem_id=named("base"))
        count = gr.Slider(1, 16, 2, step=1, label="Directions", elem_id=named("directions"))
    name = gr.Textbox("", label="Name", placeholder="of the hyper-model", elem_id=named("name"))
    with gr.Accordion("More", open=False):
        with gr.Row():
            include = gr.Textbox("", lines=2, label="Only tensors that match", placeholder="*.output_blocks.*")
            exclude = gr.Textbox("", lines=2, label="Not tensors that match", placeholder="one pattern on each line")
        dtype = gr.Radio(DTYPES, value="keep", label="Stored as")
        common = gr.Checkbox(False, label="Merge what all share, instead of refusing models that differ")
        nonfinite = gr.Checkbox(False, label="Copy tensors that hold NaN or infinity, instead of refusing them")
    job = work.build(PLACE, "solve", "Solve", "primary")
    answers = [models.names, base, count, name, include, exclude, dtype, common, nonfinite]
    parts.transient(*answers)
    return job, answers, base


def _connect_solve(job: work.Work, answers: list[Any], point: fields.Fields) -> None:
    """The new hyper-model is chosen here, and is in the lists of txt2img and img2img."""
    others = [components[1] for components in accordion.shown.values()]

    def solve(*values: Any) -> tuple[Any, ...]:
        names, base, count, *rest = values
        if len(host.chosen_models(names)) < 2:
            raise ValueError("choose two checkpoints or more")
        made = jobs.solve(names, base, int(count), *rest)
        listed = fields.hyper_list()
        updates = [gr.update(choices=listed) for _ in others]
        return gr.update(choices=listed, value=made.name), *updates, parts.good(made.text)

    work.connect(job, solve, answers, [point.hyper, *others])


def _table() -> Any:
    names = fields.hyper_list()
    with gr.Accordion("What was found", open=True):
        shown = _table_of(names[0] if names else None)
        return gr.HTML(shown, elem_id=parts.elem_id(PLACE, "table"), elem_classes=parts.FLAT)


def _table_of(name: str | None) -> str:
    if not name:
        return parts.note("After Solve, what was found stands here.")
    try:
        return parts.table(jobs.table(name))
    except Exception as reason:  # whatever is wrong with that file, the page has to come up
        return parts.bad(reason)


# ---- 3 look ---------------------------------------------------------------------------------------------------------


def _use(point: fields.Fields) -> None:
    with gr.Row(elem_classes="hyper-merge-use"):
        for place, components in accordion.shown.items():
            button = gr.Button(f"Use in {place}", elem_id=parts.elem_id(PLACE, f"use_{place}"))
            button.click(lambda *values: (True, *values), point.values, components, **parts.QUICK).then(
                **parts.show(place)
            )
        job = work.build(PLACE, "load_base", "Load base")
    work.connect(job, accordion.load_base, [point.hyper]).then(**parts.tell(PLACE, again=True))
