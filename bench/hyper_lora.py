"""Hyper-LoRAs of four checkpoints of SD1.5's size: seconds per pass, peak memory, and the loss against two others.

    python bench/hyper_lora.py [--folder FOLDER] [--rank 64,32] [--count 4] [--quarter]

(a) deflation: one direction after the other, each with multipliers of its own, in what those before it leave.  It is run
    as so many searches for one direction, whose inputs are what the one before it left, in f32;
(b) the full-rank bound, and what is left when its directions are truncated to those ranks.

Names and shapes are those of tests/golden/sd15.json.gz without the VAE; the models differ along four hidden directions
whose singular values fall like i^-0.7 in every tensor, and by noise of their own.  With --quarter every fourth tensor by
size, from the largest on, so that memory is that of the whole but for the factors.  Each search runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import models as golden
import numpy as np

HIDDEN = (1.0, 0.7, 0.5, 0.35)
RANK = 160  # of the hidden directions
DECAY = 0.7
NOISE = 0.15  # share of |Δ|
DELTA = 0.03
BAR = 800 << 20

Shapes = dict[str, tuple[int, ...]]


def chosen(quarter: bool) -> Shapes:
    """The tensors of a model that are merged; a quarter of them: every fourth by size, from the largest on."""
    listed = golden.tensors("sd15", 1)
    shapes = {
        name: shape for name, (shape, kind) in listed.items() if kind != "int64" and not name.startswith("first_stage")
    }
    if not quarter:
        return shapes
    by_size = sorted(shapes, key=lambda name: (-prod(shapes[name]), name))
    return {name: shapes[name] for name in by_size[::4]}


def header(shapes: Shapes, kind: str, size: int) -> tuple[bytes, dict[str, int]]:
    """The file's header, and where each tensor begins."""
    table, places, at = {}, {}, 0
    for name, shape in shapes.items():
        table[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size * prod(shape)]}
        places[name] = at
        at += size * prod(shape)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, {name: 8 + len(text) + place for name, place in places.items()}


def change(rng: np.random.Generator, shape: tuple[int, ...], shares: np.ndarray) -> np.ndarray:
    """[M, …] what the models add to the base, of size about 1 per element."""
    rows = shape[0] if len(shape) > 1 else 1
    columns = prod(shape) // rows
    found = NOISE * rng.standard_normal((len(shares), rows, columns), np.float32)
    rank = min(RANK, rows, columns)
    sigma = (np.arange(1, rank + 1) ** -DECAY).astype(np.float32)
    sigma /= np.sqrt((sigma * sigma).sum() / rank)
    for k in range(len(HIDDEN)):
        up = rng.standard_normal((rows, rank), np.float32) * sigma
        hidden = up @ rng.standard_normal((rank, columns), np.float32) / np.float32(np.sqrt(rank))
        for m, share in enumerate(shares[:, k]):
            found[m] += np.float32(share) * hidden
    return found.reshape(len(shares), *shape)


def write_models(folder: Path, count: int, shapes: Shapes) -> list[Path]:
    paths = [folder / f"model-{m + 1}.safetensors" for m in range(count)]
    text, places = header(shapes, "F16", 2)
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for path in paths]
    shares = np.random.default_rng(3).standard_normal((count, len(HIDDEN))) * HIDDEN
    for fd in files:
        os.pwrite(fd, text, 0)
    for number, (name, shape) in enumerate(shapes.items()):
        rng = np.random.default_rng([4, number])
        scale = np.float32(1 / np.sqrt(prod(shape[1:])) if len(shape) > 1 else 0.05)
        base = scale * rng.standard_normal(shape, np.float32)
        for fd, own in zip(files, change(rng, shape, shares), strict=True):
            os.pwrite(fd, (base + np.float32(DELTA) * scale * own).astype(np.float16).tobytes(), places[name])
    for fd in files:
        os.close(fd)
    return paths


def write_rest(folder: Path, paths: list[Path], kind: str, hyper, shapes: Shapes) -> list[Path]:
    """What the one direction of `hyper` leaves of the models, whose type is `kind`, in f32."""
    from hypermerge_ext.stored import DIRECTION, Stored

    stored, numbers = Stored(hyper), np.dtype({"F16": "f2", "F32": "f4"}[kind])
    sources, (text, places) = header(shapes, kind, numbers.itemsize)[1], header(shapes, "F32", 4)
    rest = [folder / f"{path.stem}-rest.safetensors" for path in paths]
    inputs = [os.open(path, os.O_RDONLY) for path in paths]
    outputs = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) for path in rest]
    for fd in outputs:
        os.pwrite(fd, text, 0)
    for name, shape in shapes.items():
        direction = stored.read(name, DIRECTION).float().numpy() if name in stored.moving else np.float32(0)
        for fd, out, member in zip(inputs, outputs, hyper.members, strict=True):
            held = np.frombuffer(os.pread(fd, numbers.itemsize * prod(shape), sources[name]), numbers).astype(np.float32)
            left = held.reshape(shape) - np.float32(member.multipliers[0]) * direction
            os.pwrite(out, left.tobytes(), places[name])
    for fd in inputs + outputs:
        os.close(fd)
    return rest


def write_direction(path: Path, hyper, k: int, shapes: Shapes) -> None:
    """Direction k (from 0) of `hyper` as a model of its own, in f32."""
    from hypermerge_ext.stored import DIRECTION, Stored

    stored = Stored(hyper)
    held = {name: shape for name, shape in shapes.items() if name in stored.moving}
    text, places = header(held, "F32", 4)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.pwrite(fd, text, 0)
    for name in held:
        os.pwrite(fd, stored.read(name, DIRECTION + k).float().numpy().tobytes(), places[name])
    os.close(fd)


def search(paths: list[Path], ranks: list[int], threads: int | None) -> dict:
    """Runs in this process: seconds of measuring the Gram matrix and of each pass, losses, peak memory."""
    import hypermerge_ext as hm

    marks = [time.monotonic()]
    hyper = hm.solve(paths, rank=ranks, threads=threads, on_pass=lambda *_: marks.append(time.monotonic()))
    whole = time.monotonic() - marks[0]
    return {
        "seconds": [b - a for a, b in zip(marks, marks[1:])],
        "whole": whole,
        "losses": hyper.losses,
        "total": hyper.total,
        "peak": peak_memory(),
    }


def peak_memory() -> int:
    """Of this process, in bytes.  Not what getrusage says: that begins with the memory of whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def in_child(*arguments: str) -> dict:
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for the models and what is left of them (a temporary one)")
    parser.add_argument("--rank", default="64,32")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--quarter", action="store_true", help="every fourth tensor")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--search", nargs="+", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    ranks = [int(rank) for rank in args.rank.split(",")]
    if args.search:
        print(json.dumps(search(args.search, ranks, args.threads)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        compare(Path(folder), args, ranks)


def compare(folder: Path, args: argparse.Namespace, ranks: list[int]) -> None:
    import hypermerge_ext as hm

    shapes = chosen(args.quarter)
    paths = write_models(folder, args.count, shapes)
    size = paths[0].stat().st_size
    print(f"{args.count} models of {size / 1e9:.2f} GB, {len(shapes)} tensors, ranks {args.rank}")
    more = ["--threads", str(args.threads)] if args.threads else []
    found = in_child("--rank", args.rank, *more, "--search", *map(str, paths))
    first, *rest = found["seconds"]
    each = f"{np.mean(rest):.1f} s each after it, " if rest else ""
    print(f"  {len(found['losses']) - 1} passes in {found['whole']:.1f} s: Gram matrix and first pass {first:.1f} s, {each}"
          f"peak memory {found['peak'] / 2**20:.0f} MiB (bar {BAR >> 20}: {'kept' if found['peak'] <= BAR else 'MISSED'})")  # fmt: skip
    total, loss = found["total"], found["losses"][-1]
    print("  loss after each pass: " + ", ".join(f"{100 * value / total:.3f} %" for value in found["losses"]))
    bound, truncated = truncate(folder, paths, ranks, shapes, args.threads)
    print(f"  (b) full-rank bound {100 * bound / total:.3f} %, with truncation {100 * truncated / total:.3f} %: "
          f"ours is {loss / truncated:.4f} of that")  # fmt: skip
    deflated = deflate(folder, paths, ranks, shapes, args.threads)
    print(f"  (a) deflation {100 * deflated / total:.3f} %: ours is {loss / deflated:.6f} of that "
          f"(bar 1: {'kept' if loss <= deflated * (1 + 1e-6) else 'MISSED'})")  # fmt: skip


def truncate(
    folder: Path, paths: list[Path], ranks: list[int], shapes: Shapes, threads: int | None
) -> tuple[float, float]:
    """The full-rank bound, and the loss of its directions truncated to the ranks."""
    import hypermerge_ext as hm

    full, alone = folder / "full.hyper.safetensors", folder / "direction.safetensors"
    hyper = hm.solve(paths, directions=len(ranks), threads=threads)
    hyper.save(full, threads=threads)
    truncated = hyper.loss
    for k, rank in enumerate(ranks):
        write_direction(alone, hm.load(full), k, shapes)
        cost = hm.solve([alone], "none", rank=rank, threads=threads).loss
        truncated += cost * sum(member.multipliers[k] ** 2 for member in hyper.members)
    full.unlink()
    alone.unlink()
    return hyper.loss, truncated


def deflate(folder: Path, paths: list[Path], ranks: list[int], shapes: Shapes, threads: int | None) -> float:
    import hypermerge_ext as hm

    one = folder / "one.hyper.safetensors"
    for number, rank in enumerate(ranks):
        hyper = hm.solve(paths, rank=rank, threads=threads, dtype="fp32")
        if number + 1 < len(ranks):
            hyper.save(one, threads=threads)
            paths = write_rest(folder, paths, "F16" if number == 0 else "F32", hm.load(one), shapes)
    return hyper.loss


if __name__ == "__main__":
    main()
