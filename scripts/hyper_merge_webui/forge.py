"""Forge: the same in its patchers.

In place where the weights hold numbers: LoRAs are taken out, the weights written, LoRAs put in again, because Forge
does not do so for a patcher that is loaded already.  Packed weights (bnb, gguf) go by Forge's own patches, which
unpack, add and pack again: slower, and right.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .pack import Hyper, Part, hypermerge, keys, points
from .weights import Blend, Pairs, Parameter, Targets, Written, multipliers_of, parameters

log = logging.getLogger("hyper_merge")

PATCH = "hyper-merge"
"""Kind of our patches, and how their names begin."""


def is_forge(model: Any) -> bool:
    return hasattr(model, "forge_objects")


def hindrance() -> str | None:
    """As in a1111; nothing stands in the way here."""
    return None


def bind(model: Any, hyper: Hyper, keep_original: bool, in_memory: bool) -> Blend:
    """Raises MismatchError where the loaded model is not the hyper-model's base.

    keep_original: the model is known to be it, so its weights need not hold the very same numbers.
    """
    import torch

    found = targets(model, hyper)
    if is_packed(model):
        if not keep_original or hyper.replaces:
            raise hypermerge().MismatchError("its weights are packed, and its file is not the base's")
        return Patched(model, hyper, found, in_memory)
    with torch.inference_mode(), _without_loras(model):
        _widen_embeddings(model.forge_objects_original.clip.cond_stage_model)
        return _Blend(model, Written(hyper, found, keep_original, in_memory))


def _widen_embeddings(encoder: Any) -> None:
    """To f32, as Forge does before it reads the first prompt: a first move, made before, would be rounded otherwise
    than all that follow.
    """
    import torch

    for module in encoder.modules():
        for name in ("token_embedding", "position_embedding"):
            child = getattr(module, name, None)
            if isinstance(child, torch.nn.Module):
                child.to(torch.float32)


def is_packed(model: Any) -> bool:
    """Do weights hold something else than numbers, as bnb's and gguf's do?"""
    marks = ("bnb_quantized", "gguf_cls", "quant_state")
    unet = model.forge_objects_original.unet.model
    return any(
        not value.is_floating_point() or any(getattr(value, mark, None) is not None for mark in marks)
        for value in unet.parameters()
    )


# ---- which tensors --------------------------------------------------------------------------------------------------


def targets(model: Any, hyper: Hyper) -> Targets:
    shapes = hyper.stored.shapes
    objects = model.forge_objects_original
    whole: dict[str, tuple[Parameter, str]] = {}
    parts: dict[str, tuple[Parameter, Any]] = {}
    prefixes = [*getattr(model.model_config, "unet_key_prefix", ()), "model.diffusion_model.", ""]
    for key, parameter in parameters(objects.unet.model.diffusion_model).items():
        name = next((prefix + key for prefix in prefixes if prefix + key in shapes), None)
        if name is not None:
            whole[f"diffusion_model.{key}"] = (parameter, name)
    found = text_parts(model, shapes)
    for key, parameter in parameters(objects.clip.cond_stage_model).items():
        part = found.get(key.replace(".wrapped.", "."))
        if part is None:
            continue
        if part.start == 0 and not part.transposed and part.shape == shapes[part.name]:
            whole[key] = (parameter, part.name)
        else:
            parts[key] = (parameter, part)
    return Targets(whole, parts)


def text_parts(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The text encoder's tensors, found by Forge's own conversion of checkpoints; {} where it has another."""
    convert = getattr(model.model_config, "process_clip_state_dict", None)
    if convert is None:
        return {}
    try:
        found, _ = keys.parts({name: shape for name, shape in shapes.items() if keys.is_text(name)}, convert)
    except Exception as reason:  # the host's code on names that it may not expect: the picture is worth more
        log.warning("hyper-merge: Forge's names of the text encoder are not known, so it is not moved: %s", reason)
        return {}
    return found


# ---- in place -------------------------------------------------------------------------------------------------------


class _Blend:
    """Keeps no part of the model alive."""

    def __init__(self, model: Any, written: Written) -> None:
        self._model, self._written = weakref.ref(model), written

    def set(self, at: Sequence[float], pairs: Pairs) -> None:
        self._write(lambda: self._written.set(at, pairs))

    def restore(self) -> None:
        self._write(self._written.restore)

    def _write(self, write: Any) -> None:
        import torch

        with torch.inference_mode(), _without_loras(self._model()):
            write()


@contextlib.contextmanager
def _without_loras(model: Any) -> Iterator[None]:
    """The weights hold no LoRA meanwhile, and afterwards those that Forge believes to be in them."""
    original, active = model.forge_objects_original, model.forge_objects_after_applying_lora
    for patcher in (original.unet, original.clip.patcher):
        patcher.lora_loader.refresh({}, offload_device=patcher.offload_device)
    try:
        yield
    finally:
        for patcher in (active.unet, active.clip.patcher):
            patcher.refresh_loras()


# ---- by patches -----------------------------------------------------------------------------------------------------


class Patched:
    """Moves by patches of Forge's, which it applies when it loads the model for the next run."""

    def __init__(self, model: Any, hyper: Hyper, found: Targets, in_memory: bool) -> None:
        self._model, self._hyper = weakref.ref(model), hyper
        self._directions = hyper.directions(in_memory)
        moving = hyper.stored.moving
        whole = {key: name for key, (_, name) in found.whole.items() if name in moving}
        self._parts = {key: Part(name, 0, moving[name].shape) for key, name in whole.items()}
        self._parts |= {key: part for key, (_, part) in found.parts.items() if part.name in moving}
        if not self._parts:
            raise hypermerge().MismatchError("the loaded model has none of the tensors that the hyper-model moves")
        self._name: str | None = None
        self._wanted: dict[str, tuple[Any, tuple[float, ...]]] = {}

    def set(self, at: Sequence[float], pairs: Pairs) -> None:
        _calculators()[PATCH] = _calculate
        wanted = {key: (part, tuple(multipliers_of(part.name, at, pairs))) for key, part in self._parts.items()}
        self._wanted = {key: (part, c) for key, (part, c) in wanted.items() if any(c)}
        text = repr([self._hyper.identity, list(at), sorted(pairs.items())])
        self._name = f"{PATCH}:{points.label(at)}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.refresh()

    def restore(self) -> None:
        self._name, self._wanted = None, {}
        self.refresh()
        self.unhook()

    @staticmethod
    def unhook() -> None:
        _calculators().pop(PATCH, None)

    def refresh(self) -> None:
        """Called before each run: Forge makes its patchers anew when LoRAs change, and ours have to be among them."""
        model = self._model()
        if model is None:
            return
        active, now = model.forge_objects_after_applying_lora, model.forge_objects
        unet, clip = active.unet, active.clip
        if self._is_in(unet) and self._is_in(clip.patcher):
            return
        fresh_unet, fresh_clip = unet.clone(), clip.clone()
        for patcher in (fresh_unet, fresh_clip.patcher):
            patcher.lora_patches = {key: value for key, value in patcher.lora_patches.items() if not _is_ours(key)}
            if self._name is not None:
                payload = {key: (PATCH, (self._directions, *pair)) for key, pair in self._wanted.items()}
                patcher.add_patches(filename=self._name, patches=payload)
        for objects in (active, now):
            objects.unet = fresh_unet if objects.unet is unet else objects.unet
            objects.clip = fresh_clip if objects.clip is clip else objects.clip

    def _is_in(self, patcher: Any) -> bool:
        ours = [key[0] for key in patcher.lora_patches if _is_ours(key)]
        return ours == ([] if self._name is None else [self._name])


def _is_ours(key: tuple) -> bool:
    return str(key[0]).startswith(f"{PATCH}:")


def _calculators() -> dict[str, Any]:
    """Forge's table of kinds of patches, meant for further ones."""
    from backend.patcher import lora

    return lora.extra_weight_calculators


def _calculate(weight: Any, strength: float, payload: tuple) -> Any:
    """Adds to one weight, which Forge has unpacked to f32: called by it, for each of our patches."""
    directions, part, multipliers = payload
    directions.blend_(weight, weight, part, [c * strength for c in multipliers], False)
    return weight
