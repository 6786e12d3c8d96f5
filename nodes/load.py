"""HyperMerge Load: a hyper-model from models/hyper_merge, and its base as ComfyUI loads checkpoints."""

from __future__ import annotations

from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from . import host
from .fields import HYPER, field, schema
from .logic import base
from .logic.apply import BASE_OF
from .logic.hyper import Hyper, identity_of

FROM_INPUT = "(hyper input)"


class HyperMergeLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeLoad",
            "HyperMerge Load",
            description="Opens a hyper-model and loads its base as MODEL, CLIP and VAE, for every family that "
            "ComfyUI knows.",
            has_intermediate_output=True,  # so a page that was opened later learns of cached results
            inputs=[
                field(
                    io.Combo,
                    "name",
                    options=[*host.hyper_names(), FROM_INPUT],
                    tooltip="A hyper-model in models/hyper_merge.",
                ),
                field(
                    io.Boolean,
                    "load_base",
                    default=True,
                    tooltip="Off: MODEL, CLIP and VAE stay empty, for blends on top of a model that another node "
                    "loads.",
                ),
                field(HYPER, "hyper", optional=True, tooltip="From HyperMerge Solve; used instead of the name."),
            ],
            outputs=[
                HYPER.Output(display_name="hyper"),
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                io.Vae.Output(display_name="VAE"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, **rest: Any) -> str:
        return "" if name == FROM_INPUT else identity_of(host.hyper_path(name))

    @classmethod
    def execute(cls, name: str, load_base: bool, hyper: Hyper | None = None) -> io.NodeOutput:
        if hyper is None:
            if name == FROM_INPUT:
                raise ValueError("hyper-merge: choose a hyper-model, or link one to the input")
            hyper = host.open_hyper(name)
        loaded = load_base_of(hyper) if load_base else (None, None, None)
        return io.NodeOutput(hyper, *loaded, ui={"hyper_merge": [{"name": hyper.name}]})


def load_base_of(hyper: Hyper) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the hyper-model's base; MODEL and CLIP know that they are it."""
    path = host.base_of(hyper)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if path is not None:
        found = comfy.sd.load_checkpoint_guess_config(
            path, output_vae=True, output_clip=True, embedding_directory=embeddings
        )
    else:
        tensors, metadata = base.state_dict(hyper)
        found = comfy.sd.load_state_dict_guess_config(
            tensors, output_vae=True, output_clip=True, embedding_directory=embeddings, metadata=metadata
        )
        if found is not None:
            _can_be_loaded_again(found[0], hyper)
    if found is None:
        raise ValueError(
            f"hyper-merge: ComfyUI does not know the architecture of {hyper.name}; load its base with another node "
            "and link that MODEL to HyperMerge Blend"
        )
    model, clip, vae = found[:3]
    for patcher in (model, getattr(clip, "patcher", None)):
        if patcher is not None and hasattr(patcher, "set_attachments"):
            patcher.set_attachments(BASE_OF, hyper.identity)
    return model, clip, vae


def _can_be_loaded_again(model: Any, hyper: Hyper) -> None:
    """ComfyUI reloads models for hooks under dynamic VRAM and for several GPUs, by a function that it remembers."""
    if model is None or not hasattr(model, "cached_patcher_init"):
        return

    def again(disable_dynamic: bool = False) -> Any:
        tensors, metadata = base.state_dict(hyper)
        more = {"disable_dynamic": True} if disable_dynamic else {}
        return comfy.sd.load_state_dict_guess_config(
            tensors, output_vae=False, output_clip=False, metadata=metadata, **more
        )[0]

    model.cached_patcher_init = (again, ())


NODES = [HyperMergeLoad]
