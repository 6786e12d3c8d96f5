"""HyperMerge Schedule: λ and κ move while a picture is sampled, by ComfyUI's own hooks on the conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.hooks
from comfy_api.latest import io

from . import patching
from .fields import field, hyper, multiplier, schema
from .logic import points
from .logic.apply import Blend, moves_of
from .logic.hyper import Hyper


class HyperMergeSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def percent(name: str, default: float, tooltip: str) -> Any:
            return field(io.Float, name, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)

        return schema(
            "HyperMergeSchedule",
            "HyperMerge Schedule",
            description="Moves λ and κ over the steps of sampling, on top of what the MODEL already is: composition "
            "by one model, details by another. Weights are patched anew at every keyframe, which takes its time on "
            "large models.",
            inputs=[
                field(io.Model, "model", tooltip="The model that the sampler gets; it is only looked at."),
                field(io.Conditioning, "positive"),
                field(io.Conditioning, "negative"),
                hyper(),
                multiplier("lam_start", "λ start", "At the beginning; added to what HyperMerge Blend has set."),
                multiplier("kap_start", "κ start", "At the beginning."),
                multiplier("lam_end", "λ end", "At the end."),
                multiplier("kap_end", "κ end", "At the end."),
                percent("start_percent", 0.0, "When they begin to move: 0 is the first step, 1 the last."),
                percent("end_percent", 1.0, "When they have arrived."),
                field(io.Int, "keyframes", default=5, min=2, max=100, tooltip="How many times the weights change."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        hyper: Hyper,
        lam_start: float,
        kap_start: float,
        lam_end: float,
        kap_end: float,
        start_percent: float,
        end_percent: float,
        keyframes: int,
    ) -> io.NodeOutput:
        start = points.at(hyper.count, lam_start, kap_start)
        end = points.at(hyper.count, lam_end, kap_end)
        if hyper.replaces:
            raise ValueError(
                f"hyper-merge: {hyper.name} has no base to add directions to, so they cannot follow a schedule"
            )
        frames = points.schedule(start, end, start_percent, end_percent, keyframes)
        group = comfy.hooks.HookGroup()
        found = patching.names_of(hyper, model).model
        for k in range(hyper.count):
            strengths = [(percent, at[k]) for percent, at in frames]
            if any(strength for _, strength in strengths):
                group.add(_hook(model, hyper, found, k, strengths))
        if not group.hooks:
            return io.NodeOutput(positive, negative)
        return io.NodeOutput(
            comfy.hooks.set_hooks_for_conditioning(positive, group),
            comfy.hooks.set_hooks_for_conditioning(negative, group),
        )


def _hook(model: Any, hyper: Hyper, found: Any, k: int, strengths: Sequence[tuple[float, float]]) -> Any:
    """A hook that adds direction k + 1 with a strength for each share of the sampling."""
    at = tuple(float(index == k) for index in range(hyper.count))
    moves = moves_of(model, hyper, found, Blend(at), "MODEL", patching.HOST)
    hook = comfy.hooks.WeightHook(strength_model=1.0, strength_clip=0.0)
    hook.weights = {key: patching.Patch(set(), (replace(move, low=False),)) for key, move in moves.items()}
    hook.weights_clip = {}
    hook.need_weight_init = False
    hook.hook_keyframe = comfy.hooks.HookKeyframeGroup()
    for index, (percent, strength) in enumerate(strengths):
        hook.hook_keyframe.add(
            comfy.hooks.HookKeyframe(strength=strength, start_percent=percent, guarantee_steps=int(index == 0))
        )
    return hook


NODES = [HyperMergeSchedule]
