"""Schemas and inputs.  ComfyUI's classes refuse keywords that they do not know, and older ones know fewer."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "hyper-merge"
HYPER = io.Custom("HYPER")
DTYPES = ["keep", "fp16", "bf16", "fp32"]
MOST = 10.0  # of a multiplier: models lie between -1 and 1


def schema(node_id: str, display_name: str, **more: Any) -> io.Schema:
    """A node's schema; what this ComfyUI does not know is left out."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    words = {"node_id": node_id, "display_name": display_name, "category": CATEGORY, **more}
    return io.Schema(**{key: value for key, value in words.items() if key in known})


def field(kind: Any, *args: Any, **more: Any) -> Any:
    """kind.Input(…), likewise: field(io.Float, "lam", default=0.0, advanced=True)."""
    known = inspect.signature(kind.Input.__init__).parameters
    return kind.Input(*args, **{key: value for key, value in more.items() if key in known})


def multiplier(name: str, display_name: str, tooltip: str, default: float = 0.0) -> Any:
    return field(
        io.Float,
        name,
        display_name=display_name,
        default=default,
        min=-MOST,
        max=MOST,
        step=0.01,
        round=0.0001,
        tooltip=tooltip,
    )


def multipliers() -> list[Any]:
    """λ, κ and further ones, of a blend."""
    return [
        multiplier("lam", "λ", "Multiplier of the first direction. 0 is the base; the models lie between -1 and 1."),
        multiplier("kap", "κ", "Multiplier of the second direction."),
        field(
            io.String,
            "further",
            default="",
            tooltip="Multipliers of directions 3, 4 … for hyper-models that have more than two: 0.1, -0.2",
        ),
    ]


def text_strength() -> Any:
    return field(
        io.Float,
        "strength_clip",
        default=1.0,
        min=-MOST,
        max=MOST,
        step=0.01,
        round=0.0001,
        tooltip="Factor on all multipliers for the text encoders; 0 leaves them as they are.",
    )


def how() -> list[Any]:
    """Where directions are read, and how weights are changed."""
    return [
        field(
            io.Combo,
            "directions",
            options=["file", "memory"],
            default="file",
            advanced=True,
            tooltip="file: read from the hyper-model at each change, through a small buffer. memory: kept in main "
            "memory, which is faster and takes as much as the directions are large.",
        ),
        field(
            io.Combo,
            "method",
            options=["auto", "patch"],
            default="auto",
            advanced=True,
            tooltip="auto: when only the multipliers change, the loaded weights are rewritten in place where that is "
            "safe. patch: always by ComfyUI's own patches.",
        ),
    ]


def blocks() -> Any:
    return field(
        io.String,
        "blocks",
        optional=True,
        force_input=True,
        multiline=True,
        tooltip="Other multipliers for some tensors, one line each: GLOB = λ, κ — for example *.output_blocks.* = 0, "
        "0. The last line that matches a tensor's name wins.",
    )


def hyper(**more: Any) -> Any:
    return field(HYPER, "hyper", tooltip="A hyper-model, from HyperMerge Solve or HyperMerge Load.", **more)
