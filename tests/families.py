"""Families of small models for the tests: one base, a few hidden factors of different strength, a little noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import oracle

SHAPES: dict[str, tuple[int, ...]] = {
    "model.diffusion_model.input_blocks.0.0.weight": (24, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.proj.weight": (40, 61),
    "model.diffusion_model.middle_block.0.weight": (57, 33),
    "model.diffusion_model.output_blocks.3.0.bias": (131,),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (32, 48),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (),
}
BLOCKS = {
    name: "text_encoder"
    if name.startswith("cond")
    else ".".join(name.split(".")[2:4])
    if "put_" in name
    else "middle_block"
    for name in SHAPES
}
STRENGTHS = (1.0, 0.7, 0.45, 0.3, 0.2, 0.14, 0.09, 0.06)


def family(
    count: int,
    seed: int = 0,
    delta: float = 0.03,
    dtypes="F32",
    shapes: dict[str, tuple[int, ...]] = SHAPES,
    strengths=STRENGTHS,
) -> list[oracle.Model]:
    """`count` models which lie `delta` of their own size apart.

    dtypes: one type, or one per model, or a function of (model, tensor number).
    """
    rng = np.random.default_rng([seed, count])
    shares = rng.standard_normal((count, len(strengths))) * np.array(strengths)
    shares /= np.linalg.norm(shares, axis=1, keepdims=True)
    models: list[oracle.Model] = [{} for _ in range(count)]
    for number, (name, shape) in enumerate(shapes.items()):
        base = 0.05 * rng.standard_normal(shape)
        factors = rng.standard_normal((len(strengths), *shape))
        for m, model in enumerate(models):
            change = np.tensordot(shares[m], factors, 1) + 0.03 * rng.standard_normal(shape)
            dtype = (
                dtypes
                if isinstance(dtypes, str)
                else dtypes(m, number)
                if callable(dtypes)
                else dtypes[m % len(dtypes)]
            )
            model[name] = oracle.tensor(np.asarray(base + 0.05 * delta * change), dtype)
    return models


def save(folder: Path, models: list[oracle.Model], prefix: str = "m", metadata=None) -> list[Path]:
    """Writes them as m0.safetensors, m1.safetensors …"""
    paths = [Path(folder) / f"{prefix}{i}.safetensors" for i in range(len(models))]
    for path, model in zip(paths, models):
        oracle.write(path, model, metadata)
    return paths


def sd3(seed: int = 0, width: int = 8) -> dict[str, tuple[int, ...]]:
    """Names and small shapes of a network that is known as SD3."""
    return {
        "model.diffusion_model.x_embedder.proj.weight": (width, 16, 2, 2),
        "model.diffusion_model.pos_embed": (1, 9, width),
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (3 * width, width),
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias": (3 * width,),
        "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (3 * width, width),
        "model.diffusion_model.final_layer.linear.bias": (7,),
        "model.diffusion_model.final_layer.linear.weight": (7, width),
    }


def moving(models: list[oracle.Model]) -> list[str]:
    """The tensors in which the models differ as stored (rounding can make a small one equal)."""
    return [name for name, first in models[0].items() if any((m[name].f64() != first.f64()).any() for m in models)]
