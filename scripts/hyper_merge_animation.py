"""The script "Hyper-Merge animation": a path through λ and κ as GIF or WebP, or a grid, with the map beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gradio as gr
from hyper_merge_webui import (
    accordion,
    animation,
    host,
    jobs,
)  # loaded by hyper_merge.py, which is run before this file
from modules import images, processing, scripts, shared
from PIL import Image

Place = tuple[float, float]


class HyperMergeAnimation(scripts.Script):
    def title(self) -> str:
        return "Hyper-Merge animation"

    def ui(self, is_img2img: bool) -> list[Any]:
        if not hasattr(self, "components"):  # Forge's API asks twice more
            self.components = self._build()
        return self.components

    def _build(self) -> list[Any]:
        gr.HTML("Hyper-model, text encoder and blocks are those of the accordion Hyper-Merge.")
        kind = gr.Radio(["path", "grid"], value="path", label="Kind", elem_id=self.elem_id("kind"))
        with gr.Column() as path:
            points = gr.Textbox(
                "",
                lines=3,
                label="Path: each line a point λ, κ or the name of a model",
                placeholder="every model in turn",
                elem_id=self.elem_id("points"),
            )
            with gr.Row():
                frames = gr.Slider(2, 240, 24, step=1, label="Frames", elem_id=self.elem_id("frames"))
                rate = gr.Slider(1, 30, 8, step=1, label="Frames per second", elem_id=self.elem_id("rate"))
            with gr.Row():
                ending = gr.Radio(list(animation.FORMATS), value="GIF", label="Format", elem_id=self.elem_id("format"))
                closed = gr.Checkbox(True, label="Back to the first point", elem_id=self.elem_id("closed"))
        with gr.Column(visible=False) as grid:
            ranges = []
            for letter, name in (("λ", "lam"), ("κ", "kap")):
                with gr.Row():
                    for end, value in (("from", -1), ("to", 1)):
                        field = gr.Number(value, label=f"{letter} {end}", elem_id=self.elem_id(f"{name}_{end}"))
                        ranges.append(field)
            with gr.Row():
                columns = gr.Slider(1, 16, 5, step=1, label="Columns (λ)", elem_id=self.elem_id("columns"))
                rows = gr.Slider(1, 16, 5, step=1, label="Rows (κ)", elem_id=self.elem_id("rows"))
        with gr.Row():
            with_map = gr.Checkbox(True, label="Map beside it", elem_id=self.elem_id("with_map"))
            single = gr.Checkbox(False, label="Save the single pictures too", elem_id=self.elem_id("single"))
        kind.change(
            lambda chosen: (gr.update(visible=chosen == "path"), gr.update(visible=chosen == "grid")),
            [kind],
            [path, grid],
            show_progress=False,
        )
        return [kind, points, frames, rate, ending, closed, *ranges, columns, rows, with_map, single]

    def run(
        self,
        p: Any,
        kind: str,
        points: str,
        frames: float,
        rate: float,
        ending: str,
        closed: bool,
        lam_from: float,
        lam_to: float,
        kap_from: float,
        kap_to: float,
        columns: float,
        rows: float,
        with_map: bool,
        single: bool,
    ) -> Any:
        hyper = _hyper(p)
        document = jobs.map_document(hyper)
        if kind == "grid":
            cells = (lam_from, lam_to), (kap_from, kap_to), int(columns), int(rows)
            places, columns, rows = animation.grid(document, *cells)
        else:
            places = animation.path(document, points, int(frames), bool(closed))
        pictures, done = _pictures(p, hyper, places, single)
        if not pictures:
            return processing.Processed(p, [], p.seed, "")
        info = done[0].info
        if kind == "grid":
            whole = animation.sheet(pictures, int(columns), places, document, images.get_font, with_map)
            if shared.opts.grid_save:
                images.save_image(whole, p.outpath_grids, "hyper-merge", info=info, grid=True, p=p)
        else:
            whole = _animation(p, pictures, places, document, ending, float(rate), with_map, info)
        texts = [info, *(found.infotexts[0] for found in done)]
        return processing.Processed(
            p, [whole, *pictures], p.seed, info, index_of_first_image=1, infotexts=texts, all_prompts=[p.prompt]
        )


def _hyper(p: Any) -> str:
    """The hyper-model of this job's accordion, or the only one there is.  Raises ValueError."""
    for script in p.scripts.alwayson_scripts:
        if script.title() == accordion.TITLE:
            values = p.script_args[script.args_from : script.args_to]
            if len(values) > 1 and values[1]:
                return str(values[1])
    names = host.hyper_names()
    if len(names) != 1:
        raise ValueError("choose a hyper-model in the accordion Hyper-Merge")
    return names[0]


def _pictures(p: Any, hyper: str, places: Sequence[Place], single: bool) -> tuple[list[Image.Image], list[Any]]:
    """One picture for each place, the same but for λ and κ; fewer when a person interrupts."""
    processing.fix_seed(p)
    p.do_not_save_grid, p.do_not_save_samples = True, not single
    p.n_iter = p.batch_size = 1
    shared.state.job_count = len(places)
    pictures, done = [], []
    for number, (lam, kap) in enumerate(places, start=1):
        if shared.state.interrupted or getattr(shared.state, "stopping_generation", False):
            break
        shared.state.job = f"{number} out of {len(places)}"
        job = copy.copy(p)
        job.extra_generation_params = dict(p.extra_generation_params)
        axes = {"hyper": hyper, "lam": lam, "kap": kap}
        job.hyper_merge_axes = {**(getattr(p, "hyper_merge_axes", None) or {}), **axes}
        found = processing.process_images(job)
        if found.images:
            pictures.append(found.images[0])
            done.append(found)
    return pictures, done


def _animation(
    p: Any,
    pictures: Sequence[Image.Image],
    places: Sequence[Place],
    document: dict[str, Any],
    ending: str,
    rate: float,
    with_map: bool,
    info: str,
) -> Image.Image:
    """Writes it beside the host's pictures; what the gallery shows is that file."""
    frames = list(pictures)
    if with_map:
        shown = zip(pictures, places)  # where a person stopped it, there are fewer pictures than places
        frames = [animation.beside(picture, document, images.get_font, places, place) for picture, place in shown]
    path = animation.save(frames, p.outpath_samples, ending, rate, info)
    whole = Image.open(path)
    whole.already_saved_as = path
    return whole
