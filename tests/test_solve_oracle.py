"""solve against the f64 SVD of the stacked matrix: eigenvalues, multipliers, shares, loss, residuals, Gram, blocks."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import hypermerge_ext as hm
import oracle
from families import BLOCKS, SHAPES, family, save
from oracle import tensor

EIGENVALUE_BAR = 1e-6  # of σ_1², for each eigenvalue


def check(document: dict, truth: oracle.Solution) -> None:
    """Every number of the document that the weights decide."""
    scale, total = truth.spectrum[0], max(truth.total, 1e-300)
    kept = truth.multipliers.shape[1]
    assert document["directions"] == kept
    assert np.abs(np.array(document["spectrum"]) - truth.spectrum).max() <= EIGENVALUE_BAR * scale
    assert np.abs(np.array(document["gram"]) - truth.gram).max() <= EIGENVALUE_BAR * max(
        np.abs(truth.gram).max(), 1e-300
    )
    assert document["total"] == pytest.approx(truth.total, rel=1e-6, abs=1e-300)
    assert document["loss"] == pytest.approx(truth.loss, abs=EIGENVALUE_BAR * total)
    assert document["explained_variance_ratio"][:kept] == pytest.approx(list(truth.spectrum[:kept] / total), abs=1e-6)
    for m, member in enumerate(document["members"]):
        norm = np.linalg.norm(truth.delta[m])
        assert member["norm"] == pytest.approx(norm, rel=2e-6, abs=1e-3 * EIGENVALUE_BAR * np.sqrt(scale))
        if norm == 0:
            assert member["residual"] == 0
        else:
            # The residual is a root, so what counts is its square, against what the eigenvalues may be wrong by.
            allowed = 4 * EIGENVALUE_BAR * scale / (truth.weights[m] * norm**2)
            assert member["residual"] ** 2 == pytest.approx(truth.residual[m] ** 2, abs=min(allowed, 1))
        assert len(member["multipliers"]) == kept
        assert all(-1 <= c <= 1 for c in member["multipliers"])
    found = np.array([member["multipliers"] for member in document["members"]]).reshape(len(truth.weights), kept)
    for k in range(kept):
        assert found[:, k].max() == 1  # the pivot, exactly
        if truth.gaps[k] > 1e-4:  # a direction is as firm as its eigenvalue is apart from the others
            assert found[:, k] == pytest.approx(truth.multipliers[:, k], abs=8 * EIGENVALUE_BAR / truth.gaps[k])


def solved(models, **options) -> dict:
    """The document of a solve of models that lie in memory as NumPy arrays or in files."""
    return hm.solve(models, **options).document


def files(tmp_path, models, prefix="m"):
    return save(tmp_path, models, prefix)


def rows(models):
    return oracle.stacked(models, list(SHAPES))


@pytest.mark.parametrize("count", range(1, 10))
def test_every_number_of_models_and_directions(tmp_path, count):
    models = family(count, seed=count)
    paths, matrix = files(tmp_path, models), rows(models)
    rank = int((oracle.solve(matrix).spectrum > 1e-9 * max(oracle.solve(matrix).spectrum[0], 1e-300)).sum())
    assert rank == count - 1
    check(solved(paths), oracle.solve(matrix))
    for kept in range(1, rank + 1):
        check(solved(paths, directions=kept), oracle.solve(matrix, directions=kept))
    for asked in {rank + 1, count} - {0}:
        with pytest.raises(hm.ArgumentError):
            hm.solve(paths, directions=asked)


def test_sixty_four_models(tmp_path):
    models = family(64, seed=64)
    paths, matrix = files(tmp_path, models), rows(models)
    check(solved(paths), oracle.solve(matrix))
    check(solved(paths, directions=8), oracle.solve(matrix, directions=8))
    document, truth = solved(paths, directions=63), oracle.solve(matrix, directions=63)
    check(document, truth)
    with pytest.raises(hm.ArgumentError, match="64"):
        hm.solve([*paths, paths[0]])


@pytest.mark.parametrize("delta", [0.03, 0.001])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64", "mixed", "per model"])
def test_types_and_sizes_of_the_difference(tmp_path, dtype, delta):
    kinds = ("F16", "BF16", "F32", "F64", "F8_E4M3")
    dtypes = {
        "mixed": lambda m, number: kinds[(m + number) % len(kinds)],
        "per model": ("F16", "BF16", "F32"),
    }.get(dtype, dtype)
    scale = (
        3.0 if dtype.startswith("F8") else 1.0
    )  # rounding moves fp8 far more than 0.1 %, and that is what is measured
    models = family(5, seed=7, delta=delta * scale, dtypes=dtypes)
    paths, matrix = files(tmp_path, models), rows(models)
    truth = oracle.solve(matrix)
    check(solved(paths), truth)
    check(solved(paths[1:], base=paths[0]), oracle.solve(matrix[1:], base=matrix[0]))
    check(solved(paths, base="none"), oracle.solve(matrix, base="none"))


@pytest.mark.parametrize("base", ["mean", "file", "none"])
@pytest.mark.parametrize("weights", [None, (1, 2, 3, 4, 5), (0.01, 100, 1, 1, 7)])
def test_bases_and_weights(tmp_path, base, weights):
    models = family(6, seed=3, dtypes="F16")
    paths, matrix = files(tmp_path, models), rows(models)
    for kept in (1, 2, 4):
        truth = oracle.solve(matrix[1:], matrix[0] if base == "file" else base, kept, weights)
        document = solved(paths[1:], base=paths[0] if base == "file" else base, directions=kept, weights=weights)
        check(document, truth)
        assert document["base"]["kind"] == base
        if weights is not None:
            found = np.array([member["weight"] for member in document["members"]])
            assert found / found.sum() == pytest.approx(np.array(weights) / np.sum(weights), rel=1e-12)


@pytest.mark.parametrize("base", ["mean", "file", "none"])
@pytest.mark.parametrize("weights", [None, (3, 1, 1, 0.5, 2)])
def test_blocks(tmp_path, base, weights):
    models = family(6, seed=5, dtypes="F16")
    paths = files(tmp_path, models)
    origin = lambda names: oracle.stacked(models[:1], names)[0] if base == "file" else base  # noqa: E731
    whole = oracle.solve(oracle.stacked(models[1:], list(SHAPES)), origin(list(SHAPES)), 3, weights)
    document = solved(paths[1:], base=paths[0] if base == "file" else base, directions=3, weights=weights)
    assert set(document["blocks"]) == set(BLOCKS.values())
    summed = np.zeros((5, 5))
    for block, found in document["blocks"].items():
        inside = np.concatenate([np.full(int(np.prod(shape)), BLOCKS[name] == block) for name, shape in SHAPES.items()])
        delta, parts = whole.delta[:, inside], whole.directions[:, inside]
        gram = np.array(found["gram"])
        summed += gram
        assert gram == pytest.approx(delta @ delta.T, abs=1e-6 * np.abs(delta @ delta.T).max())
        moved = np.einsum("m,mk,kn->k", whole.weights, whole.multipliers**2, parts**2)
        share = moved / (whole.weights @ (delta**2).sum(1))
        assert found["explained"] == pytest.approx(list(share), abs=2e-4)
    assert summed == pytest.approx(np.array(document["gram"]), rel=1e-12, abs=1e-12 * np.abs(document["gram"]).max())


def test_the_seeds_updates_come_to_the_same_loss(tmp_path):
    for base, count in itertools.product(("mean", "none", "file"), (2, 3, 5, 9)):
        models = family(count + 1, seed=11)
        paths = files(tmp_path, models, f"{base}{count}-")
        origin = paths[0] if base == "file" else base
        for kept in sorted({1, 2, count - 1} & set(range(1, count))):
            exact = solved(paths[1:], base=origin, directions=kept)
            als = solved(paths[1:], base=origin, directions=kept, method="als")
            assert als["method"] == "als" and exact["method"] == "exact"
            assert exact["loss"] - 1e-9 * exact["total"] <= als["loss"] <= exact["loss"] + 1e-6 * exact["total"]
            history = als["loss_history"]
            assert als["iterations"] >= 1 and all(b <= a for a, b in zip(history, history[1:]))
            for member in als["members"]:
                assert all(-1 <= c <= 1 for c in member["multipliers"])
            found = np.array([member["multipliers"] for member in als["members"]])
            assert (found.max(axis=0) == 1).all()


def test_als_with_weights(tmp_path):
    paths = files(tmp_path, family(5, seed=12))
    weights = (1, 5, 0.2, 3, 1)
    exact, als = (solved(paths, weights=weights, method=method) for method in ("exact", "als"))
    assert als["loss"] == pytest.approx(exact["loss"], abs=1e-6 * exact["total"])


# ---- normal cases that look odd -------------------------------------------------------------------------------------


def test_two_models_tie_and_the_first_is_the_pivot(tmp_path):
    models = family(2)
    document = solved(files(tmp_path, models))
    assert document["directions"] == 1
    assert [member["multipliers"] for member in document["members"]] == [[1.0], [pytest.approx(-1.0, abs=1e-6)]]
    assert document["members"][1]["multipliers"][0] >= -1
    assert document["loss"] == pytest.approx(0, abs=1e-12 * document["total"])


@pytest.mark.parametrize("method", ["exact", "als"])
@pytest.mark.parametrize("base", ["mean", "first"])
def test_all_models_equal(tmp_path, method, base):
    models = family(1, dtypes="F16") * 3
    paths = files(tmp_path, models)
    document = solved(paths, base=paths[0] if base == "first" else base, method=method)
    assert document["directions"] == 0 and document["loss"] == document["total"] == 0
    for member in document["members"]:
        assert member["multipliers"] == [] and member["residual"] == member["norm"] == 0
    assert not np.array(document["gram"]).any()
    hm.solve(paths).save(tmp_path / "x.hyper.safetensors")
    hm.load(tmp_path / "x.hyper.safetensors").merge([], tmp_path / "y.safetensors")
    out = oracle.read(tmp_path / "y.safetensors").model
    assert all(out[name].same(models[0][name]) for name in SHAPES)


def test_equal_models_among_others(tmp_path):
    models = family(4, seed=2)
    models = [models[0], models[1], models[0], models[2], models[1], models[3]]
    paths, matrix = files(tmp_path, models), rows(models)
    for kept in (1, 2, 3):
        document = solved(paths, directions=kept)
        check(document, oracle.solve(matrix, directions=kept))
        members = document["members"]
        assert members[0]["multipliers"] == pytest.approx(members[2]["multipliers"], abs=1e-6)
    with pytest.raises(hm.ArgumentError):
        hm.solve(paths, directions=4)


def test_the_base_is_one_of_the_inputs(tmp_path):
    models = family(4, seed=9, dtypes="BF16")
    paths, matrix = files(tmp_path, models), rows(models)
    document = solved(paths, base=paths[2], directions=2)
    check(document, oracle.solve(matrix, matrix[2], 2))
    assert document["members"][2]["norm"] == 0 and document["members"][2]["multipliers"] == [0, 0]
    check(solved(paths, base=paths[2], directions=3), oracle.solve(matrix, matrix[2], 3))


def test_one_model(tmp_path):
    models = family(2)
    paths, matrix = files(tmp_path, models), rows(models)
    alone = solved(paths[:1])
    assert alone["directions"] == 0 and alone["total"] == 0
    check(solved(paths[:1], base=paths[1]), oracle.solve(matrix[:1], matrix[1]))
    check(solved(paths[:1], base="none"), oracle.solve(matrix[:1], "none"))


def test_empty_tensors_and_scalars(tmp_path):
    models = family(3)
    for m, model in enumerate(models):
        model["nothing.weight"] = tensor(np.zeros((0,)), "F32")
        model["flat.weight"] = tensor(np.zeros((4, 0, 3)), "F16")
        model["scalar.weight"] = tensor(np.array(0.1 * m), "F32")
    names = [*SHAPES, "scalar.weight"]
    matrix = np.hstack([oracle.stacked(models, list(SHAPES)), oracle.stacked(models, ["scalar.weight"])])
    paths = files(tmp_path, models)
    check(solved(paths), oracle.solve(matrix))
    hm.solve(paths).save(tmp_path / "x.hyper.safetensors")
    written = oracle.read(tmp_path / "x.hyper.safetensors")
    assert written.model["nothing.weight"].shape == (0,) and written.model["flat.weight"].shape == (4, 0, 3)
    assert written.direction(1, "nothing.weight") is None and written.direction(1, "scalar.weight").shape == ()
    assert set(written.weights()) == {*names, "nothing.weight", "flat.weight"}


def test_tensors_that_are_equal_everywhere_count_for_nothing(tmp_path):
    models = family(3)
    for model in models:
        model["model.diffusion_model.input_blocks.0.0.weight"] = models[0][
            "model.diffusion_model.input_blocks.0.0.weight"
        ]
    check(solved(files(tmp_path, models)), oracle.solve(rows(models)))


def test_arrays_in_memory_and_files_agree(tmp_path):
    models = family(4, dtypes="F16")
    arrays = [{name: item.stored for name, item in model.items()} for model in models]
    on_disk, in_memory = solved(files(tmp_path, models)), solved(arrays)
    assert on_disk["gram"] == in_memory["gram"] and on_disk["spectrum"] == in_memory["spectrum"]


# ---- the same digits however the work is cut ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Files of 3 MB with tensors of odd lengths: several items for each thread, and pieces at many offsets."""
    rng = np.random.default_rng(1)
    shapes = {
        f"layers.{i}.weight": (int(n),) for i, n in enumerate([*rng.integers(1, 3000, 40), 700_001, 333_333, 131_072])
    }
    folder = tmp_path_factory.mktemp("large")
    return save(folder, family(4, dtypes="F16", shapes=shapes, strengths=(1.0, 0.5)))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("budget", [16 << 20, 256 << 20])
def test_the_same_bits_for_any_number_of_threads_and_any_budget(large, tmp_path, threads, budget):
    limits = {"threads": threads, "memory_budget": budget}
    plain = hm.solve(large, threads=1)
    hyper = hm.solve(large, **limits)
    assert hyper.document == plain.document
    plain.save(tmp_path / "plain.hyper.safetensors", threads=1)
    hyper.save(tmp_path / "this.hyper.safetensors", **limits)
    first, second = (oracle.read(tmp_path / f"{name}.hyper.safetensors") for name in ("plain", "this"))
    assert first.data_sha256 == second.data_sha256 and first.document == second.document
    for name, options in (("plain", {"threads": 1}), ("this", limits)):
        hm.load(tmp_path / f"{name}.hyper.safetensors").merge([0.3, -0.2], tmp_path / f"{name}.safetensors", **options)
    first, second = (oracle.read(tmp_path / f"{name}.safetensors") for name in ("plain", "this"))
    assert first.data_sha256 == second.data_sha256
    assert hm.compare(large, **limits) == hm.compare(large, threads=1)
    assert json.dumps(hm.load(tmp_path / "plain.hyper.safetensors").project(large[0], **limits)) == json.dumps(
        hm.load(tmp_path / "plain.hyper.safetensors").project(large[0], threads=1)
    )
