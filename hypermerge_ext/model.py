"""The hyper-model as Python sees it: solve, load, and what can be asked of one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import _core
from ._core import ArgumentError, Source
from .live import Live, bind
from .names import Names
from .sources import Model, Progress, job, out_dtype, source, source_list


class Member(NamedTuple):
    """One model in the coordinates of a hyper-model."""

    name: str
    multipliers: tuple[float, ...]
    """K numbers, of direction 1 first; in [−1, 1] for the models that were solved."""
    residual: float
    """‖ΔW − Σ c_k D_k‖ / ‖ΔW‖: what the directions miss, 0 … 1."""
    residual_stored: float | None
    """The same for the file as written (rounded); None before it is saved."""
    norm: float
    """‖ΔW‖, the distance from the base."""


class HyperModel:
    """A base and K directions; made by `solve` and `load`.

    It may be used from several threads, but not while `save` runs in another: that raises Error.
    """

    def __init__(self, core: _core.Hyper, statistics: dict[str, float] | None = None) -> None:
        self._core = core
        self._document: dict[str, Any] | None = None
        self._folders: list[str] = []  # where the base may be that a saved file only names
        self._saved: _core.Hyper | None = None  # what save wrote
        self._hash = False  # hashes were asked for
        self.statistics: dict[str, float] = statistics if statistics is not None else {}
        """Of the latest pass over files: bytes read past and through the page cache, seconds."""

    def __repr__(self) -> str:
        return f"<HyperModel of {self._core.members} models, {self._core.directions} directions>"

    @property
    def document(self) -> dict[str, Any]:
        """The `hypermerge` metadata document; the other properties are taken from it."""
        if self._document is None:
            self._document = json.loads(self._core.document())
        return self._document

    @property
    def directions(self) -> int:
        """K."""
        return self._core.directions

    @property
    def members(self) -> tuple[Member, ...]:
        """The M models, in the order they were given."""
        return tuple(_member(entry) for entry in self.document["members"])

    @property
    def base(self) -> dict[str, Any]:
        """What the deltas are taken from: {"kind": "mean", "file" or "none", …}."""
        return self.document["base"]

    @property
    def explained_variance_ratio(self) -> list[float]:
        """σ_k² / Σ σ², descending."""
        return self.document["explained_variance_ratio"]

    @property
    def loss(self) -> float:
        """Σ σ_k² over the directions that were left out: the squared error over all models."""
        return self.document["loss"]

    @property
    def total(self) -> float:
        """Σ σ_k² over all directions: the squared distance of all models from the base."""
        return self.document["total"]

    @property
    def gram(self) -> list[list[float]]:
        """M × M inner products ⟨ΔW_m, ΔW_n⟩ about the base, unweighted."""
        return self.document["gram"]

    @property
    def blocks(self) -> dict[str, Any]:
        """Per block of the network: its Gram matrix and the shares that the directions explain there."""
        return self.document["blocks"]

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        split: bool = False,
        base_low: bool = False,
        hash: bool | None = None,
        memory_budget: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Writes a solved hyper-model; reads every input once more.  The file appears whole or not at all.

        force: replace a file that hyper-merge did not write.  split: the base as a plain checkpoint beside it.
        base_low: store what rounding takes from the base even where it costs less than 1 % of the smallest Δ.
        hash: record the sha256 of the data area too, which reads back most of what was written; None = as in solve.
        Raises Error; ArgumentError when `path` is one of the inputs or the hyper-model was loaded from a file.
        """
        self._document = None
        hash = self._hash if hash is None else hash
        self._core.save(path, force, base_low, split, hash, job(memory_budget, threads, progress, self.statistics))
        self._saved = _core.open_hyper(path, self._folders)

    def merge(
        self,
        at: Sequence[float],
        path: str | os.PathLike[str],
        *,
        blocks: Mapping[str, Sequence[float]] | None = None,
        dtype: str | None = None,
        exact: Sequence[Model] | None = None,
        carrier: Model | None = None,
        vae: Model | None = None,
        force: bool = False,
        memory_budget: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Writes the checkpoint base + Σ_k at[k] · D_k; missing multipliers are 0.

        Once saved, from base and directions as they were stored, so that it equals a live blend; before, from the inputs.

        blocks: other multipliers for tensors whose names match a glob; the last match wins.
        dtype: "fp16", "bf16" or "fp32" for the merged tensors; None keeps each tensor's own.
        exact: the M inputs in their order, to blend from them instead of the stored directions.
        carrier, vae: which model gives the tensors that are not merged, and the VAE.
        Raises Error; ArgumentError for more than K multipliers or a glob that matches nothing.
        """
        at = self._multipliers(at, "at")
        pairs = []
        for glob, values in (blocks or {}).items():
            given = self._multipliers(values, f"block '{glob}'")
            pairs.append((glob, given + [0.0] * (self.directions - len(given))))
        core = self._file() if exact is None else self._core
        core.merge(
            path,
            at,
            pairs,
            out_dtype(dtype),
            None if exact is None else source_list(exact),
            None if carrier is None else source(carrier),
            None if vae is None else source(vae),
            force,
            job(memory_budget, threads, progress, self.statistics),
        )

    def project(
        self,
        model: Model,
        *,
        name: str | None = None,
        memory_budget: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Member:
        """Coordinates of a model that was not merged: the multipliers nearest to it, and what they miss of it.

        Reads the model and the hyper-model once.  Raises Error, FormatError, MismatchError.
        """
        opened = source(model, name)
        return _member(json.loads(self._core.project(opened, job(memory_budget, threads, progress, self.statistics))))

    def bind(
        self,
        state_dict: Mapping[str, Any],
        prefix: str | None = None,
        names: Names | None = None,
        in_memory: bool = False,
        keep_original: bool = False,
        strict: bool = False,
        *,
        by_torch: str | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Live:
        """Binds a loaded model's own tensors, which `set` of the result then moves in place.  Reads them and the base once.

        state_dict: torch tensors or NumPy arrays under the host's names.  They are held, and looked at anew at every call:
        a host which moves storage should give the tensors whose storage it moves (dict(model.named_parameters())).
        prefix: what stands before their names in the hyper-model.  names: a mapping from their names to the hyper-model's,
        or a function.  Without these, names are taken as they are, or without `model.` or `model.diffusion_model.`, and
        with `.wrapped.` looked through.
        in_memory: keep base and directions in memory; else they are read from the file at every call.
        keep_original: also bind tensors that do not hold the base, keeping a copy of them for `restore`.
        strict: refuse when a tensor that the hyper-model moves has no target; else these are listed in `live.unbound`.
        by_torch: "fused" or "exact": blend with torch's operations also what is in CPU memory, as it is done on other
        devices; "exact" rounds as the compiled part does.
        Raises Error; ArgumentError before `save`; MismatchError when names, shapes, types or what the tensors hold does
        not fit.
        """
        return bind(
            self, state_dict, prefix=prefix, names=names, in_memory=in_memory, keep_original=keep_original, strict=strict,
            by_torch=by_torch, threads=threads, progress=progress,
        )  # fmt: skip

    def _file(self) -> _core.Hyper:
        """The hyper-model as it lies in a file, if it does."""
        return self._saved if self._saved is not None else self._core

    def _multipliers(self, values: Sequence[float], what: str) -> list[float]:
        given = [float(value) for value in values]
        if len(given) > self.directions:
            raise ArgumentError(f"{what}: {len(given)} multipliers for {self.directions} directions")
        return given


def _member(entry: dict[str, Any]) -> Member:
    return Member(
        entry["name"], tuple(entry["multipliers"]), entry["residual"], entry.get("residual_stored"), entry["norm"]
    )


def solve(
    models: Sequence[Model],
    base: Model = "mean",
    directions: int | None = None,
    method: str = "exact",
    *,
    weights: Sequence[float] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    common: bool = False,
    allow_nonfinite: bool = False,
    carrier: int | None = None,
    dtype: str | None = None,
    names: Sequence[str] | None = None,
    hash: bool = False,
    memory_budget: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> HyperModel:
    """Finds the base and the K directions that explain M models best.  Reads each once and writes nothing.

    models: paths or state dicts (or Sources); state dicts stay where they are and must not change until `save` is done.
    base: "mean", "none" (zero), or a model.  directions: K; None = 2, or fewer where the models span less.
    method: "exact", or "als", the alternating updates of the original hyper-merge.
    weights: one number > 0 per model.  include, exclude: globs (fnmatchcase) on tensor names.
    common: merge what all models share instead of refusing.  allow_nonfinite: copy tensors that hold NaN or Inf.
    carrier: index of the model that gives the tensors which are not merged (a base model does so itself).
    dtype: "fp16", "bf16" or "fp32" for the merged tensors when saved.  names: what to call state dicts.
    hash: also record each file's sha256, which reads it once more.
    memory_budget: bytes of buffers, 256 MiB by default.  threads: one per CPU by default.
    Raises Error; MismatchError for models that do not go together; ArgumentError for values that make no sense.
    """
    statistics: dict[str, float] = {}
    opened = source_list(models, names)
    if base not in ("mean", "none"):
        base = source(base, "base")
    if directions is not None and not 1 <= directions <= _core.MAX_MEMBERS:
        raise ArgumentError(f"directions is a number between 1 and {_core.MAX_MEMBERS}, not {directions}")
    if carrier is not None and not 0 <= carrier < len(opened):
        raise ArgumentError(f"carrier is the index of a model, 0 … {len(opened) - 1}, not {carrier}")
    if hash:
        for item in opened if isinstance(base, str) else [*opened, base]:
            if item.path is not None:
                item.set_sha256(item.sha256(job(memory_budget, threads, progress, None)))
    core = _core.solve(
        opened,
        base,
        directions or 0,
        method,
        weights,
        carrier or 0,
        (include, exclude, common, allow_nonfinite),
        out_dtype(dtype),
        job(memory_budget, threads, progress, statistics),
    )
    hyper = HyperModel(core, statistics)
    hyper._hash = hash
    if isinstance(base, Source) and base.path is not None:
        hyper._folders = [os.path.dirname(base.path)]
    return hyper


def load(path: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]] = ()) -> HyperModel:
    """Opens a saved hyper-model.  A base that it only names is looked for beside it, then in `folders`.

    Raises Error, FormatError.
    """
    return HyperModel(_core.open_hyper(path, folders))


def is_hyper(model: Source) -> bool:
    """Is this file a hyper-model?"""
    return model.metadata("hypermerge") is not None
