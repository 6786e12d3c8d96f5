"""Checkpoints of true size for the benchmark: fine-tunes of one base along shared directions.

    python bench/models.py FOLDER [--shapes sd15|sdxl] [--count 8] [--divide 1] [--dtype fp16|bf16] [--delta 0.03]

Model m is  W + delta · |W| · (Σ_k a_mk w_k D_k + noise):  five directions with falling weights w hold three quarters of
the difference, noise of its own the rest, so the spectrum looks like that of real families.  Names and shapes are
those of tests/golden (SD1.5: 1131 tensors, 2.13 GB in fp16; SDXL: 2531 and 6.94 GB); --divide cuts the first dimension
of every shape.
Everything is drawn tile by tile, so it takes little memory; files that are there already are kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from math import prod, sqrt
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
TILE = 1 << 19  # numbers drawn at a time
DIRECTIONS = 5
DECAY = 0.6
SHARED = 0.75  # share of |Δ|² that lies in the directions
SEED = 1
NAMES = {"fp16": "F16", "bf16": "BF16"}


def tensors(shapes: str, divide: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name → (shape, dtype of the golden list), the integers first and the names in order, as saved files have them."""
    with gzip.open(GOLDEN / f"{shapes}.json.gz", "rt", encoding="utf-8") as file:
        listed = json.load(file)
    cut = {}
    for name, (shape, dtype) in listed.items():
        if divide > 1 and dtype != "int64" and shape:
            shape = [max(1, shape[0] // divide), *shape[1:]]
        cut[name] = (tuple(shape), dtype)
    return dict(sorted(cut.items(), key=lambda item: (item[1][1] != "int64", item[0])))


def layout(shapes: str, divide: int, dtype: str) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The file's header, and for each tensor where its data begins in the file and how many numbers it has."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, at = {}, 0
    for name, (shape, kind) in tensors(shapes, divide).items():
        elements = prod(shape)
        size = elements * (8 if kind == "int64" else 2)
        table[name] = {
            "dtype": "I64" if kind == "int64" else NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [at, at + size],
        }
        places[name] = (at, elements)
        at += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: (start + at, n) for name, (at, n) in places.items()}


def to_bf16(x: np.ndarray) -> np.ndarray:
    """f32 → the bits of bf16, to nearest even (finite numbers only)."""
    bits = x.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def mixing(count: int) -> np.ndarray:
    """[count, DIRECTIONS] what model m takes of direction k: about 0, squares that sum to SHARED on average over m."""
    a = np.random.default_rng(SEED).standard_normal((count, DIRECTIONS)) * DECAY ** np.arange(DIRECTIONS)
    a -= a.mean(0)
    return (a * sqrt(SHARED * count / np.sum(a * a))).astype(np.float32)


def tile_of_models(
    index: int, elements: int, scale: float, shift: float, delta: float, mix: np.ndarray, encode
) -> list[np.ndarray]:
    """The numbers of tile `index` in every model.  The generator belongs to the tile, so any order gives the same."""
    rng = np.random.Generator(np.random.SFC64([SEED, index]))
    base = rng.standard_normal(elements, dtype=np.float32)
    base *= scale
    base += shift
    size = delta * sqrt(scale * scale + shift * shift)
    shared = (mix * np.float32(size)) @ rng.standard_normal((DIRECTIONS, elements), dtype=np.float32)
    models = []
    for row in shared:
        noise = rng.standard_normal(elements, dtype=np.float32)
        noise *= size * sqrt(1 - SHARED)
        row += noise
        row += base
        models.append(encode(row))
    return models


def write(folder: Path, shapes: str, count: int, divide: int, dtype: str, delta: float) -> None:
    """Writes model-1 … model-count.  They get their names when all are complete."""
    header, places = layout(shapes, divide, dtype)
    listed = tensors(shapes, divide)
    mix = mixing(count)
    encode = to_bf16 if dtype == "bf16" else (lambda x: x.astype(np.float16))
    work = []
    for name, (offset, elements) in places.items():
        shape, kind = listed[name]
        if kind == "int64":
            continue
        # Matrices as they are initialised; the scales of norms lie about 1.
        scale = 1 / sqrt(prod(shape[1:])) if len(shape) > 1 else 0.05
        shift = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        for start in range(0, elements, TILE):
            work.append((offset + 2 * start, min(TILE, elements - start), scale, shift))

    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"model-{m + 1}.safetensors.part" for m in range(count)]
    files = [os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for part in parts]
    for fd in files:
        os.pwrite(fd, header, 0)
        for name, (offset, elements) in places.items():
            if listed[name][1] == "int64":
                os.pwrite(fd, np.arange(elements, dtype=np.int64).tobytes(), offset)

    def one(index: int) -> None:
        offset, elements, scale, shift = work[index]
        made = tile_of_models(index, elements, scale, shift, delta, mix, encode)
        for fd, numbers in zip(files, made, strict=True):
            os.pwrite(fd, numbers, offset)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(one, range(len(work))), start=1):
            if sys.stderr.isatty() and done % 16 == 0:
                print(f"\r  {done / len(work):4.0%} of {count} files", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 30 + "\r", end="", file=sys.stderr)
    for fd, part in zip(files, parts, strict=True):
        os.fsync(fd)
        os.close(fd)
        part.rename(part.with_suffix(""))


def make(folder: Path, shapes: str, count: int, divide: int, dtype: str, delta: float) -> list[Path]:
    """The files, written unless the same ones are there; exits with a sentence when the disk has no room for them."""
    told = json.dumps(
        {"shapes": shapes, "count": count, "divide": divide, "dtype": dtype, "delta": delta, "seed": SEED}
    )
    note = folder / "set.json"
    files = [folder / f"model-{m + 1}.safetensors" for m in range(count)]
    header, places = layout(shapes, divide, dtype)
    size = max(offset + elements * 2 for offset, elements in places.values())
    if note.exists() and note.read_text() == told and all(f.exists() and f.stat().st_size == size for f in files):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    for old in [note, *folder.glob("model-*.safetensors*")]:
        old.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < count * size * 1.02:
        need = count * size / 1e9
        sys.exit(f"bench: {folder} has {free / 1e9:.1f} GB free, the models need {need:.1f} GB; set BENCH_DIR")
    write(folder, shapes, count, divide, dtype, delta)
    note.write_text(told)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--divide", type=int, default=1, help="cut the first dimension of every shape by this")
    parser.add_argument("--dtype", choices=tuple(NAMES), default="fp16")
    parser.add_argument("--delta", type=float, default=0.03, help="|Δ| / |W|")
    args = parser.parse_args()
    make(args.folder, args.shapes, args.count, args.divide, args.dtype, args.delta)


if __name__ == "__main__":
    main()
