"""Solving once: the name of a hyper-model's file says what it was made of, so the same question finds the answer."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .binary import hypermerge

ENDING = ".hyper.safetensors"


class Question(NamedTuple):
    """What is solved for."""

    models: tuple[str, ...]
    """Paths, in order."""
    base: str
    """ "mean", "none" or a path."""
    directions: int
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: str | None = None
    """ "fp16", "bf16", "fp32" or None, to keep each tensor's own."""
    common: bool = False
    allow_nonfinite: bool = False


def identity(question: Question) -> str:
    """16 hexadecimal digits: of every input its size, time and header, and of all else that decides what is written.

    Reads the inputs' headers only.  Raises hypermerge_ext.Error.
    """
    hm = hypermerge()

    def file(path: str) -> list[Any]:
        status = os.stat(path)
        header = json.loads(hm.source(path).describe()).get("header_hash")
        return [os.path.basename(path), status.st_size, status.st_mtime_ns, header]

    known = [
        2,  # of this list: another one here solves everything anew
        [file(path) for path in question.models],
        question.base if question.base in ("mean", "none") else file(question.base),
        *question[2:],
    ]
    text = json.dumps(known, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_name(name: str, question: Question, found: str) -> str:
    """`name`, or "8-models" where that is empty, and eight digits of the identity.  No folders: a / becomes _."""
    stem = re.sub(r"[^\w .+()\[\]-]+", "_", name.strip().removesuffix(ENDING)).strip(" .")
    stem = stem or f"{len(question.models)}-models"
    return f"{stem[:100]}-{found[:8]}{ENDING}"


def solve(question: Question, path: str, progress: Callable[[int, int], object] | None = None) -> bool:
    """Makes the hyper-model `path`, unless it is there already; True when it was made.

    progress: bytes done and bytes in all, over both passes; what it raises cancels and is raised, with no file left.
    Raises hypermerge_ext.Error.
    """
    hm = hypermerge()
    if os.path.isfile(path):
        try:
            hm.load(path)
            return False
        except hm.Error:
            pass  # cut off by something else than us: written anew
    both = _Passes(progress)
    hyper = hm.solve(
        list(question.models),
        base=question.base,
        # Two is what people want by default, and two models only have one direction.
        directions=None if question.directions == 2 else question.directions,
        include=question.include,
        exclude=question.exclude,
        dtype=question.dtype,
        common=question.common,
        allow_nonfinite=question.allow_nonfinite,
        progress=both.first,
    )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    hyper.save(path, force=True, progress=both.second)
    return True


class _Passes:
    """One bar for measuring and writing: the second pass reads the same and writes as well, so it counts double."""

    def __init__(self, progress: Callable[[int, int], object] | None) -> None:
        self._progress = progress

    def first(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, 3 * total)

    def second(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(total + 2 * done, 3 * total)
