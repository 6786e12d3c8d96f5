"""Random checkpoints which the web UIs load as SD1.5: a small UNet between the text encoder and VAE of true size.

Forge knows a checkpoint by the width of its UNet (320 channels), and takes text encoder and VAE from its own
configuration; so the UNet alone can shrink, to one level with one block.  A1111 builds what the .yaml beside says.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PLACES = ((1.0, 0.1), (-0.5, 0.9), (-0.4, -0.8))  # of the models on the two hidden factors
AUTOENCODER = """\
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult: [ 1, 2, 4, 4 ]
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
"""
"""What both families say of the VAE, which is of true size."""
CONFIG = f"""\
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 64
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions: [ 1 ]
        num_res_blocks: 1
        channel_mult: [ 1 ]
        num_heads: 8
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: 768
        use_checkpoint: False
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig:
{AUTOENCODER}    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""


def shapes(full: bool = False) -> dict[str, list[int]]:
    """Names and shapes of a whole SD1.5 checkpoint, with the small UNet or (full) its own."""
    with gzip.open(GOLDEN / "sd15.json.gz") as source:
        whole = {name: shape for name, (shape, _) in json.load(source).items()}
    if full:
        return whole
    unet = json.loads((GOLDEN / "sd15-mini.json").read_text(encoding="utf-8"))
    # That one has no middle block, which the web UIs do not know how to leave out.
    for block, like in (("0.", "1.0."), ("1.", "1.1."), ("2.", "1.0.")):
        start = f"model.diffusion_model.input_blocks.{like}"
        middle = f"model.diffusion_model.middle_block.{block}"
        unet |= {middle + name[len(start) :]: shape for name, shape in unet.items() if name.startswith(start)}
    return {**unet, **{name: shape for name, shape in whole.items() if not name.startswith("model.")}}


class Noise:
    """Normal numbers out of one long buffer: a quarter of a billion of them would take longer than the tests."""

    def __init__(self, seed: int) -> None:
        self._numbers = np.random.default_rng(seed).standard_normal(1 << 22, dtype=np.float32)

    def take(self, shape: Sequence[int], key: int) -> np.ndarray:
        """Numbers of `shape`, from another place in the buffer for each key."""
        size, start = int(np.prod(shape)), 7919 * key % 1_000_003
        return np.resize(self._numbers[start:], size).reshape(shape)


def write_family(
    folder: Path,
    *,
    full: bool = False,
    places: Sequence[Sequence[float]] = PLACES,
    names: dict[str, list[int]] | None = None,
    config: str = CONFIG,
) -> list[Path]:
    """model-0.safetensors … in half precision, each with its .yaml; the VAE is the same in all of them.

    names, config: of another network than SD1.5's, with their shapes.
    """
    noise, names, same, paths = Noise(5), names or shapes(full), {}, []
    for m, place in enumerate(places):
        model = dict(same)
        for index, (name, shape) in enumerate(names.items()):
            if name in same:
                continue
            if name.endswith("position_ids"):
                same[name] = model[name] = np.arange(shape[-1], dtype=np.int64).reshape(shape)
                continue
            norm = name.endswith("weight") and len(shape) == 1
            scale = np.sqrt(1 / np.prod(shape[1:])) if len(shape) > 1 else 0.02
            numbers = noise.take(shape, 3 * index)
            fixed = name.startswith("first_stage_model.")
            for k, amount in enumerate(() if fixed else place, start=1):
                numbers = numbers + np.float32(0.25 * amount) * noise.take(shape, 3 * index + k)
            model[name] = np.asarray(np.float32(scale) * numbers + np.float32(norm), np.float16)
            if fixed:
                same[name] = model[name]
        path = folder / f"model-{m}.safetensors"
        save_file(model, path)
        if not full:
            path.with_suffix(".yaml").write_text(config, encoding="utf-8")
        paths.append(path)
    return paths


def lora_layers() -> dict[str, tuple[int, int]]:
    """Of a LoRA in kohya's names, on layers that the small UNet has, and on the text encoder: how many numbers go in, out."""
    wide = {"attn1_to_q": (320, 320), "attn2_to_k": (768, 320), "attn1_to_out_0": (320, 320)}
    layers = {}
    for block in ("down_blocks_0_attentions_0", "mid_block_attentions_0", "up_blocks_0_attentions_0"):
        layers |= {f"lora_unet_{block}_transformer_blocks_0_{name}": size for name, size in wide.items()}
    return layers | {f"lora_te_text_model_encoder_layers_{n}_mlp_fc1": (768, 3072) for n in range(3)}


def write_lora(path: Path, layers: dict[str, tuple[int, int]], rank: int = 4) -> None:
    rng = np.random.default_rng(9)
    tensors = {}
    for name, (inner, outer) in layers.items():
        tensors[f"{name}.lora_down.weight"] = (0.1 * rng.standard_normal((rank, inner))).astype(np.float16)
        tensors[f"{name}.lora_up.weight"] = (0.1 * rng.standard_normal((outer, rank))).astype(np.float16)
        tensors[f"{name}.alpha"] = np.array(rank, dtype=np.float32)
    save_file(tensors, path)


def picture(size: int) -> str:
    """A PNG of soft colours, as base64."""
    y, x = np.mgrid[:size, :size] / size
    pixels = np.stack([x, y, 1 - x], axis=2) * 255
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
