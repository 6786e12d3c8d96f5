"""HyperMerge Sweep: the same graph at many points: a grid for a contact sheet, a path for an animation."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import patching
from .fields import field, how, hyper, multiplier, schema, text_strength
from .logic import points as _points
from .logic.apply import Blend
from .logic.hyper import Hyper


class HyperMergeSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeSweep",
            "HyperMerge Sweep",
            description="A list of models along a grid or a path in (λ, κ); what follows runs once for each.",
            inputs=[
                field(io.Model, "model", tooltip="The base of the hyper-model, or another model of its family."),
                hyper(),
                field(io.Combo, "kind", options=["grid", "path"], default="grid"),
                multiplier("lam_from", "λ from", "Grid: its left edge.", -1.0),
                multiplier("lam_to", "λ to", "Grid: its right edge.", 1.0),
                multiplier("kap_from", "κ from", "Grid: its lower edge.", -1.0),
                multiplier("kap_to", "κ to", "Grid: its upper edge.", 1.0),
                field(io.Int, "columns", default=5, min=1, max=64, tooltip="Grid: steps of λ."),
                field(io.Int, "rows", default=5, min=1, max=64, tooltip="Grid: steps of κ."),
                field(
                    io.String,
                    "points",
                    multiline=True,
                    default="",
                    tooltip="Path: its corners, on each line λ, κ or the name of a model. Empty: every model in turn.",
                ),
                field(io.Int, "frames", default=16, min=1, max=1000, tooltip="Path: how many points, evenly spaced."),
                field(io.Boolean, "closed", default=False, tooltip="Path: back to its first point, for a loop."),
                text_strength(),
                *how(),
                field(io.Clip, "clip", optional=True, tooltip="The text encoders, if they are to move too."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", is_output_list=True),
                io.Clip.Output(display_name="CLIP", is_output_list=True),
                io.String.Output(display_name="label", is_output_list=True),
                io.Float.Output(display_name="λ", is_output_list=True),
                io.Float.Output(display_name="κ", is_output_list=True),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        hyper: Hyper,
        kind: str,
        lam_from: float,
        lam_to: float,
        kap_from: float,
        kap_to: float,
        columns: int,
        rows: int,
        points: str,
        frames: int,
        closed: bool,
        strength_clip: float,
        directions: str,
        method: str,
        clip: Any = None,
    ) -> io.NodeOutput:
        if kind == "grid":
            if hyper.count < 2:
                rows = 1
            places = _points.grid(lam_from, lam_to, kap_from, kap_to, columns, rows)
        else:
            corners = _points.corners(points, {member.name: member.multipliers for member in hyper.model.members})
            places = _points.path(corners, frames, closed)
        if hyper.count < 2:
            places = [(lam, 0.0) for lam, _ in places]
        factor = _points.finite(strength_clip, "strength_clip")
        names = patching.names_of(hyper, model)
        models, clips = [], []
        for lam, kap in places:
            at = tuple(_points.at(hyper.count, lam, kap))
            blend = Blend(at, (), factor, directions == "memory", method == "auto")
            models.append(patching.blend_model(model, hyper, blend, names))
            clips.append(patching.blend_clip(clip, hyper, blend, names))
        labels = [_points.label(place[: max(1, min(2, hyper.count))]) for place in places]
        return io.NodeOutput(models, clips, labels, [lam for lam, _ in places], [kap for _, kap in places])


NODES = [HyperMergeSweep]
