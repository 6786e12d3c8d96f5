"""LoRAs as inputs: alone in factor space and mixed with checkpoints, against NumPy in f64 which multiplies everything out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import hyper_loras as hl
import hypermerge_ext as hm
import lora_models as lm
import oracle
from oracle import tensor

NAMES = [name for name in lm.SHAPES if not name.startswith("first_stage")]
TO_Q = lm.UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = lm.UNET + "input_blocks.3.0.op.weight"
BIAS = lm.UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.bias"


@pytest.fixture
def base(tmp_path) -> Path:
    oracle.write(tmp_path / "base.safetensors", lm.base())
    return tmp_path / "base.safetensors"


def family(folder: Path, count: int = 4, style: str = "kohya", dtype: str = "F16") -> tuple[list[Path], list[lm.Lora]]:
    """LoRAs of different ranks, alphas and tensors, on disk and as the files hold them."""
    items = []
    for m in range(count):
        names = list(lm.LAYERS) if m != 1 else list(lm.LAYERS)[2:7]  # one of them changes little
        items.append(lm.lora(m, alpha=(None, 2.0, 0.75)[m % 3], names=names, ranks=(2 + m, 5, 1)))
    paths = [lm.write(folder / f"l{m}.safetensors", item, style, dtype) for m, item in enumerate(items)]
    return paths, [lm.rounded(item, dtype) for item in items]


def rows(items: list[lm.Lora], names=NAMES) -> np.ndarray:
    return np.array([lm.row(lm.delta(item), names) for item in items])


def zero(names=NAMES) -> np.ndarray:
    return np.zeros(sum(int(np.prod(lm.SHAPES[name], dtype=int)) for name in names))


def product(up: oracle.Tensor, down: oracle.Tensor) -> np.ndarray:
    left, right = up.f64(), down.f64()
    return (left.reshape(len(left), -1) @ right.reshape(len(right), -1)).reshape(len(left), *right.shape[1:])


def directions(path: Path, count: int, names=NAMES) -> np.ndarray:
    """The K directions of a file as rows; what is not there is 0."""
    file, out = oracle.read(path).model, []
    for k in range(1, count + 1):
        change = {}
        for name in names:
            stem = f"hypermerge.direction.{k}.{name}"
            if stem in file:
                change[name] = file[stem].f64()
            elif stem + ".lora_up" in file:
                change[name] = product(file[stem + ".lora_up"], file[stem + ".lora_down"])
        out.append(lm.row(change, names))
    return np.array(out)


def added(path: Path, which: int = 0) -> dict[str, np.ndarray]:
    """What a LoRA file of ours adds to each tensor; `which` spelling its layers have (lora_models.LAYERS)."""
    file = oracle.read(path).model
    tensors = {layers[which]: name for name, layers in lm.LAYERS.items()}
    out = {}
    for name in file:
        if name.endswith(".lora_up.weight"):
            stem = name.removesuffix(".lora_up.weight")
            down = file[stem + ".lora_down.weight"]
            scale = float(file[stem + ".alpha"].f64()) / down.shape[0]
            out[tensors[stem]] = scale * product(file[name], down)
    return out


def check(hyper, expected: oracle.Solution, tolerance: float = 1e-5) -> None:
    gram = expected.gram
    assert np.abs(np.array(hyper.gram) - gram).max() <= tolerance * gram.max()
    found = np.array([member.multipliers for member in hyper.members])
    assert np.abs(found - expected.multipliers).max() <= tolerance * 10 / expected.gaps.min()
    assert np.allclose([member.residual for member in hyper.members], expected.residual, atol=10 * tolerance)
    assert hyper.loss == pytest.approx(expected.loss, abs=tolerance * expected.total)


# ---- what files say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", lm.STYLES)
def test_every_spelling_means_the_same(base, tmp_path, style):
    item = lm.lora(3)
    path = lm.write(tmp_path / "l.safetensors", item, style)
    hyper = hm.solve([path], base)
    hyper.save(tmp_path / "x.hyper.safetensors")
    wanted = rows([lm.rounded(item)])
    assert hyper.directions == 1 and hyper.base["kind"] == "file"
    assert hyper.document["family"] == "sd1" and hyper.document["members"][0]["kind"] == "lora"
    assert np.abs(directions(tmp_path / "x.hyper.safetensors", 1) - wanted).max() <= 2e-3 * np.abs(wanted).max()
    assert hyper.members[0].norm == pytest.approx(np.linalg.norm(wanted), rel=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora",
        "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora",
    ],
)
def test_rarer_spellings(base, tmp_path, layer):
    factors = lm.layer(np.random.default_rng(1), (32, 32), 3)
    file = {f"{layer}.up.weight": tensor(factors.up, "F32"), f"{layer}.down.weight": tensor(factors.down, "F32")}
    oracle.write(tmp_path / "l.safetensors", file)
    hyper = hm.solve([tmp_path / "l.safetensors"], base)
    assert hyper.members[0].norm == pytest.approx(np.linalg.norm(factors.up @ factors.down), rel=1e-6)
    hyper.save(tmp_path / "x.hyper.safetensors")
    moved = [name for name in oracle.read(tmp_path / "x.hyper.safetensors").model if name.startswith("hypermerge.")]
    assert {name.removesuffix(".lora_up").removesuffix(".lora_down") for name in moved} == {
        f"hypermerge.direction.1.{TO_Q}"
    }


def test_all_of_kohyas_names(tmp_path):
    """Every layer of the golden list finds its tensor in a checkpoint with all of SD 1's names (and tiny shapes)."""
    golden = Path(__file__).parent / "golden"
    layers = json.loads((golden / "sd15-lora-names.json").read_text())
    rng = np.random.default_rng(4)
    shapes = {name: (2, 768 if name.endswith("attn2.to_k.weight") else 3) for name in layers}
    shapes[lm.UNET + "input_blocks.0.0.weight"] = (2, 4, 3, 3)
    oracle.write(tmp_path / "b.safetensors", {n: tensor(rng.standard_normal(s), "F32") for n, s in shapes.items()})
    file: oracle.Model = {}
    for number, (name, layer) in enumerate(layers.items()):
        file[layer + ".lora_up.weight"] = tensor(np.full((2, 1), number + 1.0), "F32")
        file[layer + ".lora_down.weight"] = tensor(np.ones((1, shapes[name][1])), "F32")
    oracle.write(tmp_path / "l.safetensors", file)
    hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors").save(tmp_path / "x.hyper.safetensors")
    written = oracle.read(tmp_path / "x.hyper.safetensors").model
    for number, name in enumerate(layers):
        stem = f"hypermerge.direction.1.{name}"
        whole = (
            written[stem].f64()
            if stem in written
            else product(written[stem + ".lora_up"], written[stem + ".lora_down"])
        )
        assert (whole == number + 1).all()


SDXL = {
    lm.UNET + "input_blocks.0.0.weight": (8, 4, 3, 3),
    lm.UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (12, 2048),
    lm.UNET + "label_emb.0.0.weight": (8, 6),
    "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (16, 8),
    "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight": (30, 10),
    "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias": (30,),
    "conditioner.embedders.1.model.transformer.resblocks.1.attn.out_proj.weight": (10, 10),
}


@pytest.mark.parametrize("style", ["kohya", "kohya with diffusers' names", "diffusers", "comfyui"])
def test_a_text_encoder_that_keeps_query_key_and_value_in_one(tmp_path, style):
    """SDXL: three layers of the file, of different ranks, are thirds of one tensor; so are their biases."""
    rng = np.random.default_rng(8)
    model = {name: tensor(rng.standard_normal(shape), "F16") for name, shape in SDXL.items()}
    oracle.write(tmp_path / "b.safetensors", model)
    second, first, attention, label = {
        "kohya": ("lora_te2_text_model_encoder_layers_1_self_attn_", "lora_te1_text_model_encoder_layers_0_mlp_fc1",
                  "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", "lora_unet_label_emb_0_0"),
        "kohya with diffusers' names": (
            "lora_te2_text_model_encoder_layers_1_self_attn_", "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", "lora_unet_add_embedding_linear_1"),
        "diffusers": ("text_encoder_2.text_model.encoder.layers.1.self_attn.",
                      "text_encoder.text_model.encoder.layers.0.mlp.fc1",
                      "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "unet.add_embedding.linear_1"),
        "comfyui": ("text_encoders.clip_g.transformer.text_model.encoder.layers.1.self_attn.",
                    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
                    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", "diffusion_model.label_emb.0.0"),
    }[style]  # fmt: skip
    file, wanted = {}, {name: np.zeros(shape) for name, shape in SDXL.items()}
    in_proj, bias = (name for name in SDXL if "in_proj" in name)

    def put(layer: str, name: str, part: slice, rank: int) -> None:
        shape = wanted[name][part].shape
        factors = lm.layer(rng, shape, rank, 1.5)
        file[layer + ".lora_up.weight"] = tensor(factors.up, "F32")
        file[layer + ".lora_down.weight"] = tensor(factors.down, "F32")
        file[layer + ".alpha"] = tensor(np.float32(1.5), "F32")
        wanted[name][part] = 1.5 / rank * (factors.up.astype(float) @ factors.down)

    for i, letter in enumerate("qkv"):
        if letter != "k":  # its rows stay as they are
            put(f"{second}{letter}_proj", in_proj, slice(10 * i, 10 * i + 10), 2 + i)
            wanted[bias][10 * i : 10 * i + 10] = tensor(rng.standard_normal(10), "F16").f64()
            file[f"{second}{letter}_proj.diff_b"] = tensor(wanted[bias][10 * i : 10 * i + 10], "F16")
    put(f"{second}out_proj", in_proj.replace("in_proj_weight", "out_proj.weight"), slice(None), 3)
    put(first, next(n for n in SDXL if "embedders.0" in n), slice(None), 2)
    put(attention, next(n for n in SDXL if "attn2" in n), slice(None), 4)
    put(label, next(n for n in SDXL if "label_emb" in n), slice(None), 1)
    oracle.write(tmp_path / "l.safetensors", file)
    hyper = hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors")
    assert hyper.document["family"] == "sdxl"
    assert hyper.members[0].norm ** 2 == pytest.approx(sum((w**2).sum() for w in wanted.values()), rel=1e-6)
    hyper.save(tmp_path / "x.hyper.safetensors")
    hm.load(tmp_path / "x.hyper.safetensors").merge([1.0], tmp_path / "m.safetensors", dtype="fp32")
    merged = oracle.read(tmp_path / "m.safetensors").model
    for name, change in wanted.items():
        assert np.abs(merged[name].f64() - model[name].f64() - change).max() <= 2e-3 * max(1, np.abs(change).max())


def test_middle_factors_and_whole_differences(base, tmp_path):
    rng = np.random.default_rng(12)
    conv = lm.Layer(
        rng.standard_normal((32, 3, 1, 1)), rng.standard_normal((3, 32, 1, 1)), 2.0, rng.standard_normal((3, 3, 3, 3))
    )
    item = lm.Lora(
        {CONV: conv, TO_Q: lm.layer(rng, (32, 32), 2)},
        {BIAS: rng.standard_normal(32), lm.UNET + "output_blocks.5.2.conv.weight": rng.standard_normal((24, 32, 3, 3))},
    )
    path = lm.write(tmp_path / "l.safetensors", item)
    other = lm.write(tmp_path / "o.safetensors", lm.lora(5))
    expected = oracle.solve(rows([lm.rounded(item), lm.rounded(lm.lora(5))]), zero(), 2)
    hyper = hm.solve([path, other], base, directions=2)
    check(hyper, expected)
    hyper.save(tmp_path / "x.hyper.safetensors")
    stored = directions(tmp_path / "x.hyper.safetensors", 2)
    assert np.linalg.norm(stored - expected.directions) <= 1e-3 * np.linalg.norm(expected.directions)


def test_state_dicts_are_loras_too(base, tmp_path):
    """Tensors in memory, some of them views with gaps, an alpha that is a whole number."""
    factors = lm.layer(np.random.default_rng(2), (32, 32), 4)
    layer = lm.LAYERS[TO_Q][0]
    wide = torch.zeros(32, 8)
    wide[:, ::2] = torch.from_numpy(factors.up)
    state = {
        f"{layer}.lora_up.weight": wide[:, ::2],
        f"{layer}.lora_down.weight": torch.from_numpy(factors.down.T.copy()).T,
        f"{layer}.alpha": torch.tensor(2),
    }
    hyper = hm.solve([state], base, names=["mine"])
    assert hyper.members[0].name == "mine"
    assert hyper.members[0].norm == pytest.approx(0.5 * np.linalg.norm(factors.up @ factors.down), rel=1e-6)


# ---- solving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_factor_space_is_the_expanded_solution(base, tmp_path, dtype):
    paths, items = family(tmp_path, 5, dtype=dtype)
    check(hm.solve(paths, base, directions=3), oracle.solve(rows(items), zero(), 3), 2e-6)
    weights = [1.0, 2.0, 0.5, 1.5, 1.0]
    weighted = hm.solve(paths, base, directions=2, weights=weights)
    check(weighted, oracle.solve(rows(items), zero(), 2, weights), 2e-6)
    als = hm.solve(paths, base, directions=2, method="als")
    assert als.loss == pytest.approx(oracle.solve(rows(items), zero(), 2).loss, rel=1e-5)


def test_equal_to_checkpoints_that_hold_the_loras(tmp_path):
    """base + LoRA as f32 checkpoints give the same hyper-model to 1e-5."""
    model = lm.base(dtype="F32", scale=0.01)
    oracle.write(tmp_path / "b.safetensors", model)
    paths, items = family(tmp_path, 4)
    checkpoints = []
    for m, item in enumerate(items):
        change = lm.delta(item)
        whole = {n: tensor(t.f64() + change[n], "F32") if n in change else t for n, t in model.items()}
        checkpoints.append(tmp_path / f"c{m}.safetensors")
        oracle.write(checkpoints[-1], whole)
    by_factors = hm.solve(paths, tmp_path / "b.safetensors", directions=3)
    by_numbers = hm.solve(checkpoints, tmp_path / "b.safetensors", directions=3)
    first, second = np.array(by_factors.gram), np.array(by_numbers.gram)
    assert np.abs(first - second).max() <= 1e-5 * second.max()
    for a, b in zip(by_factors.members, by_numbers.members):
        assert np.allclose(a.multipliers, b.multipliers, atol=1e-4) and a.residual == pytest.approx(
            b.residual, abs=1e-4
        )
    for name, block in by_numbers.blocks.items():
        assert np.allclose(by_factors.blocks[name]["gram"], block["gram"], atol=1e-5 * second.max())


def test_mixed_with_checkpoints(base, tmp_path):
    paths, items = family(tmp_path, 3)
    model, rng = lm.base(), np.random.default_rng(21)
    tuned = {
        name: tensor(item.f64() + 0.01 * rng.standard_normal(item.shape), "F16") if item.dtype == "F16" else item
        for name, item in model.items()
    }
    oracle.write(tmp_path / "c.safetensors", tuned)
    change = lm.row({name: tuned[name].f64() - model[name].f64() for name in NAMES}, NAMES)
    stacked = np.vstack([rows(items[:1]), change, rows(items[1:])])
    expected = oracle.solve(stacked, zero(), 3)
    hyper = hm.solve([paths[0], tmp_path / "c.safetensors", *paths[1:]], base, directions=3)
    check(hyper, expected)
    assert [entry.get("kind") for entry in hyper.document["members"]] == ["lora", None, "lora", "lora"]
    hyper.merge([0.4, 0.1], tmp_path / "before.safetensors", dtype="fp32")
    hyper.save(tmp_path / "x.hyper.safetensors")
    loaded = hm.load(tmp_path / "x.hyper.safetensors")
    loaded.merge([0.4, 0.1], tmp_path / "after.safetensors", dtype="fp32")
    wanted = lm.row({name: model[name].f64() for name in NAMES}, NAMES) + np.array([0.4, 0.1, 0]) @ expected.directions
    for path in ("before", "after"):
        merged = oracle.read(tmp_path / f"{path}.safetensors").model
        found = lm.row({name: merged[name].f64() for name in NAMES}, NAMES)
        assert np.abs(found - wanted).max() <= (2e-6 if path == "before" else 1e-3) * np.abs(wanted).max()
    assert merged["first_stage_model.decoder.conv_in.weight"].same(model["first_stage_model.decoder.conv_in.weight"])
    stored = directions(tmp_path / "x.hyper.safetensors", 3)
    left = stacked - expected.multipliers @ stored
    norms = np.linalg.norm(stacked, axis=1)
    for member, error, norm in zip(loaded.members, np.linalg.norm(left, axis=1), norms):
        assert member.residual_stored == pytest.approx(error / norm, abs=1e-4)


def test_threads_and_budgets_change_no_byte(base, tmp_path):
    paths, _ = family(tmp_path, 4)
    written = set()
    for threads, budget in ((1, None), (3, None), (2, 1 << 24)):
        hyper = hm.solve(paths, base, directions=2, threads=threads, memory_budget=budget)
        hyper.save(tmp_path / "x.hyper.safetensors", force=True, threads=threads, memory_budget=budget)
        written.add((tmp_path / "x.hyper.safetensors").read_bytes())
    assert len(written) == 1


def test_many_members_are_multiplied_in_groups(base, tmp_path):
    """Ranks of more than one group of 128, and one that is a group by itself."""
    items = [
        lm.lora(m, names=[TO_Q, CONV], rank=rank, alpha=None, size=0.05) for m, rank in enumerate((100, 60, 300, 7, 90))
    ]
    paths = [lm.write(tmp_path / f"l{m}.safetensors", item, dtype="F32") for m, item in enumerate(items)]
    check(hm.solve(paths, base, directions=3), oracle.solve(rows(items), zero(), 3), 2e-6)


def test_equal_and_empty_loras_are_normal_cases(base, tmp_path):
    item = lm.lora(1)
    nothing = lm.Lora({name: lm.Layer(0 * a.up, a.down, a.alpha) for name, a in item.layers.items()})
    paths = [lm.write(tmp_path / f"{i}.safetensors", x) for i, x in enumerate((item, item, nothing))]
    hyper = hm.solve(paths, base)
    assert hyper.directions == 1
    assert [member.multipliers for member in hyper.members] == [(1.0,), (1.0,), (0.0,)]
    hyper.save(tmp_path / "x.hyper.safetensors")
    still = hm.solve(paths[2:], base)
    assert still.directions == 0 and still.total == 0
    still.save(tmp_path / "still.hyper.safetensors")
    assert hm.load(tmp_path / "still.hyper.safetensors").directions == 0
    alone = hm.solve(paths[2:])  # zero, and no base that it could be told from
    alone.save(tmp_path / "alone.hyper.safetensors")
    assert hm.load(tmp_path / "alone.hyper.safetensors").directions == 0


def expanded(items: list[lm.Lora]) -> hl.Differences:
    """What the LoRAs add, multiplied out: [M][rows, columns] of each tensor that they change."""
    changes = [lm.delta(item) for item in items]
    tensors = []
    for name in lm.LAYERS:
        shape = lm.SHAPES[name]
        stack = [change.get(name, np.zeros(shape)).reshape(shape[0], -1) for change in changes]
        tensors.append(np.array(stack))
    return hl.Differences(tensors, np.ones(len(items)))


@pytest.mark.parametrize("ranks", [(5, 3), (2, 6), (4,)])
@pytest.mark.parametrize("with_base", [True, False])
def test_hyper_loras_of_loras(base, tmp_path, cli, with_base, ranks):
    """As NumPy finds them in the family multiplied out, no worse than deflation, and exact as LoRAs."""
    paths, items = family(tmp_path, 4)
    found, whole = expanded(items), hl.wholes([{name: np.empty(lm.SHAPES[name]) for name in lm.LAYERS}])
    path = tmp_path / "x.hyper.safetensors"
    options = ["--base", base if with_base else "none", "--rank", ",".join(map(str, ranks)), "--dtype", "fp32"]
    done = cli("solve", *paths, *options, "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    loss, losses, total = document["loss"], document["losses"], document["total"]
    assert document["ranks"] == list(ranks) and losses == sorted(losses, reverse=True)
    assert total == pytest.approx(found.total, rel=1e-6)
    expected = hl.search(found, ranks, whole).losses
    assert losses[0] == pytest.approx(expected[0], rel=1e-5) and loss == pytest.approx(expected[-1], rel=1e-3)
    assert loss <= (1 + 1e-6) * hl.deflation(found, ranks, whole) + 1e-7 * total
    assert (1 - 1e-6) * oracle.solve(rows(items), zero(), len(ranks)).loss <= loss
    loaded = hm.load(path)
    if with_base:  # the tensors have names that the oracle knows
        stored = directions(path, len(ranks))
        left = rows(items) - np.array([member.multipliers for member in loaded.members]) @ stored
        assert (left**2).sum() == pytest.approx(loss, rel=1e-5)
    at = [0.5] * len(ranks)
    assert loaded.lora(tmp_path / "o.safetensors", at=at, rank=sum(ranks), dtype="fp32")["relative_error"] < 1e-6


@pytest.mark.parametrize(
    "layer", ["lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"]
)
@pytest.mark.parametrize("prefix", ["", lm.UNET])
def test_networks_that_trainers_call_by_their_own_names(tmp_path, layer, prefix):
    """Flux, of which a file often holds the denoiser alone, without a prefix."""
    rng, name = np.random.default_rng(3), f"{prefix}double_blocks.0.img_attn.qkv.weight"
    shapes = {name: (24, 8), f"{prefix}img_in.weight": (8, 64), f"{prefix}single_blocks.0.linear1.weight": (8, 8)}
    oracle.write(tmp_path / "b.safetensors", {n: tensor(rng.standard_normal(s), "BF16") for n, s in shapes.items()})
    factors = lm.layer(rng, (24, 8), 2)
    file = {
        f"{layer}.lora_up.weight": tensor(factors.up, "F32"),
        f"{layer}.lora_down.weight": tensor(factors.down, "F32"),
    }
    oracle.write(tmp_path / "l.safetensors", file)
    hyper = hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors")
    assert hyper.document["family"] == "flux"
    hyper.save(tmp_path / "x.hyper.safetensors")
    written = oracle.read(tmp_path / "x.hyper.safetensors").model
    stem = f"hypermerge.direction.1.{name}"
    whole = (
        written[stem].f64() if stem in written else product(written[stem + ".lora_up"], written[stem + ".lora_down"])
    )
    assert np.abs(whole - factors.up.astype(float) @ factors.down).max() <= 1e-2 * np.abs(whole).max()


def test_selection_takes_tensors_of_the_base(base, tmp_path):
    paths, items = family(tmp_path, 3)
    kept = [name for name in NAMES if "attn" in name]
    hyper = hm.solve(paths, base, directions=2, include=["*attn*"])
    check(hyper, oracle.solve(rows(items, kept), zero(kept), 2))


# ---- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, "fp32"])
def test_directions_are_factors_where_these_are_smaller(base, tmp_path, dtype):
    paths, items = family(tmp_path, 3, dtype="BF16")
    expected = oracle.solve(rows(items), zero(), 3)
    hyper = hm.solve(paths, base, directions=3, dtype=dtype)
    hyper.save(tmp_path / "x.hyper.safetensors")
    file = oracle.read(tmp_path / "x.hyper.safetensors").model
    pairs = [name for name in file if name.endswith(".lora_down")]
    whole = [name for name in file if name.startswith("hypermerge.direction") and ".lora_" not in name]
    assert pairs and (dtype == "fp32" or whole)
    for name in pairs:
        up = file[name.removesuffix("down") + "up"]
        assert up.dtype == "F32" and file[name].dtype == "BF16"  # what the files hold, and scales that need room
        rank = file[name].shape[0]
        assert up.shape[1] == rank
    stored, norms = directions(tmp_path / "x.hyper.safetensors", 3), np.linalg.norm(rows(items), axis=1)
    assert np.linalg.norm(stored - expected.directions) <= (1e-6 if dtype else 1e-3) * np.linalg.norm(
        expected.directions
    )
    left = np.linalg.norm(rows(items) - expected.multipliers @ stored, axis=1) / norms
    for member, error in zip(hm.load(tmp_path / "x.hyper.safetensors").members, left):
        assert member.residual_stored == pytest.approx(error, rel=0.02, abs=3e-6)


def test_the_result_is_a_hyper_model_like_others(base, tmp_path, cli):
    paths, items = family(tmp_path, 4)
    model = lm.base()
    hm.solve(paths, base, directions=2).save(tmp_path / "x.hyper.safetensors", hash=True)
    hyper = hm.load(tmp_path / "x.hyper.safetensors")
    stored = directions(tmp_path / "x.hyper.safetensors", 2)

    targets = {name: torch.from_numpy(item.f32().copy()).half() for name, item in model.items() if item.dtype == "F16"}
    live = hyper.bind(targets)
    live.set(0.7, -0.4)
    hyper.merge([0.7, -0.4], tmp_path / "m.safetensors")
    merged = oracle.read(tmp_path / "m.safetensors").model
    wanted = lm.row({name: model[name].f64() for name in NAMES}, NAMES) + np.array([0.7, -0.4]) @ stored
    found = lm.row({name: merged[name].f64() for name in NAMES}, NAMES)
    assert np.abs(found - wanted).max() <= 1e-3 * np.abs(wanted).max()
    for name, target in targets.items():
        assert np.array_equal(target.numpy(), merged[name].stored)
    live.restore()
    assert all(np.array_equal(target.numpy(), model[name].stored) for name, target in targets.items())

    with pytest.raises(hm.Error, match="leave out --exact"):
        hyper.merge([1.0], tmp_path / "no.safetensors", exact=paths)
    described = json.loads(cli("inspect", "x.hyper.safetensors", "--json", cwd=tmp_path).stdout)
    assert described["file"]["low_rank"]["tensors"] > 0 and described["directions"] == 2
    assert "l3" in cli("inspect", "x.hyper.safetensors", cwd=tmp_path).stdout
    hyper.map(tmp_path / "map.svg", project=[paths[0]])
    assert (tmp_path / "map.svg").read_text().count("l3") >= 1
    hyper.rename({1: "light"}, [2], tmp_path / "y.hyper.safetensors")
    again = hm.load(tmp_path / "y.hyper.safetensors")
    again.merge([0.7, 0.4], tmp_path / "n.safetensors")
    assert all(item.same(merged[name]) for name, item in oracle.read(tmp_path / "n.safetensors").model.items())


def test_projecting(base, tmp_path):
    paths, items = family(tmp_path, 4)
    solved = hm.solve(paths[:3], base, directions=2)
    solved.save(tmp_path / "x.hyper.safetensors")
    stored = directions(tmp_path / "x.hyper.safetensors", 2)
    change = rows(items)[3]
    wanted, *_ = np.linalg.lstsq(stored.T, change, rcond=None)
    rest = np.linalg.norm(change - wanted @ stored) / np.linalg.norm(change)
    checkpoint = {n: t for n, t in lm.base().items()}
    for name, addend in lm.delta(items[3]).items():
        checkpoint[name] = tensor(checkpoint[name].f64() + addend, "F32")
    oracle.write(tmp_path / "c.safetensors", checkpoint)
    for hyper in (hm.load(tmp_path / "x.hyper.safetensors"), hm.solve(paths[:3], base, directions=2)):
        for newcomer in (paths[3], tmp_path / "c.safetensors"):
            found = hyper.project(newcomer)
            assert np.allclose(found.multipliers, wanted, atol=2e-3) and found.residual == pytest.approx(rest, abs=1e-3)
            assert found.norm == pytest.approx(np.linalg.norm(change), rel=1e-5)


@pytest.mark.parametrize("options", [{"directions": 2}, {"rank": [3, 2]}])
@pytest.mark.parametrize("with_base", [True, False])
def test_projecting_a_lora_of_few_layers(base, tmp_path, with_base, options):
    """Where it has no layer it changes nothing, but the directions do: members lie where they lay."""
    items = [lm.lora(0), lm.lora(1, names=[TO_Q, CONV]), lm.lora(2, names=[CONV])]
    paths = [lm.write(tmp_path / f"l{m}.safetensors", item) for m, item in enumerate(items)]
    solved = hm.solve(paths, base if with_base else None, dtype="fp32", **options)
    solved.save(tmp_path / "x.hyper.safetensors")
    loaded = hm.load(tmp_path / "x.hyper.safetensors")
    for path, member in zip(paths, loaded.members):
        placed = loaded.project(path)
        np.testing.assert_allclose(placed.multipliers, member.multipliers, atol=1e-5)
        assert placed.residual == pytest.approx(member.residual, abs=1e-5) and placed.norm == pytest.approx(
            member.norm, rel=1e-6
        )


def test_a_lora_on_a_hyper_model_of_checkpoints(base, tmp_path):
    """It stands for the base with it: for a mean base too."""
    rng, model = np.random.default_rng(33), lm.base(dtype="F32")
    checkpoints = []
    for m in range(3):
        checkpoints.append(tmp_path / f"c{m}.safetensors")
        oracle.write(checkpoints[-1], {
            n: tensor(t.f64() + 0.01 * rng.standard_normal(t.shape), "F32") if t.dtype == "F32" else t for n, t in model.items()
        })  # fmt: skip
    hm.solve(checkpoints, directions=2).save(tmp_path / "x.hyper.safetensors")
    path = lm.write(tmp_path / "l.safetensors", lm.lora(3))
    stored, change = directions(tmp_path / "x.hyper.safetensors", 2), rows([lm.rounded(lm.lora(3))])[0]
    wanted, *_ = np.linalg.lstsq(stored.T, change, rcond=None)
    found = hm.load(tmp_path / "x.hyper.safetensors").project(path)
    assert np.allclose(found.multipliers, wanted, atol=1e-4) and found.norm == pytest.approx(
        np.linalg.norm(change), rel=1e-5
    )


def test_a_lora_comes_out_exactly_where_its_rank_allows(base, tmp_path):
    items = [lm.lora(m, rank=2, alpha=1.0) for m in range(3)]
    paths = [lm.write(tmp_path / f"l{m}.safetensors", item) for m, item in enumerate(items)]
    solved = hm.solve(paths, base, directions=3)
    solved.save(tmp_path / "x.hyper.safetensors")
    at = [0.5, -0.3, 0.8]
    expected = oracle.solve(rows([lm.rounded(item) for item in items]), zero(), 3)
    wanted, first = np.array(at) @ expected.directions, np.flatnonzero(zero() == 0)
    places = dict(zip(NAMES, np.split(first, np.cumsum([int(np.prod(lm.SHAPES[n], dtype=int)) for n in NAMES])[:-1])))
    for number, hyper in enumerate((solved, hm.load(tmp_path / "x.hyper.safetensors"))):
        for rank in (6, 4):
            path = tmp_path / f"{number}-{rank}.safetensors"
            report = hyper.lora(path, at=at, rank=rank, dtype="fp32")
            square = rest = 0.0
            for name, change in added(path).items():
                matrix = wanted[places[name]].reshape(len(change), -1)
                best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum())
                left = np.linalg.norm(change.reshape(matrix.shape) - matrix)
                assert left <= best + 2e-6 * np.linalg.norm(matrix)
                square, rest = square + np.linalg.norm(matrix) ** 2, rest + left**2
            assert report["relative_error"] == pytest.approx(np.sqrt(rest / square), abs=2e-6)
            assert rank < 6 or report["relative_error"] < 1e-6


def test_a_lora_of_one_lora_is_that_lora(base, tmp_path):
    """In f16 too; and by a size."""
    path = lm.write(tmp_path / "l.safetensors", lm.lora(1, rank=4))
    hm.solve([path], base).save(tmp_path / "x.hyper.safetensors")
    report = hm.load(tmp_path / "x.hyper.safetensors").lora(tmp_path / "o.safetensors", direction=1, rank=4)
    wanted = lm.delta(lm.rounded(lm.lora(1, rank=4)))
    for name, change in added(tmp_path / "o.safetensors").items():
        assert np.linalg.norm(change - wanted[name]) <= 2e-3 * np.linalg.norm(wanted[name])
    assert report["rank"] == {"least": 4, "most": 4} and report["relative_error"] < 1e-3
    assert (
        hm.load(tmp_path / "x.hyper.safetensors").lora(tmp_path / "s.safetensors", direction=1, size=60000)["bytes"]
        <= 60000
    )
    hm.solve([tmp_path / "o.safetensors", path], base)  # ours are read too
    assert len(hm.load(tmp_path / "x.hyper.safetensors").slider_pack(tmp_path / "p.safetensors", rank=4)) == 1


# ---- without a base --------------------------------------------------------------------------------------------------


def test_without_a_base_loras_are_differences_from_zero(tmp_path, cli):
    paths, items = family(tmp_path, 3, "comfyui")
    hyper = hm.solve(paths, directions=2)
    expected = oracle.solve(rows(items), zero(), 2)
    check(hyper, expected)
    assert hyper.base == {"kind": "none"} and hyper.document["family"] == "lora"
    done = cli("solve", *paths, "-o", "x.hyper.safetensors", "--directions", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = hm.load(tmp_path / "x.hyper.safetensors")
    assert loaded.project(paths[2]).multipliers == pytest.approx(loaded.members[2].multipliers, abs=1e-3)
    report = loaded.lora(tmp_path / "o.safetensors", at=[0.3, 0.6], rank=32, dtype="fp32")
    found = lm.row(added(tmp_path / "o.safetensors", 2), NAMES)
    assert np.linalg.norm(found - np.array([0.3, 0.6]) @ expected.directions) <= 1e-3 * np.linalg.norm(found)
    assert report["format"] == "auto" and report["not_carried"]["tensors"] == 0
    assert "ss_base_model_version" not in oracle.read(tmp_path / "o.safetensors").metadata
    loaded.map(tmp_path / "map.svg")
    with pytest.raises(hm.Error, match="no checkpoint to write"):
        loaded.merge([1.0], tmp_path / "m.safetensors")
    with pytest.raises(hm.Error, match="keep their layers' names"):
        loaded.lora(tmp_path / "k.safetensors", direction=1, format="kohya")
    with pytest.raises(hm.Error, match="no target"):
        loaded.bind({name: item.f32() for name, item in lm.base().items()})
    assert not (tmp_path / "m.safetensors").exists() and not (tmp_path / "k.safetensors").exists()


def test_comparing_and_recovering_without_a_base(tmp_path):
    paths, items = family(tmp_path, 3)
    stacked = rows(items)
    answer = hm.compare([*paths, paths[0]])
    assert answer["duplicates"] == [["l0", "l0"]]
    assert np.allclose(
        np.array(answer["distance"])[:3, :3], np.linalg.norm(stacked[:, None] - stacked[None], axis=2), rtol=1e-5
    )
    mixture = lm.Lora({
        name: lm.Layer(np.concatenate([c * a.layers[name].up for c, a in zip((0.7, 0.3), items[::2])], 1),
                       np.concatenate([a.layers[name].down * scale(a, name) for a in items[::2]]))
        for name in items[0].layers
    })  # fmt: skip
    path = lm.write(tmp_path / "mix.safetensors", mixture, dtype="F32")
    found = hm.recover(path, [paths[0], paths[2]])
    assert found["weights"] == pytest.approx([0.7, 0.3], abs=1e-5) and found["residual"] < 1e-4


def scale(item: lm.Lora, name: str) -> float:
    factors = item.layers[name]
    return 1.0 if factors.alpha is None else factors.alpha / factors.down.shape[0]


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_nan_may_be_left_out(base, tmp_path):
    bad = lm.lora(1)
    bad.layers[TO_Q].down[0, 0] = np.nan
    paths = [lm.write(tmp_path / "bad.safetensors", bad), lm.write(tmp_path / "good.safetensors", lm.lora(2))]
    hyper = hm.solve(paths, base, allow_nonfinite=True, directions=2)
    assert any("holds NaN" in note for note in hyper.document["notes"])
    kept = [name for name in NAMES if name != TO_Q]
    check(hyper, oracle.solve(rows([lm.rounded(lm.lora(1)), lm.rounded(lm.lora(2))], kept), zero(kept), 2))
    with pytest.raises(hm.MismatchError, match="nothing to copy"):
        hm.solve(paths, allow_nonfinite=True)


def test_cancelled_and_refused_saves_leave_nothing(base, tmp_path, snapshot):
    paths, _ = family(tmp_path, 3)
    hyper, before = hm.solve(paths, base), snapshot(tmp_path)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hyper.save(tmp_path / "x.hyper.safetensors", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        hm.solve(paths, base, progress=stop)
    for target in (paths[0], base):
        with pytest.raises(hm.Error, match="one of the inputs"):
            hyper.save(target, force=True)
    assert snapshot(tmp_path) == before
    seen = []
    hyper.save(tmp_path / "x.hyper.safetensors", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0 and seen == sorted(seen)


def test_a_lora_that_changes_under_our_hands(base, tmp_path):
    paths, _ = family(tmp_path, 2)
    hyper = hm.solve(paths, base)
    os.utime(paths[1], ns=(1, 1))
    with pytest.raises(hm.Error, match="changed"):
        hyper.save(tmp_path / "x.hyper.safetensors")
    assert not (tmp_path / "x.hyper.safetensors").exists()
