"""Samples the demo models in NumPy: reads a file, runs SD3's MMDiT of depth 1, follows the flow to a picture.

The arithmetic is that of a host that opens the same file as SD3 (float32, Euler steps on the "simple" schedule with
shift 3, no guidance), many pictures at once.
"""

import json
import struct
from pathlib import Path

import numpy as np

import drawing

PREFIX = "model.diffusion_model."
STEPS = 20
SHIFT = 3.0
TOGETHER = 16  # pictures per pass: their activations stay in the processor's cache


class ModelError(Exception):
    """A file that is not one of the models this sampler knows; the message names the file."""


def shifted(u):
    """Noise levels 0 ... 1 moved towards 1, as SD3 samples: most of the picture is decided in heavy noise."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def schedule(steps=STEPS):
    """The noise levels of the "simple" schedule, from 1 down to 0: steps + 1 numbers."""
    index = 1000 - (np.arange(steps) * (1000 / steps)).astype(int)
    return np.append(shifted(index / 1000), 0.0).astype(np.float32)


def noise(seed, n):
    """[n, 6, 16, 16]: the same start for the same seed and place in the batch, whichever model follows it."""
    shape = (n, drawing.USED, drawing.LATENT, drawing.LATENT)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# ---- files ---------------------------------------------------------------------------------------------------------


def _widen_bf16(raw):
    return (raw.astype(np.uint32) << 16).view(np.float32)


_TYPES = {
    "F32": ("<f4", lambda raw: raw),
    "F16": ("<f2", lambda raw: raw.astype(np.float32)),
    "BF16": ("<u2", _widen_bf16),
}


def read(path):
    """{name: float32 array} of the diffusion model in a safetensors file: fp32, fp16 or bf16.

    A checkpoint that carries more (a hyper-model with its directions) opens as the diffusion model it has.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        weights = {}
        for name, entry in header.items():
            if not name.startswith(PREFIX):
                continue
            stored, widen = _TYPES[entry["dtype"]]
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            raw = np.frombuffer(data[begin:end], stored)
            weights[name] = np.array(widen(raw).reshape(entry["shape"]))
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a safetensors file that this sampler reads ({error!r})") from error
    return weights


# ---- the network ---------------------------------------------------------------------------------------------------


def _silu(x):
    return x / (1 + np.exp(-x))


def _gelu(x):
    # The tanh form, in place: this is where a third of the time goes.
    inner = x * x
    inner *= np.float32(0.044715 * np.sqrt(2 / np.pi))
    inner += np.float32(np.sqrt(2 / np.pi))
    inner *= x
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= np.float32(0.5)
    return inner


def _modulated(x, shift, scale):
    """LayerNorm without its own weights, then the scale and shift that time and prompt ask for."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.einsum("...i,...i->...", centred, centred)[..., None] / np.float32(x.shape[-1])
    centred *= (1 / np.sqrt(variance + np.float32(1e-6))) * (1 + scale)
    centred += shift
    return centred


class Model:
    """One checkpoint, ready to sample. Weights are float32, linear layers transposed once for `x @ w + b`."""

    def __init__(self, weights, name="model"):
        w = {key.removeprefix(PREFIX): np.asarray(value, np.float32) for key, value in weights.items()}
        try:
            self.width = w["pos_embed"].shape[-1]
            self.grid = int(np.sqrt(w["pos_embed"].shape[1]))
            self.positions = w.pop("pos_embed")[0]
            patch = w.pop("x_embedder.proj.weight")[:, : drawing.USED]
            self.patch = np.ascontiguousarray(patch.reshape(self.width, -1).T)
            self.patch_bias = w.pop("x_embedder.proj.bias")
            # The last layer's rows are (row, column, channel) of a 2 x 2 patch, channel fastest; only six are pictures.
            for kind in ("weight", "bias"):
                last = w["final_layer.linear." + kind]
                last = last.reshape(2, 2, drawing.CHANNELS, *last.shape[1:])[:, :, : drawing.USED]
                w["final_layer.linear." + kind] = last.reshape(4 * drawing.USED, *last.shape[3:])
            names = sorted(key.removesuffix(".weight") for key in w if key.endswith(".weight"))
            self.layers = {key: (np.ascontiguousarray(w[key + ".weight"].T), w[key + ".bias"]) for key in names}
            self.layers["final_layer.linear"], self.layers["joint_blocks.0.x_block.mlp.fc1"]
        except (KeyError, ValueError, IndexError) as error:
            raise ModelError(f"{name}: not a model of the demo family ({error})") from error
        half = 128
        self.frequencies = np.exp(-np.log(10000) / half * np.arange(half)).astype(np.float32)

    @classmethod
    def load(cls, path):
        return cls(read(path), str(path))

    def _linear(self, name, x):
        weight, bias = self.layers[name]
        out = x.reshape(-1, x.shape[-1]) @ weight
        out += bias
        return out.reshape(*x.shape[:-1], -1)

    def _modulation(self, block, c, count):
        return np.split(self._linear(block + "adaLN_modulation.1", c)[:, None], count, axis=-1)

    def velocity(self, x, sigma, context, pooled):
        """x [n, 6, 16, 16] at the noise level sigma (a number) -> the velocity noise - picture, same shape."""
        n, side, width = len(x), self.grid, self.width
        patches = x.reshape(n, drawing.USED, side, 2, side, 2).transpose(0, 2, 4, 1, 3, 5)
        tokens = patches.reshape(n * side * side, -1) @ self.patch
        tokens = tokens.reshape(n, side * side, width) + (self.positions + self.patch_bias)

        angles = np.float32(1000 * sigma) * self.frequencies
        moment = np.concatenate([np.cos(angles), np.sin(angles)])[None]
        c = self._linear("t_embedder.mlp.2", _silu(self._linear("t_embedder.mlp.0", moment)))
        c = c + self._linear("y_embedder.mlp.2", _silu(self._linear("y_embedder.mlp.0", pooled)))
        c = _silu(c)

        block = "joint_blocks.0.context_block."
        words = self._linear("context_embedder", context)
        words = self._linear(block + "attn.qkv", _modulated(words, *self._modulation(block, c, 2)))
        block = "joint_blocks.0.x_block."
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self._modulation(block, c, 6)
        image = self._linear(block + "attn.qkv", _modulated(tokens, shift, scale))
        # Attention over words and image together; words only answer, because after the last block nobody reads them.
        keys = np.concatenate([words[..., width : 2 * width], image[..., width : 2 * width]], axis=1)
        values = np.concatenate([words[..., 2 * width :], image[..., 2 * width :]], axis=1)
        scores = image[..., :width] @ keys.transpose(0, 2, 1)
        scores *= np.float32(1 / np.sqrt(width))
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        tokens += gate * self._linear(block + "attn.proj", scores @ values)
        hidden = _gelu(self._linear(block + "mlp.fc1", _modulated(tokens, shift_mlp, scale_mlp)))
        tokens += gate_mlp * self._linear(block + "mlp.fc2", hidden)

        tokens = _modulated(tokens, *self._modulation("final_layer.", c, 2))
        out = self._linear("final_layer.linear", tokens).reshape(n, side, side, 2, 2, drawing.USED)
        return out.transpose(0, 5, 1, 3, 2, 4).reshape(n, drawing.USED, 2 * side, 2 * side)

    def sample_latents(self, scenes, seed=0, steps=STEPS):
        """[n, 6, 16, 16] latents of the scenes, by Euler steps from the seed's noise."""
        context, pooled = drawing.condition(scenes)
        x = noise(seed, len(pooled))
        levels = schedule(steps)
        for first in range(0, len(x), TOGETHER):
            part = slice(first, first + TOGETHER)
            for sigma, following in zip(levels[:-1], levels[1:]):
                x[part] += (following - sigma) * self.velocity(x[part], sigma, context[part], pooled[part])
        return x

    def sample(self, scenes, seed=0, steps=STEPS):
        """[n, 32, 32, 3] pictures of the scenes."""
        return drawing.unpack(self.sample_latents(scenes, seed, steps))


# ---- how good, and which look --------------------------------------------------------------------------------------


def psnr(pictures, exact):
    """Peak signal to noise ratio in dB of pictures 0 ... 1."""
    return float(-10 * np.log10(np.mean((pictures - exact) ** 2)))


def quality(path, a=0.0, b=0.0, n=64):
    """PSNR of sampled pictures against the exact drawings of the look (a, b), over n scenes of a fixed seed."""
    scenes = drawing.random_scene(np.random.default_rng(1000), n)
    return psnr(Model.load(path).sample(scenes, seed=1000), drawing.draw(scenes, a, b))


def look(pictures, scenes):
    """(a, b) read off the pictures, means over all: colour temperature from the ground, fill from the interiors."""
    d = drawing.distance(scenes)
    ground = np.array([p[far].mean(0) for p, far in zip(pictures, d > 3)])
    temperature = (ground[:, 0] - ground[:, 2]) / (2 * drawing.TINT * drawing.GROUND)
    ink = drawing.colours(scenes.hue) * np.array([drawing.tint(a) for a in temperature])
    heart = np.array([p[deep].mean(0) for p, deep in zip(pictures, d < -drawing.OUTLINE - 1.5)])
    way = ground - ink
    opacity = np.sum((ground - heart) * way, -1) / np.sum(way * way, -1)
    return float(temperature.mean()), float((2 * (drawing.FILL - opacity)).mean())
