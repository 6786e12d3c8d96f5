"""The embedded family inside ComfyUI: it has neither text encoders nor a VAE, so these two nodes stand in for them."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import torch
from comfy_api.latest import io

from .fields import CATEGORY, field, schema
from .logic.binary import FOLDER

# ComfyUI's latents of SD3's family are shifted and scaled; these are its numbers.
_SCALE, _SHIFT = 1.5305, 0.0609

SHAPES = ["circle", "square", "triangle", "diamond"]


def drawing() -> ModuleType:
    """demo/drawing.py: how a picture is described, and how it is packed into a latent."""
    name = "hyper_merge_demo_drawing"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, os.path.join(FOLDER, "demo", "drawing.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


class HyperMergeDemoConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def number(name: str, default: float, least: float, most: float, step: float, tooltip: str) -> Any:
            return field(io.Float, name, default=default, min=least, max=most, step=step, round=0.001, tooltip=tooltip)

        return schema(
            "HyperMergeDemoConditioning",
            "HyperMerge Demo Conditioning",
            category=f"{CATEGORY}/demo",
            description="The prompt of the embedded demo family: which shape, in which colour, where.",
            inputs=[
                field(io.Combo, "shape", options=SHAPES, default="circle"),
                number("hue", 0.6, 0.0, 1.0, 0.01, "Colour: 0 red, 0.33 green, 0.67 blue."),
                number("x", 0.0, -3.5, 3.5, 0.1, "Pixels to the right of the middle, of 32."),
                number("y", 0.0, -3.5, 3.5, 0.1, "Pixels below the middle."),
                number("radius", 10.0, 7.4, 11.0, 0.1, "Pixels."),
            ],
            outputs=[io.Conditioning.Output(display_name="CONDITIONING")],
        )

    @classmethod
    def execute(cls, shape: str, hue: float, x: float, y: float, radius: float) -> io.NodeOutput:
        scene = drawing().scene((shape,), (hue,), x, y, radius)
        context, pooled = drawing().condition(scene)
        return io.NodeOutput([[torch.from_numpy(context), {"pooled_output": torch.from_numpy(pooled)}]])


class HyperMergeDemoDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "HyperMergeDemoDecode",
            "HyperMerge Demo Decode",
            category=f"{CATEGORY}/demo",
            description="Unpacks the demo family's latents (128 x 128, which is 16 x 16 inside) into pictures of 32 x "
            "32.",
            inputs=[
                field(io.Latent, "samples", tooltip="Of an EmptySD3LatentImage of 128 x 128."),
                field(io.Int, "zoom", default=8, min=1, max=32, tooltip="Every pixel becomes a square of so many."),
            ],
            outputs=[io.Image.Output(display_name="IMAGE")],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], zoom: int) -> io.NodeOutput:
        latent = samples["samples"]
        if latent.ndim != 4 or tuple(latent.shape[1:]) != (16, 16, 16):
            raise ValueError(
                f"hyper-merge: the demo family's latents are [n, 16, 16, 16], not {list(latent.shape)}; use an "
                "EmptySD3LatentImage of 128 x 128"
            )
        pictures = drawing().unpack(((latent.float().cpu() - _SHIFT) * _SCALE).numpy())
        image = torch.from_numpy(pictures).float()
        return io.NodeOutput(image.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2))


NODES = [HyperMergeDemoConditioning, HyperMergeDemoDecode]
