"""What the tests of live blends share: small hyper-models in files, and their tensors in torch's hands."""

from __future__ import annotations

import numpy as np
import torch

import hypermerge_ext as hm
import oracle
from families import SHAPES, family, save

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced")


def to_torch(item: oracle.Tensor) -> torch.Tensor:
    """A copy in torch's memory."""
    bits = item.stored.view(str(BITS[item.stored.itemsize]).removeprefix("torch."))
    return torch.from_numpy(bits.reshape(item.shape)).clone().view(TORCH[item.dtype])


def from_torch(tensor: torch.Tensor) -> oracle.Tensor:
    """What a tensor holds."""
    dtype = next(name for name, kind in TORCH.items() if kind == tensor.dtype)
    bits = tensor.detach().cpu().contiguous().view(BITS[tensor.element_size()])
    return oracle.Tensor(dtype, bits.numpy().view(oracle.STORAGE[dtype]).reshape(tuple(tensor.shape)).copy())


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers in another order in memory; "sliced" leaves gaps."""
    bits = tensor.view(BITS[tensor.element_size()])
    if layout == "channels_last" and bits.ndim == 4:
        bits = bits.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed" and bits.ndim > 1:
        bits = bits.permute(*reversed(range(bits.ndim))).contiguous().permute(*reversed(range(bits.ndim)))
    elif layout == "sliced" and bits.ndim > 0:
        room = torch.full((*bits.shape[:-1], 2 * bits.shape[-1] + 3), 85, dtype=bits.dtype)
        room[..., 1 : 1 + 2 * bits.shape[-1] : 2] = bits
        bits = room[..., 1 : 1 + 2 * bits.shape[-1] : 2]
    return bits.view(tensor.dtype)


def state_of(path, dtype: str | None = None, layout: str = "contiguous") -> dict[str, torch.Tensor]:
    """The base of a hyper-model as a host would hold it: cast(W̃)."""
    state = {}
    for name, item in oracle.read(path).weights().items():
        if dtype is not None and item.dtype in oracle.FLOATS and item.dtype != dtype:
            item = oracle.tensor(item.f32(), dtype)
        state[name] = lay_out(to_torch(item), layout)
    return state


def equal_numbers(one: oracle.Tensor, other: oracle.Tensor) -> bool:
    """The same bits, but that any NaN equals any NaN (its sign is the processor's affair)."""
    nan = np.isnan(one.f64())
    if one.dtype != other.dtype or one.shape != other.shape or (nan != np.isnan(other.f64())).any():
        return False
    return one.stored[~nan].tobytes() == other.stored[~nan].tobytes()


def same(state: dict[str, torch.Tensor], model: oracle.Model) -> bool:
    """Does every tensor hold these very bits?"""
    return all(from_torch(tensor).same(model[name]) for name, tensor in state.items())


def copies(state: dict[str, torch.Tensor]) -> oracle.Model:
    """What all of them hold now."""
    return {name: from_torch(tensor) for name, tensor in state.items()}


def blended(path, at, dtype: str | None = None) -> oracle.Model:
    """What a live blend must write, by the oracle, from the file alone."""
    file = oracle.read(path)
    count = file.document["directions"]
    model = {}
    for name, item in file.weights().items():
        directions = {k: file.direction(k, name) for k in range(1, count + 1)}
        found = [(c, directions[k]) for k, c in enumerate(at, start=1) if directions[k] is not None]
        kind = dtype if dtype is not None and item.dtype in oracle.FLOATS else item.dtype
        if any(part is not None for part in directions.values()) or file.low(name) is not None:
            x = item.f32()
            if file.low(name) is not None:
                x = x + file.low(name).f32()
            for c, part in found:
                if np.float32(c) != 0:
                    x = x + np.float32(c) * part.f32()
            model[name] = oracle.Tensor(kind, oracle.encode(x, kind))
        else:
            model[name] = item if kind == item.dtype else oracle.tensor(item.f32(), kind)
    return model


def make(
    folder, count: int = 4, directions: int | None = None, dtype: str = "F16", shapes=SHAPES, seed: int = 5, **more
):
    """Solves a small family, saves and loads it: (HyperModel, path)."""
    folder.mkdir(exist_ok=True)
    models = family(count, seed=seed, dtypes=dtype, delta=more.pop("delta", 0.1), shapes=shapes)
    solved = hm.solve(save(folder, models), directions=directions, **more)
    path = folder / "x.hyper.safetensors"
    solved.save(path, force=True)
    return hm.load(path), path
