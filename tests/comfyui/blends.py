"""What the tests of patches share: small hyper-models, a stand-in host with their base, and what must come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

import live_models
from comfyui import pack, stand_in

apply = pack.part("logic.apply")
base = pack.part("logic.base")
fast_path = pack.part("logic.fast_path")
hypers = pack.part("logic.hyper")
weights = pack.part("logic.weights")

Patch = weights.patch_class(stand_in.AdapterBase)
HOST = apply.Host(
    patch=Patch,
    fast=fast_path.Host(stand_in.Injection, stand_in.ON_LOAD, stand_in.get_weight, stand_in.set_weight),
    on_detach=stand_in.ON_DETACH,
    free_memory=lambda: 1 << 40,
)
PREFIX = "model.diffusion_model."


def prefix_of(names: Mapping[str, Any]) -> str:
    """As ComfyUI finds it."""
    return PREFIX if any(name.startswith(PREFIX) for name in names) else "model."


def convert_clip(state: dict[str, Any]) -> dict[str, Any]:
    """As ComfyUI renames SD1's text encoder."""
    old = "cond_stage_model."
    return {f"clip_l.{name.removeprefix(old)}": state[name] for name in list(state) if name.startswith(old)}


def make(folder, **more) -> Any:
    """A Hyper over a new file."""
    _, path = live_models.make(folder, **more)
    return hypers.Hyper(str(path), path.name)


def names_of(hyper: Any) -> Any:
    return apply.names_of(hyper, prefix_of, lambda state: state, convert_clip)


def patcher_of(hyper: Any, dtype: torch.dtype = torch.float32, part: str = "model") -> stand_in.Patcher:
    """A host's patcher that holds the hyper-model's base, as it holds a MODEL or a CLIP."""
    tensors, _ = base.state_dict(hyper)
    found = getattr(names_of(hyper), part)
    held = {key: tensors[place.name].to(dtype) for key, place in found.items()}
    patcher = stand_in.Patcher(stand_in.Model(held), dtype)
    patcher.set_attachments(apply.BASE_OF, hyper.identity)
    return patcher


def blend(upstream: Any, hyper: Any, at: Sequence[float], what: str = "MODEL", **more: Any) -> Any:
    """What HyperMerge Blend gives: a patched clone."""
    found = names_of(hyper)
    patcher = upstream.clone()
    wanted = apply.Blend(tuple(at), **more)
    apply.patch(patcher, upstream, hyper, found.model if what == "MODEL" else found.clip, wanted, what, HOST)
    return patcher


def expected(hyper: Any, at: Sequence[float], dtype: str = "F32", part: str = "model") -> dict[str, torch.Tensor]:
    """The oracle's blend, under the host's names."""
    model = live_models.blended(hyper.path, at, dtype)
    return {key: live_models.to_torch(model[place.name]) for key, place in getattr(names_of(hyper), part).items()}


def held(model: stand_in.Model) -> dict[str, torch.Tensor]:
    """The weights as a forward would use them."""
    return {key: model.now(key).detach().clone() for key, _ in model.named_parameters()}


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    """The same names, and the same bits in each."""
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
