"""Automatic1111: which tensors of the loaded model are the hyper-model's, and what the host keeps that depends on them.

The built-in LoRA support keeps a copy of every layer from before it added LoRAs, and puts that back later: it would
silently undo a write.  So its copies are put back or dropped around each write, and the next forward makes new ones.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from .pack import Hyper
from .weights import Blend, Parameter, Targets, Written, parameters

_LEFT_OUT = ("first_stage_model.", "model_ema.", "depth_model.")
"""Never moved live: the host exchanges the VAE by itself; the others are not blended."""

_RENAMED = (  # what the host's names begin with, what the checkpoint's may begin with instead
    ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
    ("cond_stage_model.", "conditioner.embedders.0."),
)
_CACHED = {"weight": "fp16_weight", "bias": "fp16_bias"}
"""With fp8 weights the host may keep fp16 copies, to which LoRAs are added."""


def hindrance() -> str | None:
    """Why no blend can be seen, for the person; None = nothing."""
    from modules import sd_unet

    if getattr(sd_unet, "current_unet", None) is None:
        return None
    return "another U-Net is active in place of the checkpoint's; choose “None” for SD Unet in the settings"


def bind(model: Any, hyper: Hyper, keep_original: bool, in_memory: bool) -> Blend:
    """Raises MismatchError where the loaded model is not the hyper-model's base."""
    _restore_all(model)
    import torch

    with torch.no_grad():
        return _Blend(model, Written(hyper, targets(model, hyper.stored.shapes), keep_original, in_memory))


def targets(model: Any, stored: Iterable[str]) -> Targets:
    """stored: the hyper-model's names."""
    known = set(stored)
    whole: dict[str, tuple[Parameter, str]] = {}
    copies: dict[str, tuple[Parameter, str]] = {}
    modules = dict(model.named_modules())
    for key, parameter in parameters(model).items():
        name = _stored_name(key, known)
        if name is None:
            continue
        whole[key] = (parameter, name)
        path, _, leaf = key.rpartition(".")
        copy = _CACHED.get(leaf)
        if copy is not None and getattr(modules[path], copy, None) is not None:
            copies[key] = (Parameter(modules[path], copy), name)
    return Targets(whole, copies=copies)


def _stored_name(key: str, known: set[str]) -> str | None:
    if key.startswith(_LEFT_OUT):
        return None
    plain = key.replace(".wrapped.", ".")
    if plain in known:
        return plain
    for host, file in _RENAMED:
        if plain.startswith(host) and file + plain[len(host) :] in known:
            return file + plain[len(host) :]
    return None


class _Blend:
    """Keeps no part of the model alive."""

    def __init__(self, model: Any, written: Written) -> None:
        import weakref

        self._model, self._written = weakref.ref(model), written

    def set(self, at: Any, pairs: Any) -> None:
        with self._writing():
            self._written.set(at, pairs)

    def restore(self) -> None:
        with self._writing():
            self._written.restore()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        import torch

        model = self._model()
        with torch.no_grad():
            held = _with_backup(model)
            moved = {id(parameter.now()) for parameter in self._written.moved}
            for module in held:
                if not all(id(value) in moved for value in module.parameters()):
                    _networks().network_restore_weights_from_backup(module)
                    module.network_current_names = ()
            yield
            for module in held:
                _networks().network_reset_cached_weight(module)


# ---- LoRAs ----------------------------------------------------------------------------------------------------------


def _networks() -> Any:
    """The built-in LoRA extension; None when it is switched off, or another one has taken its name."""
    found = sys.modules.get("networks")
    wanted = ("network_restore_weights_from_backup", "network_reset_cached_weight", "loaded_networks")
    return found if found is not None and all(hasattr(found, name) for name in wanted) else None


def _with_backup(model: Any) -> list[Any]:
    """Layers of which the host keeps a copy from before LoRAs."""
    if _networks() is None:
        return []
    marks = ("network_weights_backup", "network_bias_backup")
    return [m for m in model.modules() if any(getattr(m, mark, None) is not None for mark in marks)]


def _restore_all(model: Any) -> None:
    """No LoRA is in the weights any more."""
    import torch

    with torch.no_grad():
        for module in _with_backup(model):
            _networks().network_restore_weights_from_backup(module)
            _networks().network_reset_cached_weight(module)


@contextlib.contextmanager
def _without_loras() -> Iterator[None]:
    """What runs forward meanwhile has no LoRA in it; afterwards the job's own are active again."""
    networks = _networks()
    if networks is None:
        yield
        return
    active = list(networks.loaded_networks)
    networks.loaded_networks.clear()
    try:
        yield
    finally:
        networks.loaded_networks[:] = active


# ---- the empty prompt -----------------------------------------------------------------------------------------------


def empty_prompt(model: Any) -> Any:
    """What the host keeps of the empty prompt, to fill prompts up with; None where it keeps nothing."""
    return getattr(model, "cond_stage_model_empty_prompt", None)


def encode_empty_prompt(model: Any) -> None:
    """Makes it anew from the text encoder as it is now.

    Not by the host's get_empty_cond, which would activate extra networks: that is where we are called from.
    """
    if empty_prompt(model) is None:
        return
    import torch
    from modules import devices

    with _without_loras(), devices.autocast(), torch.no_grad():
        encode = getattr(model, "get_learned_conditioning", None) or model.cond_stage_model
        found = encode([""])
    model.cond_stage_model_empty_prompt = found["crossattn"] if isinstance(found, dict) else found
