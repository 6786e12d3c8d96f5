"""Puts a point of a hyper-model on a patcher: which of its weights move, by what, and by which of the two ways."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from . import fast_path, keys, weights
from .directions import Directions, Part
from .hyper import Hyper

BASE_OF = f"{fast_path.KEY}_base"
"""Attachment of patchers that hold the base of the hyper-model of that identity."""
KEEP_FREE = 1 << 30
"""Bytes of main memory that directions never take."""

log = logging.getLogger("hyper_merge")


class Blend(NamedTuple):
    """A point of a hyper-model, and how to get there."""

    at: tuple[float, ...]
    """K multipliers."""
    blocks: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """Other multipliers for the tensors whose names match a glob; the last that matches decides."""
    strength_clip: float = 1.0
    """Factor on `at` for text encoders."""
    in_memory: bool = False
    fast: bool = True
    """Take the fast path where it is safe."""


class Names(NamedTuple):
    """What the host's tensors are of the hyper-model's: of a MODEL, and of the CLIP that belongs to it."""

    model: dict[str, Part]
    clip: dict[str, Part]


class Host(NamedTuple):
    """What is needed of ComfyUI."""

    patch: type
    """weights.patch_class(…)"""
    fast: fast_path.Host
    on_detach: str
    """comfy.patcher_extension.CallbacksMP.ON_DETACH"""
    free_memory: Callable[[], int]
    """Bytes of main memory that can be had."""


def names_of(
    hyper: Hyper,
    prefix_of: Callable[[Mapping[str, Any]], str],
    convert_model: keys.Convert,
    convert_clip: keys.Convert,
) -> Names:
    """Found by the host's own conversions, see keys; says in one line what moves and has no place in the host."""
    shapes, moving = hyper.stored.shapes, hyper.stored.moving
    inside, lost = keys.denoiser(shapes, prefix_of, convert_model)
    clip, lost_clip = keys.parts(shapes, convert_clip)
    found = Names({f"diffusion_model.{key}": part for key, part in inside.items()}, clip)
    if lost or lost_clip:
        log.warning("hyper-merge: ComfyUI joins tensors that directions cannot follow: %s", keys.few(lost + lost_clip))
    known = {part.name for part in (*found.model.values(), *found.clip.values())}
    left = [name for name in moving if name not in known]
    if left:
        log.info(
            "hyper-merge: %s moves %d tensors that no MODEL or CLIP holds: %s", hyper.name, len(left), keys.few(left)
        )
    return found


def say_what_is_passed_over(module: Any, hyper: Hyper, found: Mapping[str, Part]) -> None:
    """Warns of tensors that a host which patches the parameters of leaf modules never patches: no blend reaches them.

    module: the host's torch module; found: its tensors' names.
    """
    moved = [key for key, part in found.items() if part.name in hyper.stored.moving]
    passed = [key for key in moved if weights.is_passed_over(module, key)]
    if passed:
        log.warning(
            "hyper-merge: ComfyUI patches neither buffers nor parameters beside which there are other layers, so these "
            "%d stay as they are: %s; HyperMerge Save Checkpoint moves them too",
            len(passed),
            keys.few(passed),
        )


def blocks_of(pairs: Sequence[tuple[str, Sequence[float]]], hyper: Hyper) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """The blocks of a Blend.  Raises ValueError for a glob that matches no tensor that moves."""
    for glob, _ in pairs:
        if not any(fnmatchcase(name, glob) for name in hyper.stored.moving):
            raise ValueError(f"hyper-merge: no tensor that {hyper.name} moves matches the pattern {glob}")
    return tuple((glob, tuple(values)) for glob, values in pairs)


def moves_of(
    patcher: Any, hyper: Hyper, found: Mapping[str, Part], blend: Blend, what: str, host: Host
) -> dict[str, weights.Move]:
    """What is to happen to each weight of a patcher.  what: "MODEL" or "CLIP".  Raises ValueError."""
    held, moving = patcher.model_state_dict(), hyper.stored.moving
    wanted = weights.moves(
        {key: part for key, part in found.items() if key in held},
        moving,
        directions_of(hyper, blend, host),
        blend.at,
        blend.blocks,
        factor=blend.strength_clip if what == "CLIP" else 1.0,
        low=patcher.get_attachment(BASE_OF) == hyper.identity,
        replaces=hyper.replaces,
    )
    missing = [key for key, part in found.items() if part.name in moving and key not in held]
    if not wanted:
        raise ValueError(
            f"hyper-merge: this {what} has none of the tensors that {hyper.name} moves ({keys.few(missing)}); it is of "
            "another family"
        )
    if missing:
        log.warning(
            "hyper-merge: this %s lacks %d tensors that %s moves: %s", what, len(missing), hyper.name, keys.few(missing)
        )
    weights.check_weights(wanted, held, what)
    return wanted


def patch(
    patcher: Any, upstream: Any, hyper: Hyper, found: Mapping[str, Part], blend: Blend, what: str, host: Host
) -> str | None:
    """Makes `patcher`, a new clone of `upstream`, the blend.  None, or why not on the fast path.  Raises ValueError."""
    wanted = moves_of(patcher, hyper, found, blend, what, host)
    reason = fast_path.why_not(upstream) if blend.fast else "asked for"
    if reason is not None:
        wanted = {key: move for key, move in wanted.items() if not move.is_still}
    if not wanted:
        return reason
    patcher.add_patches({key: host.patch(set(), (move,)) for key, move in wanted.items()})
    first = next(iter(wanted.values()))
    if first.low:
        patcher.set_attachments(BASE_OF, None)  # base_low is in it now: a Blend that follows must not add it again
    if first.directions.in_memory:
        # The host asks the clone that was used last, which may also be the model without a blend.
        for asked in (patcher, upstream):
            _give_back_with(asked, first.directions, host)
    if reason is None:
        factor = blend.strength_clip if what == "CLIP" else 1.0
        link = (f"{hyper.identity}:{first.low}", blend.at, blend.blocks, factor)
        fast_path.attach(patcher, upstream.patches_uuid, link, host.fast)
    return reason


def _give_back_with(patcher: Any, directions: Directions, host: Host) -> None:
    """Directions leave memory when the host unloads the patcher, which does not keep them alive itself."""
    kept, key = weakref.ref(directions), f"{fast_path.KEY}:{directions.identity}"

    def drop(_: Any, unpatched: bool) -> None:
        found = kept()
        if unpatched and found is not None:
            found.drop()

    patcher.remove_callbacks_with_key(host.on_detach, key)  # of an earlier blend
    patcher.add_callback_with_key(host.on_detach, key, drop)


def directions_of(hyper: Hyper, blend: Blend, host: Host) -> Directions:
    """Where the patches read; from the file also when memory was asked for and there is too little of it."""
    if not blend.in_memory:
        return hyper.directions(False)
    kept = hyper.directions(True)
    if kept.bytes_needed - kept.bytes_kept + KEEP_FREE > host.free_memory():
        log.warning(
            "hyper-merge: the directions of %s take %.1f GB of memory, which is not free; they are read from the file",
            hyper.name,
            kept.bytes_needed / 1e9,
        )
        return hyper.directions(False)
    return kept
