"""Tensor names of whole checkpoints: what is merged, what is copied, and as which family they are known."""

from __future__ import annotations

import functools
import gzip
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

import hypermerge_ext as hm
import oracle
from oracle import tensor

FOLDER = Path(__file__).parent / "golden"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}
UNET = "model.diffusion_model."

# Per list: family, tensors in all, and how many are merged of the denoiser and of the text encoders.
LISTS = {
    "sd15": ("sd1", 1131, 686, 196),  # 197 less position_ids
    "sdxl": ("sdxl", 2531, 1680, 585),  # 587 less position_ids and logit_scale
    "sd3": ("sd3", 1672, 491, 714),  # 716 of two CLIPs less two logit_scale
    "flux": ("flux", 1439, 780, 196),
}


@functools.cache
def golden(name: str) -> dict[str, tuple[list[int], str]]:
    """Names with true shapes and types."""
    with gzip.open(FOLDER / f"{name}.json.gz") as source:
        return {key: (shape, DTYPES[dtype]) for key, (shape, dtype) in json.load(source).items()}


def shrunk(name: str, shape: list[int]) -> tuple[int, ...]:
    """The same number of dimensions, at most 2 long, but for those by which families are told apart."""
    small = [min(n, 2) for n in shape]
    if name.endswith((".attn2.to_k.weight", "input_blocks.0.0.weight", "img_in.weight")):
        small[1] = shape[1]
    return tuple(small)


def small(name: str, seed: int, rename=lambda key: key, keep=lambda key: True) -> oracle.Model:
    """A small model of the golden names, different for each seed."""
    rng = np.random.default_rng(seed)
    model = {}
    for key, (shape, dtype) in golden(name).items():
        numbers = rng.standard_normal(shrunk(key, shape))
        if keep(key):
            model[rename(key)] = tensor(numbers if dtype in oracle.FLOATS else numbers * 100, dtype)
    return model


def written(tmp_path, models, **options) -> oracle.File:
    """Solved, saved and read back."""
    paths = [tmp_path / f"m{i}.safetensors" for i in range(len(models))]
    for path, model in zip(paths, models):
        oracle.write(path, model)
    hm.solve(paths, **options).save(tmp_path / "x.hyper.safetensors", force=True)
    return oracle.read(tmp_path / "x.hyper.safetensors")


def moved(file: oracle.File) -> set[str]:
    """The tensors that have directions: those that were merged, since here every tensor differs."""
    return {name.split(".", 3)[3] for name in file.model if name.startswith("hypermerge.direction.1.")}


def is_text(key: str) -> bool:
    return key.startswith(("cond_stage_model.", "conditioner.", "text_encoders.")) and "t5xxl" not in key


def is_constant(key: str) -> bool:
    return key.split(".")[-1] in ("position_ids", "logit_scale")


@pytest.mark.parametrize("name", LISTS)
def test_what_is_merged_and_what_is_copied(tmp_path, name):
    family, count, denoiser, text = LISTS[name]
    assert len(golden(name)) == count
    models = [small(name, seed) for seed in (1, 2)]
    file = written(tmp_path, models)
    assert file.document["family"] == family
    assert set(file.weights()) == set(golden(name))
    expected = {key for key in golden(name) if key.startswith(UNET) or (is_text(key) and not is_constant(key))}
    assert moved(file) == expected
    assert sum(key.startswith(UNET) for key in expected) == denoiser and sum(map(is_text, expected)) == text
    for key in set(golden(name)) - expected:
        assert file.model[key].same(models[0][key]), key
    assert file.metadata["modelspec.architecture"].startswith(("stable-diffusion", "flux"))
    truth = oracle.solve(oracle.stacked(models, sorted(expected)))
    assert file.document["total"] == pytest.approx(truth.total, rel=1e-6)
    blocks = file.document["blocks"]
    assert not any("vae" in block or "t5" in block for block in blocks) and len(blocks) > 10


@pytest.mark.parametrize("name", LISTS)
def test_vae_and_t5_are_merged_when_they_are_named(tmp_path, name):
    models = [small(name, seed) for seed in (1, 2)]
    vae = {key for key in golden(name) if key.startswith(("first_stage_model.", "vae."))}
    assert (
        vae and moved(written(tmp_path, models, include=["first_stage_model.*" if name != "flux" else "vae.*"])) == vae
    )
    if name in ("sd3", "flux"):
        t5 = {key for key in golden(name) if "t5xxl" in key and not is_constant(key)}
        assert t5 and moved(written(tmp_path, models, include=["text_encoders.t5*"])) == t5


@pytest.mark.parametrize("name", LISTS)
def test_files_of_true_shapes_are_known(tmp_path, name):
    """Sparse files: a true header, and data that nobody reads."""
    family, count, *_ = LISTS[name]
    header, at, size = {}, 0, {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}
    for key, (shape, dtype) in golden(name).items():
        end = at + math.prod(shape) * size[dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    path = tmp_path / "sparse.safetensors"
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + at)
    found = hm.inspect(path)
    assert (found["family"], found["tensors"]) == (family, count)
    assert found["parameters"] == sum(math.prod(shape) for shape, _ in golden(name).values())
    assert found["size"] == 8 + len(text) + at > 2 * 10**9
    assert sum(part["tensors"] for part in found["components"].values()) == count


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_file_of_the_denoiser_alone_meets_a_whole_checkpoint(tmp_path, name):
    """Without prefix, and without text encoder and VAE: those come from the carrier, with a note."""
    whole = small(name, 1)
    alone = small(name, 2, rename=lambda key: key.removeprefix(UNET), keep=lambda key: key.startswith(UNET))
    file = written(tmp_path, [whole, alone])
    assert moved(file) == {key for key in golden(name) if key.startswith(UNET)}
    assert all(file.model[key].same(whole[key]) for key in golden(name) if not key.startswith(UNET))
    assert any("text" in note for note in file.document["notes"]) and any(
        "vae" in note for note in file.document["notes"]
    )
    file = written(tmp_path, [alone, whole])  # the first gives the names
    assert set(file.weights()) == set(alone) and moved(file) == set(alone)


def test_old_names_of_the_text_encoder(tmp_path):
    new = small("sd15", 1)
    old = small("sd15", 2, rename=lambda key: key.replace("transformer.text_model.", "transformer."))
    file = written(tmp_path, [new, old])
    assert len(moved(file)) == 686 + 196 and set(file.weights()) == set(new)


def test_ema_copies_are_dropped(tmp_path):
    models = [small("sd15", seed) for seed in (1, 2)]
    for model in models:
        for key in [key for key in model if key.startswith(UNET)]:
            model["model_ema." + key.removeprefix("model.").replace(".", "")] = model[key]
        model["model_ema.decay"] = tensor(np.array(0.9999), "F32")
        model["model_ema.num_updates"] = tensor(np.array(7), "I32")
    file = written(tmp_path, models)
    assert set(file.weights()) == set(golden("sd15")) and len(moved(file)) == 686 + 196
    assert any("EMA" in note for note in file.document["notes"])
    one = written(tmp_path, [models[0], small("sd15", 2)])  # only one of them carries copies
    assert set(one.weights()) == set(golden("sd15"))


def test_damaged_position_ids_do_no_harm(tmp_path):
    models = [small("sd15", seed) for seed in (1, 2)]
    key = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    models[0][key] = tensor(np.arange(77.0)[None] - 0.004, "F16")
    file = written(tmp_path, models)
    assert file.model[key].same(models[0][key]) and key not in moved(file)


def test_different_networks_of_the_lists_are_refused(tmp_path):
    for name in LISTS:
        oracle.write(tmp_path / f"{name}.safetensors", small(name, 1))
    for first in LISTS:
        for second in set(LISTS) - {first}:
            with pytest.raises(hm.MismatchError, match=r"sd15|sdxl|sd3|flux"):
                hm.solve([tmp_path / f"{first}.safetensors", tmp_path / f"{second}.safetensors"])


def test_other_networks_are_welcome(tmp_path):
    """An upscaler and a text model, which no table knows."""
    for shapes in (
        {"conv_first.weight": (4, 3, 3, 3), "body.0.rdb1.conv1.bias": (4,), "conv_last.bias": (3,)},
        {"embed.weight": (9, 4), "layers.0.attn.q.weight": (4, 4), "layers.10.attn.q.weight": (4, 4), "norm": (4,)},
    ):
        rng = np.random.default_rng(1)
        models = [{key: tensor(rng.standard_normal(shape), "F32") for key, shape in shapes.items()} for _ in range(3)]
        file = written(tmp_path, models)
        assert file.document["family"] == "unknown" and moved(file) == set(shapes)
        assert "modelspec.architecture" not in file.metadata
