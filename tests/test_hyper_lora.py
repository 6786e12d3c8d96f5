"""Hyper-LoRAs: directions of limited rank with multipliers that all tensors share, against NumPy's alternation in f64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import families
import hypermerge_ext as hm
import oracle
from hyper_loras import (
    SHAPES, UNET, Differences, Search, deflation, differences, drawn_family, family, search, stays_whole, truncation, wholes,
)  # fmt: skip
from hypermerge_ext.pictures import geometry

DEMO = Path(__file__).parent.parent / "demo" / "models"


def stored_directions(path, models) -> list[np.ndarray]:
    """[K][N] the directions as the file has them, in the models' order of tensors."""
    file = oracle.read(path)
    directions = []
    for k in range(1, file.document["directions"] + 1):
        parts = []
        for name in models[0]:
            stem = f"hypermerge.direction.{k}.{name}"
            if stem in file.model:
                parts.append(file.model[stem].f64().ravel())
            elif stem + ".lora_up" in file.model:
                up, down = (file.model[stem + end].f64() for end in (".lora_up", ".lora_down"))
                parts.append((up.reshape(len(up), -1) @ down.reshape(len(down), -1)).ravel())
            else:
                parts.append(np.zeros(models[0][name].size))
        directions.append(np.concatenate(parts))
    return directions


def flat(found: Differences) -> np.ndarray:
    return np.concatenate([d.reshape(len(d), -1) for d in found.tensors], axis=1)


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """(models, hyper-model, its file): four models in f32 at ranks 6 and 3."""
    models = family(4)
    path = tmp_path_factory.mktemp("hyper") / "x.hyper.safetensors"
    hyper = hm.solve(models, rank=[6, 3])
    hyper.save(path)
    return models, hyper, path


# ---- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1, 4, 0.5, 2]])
@pytest.mark.parametrize("base", ["mean", "none", "model"])
def test_each_pass_is_that_of_the_oracle(base, weights):
    *models, other = family(5, seed=3)
    if base == "none":
        models = [{name: w - other[name] for name, w in model.items()} for model in models]
    given = other if base == "model" else base
    hyper = hm.solve(models, given, rank=[6, 3], weights=weights)
    found = differences(models, given, weights)
    expected = search(found, [6, 3], wholes(models)).losses
    assert hyper.total == pytest.approx(found.total, rel=1e-5)
    assert abs(len(hyper.losses) - len(expected)) <= 2  # where the loss falls by just what ends a search
    np.testing.assert_allclose(hyper.losses[:4], expected[:4], rtol=1e-5)
    assert hyper.loss == pytest.approx(expected[-1], rel=1e-4)
    assert hyper.losses == sorted(hyper.losses, reverse=True) and hyper.loss == hyper.losses[-1]


def check_bounds(models, ranks, weights=None):
    """No worse than deflation and, but for rounding, never rising; not below the full-rank bound.  Returns what was found."""
    found, whole = differences(models, weights=weights), wholes(models)
    hyper = hm.solve(models, rank=list(ranks), weights=weights)
    assert (np.diff(hyper.losses) <= 0).all()
    assert hyper.loss <= (1 + 1e-6) * deflation(found, ranks, whole) + 1e-7 * found.total  # that of products in f32
    assert hyper.loss >= (1 - 1e-6) * hm.solve(models, directions=len(ranks), weights=weights).loss
    return hyper, truncation(found, ranks, whole)


CASES = [
    ((1.0, 0.6, 0.4), 0.6, (6, 3)),
    ((1.0, 0.2, 0.1), 0.3, (6, 6)),  # more is left along the first direction than there is along the second
    ((1.0, 0.9, 0.8, 0.7), 0.5, (3, 3)),
    ((1.0, 0.7, 0.5), 1.2, (5, 4, 3)),
    ((1.0, 0.05), 0.0, (8, 4)),
]


@pytest.mark.parametrize(("strengths", "decay", "ranks"), CASES)
def test_no_worse_than_deflation_nor_than_truncating_the_full_rank_directions(strengths, decay, ranks):
    models = family(6, strengths, decay)
    hyper, truncated = check_bounds(models, ranks)
    alone = truncation(differences(models), ranks[:1], wholes(models))
    assert hyper.losses[0] == pytest.approx(alone, rel=1e-5)  # the first LoRA is the first direction, truncated
    assert hyper.loss < truncated


# Where a search that began with all directions at once ended above deflation.
TRAPS = [8, 11, 15, 19, 20, 22, 34, 46, 50, 52, 57, 64, 65, 70, 81, 85, 86, 92, 102, 111, 114, 123, 124, 129]


@pytest.mark.parametrize("seed", sorted({*range(48), *TRAPS}))
def test_no_worse_than_deflation_in_families_of_many_kinds(seed):
    models, ranks, weights = drawn_family(seed)
    hyper, truncated = check_bounds(models, ranks, weights)
    assert hyper.loss <= (1 + 1e-6) * truncated


@pytest.mark.parametrize("count", [4, 6])
@pytest.mark.parametrize("seed", range(8))
def test_no_worse_than_deflation_where_no_truncation_is_better_than_another(seed, count):
    """Flat spectra: the same traps, all of them."""
    check_bounds(family(count, (1.0, 0.05), 0.0, seed=seed), (8, 4))


def test_it_leaves_a_place_where_the_alternation_rests():
    """Two directions in different corners of a matrix: each LoRA is the best one for the multipliers of the Gram matrix, and
    those are the best for the LoRAs.  But the second LoRA is worth more along the first direction."""
    rng = np.random.default_rng(5)
    left, right = (np.linalg.qr(rng.standard_normal((2, 20, 20)))[0] for _ in range(2))
    corner = (left[0] * np.arange(1, 21) ** -0.4) @ right[0], 0.3 * (left[1] * np.arange(1, 21) ** -0.4) @ right[1]
    base, models = rng.standard_normal((40, 50)), []
    for first, second in [(1, 1), (1, -1), (-1, 1), (-1, -1)]:
        w = base.copy()
        w[:20, :20] += first * corner[0]
        w[20:, 30:] += second * corner[1]
        models.append({"layers.0.weight": w.astype(np.float32)})
    resting = Search(differences(models), [1, 6], wholes(models))
    resting.c = np.linalg.eigh(resting.gram)[1][:, ::-1][:, :2]
    assert [resting.make_pass() for _ in range(6)] == pytest.approx([resting.losses[0]] * 6)
    hyper, truncated = check_bounds(models, [1, 6])
    assert truncated == pytest.approx(resting.losses[0]) and hyper.loss < 0.7 * truncated


def test_one_direction_of_the_full_rank_is_that_of_the_ordinary_solve(tmp_path):
    models = family(4)
    ordinary, hyper = hm.solve(models, directions=2), hm.solve(models, rank=[64, 64])
    assert hyper.loss == pytest.approx(ordinary.loss, rel=1e-4) and len(hyper.losses) <= 6
    for one, other in zip(ordinary.members, hyper.members):
        np.testing.assert_allclose(one.multipliers, other.multipliers, atol=1e-4)
        assert one.residual == pytest.approx(other.residual, abs=1e-5)
    np.testing.assert_allclose(hyper.explained_variance_ratio, ordinary.explained_variance_ratio, atol=1e-5)
    for name, block in ordinary.blocks.items():
        np.testing.assert_allclose(hyper.blocks[name]["explained"], block["explained"], atol=1e-4)
    hyper.save(tmp_path / "x.hyper.safetensors")
    assert not any("lora" in name for name in oracle.read(tmp_path / "x.hyper.safetensors").model)


def test_the_demo_family():
    paths = sorted(path for path in DEMO.glob("*.safetensors") if path.stem != "base")
    hyper = hm.solve(paths, rank=[8, 4])
    models = []
    for path in paths:
        held = oracle.read(path).model
        models.append({name: item.f64().astype(np.float32) for name, item in held.items() if item.dtype in oracle.FLOATS})
    moving = [name for name in models[0] if any((m[name] != models[0][name]).any() for m in models)]
    models = [{name: model[name] for name in moving} for model in models]
    found, whole = differences(models), wholes(models)
    assert hyper.total == pytest.approx(found.total, rel=1e-4)
    assert hyper.losses[0] == pytest.approx(truncation(found, [8], whole), rel=1e-3)
    assert hyper.loss <= deflation(found, [8, 4], whole, passes=6) and hyper.loss <= truncation(found, [8, 4], whole)
    assert (np.diff(hyper.losses) <= 0).all()


def test_passes_are_reported_and_can_cancel():
    models, seen = family(4), []
    hyper = hm.solve(models, rank=[6, 3], on_pass=lambda *now: seen.append(now))
    assert [number for number, _, _ in seen] == list(range(1, len(hyper.losses)))
    assert seen[-1][1] == pytest.approx(hyper.loss) and {total for _, _, total in seen} == {seen[0][2]}

    def stop(number, loss, total):
        if number == 2:
            raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        hm.solve(models, rank=[6, 3], on_pass=stop)


@pytest.mark.parametrize("call", [0, 3, 7])
def test_progress_can_cancel_any_pass(call):
    calls = 0

    def progress(done, total):
        nonlocal calls
        assert 0 <= done <= total
        calls += 1
        if calls > call:
            raise hm.Cancelled("enough")

    with pytest.raises(hm.Cancelled, match="enough"):
        hm.solve(family(4), rank=[6, 3], progress=progress)


def test_threads_and_budgets_change_nothing(tmp_path):
    shapes = {"layers.0.weight": (1100, 1000), "layers.1.weight": (200, 300), "layers.2.bias": (700,)}
    models = family(3, shapes=shapes, strengths=(1.0, 0.5), decay=0.8)
    written = []
    for i, (threads, budget) in enumerate([(1, None), (2, 16 << 20), (5, 64 << 20)]):  # 16 MiB: one direction at a time
        path = tmp_path / f"{i}.hyper.safetensors"
        hyper = hm.solve(models, rank=[8, 4], threads=threads, memory_budget=budget)
        hyper.save(path, threads=threads, memory_budget=budget)
        written.append(oracle.read(path))
    first = written[0]
    assert any(name.endswith("layers.0.weight.lora_up") for name in first.model)
    for other in written[1:]:
        assert other.document == first.document and other.data_sha256 == first.data_sha256


# ---- the certificate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_document_tells_the_truth_about_the_file(dtype, tmp_path):
    models, weights = family(5, seed=4), [1, 2, 1, 0.5, 1]
    hyper = hm.solve(models, rank=[6, 3], weights=weights, dtype=dtype)
    path = tmp_path / "x.hyper.safetensors"
    hyper.save(path)
    again = hm.load(path)
    document, found = again.document, differences(models, weights=weights)
    rows, w = flat(found), found.weights
    stored = np.array(stored_directions(path, models))
    c = np.array([member.multipliers for member in again.members])
    slack = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}[dtype]  # the last scaling rounds the directions once more
    assert (np.abs(c).max(0) == 1).all() and (c.max(0) == 1).all()
    products = np.array(document["direction_gram"])
    np.testing.assert_allclose(products, stored @ stored.T, rtol=slack, atol=slack * products.max())
    best = np.linalg.lstsq(stored.T, rows.T, rcond=None)[0].T
    np.testing.assert_allclose(c, best, atol=slack)
    rest = rows - c @ stored
    norms = np.linalg.norm(rows, axis=1)
    assert again.loss == pytest.approx(float(w @ (rest**2).sum(1)), rel=slack)
    for m, member in enumerate(again.members):
        assert member.norm == pytest.approx(norms[m], rel=1e-5)
        assert member.residual == pytest.approx(np.linalg.norm(rest[m]) / norms[m], abs=slack)
        assert member.residual_stored == pytest.approx(member.residual, abs=10 * slack)
    assert sum(again.explained_variance_ratio) == pytest.approx(1 - again.loss / again.total, abs=1e-6)
    shares = [float(w @ (c[:, k] * (rows @ stored[k]))) / found.total for k in range(2)]
    np.testing.assert_allclose(again.explained_variance_ratio, shares, atol=slack)
    assert again.ranks == [6, 3] and document["method"] == "hyper-lora" and document["losses"] == hyper.losses

    at = 0
    explained: dict[str, np.ndarray] = {}
    for name, shape in SHAPES.items():
        part = slice(at, at := at + int(np.prod(shape)))
        block = ".".join(name.split(".")[2:4]) if "put_" in name else "middle_block"
        left = w @ ((rows[:, part] - c @ stored[:, part]) ** 2).sum(1)
        explained.setdefault(block, np.zeros(2))
        explained[block] += [w @ (rows[:, part] ** 2).sum(1), left]
    assert set(explained) == set(document["blocks"])
    for block, (total, left) in explained.items():
        assert sum(document["blocks"][block]["explained"]) == pytest.approx(1 - left / total, abs=slack)


def test_what_is_stored_and_how(solved):
    models, _, path = solved
    file = oracle.read(path)
    for k, rank in enumerate((6, 3), start=1):
        for name, shape in SHAPES.items():
            stem = f"hypermerge.direction.{k}.{name}"
            matrix = (shape[0], int(np.prod(shape[1:], dtype=int)))
            if stays_whole(matrix, rank, len(shape) < 2):
                assert file.model[stem].shape == shape and stem + ".lora_up" not in file.model
            else:
                up, down = file.model[stem + ".lora_up"], file.model[stem + ".lora_down"]
                assert up.shape == (shape[0], rank, *[1] * (len(shape) - 2)) and down.shape == (rank, *shape[1:])
    assert file.model["hypermerge.direction.1." + UNET + "output_blocks.2.0.weight"].shape == (3, 50)
    assert set(file.weights()) == set(models[0])


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("mean", {"split": True}),
        ("mean", {"split": True, "hash": True}),
        ("mean", {"base_low": True, "hash": True}),
        ("none", {}),
        ("none", {"hash": True}),
        ("file", {}),
    ],
)
def test_every_kind_of_file(base, options, tmp_path):
    *held, other = [{name: oracle.tensor(w, "F16") for name, w in model.items()} for model in family(5)]
    paths = families.save(tmp_path, held)
    given = base if base != "file" else families.save(tmp_path, [other], prefix="base")[0]
    path = tmp_path / "x.hyper.safetensors"
    hm.solve(paths, given, rank=[6, 3]).save(path, **options)
    hyper, file = hm.load(path), oracle.read(path)
    if options.get("hash"):
        assert file.metadata["sshs_model_hash"] == file.data_sha256
    models = [{name: item.f64() for name, item in model.items()} for model in held]
    stored = np.array(stored_directions(path, models))
    for model, member in zip(paths, hyper.members):
        placed = hyper.project(model)
        np.testing.assert_allclose(placed.multipliers, member.multipliers, atol=5e-3)
        assert member.residual_stored == pytest.approx(member.residual, abs=5e-3)
    hyper.merge((0.5, -1), tmp_path / "y.safetensors", dtype="fp32")
    merged = oracle.read(tmp_path / "y.safetensors").model
    if base == "mean":
        where = oracle.read(tmp_path / "x.base.safetensors").model if options.get("split") else file.weights()
        start = {name: item.f64() + (file.low(name).f64() if file.low(name) else 0) for name, item in where.items()}
    else:
        start = {name: other[name].f64() if base == "file" else np.zeros(shape) for name, shape in SHAPES.items()}
    wanted = np.concatenate([start[name].ravel() for name in SHAPES]) + np.array([0.5, -1]) @ stored
    np.testing.assert_allclose(np.concatenate([merged[name].f64().ravel() for name in SHAPES]), wanted, atol=1e-5)


# ---- everything that can be done with the file -----------------------------------------------------------------------


def test_project_gives_the_members_back(solved):
    models, hyper, path = solved
    for made in (hm.load(path), hyper):
        for model, member in zip(models, made.members):
            placed = made.project(model)
            np.testing.assert_allclose(placed.multipliers, member.multipliers, atol=1e-4)
            assert placed.residual == pytest.approx(member.residual, abs=1e-5)


def test_merge_and_bind_agree_and_are_the_blend(solved, tmp_path):
    models, hyper, path = solved
    at = (0.7, -0.4)
    hm.load(path).merge(at, tmp_path / "from-file.safetensors")
    hyper.merge(at, tmp_path / "saved.safetensors")
    merged = oracle.read(tmp_path / "from-file.safetensors").model
    assert all(item.same(merged[name]) for name, item in oracle.read(tmp_path / "saved.safetensors").model.items())
    base = oracle.read(path).weights()
    stored = np.array(stored_directions(path, models))
    wanted = np.concatenate([base[name].f64().ravel() for name in SHAPES]) + np.array(at) @ stored
    np.testing.assert_allclose(np.concatenate([merged[name].f64().ravel() for name in SHAPES]), wanted, atol=2e-6)
    state = {name: torch.from_numpy(item.stored.copy()) for name, item in base.items()}
    live = hm.load(path).bind(state)
    live.set(*at)
    for name in SHAPES:
        assert (state[name].numpy() == merged[name].stored).all(), name


def test_flipped_axes_and_loras_out(solved, tmp_path):
    _, _, path = solved
    hyper = hm.load(path)
    hyper.rename({1: "warmth"}, flip=[2], path=tmp_path / "flipped.hyper.safetensors")
    flipped = hm.load(tmp_path / "flipped.hyper.safetensors")
    assert [m.multipliers[1] for m in flipped.members] == [-m.multipliers[1] for m in hyper.members]
    one, other = (np.array(h.document["direction_gram"]) for h in (hyper, flipped))
    np.testing.assert_array_equal(other, one * [[1, -1], [-1, 1]])
    assert flipped.losses == hyper.losses
    report = hyper.lora(tmp_path / "one.safetensors", direction=1, rank=6, format="comfyui", dtype="fp32")
    assert report["relative_error"] < 1e-3  # nothing is lost: it has that rank already


def test_the_map_of_directions_that_are_not_orthogonal(solved):
    models, _, path = solved
    hyper = hm.load(path)
    rows, stored = flat(differences(models)), np.array(stored_directions(path, models))
    for axes in (None, [2]):
        drawn = [k - 1 for k in axes or [1, 2]]
        found = geometry.map_document(hyper, axes=axes)
        for axis, k in zip(found["axes"], drawn):
            assert axis["norm"] == pytest.approx(np.linalg.norm(stored[k]), rel=1e-4)
        c = np.array([member.multipliers for member in hyper.members])
        left = rows - c[:, drawn] @ stored[drawn]
        for m, point in enumerate(found["points"]):
            assert point["off"] == pytest.approx(np.linalg.norm(left[m]), rel=1e-3)
        vectors = np.array([point["error"] for point in found["points"]])
        two = np.linalg.svd(left, compute_uv=False)[:2]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), two, rtol=1e-2)
    cosine = stored[0] @ stored[1] / np.linalg.norm(stored[0]) / np.linalg.norm(stored[1])
    assert geometry.map_document(hyper)["angle"] == pytest.approx(np.degrees(np.arccos(cosine)), abs=0.05)
    damaged = {**hyper.document, "direction_gram": [[1.0]]}
    with pytest.raises(hm.FormatError, match="direction_gram"):
        geometry.map_document(damaged)


def test_the_command_line(tmp_path, cli):
    paths = families.save(tmp_path, families.family(4))
    done = cli("solve", *paths, "--rank", "6,3", "-o", tmp_path / "x.hyper.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ranks"] == [6, 3] and document["losses"] == sorted(document["losses"], reverse=True)
    shown = cli("solve", *paths, "--rank", "6", "--rank", "3", "-o", tmp_path / "y.hyper.safetensors", "--verbose")
    assert shown.returncode == 0 and "hyper-LoRAs of ranks 6, 3" in shown.stdout and "loss after each pass" in shown.stdout
    assert shown.stderr.count("pass ") >= len(document["losses"]) - 1
    assert (tmp_path / "x.hyper.safetensors").stat().st_size == (tmp_path / "y.hyper.safetensors").stat().st_size
    inspected = json.loads(cli("inspect", tmp_path / "x.hyper.safetensors", "--json").stdout)
    assert inspected["losses"] == document["losses"] and inspected["file"]["low_rank"]["largest_rank"] == 6
    placed = json.loads(cli("project", tmp_path / "x.hyper.safetensors", paths[0], "--json").stdout)["models"][0]
    np.testing.assert_allclose(placed["multipliers"], document["members"][0]["multipliers"], atol=1e-3)
    assert cli("solve", *paths, "--rank", "0", "-o", tmp_path / "z.hyper.safetensors").returncode == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": [4, 4, 4, 4]}, "differ along only 3"),
        ({"rank": [4] * 5}, "5 directions asked for"),
        ({"rank": [4, 4], "directions": 3}, "2 ranks were given for 3 directions"),
        ({"rank": [4], "method": "als"}, "als"),
        ({"rank": [4, 0]}, "a rank is a whole number from 1"),
        ({"rank": [2.5]}, "a rank is a whole number from 1"),
        ({"rank": []}, "at least one"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(hm.ArgumentError, match=message):
        hm.solve(family(4), **options)


def test_the_inputs_are_no_way_to_the_directions(solved, tmp_path):
    models, _, path = solved
    fresh = hm.solve(models, rank=[6, 3])
    for call in (
        lambda: fresh.merge([1], tmp_path / "y.safetensors"),
        lambda: fresh.lora(tmp_path / "y.safetensors", direction=1),
        lambda: fresh.project(models[0]),
    ):
        with pytest.raises(hm.ArgumentError, match="save it first"):
            call()
    with pytest.raises(hm.ArgumentError, match="leave out --exact"):
        hm.load(path).merge([1], tmp_path / "y.safetensors", exact=models)
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [6]}, "ranks is not one number per direction"),
        ({"ranks": "64"}, "ranks is not"),
        ({"losses": [1.0, "x"]}, "losses are no numbers"),
        ({"losses": None}, "losses"),
        ({"direction_gram": [[1.0, 0.0], [0.0]]}, "direction_gram is not K × K"),
        ({"direction_gram": [1.0, 2.0]}, "direction_gram"),
        ({"method": "exact"}, "tells of hyper-LoRAs"),
    ],
)
def test_a_damaged_document_is_refused(solved, tmp_path, change, message):
    file = oracle.read(solved[2])
    document = {**file.document, **change}
    document = {key: value for key, value in document.items() if value is not None}
    oracle.write(tmp_path / "x.hyper.safetensors", file.model, {"hypermerge": json.dumps(document)})
    with pytest.raises(hm.FormatError, match=message):
        hm.load(tmp_path / "x.hyper.safetensors")


# ---- degenerate families ---------------------------------------------------------------------------------------------


def finite(hyper, path) -> None:
    hyper.save(path)
    document = hm.load(path).document
    text = json.dumps(document)
    assert "NaN" not in text and "null" not in text and "Infinity" not in text
    for name, item in oracle.read(path).model.items():
        assert np.isfinite(item.f64()).all(), name


def test_equal_inputs_equal_tensors_and_as_many_directions_as_there_are(tmp_path):
    one, two, three = family(3)
    three[UNET + "middle_block.0.weight"] = two[UNET + "middle_block.0.weight"] = one[UNET + "middle_block.0.weight"]
    twins = hm.solve([one, two, dict(two)], rank=[5])
    finite(twins, tmp_path / "twins.hyper.safetensors")
    assert twins.members[1].multipliers == twins.members[2].multipliers
    full = hm.solve([one, two, three], rank=[5, 5])  # K = the rank of the family
    finite(full, tmp_path / "full.hyper.safetensors")
    assert 0 < full.loss < full.total
    with pytest.raises(hm.ArgumentError, match="nothing differs"):
        hm.solve([one, dict(one)], rank=[5])


def test_a_family_of_that_rank_is_found_exactly(tmp_path):
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((2, 40, 3)), rng.standard_normal((2, 3, 50))
    shares = rng.standard_normal((5, 2))
    base = rng.standard_normal((40, 50))
    models = [{"layers.0.weight": (base + (c[0] * left[0] @ right[0] + c[1] * left[1] @ right[1])).astype(np.float32)} for c in shares]
    hyper = hm.solve(models, rank=[3, 3])
    assert hyper.losses[0] > 1e-3 * hyper.total  # the Gram matrix mixes the two hidden directions
    assert hyper.loss < 1e-3 * hyper.total
    finite(hyper, tmp_path / "x.hyper.safetensors")


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e12])
def test_very_small_and_very_large_numbers(scale, tmp_path):
    models = [{name: (scale * w).astype(np.float32) for name, w in model.items()} for model in family(4)]
    hyper, usual = hm.solve(models, rank=[6, 3]), hm.solve(family(4), rank=[6, 3])
    finite(hyper, tmp_path / "x.hyper.safetensors")
    assert hyper.loss / hyper.total == pytest.approx(usual.loss / usual.total, rel=1e-2)


def test_a_type_that_is_too_narrow_is_said_so():
    models = [{name: (1e7 * w).astype(np.float32) for name, w in model.items()} for model in family(3)]
    with pytest.raises(hm.MismatchError, match="does not fit into F16; use a wider --dtype"):
        hm.solve(models, rank=[4], dtype="fp16")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3"])
def test_inputs_of_narrow_types(dtype, tmp_path):
    models = [{name: oracle.tensor(w, dtype) for name, w in model.items()} for model in family(4)]
    paths = families.save(tmp_path, models)
    hyper = hm.solve(paths, rank=[6, 3])
    finite(hyper, tmp_path / "x.hyper.safetensors")
    held = [{name: item.f64().astype(np.float32) for name, item in model.items()} for model in models]
    assert hyper.losses[0] == pytest.approx(truncation(differences(held), [6], wholes(held)), rel=2e-3)
    assert oracle.read(tmp_path / "x.hyper.safetensors").model[
        f"hypermerge.direction.1.{UNET}middle_block.0.weight.lora_up"
    ].dtype == ("F16" if dtype.startswith("F8") else dtype)


def test_only_norms_and_biases(tmp_path):
    models = family(4, shapes={"layers.0.bias": (40,), "layers.0.norm.weight": (7,)})
    hyper = hm.solve(models, rank=[2, 1])
    finite(hyper, tmp_path / "x.hyper.safetensors")
    assert hyper.loss == pytest.approx(hm.solve(models, directions=2).loss, rel=1e-3) and len(hyper.losses) <= 4


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_peak_memory(tmp_path, peak_memory):
    """Eight models of 32 MiB: factors, budget and the tensor in work, not the models."""
    shapes = {f"layers.{i}.weight": (1024, 1024) for i in range(16)}
    rng = np.random.default_rng(2)
    for m in range(8):
        held = {name: oracle.tensor(0.1 * rng.standard_normal(shape, np.float32), "F16") for name, shape in shapes.items()}
        oracle.write(tmp_path / f"m{m}.safetensors", held)
    names = [f"m{m}.safetensors" for m in range(8)]
    options = ["-o", "x.hyper.safetensors", "--memory", "32MiB", "--threads", "2"]
    plain = peak_memory("solve", *names, *options, cwd=tmp_path)
    ranked = peak_memory("solve", *names, *options, "--rank", "16,8", cwd=tmp_path)
    factors = 16 * 24 * 2048 * 2
    assert ranked - plain < (64 << 20) + factors, (plain >> 20, ranked >> 20)
