"""HyperMerge Solve: checkpoints in, a hyper-model out."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .fields import DTYPES, HYPER, field, schema
from .logic import cache
from .logic.hyper import Hyper


class HyperMergeSolve(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = host.model_names()
        return schema(
            "HyperMergeSolve",
            "HyperMerge Solve",
            description="Turns two or more checkpoints of one architecture into a hyper-model: a base and a few "
            "directions. The files are read twice, in little memory; the result is kept in models/hyper_merge and "
            "found again when the same is asked.",
            search_aliases=["merge checkpoints", "model merge", "interpolate models", "PCA"],
            has_intermediate_output=True,  # so a page that was opened later learns of cached results
            inputs=[
                field(
                    io.String,
                    "models",
                    multiline=True,
                    default="",
                    tooltip="The checkpoints, one name on each line; * and ? stand for many: demo/*-*.safetensors",
                ),
                field(
                    io.Combo,
                    "base",
                    options=["mean", "none", *names],
                    default="mean",
                    tooltip="What directions are measured from: the mean of the models, nothing, or a checkpoint.",
                ),
                field(
                    io.Int,
                    "directions",
                    default=2,
                    min=1,
                    max=63,
                    tooltip="How many sliders: 2 are λ and κ. Two models only have one.",
                ),
                field(
                    io.String,
                    "name",
                    default="",
                    tooltip="Name of the file in models/hyper_merge; digits that say what it was made of are added.",
                ),
                field(
                    io.String,
                    "include",
                    multiline=True,
                    default="",
                    advanced=True,
                    tooltip="Only tensors whose names match one of these, one pattern on each line. "
                    "Empty: all but the VAE and T5.",
                ),
                field(
                    io.String,
                    "exclude",
                    multiline=True,
                    default="",
                    advanced=True,
                    tooltip="Not the tensors whose names match one of these, one pattern on each line.",
                ),
                field(
                    io.Combo,
                    "dtype",
                    options=DTYPES,
                    default="keep",
                    advanced=True,
                    tooltip="How numbers are stored; keep: as in the first checkpoint.",
                ),
                field(
                    io.Boolean,
                    "common",
                    default=False,
                    advanced=True,
                    tooltip="Merge what all checkpoints share, instead of refusing those that differ.",
                ),
                field(
                    io.Boolean,
                    "allow_nonfinite",
                    default=False,
                    advanced=True,
                    tooltip="Copy tensors that hold NaN or infinity, instead of refusing them.",
                ),
            ],
            outputs=[HYPER.Output(display_name="hyper")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        return cache.identity(_question(**inputs))

    @classmethod
    def execute(cls, name: str, **inputs: Any) -> io.NodeOutput:
        question = _question(**inputs)
        file_name = cache.file_name(name, question, cache.identity(question))
        path = host.new_hyper_path(file_name)
        if cache.solve(question, path, host.progress()):
            host.log.info("hyper-merge: wrote %s", path)
        hyper = Hyper(path, file_name, host.model_folders())
        return io.NodeOutput(hyper, ui={"hyper_merge": [{"name": file_name}]})


def _question(
    models: str,
    base: str,
    directions: int,
    include: str = "",
    exclude: str = "",
    dtype: str = "keep",
    common: bool = False,
    allow_nonfinite: bool = False,
    **rest: Any,
) -> cache.Question:
    names = host.chosen_models(models)
    if len(names) < 2:
        raise ValueError(f"hyper-merge: choose two checkpoints or more; {len(names)} chosen")
    return cache.Question(
        models=tuple(map(host.model_path, names)),
        base=base if base in ("mean", "none") else host.model_path(base),
        directions=directions,
        include=tuple(include.split()),
        exclude=tuple(exclude.split()),
        dtype=None if dtype == "keep" else dtype,
        common=common,
        allow_nonfinite=allow_nonfinite,
    )


NODES = [HyperMergeSolve]
