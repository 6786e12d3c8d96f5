"""LoRAs out of a hyper-model or of two checkpoints, and the pack that lets any host slide along the directions."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _core
from ._core import ArgumentError, Error, FormatError
from .pictures import output
from .sources import Model, Progress, Selection, job, out_dtype, selection as selected, source

if TYPE_CHECKING:
    from .model import Member

ENDING = ".safetensors"
_HEADING = "# hyper-merge slider pack"


def lora(
    from_: Model,
    to: Model,
    path: str | os.PathLike[str],
    *,
    rank: int | None = None,
    error: float | None = None,
    size: int | None = None,
    dtype: str | None = None,
    format: str = "auto",
    whole: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    common: bool = False,
    force: bool = False,
    memory_budget: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    statistics: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Writes the LoRA that makes checkpoint `from_` most like `to` at strength 1.

    Arguments and result as for HyperModel.lora; include, exclude, common: which tensors take part, as for `solve`.
    Raises Error, MismatchError.
    """
    return write(
        None, [], path, from_=source(from_, "from"), to=source(to, "to"), rank=rank, error=error, size=size, dtype=dtype,
        format=format, whole=whole, selection=selected(include, exclude, common), force=force,
        passes=job(memory_budget, threads, progress, statistics),
    )  # fmt: skip


def write(
    hyper: _core.Hyper | None,
    at: Sequence[float],
    path: str | os.PathLike[str],
    *,
    rank: int | None,
    error: float | None,
    size: int | None,
    dtype: str | None,
    format: str,
    whole: bool,
    force: bool,
    passes: Any,
    from_: _core.Source | None = None,
    to: _core.Source | None = None,
    selection: Selection = ((), (), False, False),
) -> dict[str, Any]:
    """The call behind both kinds: a blend of `hyper`, or `to` − `from_`."""
    if sum(value is not None for value in (rank, error, size)) > 1:
        raise ArgumentError("rank, error and size exclude one another; give one")
    for what, value, most in (("rank", rank, 2**32 - 1), ("error", error, 1), ("size", size, 2**64 - 1)):
        if value is not None and not value > 0:
            raise ArgumentError(f"{what} {value}: it must be greater than 0")
        if value is not None and value > most:  # the compiled part would see what is left of it in so many bits
            raise ArgumentError(f"{what} {value}: it must lie between 0 and {most}")
    report: dict[str, Any] = json.loads(
        _core.lora(
            hyper, at, from_, to, path, rank or 0, error or 0.0, size or 0, out_dtype(dtype), format, whole, force,
            selection, passes,
        )
    )  # fmt: skip
    return report


def pack_paths(path: str | os.PathLike[str], directions: int) -> tuple[list[str], str, str]:
    """Files of the pack NAME.safetensors: LoRAs NAME-1.safetensors …, base NAME-base.safetensors, text NAME.txt."""
    stem = os.fspath(path).removesuffix(ENDING)
    return [f"{stem}-{k}{ENDING}" for k in range(1, directions + 1)], f"{stem}-base{ENDING}", f"{stem}.txt"


def strengths(members: Sequence[Member], names: Sequence[str]) -> str:
    """Which strengths of the LoRAs `names` give each model, as prompts have them, one line per model."""
    longest = max(len(member.name) for member in members)
    lines = []
    for member in members:
        tokens = " ".join(f"<lora:{name}:{value:.4g}>" for name, value in zip(names, member.multipliers))
        lines.append(f"{member.name.ljust(longest)}  {tokens}  # the directions miss {100 * member.residual:.1f} % of it")
    return "".join(line + "\n" for line in lines)


def missed(report: Mapping[str, Any]) -> float:
    """What a LoRA does not give of its direction, in its layers and beside them; relative, in norm."""
    lost = report["not_carried"]["share"]
    return math.sqrt((1 - lost) * report["relative_error"] ** 2 + lost)


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Is this a model, hyper-model or LoRA that hyper-merge wrote?"""
    try:
        opened = source(path)
    except FormatError:  # others, such as too many open files, say nothing about whose it is
        return False
    return opened.metadata("hypermerge") is not None or '"hyper-merge"' in (opened.metadata("sd_merge_recipe") or "")


def check_pack(files: Sequence[str], text: str, hyper: str | None, force: bool) -> None:
    """Raises Error where any file of a pack must not be written, before hours of work and before the first is there."""
    check_text(text, force)
    for path in files:
        if not os.path.exists(path):
            continue
        if hyper is not None and os.path.exists(hyper) and os.path.samefile(hyper, path):
            raise ArgumentError(f"{path}: is one of the inputs; write to another name")
        if os.path.isdir(path) or (not force and not is_ours(path)):
            raise ArgumentError(f"{path}: exists and was not written by hyper-merge; choose another name or use --force")


def check_text(path: str, force: bool) -> None:
    """Raises Error where the text beside a pack must not be written."""
    if os.path.isdir(path):
        raise Error(f"{path}: is a folder; choose another name")
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):  # opening a pipe would wait for somebody to write into it
        raise Error(f"{path}: exists and is not a file; choose another name")
    if force:
        return
    with open(path, "rb") as file:
        if not file.read(len(_HEADING)).startswith(_HEADING.encode()):
            raise Error(f"{path}: exists and was not written by hyper-merge; choose another name or use --force")


def write_strengths(
    path: str, members: Sequence[Member], files: Sequence[str], reports: Sequence[Mapping[str, Any]], force: bool
) -> None:
    """Writes the text beside a pack of LoRA `files`, of which `reports` tell how good they are."""
    check_text(path, force)
    names = [os.path.basename(file).removesuffix(ENDING) for file in files]
    base = os.path.basename(path).removesuffix(".txt") + f"-base{ENDING}"
    text = f"{_HEADING}\n# On {base}, and on no other model, these LoRA strengths come nearest to:\n{strengths(members, names)}"
    for name, report in zip(names, reports):
        text += f"# {name} itself misses {100 * missed(report):.1f} % of its direction\n"
    output.write(path, text.encode("utf-8", "replace"))
