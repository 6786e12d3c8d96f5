"""The long jobs, as the tab and the API both call them.

Each runs under the queue's lock with the host's state begun: the tab by wrapping its handler in `host.gpu_call` (the
host's own wrap_gradio_gpu_call), the API by its tasks.  Each reports to the host's progress bar and stops where the
host is interrupted: then host.Stopped is raised, and no half-written file is left.  Others that they raise are
ValueError, OSError and hypermerge_ext.Error, with one line that can be shown as it is.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import bases, host
from .pack import Hyper, cache, hypermerge, identity_of, part, text
from .settings import Settings

_KEPT = 16  # maps
_documents: OrderedDict[str, dict[str, Any]] = OrderedDict()
_documents_lock = threading.Lock()


class Written(NamedTuple):
    """A file that was made."""

    name: str
    """As the host's list shows it."""
    path: str
    text: str
    """One line for the person: size, error."""


# ---- solving --------------------------------------------------------------------------------------------------------


def solve(
    models: Sequence[str] | str,
    base: str = "mean",
    directions: int = 2,
    name: str = "",
    include: str = "",
    exclude: str = "",
    dtype: str = "keep",
    common: bool = False,
    allow_nonfinite: bool = False,
) -> Written:
    """Makes the hyper-model of these checkpoints (names, or lines with names and globs), or finds it already made.

    base: "mean", "none" or the name of a checkpoint.  include, exclude: globs, separated by blanks or lines.
    dtype: "keep", "fp16", "bf16", "fp32".
    """
    names = host.chosen_models(models)
    if len(names) < 2:
        raise ValueError(f"choose two checkpoints or more; {len(names)} chosen")
    question = cache.Question(
        models=tuple(map(host.model_path, names)),
        base=base if base in ("mean", "none") else host.model_path(base),
        directions=int(directions),
        include=tuple(include.split()),
        exclude=tuple(exclude.split()),
        dtype=_dtype(dtype),
        common=bool(common),
        allow_nonfinite=bool(allow_nonfinite),
    )
    file_name = cache.file_name(name, question, cache.identity(question))
    path = host.new_hyper_path(file_name)
    made = cache.solve(question, path, host.report("solving"))
    return Written(file_name, path, _size(path) if made else "was there already")


# ---- questions ------------------------------------------------------------------------------------------------------


def table(name: str) -> str:
    """What a hyper-model is, as the text that `hyper-merge inspect` prints.  Quick: reads its header only."""
    return str(text.info(host.open_hyper(name)))


def map_document(name: str) -> dict[str, Any]:
    """What the pad shows: pictures.geometry.map_document.  Quick, kept until the file changes."""
    identity = identity_of(host.hyper_path(name))
    with _documents_lock:
        if identity in _documents:
            _documents.move_to_end(identity)
            return _documents[identity]
    document: dict[str, Any] = part("pictures.geometry").map_document(host.open_hyper(name).model)
    with _documents_lock:
        _documents[identity] = document
        while len(_documents) > _KEPT:
            _documents.popitem(last=False)
    return document


def project(name: str, models: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Where other checkpoints lie: the table as text, and the map's document with them on it.  Reads each once."""
    hyper = host.open_hyper(name)
    paths = [host.model_path(model) for model in host.chosen_models(models)]
    if not paths:
        raise ValueError("choose a checkpoint to project")
    shares = _shares(host.report("projecting"), len(paths))
    placed = [hyper.model.project(path, progress=share) for path, share in zip(paths, shares)]
    style = part("table").Style(unicode=True, colour=False)
    entries = [
        {"name": m.name, "multipliers": list(m.multipliers), "residual": m.residual, "norm": m.norm} for m in placed
    ]
    document = part("pictures.geometry").map_document(hyper.model, placed)
    return part("table").members(entries, hyper.count, style), document


def recover(model: str, parents: Sequence[str], free: bool = False) -> str:
    """The mixture of `parents` that best explains `model`, as the text that `hyper-merge recover` prints."""
    names = host.chosen_models(parents)
    if not names:
        raise ValueError("choose the checkpoints that it may be mixed of")
    paths = [host.model_path(name) for name in names]
    answer = hypermerge().recover(host.model_path(model), paths, free=free, progress=host.report("recovering"))
    return str(part("table").recover(answer, part("table").Style(unicode=True, colour=False)))


def compare(models: Sequence[str]) -> str:
    """How far checkpoints lie from each other, as the text that `hyper-merge compare` prints."""
    names = host.chosen_models(models)
    if len(names) < 2:
        raise ValueError(f"choose two checkpoints or more; {len(names)} chosen")
    answer = hypermerge().compare([host.model_path(name) for name in names], progress=host.report("comparing"))
    return str(part("table").compare(answer, part("table").Style(unicode=True, colour=False)))


# ---- files for the host ---------------------------------------------------------------------------------------------


def load_base(name: str) -> str:
    """The host loads the hyper-model's base: a linked file, or W̃ written once to "NAME base.safetensors"; → title."""
    hyper = host.open_hyper(name)
    path = bases.linked(hyper, host.model_folders())
    written = False
    if path is None:
        path = os.path.join(host.model_folders()[0], bases.file_name(hyper))
        written = bases.write(hyper, path, host.report("writing the base"))
        if written:
            bases.configure(path, _members(hyper))
            host.refresh_models()
    return host.load_model(path, anew=written)


def save_checkpoint(
    settings: Settings, file_name: str, dtype: str = "keep", from_inputs: bool = False, force: bool = False
) -> Written:
    """Writes the blend into the host's checkpoint folder, streamed from the files, and refreshes its list.

    from_inputs: blended from the checkpoints that were solved, which must still be there, not from the stored
    directions.
    """
    hyper = host.open_hyper(settings.hyper)
    path = _new_path(host.model_folders()[0], file_name)
    hyper.model.merge(
        settings.at(hyper.count),
        path,
        blocks=settings.pairs(hyper.count, list(hyper.stored.moving)),
        dtype=_dtype(dtype),
        exact=_inputs(hyper) if from_inputs else None,
        force=force,
        progress=host.report("saving the checkpoint"),
    )
    bases.configure(path, _members(hyper))
    host.refresh_models()
    return Written(os.path.basename(path), path, _size(path))


def save_lora(
    settings: Settings,
    file_name: str,
    what: str = "direction",
    direction: int = 1,
    rank: int = 64,
    format: str = "auto",
    force: bool = False,
) -> list[Written]:
    """LoRA files into the host's LoRA folder, its list refreshed.  what: "direction", "blend", or "all" directions."""
    hyper = host.open_hyper(settings.hyper)
    path = _new_path(host.lora_folder(), file_name)
    if what == "blend":
        if settings.blocks or settings.text_encoder != 1:
            raise ValueError(
                "a LoRA cannot hold multipliers of single blocks; empty that field and set the text encoder to 1, or "
                "save a checkpoint"
            )
        wanted: list[tuple[str, dict[str, Any]]] = [(path, {"at": settings.at(hyper.count)})]
    elif what == "direction":
        wanted = [(path, {"direction": int(direction)})]
    elif what != "all":
        raise ValueError(f"what is kept as a LoRA is a direction, the blend or all directions, not {what!r}")
    else:
        stem = path.removesuffix(".safetensors")
        wanted = [(f"{stem}-{k}.safetensors", {"direction": k}) for k in range(1, hyper.count + 1)]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    made: list[Written] = []
    new = [target for target, _ in wanted if not os.path.exists(target)]
    try:
        for (target, chosen), share in zip(wanted, _shares(host.report("saving the LoRA"), len(wanted))):
            report = hyper.model.lora(target, rank=int(rank), format=format, force=force, progress=share, **chosen)
            said = f"{report['bytes'] / 1e6:.1f} MB, relative error {100 * report['relative_error']:.1f} %"
            made.append(Written(os.path.basename(target), target, said))
    except BaseException:  # all or none: a person who stops it is told that nothing was written
        for written in made:
            if written.path in new:
                os.unlink(written.path)
        raise
    host.refresh_loras()
    return made


# ---- inside ---------------------------------------------------------------------------------------------------------


def _dtype(name: str) -> str | None:
    return None if name in ("", "keep") else name


def _size(path: str) -> str:
    return f"{os.path.getsize(path) / 1e6:.1f} MB"


def _new_path(folder: str, file_name: str) -> str:
    """In the folder itself: a name from outside makes no folders.  Raises ValueError."""
    stem = re.sub(r"[^\w .+()\[\]-]+", "_", file_name.strip().removesuffix(".safetensors")).strip(" .")
    if not stem:
        raise ValueError("give the file a name")
    return os.path.join(folder, f"{stem[:120]}.safetensors")


def _shares(progress: Callable[[int, int], None], count: int) -> list[Callable[[int, int], None]]:
    """One bar for `count` calls of equal length."""

    def share(index: int) -> Callable[[int, int], None]:
        return lambda done, total: progress(int(1000 * (index + done / max(1, total))), 1000 * count)

    return [share(index) for index in range(count)]


def _members(hyper: Hyper) -> list[str]:
    """Checkpoints called like those that were solved; by name alone, so some may be missing or others."""
    names = [member["name"] for member in hyper.document["members"]]
    return [host.model_path(name) for name in host.model_names() if bases.stem(name) in names]


def _inputs(hyper: Hyper) -> list[str]:
    listed = [(bases.stem(name), host.model_path(name)) for name in host.model_names()]
    return bases.inputs(hyper, listed)
