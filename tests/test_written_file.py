"""Every written hyper-model, re-read with plain NumPy: each number of its metadata against what the numbers in the file
give, the layout of the file, and what was copied."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch

import hypermerge_ext as hm
import oracle
from families import BLOCKS, SHAPES, family, moving, save, sd3
from oracle import tensor

LOW_THRESHOLD = 0.01  # of the smallest Δ: above it base_low must be there
LOW_COST = 0.002  # what may then be left


def flat(items) -> np.ndarray:
    """Tensors one after another as one row of f64."""
    return np.concatenate([np.zeros(0)] + [np.asarray(item, np.float64).ravel() for item in items])


def stored_base(file: oracle.File, base: oracle.Model | None, names, with_low=True) -> np.ndarray:
    """W̃ as the file gives it: rounded, and base_low where there is one."""
    parts = []
    for name in names:
        value = base[name].f64() if base is not None else np.zeros(file.direction(1, name).shape)
        low = file.low(name)
        parts.append(value + low.f64() if low is not None and with_low else value)
    return flat(parts)


def stored_directions(file: oracle.File, names, shapes=SHAPES) -> np.ndarray:
    """K × N; zeros where the inputs are equal."""
    rows = []
    for k in range(1, file.document["directions"] + 1):
        found = [file.direction(k, name) for name in names]
        rows.append(flat(d.f64() if d is not None else np.zeros(shapes[name]) for d, name in zip(found, names)))
    return np.array(rows).reshape(len(rows), -1)


def check_numbers(file: oracle.File, models, base: str | oracle.Model = "mean", shapes=SHAPES, weights=None):
    """The document of a written file against its inputs and against the numbers in the file itself."""
    document, names = file.document, list(shapes)
    rows = oracle.stacked(models, names)
    origin = base if isinstance(base, str) else oracle.stacked([base], names)[0]
    truth = oracle.solve(rows, origin, document["directions"], weights)
    held = base if isinstance(base, dict) else file.weights() if base == "mean" else None
    there, directions = stored_base(file, held, names), stored_directions(file, names, shapes)

    assert document["version"] == 1 and document["directions"] == len(directions)
    assert len(document["members"]) == len(models)
    assert np.array(document["gram"]) == pytest.approx(truth.gram, abs=1e-6 * np.abs(truth.gram).max())
    assert document["total"] == pytest.approx(truth.total, rel=1e-6)
    assert document["loss"] == pytest.approx(truth.loss, abs=1e-6 * truth.total)
    assert document["explained_variance_ratio"] == pytest.approx(
        list(truth.spectrum[: len(directions)] / truth.total), abs=1e-6
    )
    if shapes is SHAPES:
        assert set(document["blocks"]) == {BLOCKS[name] for name in moving(models) if name in BLOCKS}
    multipliers = np.array([member["multipliers"] for member in document["members"]]).reshape(len(models), -1)
    assert np.abs(multipliers).max(initial=0) <= 1
    for k in range(len(directions)):
        assert (multipliers[:, k] == 1).any()
    check_stored(file, truth, there, directions)
    for m, member in enumerate(document["members"]):
        norm = np.linalg.norm(truth.delta[m])
        assert member["norm"] == pytest.approx(norm, rel=2e-6)
        assert member["residual"] ** 2 == pytest.approx(truth.residual[m] ** 2, abs=4e-6 * truth.spectrum[0] / norm**2)
        left = np.linalg.norm(rows[m] - there - multipliers[m] @ directions) / norm
        assert member["residual_stored"] == pytest.approx(left, rel=1e-3, abs=1e-6)
    return truth


def check_stored(file: oracle.File, truth: oracle.Solution, base, directions) -> None:
    """The stored base and directions against the true ones: only rounding may lie between them."""
    lows = {item.dtype for name, item in file.model.items() if name.startswith("hypermerge.base_low.")}
    if file.document["base"]["kind"] == "mean" and not lows & set(oracle.FP8):  # fp8 has no digits for a low part
        smallest = np.linalg.norm(truth.delta, axis=1).min()
        assert np.linalg.norm(base - truth.base) <= 1.01 * (LOW_COST if lows else LOW_THRESHOLD) * smallest
    for k, (stored, exact) in enumerate(zip(directions, truth.directions)):
        prefix = f"hypermerge.direction.{k + 1}."
        dtype = next(item.dtype for name, item in file.model.items() if name.startswith(prefix))
        smallest_step = 2.0**-25 if dtype == "F16" else 0  # half of it; small directions are subnormal numbers
        firm = oracle.STEP[dtype] + 1e-5 + 8e-6 / truth.gaps[k]  # an eigenvector is known to 1e-6 over its gap
        allowed = firm * np.linalg.norm(exact) + smallest_step * np.sqrt(exact.size)
        assert np.linalg.norm(stored - exact) <= allowed


def check_layout(file: oracle.File) -> None:
    """Rules on the file itself: header, alignment, order, hash, recipe."""
    assert file.header.startswith(b'{"__metadata__":{')
    assert (8 + len(file.header)) % 8 == 0
    for name, item in file.model.items():
        assert file.offsets[name] % item.stored.itemsize == 0, name
    ours = [name.startswith("hypermerge.") for name in file.model]
    assert ours == sorted(ours)  # the directions lie after W̃
    for part in (False, True):
        listed = [(item.stored.itemsize, name) for (name, item), own in zip(file.model.items(), ours) if own == part]
        sizes = [size for size, _ in listed if _ != "hypermerge.pad"]
        assert sizes == sorted(sizes, reverse=True)
    # A checkpoint is hashed while it is written; a hyper-model, whose parts grow side by side, only when asked.
    if "hypermerge" not in file.metadata or "sshs_model_hash" in file.metadata:
        assert file.metadata["sshs_model_hash"] == file.data_sha256
    assert json.loads(file.metadata["sd_merge_recipe"])["type"] == "hyper-merge"
    models = json.loads(file.metadata["sd_merge_models"])
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in models)


def solve_and_save(tmp_path, models, *, save_options=None, paths=None, **options):
    """The hyper-model of these models as written, read back."""
    paths = paths or save(tmp_path, models)
    hyper = hm.solve(paths, **options)
    hyper.save(tmp_path / "x.hyper.safetensors", **(save_options or {}))
    file = oracle.read(tmp_path / "x.hyper.safetensors")
    assert hyper.document == file.document  # also after saving, with residual_stored
    assert hm.load(tmp_path / "x.hyper.safetensors").document == file.document
    return file


# ---- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("delta", [0.03, 0.001])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_every_number_of_the_metadata(tmp_path, dtype, delta, directions):
    models = family(5, seed=21, delta=delta, dtypes=dtype)
    file = solve_and_save(tmp_path, models, directions=directions)
    check_numbers(file, models)
    check_layout(file)
    assert {item.dtype for item in file.weights().values()} == {dtype}
    wanted = {"F8_E4M3": "F16", "F8_E5M2": "F16"}.get(dtype, dtype)
    for k in range(1, directions + 1):
        assert {file.direction(k, name).dtype for name in moving(models)} == {wanted}


@pytest.mark.parametrize("weights", [None, (1, 4, 0.3, 2)])
@pytest.mark.parametrize("base", ["mean", "none", "file"])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_bases_and_weights(tmp_path, dtype, base, weights):
    models = family(5, seed=22, dtypes=dtype)
    paths = save(tmp_path, models)
    origin = paths[0] if base == "file" else base
    file = solve_and_save(tmp_path, models, paths=paths[1:], base=origin, weights=weights)
    check_numbers(file, models[1:], models[0] if base == "file" else base, weights=weights)
    check_layout(file)
    assert set(file.weights()) == (set(SHAPES) if base == "mean" else set())
    assert file.document["base"]["kind"] == base
    if base == "file":
        assert file.document["base"]["name"] == paths[0].name


@pytest.mark.parametrize("given", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("asked", ["fp16", "bf16", "fp32"])
def test_the_type_that_was_asked_for(tmp_path, given, asked):
    models = family(4, seed=23, dtypes=given)
    file = solve_and_save(tmp_path, models, dtype=asked)
    check_numbers(file, models)
    wanted = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}[asked]
    assert {item.dtype for name, item in file.model.items() if name != "hypermerge.pad"} == {wanted}


def test_the_stored_mean_and_directions_are_the_right_ones_rounded_once(tmp_path):
    models = family(4, seed=24, dtypes="F16")
    file = solve_and_save(tmp_path, models)
    truth = check_numbers(file, models)
    names = list(SHAPES)
    for stored, exact in (
        (flat(file.weights()[name].f64() for name in names), truth.base),
        (stored_directions(file, names)[0], truth.directions[0]),
    ):
        # Half a unit in the last place of f16, and 3e-6 of the largest for the f32 arithmetic and the eigenvector.
        step = np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25) + 3e-6 * np.abs(exact).max()
        assert (np.abs(stored - exact) <= step).all()


# ---- base_low -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F32"])
@pytest.mark.parametrize("delta", [0.3, 0.1, 0.03, 0.01, 0.003, 0.001])
def test_base_low_is_there_exactly_when_rounding_costs_more_than_one_percent(tmp_path, dtype, delta):
    models = family(5, seed=25, delta=delta, dtypes=dtype)
    file = solve_and_save(tmp_path, models)
    names = list(SHAPES)
    truth = oracle.solve(oracle.stacked(models, names))
    smallest = np.linalg.norm(truth.delta, axis=1).min()
    cost = np.linalg.norm(truth.base - stored_base(file, file.weights(), names, with_low=False)) / smallest
    lows = [name for name in names if file.low(name) is not None]
    assert abs(cost / LOW_THRESHOLD - 1) > 0.02, "choose another delta: this one decides nothing"
    assert lows == (moving(models) if cost > LOW_THRESHOLD else [])
    for name in lows:
        own = file.model[name].dtype  # fp8's own three bits could not hold what is left over
        assert file.low(name).dtype == ("F16" if own in oracle.FP8 else own) and file.low(name).shape == SHAPES[name]
    if lows:  # where present it brings the cost back
        left = np.linalg.norm(truth.base - stored_base(file, file.weights(), names)) / smallest
        assert left <= LOW_COST


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("cost", [0.008, 0.0095, 0.0105, 0.013])
def test_one_percent_is_the_threshold(tmp_path, dtype, cost):
    """Close to it on both sides: f32 models, whose difference is chosen so that the rounded mean costs just `cost`."""

    def measured(delta):
        models = family(5, seed=25, delta=delta)
        truth = oracle.solve(oracle.stacked(models, list(SHAPES)))
        rounded = tensor(truth.base, dtype).f64()
        return models, np.linalg.norm(rounded - truth.base) / np.linalg.norm(truth.delta, axis=1).min()

    delta = 0.03
    for _ in range(3):  # the cost goes nearly as 1/delta
        delta *= measured(delta)[1] / cost
    models, found = measured(delta)
    assert found == pytest.approx(cost, rel=0.04) and (found > LOW_THRESHOLD) == (cost > LOW_THRESHOLD)
    file = solve_and_save(tmp_path, models, dtype={"F16": "fp16", "BF16": "bf16"}[dtype])
    assert [file.low(name) is not None for name in SHAPES] == [cost > LOW_THRESHOLD] * len(SHAPES)
    if cost > LOW_THRESHOLD:
        check_numbers(file, models)


@pytest.mark.parametrize("dtype, asked, size", [("F16", "fp16", 0.001), ("BF16", "bf16", 0.002)])
def test_base_low_brings_the_cost_back(tmp_path, dtype, asked, size):
    """f32 models whose smallest Δ is `size` of |W|: f16 loses a fifth of it, bf16 more than three quarters."""
    models = family(8, seed=26, delta=1.8 * size, dtypes="F32")
    file = solve_and_save(tmp_path, models, dtype=asked)
    truth = oracle.solve(oracle.stacked(models, list(SHAPES)))
    smallest = np.linalg.norm(truth.delta, axis=1).min()
    assert smallest / np.linalg.norm(truth.base) == pytest.approx(size, rel=0.1), "choose another delta"
    without, with_low = (
        np.linalg.norm(truth.base - stored_base(file, file.weights(), list(SHAPES), low)) / smallest
        for low in (False, True)
    )
    assert without > 0.15 and with_low <= LOW_COST
    check_numbers(file, models)


def test_base_low_on_request(tmp_path):
    models = family(4, seed=27, delta=0.3, dtypes="F16")
    assert solve_and_save(tmp_path, models).low(list(SHAPES)[0]) is None
    file = solve_and_save(tmp_path, models, save_options={"base_low": True})
    assert all(file.low(name) is not None for name in SHAPES)
    check_numbers(file, models)
    check_layout(file)


def test_rounding_counts_for_tensors_that_are_equal_in_all_models_too(tmp_path):
    """f32 models that differ in one tensor only, written as f16: the cost is in the others, and is brought back."""
    models = family(3, seed=28, delta=0.003)
    different = "model.diffusion_model.middle_block.0.weight"
    for model in models[1:]:
        model.update({name: item for name, item in models[0].items() if name != different})
    file = solve_and_save(tmp_path, models, dtype="fp16")
    truth = check_numbers(file, models)
    assert [name for name in SHAPES if file.direction(1, name) is not None] == [different]
    smallest = np.linalg.norm(truth.delta, axis=1).min()
    without, with_low = (
        np.linalg.norm(truth.base - stored_base(file, file.weights(), list(SHAPES), low)) / smallest
        for low in (False, True)
    )
    assert without > LOW_THRESHOLD and with_low <= LOW_COST
    # What merge gives is this base, too.
    hm.load(tmp_path / "x.hyper.safetensors").merge([], tmp_path / "y.safetensors", dtype="fp32")
    out = oracle.read(tmp_path / "y.safetensors").model
    assert np.linalg.norm(truth.base - flat(out[name].f64() for name in SHAPES)) / smallest <= LOW_COST


# ---- what the file contains -----------------------------------------------------------------------------------------


def with_company(models):
    """The same models with what is never averaged: integers, position_ids, a VAE, buffers, EMA copies."""
    rng = np.random.default_rng(5)
    text = "cond_stage_model.transformer.text_model."
    for m, model in enumerate(models):
        model[text + "embeddings.position_ids"] = tensor(np.arange(77)[None] + m, "I64")
        model["first_stage_model.decoder.conv_in.weight"] = tensor(rng.standard_normal((6, 4, 3, 3)), "F32")
        model["first_stage_model.decoder.conv_in.bias"] = tensor(rng.standard_normal(6), "BF16")
        model["alphas_cumprod"] = tensor(rng.random(10), "F32")
        model["num_steps"] = tensor(np.array(1000 + m), "I32")
        model["some.mask"] = tensor(np.arange(5) % 2, "BOOL")
        model["codes"] = tensor(np.arange(7) + m, "U8")
        model["model_ema.diffusion_modelmiddle_block0weight"] = tensor(rng.standard_normal((57, 33)), "F32")
        model["model_ema.decay"] = tensor(np.array(0.9999), "F32")
    return models


COPIED = (
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "first_stage_model.decoder.conv_in.weight",
    "first_stage_model.decoder.conv_in.bias",
    "alphas_cumprod",
    "num_steps",
    "some.mask",
    "codes",
)


@pytest.mark.parametrize("carrier", [None, 2])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_what_is_not_merged_comes_from_the_carrier_byte_by_byte(tmp_path, dtype, carrier):
    models = with_company(family(4, seed=31, dtypes=dtype))
    file = solve_and_save(tmp_path, models, carrier=carrier)
    for name in COPIED:
        assert file.model[name].same(models[carrier or 0][name]), name
    assert set(file.weights()) == {*SHAPES, *COPIED}
    assert not any(name.startswith("model_ema.") for name in file.model)
    check_numbers(file, models)
    check_layout(file)
    for asked in ("fp16", "fp32"):  # which is the type of what is merged
        file = solve_and_save(tmp_path, models, carrier=carrier, dtype=asked)
        hm.load(tmp_path / "x.hyper.safetensors").merge([1], tmp_path / "y.safetensors", dtype="bf16")
        for written in (file.model, oracle.read(tmp_path / "y.safetensors").model):
            for name in COPIED:
                assert written[name].same(models[carrier or 0][name]), name


def test_the_base_file_is_the_carrier(tmp_path):
    models = with_company(family(4, seed=32, dtypes="F16"))
    paths = save(tmp_path, models)
    file = solve_and_save(tmp_path, models, paths=paths[1:], base=paths[0])
    assert file.weights() == {}
    hm.load(tmp_path / "x.hyper.safetensors").merge([0.5], tmp_path / "y.safetensors")
    merged = oracle.read(tmp_path / "y.safetensors").model
    assert set(merged) == {*SHAPES, *COPIED}
    assert all(merged[name].same(models[0][name]) for name in COPIED)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F8_E4M3"])
def test_the_file_is_what_the_safetensors_library_reads(tmp_path, dtype):
    models = with_company(family(3, seed=33, dtypes=dtype, shapes=sd3()))
    for model in models:
        del model["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    file = solve_and_save(tmp_path, models)
    loaded = safetensors.torch.load_file(tmp_path / "x.hyper.safetensors")
    assert set(loaded) == set(file.model)
    for name, item in file.model.items():
        assert tuple(loaded[name].shape) == item.shape
        if item.dtype in oracle.FLOATS:
            assert np.array_equal(loaded[name].double().numpy(), item.f64())
    with safetensors.safe_open(tmp_path / "x.hyper.safetensors", "pt") as opened:
        assert opened.metadata() == file.metadata
    hm.load(tmp_path / "x.hyper.safetensors").merge([0.5], tmp_path / "y.safetensors")
    merged = oracle.read(tmp_path / "y.safetensors")
    check_layout(merged)
    safetensors.torch.save_file(safetensors.torch.load_file(tmp_path / "y.safetensors"), tmp_path / "again.safetensors")
    again = oracle.read(tmp_path / "again.safetensors")
    assert again.data_sha256 == merged.data_sha256  # the library's own order of the data area
    assert list(again.model) == list(merged.model)


def test_metadata_that_other_programs_look_for(tmp_path):
    models = family(3, seed=34, dtypes="F16", shapes=sd3())
    paths = save(tmp_path, models)
    file = solve_and_save(tmp_path, models, paths=paths, hash=True)
    meta = file.metadata
    assert meta["modelspec.sai_model_spec"] == "1.0.1"
    assert meta["modelspec.architecture"].startswith("stable-diffusion-3") or meta["modelspec.architecture"]
    assert (
        meta["modelspec.implementation"]
        and meta["modelspec.title"]
        and re.fullmatch(r"\d+x\d+", meta["modelspec.resolution"])
    )
    assert meta["modelspec.hash_sha256"] == "0x" + file.data_sha256
    digests = [hm.source(path).sha256() for path in paths]
    assert [member["sha256"] for member in file.document["members"]] == digests
    assert {key: value["name"] for key, value in json.loads(meta["sd_merge_models"]).items()} == {
        digest: f"m{i}" for i, digest in enumerate(digests)
    }
    hm.load(tmp_path / "x.hyper.safetensors").merge([0.5, 0.25], tmp_path / "y.safetensors")
    merged = oracle.read(tmp_path / "y.safetensors")
    assert merged.metadata["modelspec.hash_sha256"] == "0x" + merged.data_sha256
    recipe = json.loads(merged.metadata["sd_merge_recipe"])
    assert recipe["type"] == "hyper-merge" and recipe["at"] == [0.5, 0.25]


def test_the_hash_of_the_header_identifies_an_input(tmp_path):
    import hashlib
    import struct

    models = family(3, seed=35)
    paths = save(tmp_path, models)
    file = solve_and_save(tmp_path, models, paths=paths)
    for path, member in zip(paths, file.document["members"]):
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        assert member["header_hash"] == hashlib.sha256(raw[: 8 + length]).hexdigest()
        assert member["name"] == path.stem


def test_names_that_need_escapes(tmp_path):
    names = [
        'a"b\\c',
        "ü.weight",
        "tab\tx",
        "new\nline",
        '{"x"}',
        "*glob[",
        "  ",
        "x.lora_uq",
        "del\x7f",
        "\U0001f600",
        "hypermerge",
    ]
    models = family(3, seed=40, dtypes="F16", shapes={name: (5, 3) for name in names})
    file = solve_and_save(tmp_path, models)
    check_numbers(file, models, shapes={name: (5, 3) for name in names})
    hm.load(tmp_path / "x.hyper.safetensors").merge([0.5, 0.5], tmp_path / "y.safetensors")
    out = oracle.read(tmp_path / "y.safetensors").model
    assert set(out) == set(names)
    for name in names:
        directions = [file.direction(k, name) for k in (1, 2)]
        assert out[name].same(oracle.blend(file.model[name], file.low(name), directions, [0.5, 0.5], "F16"))


def test_a_name_too_long_for_a_direction_is_refused(tmp_path):
    models = family(3, seed=40, shapes={"net." + "x" * 5000: (5,), "net.b": (3,)})
    with pytest.raises(hm.Error, match="net.xxx.*too long"):
        hm.solve(save(tmp_path, models)).save(tmp_path / "x.hyper.safetensors")
    assert not (tmp_path / "x.hyper.safetensors").exists()


def test_the_document_of_many_models_and_blocks_still_fits(tmp_path):
    models = family(64, seed=40, shapes={f"net.layers.{i}.weight": (16,) for i in range(80)})
    file = solve_and_save(tmp_path, models, directions=5)
    assert len(file.metadata["hypermerge"]) <= 4 << 20  # what a reader accepts
    blocks = file.document["blocks"]
    assert len(blocks) == 80 and all(len(block["explained"]) == 5 for block in blocks.values())
    hm.load(tmp_path / "x.hyper.safetensors").merge([1], tmp_path / "y.safetensors")


def test_twenty_thousand_tensors_take_seconds(tmp_path):
    """Anything quadratic in the names would take minutes."""
    shapes = {f"net.layers.{i // 100}.p{i}.weight": (3,) for i in range(20_000)}
    paths = save(tmp_path, family(3, seed=40, dtypes="F16", shapes=shapes, strengths=(1.0,)))
    begun = time.monotonic()
    hm.solve(paths).save(tmp_path / "x.hyper.safetensors")
    hyper = hm.load(tmp_path / "x.hyper.safetensors")
    hyper.merge([1], tmp_path / "y.safetensors", carrier=paths[1], blocks={"*9*": [0]})
    hyper.merge([1], tmp_path / "y.safetensors", exact=paths)
    hyper.project(paths[0])
    assert time.monotonic() - begun < 20


# ---- the base apart -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.03, 0.001])
def test_split(tmp_path, delta):
    models = with_company(family(4, seed=36, dtypes="F16", delta=delta))
    whole = solve_and_save(tmp_path, models)
    hm.load(tmp_path / "x.hyper.safetensors").merge([0.3, -0.4], tmp_path / "whole.safetensors")
    hyper = hm.solve(sorted(tmp_path.glob("m?.safetensors")))
    hyper.save(tmp_path / "s.hyper.safetensors", split=True)
    base, rest = oracle.read(tmp_path / "s.base.safetensors"), oracle.read(tmp_path / "s.hyper.safetensors")
    check_layout(base)
    check_layout(rest)
    assert "hypermerge" not in base.metadata and not any(name.startswith("hypermerge.") for name in base.model)
    assert rest.weights() == {} and rest.document["base"]["kind"] == "mean"
    assert all(base.model[name].same(item) for name, item in whole.weights().items()) and len(base.model) == len(
        whole.weights()
    )
    for name, item in rest.model.items():
        assert whole.model[name].same(item) or name == "hypermerge.pad"
    stored = [[member["residual_stored"] for member in file.document["members"]] for file in (whole, rest)]
    assert stored[0] == pytest.approx(stored[1], rel=1e-12)
    hm.load(tmp_path / "s.hyper.safetensors").merge([0.3, -0.4], tmp_path / "split.safetensors")
    merged = [oracle.read(tmp_path / f"{name}.safetensors") for name in ("whole", "split")]
    assert merged[0].data_sha256 == merged[1].data_sha256


def test_a_linked_base_is_found_beside_the_file_or_in_folders_and_only_if_it_is_the_right_one(tmp_path, refused, cli):
    models = family(4, seed=37, dtypes="F16")
    paths = save(tmp_path, models)
    solve_and_save(tmp_path, models, paths=paths[1:], base=paths[0])
    path, elsewhere = tmp_path / "x.hyper.safetensors", tmp_path / "elsewhere"
    hm.load(path).merge([0.5], tmp_path / "beside.safetensors")

    elsewhere.mkdir()
    paths[0].rename(elsewhere / paths[0].name)
    hyper = hm.load(path)
    assert hyper.document["members"][0]["name"] == "m1"  # the map needs no base
    assert json.loads(cli("inspect", path, "--json").stdout)["base"]["name"] == paths[0].name
    for arguments in (
        ("merge", path.name, "--at", "0.5", "-o", "y.safetensors"),
        ("project", path.name, paths[1].name),
    ):
        line = refused(tmp_path, *arguments)
        assert paths[0].name in line and "not found" in line
    hm.load(path, folders=[elsewhere]).merge([0.5], tmp_path / "folder.safetensors")
    first, second = (oracle.read(tmp_path / f"{name}.safetensors") for name in ("beside", "folder"))
    assert first.data_sha256 == second.data_sha256

    oracle.write(
        paths[0], {**models[0], "another.weight": tensor(np.zeros(3), "F16")}
    )  # of that name, but another file
    with pytest.raises(hm.Error, match="not found"):
        hm.load(path).merge([0.5], tmp_path / "wrong.safetensors")
    hm.load(path, folders=[elsewhere]).merge([0.5], tmp_path / "folder.safetensors")


def test_directions_of_unlike_shapes_are_refused_even_where_the_base_is_not_found(tmp_path):
    """Without the base they can only be compared with one another; they were not."""
    models = family(4, seed=39, dtypes="F16")
    paths = save(tmp_path, models)
    solve_and_save(tmp_path, models, paths=paths[1:], base=paths[0])
    path, name = tmp_path / "x.hyper.safetensors", "model.diffusion_model.input_blocks.1.1.proj.weight"
    paths[0].unlink()
    with safetensors.safe_open(path, "np") as file:
        held, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    held[f"hypermerge.direction.2.{name}"] = held[f"hypermerge.direction.2.{name}"].T.copy()
    safetensors.numpy.save_file(held, path, metadata)
    with pytest.raises(hm.FormatError, match=f"direction.2.{name}.*shape of the first direction"):
        hm.load(path)


def test_base_none_stores_no_base(tmp_path):
    models = family(3, seed=38, dtypes="F16")
    file = solve_and_save(tmp_path, models, base="none", directions=3)
    assert not set(file.model) & set(SHAPES)
    member = file.document["members"][1]
    hm.load(tmp_path / "x.hyper.safetensors").merge(member["multipliers"], tmp_path / "y.safetensors", dtype="fp32")
    out = oracle.read(tmp_path / "y.safetensors").model
    for name in SHAPES:
        assert out[name].f64() == pytest.approx(models[1][name].f64(), abs=2e-3 * np.abs(models[1][name].f64()).max())


def test_base_none_keeps_tensors_that_are_zero_in_all_models(tmp_path):
    """A bias that nobody trained has no direction, and still is part of the network."""
    models = family(3, seed=39, dtypes="F16")
    for model in models:
        model["model.diffusion_model.middle_block.0.bias"] = tensor(np.zeros(57), "F16")
    solve_and_save(tmp_path, models, base="none")
    hm.load(tmp_path / "x.hyper.safetensors").merge([0.5], tmp_path / "y.safetensors")
    out = oracle.read(tmp_path / "y.safetensors").model
    assert set(out) == {*SHAPES, "model.diffusion_model.middle_block.0.bias"}
