"""LoRAs with diffusers' names of Flux and SD 3, whose checkpoints keep several of its layers in one tensor, against NumPy which
multiplies everything out into the rows where it belongs.  Names are written out here one by one."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import hypermerge_ext as hm
import lora_models as lm
import oracle
from oracle import tensor

GOLDEN = Path(__file__).parent / "golden"
WIDE = 8
FLUX = {
    "img_in.weight": (WIDE, 64),
    "time_in.in_layer.weight": (WIDE, 16),
    "double_blocks.0.img_attn.qkv.weight": (3 * WIDE, WIDE),
    "double_blocks.0.img_attn.qkv.bias": (3 * WIDE,),
    "double_blocks.0.txt_attn.qkv.weight": (3 * WIDE, WIDE),
    "double_blocks.0.img_attn.proj.weight": (WIDE, WIDE),
    "double_blocks.0.txt_attn.proj.weight": (WIDE, WIDE),
    "double_blocks.0.img_mlp.0.weight": (4 * WIDE, WIDE),
    "double_blocks.0.txt_mlp.2.weight": (WIDE, 4 * WIDE),
    "double_blocks.0.img_mod.lin.weight": (6 * WIDE, WIDE),
    "single_blocks.11.linear1.weight": (7 * WIDE, WIDE),
    "single_blocks.11.linear2.weight": (WIDE, 5 * WIDE),
    "single_blocks.11.modulation.lin.weight": (3 * WIDE, WIDE),
    "final_layer.linear.weight": (64, WIDE),
    "final_layer.adaLN_modulation.1.weight": (2 * WIDE, WIDE),
}
SD3 = {
    "x_embedder.proj.weight": (WIDE, 16, 2, 2),
    "context_embedder.weight": (WIDE, 32),
    "joint_blocks.0.x_block.attn.qkv.weight": (3 * WIDE, WIDE),
    "joint_blocks.0.x_block.attn2.qkv.weight": (3 * WIDE, WIDE),
    "joint_blocks.0.context_block.attn.qkv.weight": (3 * WIDE, WIDE),
    "joint_blocks.0.x_block.attn.proj.weight": (WIDE, WIDE),
    "joint_blocks.0.context_block.attn.proj.weight": (WIDE, WIDE),
    "joint_blocks.0.x_block.mlp.fc1.weight": (4 * WIDE, WIDE),
    "joint_blocks.0.context_block.mlp.fc2.weight": (WIDE, 4 * WIDE),
    "y_embedder.mlp.2.weight": (WIDE, WIDE),
}
SHAPES = {"flux": FLUX, "sd3": SD3}

Place = tuple[str, slice]
ALL = slice(None)


def units(first: int, count: int = 1) -> slice:
    """Rows by the width of the network."""
    return slice(first * WIDE, (first + count) * WIDE)


PLACES: dict[str, dict[str, Place]] = {
    "flux": {
        "x_embedder": ("img_in.weight", ALL),
        "time_text_embed.timestep_embedder.linear_1": ("time_in.in_layer.weight", ALL),
        "transformer_blocks.0.attn.to_q": ("double_blocks.0.img_attn.qkv.weight", units(0)),
        "transformer_blocks.0.attn.to_v": ("double_blocks.0.img_attn.qkv.weight", units(2)),
        "transformer_blocks.0.attn.add_q_proj": ("double_blocks.0.txt_attn.qkv.weight", units(0)),
        "transformer_blocks.0.attn.add_k_proj": ("double_blocks.0.txt_attn.qkv.weight", units(1)),
        "transformer_blocks.0.attn.add_v_proj": ("double_blocks.0.txt_attn.qkv.weight", units(2)),
        "transformer_blocks.0.attn.to_out.0": ("double_blocks.0.img_attn.proj.weight", ALL),
        "transformer_blocks.0.attn.to_add_out": ("double_blocks.0.txt_attn.proj.weight", ALL),
        "transformer_blocks.0.ff.net.0.proj": ("double_blocks.0.img_mlp.0.weight", ALL),
        "transformer_blocks.0.ff_context.net.2": ("double_blocks.0.txt_mlp.2.weight", ALL),
        "transformer_blocks.0.norm1.linear": ("double_blocks.0.img_mod.lin.weight", ALL),
        "single_transformer_blocks.11.attn.to_q": ("single_blocks.11.linear1.weight", units(0)),
        "single_transformer_blocks.11.attn.to_k": ("single_blocks.11.linear1.weight", units(1)),
        "single_transformer_blocks.11.proj_mlp": ("single_blocks.11.linear1.weight", units(3, 4)),
        "single_transformer_blocks.11.proj_out": ("single_blocks.11.linear2.weight", ALL),
        "single_transformer_blocks.11.norm.linear": ("single_blocks.11.modulation.lin.weight", ALL),
        "proj_out": ("final_layer.linear.weight", ALL),
    },
    "sd3": {
        "pos_embed.proj": ("x_embedder.proj.weight", ALL),
        "context_embedder": ("context_embedder.weight", ALL),
        "transformer_blocks.0.attn.to_k": ("joint_blocks.0.x_block.attn.qkv.weight", units(1)),
        "transformer_blocks.0.attn.to_v": ("joint_blocks.0.x_block.attn.qkv.weight", units(2)),
        "transformer_blocks.0.attn2.to_q": ("joint_blocks.0.x_block.attn2.qkv.weight", units(0)),
        "transformer_blocks.0.attn.add_q_proj": ("joint_blocks.0.context_block.attn.qkv.weight", units(0)),
        "transformer_blocks.0.attn.add_v_proj": ("joint_blocks.0.context_block.attn.qkv.weight", units(2)),
        "transformer_blocks.0.attn.to_out.0": ("joint_blocks.0.x_block.attn.proj.weight", ALL),
        "transformer_blocks.0.attn.to_add_out": ("joint_blocks.0.context_block.attn.proj.weight", ALL),
        "transformer_blocks.0.ff.net.0.proj": ("joint_blocks.0.x_block.mlp.fc1.weight", ALL),
        "transformer_blocks.0.ff_context.net.2": ("joint_blocks.0.context_block.mlp.fc2.weight", ALL),
        "time_text_embed.text_embedder.linear_2": ("y_embedder.mlp.2.weight", ALL),
    },
}


def base(path: Path, family: str, prefix: str = lm.UNET) -> dict[str, np.ndarray]:
    """A small denoiser on disk; its numbers."""
    rng = np.random.default_rng(3)
    held = {prefix + name: tensor(0.1 * rng.standard_normal(shape), "F32") for name, shape in SHAPES[family].items()}
    oracle.write(path, held)
    return {name: held[prefix + name].f64() for name in SHAPES[family]}


def layer_name(style: str, layer: str) -> str:
    return {
        "transformer": "transformer." + layer,
        "bare": layer,
        "peft": "base_model.model." + layer,
        "flat": "lora_transformer_" + layer.replace(".", "_"),
    }[style]


def lora(path: Path, family: str, seed: int, style: str = "transformer", layers=None) -> dict[str, np.ndarray]:
    """A LoRA of those layers on disk, ranks differ; what it adds to each tensor, in f64."""
    rng = np.random.default_rng([seed, 4])
    added = {name: np.zeros(shape) for name, shape in SHAPES[family].items()}
    file: oracle.Model = {}
    for i, layer in enumerate(layers or PLACES[family]):
        name, rows = PLACES[family][layer]
        rank, shape = 1 + (i + seed) % 4, added[name][rows].shape
        factors, stem = lm.layer(rng, shape, rank), layer_name(style, layer)
        file[stem + ".lora_B.weight"] = tensor(factors.up, "F32")
        file[stem + ".lora_A.weight"] = tensor(factors.down, "F32")
        up = factors.up.astype(float).reshape(len(factors.up), -1)
        added[name][rows] = (up @ factors.down.astype(float).reshape(rank, -1)).reshape(shape)
    oracle.write(path, file)
    return added


def flat(added: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([numbers.ravel() for numbers in added.values()])


@pytest.mark.parametrize("style", ["transformer", "bare", "peft", "flat"])
@pytest.mark.parametrize("prefix", ["", lm.UNET])
@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_each_layer_lands_in_its_rows(tmp_path, family, prefix, style):
    held = base(tmp_path / "b.safetensors", family, prefix)
    added = lora(tmp_path / "l.safetensors", family, 1, style)
    hyper = hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors")
    assert hyper.document["family"] == family
    assert hyper.members[0].norm == pytest.approx(np.linalg.norm(flat(added)), rel=1e-6)
    hyper.save(tmp_path / "x.hyper.safetensors")
    hm.load(tmp_path / "x.hyper.safetensors").merge([1.0], tmp_path / "m.safetensors", dtype="fp32")
    merged = oracle.read(tmp_path / "m.safetensors").model
    for name, change in added.items():
        np.testing.assert_allclose(merged[prefix + name].f64(), held[name] + change, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_factor_space_is_the_expanded_solution(tmp_path, family):
    """Files that have different parts of one tensor, and a checkpoint beside them."""
    held = base(tmp_path / "b.safetensors", family)
    layers = list(PLACES[family])
    chosen = [None, layers[::2], layers[1::2]]
    changes = [lora(tmp_path / f"l{m}.safetensors", family, m, layers=names) for m, names in enumerate(chosen)]
    rows = np.array([flat(change) for change in changes])
    paths = [tmp_path / f"l{m}.safetensors" for m in range(3)]
    alone = hm.solve(paths, tmp_path / "b.safetensors", directions=2)
    expected = oracle.solve(rows, np.zeros(rows.shape[1]), directions=2)
    np.testing.assert_allclose(alone.gram, rows @ rows.T, rtol=1e-6, atol=1e-7 * (rows**2).sum())
    assert alone.loss == pytest.approx(expected.loss, rel=1e-5)
    oracle.write(tmp_path / "c.safetensors", {lm.UNET + n: tensor(held[n] + 2 * changes[0][n], "F32") for n in held})
    mixed = hm.solve([*paths, tmp_path / "c.safetensors"], tmp_path / "b.safetensors")
    rows = np.array([*rows, 2 * rows[0]])
    np.testing.assert_allclose(mixed.gram, rows @ rows.T, rtol=1e-4, atol=1e-6 * (rows**2).sum())


def test_the_names_of_comfyui_and_diffusers_meet(tmp_path):
    """One file has query, key and value as one layer, the other as three: the same LoRA."""
    base(tmp_path / "b.safetensors", "flux")
    layers = [
        "transformer_blocks.0.attn.add_q_proj",
        "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.attn.add_v_proj",
    ]
    name = "double_blocks.0.txt_attn.qkv.weight"
    whole = lora(tmp_path / "split.safetensors", "flux", 2, layers=layers)[name]
    left, sigma, right = np.linalg.svd(whole, full_matrices=False)
    fused = {
        f"diffusion_model.{name.removesuffix('.weight')}.lora_B.weight": tensor(left * sigma, "F32"),
        f"diffusion_model.{name.removesuffix('.weight')}.lora_A.weight": tensor(right, "F32"),
    }
    oracle.write(tmp_path / "fused.safetensors", fused)
    hyper = hm.solve([tmp_path / "split.safetensors", tmp_path / "fused.safetensors"], tmp_path / "b.safetensors")
    np.testing.assert_allclose(hyper.gram, np.full((2, 2), (whole**2).sum()), rtol=1e-5)


def refused(tmp_path, file: oracle.Model, message: str) -> None:
    base(tmp_path / "b.safetensors", "flux")
    oracle.write(tmp_path / "l.safetensors", file)
    with pytest.raises(hm.MismatchError, match=message) as caught:
        hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors")
    assert "\n" not in str(caught.value)


def factors(layer: str, rows: int, columns: int = WIDE) -> oracle.Model:
    held = lm.layer(np.random.default_rng(1), (rows, columns), 2)
    return {layer + ".lora_B.weight": tensor(held.up, "F32"), layer + ".lora_A.weight": tensor(held.down, "F32")}


def test_rows_that_two_layers_claim_are_refused(tmp_path):
    file = factors("transformer.transformer_blocks.0.attn.to_k", WIDE)
    file |= factors("diffusion_model.double_blocks.0.img_attn.qkv", 3 * WIDE)
    refused(tmp_path, file, "means the same tensor as")


def test_rows_that_do_not_fit_are_refused(tmp_path):
    refused(
        tmp_path, factors("transformer.transformer_blocks.0.attn.to_k", 3 * WIDE), f"24 × {WIDE}, but .* has 8 × {WIDE}"
    )


def test_a_number_for_one_of_three_rows_is_refused(tmp_path):
    """A bias of three numbers, of which a difference without any dimension is to be the first."""
    numbers = {"qkv.weight": (3, WIDE), "qkv.bias": (3,)}
    held = {
        lm.UNET + "double_blocks.0.img_attn." + name: tensor(np.zeros(shape), "F32") for name, shape in numbers.items()
    }
    oracle.write(tmp_path / "b.safetensors", held)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    oracle.write(tmp_path / "l.safetensors", factors(layer, 1) | {layer + ".diff_b": tensor(np.float32(1), "F32")})
    with pytest.raises(hm.FormatError, match="to_q.diff_b: is a whole difference of a part"):
        hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors")


def test_factors_of_a_single_number_are_refused(tmp_path):
    shapes = {"double_blocks.0.img_attn.qkv.weight": (3 * WIDE, WIDE), "double_blocks.0.scale.weight": ()}
    oracle.write(
        tmp_path / "b.safetensors", {lm.UNET + name: tensor(np.zeros(shape), "F32") for name, shape in shapes.items()}
    )
    oracle.write(tmp_path / "l.safetensors", factors("diffusion_model.double_blocks.0.scale", 1, 1))
    with pytest.raises(hm.FormatError, match="is a factor, but its layer is a single number"):
        hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors")


SPELLINGS = [
    "transformer.transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_q",
    "base_model.model.transformer_blocks.0.attn.to_q",
    "lora_transformer_transformer_blocks_0_attn_to_q",
    "lycoris_transformer_blocks_0_attn_to_q",
    "lora_unet_double_blocks_0_img_attn_qkv",
    "diffusion_model.double_blocks.0.img_attn.qkv",
    "double_blocks.0.img_attn.qkv",
    "model.diffusion_model.double_blocks.0.img_attn.qkv",
]


def test_without_a_base_names_of_two_kinds_do_not_meet(tmp_path):
    """They would count as different layers, and the same LoRA twice as two that have nothing in common."""
    for i, layer in enumerate(SPELLINGS):
        oracle.write(tmp_path / f"{i}.safetensors", factors(layer, WIDE))
    for i, j in itertools.combinations(range(len(SPELLINGS)), 2):
        with pytest.raises(hm.MismatchError, match="names its layers"):
            hm.solve([tmp_path / f"{i}.safetensors", tmp_path / f"{j}.safetensors"], "none")


def test_without_a_base_a_lora_with_names_of_another_kind_is_not_projected(tmp_path):
    """It was said to have nothing in common with a hyper-model of itself."""
    numbers = factors("lora_unet_double_blocks_0_img_mlp_0", WIDE)
    oracle.write(tmp_path / "one.safetensors", numbers)
    oracle.write(tmp_path / "other.safetensors", factors("transformer.transformer_blocks.0.ff.net.0.proj", WIDE))
    oracle.write(tmp_path / "text.safetensors", factors("lora_te1_text_model_encoder_layers_0_mlp_fc1", WIDE))
    solved = hm.solve([tmp_path / "one.safetensors"], "none")
    solved.save(tmp_path / "x.hyper.safetensors")
    for hyper in (hm.solve([tmp_path / "one.safetensors"], "none"), hm.load(tmp_path / "x.hyper.safetensors")):
        with pytest.raises(hm.MismatchError, match="other.*names its layers as diffusers does.*solve"):
            hyper.project(tmp_path / "other.safetensors")
        assert hyper.project(tmp_path / "one.safetensors").residual < 1e-3
        assert hyper.project(tmp_path / "text.safetensors").residual == pytest.approx(1)  # it only has other layers


@pytest.mark.parametrize("layers", [
    ("lora_unet_double_blocks_0_img_mlp_0", "lora_unet_single_blocks_0_linear1"),
    ("lora_unet_double_blocks_0_img_mlp_0", "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
    ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"),
])  # fmt: skip
def test_without_a_base_files_may_have_other_layers_of_one_kind(tmp_path, layers):
    for i, layer in enumerate(layers):
        oracle.write(tmp_path / f"{i}.safetensors", factors(layer, WIDE))
    hyper = hm.solve([tmp_path / f"{i}.safetensors" for i in range(2)], "none")
    assert hyper.directions == 2


def test_rows_in_another_order_are_refused(tmp_path):
    """diffusers has scale and shift of the last modulation the other way round."""
    refused(
        tmp_path, factors("transformer.norm_out.linear", 2 * WIDE), "its layer transformer.norm_out.linear has no place"
    )


@pytest.mark.parametrize(("family", "double", "single"), [("flux", 19, 38), ("sd3", 24, 0)])
def test_the_attention_layers_of_the_whole_network(tmp_path, family, double, single):
    """Every block of the golden list, its shapes cut down."""
    with gzip.open(GOLDEN / f"{family}.json.gz", "rt", encoding="utf-8") as file:
        listed = {name: shape for name, (shape, _) in json.load(file).items() if name.startswith(lm.UNET)}
    width = {"flux": 3072, "sd3": 1536}[family]
    shapes = {name: tuple(max(1, side * 4 // width) for side in shape) for name, shape in listed.items()}
    oracle.write(tmp_path / "b.safetensors", {name: tensor(np.zeros(shape), "F16") for name, shape in shapes.items()})
    layers = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0"]
    file = {}
    for n in range(double):
        for layer in layers:
            file |= factors(f"transformer.transformer_blocks.{n}.attn.{layer}", 4, 4)
    for n in range(single):
        for layer, rows in [("attn.to_q", 4), ("attn.to_k", 4), ("attn.to_v", 4), ("proj_mlp", 16)]:
            file |= factors(f"transformer.single_transformer_blocks.{n}.{layer}", rows, 4)
    oracle.write(tmp_path / "l.safetensors", file)
    hyper = hm.solve([tmp_path / "l.safetensors"], tmp_path / "b.safetensors")
    squares = [
        np.sum((up.f64() @ file[name.replace("lora_B", "lora_A")].f64()) ** 2)
        for name, up in file.items()
        if "lora_B" in name
    ]
    assert hyper.members[0].norm ** 2 == pytest.approx(sum(squares), rel=1e-5)
