"""The base of a hyper-model as a state dict, for a host that loads it: nothing of `hypermerge.*` is in it."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Sequence
from typing import Any

from .binary import hypermerge, part
from .hyper import Hyper

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_MOST_HEADER = 32 << 20  # as the compiled part allows


def linked_base(hyper: Hyper, folders: Sequence[str]) -> str | None:
    """Path of the file that a hyper-model names as its base; None when the base lies in its own file, or is none.

    Looked for beside the hyper-model, then in `folders`, and known by its name and the hash of its header.  Raises
    FileNotFoundError; ValueError where several that are not the same could be meant: one tool's files share a header.
    """
    base = hyper.document["base"]
    if not base.get("header_hash"):
        return None
    hm, found = hypermerge(), []
    for folder in (os.path.dirname(hyper.path), *folders):
        path = os.path.join(folder, base["name"])
        if os.path.isfile(path) and json.loads(hm.source(path).describe())["header_hash"] == base["header_hash"]:
            if folder == os.path.dirname(hyper.path):
                return path
            found.append(path)
    if not found:
        raise FileNotFoundError(
            f"hyper-merge: {hyper.name} was made on the base {base['name']}, which is not among the checkpoints; put "
            "it there, or link a MODEL of your own to HyperMerge Blend"
        )
    others = unlike(found)
    if others:
        raise ValueError(
            f"hyper-merge: {hyper.name} was made on the base {base['name']}, and different checkpoints are called so: "
            f"{', '.join([found[0], *others])}; put the right one, or a link to it, beside {hyper.path}"
        )
    return found[0]


def inputs(hyper: Hyper, listed: Sequence[tuple[str, str]], instead: str) -> list[str]:
    """Paths of the checkpoints that were solved, in their order, known by name and by the hash of their headers.

    listed: names without folder and ending, and paths.  instead: what a person can do without them.  Raises
    FileNotFoundError; ValueError where several that are not the same could be meant.
    """
    hm, paths = hypermerge(), []
    for member in hyper.document["members"]:
        name, wanted = member["name"], member["header_hash"]
        called = [path for stem, path in listed if stem == name]
        found = [path for path in called if json.loads(hm.source(path).describe())["header_hash"] == wanted]
        if not found:
            raise FileNotFoundError(
                f"hyper-merge: {name}, which {hyper.name} was made of, is not among the checkpoints; {instead}"
            )
        others = unlike(found)
        if others:
            raise ValueError(
                f"hyper-merge: {hyper.name} was made of {name}, and different checkpoints are called so: "
                f"{', '.join([found[0], *others])}; {instead}"
            )
        paths.append(found[0])
    return paths


def unlike(paths: Sequence[str]) -> list[str]:
    """Those that do not hold the same as the first.  Copies are read whole, once; others only as far as they agree."""
    return [
        path
        for path in paths[1:]
        if not os.path.samefile(paths[0], path) and not filecmp.cmp(paths[0], path, shallow=False)
    ]


def state_dict(hyper: Hyper) -> tuple[dict[str, Any], dict[str, str]]:
    """W̃ and what was copied beside it, as torch tensors, and the file's metadata without our document.

    A hyper-model without base gives the mean of its models instead, as far as the directions know them: there is no
    other complete set of weights in it.
    """
    if hyper.replaces:
        return _mean_of_directions(hyper), {}
    return read(hyper.path)


def read(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a safetensors file but `hypermerge.*`, and its metadata.  Raises OSError, ValueError.

    Read, not mapped: the file may be replaced while the host holds its tensors.  To be called for files that the
    compiled part has opened, which checks their header more strictly.
    """
    import torch

    with open(path, "rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"{path}: is no safetensors file")
        header = json.loads(file.read(length))
        metadata = {key: text for key, text in (header.pop("__metadata__", None) or {}).items() if key != "hypermerge"}
        tensors = {}
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if name.startswith("hypermerge."):
                continue
            begin, end = entry["data_offsets"]
            raw = torch.empty(end - begin, dtype=torch.uint8)
            file.seek(8 + length + begin)
            if end > begin and _fill(file, raw.numpy()) != end - begin:
                raise ValueError(f"{path}: {name}: the file ends too early")
            tensors[name] = raw.view(getattr(torch, _DTYPES[entry["dtype"]])).view(entry["shape"])
    return tensors, metadata


def _fill(file: Any, out: Any) -> int:
    """Bytes read into `out`; one call gives at most 2 GiB."""
    done, view = 0, memoryview(out)
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            break
        done += got
    return done


def _mean_of_directions(hyper: Hyper) -> dict[str, Any]:
    import torch

    members = hyper.model.members
    mean = [sum(member.multipliers[k] for member in members) / len(members) for k in range(hyper.count)]
    direction = part("stored").DIRECTION
    tensors = {}
    for name, stored in hyper.stored.moving.items():
        kind = getattr(torch, _DTYPES[stored.rows[direction]])
        tensors[name] = hyper.stored.blend_(torch.empty(stored.shape, dtype=kind), None, name, mean)
    return tensors
