"""LoRAs out of hyper-models and of pairs, against NumPy's singular values in f64; the files are applied by independent code."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import hypermerge_ext as hm
import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

GOLDEN = Path(__file__).parent / "golden"
RNG = np.random.default_rng(8)
SHAPES = {
    "model.diffusion_model.x_embedder.proj.weight": (48, 16, 2, 2),
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (96, 48),
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias": (96,),
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (40, 130),
    "model.diffusion_model.joint_blocks.0.x_block.norm.weight": (48,),
    "model.diffusion_model.pos_embed": (1, 9, 48),
    "model.diffusion_model.final_layer.linear.weight": (7, 48),
}


def decaying(shape: tuple[int, ...], power: float = 1.0) -> np.ndarray:
    """A matrix (or kernel) whose singular values fall like i^−power."""
    rows, columns = shape[0], int(np.prod(shape[1:], dtype=int))
    side = min(rows, columns)
    left = np.linalg.qr(RNG.standard_normal((rows, side)))[0]
    right = np.linalg.qr(RNG.standard_normal((columns, side)))[0]
    return ((left * np.arange(1, side + 1.0) ** -power) @ right.T).reshape(shape)


def models(folder: Path, count: int = 3, dtype=np.float16) -> list[Path]:
    base = {name: 0.05 * RNG.standard_normal(shape) for name, shape in SHAPES.items()}
    paths = []
    for m in range(count):
        path = folder / f"m{m}.safetensors"
        save_file({n: (w + 0.02 * decaying(w.shape)).astype(dtype) for n, w in base.items()}, path)
        paths.append(path)
    return paths


def layers(path: Path) -> dict[str, np.ndarray]:
    """What a LoRA file adds at strength 1, layer by layer, by its alpha and factors alone."""
    file = load_file(path)
    out = {}
    for name in file:
        if not name.endswith(".lora_up.weight"):
            continue
        layer = name.removesuffix(".lora_up.weight")
        up, down = file[name].astype(float), file[f"{layer}.lora_down.weight"].astype(float)
        rank = down.shape[0]
        assert up.shape[1] == rank and all(side == 1 for side in up.shape[2:])
        scale = float(file[f"{layer}.alpha"]) / rank
        out[layer] = scale * (up.reshape(len(up), rank) @ down.reshape(rank, -1)).reshape(len(up), *down.shape[1:])
    return out


def direction(path: Path, k: int = 1) -> dict[str, np.ndarray]:
    start = f"hypermerge.direction.{k}."
    return {n.removeprefix(start): w.astype(float) for n, w in load_file(path).items() if n.startswith(start)}


def comfyui(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight")


def optimum(matrix: np.ndarray, rank: int) -> float:
    """‖A − best of rank‖."""
    singular = np.linalg.svd(matrix.reshape(len(matrix), -1), compute_uv=False)
    return float(np.sqrt((singular[rank:] ** 2).sum()))


@pytest.fixture
def saved(tmp_path) -> Path:
    hyper = hm.solve(models(tmp_path), directions=2)
    hyper.save(tmp_path / "f.hyper.safetensors")
    return tmp_path / "f.hyper.safetensors"


@pytest.mark.parametrize("dtype, slack", [("fp16", 2e-3), ("fp32", 1e-5)])
def test_each_layer_is_the_best_of_its_rank(saved, tmp_path, dtype, slack):
    path = tmp_path / "l.safetensors"
    report = hm.load(saved).lora(path, direction=1, rank=5, dtype=dtype, format="comfyui")
    found, wanted = layers(path), direction(saved)
    square = rest = 0.0
    matrices = {n: w for n, w in wanted.items() if w.ndim in (2, 4)}
    assert set(found) == {comfyui(n) for n in matrices} and report["tensors"] == len(matrices)
    for name, delta in matrices.items():
        layer = found[comfyui(name)]
        assert layer.shape == delta.shape
        left = np.linalg.norm(delta - layer)
        assert left <= 1.002 * optimum(delta, 5) + slack * np.linalg.norm(delta)
        square, rest = square + np.linalg.norm(delta) ** 2, rest + left**2
    assert report["relative_error"] == pytest.approx(np.sqrt(rest / square), rel=1e-3)
    assert report["relative_error_unrounded"] <= report["relative_error"] * (1 + 1e-6)
    lost = sum(np.linalg.norm(w) ** 2 for n, w in wanted.items() if n not in matrices)
    assert report["not_carried"]["share"] == pytest.approx(lost / (lost + square), rel=1e-3)
    assert report["not_carried"]["tensors"] == len(wanted) - len(matrices)
    assert report["bytes"] == path.stat().st_size


def test_bf16_factors_are_measured_as_stored(saved, tmp_path):
    path = tmp_path / "l.safetensors"
    report = hm.load(saved).lora(path, direction=1, rank=5, dtype="bf16", format="comfyui")
    file, square, rest = load_torch(path), 0.0, 0.0
    for name, delta in direction(saved).items():
        if delta.ndim not in (2, 4):
            continue
        layer = comfyui(name)
        up, down = (file[f"{layer}.lora_{side}.weight"] for side in ("up", "down"))
        assert up.dtype == torch.bfloat16
        delta = delta.reshape(len(delta), -1)
        left = delta - up.double().flatten(1).numpy() @ down.double().flatten(1).numpy()
        square, rest = square + (delta**2).sum(), rest + (left**2).sum()
    assert report["relative_error"] == pytest.approx(np.sqrt(rest / square), rel=1e-3)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_alpha_is_the_rank_in_every_type(tmp_path, dtype, rank=301):
    """301 is no number of bf16: rounded, it would scale the layer."""
    for number in (0, 1):
        state = {"model.diffusion_model.layer.weight": RNG.standard_normal((304, 304)).astype(np.float32)}
        save_file(state, tmp_path / f"{number}.safetensors")
    pair = tmp_path / "0.safetensors", tmp_path / "1.safetensors"
    hm.lora(*pair, tmp_path / "l.safetensors", rank=rank, dtype=dtype)
    file = load_torch(tmp_path / "l.safetensors")
    assert file["diffusion_model.layer.lora_down.weight"].shape[0] == rank
    assert file["diffusion_model.layer.alpha"].item() == rank


def test_blocks_share_the_whole(saved, tmp_path):
    report = hm.load(saved).lora(tmp_path / "l.safetensors", direction=1, rank=5, dtype="fp32", format="comfyui")
    found, wanted = layers(tmp_path / "l.safetensors"), direction(saved)
    total = sum(float((w**2).sum()) for w in wanted.values())
    block = report["blocks"]["joint_blocks.0"]
    inside = [n for n in wanted if ".joint_blocks.0." in n and wanted[n].ndim in (2, 4)]
    square = sum(float((wanted[n] ** 2).sum()) for n in inside)
    rest = sum(float(((wanted[n] - found[comfyui(n)]) ** 2).sum()) for n in inside)
    assert len(inside) == 2 and block["share"] == pytest.approx(square / total, rel=1e-4)
    assert block["relative_error"] == pytest.approx(np.sqrt(rest / square), rel=1e-3)
    shares = sum(entry["share"] for entry in report["blocks"].values())
    assert shares + report["not_carried"]["share"] == pytest.approx(1, rel=1e-6)


def rewritten(path: Path, change) -> Path:
    """The hyper-model with `change` made to its tensors."""
    with safetensors.safe_open(path, "np") as file:
        meta = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, meta)
    return path


def test_a_low_rank_direction_becomes_a_lora(saved, tmp_path):
    wanted: dict[str, np.ndarray] = {}

    def factor(state: dict[str, np.ndarray]) -> None:
        for name in ("x_embedder.proj", "joint_blocks.0.x_block.attn.qkv"):
            shape = SHAPES[f"model.diffusion_model.{name}.weight"]
            stem = f"hypermerge.direction.2.model.diffusion_model.{name}.weight"
            del state[stem]
            up = RNG.standard_normal((shape[0], 3, *[1] * (len(shape) - 2))).astype(np.float32)
            down = RNG.standard_normal((3, *shape[1:])).astype(np.float32)
            state[stem + ".lora_up"], state[stem + ".lora_down"] = up, down
            product = up.reshape(-1, 3).astype(float) @ down.reshape(3, -1).astype(float)
            wanted[f"diffusion_model.{name}"] = product.reshape(shape)

    hyper = hm.load(rewritten(saved, factor))
    hyper.lora(tmp_path / "l.safetensors", direction=2, rank=5, dtype="fp32", format="comfyui")
    found = layers(tmp_path / "l.safetensors")
    for layer, product in wanted.items():
        np.testing.assert_allclose(found[layer], product, atol=1e-5 * np.abs(product).max())


def test_directions_of_different_shapes_are_refused_without_the_base_too(tmp_path):
    paths = models(tmp_path)
    hm.solve(paths[1:], base=paths[0], directions=2).save(tmp_path / "h.hyper.safetensors")
    stem = "hypermerge.direction.2.model.diffusion_model.final_layer.linear.weight"
    rewritten(tmp_path / "h.hyper.safetensors", lambda state: state.update({stem: state[stem][:2].copy()}))
    paths[0].unlink()
    with pytest.raises(hm.FormatError, match="final_layer.linear.weight.*shape"):
        hm.load(tmp_path / "h.hyper.safetensors").lora(tmp_path / "l.safetensors", at=[1, 1], rank=2)
    assert not (tmp_path / "l.safetensors").exists()


def test_memory_that_went_away_is_not_read(tmp_path):
    states = [{n: w.clone() for n, w in load_torch(path).items()} for path in models(tmp_path, 2)]
    hyper = hm.solve(states, directions=1)
    states[0]["model.diffusion_model.final_layer.linear.weight"].untyped_storage().resize_(0)
    with pytest.raises(hm.Error, match="freed or moved"):
        hyper.lora(tmp_path / "l.safetensors", direction=1)


def test_full_rank_gives_the_direction_back(saved, tmp_path):
    hm.load(saved).lora(tmp_path / "l.safetensors", direction=2, rank=1000, dtype="fp32", format="comfyui")
    found = layers(tmp_path / "l.safetensors")
    for name, delta in direction(saved, 2).items():
        if delta.ndim in (2, 4):
            np.testing.assert_allclose(found[comfyui(name)], delta, atol=2e-6 * np.abs(delta).max())


def test_a_blend_is_the_blend_of_its_directions(saved, tmp_path):
    hm.load(saved).lora(tmp_path / "l.safetensors", at=[0.5, -1.25], rank=1000, dtype="fp32", format="comfyui")
    first, second, found = direction(saved), direction(saved, 2), layers(tmp_path / "l.safetensors")
    for name in first:
        if first[name].ndim in (2, 4):
            wanted = 0.5 * first[name] - 1.25 * second[name]
            np.testing.assert_allclose(found[comfyui(name)], wanted, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("base", ["mean", "none", "file"])
def test_a_solved_model_gives_what_a_saved_one_gives(tmp_path, base):
    paths = models(tmp_path, dtype=np.float32)
    hyper = hm.solve(paths[1:] if base == "file" else paths, base=paths[0] if base == "file" else base, directions=1)
    hyper.lora(tmp_path / "solved.safetensors", direction=1, rank=4, dtype="fp32", format="comfyui")
    hyper.save(tmp_path / "h.hyper.safetensors")
    hyper.lora(tmp_path / "saved.safetensors", direction=1, rank=4, dtype="fp32", format="comfyui")
    solved, stored = layers(tmp_path / "solved.safetensors"), layers(tmp_path / "saved.safetensors")
    assert set(solved) == set(stored) and solved
    for layer in solved:
        np.testing.assert_allclose(solved[layer], stored[layer], atol=1e-4 * np.abs(stored[layer]).max())


def test_a_pair(tmp_path):
    first, second = models(tmp_path, 2)
    report = hm.lora(first, second, tmp_path / "l.safetensors", rank=6, whole=True, format="comfyui")
    a, b, found = load_file(first), load_file(second), layers(tmp_path / "l.safetensors")
    for name, layer in ((n, comfyui(n)) for n in SHAPES if len(SHAPES[n]) in (2, 4)):
        delta = b[name].astype(float) - a[name].astype(float)
        assert np.linalg.norm(delta - found[layer]) <= 1.002 * optimum(delta, 6) + 2e-3 * np.linalg.norm(delta)
    file = load_file(tmp_path / "l.safetensors")
    block = "diffusion_model.joint_blocks.0.x_block."
    for name, key in ((f"{block}attn.qkv.bias", f"{block}attn.qkv.diff_b"), (f"{block}norm.weight", f"{block}norm.diff")):
        exact = b[f"model.{name}"].astype(np.float32) - a[f"model.{name}"].astype(np.float32)
        np.testing.assert_array_equal(file[key], exact.astype(np.float16))
    assert report["not_carried"]["tensors"] == 1  # pos_embed


def test_equal_checkpoints_give_zeros(tmp_path):
    (path,) = models(tmp_path, 1)
    report = hm.lora(path, path, tmp_path / "l.safetensors", rank=4)
    assert report["relative_error"] == 0 and all((w == 0).all() for w in layers(tmp_path / "l.safetensors").values())


def greedy(deltas: list[np.ndarray], numbers: int) -> float:
    """‖rest‖² when that many numbers are spent by the largest σ² per number first, by full decompositions."""
    offers = []
    for delta in deltas:
        matrix = delta.reshape(len(delta), -1)
        offers += [(s * s / sum(matrix.shape), sum(matrix.shape), s * s) for s in np.linalg.svd(matrix, compute_uv=False)]
    rest = sum(float((d**2).sum()) for d in deltas)
    for _, cost, gain in sorted(offers, reverse=True):
        if cost <= numbers:
            numbers, rest = numbers - cost, rest - gain
    return rest


def test_a_size_is_kept_and_spent_where_it_helps_most(saved, tmp_path):
    hyper, path = hm.load(saved), tmp_path / "l.safetensors"
    fixed = hyper.lora(tmp_path / "fixed.safetensors", direction=1, rank=6, format="comfyui")
    budget = fixed["bytes"] + 20_000  # what is kept free for names and metadata
    shared = hyper.lora(path, direction=1, size=budget, format="comfyui")
    assert path.stat().st_size <= budget
    assert shared["relative_error"] < fixed["relative_error"]
    deltas = [d for d in direction(saved).values() if d.ndim in (2, 4)]
    file = load_file(path)
    numbers = sum(w.size for n, w in file.items() if ".lora_" in n)
    total = sum(float((d**2).sum()) for d in deltas)
    assert shared["relative_error"] ** 2 * total <= greedy(deltas, numbers) * 1.01 + 1e-6 * total


@pytest.mark.parametrize("error", [0.5, 0.1, 0.01])
def test_an_error_is_reached(saved, tmp_path, error):
    report = hm.load(saved).lora(tmp_path / "l.safetensors", direction=1, error=error, dtype="fp32", format="comfyui")
    assert report["relative_error"] <= error * 1.002
    deltas = [d for d in direction(saved).values() if d.ndim in (2, 4)]
    spent = sum(w.size for n, w in load_file(tmp_path / "l.safetensors").items() if ".lora_" in n)
    total = sum(float((d**2).sum()) for d in deltas)
    # With a tenth fewer numbers not even full decompositions reach it.
    assert greedy(deltas, int(0.9 * spent)) > error**2 * total


def test_the_report_does_not_tell_which_thread_came_first(tmp_path):
    """Shares were sums in the order in which threads came to their ends: their last digits changed from run to run."""
    rng = np.random.default_rng(31)
    shapes = {**SHAPES, **{f"model.diffusion_model.pos_embed.{i}": (1, 40 + i, 48) for i in range(8)}}
    states = [{n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()} for _ in range(2)]
    hyper = hm.solve(states, directions=1)
    hyper.save(tmp_path / "x.hyper.safetensors")
    hyper = hm.load(tmp_path / "x.hyper.safetensors")
    reports = {
        json.dumps(hyper.lora(tmp_path / "l.safetensors", direction=1, rank=2, format="comfyui", threads=1 + turn % 7))
        for turn in range(60)
    }
    assert len(reports) == 1


def test_any_number_of_threads_writes_the_same_bytes(saved, tmp_path):
    written = set()
    for threads in (1, 2, 5):
        hm.load(saved).lora(tmp_path / "l.safetensors", at=[1, 1], rank=8, threads=threads, memory_budget=16 << 20)
        written.add((tmp_path / "l.safetensors").read_bytes())
    assert len(written) == 1


def shrunk(golden: str) -> dict[str, tuple[int, ...]]:
    """The golden names with small shapes of the same kind; the width of the text features tells the family."""
    file = GOLDEN / f"{golden}.json.gz"
    shapes = {}
    for name, (shape, dtype) in json.loads(gzip.decompress(file.read_bytes())).items():
        if "float" not in dtype or name.startswith("first_stage"):
            continue
        small = [min(side, 3) for side in shape]
        if name.endswith("attn2.to_k.weight"):
            small[1] = shape[1]
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            small[0] = 6
        shapes[name] = tuple(small)
    return shapes


def golden_pair(folder: Path, golden: str) -> tuple[Path, Path]:
    shapes = shrunk(golden)
    for number in (0, 1):
        state = {name: RNG.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
        save_file(state, folder / f"{number}.safetensors")
    return folder / "0.safetensors", folder / "1.safetensors"


def test_kohya_names_of_sd15(tmp_path):
    first, second = golden_pair(tmp_path, "sd15")
    report = hm.lora(first, second, tmp_path / "l.safetensors", rank=3)
    names = json.loads((GOLDEN / "sd15-lora-names.json").read_text())
    assert report["format"] == "kohya" and set(layers(tmp_path / "l.safetensors")) == set(names.values())
    with safetensors.safe_open(tmp_path / "l.safetensors", "np") as file:
        meta = file.metadata()
    assert meta["ss_base_model_version"] == "sd_v1" and meta["ss_network_module"] == "networks.lora"
    assert meta["ss_network_dim"] == meta["ss_network_alpha"] == "3"
    assert meta["modelspec.architecture"] == "stable-diffusion-v1/lora" and meta["modelspec.resolution"] == "512x512"
    recipe = json.loads(meta["sd_merge_recipe"])
    assert recipe["type"] == "hyper-merge" and recipe["from"]["name"] == "0" and recipe["to"]["name"] == "1"


def test_kohya_names_of_sdxl_split_the_fused_projection(tmp_path):
    first, second = golden_pair(tmp_path, "sdxl")
    hm.lora(first, second, tmp_path / "l.safetensors", rank=6, dtype="fp32")
    found = layers(tmp_path / "l.safetensors")
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in found
    assert "lora_te1_text_model_encoder_layers_11_mlp_fc2" in found
    fused = "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight"
    delta = load_file(second)[fused].astype(float) - load_file(first)[fused].astype(float)
    for part, letter in enumerate("qkv"):
        layer = found[f"lora_te2_text_model_encoder_layers_31_self_attn_{letter}_proj"]
        np.testing.assert_allclose(layer, delta[2 * part : 2 * part + 2], atol=1e-5)


def test_what_cannot_be_is_refused(saved, tmp_path, snapshot):
    hyper, before = hm.load(saved), None
    inputs = models(tmp_path, 2)
    before = snapshot(tmp_path)
    out = tmp_path / "l.safetensors"
    cases = [
        (lambda: hyper.lora(out, direction=1, format="kohya"), "comfyui"),
        (lambda: hyper.lora(out, direction=1, format="diffusers"), "comfyui"),
        (lambda: hyper.lora(out, direction=1, format="what"), "unknown format"),
        (lambda: hyper.lora(out, direction=3), "there are 2"),
        (lambda: hyper.lora(out, at=[1, 2, 3]), "3 multipliers"),
        (lambda: hyper.lora(out, at=[0, 0]), "change nothing"),
        (lambda: hyper.lora(out), "either"),
        (lambda: hyper.lora(out, direction=1, rank=4, size=10**6), "exclude one another"),
        (lambda: hyper.lora(out, direction=1, rank=0), "greater than 0"),
        (lambda: hyper.lora(out, direction=1, rank=2**32 + 4), "between 0 and"),
        (lambda: hyper.lora(out, direction=1, rank=5000), "too large"),
        (lambda: hyper.lora(out, direction=1, size=2**64 + 10**6), "between 0 and"),
        (lambda: hyper.lora(out, direction=1, size=17_500, whole=True), "too few"),
        (lambda: hm.lora(inputs[0], inputs[0], out, size=10**6), "no difference"),
        (lambda: hm.lora(inputs[0], inputs[0], out, error=0.1), "no difference"),
        (lambda: hyper.lora(out, direction=1, error=1.5), "between 0 and 1"),
        (lambda: hyper.lora(out, direction=1, size=100), "too few"),
        (lambda: hyper.lora(saved, direction=1), "one of the inputs"),
        (lambda: hyper.lora(inputs[0], direction=1), "not written by hyper-merge"),
        (lambda: hm.lora(inputs[0], inputs[1], inputs[1]), "one of the inputs"),
    ]
    for call, words in cases:
        with pytest.raises(hm.Error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_by_name(tmp_path, bad):
    first, second = models(tmp_path, 2)
    state = load_file(second)
    name = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    state[name] = state[name].copy()
    state[name][3, 4] = bad
    save_file(state, second)
    with pytest.raises(hm.MismatchError, match="qkv.weight.*NaN or Inf"):
        hm.lora(first, second, tmp_path / "l.safetensors")
    assert not (tmp_path / "l.safetensors").exists()


def test_cancel_leaves_nothing(saved, tmp_path, snapshot):
    before = snapshot(tmp_path)

    def stop(done: int, total: int) -> None:
        raise InterruptedError("enough")

    with pytest.raises(InterruptedError):
        hm.load(saved).lora(tmp_path / "l.safetensors", direction=1, progress=stop)
    assert snapshot(tmp_path) == before


def test_the_slider_pack_is_the_hyper_model_for_any_host(saved, tmp_path):
    hyper = hm.load(saved)
    reports = hyper.slider_pack(tmp_path / "p.safetensors", rank=1000, dtype="fp32", whole=True, format="comfyui")
    assert len(reports) == 2
    base = load_file(tmp_path / "p-base.safetensors")
    loras = [layers(tmp_path / f"p-{k}.safetensors") for k in (1, 2)]
    hyper.merge([0.5, -0.25], tmp_path / "merged.safetensors", dtype="fp32")
    merged = load_file(tmp_path / "merged.safetensors")
    for name, shape in SHAPES.items():
        if len(shape) in (2, 4):
            blend = base[name] + 0.5 * loras[0][comfyui(name)] - 0.25 * loras[1][comfyui(name)]
            np.testing.assert_allclose(blend, merged[name], atol=2e-4)
    lines = (tmp_path / "p.txt").read_text().splitlines()
    for member in hyper.members:
        tokens = " ".join(f"<lora:p-{k + 1}:{c:.4g}>" for k, c in enumerate(member.multipliers))
        assert any(line.startswith(member.name) and tokens in line for line in lines)
    (tmp_path / "q.txt").write_text("mine")
    with pytest.raises(hm.Error, match="not written by hyper-merge"):
        hyper.slider_pack(tmp_path / "q.safetensors")
    assert (tmp_path / "q.txt").read_text() == "mine" and not (tmp_path / "q-1.safetensors").exists()


def test_the_text_of_a_pack_tells_what_its_loras_miss(saved, tmp_path):
    """It told what the directions miss, as if the LoRAs were the directions."""
    hyper = hm.load(saved)
    hyper.slider_pack(tmp_path / "p.safetensors", rank=2, dtype="fp32", format="comfyui")
    lines = (tmp_path / "p.txt").read_text().splitlines()
    base = load_file(tmp_path / "p-base.safetensors")
    for k in (1, 2):
        hyper.merge([float(k == 1), float(k == 2)], tmp_path / "one.safetensors", dtype="fp32")
        one, lora = load_file(tmp_path / "one.safetensors"), layers(tmp_path / f"p-{k}.safetensors")
        direction = {name: one[name] - np.float32(base[name]) for name in SHAPES}
        rest = {name: d - lora[comfyui(name)] if comfyui(name) in lora else d for name, d in direction.items()}
        missed = sum(np.sum(d.astype(float) ** 2) for d in rest.values()) / sum(
            np.sum(d.astype(float) ** 2) for d in direction.values()
        )
        (line,) = [line for line in lines if line.startswith(f"# p-{k} itself misses ")]
        assert float(line.split()[4]) == pytest.approx(100 * missed**0.5, abs=0.3) and missed > 0.01


def test_a_slider_pack_that_cannot_be_whole_is_not_begun(saved, tmp_path, snapshot):
    paths = [tmp_path / f"m{m}.safetensors" for m in range(3)]
    (tmp_path / "p-2.safetensors").write_bytes(paths[0].read_bytes())
    hm.solve(paths, base="none", directions=1).save(tmp_path / "none.hyper.safetensors")
    hm.solve(paths[1:], base=paths[0], directions=1).save(tmp_path / "linked.hyper.safetensors")
    paths[0].unlink()
    before = snapshot(tmp_path)
    for name, words in (("f", "p-2.*not written by"), ("none", "no base"), ("linked", "base m0.* was not found")):
        with pytest.raises(hm.Error, match=words):
            hm.load(tmp_path / f"{name}.hyper.safetensors").slider_pack(tmp_path / "p.safetensors", rank=2)
    assert snapshot(tmp_path) == before


def test_command_line(saved, tmp_path, cli, refused):
    done = cli("lora", saved, "--direction", "1", "--rank", "4", "-o", "l.safetensors", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["tensors"] == 4 and report["bytes"] == (tmp_path / "l.safetensors").stat().st_size
    assert 0 < report["relative_error"] < 1
    done = cli("lora", saved, "--at", "-0.3,0.2", "--error", "0.2", "--diff", "-o", "l.safetensors", cwd=tmp_path)
    assert done.returncode == 0 and "misses" in done.stdout and "wrote l.safetensors" in done.stdout
    done = cli("lora", saved, "--directions", "all", "--size", "1MB", "-o", "pack.safetensors", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["loras"]) == 2 and all(Path(file).exists() for file in answer["files"] if Path(file).is_absolute())
    done = cli("lora", "--from", "m0.safetensors", "--to", "m1.safetensors", "-o", "d.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for wrong in (
        ["lora", saved, "-o", "x.safetensors"],
        ["lora", "--from", "m0.safetensors", "-o", "x.safetensors"],
        ["lora", saved, "--direction", "9", "-o", "x.safetensors"],
        ["lora", saved, "--direction", "1", "--rank", "4", "--size", "1MB", "-o", "x.safetensors"],
        ["lora", saved, "--direction", "1", "--error", "2", "-o", "x.safetensors"],
    ):
        assert cli(*wrong, cwd=tmp_path).returncode == 2
    assert "kohya" in refused(tmp_path, "lora", saved, "--direction", "1", "--format", "kohya", "-o", "x.safetensors")


def test_an_error_that_rounding_does_not_allow_is_said(saved, tmp_path, cli):
    lora = ["lora", saved, "--direction", "1", "-o", "l.safetensors", "--json"]
    done = cli(*lora, "--error", "1e-5", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["relative_error"] > 1e-5
    assert "l.safetensors misses" in done.stderr and "--error 1e-05" in done.stderr and done.stderr.count("\n") == 1
    for asked in (["--error", "0.3"], ["--error", "1e-5", "--dtype", "fp32"]):
        done = cli(*lora, *asked, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", asked


def test_memory_stays_far_below_the_model(tmp_path, peak_memory):
    shapes = {f"model.diffusion_model.joint_blocks.{i}.x_block.attn.qkv.weight": (1536, 1536) for i in range(24)}
    for number in (0, 1):
        state = {n: RNG.standard_normal(shape, dtype=np.float32).astype(np.float16) for n, shape in shapes.items()}
        save_file(state, tmp_path / f"{number}.safetensors")
    size = (tmp_path / "0.safetensors").stat().st_size  # 113 MB; 226 MB of differences in f32
    command = ["lora", "--from", "0.safetensors", "--to", "1.safetensors", "-o", "l.safetensors", "--memory", "32MiB"]
    peak = peak_memory(*command, "--rank", "4", cwd=tmp_path)
    assert peak < 200 << 20 and size > 100 << 20
