"""Low-rank directions: hyper-models that hold them are merged, blended live, projected on and inspected like others.

The files are written with the safetensors package; what must come out is computed with NumPy in f64.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import hypermerge_ext as hm
import oracle
from hypermerge_ext import _core, blas, device
from hypermerge_ext.stored import DIRECTION, Stored
from live_models import LAYOUTS, TORCH, copies, from_torch, lay_out, same, state_of, to_torch

UNET = "model.diffusion_model."
FULL = 0
DIRECTIONS: dict[str, tuple[tuple[int, ...], tuple[int, int], str]] = {
    "input_blocks.0.0.weight": ((24, 4, 3, 3), (5, FULL), "F16"),
    "input_blocks.1.1.proj.weight": ((40, 61), (FULL, 7), "BF16"),
    "middle_block.0.weight": ((57, 33, 1, 1), (3, 2), "F32"),
    "middle_block.1.weight": ((700, 320), (16, 4), "F16"),  # several bands
    "output_blocks.2.0.weight": ((90, 64, 3, 3), (1, 40), "BF16"),
    "output_blocks.3.0.bias": ((131,), (FULL, FULL), "F16"),
}
"""Shape, rank of D_1 and D_2, type of the factors."""
RESTING = "output_blocks.3.0.weight"
POINTS = [(0.4, -0.3), (-1.25, 0.0), (0.0, 2.0), (1.0, 1.0)]


SUBNORMAL = {"F32": 2.0**-150, "F16": 2.0**-25, "BF16": 2.0**-134}
"""Half of the smallest number: the largest error of rounding one that is smaller than any normal number."""


def is_pair(item) -> bool:
    """Is this direction stored as two factors?"""
    return not isinstance(item, oracle.Tensor)


class LowRank:
    """A hyper-model in a file, and what its directions are."""

    def __init__(self, folder: Path, base_dtype: str = "F16", seed: int = 0, base: str = "mean") -> None:
        rng = np.random.default_rng([seed, 77])
        self.path = folder / "low.hyper.safetensors"
        self.base: oracle.Model = {}
        self.parts: dict[str, list] = {}
        for name, (shape, ranks, dtype) in DIRECTIONS.items():
            self.base[UNET + name] = oracle.tensor(0.1 * rng.standard_normal(shape), base_dtype)
            self.parts[UNET + name] = [self._direction(rng, shape, rank, dtype) for rank in ranks]
        self.base[UNET + RESTING] = oracle.tensor(rng.standard_normal((7, 7)), base_dtype)
        self.kind = base
        self.write()

    @staticmethod
    def _direction(rng, shape, rank, dtype):
        if rank == FULL:
            return oracle.tensor(0.02 * rng.standard_normal(shape), dtype)
        up = 0.1 * rng.standard_normal((shape[0], rank, *[1] * (len(shape) - 2)))
        return oracle.tensor(up, dtype), oracle.tensor(0.1 * rng.standard_normal((rank, *shape[1:])), dtype)

    def tensors(self) -> oracle.Model:
        """What is in the file."""
        held = dict(self.base) if self.kind == "mean" else {}
        for name, parts in self.parts.items():
            for k, part in enumerate(parts, start=1):
                stem = f"hypermerge.direction.{k}.{name}"
                if is_pair(part):
                    held[stem + ".lora_up"], held[stem + ".lora_down"] = part
                else:
                    held[stem] = part
        return held

    def write(self, tensors: oracle.Model | None = None) -> Path:
        members = [
            {"name": f"m{m}", "header_hash": f"{m}" * 64, "multipliers": c, "residual": 0.1, "norm": 1.0}
            for m, c in enumerate(([1.0, 0.5], [-0.8, 1.0], [0.3, -0.7]))
        ]
        document = {
            "version": 1, "method": "exact", "family": "unknown", "base": {"kind": self.kind}, "directions": 2,
            "members": members, "explained_variance_ratio": [0.7, 0.3], "loss": 0.1, "total": 3.0,
            "gram": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "blocks": {}, "unmoved": [UNET + RESTING],
        }  # fmt: skip
        held = self.tensors() if tensors is None else tensors
        numbers = {
            name: to_torch(item) if item.dtype in TORCH else torch.from_numpy(item.stored)
            for name, item in held.items()
        }
        save_file(numbers, self.path, {"hypermerge": json.dumps(document)})
        return self.path

    def blend(self, name: str, at) -> tuple[np.ndarray, np.ndarray]:
        """The blend of a tensor in f64, and how far f32 arithmetic may be from it."""
        x = self.base[name].f64() if self.kind == "mean" else np.zeros(self.base[name].shape)
        size, room = np.abs(x), np.zeros(x.shape)
        for c, part in zip(at, self.parts.get(name, ())):
            if c == 0:
                continue
            numbers, magnitude, rank = product(part) if is_pair(part) else (part.f64(), np.abs(part.f64()), 0)
            x = x + c * numbers
            size = size + abs(c) * np.abs(numbers)
            room = room + abs(c) * magnitude * (rank + 1)
        return x, (4 * size + room) * 2.0**-24


def product(pair) -> tuple[np.ndarray, np.ndarray, int]:
    """up · down in f64, |up| · |down|, and the rank."""
    up, down = pair[0].f64(), pair[1].f64()
    rank = up.shape[1]
    left, right = up.reshape(-1, rank), down.reshape(rank, -1)
    shape = (up.shape[0], *down.shape[1:])
    return (left @ right).reshape(shape), (np.abs(left) @ np.abs(right)).reshape(shape), rank


def check(made: oracle.Model, model: LowRank, points, rounding: str | None = None) -> None:
    """made: name → tensor.  points: name → multipliers."""
    for name in model.parts:
        x, room = model.blend(name, points(name))
        found = made[name]
        if rounding is not None:
            room = room + oracle.STEP[rounding] * (np.abs(x) + room) + SUBNORMAL[rounding]
        assert found.shape == x.shape and (np.abs(found.f64() - x) <= room).all(), name


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LowRank:
    return LowRank(tmp_path_factory.mktemp("low"))


# ---- merge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base_dtype", ["F32", "F16", "BF16"])
def test_merge_against_f64(tmp_path, base_dtype):
    made = LowRank(tmp_path, base_dtype, seed=len(base_dtype))
    hyper = hm.load(made.path)
    for at in POINTS:
        hyper.merge(at, tmp_path / "wide.safetensors", dtype="fp32", force=True)
        check(oracle.read(tmp_path / "wide.safetensors").model, made, lambda _: at, "F32")
        hyper.merge(at, tmp_path / "kept.safetensors", force=True)
        kept = oracle.read(tmp_path / "kept.safetensors").model
        assert set(kept) == set(made.base)
        assert all(item.dtype == base_dtype for item in kept.values())
        check(kept, made, lambda _: at, base_dtype)
        assert kept[UNET + RESTING].same(made.base[UNET + RESTING])


def test_merge_does_not_depend_on_budget_or_threads(model, tmp_path):
    hyper = hm.load(model.path)
    files = []
    for i, (budget, threads) in enumerate([(1 << 24, 1), (1 << 24, 4), (1 << 28, 2), (1 << 31, 4)]):
        path = tmp_path / f"{i}.safetensors"
        hyper.merge((0.7, -0.4), path, dtype="fp32", memory_budget=budget, threads=threads)
        files.append(oracle.read(path).data_sha256)
    assert len(set(files)) == 1


def test_blocks(model, tmp_path):
    hyper, path = hm.load(model.path), tmp_path / "x.safetensors"
    blocks = {UNET + "middle_block.*": (-0.5, 0.25), UNET + "middle_block.1.*": (0.0, 1.5)}

    def points(name):
        return (0.0, 1.5) if "block.1." in name else (-0.5, 0.25) if "middle" in name else (0.9, 0.1)

    hyper.merge((0.9, 0.1), path, blocks=blocks, dtype="fp32")
    check(oracle.read(path).model, model, points, "F32")
    state = state_of(model.path, "F32")
    live = hyper.bind(state)
    live.set(0.9, 0.1, blocks=blocks)
    assert same(state, {**oracle.read(path).model, **{k: v for k, v in copies(state).items() if RESTING in k}})


def test_without_base(tmp_path):
    made = LowRank(tmp_path, base="none")
    hyper = hm.load(made.path)
    hyper.merge((0.4, -0.3), tmp_path / "wide.safetensors", dtype="fp32")
    check(oracle.read(tmp_path / "wide.safetensors").model, made, lambda _: (0.4, -0.3), "F32")
    hyper.merge((0.4, -0.3), tmp_path / "kept.safetensors")
    kept = oracle.read(tmp_path / "kept.safetensors").model
    for name, (_, ranks, dtype) in DIRECTIONS.items():
        assert kept[UNET + name].dtype == dtype  # of the factors, since nothing else says
    state = {name: torch.zeros(item.shape) for name, item in kept.items()}
    live = hyper.bind(state, keep_original=True)
    live.set(0.4, -0.3)
    check(copies(state), made, lambda _: (0.4, -0.3), "F32")


def test_never_expanded(model, tmp_path, peak_memory):
    """Two products of 32 MiB each, as f32, are merged in far less memory."""
    shape, name = (4096, 2048), UNET + "wide.weight"
    big = LowRank(tmp_path)
    rng = np.random.default_rng(5)
    big.base = {name: oracle.tensor(rng.standard_normal(shape, np.float32), "F16")}
    big.parts = {name: [big._direction(rng, shape, 8, "F16") for _ in range(2)]}
    big.write()
    options = ("--at", "0.5,0.5", "--memory", "16MB", "--threads", "2", "--force", "-o", "x.safetensors")
    small = peak_memory("merge", model.path, *options, cwd=tmp_path)
    assert peak_memory("merge", big.path, *options, cwd=tmp_path) - small < 24 << 20
    check(oracle.read(tmp_path / "x.safetensors").model, big, lambda _: (0.5, 0.5), "F16")


# ---- live ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
def test_live_equals_merge_bit_for_bit(model, tmp_path, in_memory):
    hyper = hm.load(model.path)
    for layout in LAYOUTS:
        state = state_of(model.path, layout=layout)
        start = copies(state)
        live = hyper.bind(state, in_memory=in_memory)
        assert not live.unbound
        for at in POINTS:
            hyper.merge(at, tmp_path / "x.safetensors", force=True)
            for threads in (1, 2, 4):
                live.set(*at, threads=threads)
                assert same(state, oracle.read(tmp_path / "x.safetensors").model), (at, threads, layout)
        live.set(0, 0)
        assert same(state, start)
        live.set(*POINTS[0])
        live.restore()
        assert same(state, start)


def test_memory_keeps_factors_alone(model):
    """In memory the directions stay as small as they are: the file may be changed, and nothing is read again."""
    path = model.path.with_name("gone.hyper.safetensors")
    path.write_bytes(model.path.read_bytes())
    state, again = state_of(path, "F32"), state_of(path, "F32")
    live = hm.load(path).bind(state, in_memory=True)
    hm.load(model.path).bind(again).set(0.6, 0.6)
    with open(path, "r+b") as file:
        file.truncate(100)
    live.set(0.6, 0.6)
    assert same(state, copies(again))


def test_live_against_f64(model):
    for dtype in ("F32", "F16", "BF16"):
        state = state_of(model.path, dtype)
        live = hm.load(model.path).bind(state, keep_original=True)
        for at in POINTS:
            live.set(*at)
            check(copies(state), model, lambda _: at, dtype)


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("by_torch", ["fused", "exact"])
def test_by_torch(model, monkeypatch, by_torch, in_memory):
    """The way of other devices, where factors are multiplied by torch: in pieces that cut through rows, too."""
    hyper = hm.load(model.path)
    for i, (piece, layout) in enumerate([(7001, "contiguous"), *((device.PIECE, layout) for layout in LAYOUTS)]):
        monkeypatch.setattr(device, "PIECE", piece)
        at, seen = POINTS[i % len(POINTS)], []
        state = state_of(model.path, "F32", layout)
        start = copies(state)
        live = hyper.bind(state, by_torch=by_torch, in_memory=in_memory)
        live.set(*at, progress=lambda done, total: seen.append((done, total)))
        check(copies(state), model, lambda _: at, "F32")
        assert seen[-1][0] == seen[-1][1] > 0
        live.set(0, 0)
        assert same(state, start)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: low rank on a GPU was NOT tested here")
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
def test_on_cuda(model, in_memory):
    for dtype in ("F32", "F16", "BF16"):
        state = {name: tensor.cuda() for name, tensor in state_of(model.path, dtype).items()}
        start = copies(state)
        live = hm.load(model.path).bind(state, in_memory=in_memory, keep_original=True)
        for at in POINTS:
            live.set(*at)
            check(copies(state), model, lambda _: at, dtype)
        live.set(0, 0)
        assert same(state, start)


def test_stored_numbers(model):
    """What hosts read tensor by tensor: the product as f32, or its factors."""
    hyper = hm.load(model.path)
    stored, ranks = Stored(hyper), _core.ranks(hyper._file())
    assert set(ranks) == {UNET + name for name, (_, pair, _) in DIRECTIONS.items() if any(pair)}
    for name, parts in model.parts.items():
        for k, part in enumerate(parts):
            assert ranks.get(name, (0, 0, 0, 0))[DIRECTION + k] == DIRECTIONS[name.removeprefix(UNET)][1][k]
            if not is_pair(part):
                continue
            exact, magnitude, rank = product(part)
            numbers = from_torch(stored.read(name, DIRECTION + k)).f64()
            assert (np.abs(numbers - exact) <= (rank + 1) * magnitude * 2.0**-24).all()
            up, down = np.empty(part[0].shape, np.float32), np.empty(part[1].shape, np.float32)
            _core.read_factors(hyper._file(), name, DIRECTION + k, up.ctypes.data, down.ctypes.data)
            assert (up == part[0].f64()).all() and (down == part[1].f64()).all()
    bias = UNET + "output_blocks.3.0.bias"
    with pytest.raises(hm.ArgumentError, match="not kept as factors"):
        _core.read_factors(hyper._file(), bias, DIRECTION, 0, 0)


# ---- questions -------------------------------------------------------------------------------------------------------


def test_project(model, tmp_path):
    """The least squares of NumPy, on a newcomer that lies beside the plane."""
    rng = np.random.default_rng(3)
    newcomer, delta, plane = {}, [], []
    for name, base in model.base.items():
        x, _ = model.blend(name, (0.35, -0.6))
        if name in model.parts:
            x = x + 0.01 * rng.standard_normal(x.shape)
        newcomer[name] = oracle.tensor(x, "F32")
        delta.append((newcomer[name].f64() - base.f64()).ravel())
        if name in model.parts:
            plane.append(np.stack([(product(p)[0] if is_pair(p) else p.f64()).ravel() for p in model.parts[name]]))
        else:
            plane.append(np.zeros((2, base.f64().size)))
    rows, target = np.concatenate(plane, axis=1), np.concatenate(delta)
    expected = np.linalg.lstsq(rows.T, target, rcond=None)[0]
    residual = np.linalg.norm(target - expected @ rows) / np.linalg.norm(target)
    oracle.write(tmp_path / "new.safetensors", newcomer)
    hyper, found = hm.load(model.path), []
    for budget, threads in ((1 << 24, 1), (1 << 28, 4)):
        answer = hyper.project(tmp_path / "new.safetensors", memory_budget=budget, threads=threads)
        assert np.allclose(answer.multipliers, expected, atol=1e-5)
        assert answer.residual == pytest.approx(residual, abs=1e-5)
        assert answer.norm == pytest.approx(np.linalg.norm(target), rel=1e-6)
        found.append(answer)
    assert found[0] == found[1]


def test_inspect(model, cli):
    low = {"tensors": 8, "least_rank": 1, "largest_rank": 40}
    described = hm.inspect(model.path)
    assert described["file"]["low_rank"] == low and described["directions"] == 2
    assert described["file"]["tensors"] == len(model.base) + 2 * len(model.parts)
    done = cli("inspect", model.path, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["file"]["low_rank"] == low
    done = cli("inspect", model.path)
    assert done.returncode == 0 and "8 low-rank tensors (rank 1 to 40)" in done.stdout, done.stdout


def test_flip(model, tmp_path):
    """A direction turned round is the same direction: the other sign gives the same bits."""
    hyper, path = hm.load(model.path), tmp_path / "flipped.hyper.safetensors"
    hyper.rename(flip=[2], path=path)
    hyper.merge((0.4, -0.3), tmp_path / "a.safetensors")
    hm.load(path).merge((0.4, 0.3), tmp_path / "b.safetensors")
    assert oracle.read(tmp_path / "a.safetensors").data_sha256 == oracle.read(tmp_path / "b.safetensors").data_sha256
    assert set(oracle.read(path).model) == set(model.tensors())


# ---- what is refused -------------------------------------------------------------------------------------------------

STEM = f"hypermerge.direction.2.{UNET}input_blocks.1.1.proj.weight"


def shaped(*shape: int) -> oracle.Tensor:
    return oracle.tensor(np.ones(shape), "F16")


@pytest.mark.parametrize(
    ("change", "named", "text"),
    [
        ({STEM + ".lora_down": None}, STEM + ".lora_up", "one factor of two"),
        ({STEM + ".lora_up": None}, STEM + ".lora_down", "one factor of two"),
        ({STEM: shaped(40, 61)}, STEM, "as a whole and also as two factors"),
        ({STEM + ".lora_up": shaped(40, 6)}, STEM + ".lora_up", "rank 6"),
        ({STEM + ".lora_up": shaped(41, 7)}, STEM, "shape"),
        ({STEM + ".lora_down": shaped(7, 61, 1, 1)}, STEM, "shape"),
        ({STEM + ".lora_up": oracle.tensor(np.ones((40, 7)), "I32")}, STEM + ".lora_up", "floating-point"),
        ({STEM + ".lora_up": None, STEM + ".lora_down": None}, "input_blocks.1.1.proj.weight", "all 2 directions"),
        (
            {f"hypermerge.base_low.{UNET}{RESTING}.lora_{end}": shaped(7, 7) for end in ("up", "down")},
            f"hypermerge.base_low.{UNET}{RESTING}",
            "only directions",
        ),
        (
            {f"hypermerge.direction.{k}.nobody.lora_{end}": shaped(7, 7) for k in (1, 2) for end in ("up", "down")},
            "nobody",
            "the base lacks",
        ),
        (
            {f"hypermerge.direction.3.{UNET}{RESTING}.lora_{end}": shaped(7, 7) for end in ("up", "down")},
            "hypermerge.direction.3.",
            "no part of a hyper-model",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_hostile_files(tmp_path, change, named, text):
    made = LowRank(tmp_path)
    tensors = made.tensors()
    for name, item in change.items():
        tensors.pop(name, None)
        if item is not None:
            tensors[name] = item
    path = made.write(tensors)
    with pytest.raises(hm.FormatError, match=text) as caught:
        hm.load(path)
    assert named in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---- OpenBLAS --------------------------------------------------------------------------------------------------------


def test_without_openblas(model, tmp_path, cli):
    """One line which says what to install; and it is asked for only where a product takes part."""
    nowhere = {"HM_OPENBLAS": "/nowhere/libopenblas.so"}
    done = cli("merge", model.path, "--at", "0.5,0.5", "-o", "x.safetensors", cwd=tmp_path, env=nowhere)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "HM_OPENBLAS" in done.stderr
    assert not list(tmp_path.iterdir())
    assert cli("inspect", model.path, env=nowhere).returncode == 0
    done = cli("merge", model.path, "--at", "0", "-o", "x.safetensors", cwd=tmp_path, env=nowhere)
    assert done.returncode == 0, done.stderr
    assert oracle.read(tmp_path / "x.safetensors").model[UNET + RESTING].same(model.base[UNET + RESTING])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of address space as Linux has them")
def test_tight_address_space(model, tmp_path, environment):
    """With little address space OpenBLAS would spin for ever or end the process while it loads."""
    merge = f"{sys.executable} -m hypermerge_ext merge {model.path} --at 0.5,0.5 -o x.safetensors"
    command = ["sh", "-c", f"ulimit -v 500000; exec {merge}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "address space" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_packaged_openblas(tmp_path, monkeypatch):
    """Found without being imported."""
    assert blas.packaged() is None or blas.packaged().exists()
    library = tmp_path / "scipy_openblas32" / "lib" / "libscipy_openblas.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "scipy_openblas32" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert blas.packaged() is None
    library.touch()
    assert blas.packaged() == library


def test_layouts_are_what_they_say():
    """The helper that the tests above lean on."""
    numbers = torch.arange(24.0).view(2, 3, 2, 2)
    assert all(torch.equal(lay_out(numbers, layout), numbers) for layout in LAYOUTS)
