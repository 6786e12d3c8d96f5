"""An oracle for the tests that shares nothing with hyper-merge: plain NumPy in f64, the SVD of the stacked matrix where
the program works with a Gram matrix, and a safetensors reader and writer of its own."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import NamedTuple

import numpy as np

# ---- element types --------------------------------------------------------------------------------------------------


def _fp8_table(mantissa: int, bias: int, has_infinity: bool) -> np.ndarray:
    """The 256 values of a float of one byte."""
    values = np.empty(256)
    exponents = 7 - mantissa
    for code in range(128):
        exponent, fraction = code >> mantissa, code & ((1 << mantissa) - 1)
        if exponent == 0:
            value = fraction * 2.0 ** (1 - bias - mantissa)
        else:
            value = (1 + fraction / (1 << mantissa)) * 2.0 ** (exponent - bias)
        if has_infinity and exponent == (1 << exponents) - 1:
            value = np.inf if fraction == 0 else np.nan
        if not has_infinity and code == 0x7F:
            value = np.nan
        values[code], values[code | 0x80] = value, -value
    return values


FP8 = {"F8_E4M3": _fp8_table(3, 7, False), "F8_E5M2": _fp8_table(2, 15, True)}
STORAGE = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
    "U16": np.uint16, "U8": np.uint8, "BOOL": np.uint8,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
STEP = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3}
"""Half a unit in the last place of 1: the largest relative error of rounding a normal number."""


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as f32 to their stored form, one rounding to nearest even; fp8 saturates."""
    if dtype not in FLOATS or dtype == "F64":
        return np.asarray(values).astype(STORAGE[dtype])
    values = np.asarray(values).astype(np.float32)
    if dtype in ("F32", "F16"):
        with np.errstate(over="ignore"):  # becomes infinity, as it should
            return values.astype(STORAGE[dtype])
    if dtype == "BF16":
        bits = values.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    table = FP8[dtype]
    positive = table[:128][np.isfinite(table[:128])]
    size = np.minimum(np.abs(values.astype(np.float64)), positive[-1])
    above = np.clip(np.searchsorted(positive, size), 1, positive.size - 1)
    low, high = positive[above - 1], positive[above]
    middle = (low + high) / 2
    up = (size > middle) | ((size == middle) & (above % 2 == 0))
    code = np.where(up, above, above - 1)
    return np.where(np.isnan(values), 0x7F, code | np.where(np.signbit(values), 0x80, 0)).astype(np.uint8)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers in f64, exactly; integers as they are."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype in FP8:
        return FP8[dtype][stored]
    return stored.astype(np.float64) if dtype in FLOATS else stored


class Tensor(NamedTuple):
    """A tensor as it is stored."""

    dtype: str
    stored: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def f64(self) -> np.ndarray:
        """Its numbers in f64."""
        return decode(self.stored, self.dtype)

    def f32(self) -> np.ndarray:
        """Its numbers in f32, as blends begin with them."""
        return self.f64().astype(np.float32)

    def same(self, other: Tensor) -> bool:
        """The same type, shape and bits?"""
        return (self.dtype, self.shape) == (
            other.dtype,
            other.shape,
        ) and self.stored.tobytes() == other.stored.tobytes()


def tensor(values: np.ndarray, dtype: str) -> Tensor:
    """Numbers rounded to `dtype`."""
    return Tensor(dtype, encode(np.asarray(values), dtype))


Model = dict[str, Tensor]

# ---- files ----------------------------------------------------------------------------------------------------------


def write(path, model: Model, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the tensors in the order of the dict."""
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    data, at = [], 0
    for name, item in model.items():
        raw = item.stored.tobytes()
        header[name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + b"".join(data))


class File(NamedTuple):
    """All that a safetensors file holds."""

    model: Model
    """In the order of the data area."""
    metadata: dict[str, str]
    header: bytes
    """The header as it stands, without its length."""
    offsets: dict[str, int]
    """Of each tensor, from the start of the file."""
    data_sha256: str

    @property
    def document(self) -> dict:
        """The `hypermerge` metadata document."""
        return json.loads(self.metadata["hypermerge"])

    def weights(self) -> Model:
        """The tensors that are not ours: W̃."""
        return {name: item for name, item in self.model.items() if not name.startswith("hypermerge.")}

    def direction(self, k: int, name: str) -> Tensor | None:
        """D_k of a tensor, k from 1."""
        return self.model.get(f"hypermerge.direction.{k}.{name}")

    def low(self, name: str) -> Tensor | None:
        """base_low of a tensor."""
        return self.model.get(f"hypermerge.base_low.{name}")


def read(path) -> File:
    """Reads a whole file and checks the rules of the format."""
    with open(path, "rb") as source:
        raw = source.read()
    length = struct.unpack("<Q", raw[:8])[0]
    text, data = raw[8 : 8 + length], raw[8 + length :]

    def no_duplicates(pairs):
        assert len({name for name, _ in pairs}) == len(pairs), "a name is given twice"
        return dict(pairs)

    header = json.loads(text, object_pairs_hook=no_duplicates)
    metadata = header.pop("__metadata__", {})
    assert all(isinstance(value, str) for value in metadata.values())
    model, offsets, end = {}, {}, 0
    for name, item in sorted(header.items(), key=lambda pair: (pair[1]["data_offsets"], list(header).index(pair[0]))):
        begin, stop = item["data_offsets"]
        assert begin == end, f"{name}: hole or overlap"
        end = stop
        model[name] = Tensor(
            item["dtype"], np.frombuffer(data[begin:stop], STORAGE[item["dtype"]]).reshape(item["shape"]).copy()
        )
        offsets[name] = 8 + length + begin
    assert end == len(data), "bytes behind the last tensor"
    return File(model, metadata, text, offsets, hashlib.sha256(data).hexdigest())


# ---- the mathematics ------------------------------------------------------------------------------------------------


def stacked(models: list[Model], names: list[str]) -> np.ndarray:
    """M × N: every model as one row of f64 (f64 tensors as the f32 numbers that hyper-merge works with)."""
    rows = [[np.zeros(0)] + [model[name].f32().astype(np.float64).ravel() for name in names] for model in models]
    return np.array([np.concatenate(row) for row in rows])


class Solution(NamedTuple):
    """What solve must find."""

    base: np.ndarray
    """[N]"""
    delta: np.ndarray
    """[M, N]"""
    weights: np.ndarray
    """[M], sum M"""
    spectrum: np.ndarray
    """[M] σ², descending"""
    multipliers: np.ndarray
    """[M, K]"""
    directions: np.ndarray
    """[K, N]"""
    residual: np.ndarray
    """[M], relative"""
    loss: float
    gaps: np.ndarray
    """[K] distance of σ_k² to the nearest other, relative to σ_1²: how firmly direction k is determined"""

    @property
    def total(self) -> float:
        return float(self.spectrum.sum())

    @property
    def gram(self) -> np.ndarray:
        return self.delta @ self.delta.T


def solve(rows: np.ndarray, base: str | np.ndarray = "mean", directions: int | None = None, weights=None) -> Solution:
    """The truncated SVD of √w·ΔW, scaled so that the pivot's multiplier is +1."""
    count = len(rows)
    weights = np.ones(count) if weights is None else np.asarray(weights, float) * count / np.sum(weights)
    if isinstance(base, np.ndarray):
        origin = base
    else:
        mean = rows[0] + np.average(rows - rows[0], axis=0, weights=weights)  # equal rows give exactly themselves
        origin = mean if base == "mean" else np.zeros(rows.shape[1])
    delta = rows - origin
    root = np.sqrt(weights)[:, None]
    left, sigma, _ = np.linalg.svd(root * delta, full_matrices=False)
    spectrum = np.zeros(count)
    spectrum[: sigma.size] = sigma**2
    left = np.pad(left, ((0, 0), (0, count - left.shape[1])))
    rank = int((spectrum > 1e-9 * spectrum[0]).sum()) if spectrum[0] > 0 else 0
    kept = min(2, rank) if directions is None else directions

    multipliers, found = np.zeros((count, kept)), np.zeros((kept, rows.shape[1]))
    for k in range(kept):
        vector = left[:, k] / root[:, 0]
        size = np.abs(vector)
        pivot = vector[np.argmax(size >= size.max() * (1 - 1e-6))]
        multipliers[:, k] = vector / pivot
        found[k] = pivot * (root[:, 0] * left[:, k]) @ delta
    rest = delta - multipliers @ found
    norms, errors = np.linalg.norm(delta, axis=1), np.linalg.norm(rest, axis=1)
    relative = np.divide(errors, norms, out=np.zeros(count), where=norms > 0)
    others = [np.delete(spectrum, k) for k in range(kept)]
    gaps = np.array(
        [np.abs(other - spectrum[k]).min(initial=spectrum[k]) / spectrum[0] for k, other in enumerate(others)]
    )
    return Solution(
        origin, delta, weights, spectrum, multipliers, found, relative, float((weights * errors**2).sum()), gaps
    )


def blend(base: Tensor | None, low: Tensor | None, directions: list[Tensor], at, dtype: str) -> Tensor:
    """One tensor of a merged checkpoint in the arithmetic of hypermerge.h (hm_hyper_merge), every step in f32."""
    x = np.zeros(directions[0].shape, np.float32) if base is None else base.f32()
    if low is not None:
        x = x + low.f32()
    for c, direction in zip(at, directions):
        if np.float32(c) != 0:
            x = x + np.float32(c) * direction.f32()
    assert x.dtype == np.float32
    return Tensor(dtype, encode(x, dtype))
