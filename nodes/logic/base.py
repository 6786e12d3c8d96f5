"""The base of a hyper-model as a state dict, for a host that loads it: nothing of `hypermerge.*` is in it."""

from __future__ import annotations

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

    Looked for beside the hyper-model, then in `folders`, and known by the hash of its header.  Raises
    FileNotFoundError.
    """
    base = hyper.document["base"]
    if not base.get("header_hash"):
        return None
    hm = hypermerge()
    for folder in (os.path.dirname(hyper.path), *folders):
        path = os.path.join(folder, base["name"])
        if os.path.isfile(path) and json.loads(hm.source(path).describe())["header_hash"] == base["header_hash"]:
            return path
    raise FileNotFoundError(
        f"hyper-merge: {hyper.name} was made on the base {base['name']}, which is not among the checkpoints; put it "
        "there, or link a MODEL of your own to HyperMerge Blend"
    )


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
