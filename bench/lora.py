"""What decomposing differences costs and how good it is: our randomised SVD against torch's, side by side in one process.

    python bench/lora.py [--rounds 3] [--rank 64] [--every 4] [--quick]

Every 4th of the 350 layers that a LoRA of SD1.5 has (shapes from tests/golden/sd15.json.gz), with spectra that fall like
i^-1.5 (as those of fine-tunes do, about) and with white noise.  Ways take turns; medians.  Both sides have two threads: ours
works on two layers at a time, torch on one with two threads.  Errors are divided by the smallest possible ones, which come
from the spectrum that a matrix was made with, or from f64 eigenvalues.  `torch.linalg.svd`, as extraction scripts use it, is
timed on one layer of each common shape only, because all of them would take half an hour.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
THREADS = 2
FULL = [(320, 320), (640, 640), (768, 768), (1280, 1280), (640, 2880)]  # layers on which the full decomposition is timed
CALL = r"""
#include <string.h>
#include "lowrank/svd.h"
int find(const float *a, size_t rows, size_t columns, size_t rank, float *up, float *down)
{
    const hm_blas *blas;
    hm_low_rank found;
    if (hm_blas_begin(&blas, NULL) != HM_OK) return 1;
    hm_status status = hm_low_rank_find(&found, blas, a, rows, columns, rank, 1, "layer", NULL);
    hm_blas_end();
    if (status != HM_OK) return 1;
    memcpy(up, found.up, rows * found.rank * sizeof *up);
    memcpy(down, found.down, found.rank * columns * sizeof *down);
    hm_low_rank_clear(&found);
    return 0;
}
"""


def layers() -> list[tuple[int, int]]:
    """Rows and columns of the 350 layers."""
    names = json.loads((GOLDEN / "sd15-lora-names.json").read_text())
    shapes = json.loads(gzip.decompress((GOLDEN / "sd15.json.gz").read_bytes()))
    return [(shape[0], prod(shape[1:])) for shape, _ in (shapes[name] for name in names)]


def build(folder: Path) -> ctypes.CDLL:
    """The core's decomposition, as the extension compiles it."""
    source, library = folder / "find.c", folder / "find.so"
    source.write_text(CALL)
    core = ROOT / "csrc"
    files = [str(source), *map(str, [core / "lowrank" / "svd.c", core / "lowrank" / "blas.c", *sorted((core / "base").glob("*.c"))])]
    flags = ["-shared", "-fPIC", "-O3", "-std=gnu11", "-ffp-contract=off", "-D_GNU_SOURCE", f"-I{core}"]
    subprocess.run([os.environ.get("CC", "gcc"), *flags, *files, "-o", str(library), "-pthread", "-ldl", "-lm"], check=True)
    return ctypes.CDLL(str(library))


def make(shape: tuple[int, int], kind: str, rank: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A difference, and the norm of what the best approximation of that rank leaves."""
    rows, columns = shape
    noise = rng.standard_normal(shape, dtype=np.float32)
    side = min(shape)
    if kind == "noise":
        wide = noise if rows <= columns else noise.T
        values = np.linalg.eigvalsh(wide.astype(np.float64) @ wide.T.astype(np.float64))
        return noise, float(np.sqrt(values[: max(side - rank, 0)].clip(0).sum()))
    sigma = np.arange(1, side + 1) ** -1.5 + 1e-3
    wide = np.linalg.qr(noise if rows >= columns else noise.T)[0]  # [longer × side]
    turn = np.linalg.qr(rng.standard_normal((side, side), dtype=np.float32))[0]
    matrix = (wide * sigma.astype(np.float32)) @ turn
    matrix = matrix if rows >= columns else matrix.T
    return np.ascontiguousarray(matrix), float(np.sqrt((sigma[rank:] ** 2).sum()))


def ours(library: ctypes.CDLL, matrices: list[np.ndarray], rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
    def one(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = matrix.shape
        kept = min(rank, rows, columns)
        up, down = np.empty((rows, kept), np.float32), np.empty((kept, columns), np.float32)
        address = [x.ctypes.data_as(ctypes.c_void_p) for x in (matrix, up, down)]
        size = ctypes.c_size_t
        if library.find(address[0], size(rows), size(columns), size(rank), address[1], address[2]):
            raise SystemExit("the decomposition failed; is OpenBLAS installed?")
        return up, down

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, matrices))


def low_rank(matrices: list[np.ndarray], rank: int, extra: int, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    out = []
    for matrix in matrices:
        u, s, v = torch.svd_lowrank(torch.from_numpy(matrix), q=min(rank + extra, *matrix.shape), niter=steps)
        out.append(((u[:, :rank] * s[:rank]).numpy(), v[:, :rank].T.numpy()))
    return out


def errors(matrices: list[np.ndarray], optima: list[float], factors: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Error over optimum of all layers together, and of the worst one."""
    rest, worst = 0.0, 0.0
    for matrix, optimum, (up, down) in zip(matrices, optima, factors):
        left = float(np.linalg.norm(matrix.astype(np.float64) - up.astype(np.float64) @ down.astype(np.float64)))
        rest += left**2
        if optimum > 1e-6 * np.linalg.norm(matrix):
            worst = max(worst, left / optimum)
    return float(np.sqrt(rest / sum(o * o for o in optima))), worst


def table(kind: str, shapes: list[tuple[int, int]], rank: int, rounds: int, library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(len(kind))
    made = [make(shape, kind, rank, rng) for shape in shapes]
    matrices, optima = [m for m, _ in made], [o for _, o in made]
    ways: dict[str, Callable[[], list[tuple[np.ndarray, np.ndarray]]]] = {
        "hyper-merge": lambda: ours(library, matrices, rank),
        f"torch.svd_lowrank q={rank} niter=2": lambda: low_rank(matrices, rank, 0, 2),
        f"torch.svd_lowrank q={rank + 16} niter=2": lambda: low_rank(matrices, rank, 16, 2),
        f"torch.svd_lowrank q={rank + 16} niter=4": lambda: low_rank(matrices, rank, 16, 4),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    quality: dict[str, tuple[float, float]] = {}
    for round_ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            factors = way()
            times[name].append(time.perf_counter() - began)
            if round_ == 0:
                quality[name] = errors(matrices, optima, factors)
    first = statistics.median(times["hyper-merge"])
    print(f"\n{'falling spectra' if kind == 'decay' else 'white noise'}, {len(shapes)} layers, rank {rank}, medians of {rounds}\n")
    print("| way | s | best | × ours | error / optimum | worst layer |\n|---|---:|---:|---:|---:|---:|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        total, worst = quality[name]
        print(f"| {name} | {middle:.2f} | {min(seconds):.2f} | {middle / first:.2f} | {total:.4f} | {worst:.4f} |", flush=True)


def full(rank: int, library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(3)
    print("\nagainst the whole decomposition, one layer of each shape, both with two threads\n")
    print("| layer | torch.linalg.svd, ms | hyper-merge, ms | ratio |\n|---|---:|---:|---:|")
    sums = [0.0, 0.0]
    for shape in FULL:
        matrix, _ = make(shape, "decay", rank, rng)
        began = time.perf_counter()
        torch.linalg.svd(torch.from_numpy(matrix))  # full matrices, as extraction scripts ask for them
        whole = time.perf_counter() - began
        ours(library, [matrix], rank)
        began = time.perf_counter()
        ours(library, [matrix] * THREADS, rank)
        own = (time.perf_counter() - began) / THREADS
        sums = [sums[0] + whole, sums[1] + own]
        print(f"| {shape[0]} × {shape[1]} | {1e3 * whole:.0f} | {1e3 * own:.1f} | {whole / own:.0f} |", flush=True)
    print(f"| together | {1e3 * sums[0]:.0f} | {1e3 * sums[1]:.1f} | {sums[0] / sums[1]:.0f} |")


def memory(rank: int) -> None:
    """The largest layer of SD1.5 through the program itself, in a process of its own."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(4)
    with tempfile.TemporaryDirectory() as folder:
        for number in (0, 1):
            state = {"model.diffusion_model.layer.weight": rng.standard_normal((1280, 23040), dtype=np.float32).astype(np.float16)}
            save_file(state, f"{folder}/{number}.safetensors")
        command = [sys.executable, "-P", "-m", "hypermerge_ext", "lora", "--from", "0.safetensors", "--to", "1.safetensors"]
        subprocess.run([*command, "--rank", str(rank), "-o", "l.safetensors"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\npeak memory of `hyper-merge lora` on one layer of 1280 × 23040, rank {rank}: {peak:.0f} MiB (budget 256 MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--every", type=int, default=4, help="take every so many-th layer")
    parser.add_argument("--quick", action="store_true", help="every 40th layer, one round")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    memory(args.rank)  # first: compilers and their memory would count as children too
    chosen = layers()[:: 40 if args.quick else args.every]
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        for kind in ("decay", "noise"):
            table(kind, chosen, args.rank, 1 if args.quick else args.rounds, library)
        full(args.rank, library)


if __name__ == "__main__":
    main()
