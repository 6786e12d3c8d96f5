"""The Python face and the extension under it: what goes in and out, who keeps what alive, who may interrupt whom."""

from __future__ import annotations

import _thread
import gc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import weakref

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hypermerge_ext as hm
from hypermerge_ext import _core

SHAPES = {
    "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "model.diffusion_model.input_blocks.0.0.bias": (8,),
    "model.diffusion_model.middle_block.0.weight": (16, 16),
    "model.diffusion_model.out.2.weight": (4, 8, 3, 3),
    "text.scale": (),
}


def family(count=4, dtype=torch.float32, seed=0, noise=0.02):
    """`count` state dicts around one base, spread along two hidden factors, with some noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    base, one, two = draw(), draw(), draw()
    models = []
    for m in range(count):
        a, b = np.cos(2.0 * m), np.sin(3.0 * m)
        rest = draw()
        models.append(
            {k: (base[k] + 0.3 * a * one[k] + 0.1 * b * two[k] + noise * rest[k]).to(dtype) for k in SHAPES}
        )
    return models


@pytest.fixture
def files(tmp_path):
    """Paths of four fp16 checkpoints."""
    paths = []
    for i, state in enumerate(family(dtype=torch.float16)):
        paths.append(tmp_path / f"m{i}.safetensors")
        save_file(state, paths[-1])
    return paths


def endless(count=3, elements=1 << 38):
    """State dicts of terabytes in no memory (one number, repeated by a stride of zero): only a cancel ends them."""
    return [{"w": np.broadcast_to(np.float32(i + 1), (elements,))} for i in range(count)]


def test_what_a_hyper_model_tells():
    hyper = hm.solve(family(), names=["a", "b", "c", "d"])
    assert [member.name for member in hyper.members] == ["a", "b", "c", "d"]
    assert hyper.directions == 2 and all(len(member.multipliers) == 2 for member in hyper.members)
    for k in range(2):
        column = [member.multipliers[k] for member in hyper.members]
        assert max(map(abs, column)) == pytest.approx(1) and 1 == pytest.approx(max(column))
    shares = hyper.explained_variance_ratio
    assert 0.9 < sum(shares) < 1 and shares[0] > shares[1]
    assert hyper.loss == pytest.approx(hyper.total * (1 - sum(shares)), rel=1e-6)
    assert hyper.base["kind"] == "mean" and len(hyper.gram) == 4 and hyper.blocks
    assert hyper.members[0].norm == pytest.approx(hyper.gram[0][0] ** 0.5)
    assert hyper.members[0].residual_stored is None
    assert hyper.document["version"] == 1 and "4 models" in repr(hyper)


def test_gram_agrees_with_numpy():
    models = family()
    rows = np.stack([np.concatenate([t.double().numpy().ravel() for t in m.values()]) for m in models])
    rows -= rows.mean(axis=0)
    assert np.allclose(hm.solve(models).gram, rows @ rows.T, rtol=1e-5, atol=1e-5 * (rows**2).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_borrowed_tensors_and_files_agree(tmp_path, dtype):
    models = family(dtype=dtype)
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(models))]
    for state, path in zip(models, paths):
        save_file(state, path)
    assert np.allclose(hm.solve(models).gram, hm.solve(paths).gram, rtol=1e-12)


def test_every_kind_of_array_is_read_where_it_lies():
    plain = family(3)
    expected = hm.solve(plain).gram

    def transposed(t):
        return t.t().contiguous().t() if t.ndim == 2 else t

    def negative(t):
        array = t.numpy()
        return array[::-1].copy()[::-1] if array.ndim else array

    def misaligned(t):
        array = t.numpy()
        raw = bytearray(array.nbytes + 1)
        out = np.frombuffer(raw, np.float32, count=array.size, offset=1).reshape(array.shape)
        out[...] = array
        return out

    for change in (transposed, negative, misaligned, lambda t: t.numpy(), lambda t: torch.nn.Parameter(t)):
        changed = [{k: change(t) for k, t in state.items()} for state in plain]
        assert np.allclose(hm.solve(changed).gram, expected, rtol=1e-12), change


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_small_types_of_torch_and_ml_dtypes_agree(name):
    models = family(3, getattr(torch, name))
    dtype = getattr(ml_dtypes, name)
    arrays = [{k: np.asarray(t.float().numpy()).astype(dtype) for k, t in state.items()} for state in models]
    assert hm.solve(arrays).gram == hm.solve(models).gram


def test_tensors_live_as_long_as_the_hyper_model_needs_them(tmp_path):
    models = family(3)
    tensor = models[0]["text.scale"]
    watched = [weakref.ref(model["model.diffusion_model.middle_block.0.weight"]) for model in models]
    own = hm.source(models[0])
    hyper = hm.solve([own, *models[1:]])
    del models, own, tensor
    gc.collect()
    hyper.save(tmp_path / "x.hyper.safetensors")
    del hyper
    gc.collect()
    # torch hands out new Python objects for detached tensors, so the test looks at the storage through NumPy instead.
    assert all(ref() is None for ref in watched)
    array = np.ones(1000, np.float32)
    state = [{"w": array}, {"w": np.zeros(1000, np.float32)}]
    before = sys.getrefcount(array)
    hyper = hm.solve(state)
    assert sys.getrefcount(array) > before
    del hyper
    gc.collect()
    assert sys.getrefcount(array) == before


def test_what_is_no_tensor(tmp_path):
    models = family(2)
    assert hm.solve([{**m, "epoch": 3, "global_step": 0.5, "note": "x", "none": None} for m in models]).gram == (
        hm.solve(models).gram
    )
    with pytest.raises(TypeError, match="inner state dict"):
        hm.solve([{"state_dict": m} for m in models])
    with pytest.raises(TypeError, match="list"):
        hm.solve([{**models[0], "odd": [1]}, models[1]])
    with pytest.raises(TypeError, match="sequence of models"):
        hm.solve("a.safetensors")
    with pytest.raises(TypeError, match="path or a state dict"):
        hm.solve([3, 4])


@pytest.mark.parametrize(
    "odd",
    [torch.zeros(3, dtype=torch.complex64), torch.zeros(3, device="meta"), torch.eye(3).to_sparse(), np.array(["a"])],
    ids=["complex", "meta", "sparse", "text"],
)
def test_tensors_that_cannot_be_merged_are_named(odd):
    models = family(2)
    with pytest.raises(hm.Error) as caught:
        hm.solve([{**models[0], "odd.weight": odd}, models[1]], names=["first", "second"])
    assert caught.value.file == "first" and caught.value.tensor == "odd.weight" and "odd.weight" in str(caught.value)


def test_arguments_that_make_no_sense(files, tmp_path):
    models = family(3)
    for arguments in (
        {"directions": 0},
        {"directions": 3},
        {"directions": 2**40},
        {"method": "best"},
        {"weights": [1, 2]},
        {"weights": [1, 0, 1]},
        {"weights": [1, float("nan"), 1]},
        {"carrier": 3},
        {"dtype": "int8"},
        {"names": ["a"]},
        {"include": ["nothing.*"]},
        {"memory_budget": -1},
        {"threads": -1},
    ):
        with pytest.raises(ValueError):
            hm.solve(models, **arguments)
    with pytest.raises(ValueError, match="null"):
        hm.solve(models, include=["a\0b"])
    hyper = hm.solve(files)
    with pytest.raises(hm.ArgumentError, match="3 multipliers for 2 directions"):
        hyper.merge([1, 2, 3], tmp_path / "x.safetensors")
    assert issubclass(hm.ArgumentError, hm.Error) and issubclass(hm.Error, Exception)


def test_errors_name_file_and_tensor(files, tmp_path):
    with pytest.raises(hm.Error, match="absent.safetensors") as caught:
        hm.solve([files[0], tmp_path / "absent.safetensors"])
    assert caught.value.file.endswith("absent.safetensors") and caught.value.tensor is None
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(files[0].read_bytes()[:-1])
    with pytest.raises(hm.FormatError, match="broken.safetensors"):
        hm.inspect(broken)
    other = family(1)[0]
    other["model.diffusion_model.middle_block.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(hm.MismatchError, match="middle_block.0.weight"):
        hm.solve([family(1)[0], other])


def test_weights_names_and_bases(files):
    models = family(3)
    plain, heavy = hm.solve(models), hm.solve(models, weights=[100, 1, 1])
    assert heavy.members[0].norm < plain.members[0].norm
    assert hm.solve(models, "none").base["kind"] == "none"
    based = hm.solve(models[1:], models[0], 2)
    assert based.base["kind"] == "file" and based.gram != plain.gram
    assert hm.solve(files, files[0], 2).members[0].norm == 0
    assert hm.solve(files, method="als").loss == pytest.approx(hm.solve(files).loss, rel=1e-4)


def test_one_glob_may_be_given_as_it_is(files, tmp_path):
    """Its letters were taken for globs, and of "*middle*" the first star for everything."""
    other = files[0]
    for glob, count in (("*middle*", 1), ("*.weight", 3)):
        assert hm.solve(files, include=glob).document["selection"]["include"] == [glob]
        assert hm.compare(files, include=glob)["tensors"] == hm.compare(files, include=[glob])["tensors"] == count
        assert hm.recover(other, files, include=glob)["weights"] == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert hm.compare(files, exclude="*.weight")["tensors"] == len(SHAPES) - 3
    report = hm.lora(files[0], files[1], tmp_path / "l.safetensors", include="*middle*", rank=2)
    assert report["tensors"] == 1 and list(report["blocks"]) == ["middle_block"]


def test_save_load_merge_project(files, tmp_path):
    path = tmp_path / "four.hyper.safetensors"
    hyper = hm.solve(files, hash=True)
    hyper.save(path)
    assert all(0 <= member.residual_stored < 1 for member in hyper.members)
    assert all(len(member["sha256"]) == 64 for member in hyper.document["members"])
    loaded = hm.load(path)
    assert loaded.document == hyper.document and hm.inspect(path)["gram"] == hyper.gram
    assert hm.inspect(path)["file"]["tensors"] > len(SHAPES)

    for m in (0, 2):
        member = loaded.members[m]
        loaded.merge(member.multipliers, tmp_path / "near.safetensors")
        near = loaded.project(tmp_path / "near.safetensors")
        assert np.allclose(near.multipliers, member.multipliers, atol=2e-3)
        placed = loaded.project(files[m])
        assert placed.name == member.name
        assert np.allclose(placed.multipliers, member.multipliers, atol=2e-3)
        assert placed.residual == pytest.approx(member.residual, abs=5e-3)
    blocks = {"model.diffusion_model.middle_block.*": [1]}
    loaded.merge([0], tmp_path / "base.safetensors")
    loaded.merge([0], tmp_path / "block.safetensors", blocks=blocks, dtype="fp32")
    from safetensors.torch import load_file

    base, moved = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "block.safetensors")
    changed = [name for name in SHAPES if not torch.equal(base[name].float(), moved[name])]
    assert changed == ["model.diffusion_model.middle_block.0.weight"]
    assert moved[changed[0]].dtype == torch.float32


def test_a_loaded_hyper_model_cannot_be_saved_again(files, tmp_path):
    hm.solve(files).save(tmp_path / "a.hyper.safetensors")
    with pytest.raises(hm.ArgumentError):
        hm.load(tmp_path / "a.hyper.safetensors").save(tmp_path / "b.hyper.safetensors")
    assert not (tmp_path / "b.hyper.safetensors").exists()


def test_compare_and_recover():
    models = family(3)
    answer = hm.compare([*models, models[1]], names=["a", "b", "c", "b again"])
    assert answer["models"] == ["a", "b", "c", "b again"] and answer["duplicates"] == [["b", "b again"]]
    assert answer["distance"][1][3] == 0 and answer["distance"][0][1] > 0
    mixture = {k: 0.25 * models[0][k] + 0.75 * models[2][k] for k in SHAPES}
    statistics = {}
    answer = hm.recover(mixture, models, names=["a", "b", "c"], blocks=True, statistics=statistics)
    assert answer["parents"] == ["a", "b", "c"] and np.allclose(answer["weights"], [0.25, 0, 0.75], atol=1e-4)
    assert answer["residual"] < 1e-3 and answer["blocks"] and statistics["seconds"] > 0


def test_inspect_a_checkpoint(files):
    answer = hm.inspect(files[0])
    assert answer["tensors"] == len(SHAPES) and answer["size"] == os.path.getsize(files[0])
    assert answer["parameters"] == sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert hm.inspect(family(1)[0])["tensors"] == len(SHAPES)


def test_progress_counts_bytes_and_ends_complete(files, tmp_path):
    seen = []
    hyper = hm.solve(files, progress=lambda *now: seen.append(now))
    hyper.save(tmp_path / "x.hyper.safetensors", progress=lambda *now: seen.append(now))
    assert seen and all(0 <= done <= total for done, total in seen) and seen[-1][0] == seen[-1][1] > 0
    assert set(hyper.statistics) == {"direct_bytes", "cached_bytes", "seconds"}


class Stop(Exception):
    """Raised by the tests' own progress functions."""


def test_an_exception_in_progress_cancels_and_is_the_one_that_arrives(files, tmp_path):
    reason = Stop("enough")

    def stop(done, total):
        raise reason

    before = sorted(os.listdir(tmp_path))
    for call in (
        lambda: hm.solve(files, progress=stop),
        lambda: hm.solve(files, hash=True, progress=stop),
        lambda: hm.solve(files).save(tmp_path / "x.hyper.safetensors", progress=stop),
        lambda: hm.compare(files, progress=stop),
        lambda: hm.recover(files[0], files[1:], progress=stop),
    ):
        with pytest.raises(Stop) as caught:
            call()
        assert caught.value is reason
        assert sorted(os.listdir(tmp_path)) == before
    hyper = hm.solve(files)
    hyper.save(tmp_path / "x.hyper.safetensors")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Stop):
        hm.load(tmp_path / "x.hyper.safetensors").merge([1], tmp_path / "y.safetensors", progress=stop)
    with pytest.raises(hm.Cancelled):
        hyper.project(files[0], progress=lambda *_: (_ for _ in ()).throw(hm.Cancelled("by hand")))
    assert sorted(os.listdir(tmp_path)) == before


def test_interrupt_without_a_progress_function():
    """Ctrl-C must end a long call although no Python code runs in it."""
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            hm.solve(endless())
    finally:
        timer.cancel()


def test_other_threads_run_meanwhile():
    steps, running = [], True

    def tick():
        while running:
            steps.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    begun = time.monotonic()

    def stop(done, total):
        if time.monotonic() - begun > 0.5:
            raise Stop

    try:
        with pytest.raises(Stop):
            hm.solve(endless(), progress=stop)
    finally:
        running = False
        thread.join()
    assert sum(begun + 0.05 < step < begun + 0.45 for step in steps) > 20


def test_saving_excludes_every_other_use(files, tmp_path):
    hyper = hm.solve(files)
    refused = []

    def intrude(done, total):
        for call in (lambda: hyper.document, lambda: hyper.project(files[0]), lambda: hyper.save(tmp_path / "y")):
            with pytest.raises(hm.Error, match="being saved"):
                call()
        refused.append(done)

    hyper.save(tmp_path / "x.hyper.safetensors", progress=intrude)
    assert refused and hyper.members[0].residual_stored is not None


def test_one_set_of_sources_in_several_threads(files):
    sources = [hm.source(path) for path in files]
    expected = hm.solve(files).gram
    found = []
    threads = [threading.Thread(target=lambda: found.append(hm.solve(sources, threads=2).gram)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_two_copies_in_one_process(files):
    """Hosts load the package under names of their own; each copy has its own classes and works."""
    loader = importlib.machinery.ExtensionFileLoader("elsewhere.merge._core", _core.__file__)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    second = importlib.util.module_from_spec(spec)
    loader.exec_module(second)
    assert second.Error is not _core.Error and second.Source is not _core.Source
    assert second.Error.__module__ == "elsewhere.merge" and _core.Error.__module__ == "hypermerge_ext"
    with pytest.raises(second.Error):
        second.open_source("/nowhere/at-all.safetensors")
    sources = [second.open_source(path) for path in files]
    with pytest.raises(TypeError):
        _core.compare(sources, ((), (), False, False), None)
    assert json.loads(second.compare(sources, ((), (), False, False), None))["models"] == ["m0", "m1", "m2", "m3"]


def test_the_binding_itself_refuses_nonsense():
    for bad in (
        lambda: _core.Source(),
        lambda: _core.Hyper(),
        lambda: _core.borrow("x", [("w", "F32", (1,), (1,))], None),
        lambda: _core.borrow("x", [("w", "F32", [1], (1,), 0)], None),
        lambda: _core.borrow("x", [("w", "F33", (1,), (1,), 0)], None),
        lambda: _core.borrow("x", [("w", "F32", (1, 2), (1,), 0)], None),
        lambda: _core.borrow("x", [("w", "F32", (-1,), (1,), 0)], None),
        lambda: _core.borrow("x", [("w", "F32", (1,) * 9, (1,) * 9, 0)], None),
        lambda: _core.borrow("x", [("w\0", "F32", (1,), (1,), 0)], None),
        lambda: _core.borrow("x", ["w"], None),
        lambda: _core.compare([None], ((), (), False, False), None),
        lambda: _core.compare(["a"], ((), (), False, False), None),
        lambda: _core.compare([], [(), (), False, False], None),
        lambda: _core.compare([], ((), (), False, False), [1]),
        lambda: _core.compare([], (("a", 1), (), False, False), None),
        lambda: _core.open_source("a\0b"),
        lambda: hm.source(np.zeros(3)),
    ):
        with pytest.raises((TypeError, ValueError)):
            bad()


def test_the_sha256_can_be_given(files):
    digest = "ab" * 32
    hyper = hm.solve([hm.source(files[0], sha256=digest), *files[1:]])
    assert [member.get("sha256") for member in hyper.document["members"]] == [digest, None, None, None]
    with pytest.raises(hm.Error):
        hm.source(files[0], sha256="not hexadecimal")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_signal_handlers_run_in_long_calls():
    def stop(number, frame):
        raise Stop("alarm")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Stop, match="alarm"):
            hm.solve(endless())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_one_binary_for_all_versions():
    assert ".abi3." in os.path.basename(_core.__file__)
    assert hm.__version__ == _core.version
