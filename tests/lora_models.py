"""A small SD 1 checkpoint, LoRA files for it in the spellings of all trainers, and what such a file adds, in NumPy and f64.

Names are written out one by one: nothing here knows how hyper-merge makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import oracle

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
SHAPES: dict[str, tuple[int, ...]] = {
    UNET + "input_blocks.0.0.weight": (24, 4, 3, 3),
    UNET + "input_blocks.1.0.in_layers.2.weight": (32, 24, 3, 3),
    UNET + "input_blocks.1.1.proj_in.weight": (32, 32, 1, 1),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (32, 32),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight": (32, 48),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.bias": (32,),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 768),
    UNET + "input_blocks.1.1.transformer_blocks.0.norm1.weight": (32,),
    UNET + "input_blocks.3.0.op.weight": (32, 32, 3, 3),
    UNET + "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (64, 32),
    UNET + "output_blocks.5.2.conv.weight": (24, 32, 3, 3),
    TEXT + "encoder.layers.0.self_attn.q_proj.weight": (40, 40),
    TEXT + "encoder.layers.3.mlp.fc1.weight": (80, 40),
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
}

LAYERS = {
    UNET + "input_blocks.0.0.weight": ("lora_unet_conv_in", "unet.conv_in", "diffusion_model.input_blocks.0.0"),
    UNET + "input_blocks.1.0.in_layers.2.weight": (
        "lora_unet_down_blocks_0_resnets_0_conv1", "unet.down_blocks.0.resnets.0.conv1",
        "diffusion_model.input_blocks.1.0.in_layers.2",
    ),
    UNET + "input_blocks.1.1.proj_in.weight": (
        "lora_unet_down_blocks_0_attentions_0_proj_in", "unet.down_blocks.0.attentions.0.proj_in",
        "diffusion_model.input_blocks.1.1.proj_in",
    ),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    ),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0",
    ),
    UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    ),
    UNET + "input_blocks.3.0.op.weight": (
        "lora_unet_down_blocks_0_downsamplers_0_conv", "unet.down_blocks.0.downsamplers.0.conv",
        "diffusion_model.input_blocks.3.0.op",
    ),
    UNET + "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj",
    ),
    UNET + "output_blocks.5.2.conv.weight": (
        "lora_unet_up_blocks_1_upsamplers_0_conv", "unet.up_blocks.1.upsamplers.0.conv",
        "diffusion_model.output_blocks.5.2.conv",
    ),
    TEXT + "encoder.layers.0.self_attn.q_proj.weight": (
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    ),
    TEXT + "encoder.layers.3.mlp.fc1.weight": (
        "lora_te_text_model_encoder_layers_3_mlp_fc1", "text_encoder.text_model.encoder.layers.3.mlp.fc1",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1",
    ),
}  # fmt: skip
"""Tensor → its layer in the words of kohya, diffusers, ComfyUI."""

STYLES = {
    "kohya": (0, ".lora_up.weight", ".lora_down.weight"),
    "diffusers": (1, ".lora.up.weight", ".lora.down.weight"),
    "diffusers-old": (1, "_lora.up.weight", "_lora.down.weight"),
    "peft": (1, ".lora_B.weight", ".lora_A.weight"),
    "peft-default": (1, ".lora_B.default.weight", ".lora_A.default.weight"),
    "comfyui": (2, ".lora_up.weight", ".lora_down.weight"),
    "comfyui-peft": (2, ".lora_B.weight", ".lora_A.weight"),
}


class Layer(NamedTuple):
    """Factors of one tensor, as a file has them."""

    up: np.ndarray
    down: np.ndarray
    alpha: float | None = None
    mid: np.ndarray | None = None


class Lora(NamedTuple):
    """A LoRA by the tensors that it changes."""

    layers: dict[str, Layer]
    diffs: dict[str, np.ndarray] = {}
    """Whole differences: weights and biases."""


def base(seed: int = 0, dtype: str = "F16", scale: float = 0.05) -> oracle.Model:
    """The checkpoint."""
    rng = np.random.default_rng([seed, 5])
    model = {name: oracle.tensor(scale * rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}
    model[TEXT.replace("text_model.", "") + "text_model.embeddings.position_ids"] = oracle.tensor(np.arange(77)[None], "I64")
    return model


def layer(rng: np.random.Generator, shape: tuple[int, ...], rank: int, alpha: float | None = None, size: float = 0.1) -> Layer:
    """Random factors; a convolution keeps its kernel in `down`."""
    up = size * rng.standard_normal((shape[0], rank, *[1] * (len(shape) - 2)))
    return Layer(up.astype(np.float32), (size * rng.standard_normal((rank, *shape[1:]))).astype(np.float32), alpha)


def lora(seed: int, rank: int = 4, alpha: float | None = 2.0, names=None, size: float = 0.1, ranks=None) -> Lora:
    """A LoRA of some tensors (all that have names), of one rank or of one per tensor."""
    rng = np.random.default_rng([seed, 6])
    chosen = list(LAYERS) if names is None else names
    return Lora({
        name: layer(rng, SHAPES[name], ranks[i % len(ranks)] if ranks else rank, alpha, size) for i, name in enumerate(chosen)
    })  # fmt: skip


def write(path: Path, item: Lora, style: str = "kohya", dtype: str = "F16", metadata=None) -> Path:
    """Writes it in one of STYLES; what is rounded is what `delta` of the read-back file says."""
    which, up, down = STYLES[style]
    file: oracle.Model = {}
    for name, factors in item.layers.items():
        stem = LAYERS[name][which]
        file[stem + up] = oracle.tensor(factors.up, dtype)
        file[stem + down] = oracle.tensor(factors.down, dtype)
        if factors.mid is not None:
            file[stem + ".lora_mid.weight"] = oracle.tensor(factors.mid, dtype)
        if factors.alpha is not None:
            file[stem + ".alpha"] = oracle.tensor(np.float32(factors.alpha), "F32")
    for name, numbers in item.diffs.items():
        weight = name.removesuffix("bias") + "weight" if name.endswith("bias") else name
        file[LAYERS[weight][which] + (".diff_b" if name.endswith("bias") else ".diff")] = oracle.tensor(numbers, dtype)
    oracle.write(path, file, metadata)
    return Path(path)


def rounded(item: Lora, dtype: str = "F16") -> Lora:
    """The same with its numbers as a file of that type holds them."""

    def stored(numbers):
        return None if numbers is None else oracle.tensor(numbers, dtype).f64()

    layers = {n: Layer(stored(a.up), stored(a.down), a.alpha, stored(a.mid)) for n, a in item.layers.items()}
    return Lora(layers, {name: stored(numbers) for name, numbers in item.diffs.items()})


def delta(item: Lora, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    """What it adds to each tensor at strength 1, in f64."""
    out = {name: np.asarray(numbers, float).reshape(shapes[name]) for name, numbers in item.diffs.items()}
    for name, factors in item.layers.items():
        up = np.asarray(factors.up, float).reshape(len(factors.up), -1)
        down = np.asarray(factors.down, float)
        scale = 1.0 if factors.alpha is None else factors.alpha / down.shape[0]
        if factors.mid is not None:
            down = np.einsum("pqhw,qi->pihw", np.asarray(factors.mid, float), down.reshape(down.shape[:2]))
        out[name] = scale * (up @ down.reshape(len(down), -1)).reshape(shapes[name])
    return out


def row(change: dict[str, np.ndarray], names) -> np.ndarray:
    """One row of the stacked matrix; what is not there is 0."""
    return np.concatenate([change[n].ravel() if n in change else np.zeros(int(np.prod(SHAPES[n], dtype=int))) for n in names])
