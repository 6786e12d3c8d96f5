"""What both hosts have in common, and the only place that touches it: folders, lists, queue, progress, options.

Nothing of the host is imported before it is used, so that starting costs nothing and a part that is missing is missed
late.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .pack import Hyper

log = logging.getLogger("hyper_merge")

KIND = "hyper_merge"
"""Of the folder under models/."""
_ENDINGS = (".safetensors", ".sft")


class Stopped(RuntimeError):
    """A person interrupted the job."""


def forge() -> bool:
    """Is this Forge?  Known by what it has, not by its name."""
    from modules import sd_models

    return hasattr(sd_models, "forge_model_reload")


# ---- hyper-models ---------------------------------------------------------------------------------------------------


def hyper_folder() -> str:
    """models/hyper_merge, or what --hyper-merge-dir says."""
    from modules import paths_internal, shared

    asked = getattr(shared.cmd_opts, "hyper_merge_dir", None)
    return asked or os.path.join(paths_internal.models_path, KIND)


def hyper_names() -> list[str]:
    """The hyper-models there, sorted: file names, with folders in front where they lie in one."""
    folder, found = hyper_folder(), []
    for place, _, files in os.walk(folder, followlinks=True):
        inside = os.path.relpath(place, folder)
        found += [name if inside == "." else os.path.join(inside, name) for name in files if name.endswith(_ENDINGS)]
    return sorted((name.replace(os.sep, "/") for name in found), key=str.casefold)


def hyper_path(name: str) -> str:
    """Raises FileNotFoundError."""
    path = new_hyper_path(name)
    if not name or not _is_inside(path, hyper_folder()) or not os.path.isfile(path):
        raise FileNotFoundError(f"hyper-merge: there is no hyper-model {name or '(none chosen)'} in {hyper_folder()}")
    return path


def new_hyper_path(file_name: str) -> str:
    """Where a hyper-model of that name is, or will be written."""
    return os.path.join(hyper_folder(), *file_name.split("/"))


def _is_inside(path: str, folder: str) -> bool:
    """A name from outside must not lead out of the folder; links in it may."""
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    return os.path.commonpath([path, folder]) == folder


def open_hyper(name: str) -> Hyper:
    """Raises FileNotFoundError, hypermerge_ext.Error."""
    return Hyper(hyper_path(name), name, model_folders())


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def model_names() -> list[str]:
    """The checkpoints that can be merged, as the host names them (without hashes): safetensors only."""
    return [info.name for info in _checkpoints() if info.filename.lower().endswith(_ENDINGS)]


def model_path(name: str) -> str:
    """A checkpoint by name or title (with hash) in the host's list.  Raises FileNotFoundError."""
    return str(_checkpoint(name).filename)


def model_folders() -> list[str]:
    """Where linked bases may lie; the first is where new checkpoints are written."""
    from modules import sd_models, shared

    given = getattr(shared.cmd_opts, "ckpt_dir", None)
    asked = [os.fspath(path) for path in (getattr(shared.cmd_opts, "ckpt_dirs", None) or [])]  # newer Forges: several
    folders = [*([given] if given else []), *asked, sd_models.model_path]
    folders += [os.path.dirname(info.filename) for info in _checkpoints()]
    return list(dict.fromkeys(map(os.path.abspath, folders)))


def chosen_models(names: Sequence[str] | str) -> list[str]:
    """Names (or lines of names and globs) as names of checkpoints in that order, each once.  Raises ValueError."""
    lines = names.splitlines() if isinstance(names, str) else list(names)
    known, found = model_names(), {}
    for line in filter(None, map(str.strip, lines)):
        matches = [line] if line in known else sorted(fnmatch.filter(known, line)) or _by_title(line)
        if not matches:
            raise ValueError(f"hyper-merge: '{line}' is no checkpoint that this web UI lists, and matches none")
        found.update(dict.fromkeys(matches))
    return list(found)


def refresh_models() -> None:
    """The host reads its list of checkpoints anew."""
    from modules import sd_models

    sd_models.list_models()


def load_model(path: str, anew: bool = False) -> str:
    """The host loads that checkpoint as if it were chosen at the top of the page; → title.  Under the queue's lock.

    anew: the file was just written; a host that holds one of that name would take it for loaded already.
    """
    from modules import sd_models, shared

    info = next((info for info in _checkpoints() if _same(info.filename, path)), None)
    if info is None:
        refresh_models()
        info = next((info for info in _checkpoints() if _same(info.filename, path)), None)
    if info is None:
        raise FileNotFoundError(f"hyper-merge: {path} is not among the checkpoints that this web UI lists")
    if forge():
        from modules_forge import main_entry

        main_entry.checkpoint_change(info.title)
        if anew:
            shared.opts.data["sd_model_checkpoint"] = info.title  # the same file's title had another hash
            main_entry.refresh_model_loading_parameters()
            sd_models.model_data.forge_hash = ""
        sd_models.forge_model_reload()
    else:
        sd_models.model_data.get_sd_model()  # the start's own loading takes no queue lock, and two at once spoil each other
        sd_models.reload_model_weights(info=info, forced_reload=anew)
    with contextlib.suppress(Exception):  # kept for the next start; a settings file may be read-only
        shared.opts.save(shared.config_filename)
    return str(info.title)


def checkpoint_titles() -> tuple[list[str], str | None]:
    """All that Forge's list at the top of the page offers, and which of it is chosen: with or without hashes, as is set."""
    from modules import sd_models, shared

    titles = list(sd_models.checkpoint_tiles(getattr(shared.opts, "sd_checkpoint_dropdown_use_short", False)))
    wanted = shared.opts.sd_model_checkpoint
    for title, info in zip(titles, sd_models.checkpoints_list.values()):
        if wanted in (title, info.name, info.title, info.name_for_extra):
            return titles, title
    return titles, None


def loaded_model() -> Any | None:
    """What is loaded now; None before the first.  Never makes the host load one."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    return model if getattr(model, "sd_checkpoint_info", None) is not None else None


def file_of(model: Any) -> str | None:
    """The checkpoint that a model holds; None without one."""
    info = getattr(model, "sd_checkpoint_info", None)
    return None if info is None else str(info.filename)


def reload_model(model: Any) -> bool:
    """A model's weights are of no more use: the host reads its checkpoint anew.

    True when that is done, or will be before the model is used; False in Forge, which does so for the next picture.
    """
    from modules import sd_models

    loaded = loaded_model()
    if loaded is not None and loaded is model:
        if forge():
            sd_models.model_data.forge_hash = ""
            return False
        sd_models.reload_model_weights(info=loaded.sd_checkpoint_info, forced_reload=True)
        return True
    others = getattr(sd_models.model_data, "loaded_sd_models", [])
    if any(other is model for other in others):  # kept beside the loaded one, and would be used again as it is
        others[:] = [other for other in others if other is not model]
        model.to("meta")  # as the host throws models away
    return True


def name_of(model: Any) -> str:
    """The loaded checkpoint's, for messages."""
    info = getattr(model, "sd_checkpoint_info", None)
    return str(getattr(info, "name_for_extra", "the loaded model"))


def _checkpoints() -> list[Any]:
    from modules import sd_models

    return list({id(info): info for info in sd_models.checkpoints_list.values()}.values())


def _checkpoint(name: str) -> Any:
    for info in _checkpoints():
        if name in (info.name, info.title, info.name_for_extra):
            return info
    raise FileNotFoundError(f"hyper-merge: there is no checkpoint {name}; see the list at the top of the page")


def _by_title(name: str) -> list[str]:
    try:
        return [_checkpoint(name).name]
    except FileNotFoundError:
        return []


def _same(one: str, other: str) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


# ---- LoRAs ----------------------------------------------------------------------------------------------------------


def lora_folder() -> str:
    from modules import paths_internal, shared

    return getattr(shared.cmd_opts, "lora_dir", None) or os.path.join(paths_internal.models_path, "Lora")


def refresh_loras() -> None:
    """The host reads its list of LoRAs anew; nothing where its LoRA support is off."""
    refresh = getattr(sys.modules.get("networks"), "list_available_networks", None)
    if refresh is not None:
        refresh()


# ---- jobs -----------------------------------------------------------------------------------------------------------


def lock() -> Any:
    """The lock of the host's queue; a context manager."""
    from modules import call_queue

    return call_queue.queue_lock


def gpu_call(function: Callable[..., Any], extra_outputs: list[Any] | None = None) -> Callable[..., Any]:
    """The host's wrapper for handlers of long jobs: queue, state, progress bar, errors as HTML in the last output."""
    from modules import call_queue

    return call_queue.wrap_gradio_gpu_call(function, extra_outputs=extra_outputs)


@contextlib.contextmanager
def job(label: str) -> Iterator[None]:
    """A job in the host's queue, for what is not called by its page."""
    from modules import shared

    with lock():
        shared.state.begin(job=label)
        try:
            yield
        finally:
            shared.state.end()
            shared.state.interrupted = shared.state.skipped = False


def interrupt() -> None:
    """Stops the job that runs."""
    from modules import shared

    shared.state.interrupt()


def report(label: str) -> Callable[[int, int], None]:
    """A function for the long calls: moves the host's bar, raises Stopped when a person interrupts.

    The bar itself adds how much is done and how long the rest will take.
    """
    from modules import shared

    state = shared.state
    state.job_count, state.job_no, state.sampling_step, state.sampling_steps = 1, 0, 0, 1000
    state.textinfo = label

    def moved(done: int, total: int) -> None:
        if state.interrupted or state.skipped or getattr(state, "stopping_generation", False):
            raise Stopped("stopped")
        state.sampling_step = int(1000 * done / max(1, total))

    return moved


def progress() -> tuple[float, str | None]:
    """Of the job that reports: 0 … 1, and in words: "solving, 12 s left"."""
    from modules import shared

    state = shared.state
    share = min(1.0, state.sampling_step / max(1, state.sampling_steps))
    if not state.textinfo or share < 0.02:
        return share, state.textinfo
    left = (time.time() - state.time_start) * (1 - share) / share
    return share, f"{state.textinfo}, {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def option(key: str, default: Any) -> Any:
    """A setting of ours: option("hyper_merge_in_memory", False)."""
    from modules import shared

    return getattr(shared.opts, key, default) if key in shared.opts.data_labels else default


def forget_conds(p: Any = None) -> None:
    """Prompts are encoded anew: the host keeps them over jobs, and does not see that a text encoder moved."""
    from modules import processing

    holders = [p, processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img]
    for holder in holders:
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            kept = getattr(holder, name, None)
            if kept:
                kept[0] = None


def log_unexpected(reason: BaseException) -> None:
    """Writes what is not a plain refusal into the console, with where it came from."""
    from .pack import hypermerge, missing

    plain: tuple[type, ...] = (ValueError, OSError, Stopped)
    if missing() is None:
        plain = (*plain, hypermerge().Error)
    if not isinstance(reason, plain):
        log.error("hyper-merge: %s", reason, exc_info=reason)
