"""The axes of a hyper-model as people speak of them: counted from 1, with names that its document keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from ._core import ArgumentError

NAME_MOST = 64
"""Characters of a name."""

Names = Union[Mapping[int, "str | None"], Sequence["str | None"]]
"""{k: name} for some axes, or one name for each, in order; None and "" stand for no name."""

_NOT_SHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
"""Characters which the compiled part refuses in a name: control, line ends, changes of the writing direction."""

_LETTERS = {"λ": 1, "lambda": 1, "κ": 2, "kappa": 2}


def axis_names(document: Mapping[str, Any]) -> list[str | None]:
    """What the K axes of a hyper-model are called, from its document; None = no name, or none that can be shown."""
    count, axes = document["directions"], document.get("axes")
    if not isinstance(axes, list) or len(axes) != count:
        return [None] * count
    found = [axis.get("name") if isinstance(axis, dict) else None for axis in axes]
    return [name if isinstance(name, str) and _can_be_shown(name) else None for name in found]


def _can_be_shown(name: str) -> bool:
    return 0 < len(name) <= NAME_MOST and name.strip(" ") == name and _NOT_SHOWN.search(name) is None


def names_after(current: Sequence[str | None], names: Names | None) -> list[str]:
    """What the axes will be called when those of `names` are given; "" = no name.  Blanks around a name are taken off.

    Raises ArgumentError for an axis that is not there, or more or fewer names than axes.
    """
    after = list(current)
    if isinstance(names, Mapping):
        for k, name in names.items():
            after[axis_index(k, len(after))] = name
    elif names is not None:
        if isinstance(names, str) or len(names) != len(after):
            raise ArgumentError(f"expected {len(after)} names, one for each axis, or a mapping such as {{1: 'warmth'}}")
        after = list(names)
    for name in after:
        if not isinstance(name, (str, type(None))):
            raise TypeError(f"an axis is called by a str, not {type(name).__name__}")
        if name is not None and "\0" in name:
            raise ArgumentError("the name of an axis holds a character that cannot be shown")
    return [(name or "").strip(" ") for name in after]


def flips(flip: Iterable[int], count: int) -> list[bool]:
    """For each axis: is it one of `flip`?  Raises ArgumentError for an axis that is not there."""
    after = [False] * count
    for k in flip:
        after[axis_index(k, count)] = True
    return after


def axis_index(k: int, count: int) -> int:
    """k, counted from 1, as an index; raises ArgumentError."""
    if not isinstance(k, int) or not 1 <= k <= count:
        there = "there is none" if count == 0 else "there is only axis 1" if count == 1 else f"axes are 1 to {count}"
        raise ArgumentError(f"no axis {k}: {there}")
    return k - 1


def axis_number(text: str) -> int:
    """An axis as it is written on a command line: 1, 2 …, or λ, κ, lambda, kappa.  Raises ValueError."""
    return _LETTERS[text] if text in _LETTERS else int(text)
