"""Which bytes of a checkpoint a command has to read.  Imports nothing large: the benchmark's process stays small."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable


def is_merged(name: str, dtype: str) -> bool:
    """Which tensors of an SD1.5 or SDXL checkpoint take part by default: all but the VAE and the integers."""
    return not name.startswith("first_stage_model.") and not dtype.startswith("I")


def header(path: str | os.PathLike[str]) -> tuple[dict[str, dict], int]:
    """The tensors of a safetensors file, and where their data begins."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(length))
    table.pop("__metadata__", None)
    return table, 8 + length


def extents(
    path: str | os.PathLike[str], wanted: Callable[[str, str], bool] = is_merged
) -> list[tuple[int, int]]:
    """(offset, bytes) in the file of the tensors that are wanted, neighbours joined."""
    table, data = header(path)
    runs: list[tuple[int, int]] = []
    for name, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (data + at for at in entry["data_offsets"])
        if not wanted(name, entry["dtype"]) or start == end:
            continue
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], end - runs[-1][0])
        else:
            runs.append((start, end - start))
    return runs
