"""Which of the host's tensors is which of the hyper-model's.

Found by sending numbered tensors through the host's own conversion of state dicts: so every family that the host knows
is right, also where it cuts a tensor into parts or transposes it, and nothing of that is written down here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from .directions import Part

Convert = Callable[[dict[str, Any]], Mapping[str, Any]]
"""A host's function from a checkpoint's state dict to a module's; may change its argument."""

TEXT_GLOBS = ("cond_stage_model.*", "conditioner.*", "text_encoders.*")
"""The text encoders of a checkpoint, in the families that carry theirs."""

_SHIFT = 32  # an element is (number of the tensor << 32) + its row
_FEW = 3


def parts(shapes: Mapping[str, tuple[int, ...]], convert: Convert) -> tuple[dict[str, Part], list[str]]:
    """The host's tensor names with what they are of the hyper-model's tensors, and the names that cannot be followed.

    shapes: the hyper-model's tensors, under the names that `convert` expects.
    """
    import torch

    names, probe = list(shapes), {}
    for number, (name, shape) in enumerate(shapes.items()):
        rows = torch.arange(shape[0] if shape else 1, dtype=torch.int64) + (number << _SHIFT)
        probe[name] = rows.view(shape[:1] + (1,) * (len(shape) - 1)).expand(shape) if shape else rows[0]
    found: dict[str, Part] = {}
    lost: list[str] = []
    for key, tensor in convert(probe).items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64 or tensor.numel() == 0:
            continue  # what the host added
        part = _part(tensor, names, shapes)
        if part is None:
            lost.append(key)
        else:
            found[key] = part
    return found, lost


def _part(tensor: Any, names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Part | None:
    """What a converted probe says of itself; None when it is more than a run of rows or a transposed tensor."""
    number, row = divmod(int(tensor[(0,) * tensor.ndim]), 1 << _SHIFT)
    if not 0 <= number < len(names):
        return None
    name, shape, is_now = names[number], shapes[names[number]], tuple(tensor.shape)
    first, last = (
        (number << _SHIFT) + row,
        int(tensor[(-1,) * tensor.ndim]),
    )  # never flattened: it is a view without memory
    if is_now == shape[::-1] and len(shape) == 2 and shape[0] > 1 and int(tensor[0, -1]) != first:
        whole = row == 0 and last == first + shape[0] - 1
        return Part(name, 0, is_now, True) if whole else None
    if not shape:
        return Part(name, 0, is_now) if prod(is_now) == 1 else None
    rows = prod(is_now) // max(1, prod(shape[1:]))
    if is_now[1:] != shape[1:] and prod(is_now) != prod(shape):
        return None
    if last != first + rows - 1 or row + rows > shape[0]:
        return None
    return Part(name, row * prod(shape[1:]), is_now)


def denoiser(
    shapes: Mapping[str, tuple[int, ...]], prefix_of: Callable[[Mapping[str, Any]], str], convert: Convert
) -> tuple[dict[str, Part], list[str]]:
    """The denoiser's tensors, under the host's names inside its module, and what cannot be followed.

    prefix_of: the host's function that finds what stands before the denoiser's names.  A file that holds nothing but a
    denoiser may do without.  convert: the host's conversion of names without prefix.
    """
    prefix = prefix_of(shapes)
    inside = {name[len(prefix) :]: name for name in shapes if name.startswith(prefix)}
    if not inside:
        inside = {name: name for name in shapes}
    found, lost = parts({short: shapes[name] for short, name in inside.items()}, convert)
    return {key: part._replace(name=inside[part.name]) for key, part in found.items()}, lost


def is_text(name: str) -> bool:
    """Is it a tensor of a text encoder?"""
    return any(fnmatchcase(name, glob) for glob in TEXT_GLOBS)


def is_text_alone(glob: str, moving: Iterable[str]) -> bool:
    """Is a line of blocks about text encoders alone?  "*" is about everything, also where nothing else moves."""
    return glob != "*" and not any(fnmatchcase(name, glob) and not is_text(name) for name in moving)


def few(names: Iterable[str]) -> str:
    """The first names, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:_FEW]) + (f" and {len(listed) - _FEW} more" if len(listed) > _FEW else "")
