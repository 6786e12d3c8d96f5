"""What keeps a point of the map: a checkpoint, or LoRAs, in the host's own folders."""

from __future__ import annotations

import os
import re
from typing import Any

import gradio as gr

from . import fields, jobs, parts, work
from .pack import points
from .settings import Settings

DTYPES = ["keep", "fp16", "bf16", "fp32"]
WHAT = {"this point": "blend", "one direction": "direction", "all directions": "all"}
FORMATS = ["auto", "kohya", "diffusers", "comfyui"]


def build(place: str, point: fields.Fields) -> None:
    """Within the context that is open."""
    parts.heading(4, "Keep", "in the web UI's own folders; its lists know of it at once")
    with gr.Tabs(elem_classes="hyper-merge-keep"):
        with gr.Tab("Checkpoint"):
            _checkpoint(place, point)
        with gr.Tab("LoRA"):
            _lora(place, point)


def _checkpoint(place: str, point: fields.Fields) -> None:
    with gr.Row():
        name = _name(place, "checkpoint_name")
        dtype = gr.Radio(DTYPES, value="keep", label="Stored as", elem_id=parts.elem_id(place, "checkpoint_dtype"))
    exact = gr.Checkbox(
        False,
        label="Blend the checkpoints themselves, not the stored directions (they must still be there)",
        elem_id=parts.elem_id(place, "checkpoint_exact"),
    )
    job = work.build(place, "save_checkpoint", "Save checkpoint", "primary")
    parts.transient(name, dtype, exact)

    def save(file_name: str, dtype: str, exact: bool, *values: Any) -> str:
        settings = _settings(values)
        made = jobs.save_checkpoint(settings, file_name.strip() or suggested(settings), dtype, exact)
        return parts.good(f"{made.name} · {made.text}")

    work.connect(job, save, [name, dtype, exact, *point.values])


def _lora(place: str, point: fields.Fields) -> None:
    with gr.Row():
        name = _name(place, "lora_name")
        what = gr.Radio(list(WHAT), value="this point", label="What", elem_id=parts.elem_id(place, "lora_what"))
    with gr.Row():
        direction = gr.Slider(1, 16, 1, step=1, label="Direction", visible=False)
        rank = gr.Slider(1, 256, 64, step=1, label="Rank", elem_id=parts.elem_id(place, "lora_rank"))
        kind = gr.Dropdown(FORMATS, value="auto", label="Names of tensors", elem_id=parts.elem_id(place, "lora_format"))
    job = work.build(place, "save_lora", "Save LoRA", "primary")
    parts.transient(name, what, direction, rank, kind)
    what.change(lambda chosen: gr.update(visible=WHAT[chosen] == "direction"), [what], [direction], **parts.QUICK)

    def save(file_name: str, what: str, direction: float, rank: float, kind: str, *values: Any) -> str:
        settings = _settings(values)
        wanted = file_name.strip() or suggested(settings, WHAT[what], int(direction))
        made = jobs.save_lora(settings, wanted, WHAT[what], int(direction), int(rank), kind)
        return "".join(parts.good(f"{written.name} · {written.text}") for written in made)

    work.connect(job, save, [name, what, direction, rank, kind, *point.values])


def _name(place: str, name: str) -> Any:
    return gr.Textbox("", label="File name", placeholder="empty: says the point", elem_id=parts.elem_id(place, name))


def _settings(values: tuple[Any, ...]) -> Settings:
    settings = Settings.of(True, *values)
    if not settings.hyper:
        raise ValueError("choose a hyper-model first")
    return settings


def suggested(settings: Settings, what: str = "blend", direction: int = 1) -> str:
    """A file name that says hyper-model and point: "family λ0.4 κ-0.2"."""
    stem = os.path.basename(settings.hyper).removesuffix(".hyper.safetensors")
    stem = re.sub(r"-[0-9a-f]{8}$", "", stem)  # what it was made of
    if what == "blend":
        return f"{stem} {points.label(settings.multipliers).replace('  ', '_').replace(' ', '')}"
    return f"{stem} direction {direction}" if what == "direction" else stem
