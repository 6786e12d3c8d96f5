"""merge against its arithmetic bit for bit; exact merges, projections, recovery and comparison against f64."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hypermerge_ext as hm
import oracle
from families import SHAPES, family, moving, save
from oracle import tensor

TYPES = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")
OUT = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
UNET = "model.diffusion_model."


def make(tmp_path, models, name="x", save_options=None, **options):
    """Solves and saves; returns the path of the hyper-model and its contents."""
    paths = options.pop("paths", None) or save(tmp_path, models)
    path = tmp_path / f"{name}.hyper.safetensors"
    hm.solve(paths, **options).save(path, **(save_options or {}))
    return path, oracle.read(path)


def expected(file: oracle.File, name: str, at, base: oracle.Model | None, dtype: str | None = None) -> oracle.Tensor:
    """One merged tensor as the program must write it."""
    directions = [file.direction(k + 1, name) for k in range(file.document["directions"])]
    stored = base[name] if base is not None else None
    return oracle.blend(stored, file.low(name), directions, at, dtype or (stored or directions[0]).dtype)


def merged(path, at, out, **options) -> oracle.File:
    """The checkpoint, read back."""
    hm.load(path).merge(at, out, **options)
    return oracle.read(out)


# ---- bit for bit ----------------------------------------------------------------------------------------------------

POINTS = ([], [0, 0], [1], [0.3, -0.2], [-0.7, 1.3], [0, 0.4], [1e-3, -17.25], [1 / 3, -1 / 7])


@pytest.mark.parametrize("delta", [0.03, 0.001])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_arithmetic_bit_for_bit(tmp_path, dtype, delta):
    models = family(4, seed=41, dtypes=dtype, delta=delta)
    path, file = make(tmp_path, models)
    for number, at in enumerate(POINTS):
        out = merged(path, at, tmp_path / f"{number}.safetensors").model
        assert set(out) == set(SHAPES)
        for name in SHAPES:
            wanted = expected(file, name, at, file.weights()) if name in moving(models) else models[0][name]
            assert out[name].same(wanted), (name, at)


@pytest.mark.parametrize("asked", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("dtype", TYPES)
def test_another_type_bit_for_bit(tmp_path, dtype, asked):
    models = family(4, seed=42, dtypes=dtype)
    path, file = make(tmp_path, models, save_options={"base_low": True})
    out = merged(path, [0.3, -0.2], tmp_path / "y.safetensors", dtype=asked).model
    for name in moving(models):
        assert out[name].same(expected(file, name, [0.3, -0.2], file.weights(), OUT[asked])), name
    assert {item.dtype for item in out.values()} == {OUT[asked]}


@pytest.mark.parametrize("base", ["file", "none"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_other_bases_bit_for_bit(tmp_path, dtype, base):
    models = family(5, seed=43, dtypes=dtype)
    paths = save(tmp_path, models)
    path, file = make(tmp_path, models, paths=paths[1:], base=paths[0] if base == "file" else base)
    for number, at in enumerate(([0.3, -0.2], [0, 0], [1])):
        out = merged(path, at, tmp_path / f"{number}.safetensors").model
        for name in SHAPES:
            assert out[name].same(expected(file, name, at, models[0] if base == "file" else None)), (name, at)


def test_models_of_different_types_take_the_type_of_the_carrier(tmp_path):
    models = family(3, seed=44, dtypes=("BF16", "F16", "F32"))
    for carrier, dtype in ((0, "BF16"), (1, "F16"), (2, "F32")):
        path, file = make(tmp_path, models, name=f"c{carrier}", carrier=carrier)
        out = merged(path, [0.5], tmp_path / f"{carrier}.safetensors").model
        for name in SHAPES:
            assert out[name].dtype == dtype and out[name].same(expected(file, name, [0.5], file.weights()))


def test_fp8_saturates(tmp_path):
    for dtype, largest in (("F8_E4M3", 448.0), ("F8_E5M2", 57344.0)):
        models = [{"layers.0.weight": tensor(np.array([100.0, -100.0, 1.0]) * s, dtype)} for s in (1, 2, 3)]
        path, file = make(tmp_path, models, name=dtype)
        out = merged(path, [1000], tmp_path / f"{dtype}.safetensors").model["layers.0.weight"]
        assert out.same(expected(file, "layers.0.weight", [1000], file.weights()))
        assert np.abs(out.f64()[:2]).tolist() == [largest, largest]


@pytest.mark.parametrize("exact", [False, True])
def test_a_blend_that_does_not_fit_into_f16_is_refused(tmp_path, refused, exact):
    """Infinities in a checkpoint would make black pictures."""
    models = [{"layers.0.weight": tensor(np.array([1.0, -100.0 * s, 1.0]), "F16")} for s in (1, 2, 3)]
    path, _ = make(tmp_path, models)
    inputs = ("--exact", "m0.safetensors", "m1.safetensors", "m2.safetensors") if exact else ()
    line = refused(tmp_path, "merge", path.name, "--at", "1000", "-o", "y.safetensors", *inputs)
    assert "layers.0.weight" in line and "index 1" in line and "--dtype" in line
    out = merged(path, [1000], tmp_path / "y.safetensors", dtype="bf16").model["layers.0.weight"].f64()
    assert np.isfinite(out).all() and abs(out[1]) > 65504


# ---- blocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocks",
    [
        {"*": [0.5, 0.25]},
        {UNET + "input_blocks.*": [0]},
        {"*": [1], UNET + "middle_block.*": [-0.5, 2], "*.bias": [0, 0]},
        {"*.bias": [0, 0], "*": [1]},
        {"*[!s]": [0.125], "cond_stage_model.*.fc?.weight": [2, 2], UNET + "[im]*": [-1, 1]},
    ],
)
def test_blocks(tmp_path, blocks):
    import fnmatch

    models = family(4, seed=45, dtypes="F16")
    path, file = make(tmp_path, models)
    out = merged(path, [0.3, -0.2], tmp_path / "y.safetensors", blocks=blocks).model
    for name in SHAPES:
        at = [0.3, -0.2]
        for glob, values in blocks.items():
            if fnmatch.fnmatchcase(name, glob):
                at = [*values, 0][:2]  # the last match wins, missing multipliers are 0
        assert out[name].same(expected(file, name, at, file.weights())), (name, at)


def test_the_same_on_the_command_line(tmp_path, cli, refused):
    models = family(4, seed=46, dtypes="BF16")
    path, file = make(tmp_path, models)
    arguments = ("merge", path.name, "--at", "-0.3,0.2", "--block", "*=0.5,0.5", "--block", "*.bias=-1")
    assert cli(*arguments, "-o", "y.safetensors", "--dtype", "fp32", cwd=tmp_path).returncode == 0
    out = oracle.read(tmp_path / "y.safetensors").model
    for name in SHAPES:
        at = [-1, 0] if name.endswith(".bias") else [0.5, 0.5]
        assert out[name].same(expected(file, name, at, file.weights(), "F32"))
    assert "nothing.*" in refused(
        tmp_path, "merge", path.name, "--at", "0", "--block", "nothing.*=1", "-o", "z.safetensors"
    )
    assert cli("merge", path.name, "--at", "1,2,3", "-o", "z.safetensors", cwd=tmp_path).returncode == 2
    assert not (tmp_path / "z.safetensors").exists()


def test_a_glob_must_match_a_tensor_that_is_merged(tmp_path):
    models = family(3, seed=47)
    for model in models:
        model["first_stage_model.decoder.conv_in.weight"] = tensor(np.ones((2, 2)), "F32")
    path, _ = make(tmp_path, models)
    for glob in ("first_stage_model.*", "model.diffusion_model", "MODEL.*", ""):
        with pytest.raises(hm.ArgumentError):
            hm.load(path).merge([1], tmp_path / "y.safetensors", blocks={glob: [1]})
    assert not (tmp_path / "y.safetensors").exists()


# ---- exact ----------------------------------------------------------------------------------------------------------


def within_rounding(out: oracle.Tensor, truth: np.ndarray, slack: np.ndarray) -> bool:
    """Is `out` the truth, moved by at most `slack`, and then rounded to nearest?"""
    low, high = (tensor(truth + sign * slack, out.dtype).f64() for sign in (-1, 1))
    return bool(((low <= out.f64()) & (out.f64() <= high)).all())


@pytest.mark.parametrize("weights", [None, (1, 4, 0.3, 2)])
@pytest.mark.parametrize("base", ["mean", "file", "none"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3"])
def test_exact_merges_against_f64(tmp_path, dtype, base, weights):
    models = family(5, seed=48, dtypes=dtype, delta=0.01)
    paths = save(tmp_path, models)
    origin = paths[0] if base == "file" else base
    path, file = make(tmp_path, models, paths=paths[1:], base=origin, weights=weights)
    rows = oracle.stacked(models, list(SHAPES))
    truth = oracle.solve(rows[1:], rows[0] if base == "file" else base, weights=weights)
    for number, at in enumerate(([0, 0], [0.3, -0.2], [1, 0])):
        out = merged(path, at, tmp_path / f"{number}.safetensors", exact=paths[1:]).model
        wanted = truth.base + np.array(at) @ truth.directions
        # f32 sums over the models, and eigenvectors that are right to 1e-6 over their gap.
        scale = np.abs(truth.delta).max() if base != "none" else np.abs(rows).max()
        slack = 2.0**-23 * np.abs(wanted) + scale * (2.0**-20 + 8e-6 / truth.gaps.min())
        start = 0
        for name in SHAPES:
            size = out[name].stored.size
            part = slice(start, start + size)
            assert out[name].dtype == dtype
            assert within_rounding(out[name], wanted[part].reshape(SHAPES[name]), slack[part].reshape(SHAPES[name])), (
                name
            )
            start += size


def test_an_unsaved_hyper_model_merges_exactly(tmp_path):
    models = family(4, seed=49, dtypes="F16")
    paths = save(tmp_path, models)
    path, _ = make(tmp_path, models, paths=paths)
    hm.solve(paths).merge([0.3, -0.2], tmp_path / "unsaved.safetensors", blocks={"*.bias": [1]})
    saved = merged(path, [0.3, -0.2], tmp_path / "saved.safetensors", exact=paths, blocks={"*.bias": [1]})
    assert saved.data_sha256 == oracle.read(tmp_path / "unsaved.safetensors").data_sha256


@pytest.mark.parametrize("base", ["mean", "file", "none"])
def test_what_the_seeds_updates_found_is_stored_as_well(tmp_path, base):
    """ALS, with weights: stored directions and exact blends say the same, and so do projections."""
    models = family(5, seed=49)
    paths = save(tmp_path, models)
    origin = paths[0] if base == "file" else base
    path, file = make(tmp_path, models, paths=paths[1:], base=origin, method="als", weights=(1, 2, 3, 4))
    stored = merged(path, [0.4, -0.3], tmp_path / "stored.safetensors").model
    exact = merged(path, [0.4, -0.3], tmp_path / "exact.safetensors", exact=paths[1:]).model
    for name in SHAPES:
        assert stored[name].f64() == pytest.approx(exact[name].f64(), abs=1e-6)
    for m, member in enumerate(file.document["members"]):
        assert member["residual_stored"] == pytest.approx(member["residual"], abs=1e-5)
        assert hm.load(path).project(paths[m + 1]).residual == pytest.approx(member["residual"], abs=2e-3)


def test_the_base_may_be_the_mean_of_another_hyper_model(tmp_path):
    models = family(5, seed=50, dtypes="F16")
    paths = save(tmp_path, models)
    base, _ = make(tmp_path, models, name="base", paths=paths[:3], save_options={"base_low": True})
    path, file = make(tmp_path, models, paths=paths[1:], base=base)
    out = merged(path, [0.5], tmp_path / "y.safetensors").model
    assert set(out) == set(SHAPES)
    for name in SHAPES:
        assert out[name].same(expected(file, name, [0.5], oracle.read(base).weights()))


def test_exact_needs_the_very_models_in_their_order(tmp_path):
    models = family(4, seed=50, dtypes="F16")
    paths = save(tmp_path, models)
    for m, model in enumerate(models):  # another header for each, so that they can be told apart
        oracle.write(paths[m], model, {"which": str(m)})
    path, _ = make(tmp_path, models, paths=paths)
    for wrong in (paths[:3], paths[::-1], [*paths[:3], paths[0]], [*paths, paths[0]]):
        with pytest.raises(hm.Error):
            hm.load(path).merge([1], tmp_path / "y.safetensors", exact=wrong)
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_all_directions_give_the_members_back(tmp_path, dtype):
    """K = M − 1 loses nothing: what is left is `residual_stored`, and nothing but rounding in an exact merge."""
    models = family(4, seed=51, dtypes=dtype)
    paths = save(tmp_path, models)
    path, file = make(tmp_path, models, paths=paths, directions=3)
    for m, member in enumerate(file.document["members"]):
        assert member["residual"] < 1e-3
        out = merged(path, member["multipliers"], tmp_path / f"a{m}.safetensors", dtype="fp32").model
        left = np.sqrt(sum(((out[name].f64() - models[m][name].f64()) ** 2).sum() for name in SHAPES)) / member["norm"]
        assert left <= 1.01 * member["residual_stored"] + 1e-5
        exact = merged(path, member["multipliers"], tmp_path / f"b{m}.safetensors", exact=paths).model
        for name in SHAPES:
            given, found = models[m][name].f64(), exact[name].f64()
            step = 2 * oracle.STEP[dtype] * np.abs(given) + 1e-6 * member["norm"] / np.sqrt(given.size)
            assert (np.abs(found - given) <= step).all()


# ---- carrier and VAE ------------------------------------------------------------------------------------------------

VAE = {"decoder.conv_in.weight": (4, 3, 3), "decoder.conv_in.bias": (4,), "encoder.conv_in.weight": (2, 5)}


def with_vae(models, prefix="first_stage_model."):
    rng = np.random.default_rng(9)
    for model in models:
        model.update({prefix + name: tensor(rng.standard_normal(shape), "F16") for name, shape in VAE.items()})
        model["num_steps"] = tensor(rng.integers(0, 99, 3), "I64")
    return models


def test_the_vae_and_the_rest_come_from_the_carrier(tmp_path):
    models = with_vae(family(4, seed=52, dtypes="F16"))
    paths = save(tmp_path, models)
    path, file = make(tmp_path, models, paths=paths[:3])
    plain = merged(path, [0.5], tmp_path / "plain.safetensors").model
    other = merged(path, [0.5], tmp_path / "other.safetensors", carrier=paths[3]).model
    for name in plain:
        if name in SHAPES:
            assert plain[name].same(other[name])
        else:
            assert plain[name].same(models[0][name]) and other[name].same(models[3][name])
    assert set(other) == set(plain) == set(models[0])


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_another_vae(tmp_path, cli, refused, prefix):
    models = with_vae(family(3, seed=53, dtypes="F16"))
    path, _ = make(tmp_path, models)
    vae = {prefix + name: tensor(np.full(shape, 0.5), "F32") for name, shape in VAE.items()}
    oracle.write(tmp_path / "vae.safetensors", vae)
    done = cli("merge", path.name, "--at", "0.5", "--vae", "vae.safetensors", "-o", "y.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = oracle.read(tmp_path / "y.safetensors").model
    for name in VAE:
        assert np.array_equal(out["first_stage_model." + name].f64(), vae[prefix + name].f64())
    assert set(out) == set(models[0]) and out["num_steps"].same(models[0]["num_steps"])

    oracle.write(tmp_path / "part.safetensors", {name: vae[name] for name in list(vae)[:2]})
    oracle.write(tmp_path / "shape.safetensors", {name: tensor(np.zeros(7), "F32") for name in vae})
    for wrong in ("part.safetensors", "shape.safetensors"):
        assert wrong in refused(tmp_path, "merge", path.name, "--at", "0", "--vae", wrong, "-o", "z.safetensors")


def test_the_vae_is_merged_when_asked_for(tmp_path):
    models = with_vae(family(3, seed=54, dtypes="F16"))
    path, file = make(tmp_path, models, include=["first_stage_model.*"])
    assert {name.split(".", 3)[3] for name in file.model if name.startswith("hypermerge.direction.1.")} == {
        "first_stage_model." + name for name in VAE
    }
    out = merged(path, [1], tmp_path / "y.safetensors").model
    assert all(out[name].same(models[0][name]) for name in SHAPES)


# ---- project --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, (1, 4, 0.3, 2)])
@pytest.mark.parametrize("base", ["mean", "file", "none"])
@pytest.mark.parametrize("saved", [False, True])
def test_members_and_newcomers_are_projected_to_where_they_are(tmp_path, base, saved, weights):
    models = family(6, seed=55, dtypes="F16")
    paths = save(tmp_path, models)
    origin = paths[0] if base == "file" else base
    hyper = hm.solve(paths[1:5], origin, weights=weights)
    if saved:
        hyper.save(tmp_path / "x.hyper.safetensors")
        hyper = hm.load(tmp_path / "x.hyper.safetensors")
    rows = oracle.stacked(models, list(SHAPES))
    truth = oracle.solve(rows[1:5], rows[0] if base == "file" else base, weights=weights)
    close = 3e-3 if saved else 1e-4  # a saved direction is rounded to f16
    for m in range(1, 6):
        found = hyper.project(paths[m])
        x = rows[m] - truth.base
        wanted, *_ = np.linalg.lstsq(truth.directions.T, x, rcond=None)
        left = np.linalg.norm(x - wanted @ truth.directions) / np.linalg.norm(x)
        assert found.multipliers == pytest.approx(wanted, abs=close)
        assert found.residual == pytest.approx(left, abs=close)
        assert found.norm == pytest.approx(np.linalg.norm(x), rel=close)
        if m < 5:
            assert found.multipliers == pytest.approx(hyper.members[m - 1].multipliers, abs=close)
            assert found.residual == pytest.approx(hyper.members[m - 1].residual, abs=close)
        assert found.name == f"m{m}"


def test_project_by_the_command_line_and_from_memory(tmp_path, cli):
    models = family(4, seed=56, dtypes="BF16")
    paths = save(tmp_path, models)
    path, file = make(tmp_path, models, paths=paths[:3])
    answer = json.loads(cli("project", path, *paths, "--json").stdout)
    assert set(answer) == {"models"} and [entry["name"] for entry in answer["models"]] == ["m0", "m1", "m2", "m3"]
    arrays = [{name: item.f64().astype(np.float32) for name, item in model.items()} for model in models]
    for entry, array in zip(answer["models"], arrays):
        found = hm.load(path).project(array, name="here")
        assert list(found.multipliers) == pytest.approx(entry["multipliers"], rel=1e-9)
        assert found.residual == pytest.approx(entry["residual"], rel=1e-9) and found.name == "here"


@pytest.mark.parametrize("how", ["globs", "common"])
def test_only_what_was_merged_is_projected(tmp_path, how):
    models = with_vae(family(4, seed=56, dtypes="F16"))
    if how == "globs":
        options = {"include": [UNET + "*"], "exclude": ["*.bias"]}
    else:
        options = {"common": True}
        models[2] = {
            name: item for name, item in models[2].items() if not name.startswith("cond") and "bias" not in name
        }
    paths = save(tmp_path, models)
    hyper = hm.solve(paths[:3], **options)
    hyper.save(tmp_path / "x.hyper.safetensors")
    names = [name for name in SHAPES if name.startswith(UNET) and "bias" not in name]
    rows = oracle.stacked(models, names)
    truth = oracle.solve(rows[:3])
    newcomers = [*paths, {name: models[3][name].stored for name in names}]
    for x, row in zip(newcomers, [*rows, rows[3]]):
        wanted, *_ = np.linalg.lstsq(truth.directions.T, row - truth.base, rcond=None)
        for found in (hyper, hm.load(tmp_path / "x.hyper.safetensors")):
            if isinstance(x, dict) and found is hyper and how == "common":
                continue  # a solved one looks for what its inputs share, and this one would change that
            assert found.project(x).multipliers == pytest.approx(wanted, abs=3e-3)
            assert found.project(x).norm == pytest.approx(np.linalg.norm(row - truth.base), rel=1e-3)


def test_the_blend_of_a_hyper_model_lies_where_it_was_made(tmp_path):
    models = family(5, seed=57, dtypes="F16")
    path, file = make(tmp_path, models)
    for at in ([0.4, -0.3], [0, 0], [2, 1]):
        hm.load(path).merge(at, tmp_path / "y.safetensors", dtype="fp32")
        found = hm.load(path).project(tmp_path / "y.safetensors")
        assert found.multipliers == pytest.approx(at, abs=1e-5)
        assert found.residual < 1e-3 or at == [0, 0]  # its square is what inner products know to 1e-6


def test_a_model_that_does_not_fit_is_refused(tmp_path, refused):
    models = family(3, seed=58, dtypes="F16")
    path, _ = make(tmp_path, models)
    lacking = {name: item for name, item in models[0].items() if "middle" not in name}
    other = {**models[0], UNET + "middle_block.0.weight": tensor(np.zeros((3, 3)), "F16")}
    nan = {name: with_nan(item) for name, item in models[0].items()}
    for name, model in (("lacking", lacking), ("other", other), ("nan", nan)):
        oracle.write(tmp_path / f"{name}.safetensors", model)
        assert name in refused(tmp_path, "project", path.name, f"{name}.safetensors")


def with_nan(item: oracle.Tensor) -> oracle.Tensor:
    stored = item.stored.copy()
    stored.reshape(-1)[-1] = np.nan
    return oracle.Tensor(item.dtype, stored)


# ---- recover and compare --------------------------------------------------------------------------------------------


def mixture(models, weights, dtype="F16"):
    return {name: tensor(sum(w * m[name].f64() for w, m in zip(weights, models)), dtype) for name in models[0]}


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_the_recipe_of_a_mixture(tmp_path, dtype):
    models = family(5, seed=59, dtypes=dtype)
    weights = [0.5, 0.2, -0.1, 0.3, 0.1]
    paths = save(tmp_path, models)
    oracle.write(tmp_path / "mix.safetensors", mixture(models, weights, dtype))
    answer = hm.recover(tmp_path / "mix.safetensors", paths)
    assert answer["weights"] == pytest.approx(weights, abs=1e-3)
    assert sum(answer["weights"]) == pytest.approx(1, abs=1e-9)
    rows = oracle.stacked([*models, mixture(models, weights, dtype)], list(SHAPES))
    left = rows[5] - np.array(answer["weights"]) @ rows[:5]
    about = np.linalg.norm(rows[5] - rows[:5].mean(0))
    assert answer["residual"] == pytest.approx(np.linalg.norm(left) / about, abs=1e-3)
    assert answer["rms"] == pytest.approx(np.sqrt((left**2).mean()), rel=0.05, abs=1e-3 * about / np.sqrt(left.size))
    free = hm.recover(tmp_path / "mix.safetensors", paths, free=True)
    wanted, *_ = np.linalg.lstsq(rows[:5].T, rows[5], rcond=None)
    assert free["weights"] == pytest.approx(wanted, abs=5e-3)


def test_a_free_recipe_need_not_sum_to_one(tmp_path):
    models = family(3, seed=60, delta=0.5)
    scaled = mixture(models, [0.5, 0.7, 0.4], "F32")
    answer = hm.recover({name: item.stored for name, item in scaled.items()}, save(tmp_path, models), free=True)
    assert answer["weights"] == pytest.approx([0.5, 0.7, 0.4], abs=1e-3)
    assert answer["residual"] < 0.01


def test_a_recipe_per_block(tmp_path, cli):
    models = family(3, seed=61, dtypes="F16")
    recipes = {"input": [0.7, 0.3, 0.0], "other": [0.1, 0.1, 0.8]}
    mixed = {name: mixture(models, recipes["input" if "input_blocks" in name else "other"])[name] for name in SHAPES}
    paths = save(tmp_path, models)
    oracle.write(tmp_path / "mix.safetensors", mixed)
    done = cli("recover", "mix.safetensors", "--from", *paths, "--blocks", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["residual"] > 0.1
    for block in ("input_blocks.0", "input_blocks.1"):
        assert answer["blocks"][block]["weights"] == pytest.approx(recipes["input"], abs=1e-3)
        assert answer["blocks"][block]["residual"] < 0.02
    assert answer["blocks"]["middle_block"]["weights"] == pytest.approx(recipes["other"], abs=1e-3)


def test_a_recipe_is_found_for_a_denoiser_alone(tmp_path):
    models = family(3, seed=61, dtypes="F16")
    paths = save(tmp_path, models)
    mixed = {name: item for name, item in mixture(models, [0.25, 0.75, 0]).items() if name.startswith(UNET)}
    oracle.write(tmp_path / "mix.safetensors", mixed)
    assert hm.recover(tmp_path / "mix.safetensors", paths)["weights"] == pytest.approx([0.25, 0.75, 0], abs=1e-3)


def test_recovery_with_equal_parents_and_one_parent(tmp_path):
    models = family(3, seed=62)
    paths = save(tmp_path, [models[0], models[1], models[0]])
    arrays = {name: item.stored for name, item in mixture(models, [0.5, 0.5, 0], "F32").items()}
    weights = hm.recover(arrays, paths)["weights"]
    assert weights[0] + weights[2] == pytest.approx(0.5, abs=1e-3) and weights[1] == pytest.approx(0.5, abs=1e-3)
    assert hm.recover(arrays, paths[:1])["weights"] == [1]


def hull_distance(rows: np.ndarray, m: int) -> float:
    """Distance of a point to the affine hull of the others, by least squares on the points themselves."""
    others = np.delete(rows, m, 0)
    span = (others[1:] - others[0]).T
    x = rows[m] - others[0]
    if span.shape[1] == 0:
        return float(np.linalg.norm(x))
    return float(np.linalg.norm(x - span @ np.linalg.lstsq(span, x, rcond=None)[0]))


@pytest.mark.parametrize("count", [2, 3, 6, 12])
def test_compare(tmp_path, cli, count):
    models = family(count, seed=63, dtypes="F16")
    answer = json.loads(cli("compare", *save(tmp_path, models), "--json", cwd=tmp_path).stdout)
    rows = oracle.stacked(models, list(SHAPES))
    centred = rows - rows.mean(0)
    gram = centred @ centred.T
    norm = np.sqrt(np.diag(gram))
    assert np.array(answer["gram"]) == pytest.approx(gram, abs=1e-6 * gram.max())
    assert np.array(answer["cosine"]) == pytest.approx(gram / np.outer(norm, norm), abs=1e-5)
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    assert np.array(answer["distance"]) == pytest.approx(distance, rel=1e-5)
    hull = [hull_distance(rows, m) for m in range(count)]
    assert answer["distance_to_others"] == pytest.approx(hull, rel=1e-3)
    assert answer["duplicates"] == [] and answer["models"] == [f"m{i}" for i in range(count)]


def test_duplicates_and_models_inside_the_hull_of_others(tmp_path, cli):
    models = family(3, seed=64)
    inside = mixture(models, [0.2, 0.5, 0.3], "F64")
    paths = save(tmp_path, [models[0], models[1], models[0], models[2], models[1], models[0]])
    answer = json.loads(cli("compare", *paths, "--json").stdout)
    assert answer["duplicates"] == [["m0", "m2", "m5"], ["m1", "m4"]]
    assert answer["distance"][0][2] == answer["distance"][1][4] == 0
    assert answer["distance_to_others"][0] == answer["distance_to_others"][1] == 0
    arrays = [{name: item.stored for name, item in model.items()} for model in (*models, inside)]
    compared = hm.compare(arrays)
    assert compared["distance_to_others"][3] == pytest.approx(0, abs=1e-3 * compared["norm"][0])
    assert (
        min(compared["distance_to_others"][:3]) < 1e-3 * compared["norm"][0]
    )  # each is in the hull of the others then


def test_similar_models_are_no_duplicates(tmp_path):
    models = family(3, seed=64)
    close = {
        name: tensor(0.999 * item.f64() + 0.001 * models[1][name].f64(), "F32") for name, item in models[0].items()
    }
    answer = hm.compare(save(tmp_path, [*models, close]))
    assert answer["duplicates"] == []
    assert answer["distance"][0][3] == pytest.approx(0.001 * answer["distance"][0][1], rel=0.01)


def test_the_same_weights_in_another_type_are_duplicates(tmp_path):
    first, second = family(2, seed=65, dtypes="F16")
    wide = {name: tensor(item.f64(), "F32") for name, item in first.items()}
    assert hm.compare(save(tmp_path, [first, second, wide]))["duplicates"] == [["m0", "m2"]]
