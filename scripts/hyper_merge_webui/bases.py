"""The base of a hyper-model as a checkpoint that the host can load, and how it is known again.  Knows no host."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from .pack import Hyper, base, cache, hypermerge


def is_base(hyper: Hyper, path: str) -> bool:
    """Is a checkpoint the hyper-model's base, by what its file says?  Reads two headers.  Raises Error, OSError."""
    described = _describe(path)
    linked = hyper.document["base"]
    if linked.get("header_hash"):  # checkpoints that one tool has written have the same, so their names count too
        known = described.get("header_hash"), os.path.basename(path)
        return known == (linked["header_hash"], linked["name"])
    recipe = _recipe(described)
    if recipe.get("type") != "hyper-merge" or recipe.get("blocks") or recipe.get("exact"):
        return False
    if (recipe.get("hyper") or {}).get("header_hash") != header_hash(hyper):
        return False
    return list(recipe.get("at") or []) == [float(c) for c in place_of(hyper)]


def place_of(hyper: Hyper) -> list[float]:
    """Multipliers of what is loaded in place of the base: 0, but for base "none" the mean of the models."""
    if not hyper.replaces:
        return [0.0] * hyper.count
    members = hyper.model.members
    return [sum(member.multipliers[k] for member in members) / len(members) for k in range(hyper.count)]


def header_hash(hyper: Hyper) -> str:
    return str(_describe(hyper.path)["header_hash"])


def linked(hyper: Hyper, folders: Sequence[str]) -> str | None:
    """Path of the checkpoint that is the base; None where W̃ lies in the hyper-model.  Raises FileNotFoundError."""
    try:
        found = base.linked_base(hyper, folders)
    except FileNotFoundError:  # it says what to do in ComfyUI
        name = hyper.document["base"]["name"]
        raise FileNotFoundError(
            f"hyper-merge: {hyper.name} was made on the base {name}, which is not among the checkpoints; put it there"
        ) from None
    return None if found is None else str(found)


def inputs(hyper: Hyper, listed: Sequence[tuple[str, str]]) -> list[str]:
    """Paths of the checkpoints that were solved, among these names and paths.  Raises FileNotFoundError, ValueError."""
    return list(base.inputs(hyper, listed, "blend the stored directions instead"))


def file_name(hyper: Hyper) -> str:
    """Of the checkpoint that W̃ is written to: "NAME base.safetensors"."""
    return f"{stem(hyper.name)} base.safetensors"


def stem(name: str) -> str:
    """ "folder/x.hyper.safetensors" as "x"."""
    return os.path.basename(name).removesuffix(cache.ENDING).removesuffix(".safetensors")


def write(hyper: Hyper, path: str, progress: Callable[[int, int], None] | None = None) -> bool:
    """Writes the base to `path`, unless it is there already; True when it was written.  Raises Error, OSError."""
    if os.path.isfile(path) and is_base(hyper, path):
        return False
    hyper.model.merge(place_of(hyper), path, progress=progress)
    return True


def configure(path: str, like: Sequence[str]) -> None:
    """Puts the .yaml by which A1111 builds an unusual network beside `path`: a copy of that of the first `like` it."""
    target = os.path.splitext(path)[0] + ".yaml"
    found = [yaml for yaml in (os.path.splitext(other)[0] + ".yaml" for other in like) if os.path.isfile(yaml)]
    if found and not os.path.exists(target):
        shutil.copyfile(found[0], target)


def _describe(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hypermerge().source(path).describe())
    return found


def _recipe(described: dict[str, Any]) -> dict[str, Any]:
    recipe = (described.get("metadata") or {}).get("sd_merge_recipe") or "{}"
    try:
        found = json.loads(recipe) if isinstance(recipe, str) else recipe
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
