"""Solving once, opening what was solved, and its base as a state dict."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch

import hypermerge_ext as hm
import oracle
from comfyui import pack
from families import SHAPES, family, save
from live_models import to_torch

base = pack.part("logic.base")
cache = pack.part("logic.cache")
hypers = pack.part("logic.hyper")
text = pack.part("logic.text")


@pytest.fixture
def models(tmp_path):
    return save(tmp_path, family(4, seed=5, dtypes="F16", delta=0.1))


def question(models, **more):
    return cache.Question(tuple(map(str, models)), **{"base": "mean", "directions": 2, **more})


def test_the_same_question_is_answered_once(models, tmp_path):
    asked = question(models)
    path = str(tmp_path / "out" / cache.file_name("mix", asked, cache.identity(asked)))
    seen = []
    assert cache.solve(asked, path, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]  # one bar over both passes
    before = os.stat(path)
    assert not cache.solve(asked, path) and os.stat(path) == before
    assert hm.load(path).directions == 2


def test_what_makes_another_question(models, tmp_path):
    asked = question(models)
    other = [
        question(models[:3]),
        question(models[::-1]),
        question(models, base="none"),
        question(models, base=str(models[0])),
        question(models, directions=3),
        question(models, include=("model.*",)),
        question(models, exclude=("cond*",)),
        question(models, dtype="fp32"),
        question(models, common=True),
        question(models, allow_nonfinite=True),
    ]
    found = {cache.identity(item) for item in [asked, *other]}
    assert len(found) == 1 + len(other)
    assert cache.identity(question(models)) == cache.identity(asked)
    os.utime(models[0], ns=(1, 1))
    assert cache.identity(asked) not in found


def test_file_names(models):
    asked = question(models)
    digits = "0123456789abcdef"
    assert cache.file_name("", asked, digits) == "4-models-01234567.hyper.safetensors"
    assert cache.file_name(" my mix.hyper.safetensors ", asked, digits) == "my mix-01234567.hyper.safetensors"
    for name in ("../../etc/x", "a/b", "C:\\x", "..", "x\0y"):
        made = cache.file_name(name, asked, digits)
        assert os.path.basename(made) == made and not made.startswith(".") and "\\" not in made and "\0" not in made


def test_two_models_have_one_direction(models, tmp_path):
    path = str(tmp_path / "two.hyper.safetensors")
    cache.solve(question(models[:2]), path)
    assert hm.load(path).directions == 1
    with pytest.raises(hm.Error):
        cache.solve(question(models[:2], directions=3), str(tmp_path / "three.hyper.safetensors"))


def test_an_interrupt_leaves_nothing(models, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()

    class Interrupted(Exception):
        pass

    def stop(at):
        def progress(done, total):
            if done >= at * total:
                raise Interrupted

        return progress

    for at in (0.1, 0.5):
        with pytest.raises(Interrupted):
            cache.solve(question(models), str(folder / "x.hyper.safetensors"), stop(at))
        assert list(folder.iterdir()) == []


def test_a_broken_file_is_solved_anew(models, tmp_path):
    path = tmp_path / "x.hyper.safetensors"
    cache.solve(question(models), str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert cache.solve(question(models), str(path)) and path.stat().st_size == len(whole)


# ---- the base -------------------------------------------------------------------------------------------------------


def test_the_base_is_free_of_our_tensors(models, tmp_path):
    path = tmp_path / "x.hyper.safetensors"
    cache.solve(question(models), str(path))
    hyper = hypers.Hyper(str(path), path.name)
    tensors, metadata = base.state_dict(hyper)
    wanted = oracle.read(path).weights()
    assert tensors.keys() == wanted.keys() == SHAPES.keys()
    assert all(torch.equal(tensors[name], to_torch(wanted[name])) for name in wanted)
    assert "hypermerge" not in metadata and metadata["format"] == "pt"
    assert base.linked_base(hyper, []) is None


def test_integers_and_empty_tensors_are_read_too(tmp_path):
    path = tmp_path / "odd.safetensors"
    header = {
        "__metadata__": {"a": "b"},
        "ids": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [16, 16]},
        "hypermerge.x": {"dtype": "U8", "shape": [1], "data_offsets": [16, 17]},
    }
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + np.array([7, -1], "<i8").tobytes() + b"x")
    tensors, metadata = base.read(str(path))
    assert tensors["ids"].tolist() == [7, -1] and tensors["none"].shape == (0, 3)
    assert list(tensors) == ["ids", "none"] and metadata == {"a": "b"}
    path.write_bytes(path.read_bytes()[:-1])
    tensors, _ = base.read(str(path))  # what is cut off is ours
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="ids: the file ends too early"):
        base.read(str(path))


def test_a_linked_base_is_known_by_its_header(models, tmp_path):
    path = tmp_path / "out" / "x.hyper.safetensors"
    asked = question(models[1:], base=str(models[0]))
    cache.solve(asked, str(path))
    hyper = hypers.Hyper(str(path), path.name, [str(tmp_path)])
    assert base.linked_base(hyper, [str(tmp_path)]) == str(models[0])
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    oracle.write(strangers / models[0].name, {"other": oracle.tensor(torch.ones(3).numpy(), "F32")})
    assert base.linked_base(hyper, [str(strangers), str(tmp_path)]) == str(models[0])
    with pytest.raises(
        FileNotFoundError, match=f"made on the base {models[0].name}, which is not among the checkpoints"
    ):
        base.linked_base(hyper, [str(strangers)])
    # Without its base a hyper-model still opens; only its numbers are out of reach.
    lonely = hypers.Hyper(str(path), path.name)
    assert lonely.count == 2 and "m1" in text.info(lonely)
    with pytest.raises(hm.Error, match=models[0].name):
        lonely.stored


def test_of_two_bases_with_one_name_and_header_none_is_guessed(tmp_path):
    """Checkpoints of one tool have equal headers: only the same numbers make them the same."""
    asked_of, other = tmp_path / "a", tmp_path / "b"
    for folder in (asked_of, other):
        folder.mkdir()
    models = save(asked_of, family(4, seed=5, dtypes="F16", delta=0.1))
    path = tmp_path / "out" / "x.hyper.safetensors"
    cache.solve(question(models[1:], base=str(models[0])), str(path))
    hyper = hypers.Hyper(str(path), path.name, [str(asked_of)])
    folders = [str(other), str(asked_of)]
    same_name = other / models[0].name
    shutil.copy(models[0], same_name)
    assert base.linked_base(hyper, folders) == str(same_name)  # a copy is as good
    shutil.copy(models[1], same_name)
    with pytest.raises(ValueError, match="different checkpoints are called so: .*put the right one.* beside"):
        base.linked_base(hyper, folders)
    beside = path.parent / models[0].name
    os.symlink(models[0], beside)
    assert base.linked_base(hyper, folders) == str(beside)


def test_without_a_base_the_mean_of_the_models_stands_in(models, tmp_path):
    path = tmp_path / "x.hyper.safetensors"
    cache.solve(question(models, base="none", directions=4), str(path))
    hyper = hypers.Hyper(str(path), path.name)
    tensors, metadata = base.state_dict(hyper)
    assert metadata == {} and tensors.keys() == SHAPES.keys()
    for name, tensor in tensors.items():
        mean = np.asarray(sum(oracle.read(file).weights()[name].f64() for file in models) / 4)
        assert torch.allclose(tensor.double(), torch.from_numpy(mean), atol=2e-3)


# ---- text -----------------------------------------------------------------------------------------------------------


def test_what_info_says(models, tmp_path):
    path = tmp_path / "x.hyper.safetensors"
    cache.solve(question(models), str(path))
    hyper = hypers.Hyper(str(path), "sub/x.hyper.safetensors")
    said = text.info(hyper)
    assert said.startswith("sub/x.hyper.safetensors\n") and "\033" not in said
    assert all(f"m{i}" in said for i in range(4)) and "input_blocks.0" in said and "λ" in said
    where = text.place(hyper, hyper.model.project(str(models[2])))
    assert "m2" in where and f"{hyper.model.members[2].multipliers[0]:+.2f}" in where


def test_identities(models, tmp_path):
    one = hypers.identity_of(str(models[0]))
    assert one == hypers.identity_of(str(models[0])) and one != hypers.identity_of(str(models[1]))
    os.utime(models[0], ns=(5, 5))
    assert hypers.identity_of(str(models[0])) != one
