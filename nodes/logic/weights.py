"""The patch that ComfyUI applies to one weight: W += Σ c_k D_k in one pass, in place.

ComfyUI applies patches in the order in which nodes added them, so LoRAs before and after are right, and it makes the
patch anew where it prefetches tensors: everything that a patch knows is in `weights`, and tensors there may be moved by
the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from .directions import Directions, Part, blend_tensors
from .keys import is_text_alone


@dataclass(frozen=True)
class Move:
    """What a patch does to one weight.  No tuple: ComfyUI, where it prefetches, makes plain ones of all it meets."""

    directions: Directions
    part: Part
    multipliers: tuple[float, ...]
    """K of them."""
    low: bool
    """Add base_low: the weight comes from the hyper-model's own base."""
    replaces: bool
    """The weight becomes Σ c·D: a hyper-model without base."""

    @property
    def is_still(self) -> bool:
        """Does it leave the weight as it is?"""
        return not self.replaces and not self.low and not any(self.multipliers)


def patch_class(base: type) -> type:
    """The class of our patches.  base: comfy.weight_adapter.WeightAdapterBase."""

    class HyperMergePatch(base):  # type: ignore[misc, valid-type]
        name = "hyper_merge"

        def __init__(self, loaded_keys: set[str], weights: tuple) -> None:
            """weights: (Move,), or (Move, base_low, D_1 … D_K) as the host makes it where it has moved the tensors."""
            self.loaded_keys = loaded_keys
            self._weights = tuple(weights)

        @property
        def weights(self) -> tuple:
            """With the tensors, where they are kept in memory: so the host sees their size and may move them ahead."""
            if len(self._weights) > 1 or not self.move.directions.in_memory:
                return self._weights
            return (self.move, *self.move.directions.tensors(self.move.part))

        @property
        def move(self) -> Move:
            return self._weights[0]

        def calculate_weight(
            self,
            weight: Any,
            key: str,
            strength: float,
            strength_model: float,
            offset: Any,
            function: Any,
            intermediate_dtype: Any = None,
            original_weight: Any = None,
        ) -> Any:
            """Changes `weight`, a copy that the host made, and returns it.  strength multiplies the multipliers."""
            move = self.move
            if tuple(weight.shape) != move.part.shape:
                raise ValueError(
                    f"hyper-merge: {key}: has the shape {list(weight.shape)}, its directions {list(move.part.shape)}: "
                    "another node changes the shape of this weight; put HyperMerge Blend before it"
                )
            factors = [c * strength for c in move.multipliers]
            base = None if move.replaces else weight
            if base is not None and not move.low and not any(factors):
                return weight
            if len(self._weights) > 1:
                blend_tensors(weight, base, move.part, self._weights[1:], factors, move.low)
            else:
                move.directions.blend_(weight, base, move.part, factors, move.low)
            return weight

    return HyperMergePatch


def multipliers_of(
    name: str, at: Sequence[float], blocks: Sequence[tuple[str, Sequence[float]]], factor: float = 1.0
) -> tuple[float, ...]:
    """The multipliers of a tensor: those of the last glob that matches its name, else `at` times `factor`."""
    values = tuple(c * factor for c in at)
    for glob, given in blocks:
        if fnmatchcase(name, glob):
            values = tuple(given)
    return values


def moves(
    found: Mapping[str, Part],
    moving: Mapping[str, Any],
    directions: Directions,
    at: Sequence[float],
    blocks: Sequence[tuple[str, Sequence[float]]],
    *,
    factor: float = 1.0,
    low: bool = False,
    replaces: bool = False,
) -> dict[str, Move]:
    """A Move for each of the host's tensors that a direction moves.

    found: the host's names, as keys.parts gives them.  moving: hyper-model tensors that move.  factor: for text
    encoders; on top of `blocks` too, but for those that are about text encoders alone.  Others as in Move and
    multipliers_of.
    """
    if factor != 1:
        blocks = [
            (glob, given if is_text_alone(glob, moving) else tuple(c * factor for c in given)) for glob, given in blocks
        ]
    return {
        key: Move(directions, part, multipliers_of(part.name, at, blocks, factor), low, replaces)
        for key, part in found.items()
        if part.name in moving
    }


def is_passed_over(module: Any, key: str) -> bool:
    """Is it a buffer, or a parameter of a torch module that has layers with parameters of their own?  ComfyUI patches
    only others.
    """
    folder, _, last = key.rpartition(".")
    try:
        inside = module.get_submodule(folder)
    except AttributeError:
        return False
    if any(last == name for name, _ in inside.named_buffers(recurse=False)):
        return True
    if all(last != name for name, _ in inside.named_parameters(recurse=False)):
        return False
    return any("." in name for name, _ in inside.named_parameters())


def check_weights(moves: Mapping[str, Move], held: Mapping[str, Any], what: str) -> None:
    """Raises ValueError when the host's tensors cannot take the moves: another model, or numbers that are packed.

    held: the host's state dict.  what: "MODEL" or "CLIP", for the message.
    """
    for key, move in moves.items():
        tensor = held[key]
        if not tensor.is_floating_point():
            raise ValueError(
                f"hyper-merge: this {what} is quantised: {key} holds {str(tensor.dtype).removeprefix('torch.')} "
                "numbers, which cannot be blended; load it from an fp16, bf16, fp32 or fp8 file"
            )
        if tuple(tensor.shape) != move.part.shape:
            raise ValueError(
                f"hyper-merge: this {what} is another model than the hyper-model is made of: {key} has the shape "
                f"{list(tensor.shape)}, the hyper-model {list(move.part.shape)}"
            )
