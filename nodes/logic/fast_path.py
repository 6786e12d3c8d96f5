"""The fast path: a blend that differs from the loaded one in its multipliers alone is written into the loaded weights.

ComfyUI tells models apart by `patches_uuid`: another one makes it take all patches off, copy every weight and patch it
again.  Here the uuid says which patches there are, but not their multipliers; those stand in an attachment.  Whenever
ComfyUI has made sure that a model is loaded it injects what patchers ask for, and there the weights are compared with
what the patcher wants and, where they differ, written anew from ComfyUI's own backup of the base, in place.

This rests on more of the patcher than nodes usually do, so `why_not` looks at all of it first; without it the patches
work as any others do.  Nothing of ComfyUI is replaced.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

KEY = "hyper_merge"
"""Under which attachments, injections and callbacks stand."""
# Attributes of the loaded model: the attachment of the patcher that its weights agree with, and these weights.
_STATE, _HELD = "hyper_merge_state", "hyper_merge_held"
_SPACE = uuid.UUID("7b0cb36c-5d0c-5e52-8a0d-6f2f9f0f4a11")
_NEEDED = (
    "attachments", "backup", "load_device", "model", "offload_device", "patches", "patches_uuid", "skip_injection",
    "add_callback_with_key", "get_attachment", "patch_model", "patch_weight_to_device", "remove_callbacks_with_key",
    "set_attachments", "set_injections", "unpatch_hooks", "unpatch_model",
)  # fmt: skip
_NEEDED_OF_MODEL = ("current_weight_patches_uuid", "model_loaded_weight_memory", "model_lowvram")


class Host(NamedTuple):
    """What the fast path takes from ComfyUI."""

    injection: Callable[..., Any]
    """comfy.patcher_extension.PatcherInjection(inject, eject)"""
    on_load: str
    """comfy.patcher_extension.CallbacksMP.ON_LOAD"""
    get_weight: Callable[[Any, str], Any]
    """comfy.utils.get_attr(model, key)"""
    set_weight: Callable[[Any, str, Any], Any]
    """comfy.utils.set_attr_param(model, key, tensor)"""


def why_not(patcher: Any) -> str | None:
    """Why a patcher must go the ordinary way; None when it may take the fast one."""
    missing = [name for name in _NEEDED if not hasattr(patcher, name)]
    missing += [f"model.{name}" for name in _NEEDED_OF_MODEL if not hasattr(getattr(patcher, "model", None), name)]
    if missing:
        return f"this ComfyUI's patchers lack {', '.join(missing)}"
    if getattr(patcher, "is_dynamic", lambda: False)():
        return "weights are loaded as they are needed (dynamic VRAM)"
    if patcher.load_device.type != "cpu":
        return f"weights are computed with on '{patcher.load_device}'"
    if patcher.model.model_lowvram:
        return "the model is loaded in parts"
    return None


def attach(patcher: Any, upstream: uuid.UUID, link: tuple, host: Host) -> None:
    """Makes a patcher that just got our patches take the fast path.

    upstream: patches_uuid of what it was cloned from.  link: what decides the patches' numbers; its first item says
    which patches there are and never changes with the multipliers.
    """
    chain = (*(patcher.get_attachment(KEY) or ()), link)
    patcher.set_attachments(KEY, chain)
    patcher.patches_uuid = uuid.uuid5(_SPACE, f"{upstream}:{link[0]}")
    patcher.set_injections(KEY, [host.injection(inject=lambda loaded: _sync(loaded, host), eject=lambda loaded: None)])
    patcher.remove_callbacks_with_key(host.on_load, KEY)  # of a Blend upstream
    patcher.add_callback_with_key(host.on_load, KEY, lambda loaded, *rest: _note(loaded, host))


def _note(patcher: Any, host: Host) -> None:
    """ON_LOAD: ComfyUI has patched the weights itself; all of them, unless some were there with this uuid already."""
    model, wanted = patcher.model, patcher.get_attachment(KEY)
    if getattr(model, _STATE, None) != wanted:
        held = getattr(model, _HELD, {})
        stale = any(weight() is host.get_weight(model, key) for key, weight in held.items())
        setattr(model, _STATE, None if stale else wanted)
    _hold(patcher, host)


def _hold(patcher: Any, host: Host) -> None:
    """Remembers which weights were last patched or written; ComfyUI puts others in their places when it patches."""
    weights = {key: host.get_weight(patcher.model, key) for key in patcher.patches if key in patcher.backup}
    setattr(patcher.model, _HELD, {key: weakref.ref(weight) for key, weight in weights.items()})


def _sync(patcher: Any, host: Host) -> None:
    """Makes the loaded weights what the patcher wants, if they are its at all."""
    model, wanted = patcher.model, patcher.get_attachment(KEY)
    if model.current_weight_patches_uuid != patcher.patches_uuid or getattr(model, _STATE, None) == wanted:
        return
    setattr(model, _STATE, None)  # until all of it is done
    if model.model_lowvram:
        _reload(patcher)
    else:
        patcher.unpatch_hooks()
        for key, patches in patcher.patches.items():
            if key in patcher.backup and any(hasattr(patch[1], "move") for patch in patches):
                _rewrite(patcher, key, patches, host)
    _hold(patcher, host)
    setattr(model, _STATE, wanted)


def _reload(patcher: Any) -> None:
    """The ordinary way after all: parts of the model were moved out since, and hold patches of their own."""
    memory, skip = patcher.model.model_loaded_weight_memory, patcher.skip_injection
    patcher.skip_injection = True
    try:
        patcher.unpatch_model(patcher.offload_device, unpatch_weights=True)
        patcher.patch_model(patcher.load_device, lowvram_model_memory=memory)
    finally:
        patcher.skip_injection = skip


def _rewrite(patcher: Any, key: str, patches: list, host: Host) -> None:
    """One weight = its backup and all patches on it."""
    backup, weight = patcher.backup[key], host.get_weight(patcher.model, key)
    if not _is_plain(backup, weight, patches):
        host.set_weight(patcher.model, key, backup.weight)
        patcher.patch_weight_to_device(key, device_to=patcher.load_device)
        return
    base, out = backup.weight.detach(), weight.detach()
    for patch in patches:
        move = patch[1].move
        factors = [c * patch[0] for c in move.multipliers]
        move.directions.blend_(out, None if move.replaces else base, move.part, factors, move.low)
        base = out


def _is_plain(backup: Any, weight: Any, patches: list) -> bool:
    """May the weight be written where it lies, by our patches alone, with the numbers that ComfyUI would come to?"""
    import torch

    base = backup.weight
    exact = weight.dtype == torch.float32 or (weight.dtype in (torch.float16, torch.bfloat16) and len(patches) == 1)
    return (
        exact
        and not backup.inplace_update
        and base.dtype == weight.dtype
        and base.shape == weight.shape
        and base.is_cpu
        and weight.is_cpu
        and base.data_ptr() != weight.data_ptr()
        and all(
            type(tensor.data) is torch.Tensor and str(tensor.layout) == "torch.strided" for tensor in (base, weight)
        )
        and all(
            hasattr(value, "move") and strength_model == 1 and offset is None and function is None
            for _, value, strength_model, offset, function in patches
        )
    )
