"""HyperMerge Save Checkpoint and Save LoRA: streamed from the files, not from the host's copies of the weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from glob import escape

from comfy_api.latest import io

from . import host
from .fields import DTYPES, blocks, field, hyper, multipliers, schema, text_strength
from .logic import base, points
from .logic.apply import blocks_of
from .logic.hyper import Hyper
from .logic.keys import TEXT_GLOBS, is_text, is_text_alone


class HyperMergeSaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeSaveCheckpoint",
            "HyperMerge Save Checkpoint",
            description="Writes the blend at λ, κ as an ordinary checkpoint: read from the files and rounded once, in "
            "little memory, with everything that was not merged beside it.",
            inputs=[
                hyper(),
                *multipliers(),
                text_strength(),
                field(
                    io.String,
                    "filename_prefix",
                    default="checkpoints/hyper-merge",
                    tooltip="In ComfyUI's output folder; checkpoints there are listed by the loaders.",
                ),
                field(
                    io.Combo,
                    "dtype",
                    options=DTYPES,
                    default="keep",
                    tooltip="Of the merged numbers; keep: as in the hyper-model.",
                ),
                field(
                    io.Boolean,
                    "from_inputs",
                    default=False,
                    advanced=True,
                    tooltip="Blend the checkpoints that were solved, which must still be there, instead of the "
                    "directions as stored.",
                ),
                blocks(),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        hyper: Hyper,
        lam: float,
        kap: float,
        further: str,
        strength_clip: float,
        filename_prefix: str,
        dtype: str,
        from_inputs: bool,
        blocks: str | None = None,
    ) -> io.NodeOutput:
        at = points.at(hyper.count, lam, kap, further)
        chosen = blocks_of(points.blocks(blocks, hyper.count), hyper)
        host.base_of(hyper)  # before the core takes the first that is called so
        path = host.output_path(filename_prefix)
        hyper.model.merge(
            at,
            path,
            blocks=_blocks(hyper, at, points.finite(strength_clip, "strength_clip"), chosen),
            dtype=None if dtype == "keep" else dtype,
            exact=_inputs(hyper) if from_inputs else None,
            progress=host.progress(),
        )
        host.log.info("hyper-merge: wrote %s", path)
        return io.NodeOutput(path, ui={"text": [path]})


class HyperMergeSaveLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeSaveLoRA",
            "HyperMerge Save LoRA",
            description="Writes a direction, or a blend, as a LoRA for the hyper-model's base: a direction's LoRA at "
            "strength 0.5 is the slider at 0.5, in any program.",
            inputs=[
                hyper(),
                field(
                    io.Combo,
                    "what",
                    options=["direction", "blend"],
                    default="direction",
                    tooltip="direction: one slider. blend: the point λ, κ, at strength 1.",
                ),
                field(io.Int, "direction", default=1, min=1, max=63, tooltip="Which one: 1 is λ, 2 is κ."),
                *multipliers(),
                field(
                    io.Int, "rank", default=64, min=1, max=1024, tooltip="Of every layer: larger files, smaller error."
                ),
                field(
                    io.Combo,
                    "format",
                    options=["auto", "kohya", "comfyui"],
                    default="auto",
                    tooltip="Names in the file; auto: kohya's, which most programs read, where they are known.",
                ),
                field(
                    io.String,
                    "filename_prefix",
                    default="loras/hyper-merge",
                    tooltip="In ComfyUI's output folder; LoRAs there are listed by the loaders.",
                ),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        hyper: Hyper,
        what: str,
        direction: int,
        lam: float,
        kap: float,
        further: str,
        rank: int,
        format: str,
        filename_prefix: str,
    ) -> io.NodeOutput:
        chosen = {"direction": direction} if what == "direction" else {"at": points.at(hyper.count, lam, kap, further)}
        path = host.output_path(filename_prefix)
        report = hyper.model.lora(path, rank=rank, format=format, progress=host.progress(), **chosen)
        host.log.info("hyper-merge: wrote %s", path)
        said = f"{path}\n{report['bytes'] / 1e6:.1f} MB, relative error {100 * report['relative_error']:.1f} %"
        return io.NodeOutput(path, ui={"text": [said]})


def _blocks(
    hyper: Hyper, at: Sequence[float], strength_clip: float, chosen: Sequence[tuple[str, Sequence[float]]]
) -> dict[str, Sequence[float]]:
    """Globs and multipliers; the text encoders' factor holds as in weights.moves, tensor by tensor where it must."""
    moving = hyper.stored.moving
    found: dict[str, Sequence[float]] = {}

    def put(glob: str, values: Sequence[float]) -> None:
        found.pop(glob, None)  # the last one decides, also in order
        found[glob] = values

    texts = [name for name in moving if is_text(name)] if strength_clip != 1 else []
    for glob in TEXT_GLOBS if texts else ():
        if any(fnmatchcase(name, glob) for name in texts):
            put(glob, [c * strength_clip for c in at])
    for glob, values in chosen:
        put(glob, values)
        if not is_text_alone(glob, moving):
            for name in texts:
                if fnmatchcase(name, glob):
                    put(escape(name), [c * strength_clip for c in values])
    return found


def _inputs(hyper: Hyper) -> list[str]:
    listed = [(os.path.basename(name).rpartition(".")[0], host.model_path(name)) for name in host.model_names()]
    return base.inputs(hyper, listed, "switch from_inputs off")


NODES = [HyperMergeSaveCheckpoint, HyperMergeSaveLoRA]
