"""The hyper-model as Python sees it: solve, load, and what can be asked of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from . import _core, loras
from ._core import ArgumentError, Source
from .axes import Names as AxisNames, axis_names, flips, names_after
from .live import Live, bind
from .names import Names
from .sources import Model, Progress, is_lora, job, look_again, out_dtype, selection, source, source_list


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
        self._path: str | None = None  # of the file, if it is one
        self._hash = False  # hashes were asked for
        self._sources: list[Source] = []  # what was solved
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
    def axes(self) -> list[str | None]:
        """What the K axes are called; None = no name."""
        return axis_names(self.document)

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
    def ranks(self) -> list[int] | None:
        """The K ranks of hyper-LoRAs; None for directions without a limit."""
        return self.document.get("ranks")

    @property
    def losses(self) -> list[float]:
        """Of hyper-LoRAs: the loss after the LoRAs of each pass, and at last with the final multipliers; never rising.

        The first passes find direction 1 alone, the next ones direction 2 in what it leaves, …, the last ones improve all.
        """
        return self.document.get("losses", [])

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
        self._look_again()
        self._document = None
        hash = self._hash if hash is None else hash
        self._core.save(path, force, base_low, split, hash, job(memory_budget, threads, progress, self.statistics))
        self._saved = _core.open_hyper(path, self._folders)
        self._path = os.path.abspath(path)

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
        self._look_again()
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

    def rename(
        self,
        names: AxisNames | None = None,
        flip: Iterable[int] = (),
        path: str | os.PathLike[str] | None = None,
        *,
        force: bool = False,
        memory_budget: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Writes a saved hyper-model anew, its axes with other names or turned round.  The file appears whole or not at all.

        names: {1: "warmth"} for some axes, or one name for each as `axes` gives them; None or "" takes a name away.  At
        most 64 characters.  flip: axes, counted from 1, that are to point the other way: D becomes −D and every
        multiplier −c, so that the same blends lie at the multipliers with the other sign, bit for bit.
        path: None puts the new file in place of its own, and this object then is what was written; live blends that were
        bound before keep the old axes.  Otherwise a copy is written there.  force: replace a file that hyper-merge did not
        write.
        Raises Error; ArgumentError before `save`, for an axis that is not there and for a name that cannot be one.
        """
        core = self._file()
        after = names_after(axis_names(json.loads(core.document())), names)
        flipped = flips(flip, self.directions)
        in_place = path is None or (
            self._path is not None and os.path.exists(path) and os.path.samefile(path, self._path)
        )
        core.rename(path, after, flipped, force, job(memory_budget, threads, progress, self.statistics))
        if in_place and self._path is not None:
            self._core, self._saved, self._document = _core.open_hyper(self._path, self._folders), None, None

    def lora(
        self,
        path: str | os.PathLike[str],
        *,
        direction: int | None = None,
        at: Sequence[float] | None = None,
        rank: int | None = None,
        error: float | None = None,
        size: int | None = None,
        dtype: str | None = None,
        format: str = "auto",
        whole: bool = False,
        force: bool = False,
        memory_budget: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Writes one direction, or the blend Σ_k at[k] · D_k, as a LoRA for the base: strength 1 is multiplier 1.

        direction: counted from 1.  rank: of every layer; 64 where neither this nor the next two are given.  error: a relative
        error to be reached with the fewest bytes.  size: bytes that the file may have, spent where they help most.
        dtype: "fp16" (default), "bf16" or "fp32".  format: "kohya", "comfyui", or "auto": kohya's names where they are known (for
        LoRAs without a base, those that the inputs have).
        whole: norms and biases too, as whole differences, which few hosts leave out.
        Returns {"format", "tensors" (layers), "bytes", "rank": {"least", "most"}, "relative_error" (of the layers, as stored),
        "relative_error_unrounded", "worst": {"tensor", "relative_error"}, "blocks": {name: {"relative_error", "share"}},
        "not_carried": {"tensors", "share"}}.
        Raises Error; ArgumentError for a direction that is not there and for a format that cannot hold this family.
        """
        if (direction is None) == (at is None):
            raise ArgumentError("give either a direction or multipliers (at)")
        if direction is not None and not 1 <= direction <= self.directions:
            raise ArgumentError(f"direction {direction}: there are {self.directions}")
        values = (
            self._multipliers(at, "at")
            if at is not None
            else [float(k + 1 == direction) for k in range(self.directions)]
        )
        self._look_again()
        return loras.write(
            self._file(), values, path, rank=rank, error=error, size=size, dtype=dtype, format=format, whole=whole, force=force,
            passes=job(memory_budget, threads, progress, self.statistics),
        )  # fmt: skip

    def slider_pack(
        self,
        path: str | os.PathLike[str],
        *,
        rank: int | None = None,
        error: float | None = None,
        size: int | None = None,
        dtype: str | None = None,
        format: str = "auto",
        whole: bool = False,
        force: bool = False,
        memory_budget: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Writes every direction as a LoRA of its own, the base they belong to, and each model's strengths as a text.

        For NAME.safetensors these are NAME-1.safetensors …, NAME-base.safetensors and NAME.txt: in any host, on that base, the
        strengths are then the multipliers.  Arguments and reports (one per direction) as for `lora`; size is that of each.
        Each file appears whole or not at all, the base first; when one fails, those before it stay.
        Raises Error; ArgumentError for a hyper-model without a base.
        """
        if self.base["kind"] == "none":
            raise ArgumentError(
                "this hyper-model has no base, so there is no model on which LoRAs could be its sliders"
            )
        files, base, text = loras.pack_paths(path, self.directions)
        loras.check_pack([base, *files], text, self._path, force)
        limits = {"memory_budget": memory_budget, "threads": threads, "progress": progress}
        self.merge([], base, force=force, **limits)
        reports = [
            self.lora(
                file, direction=k + 1, rank=rank, error=error, size=size, dtype=dtype, format=format, whole=whole, force=force,
                **limits,
            )
            for k, file in enumerate(files)
        ]  # fmt: skip
        loras.write_strengths(text, self.members, files, reports, force)
        return reports

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
        self._look_again()
        core = self._file() if self.ranks else self._core
        return _member(json.loads(core.project(opened, job(memory_budget, threads, progress, self.statistics))))

    def map(
        self,
        path: str | os.PathLike[str],
        *,
        project: Sequence[Model | Member] = (),
        axes: Sequence[int] | None = None,
        theme: str = "auto",
        title: str | None = None,
        force: bool = False,
        memory_budget: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Draws where the models lie on the plane of two directions, and how far off it: an SVG or PNG, by the end of `path`.

        project: models that were not merged, to be shown too; each is read once, unless `project` has placed it already.
        axes: one or two directions, counted from 1; None: the first two.  theme: "light", "dark", or "auto": an SVG follows
        the reader's system, a PNG is light.  title: None is the name of the hyper-model's file.
        force: replace a file that hyper-merge did not write.
        Needs matplotlib.  Raises Error; ArgumentError for another ending and for axes that are not there.
        """
        from .pictures import geometry, map, theme as look

        look.suffix_of(path)
        look.theme_for(theme)
        look.require()
        limits = {"memory_budget": memory_budget, "threads": threads, "progress": progress}
        placed = [model if isinstance(model, Member) else self.project(model, **limits) for model in project]
        if title is None and self._path is not None:
            title = os.path.basename(self._path).removesuffix(".safetensors").removesuffix(".hyper")
        map.draw(geometry.map_document(self, placed, axes), path, title=title or "", look=theme, force=force)

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

    def _look_again(self) -> None:
        """Raises ArgumentError when tensors that were solved from memory are not there any more."""
        for item in self._sources:
            look_again(item)

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
    base: Model | None = None,
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
    rank: Sequence[int] | int | None = None,
    on_pass: Callable[[int, float, float], object] | None = None,
    memory_budget: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> HyperModel:
    """Finds the base and the K directions that explain M models best.  Reads each once and writes nothing.

    models: paths or state dicts (or Sources); state dicts stay where they are and must not change until `save` is done.  LoRAs
    may be among them, which stand for `base`, then a checkpoint, with them; LoRAs alone also go without one.
    base: "mean", "none" (zero), or a model; None: the mean, but zero for LoRAs alone.
    directions: K; None = 2, or fewer where the models span less.
    method: "exact", or "als", the alternating updates of the original hyper-merge.
    weights: one number > 0 per model.  include, exclude: a glob (fnmatchcase) on tensor names, or several.
    common: merge what all models share, and leave out layers of LoRAs that the base lacks, instead of refusing.
    allow_nonfinite: copy tensors that hold NaN or Inf.
    carrier: index of the model that gives the tensors which are not merged (a base model does so itself).
    dtype: "fp16", "bf16" or "fp32" for the merged tensors when saved.  names: what to call state dicts.
    hash: also record each file's sha256, which reads it once more.
    rank: hyper-LoRAs: direction k is of rank[k] at most in every tensor (norms and biases stay whole), and there are as many
    as ranks.  Found by passes over the models until the loss hardly falls: one direction after the other, each in what those
    before it leave, then all of them together; so the loss is no worse than that of the deflation with which this begins.
    They can be used once saved.
    on_pass: called after each such pass with its number, the loss, and the total; what it raises cancels.
    memory_budget: bytes of buffers, 256 MiB by default.  threads: one per CPU by default.
    Raises Error; MismatchError for models that do not go together; ArgumentError for values that make no sense.
    """
    statistics: dict[str, float] = {}
    opened = source_list(models, names)
    if base is None:
        base = "none" if opened and all(map(is_lora, opened)) else "mean"
    if base not in ("mean", "none"):
        base = source(base, "base")
    if directions is not None and not 1 <= directions <= _core.MAX_MEMBERS:
        raise ArgumentError(f"directions is a number between 1 and {_core.MAX_MEMBERS}, not {directions}")
    ranks = [] if rank is None else [rank] if isinstance(rank, int) else list(rank)
    if rank is not None and not ranks:
        raise ArgumentError("rank: give at least one")
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
        selection(include, exclude, common, allow_nonfinite),
        out_dtype(dtype),
        job(memory_budget, threads, progress, statistics),
        ranks,
        on_pass,
    )
    hyper = HyperModel(core, statistics)
    hyper._hash = hash
    hyper._sources = opened if isinstance(base, str) else [*opened, base]
    if isinstance(base, Source) and base.path is not None:
        hyper._folders = [os.path.dirname(base.path)]
    return hyper


def load(path: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]] = ()) -> HyperModel:
    """Opens a saved hyper-model.  A base that it only names is looked for beside it, then in `folders`.

    Raises Error, FormatError.
    """
    hyper = HyperModel(_core.open_hyper(path, folders))
    hyper._path = os.path.abspath(path)
    hyper._folders = [os.fspath(folder) for folder in folders]
    return hyper


def is_hyper(model: Source) -> bool:
    """Is this file a hyper-model?"""
    return model.metadata("hypermerge") is not None
