"""What the nodes take from ComfyUI: its folders of models, its progress bar, its way to interrupt."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths

from .logic import base
from .logic.binary import FOLDER
from .logic.hyper import Hyper

log = logging.getLogger("hyper_merge")

KIND = "hyper_merge"  # what ComfyUI calls the folder of hyper-models
_PLACES = ("checkpoints", "diffusion_models")
_ENDINGS = (".safetensors", ".sft")
_DEMO = "demo/"
_DEMO_FOLDER = os.path.join(FOLDER, "demo", "models")


# ---- hyper-models ---------------------------------------------------------------------------------------------------


def register_folder() -> None:
    """Tells ComfyUI of models/hyper_merge; a folder that the user configured under that name stays."""
    folder_paths.add_model_folder_path(KIND, os.path.join(folder_paths.models_dir, KIND))
    folders, endings = folder_paths.folder_names_and_paths[KIND]
    if not endings:
        folder_paths.folder_names_and_paths[KIND] = (folders, {".safetensors"})


def hyper_names() -> list[str]:
    """The hyper-models, as ComfyUI lists them."""
    return folder_paths.get_filename_list(KIND)


def hyper_path(name: str) -> str:
    """Raises FileNotFoundError."""
    path = folder_paths.get_full_path(KIND, name)
    if path is None:
        raise FileNotFoundError(
            f"hyper-merge: there is no hyper-model {name} in {' or '.join(folder_paths.get_folder_paths(KIND))}"
        )
    return path


def new_hyper_path(file_name: str) -> str:
    """Where a hyper-model of that name is, or will be written."""
    return folder_paths.get_full_path(KIND, file_name) or os.path.join(
        folder_paths.get_folder_paths(KIND)[0], file_name
    )


def open_hyper(name: str) -> Hyper:
    return Hyper(hyper_path(name), name, model_folders())


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def model_names() -> list[str]:
    """Every checkpoint that can be merged: ComfyUI's own lists, then the demo family."""
    found = dict.fromkeys(name for kind in _PLACES for name in folder_paths.get_filename_list(kind))
    listed = [name for name in found if name.lower().endswith(_ENDINGS)]
    return listed + [name for name in _demo_names() if name not in found]


def model_path(name: str) -> str:
    """Raises FileNotFoundError."""
    for kind in _PLACES:
        path = folder_paths.get_full_path(kind, name)
        if path is not None:
            return path
    if name in _demo_names():
        return os.path.join(_DEMO_FOLDER, name.removeprefix(_DEMO))
    raise FileNotFoundError(
        f"hyper-merge: there is no checkpoint {name}; see the list of CheckpointLoaderSimple or UNETLoader"
    )


def model_entries() -> list[dict[str, Any]]:
    """For the picker: name, folder, size in bytes, time in seconds."""
    entries = []
    for name in model_names():
        try:
            path = model_path(name)
            status = os.stat(path)
        except OSError:
            continue
        kind = next((kind for kind in _PLACES if folder_paths.get_full_path(kind, name) is not None), "demo")
        entries.append({"name": name, "folder": kind, "size": status.st_size, "modified": status.st_mtime})
    return entries


def chosen_models(text: str) -> list[str]:
    """Names and globs, one a line, as names of checkpoints in that order, each once.  Raises ValueError."""
    known, found = model_names(), {}
    for line in filter(None, map(str.strip, text.splitlines())):
        matches = [line] if line in known else sorted(fnmatch.filter(known, line))
        if not matches:
            raise ValueError(f"hyper-merge: '{line}' is no checkpoint that ComfyUI lists, and matches none")
        found.update(dict.fromkeys(matches))
    return list(found)


def model_folders() -> list[str]:
    """Where linked bases may lie: the folders of checkpoints, and those in them that hold one."""
    found = [folder for kind in _PLACES for folder in folder_paths.get_folder_paths(kind)]
    for kind in _PLACES:
        paths = (folder_paths.get_full_path(kind, name) for name in folder_paths.get_filename_list(kind))
        found += [os.path.dirname(path) for path in paths if path is not None]
    return list(dict.fromkeys([*found, _DEMO_FOLDER]))


def base_of(hyper: Hyper) -> str | None:
    """logic.base.linked_base among ComfyUI's checkpoints."""
    return base.linked_base(hyper, model_folders())


def _demo_names() -> list[str]:
    try:
        return sorted(_DEMO + name for name in os.listdir(_DEMO_FOLDER) if name.endswith(_ENDINGS))
    except OSError:
        return []


# ---- a node at work -------------------------------------------------------------------------------------------------


def progress() -> Callable[[int, int], None]:
    """A function for the long calls: moves the node's bar, and raises when the user interrupts."""
    bar = comfy.utils.ProgressBar(1000)

    def report(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(1000 * done // max(1, total), 1000)

    return report


def output_path(prefix: str, ending: str = ".safetensors") -> str:
    """A new file in ComfyUI's output folder, numbered as its own Save nodes do."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f"{name}_{counter:05}_{ending}")


def free_memory() -> int:
    """Bytes of main memory that can be had."""
    import torch

    return comfy.model_management.get_free_memory(torch.device("cpu"))
