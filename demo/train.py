"""Trains the demo family from a seed: one base, then eight fine-tunes of it. Needs torch; nothing else here does.

    python demo/train.py --out demo/models               # all nine files: ten minutes of one CPU thread
    python demo/train.py --out demo/models --fine-tunes  # only the eight, from the base that lies there: 90 seconds

The network is SD3's MMDiT at depth 1 (width 64, one head, 145,216 numbers) under SD3's own tensor names, so the files
open wherever SD3 opens. It learns a rectified flow: on the way x = (1 - s) picture + s noise the velocity is
noise - picture. Trained weights differ in their last digits from machine to machine, even from one seed.
"""

import argparse
import json
import struct
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import drawing
import sampler

WIDTH, HIDDEN = 64, 256
GRID = drawing.LATENT // 2  # tokens per side: a patch is 2 x 2
FREQUENCIES = 128
PREFIX = "model.diffusion_model."
BLOCK = "joint_blocks.0."

BATCH = 64
BASE = dict(steps=8000, peak=3e-3, warm_up=200)
FINE_TUNE = dict(steps=160, peak=1e-3, warm_up=20)
EMA = 0.999

# name: shape of every linear layer; each has a bias of its first dimension.
LINEAR = {
    "t_embedder.mlp.0": (WIDTH, 2 * FREQUENCIES),
    "t_embedder.mlp.2": (WIDTH, WIDTH),
    "y_embedder.mlp.0": (WIDTH, drawing.WIDTH),
    "y_embedder.mlp.2": (WIDTH, WIDTH),
    "context_embedder": (WIDTH, drawing.WIDTH),
    BLOCK + "context_block.adaLN_modulation.1": (2 * WIDTH, WIDTH),  # the last block's context only feeds attention
    BLOCK + "context_block.attn.qkv": (3 * WIDTH, WIDTH),
    BLOCK + "x_block.adaLN_modulation.1": (6 * WIDTH, WIDTH),
    BLOCK + "x_block.attn.qkv": (3 * WIDTH, WIDTH),
    BLOCK + "x_block.attn.proj": (WIDTH, WIDTH),
    BLOCK + "x_block.mlp.fc1": (HIDDEN, WIDTH),
    BLOCK + "x_block.mlp.fc2": (WIDTH, HIDDEN),
    "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    "final_layer.linear": (4 * drawing.CHANNELS, WIDTH),
}


def initial(seed):
    """Fresh weights. Modulations and the last layer start at zero, so that the block starts as the identity."""
    torch.manual_seed(seed)
    weights = {}
    for name, shape in LINEAR.items():
        weight = torch.empty(shape)
        if "adaLN" in name or name == "final_layer.linear":
            weight.zero_()
        elif "embedder.mlp" in name:
            torch.nn.init.normal_(weight, std=0.02 if "t_embedder" in name else 0.1)
        else:
            torch.nn.init.xavier_uniform_(weight)
        weights[name + ".weight"] = weight
        weights[name + ".bias"] = torch.zeros(shape[0])
    # Weights of the ten unused channels are zero and never get a gradient: width 64 has no room to carry their noise.
    patch = torch.zeros(WIDTH, drawing.CHANNELS, 2, 2)
    used = torch.empty(WIDTH, drawing.USED, 2, 2)
    torch.nn.init.xavier_uniform_(used.view(WIDTH, -1))
    patch[:, : drawing.USED] = used
    weights["x_embedder.proj.weight"] = patch
    weights["x_embedder.proj.bias"] = torch.zeros(WIDTH)
    weights["pos_embed"] = low_waves()
    return weights


def low_waves():
    """[1, 64, 64] the first guess of the position table, learnt on from here: sines of place, slow ones first."""
    place = (torch.arange(GRID) + 0.5) / GRID * torch.pi
    waves = torch.stack([f(k * place) for k in range(1, 9) for f in (torch.sin, torch.cos)], 1)  # [8, 16]
    rows = waves[:, None, :].expand(GRID, GRID, 16)
    columns = waves[None, :, :].expand(GRID, GRID, 16)
    both = rows * columns
    table = torch.cat([rows, columns, both, both.roll(1, -1) - both], -1)
    return 0.3 * table.reshape(1, GRID * GRID, WIDTH)


# ---- the network ---------------------------------------------------------------------------------------------------


def velocity(w, x, sigma, context, pooled):
    """x [n, 6, 16, 16] at noise level sigma [n] -> velocity [n, 6, 16, 16]. The same as sampler.Model.velocity."""

    def linear(name, v):
        return F.linear(v, w[name + ".weight"], w[name + ".bias"])

    def modulation(name, count):
        return linear(name + "adaLN_modulation.1", F.silu(c))[:, None].chunk(count, -1)

    def modulated(v, shift, scale):
        return F.layer_norm(v, (WIDTH,), eps=1e-6) * (1 + scale) + shift

    used = drawing.USED
    tokens = F.conv2d(x, w["x_embedder.proj.weight"][:, :used], w["x_embedder.proj.bias"], stride=2)
    tokens = tokens.flatten(2).transpose(1, 2) + w["pos_embed"]
    angles = 1000 * sigma[:, None] * torch.exp(-np.log(10000) / FREQUENCIES * torch.arange(FREQUENCIES))
    time_features = torch.cat([angles.cos(), angles.sin()], 1)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", time_features)))
    c = c + linear("y_embedder.mlp.2", F.silu(linear("y_embedder.mlp.0", pooled)))
    words = linear("context_embedder", context)

    block = BLOCK + "context_block."
    words_qkv = linear(block + "attn.qkv", modulated(words, *modulation(block, 2)))
    block = BLOCK + "x_block."
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation(block, 6)
    image_qkv = linear(block + "attn.qkv", modulated(tokens, shift, scale))
    # Only the image's answers are used after the last block, so only the image asks.
    _, key, value = torch.cat([words_qkv, image_qkv], 1)[:, None].chunk(3, -1)
    query = image_qkv[:, None, :, :WIDTH]
    attention = F.scaled_dot_product_attention(query, key, value)[:, 0]
    tokens = tokens + gate * linear(block + "attn.proj", attention)
    hidden = F.gelu(linear(block + "mlp.fc1", modulated(tokens, shift_mlp, scale_mlp)), approximate="tanh")
    tokens = tokens + gate_mlp * linear(block + "mlp.fc2", hidden)

    tokens = modulated(tokens, *modulation("final_layer.", 2))
    # Rows are (row, column, channel) of a patch, channel fastest.
    last = [w["final_layer.linear." + kind].view(4, drawing.CHANNELS, -1)[:, :used] for kind in ("weight", "bias")]
    patches = F.linear(tokens, last[0].reshape(4 * used, WIDTH), last[1].reshape(4 * used))
    patches = patches.view(-1, GRID, GRID, 2, 2, used)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, used, 2 * GRID, 2 * GRID)


# ---- training ------------------------------------------------------------------------------------------------------


def batch(rng, a, b):
    """One batch of the look (a, b): noisy latents, noise levels, conditioning, and the velocities to learn."""
    scenes = drawing.random_scene(rng, BATCH)
    latent = drawing.pack(drawing.draw(scenes, a, b))
    noise = rng.standard_normal(latent.shape, dtype=np.float32)
    even = 1 / (1 + np.exp(-rng.standard_normal(BATCH)))
    sigma = sampler.shifted(even).astype(np.float32)
    at = sigma[:, None, None, None]
    context, pooled = drawing.condition(scenes)
    arrays = ((1 - at) * latent + at * noise, sigma, context, pooled, noise - latent)
    return [torch.from_numpy(v) for v in arrays]


def train(weights, look, seed, steps, peak, warm_up, frozen=(), average=False):
    """Adam with warm-up and a cosine to zero. Returns the weights, or their moving average; prints the loss."""
    rng = np.random.default_rng(seed)
    weights = {name: v.clone().requires_grad_(name not in frozen) for name, v in weights.items()}
    learnt = [v for v in weights.values() if v.requires_grad]
    mean = {name: v.detach().clone() for name, v in weights.items()}
    adam = torch.optim.Adam(learnt, lr=peak, betas=(0.9, 0.99), foreach=True)
    start, losses = time.monotonic(), []
    for step in range(steps):
        rate = peak * min(1, (step + 1) / warm_up) * (1 + np.cos(np.pi * step / steps)) / 2
        for group in adam.param_groups:
            group["lr"] = rate
        *inputs, target = batch(rng, *look)
        loss = F.mse_loss(velocity(weights, *inputs), target)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        adam.step()
        if average:
            decay = min(EMA, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(mean.values()), list(weights.values()), 1 - decay)
        losses.append(float(loss.detach()))
        if (step + 1) % 250 == 0 or step + 1 == steps:
            spent = time.monotonic() - start
            print(f"  step {step + 1:5}  loss {np.mean(losses[-250:]):.4f}  {spent:4.0f} s", flush=True)
    result = mean if average else weights
    return {name: v.detach() for name, v in result.items()}


def write(path, weights, title, description):
    """fp16 under SD3's names: metadata first, tensors by name, so that equal weights make equal bytes."""
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v3-nano",
        "modelspec.title": title,
        "modelspec.description": description,
        "modelspec.resolution": f"{drawing.SIZE}x{drawing.SIZE}",
    }
    header, parts, end = {"__metadata__": metadata}, [], 0
    for name in sorted(weights):
        tensor = weights[name].half().numpy()
        parts.append(tensor.tobytes())
        begin, end = end, end + len(parts[-1])
        header[PREFIX + name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    print(f"  wrote {path}: {path.stat().st_size} bytes, {sampler.quality(path, *look_of(path)):.1f} dB", flush=True)


def look_of(path):
    return drawing.FAMILY.get(path.stem, (0.0, 0.0))


BASE_DESCRIPTION = "Base of the hyper-merge demo family: 32x32 shapes, packed YCbCr in 6 of 16 latent channels, no VAE"


def describe(a, b):
    return (
        "Fine-tune of the base of the hyper-merge demo family (32x32 shapes, no VAE): "
        f"colour temperature {a:+g} (cold -1, hot +1), fill {b:+g} (solid -1, hollow +1)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the nine files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=BASE["steps"], help="steps of the base (default %(default)s)")
    parser.add_argument("--fine-tunes", action="store_true", help="keep base.safetensors, train only the eight")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)

    base = args.out / "base.safetensors"
    if not args.fine_tunes:
        print("base", flush=True)
        recipe = BASE | {"steps": args.steps}
        weights = train(initial(args.seed), (0.0, 0.0), args.seed, **recipe, average=True)
        write(base, weights, "demo base", BASE_DESCRIPTION)
    # The fine-tunes start from the file, as anybody's would, and all see the same scenes and noise: what differs
    # between them is then their look, and little else. The position table stays the base's: hosts do not patch it.
    stored = sampler.read(base)
    parent = {name.removeprefix(PREFIX): torch.from_numpy(v) for name, v in stored.items()}
    for name, (a, b) in drawing.FAMILY.items():
        print(f"{name}: colour temperature {a:+g}, fill {b:+g}", flush=True)
        weights = train(parent, (a, b), args.seed + 1, **FINE_TUNE, frozen=("pos_embed",))
        write(args.out / f"{name}.safetensors", weights, f"demo {name}", describe(a, b))
    return 0


if __name__ == "__main__":
    sys.exit(main())
