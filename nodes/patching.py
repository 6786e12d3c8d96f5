"""Blends on ComfyUI's MODEL and CLIP."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_detection
import comfy.patcher_extension
import comfy.utils
from comfy.weight_adapter import WeightAdapterBase

from . import host
from .logic import apply, fast_path, weights
from .logic.apply import Blend, Names
from .logic.hyper import Hyper

Patch = weights.patch_class(WeightAdapterBase)

HOST = apply.Host(
    patch=Patch,
    fast=fast_path.Host(
        injection=comfy.patcher_extension.PatcherInjection,
        on_load=comfy.patcher_extension.CallbacksMP.ON_LOAD,
        get_weight=comfy.utils.get_attr,
        set_weight=comfy.utils.set_attr_param,
    ),
    on_detach=comfy.patcher_extension.CallbacksMP.ON_DETACH,
    free_memory=host.free_memory,
)

_known: WeakKeyDictionary[Any, dict[str, Names]] = WeakKeyDictionary()
"""Of models that are in memory, and hyper-models by their identity: found once, not at every move."""


def names_of(hyper: Hyper, model: Any) -> Names:
    """What a MODEL's and its CLIP's tensors are of the hyper-model's, by the conversions of the MODEL's family."""
    known = _known.setdefault(model.model, {})
    if hyper.identity not in known:
        config = model.model.model_config
        known[hyper.identity] = apply.names_of(
            hyper,
            comfy.model_detection.unet_prefix_from_state_dict,
            config.process_unet_state_dict,
            config.process_clip_state_dict,
        )
        apply.say_what_is_passed_over(model.model, hyper, known[hyper.identity].model)
    return known[hyper.identity]


def blend_model(model: Any, hyper: Hyper, blend: Blend, names: Names) -> Any:
    """A clone of the MODEL, at the point.  Raises ValueError when it is of another family, or quantised."""
    changed = model.clone()
    reason = apply.patch(changed, model, hyper, names.model, blend, "MODEL", HOST)
    if reason is not None:
        host.log.debug("hyper-merge: ordinary patches: %s", reason)
    return changed


def blend_clip(clip: Any, hyper: Hyper, blend: Blend, names: Names) -> Any:
    """A clone of the CLIP, at the point; the CLIP itself when no direction moves a text encoder."""
    if clip is None or not any(part.name in hyper.stored.moving for part in names.clip.values()):
        return clip
    changed = clip.clone()
    apply.patch(changed.patcher, clip.patcher, hyper, names.clip, blend, "CLIP", HOST)
    return changed
