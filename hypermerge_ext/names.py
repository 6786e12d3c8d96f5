"""Which tensor of a host's belongs to which tensor of a hyper-model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Union

from ._core import MismatchError

Names = Union[Mapping[str, str], Callable[[str], Union[str, None]]]
"""Target name → name in the hyper-model: a mapping, or a function which may return None."""

_WRAPPED = ".wrapped."  # inserted by Automatic1111 where it wraps the text encoder
_VARIANTS = (  # (what a target's name begins with, what the hyper-model's begins with instead)
    ("", ""),
    ("", "model."),
    ("", "model.diffusion_model."),
    ("model.", ""),
    ("model.diffusion_model.", ""),
)


def match(
    targets: Collection[str], stored: Collection[str], moves: Collection[str], prefix: str | None, names: Names | None
) -> dict[str, str]:
    """Target → tensor of the hyper-model, for those that have one.

    stored: the hyper-model's names, of which directions move `moves`.  prefix: stands before a target's name in the
    hyper-model.  Without prefix and names the spelling is guessed: exact, or without `model.` or
    `model.diffusion_model.` in front; the one that fits most tensors is taken for all.  `.wrapped.` is looked through.
    Raises MismatchError when nothing fits, when two spellings or two targets do equally.
    """
    if names is not None:
        found = _by_names(targets, stored, names)
    elif prefix is not None:
        found = _by_variant(targets, stored, "", prefix)
    else:
        found = _by_guess(targets, stored, moves)
    if not any(name in moves for name in found.values()):
        raise MismatchError(
            f"no target is a tensor that the hyper-model moves: targets are called {_first(targets)}, its tensors "
            f"{_first(moves)}; give prefix= or names="
        )
    taken: dict[str, str] = {}
    for target, name in found.items():
        other = taken.setdefault(name, target)
        if other is not target:
            error = MismatchError(
                f"{name}: both {other} and {target} would be its target; leave one out or give names="
            )
            error.tensor = name
            raise error
    return found


def _by_names(targets: Collection[str], stored: Collection[str], names: Names) -> dict[str, str]:
    given = names.get if isinstance(names, Mapping) else names
    found = {target: name for target in targets if (name := given(target)) is not None}
    unknown = [name for name in found.values() if name not in stored]
    if unknown and isinstance(names, Mapping):
        raise MismatchError(f"the hyper-model has no tensor {_first(unknown)}, which names= gives for a target")
    return {target: name for target, name in found.items() if name in stored}


def _by_variant(targets: Collection[str], stored: Collection[str], strip: str, add: str) -> dict[str, str]:
    found = {}
    for target in targets:
        if not target.startswith(strip):
            continue
        name = add + target[len(strip) :]
        if name not in stored and _WRAPPED in name:
            name = name.replace(_WRAPPED, ".")
        if name in stored:
            found[target] = name
    return found


def _by_guess(targets: Collection[str], stored: Collection[str], moves: Collection[str]) -> dict[str, str]:
    guesses = [_by_variant(targets, stored, strip, add) for strip, add in _VARIANTS]
    fits = [sum(name in moves for name in found.values()) for found in guesses]
    best = fits.index(max(fits))  # the first of equals, and exact names are the first of all
    for other in range(best + 1, len(guesses)):
        if best > 0 and fits[other] == fits[best] > 0 and guesses[other] != guesses[best]:
            (target, one), (_, two) = next(iter(guesses[best].items())), next(iter(guesses[other].items()))
            raise MismatchError(
                f"{target} may be {one} or {two} of the hyper-model, among others; give prefix= or names="
            )
    return guesses[best]


def _first(names: Collection[str]) -> str:
    few = sorted(names)[:3]
    return ", ".join(few) + (" …" if len(names) > len(few) else "") if few else "nothing"
