"""HyperMerge Blend: a MODEL at λ, κ; the map that moves them is in web/."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import patching
from .fields import blocks, field, how, hyper, multipliers, schema, text_strength
from .logic import points
from .logic.apply import Blend, blocks_of
from .logic.hyper import Hyper


class HyperMergeBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeBlend",
            "HyperMerge Blend",
            description="Moves a MODEL (and its CLIP) along the directions of a hyper-model: base + λ·D₁ + κ·D₂. Drag "
            "the point on the map; LoRAs may come before or after.",
            has_intermediate_output=True,  # so a page that was opened later learns of cached results
            inputs=[
                field(io.Model, "model", tooltip="The base of the hyper-model, or another model of its family."),
                hyper(),
                *multipliers(),
                text_strength(),
                *how(),
                field(io.Clip, "clip", optional=True, tooltip="The text encoders, if they are to move too."),
                blocks(),
            ],
            outputs=[io.Model.Output(display_name="MODEL"), io.Clip.Output(display_name="CLIP")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        hyper: Hyper,
        lam: float,
        kap: float,
        further: str,
        strength_clip: float,
        directions: str,
        method: str,
        clip: Any = None,
        blocks: str | None = None,
    ) -> io.NodeOutput:
        at = tuple(points.at(hyper.count, lam, kap, further))
        blend = Blend(
            at,
            blocks_of(points.blocks(blocks, hyper.count), hyper),
            points.finite(strength_clip, "strength_clip"),
            directions == "memory",
            method == "auto",
        )
        names = patching.names_of(hyper, model)
        return io.NodeOutput(
            patching.blend_model(model, hyper, blend, names),
            patching.blend_clip(clip, hyper, blend, names),
            ui={"hyper_merge": [{"name": hyper.name, "at": list(at)}]},
        )


NODES = [HyperMergeBlend]
