"""LoRAs of SD1.5 as inputs: what solving, saving and writing a merged LoRA cost in factor space, and how right it is.

    python bench/lora_inputs.py [--folder FOLDER] [--count 20] [--rank 32] [--rounds 3] [--linear]

The files have the 350 layers of tests/golden (--linear: the 264 that trainers take without asking for convolutions) under
kohya's names, in f16.  Their factors share a few hidden ones, as LoRAs of one subject do.  The base is a file with SD1.5's
header and nothing but zeros, most of it a hole: of it nothing is read.  Every step runs in a process of its own, so that its
memory is its own (saving solves first); seconds are those of the call.  Memory grows with the LoRAs only up to the budget.
Right: on every 12th layer all is multiplied out in NumPy and f64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import models as golden
import numpy as np

BAR_SECONDS = 12.0
BAR_ERROR = 1e-5
SHARED = 4  # hidden pairs of factors, of which every LoRA takes a part
STEP = """
import json, sys, time
import hypermerge_ext as hm
import resource
what, folder, count, rank = json.loads(sys.argv[1])
paths = [f"{folder}/l{m}.safetensors" for m in range(count)]
began = time.perf_counter()
if what == "lora":
    report = hm.load(f"{folder}/x.hyper.safetensors").lora(f"{folder}/o.safetensors", at=[0.5, -0.3], rank=rank, force=True)
    said = {"error": report["relative_error"]}
else:
    hyper = hm.solve(paths, f"{folder}/base.safetensors", include=what if isinstance(what, list) else (), directions=2)
    said = {"gram": hyper.gram, "multipliers": [m.multipliers for m in hyper.members], "explained": hyper.explained_variance_ratio}
    if what == "save":
        began = time.perf_counter()
        hyper.save(f"{folder}/x.hyper.safetensors", force=True)
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **said}))
"""

Shapes = dict[str, tuple[int, ...]]


def layers(linear: bool) -> tuple[Shapes, dict[str, str]]:
    """The tensors that the LoRAs change, and kohya's names of them."""
    names = json.loads((golden.GOLDEN / "sd15-lora-names.json").read_text())
    shapes = {name: shape for name, (shape, _) in golden.tensors("sd15", 1).items() if name in names}
    if linear:
        plain = ("emb_layers", "skip_connection", "in_layers", "out_layers")
        shapes = {n: s for n, s in shapes.items() if s[2:] != (3, 3) and not any(word in n for word in plain)}
    return shapes, names


def header(tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> tuple[bytes, int]:
    """A safetensors header for name → (dtype, shape, bytes of a number), and the bytes of the data."""
    table, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size * prod(shape)]}
        at += size * prod(shape)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def make_base(path: Path) -> None:
    tensors = {n: ("I64" if k == "int64" else "F16", s, 8 if k == "int64" else 2) for n, (s, k) in golden.tensors("sd15", 1).items()}
    head, size = header(tensors)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + size)


def factors(m: int, number: int, shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Of LoRA m in layer `number`, f16."""
    rows, columns = shape[0], prod(shape[1:])
    own, common = np.random.default_rng([m, number]), np.random.default_rng([1000, number])
    up, down = own.standard_normal((rows, rank), np.float32), own.standard_normal((rank, columns), np.float32)
    shared = common.standard_normal((SHARED, rows + columns), np.float32)
    weight = np.random.default_rng([m, 7]).standard_normal(SHARED)
    for k in range(min(SHARED, rank)):
        up[:, k] = shared[k, :rows] * weight[k] * 3
        down[k] = shared[k, rows:]
    return (0.02 * up).astype(np.float16), (0.05 * down).astype(np.float16)


def make(folder: Path, shapes: Shapes, names: dict[str, str], count: int, rank: int) -> None:
    make_base(folder / "base.safetensors")
    for m in range(count):
        tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for name, shape in shapes.items():
            ones = (1,) * (len(shape) - 2)
            tensors[f"{names[name]}.alpha"] = ("F16", (), 2)
            tensors[f"{names[name]}.lora_down.weight"] = ("F16", (rank, *shape[1:]), 2)
            tensors[f"{names[name]}.lora_up.weight"] = ("F16", (shape[0], rank, *ones), 2)
        head, _ = header(tensors)
        with open(folder / f"l{m}.safetensors", "wb") as file:
            file.write(head)
            for number, shape in enumerate(shapes.values()):
                up, down = factors(m, number, shape, rank)
                file.write(np.float16(rank / 2).tobytes() + down.tobytes() + up.tobytes())


def step(what: object, folder: Path, count: int, rank: int) -> dict:
    command = [sys.executable, "-P", "-c", STEP, json.dumps([what, str(folder), count, rank])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def expanded(shapes: Shapes, chosen: list[str], count: int, rank: int) -> np.ndarray:
    """The Gram matrix of these layers in f64, everything multiplied out."""
    gram, numbers = np.zeros((count, count)), {name: i for i, name in enumerate(shapes)}
    for name in chosen:
        rows = []
        for m in range(count):
            up, down = factors(m, numbers[name], shapes[name], rank)
            rows.append(0.5 * (up.astype(float) @ down.astype(float)).ravel())
        stacked = np.array(rows)
        gram += stacked @ stacked.T
    return gram


def error(found: dict, gram: np.ndarray) -> tuple[float, float]:
    """How far Gram matrix and multipliers are from those of an expanded solution, relative to the largest."""
    left = np.linalg.eigh(gram)[1][:, ::-1][:, :2]
    pivots = left[np.abs(left).argmax(0), range(2)]
    return float(np.abs(np.array(found["gram"]) - gram).max() / gram.max()), float(
        np.abs(np.array(found["multipliers"]) - left / pivots).max()
    )


def show(title: str, found: list[dict]) -> float:
    """One line of the table; returns the median of the seconds."""
    middle = statistics.median(one["seconds"] for one in found)
    print(f"| {title} | {middle:.2f} | {max(one['peak'] for one in found) / 2**20:.0f} |", flush=True)
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files go, 2 GB (a temporary folder)")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--linear", action="store_true", help="no convolutions but those of one pixel")
    args = parser.parse_args()
    shapes, names = layers(args.linear)
    chosen = sorted(shapes, key=lambda name: prod(shapes[name]))[::12]
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        make(folder, shapes, names, args.count, args.rank)
        size = sum(path.stat().st_size for path in folder.glob("l*.safetensors"))
        print(f"{args.count} LoRAs of rank {args.rank}, {len(shapes)} layers, {size / 2**20:.0f} MiB; medians of {args.rounds}\n")
        print("budget 256 MiB\n\n| step | s | peak, MiB |\n|---|---:|---:|")
        few, seconds = max(2, args.count // 4), 0.0
        found = [step("solve", folder, few, args.rank) for _ in range(args.rounds)]
        show(f"solve, the first {few}", found)
        for what, title in (("solve", "solve"), ("save", "save"), ("lora", f"a LoRA of rank {args.rank}")):
            found = [step(what, folder, args.count, args.rank) for _ in range(args.rounds)]
            middle = show(title, found)
            seconds = middle if what == "solve" else seconds
        print(f"\nhyper-model: {(folder / 'x.hyper.safetensors').stat().st_size / 2**20:.0f} MiB")
        gram, multipliers = error(step(chosen, folder, args.count, args.rank), expanded(shapes, chosen, args.count, args.rank))
    print(f"against the expanded solution of {len(chosen)} layers: Gram {gram:.1e}, multipliers {multipliers:.1e}")
    good = seconds <= BAR_SECONDS and gram <= BAR_ERROR and multipliers <= BAR_ERROR
    print(f"bars: solved in at most {BAR_SECONDS:g} s, equal to {BAR_ERROR:g}: {'met' if good else 'MISSED'}")
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
