"""Which files the nodes mean: ComfyUI's lists stand in folders of their own, and files change under their names."""

from __future__ import annotations

import os
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

from comfyui import pack
from families import family, save

cache = pack.part("logic.cache")
hypers = pack.part("logic.hyper")
weights = pack.part("logic.weights")
Part = pack.part("logic.directions").Part


class Kind:
    """Stands for the kinds of inputs and outputs, which are only named here."""

    def __getattr__(self, name):
        return self

    def __call__(self, *given, **more):
        return SimpleNamespace(result=given, **more)


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """nodes(name): a module of nodes/ in a stand-in of ComfyUI whose checkpoints lie under tmp_path/checkpoints."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    listed = ModuleType("folder_paths")

    def names(kind):
        files = sorted(path for path in folder.rglob("*.safetensors")) if kind == "checkpoints" else []
        return [str(path.relative_to(folder)) for path in files]

    listed.get_filename_list = names
    listed.get_full_path = lambda kind, name: str(folder / name) if name in names(kind) else None
    listed.get_folder_paths = lambda kind: [str(folder)] if kind == "checkpoints" else []
    management, utils = ModuleType("comfy.model_management"), ModuleType("comfy.utils")
    management.throw_exception_if_processing_interrupted = lambda: None
    utils.ProgressBar = lambda total: SimpleNamespace(update_absolute=lambda done, total: None)
    comfy = ModuleType("comfy")
    comfy.model_management, comfy.utils = management, utils
    latest = ModuleType("comfy_api.latest")
    latest.io = SimpleNamespace(ComfyNode=object, Custom=lambda name: Kind(), NodeOutput=Kind())
    found = {"folder_paths": listed, "comfy": comfy, "comfy.model_management": management, "comfy.utils": utils}
    found |= {"comfy_api": ModuleType("comfy_api"), "comfy_api.latest": latest}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)
    yield pack.part
    for name in [name for name in sys.modules if name.startswith(pack.NAME) and name not in before]:
        folder, _, last = name.rpartition(".")
        vars(sys.modules[folder]).pop(last, None)
        del sys.modules[name]


def solved(tmp_path, models, **more):
    path = tmp_path / "out" / "x.hyper.safetensors"
    asked = cache.Question(tuple(map(str, models)), **{"base": "mean", "directions": 2, **more})
    cache.solve(asked, str(path))
    return str(path)


def test_a_base_in_a_folder_of_checkpoints_is_found(nodes, tmp_path):
    """People sort their checkpoints into folders; what ComfyUI lists there is among the checkpoints."""
    folder = tmp_path / "checkpoints" / "sd15" / "photo"
    folder.mkdir(parents=True)
    models = save(folder, family(4, seed=5, dtypes="F16", delta=0.1))
    path = solved(tmp_path, models[1:], base=str(models[0]))
    host = nodes("host")
    assert host.model_folders()[0] == str(tmp_path / "checkpoints") and str(folder) in host.model_folders()
    hyper = hypers.Hyper(path, "x", host.model_folders())
    assert host.base_of(hyper) == str(models[0])
    assert hyper.stored.moving


def test_the_map_is_drawn_anew_when_a_projected_checkpoint_changes(nodes, tmp_path):
    folder = tmp_path / "checkpoints"
    models = save(folder, family(3, seed=5, dtypes="F16", delta=0.1))
    look = nodes("ask").HyperMergeMap.fingerprint_inputs
    before = look(project="m*.safetensors", theme="dark", width=640)
    assert look(project="", theme="dark") == [] and look(project="m*", theme="dark") == before and len(before) == 3
    os.utime(models[1], ns=(1, 1))
    changed = look(project="m*.safetensors", theme="dark", width=640)
    assert changed != before
    shutil.copy(models[0], folder / "m9.safetensors")
    assert len(look(project="m*.safetensors")) == 4


@pytest.mark.parametrize(
    "blocks", [(), (("*", (1.0, 0.0)),), (("cond_stage_model.*", (0.2, 0.1)), ("*.0.*", (1.0, 1.0)))]
)
def test_what_is_saved_is_what_is_blended(nodes, tmp_path, blocks):
    """Save Checkpoint writes globs, Blend goes tensor by tensor: both come to the same multipliers."""
    hyper = hypers.Hyper(solved(tmp_path, save(tmp_path, family(3, seed=5, dtypes="F16", delta=0.1))), "x")
    moving, at = hyper.stored.moving, (0.4, -0.2)
    texts = {name for name in moving if name.startswith("cond_stage_model.")}
    assert texts and len(texts) < len(moving)
    for factor in (1.0, 0.5, 0.0):
        written = nodes("save")._blocks(hyper, at, factor, blocks)
        for what in (texts, set(moving) - texts):
            found = {name: Part(name, 0, moving[name].shape) for name in what}
            own = factor if what is texts else 1.0
            for name, move in weights.moves(found, moving, None, at, blocks, factor=own).items():
                assert weights.multipliers_of(name, at, tuple(written.items())) == move.multipliers


def test_inputs_that_could_be_others_are_not_guessed(nodes, tmp_path):
    """Checkpoints of one tool have equal headers, so of two with one name neither is known to be the one."""
    folder = tmp_path / "checkpoints"
    for name in ("a", "b"):
        (folder / name).mkdir()
    models = save(folder / "b", family(3, seed=5, dtypes="F16", delta=0.1))
    inputs = nodes("save")._inputs
    hyper = hypers.Hyper(solved(tmp_path, models), "x")
    assert inputs(hyper) == list(map(str, models))
    copy = folder / "a" / models[0].name
    shutil.copy(models[0], copy)
    assert inputs(hyper) == [str(copy), *map(str, models[1:])]
    shutil.copy(models[1], copy)
    with pytest.raises(ValueError, match="m0, and different checkpoints are called so: .*; switch from_inputs off"):
        inputs(hyper)
    os.remove(copy)
    os.remove(models[0])
    with pytest.raises(FileNotFoundError, match="is not among the checkpoints; switch from_inputs off"):
        inputs(hyper)
