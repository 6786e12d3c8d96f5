"""HyperMerge Info, Project and Map: questions about a hyper-model."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from comfy_api.latest import io

from . import host
from .fields import field, hyper, schema
from .logic import text
from .logic.hyper import Hyper, identity_of


class HyperMergeInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeInfo",
            "HyperMerge Info",
            description="What a hyper-model is: where its models lie, how much each direction explains, and in which "
            "blocks.",
            inputs=[hyper()],
            outputs=[io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, hyper: Hyper) -> io.NodeOutput:
        said = text.info(hyper)
        return io.NodeOutput(said, ui={"text": [said]})


class HyperMergeProject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeProject",
            "HyperMerge Project",
            description="Where another checkpoint lies among the models, and how much of it the directions miss. "
            "Reads it once.",
            inputs=[
                hyper(),
                field(io.Combo, "checkpoint", options=host.model_names(), tooltip="One that was not merged."),
            ],
            outputs=[
                io.Float.Output(display_name="λ"),
                io.Float.Output(display_name="κ"),
                io.Float.Output(
                    display_name="residual", tooltip="What the directions miss of it: 0 nothing, 1 everything."
                ),
                io.String.Output(display_name="text"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, **rest: Any) -> str:
        return identity_of(host.model_path(checkpoint))

    @classmethod
    def execute(cls, hyper: Hyper, checkpoint: str) -> io.NodeOutput:
        host.base_of(hyper)  # before the core takes the first that is called so
        member = hyper.model.project(host.model_path(checkpoint), progress=host.progress())
        lam, kap = [*member.multipliers, 0.0, 0.0][:2]
        said = text.place(hyper, member)
        return io.NodeOutput(lam, kap, member.residual, said, ui={"text": [said]})


class HyperMergeMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeMap",
            "HyperMerge Map",
            description="The map of a hyper-model as a picture: models as points along λ and κ, with what is left of "
            "each.",
            inputs=[
                hyper(),
                field(
                    io.String,
                    "project",
                    multiline=True,
                    default="",
                    tooltip="Further checkpoints to show on it, one name or pattern on each line; each is read once.",
                ),
                field(io.Combo, "theme", options=["light", "dark"], default="light"),
                field(io.Int, "width", default=1024, min=256, max=4096, step=8, tooltip="Pixels."),
            ],
            outputs=[io.Image.Output(display_name="IMAGE")],
        )

    @classmethod
    def fingerprint_inputs(cls, project: str, **rest: Any) -> list[str]:
        return [identity_of(host.model_path(name)) for name in host.chosen_models(project)]

    @classmethod
    def execute(cls, hyper: Hyper, project: str, theme: str, width: int) -> io.NodeOutput:
        if project.strip():
            host.base_of(hyper)
        paths = [host.model_path(name) for name in host.chosen_models(project)]
        with tempfile.TemporaryDirectory(prefix="hyper-merge-") as folder:
            path = os.path.join(folder, "map.png")
            hyper.model.map(path, project=paths, theme=theme, progress=host.progress())
            return io.NodeOutput(_picture(path, width))


def _picture(path: str, width: int) -> Any:
    """A PNG as an IMAGE [1, height, width, 3] of that width."""
    import numpy
    import torch
    from PIL import Image

    with Image.open(path) as file:
        height = round(file.height * width / file.width)
        picture = file.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(numpy.asarray(picture, dtype=numpy.float32) / 255)[None]


NODES = [HyperMergeMap, HyperMergeProject, HyperMergeInfo]
