"""Names, shapes and configuration of an SDXL that A1111 builds as its .yaml says: the small UNet of sd15.py with SDXL's
linear projections and its embedding of sizes, CLIP-L and the VAE of true size, the second text encoder of ViT-B-32's.
"""

from __future__ import annotations

import gzip
import json
import re

from webui import sd15

CLIP_L, SECOND, DEEP = 768, 512, 12
"""Widths of the text encoders, and how many blocks the second has: 1280 and 32 in SDXL."""
SIZES = 3 * 2 * 256
"""Embedded numbers of sizes and crops."""
SECOND_TEXT = "conditioner.embedders.1.model."
CONFIG = f"""\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: True
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        weighting_config: {{ target: sgm.modules.diffusionmodules.denoiser_weighting.EpsWeighting }}
        scaling_config: {{ target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling }}
        discretization_config: {{ target: sgm.modules.diffusionmodules.discretizer.LegacyDDPMDiscretization }}
    network_config:
      target: sgm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        adm_in_channels: {SECOND + SIZES}
        num_classes: sequential
        use_checkpoint: False
        in_channels: 4
        out_channels: 4
        model_channels: 320
        attention_resolutions: [ 1 ]
        num_res_blocks: 1
        channel_mult: [ 1 ]
        num_head_channels: 64
        use_spatial_transformer: True
        use_linear_in_transformer: True
        transformer_depth: [ 1 ]
        context_dim: {CLIP_L + SECOND}
        spatial_transformer_attn_type: softmax
        legacy: False
    conditioner_config:
      target: sgm.modules.GeneralConditioner
      params:
        emb_models:
          - is_trainable: False
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
            params: {{ layer: hidden, layer_idx: 11 }}
          - is_trainable: False
            input_key: txt
            target: sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2
            params:
              {{ arch: ViT-B-32, freeze: True, layer: penultimate, always_return_pooled: True, legacy: False }}
          - is_trainable: False
            input_key: original_size_as_tuple
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{ outdim: 256 }}
          - is_trainable: False
            input_key: crop_coords_top_left
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{ outdim: 256 }}
          - is_trainable: False
            input_key: target_size_as_tuple
            target: sgm.modules.encoders.modules.ConcatTimestepEmbedderND
            params: {{ outdim: 256 }}
    first_stage_config:
      target: sgm.models.autoencoder.AutoencoderKLInferenceWrapper
      params:
        embed_dim: 4
        ddconfig:
          attn_type: vanilla
{sd15.AUTOENCODER}"""


def shapes() -> dict[str, list[int]]:
    """Names and shapes of such a checkpoint."""
    with gzip.open(sd15.GOLDEN / "sdxl.json.gz") as source:
        whole = {name: shape for name, (shape, _) in json.load(source).items()}
    found = {name: _unet(name, shape) for name, shape in sd15.shapes().items() if name.startswith("model.")}
    for name, shape in whole.items():
        if ".label_emb." in name:
            found[name] = [SECOND + SIZES if size == 2816 else size for size in shape]
        elif name.startswith(SECOND_TEXT):
            block = re.search(r"resblocks\.(\d+)", name)
            if block is None or int(block[1]) < DEEP:
                found[name] = [size * SECOND // 1280 if size % 1280 == 0 else size for size in shape]
        elif name.startswith(("conditioner.", "first_stage_model.")):
            found[name] = shape
    return found


def _unet(name: str, shape: list[int]) -> list[int]:
    if re.search(r"attn2\.to_[kv]\.weight$", name):
        return [shape[0], CLIP_L + SECOND]
    if re.search(r"proj_(in|out)\.weight$", name):
        return shape[:2]
    return shape


def lora_layers() -> dict[str, tuple[int, int]]:
    """As sd15.lora_layers, in kohya's names for SDXL, on both text encoders."""
    wide = {"attn1_to_q": (320, 320), "attn2_to_k": (CLIP_L + SECOND, 320), "attn1_to_out_0": (320, 320)}
    layers = {}
    for block in ("input_blocks_1_1", "middle_block_1", "output_blocks_0_1"):
        layers |= {f"lora_unet_{block}_transformer_blocks_0_{name}": size for name, size in wide.items()}
    for text, width in ("te1", CLIP_L), ("te2", SECOND):
        layers |= {f"lora_{text}_text_model_encoder_layers_{n}_mlp_fc1": (width, 4 * width) for n in range(3)}
    return layers
