"""What moving the sliders of a loaded model costs: live.set against torch's ways, side by side in one process.

    python bench/live.py [--folder FOLDER] [--rounds 7] [--threads 2] [--quick]

The network is the whole SD1.5 UNet (859.5 M numbers; names and shapes from tests/golden/sd15.json.gz), base and two full
directions, in f16; in f32 half of it, because three copies of all would not fit into 24 GB.  --quick takes a twentieth.
The ways take turns, so that all see the same neighbours; the table gives medians.  Each table is
made by a process of its own, with malloc told to keep its memory: that helps torch, whose temporaries would otherwise
cost page faults at every call.  The hyper-model's file (5.2 GB) is written to FOLDER and removed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import gzip
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from idle import Idle

SHAPES = Path(__file__).resolve().parent.parent / "tests" / "golden" / "sd15.json.gz"
UNET = "model.diffusion_model."
AT = (0.4, -0.2)
FILE = "live.hyper.safetensors"
PATTERN = (1 << 20) + 7  # random numbers; tensors are cut from repetitions of them
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
}

# Copies by stores past the caches, chunks taken off a counter by threads: what the memory can do.
COPY = r"""
#include <emmintrin.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#define CHUNK ((size_t)1 << 20)
struct job { size_t count; char **to; char **from; const size_t *bytes; atomic_size_t next; };
static void copy(char *to, const char *from, size_t bytes)
{
    size_t i = 0;
    if (((size_t)to | (size_t)from) % 16 == 0) {
        for (; i + 64 <= bytes; i += 64)
            for (size_t j = i; j < i + 64; j += 16)
                _mm_stream_si128((__m128i *)(to + j), _mm_load_si128((const __m128i *)(from + j)));
        _mm_sfence();
    }
    memcpy(to + i, from + i, bytes - i);
}
static void *work(void *user)
{
    struct job *job = user;
    for (size_t at; (at = atomic_fetch_add(&job->next, CHUNK)) != (size_t)-1;) {
        size_t t = 0, start = at;
        while (t < job->count && start >= (job->bytes[t] + CHUNK - 1) / CHUNK * CHUNK)
            start -= (job->bytes[t++] + CHUNK - 1) / CHUNK * CHUNK;
        if (t == job->count) return NULL;
        size_t bytes = job->bytes[t] - start < CHUNK ? job->bytes[t] - start : CHUNK;
        copy(job->to[t] + start, job->from[t] + start, bytes);
    }
    return NULL;
}
void copy_all(size_t count, char **to, char **from, const size_t *bytes, int threads)
{
    struct job job = {count, to, from, bytes, 0};
    pthread_t other[64];
    for (int i = 1; i < threads && i < 64; i++) pthread_create(&other[i], NULL, work, &job);
    work(&job);
    for (int i = 1; i < threads && i < 64; i++) pthread_join(other[i], NULL);
}
"""


def shapes(share: float) -> dict[str, tuple[int, ...]]:
    """Tensors of the UNet, drawn until they hold this share of its numbers."""
    with gzip.open(SHAPES, "rt", encoding="utf-8") as file:
        listed = json.load(file)
    sizes = {name: prod(shape) for name, (shape, _) in listed.items() if name.startswith(UNET)}
    drawn, rest = set(), share * sum(sizes.values())
    for name in random.Random(1).sample(sorted(sizes), len(sizes)):
        if rest > 0:
            drawn.add(name)
            rest -= sizes[name]
    return {name: tuple(listed[name][0]) for name in sizes if name in drawn}


def make(path: Path, wanted: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Solves three random models in memory and saves the hyper-model."""
    import numpy as np

    import hypermerge_ext as hm

    rng = np.random.default_rng(1)
    base = (0.04 * rng.standard_normal(PATTERN)).astype(np.float32)
    models: list[dict[str, Any]] = []
    for _ in range(3):
        pattern = (base + 0.004 * rng.standard_normal(PATTERN)).astype(dtype)
        models.append({name: np.resize(pattern, shape) for name, shape in wanted.items()})
    hm.solve(models, directions=2).save(path, force=True)


def read(path: Path, names: list[str], *prefixes: str) -> list[list[Any]]:
    """For each prefix the tensors of these names in the file, as torch tensors."""
    import torch

    kinds = {"F16": torch.float16, "F32": torch.float32}
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))

        def tensor(name: str) -> Any:
            entry = header[name]
            out = torch.empty(entry["shape"], dtype=kinds[entry["dtype"]])
            file.seek(8 + length + entry["data_offsets"][0])
            file.readinto(out.view(-1).view(torch.uint8).numpy())
            return out

        return [[tensor(prefix + name) for name in names] for prefix in prefixes]


class Copy:
    """As many bytes as a blend moves, by plain copies."""

    def __init__(self, folder: Path, targets: list[Any], sources: list[list[Any]], threads: int) -> None:
        source, library = folder / "copy.c", folder / "copy.so"
        source.write_text(COPY)
        subprocess.run(["gcc", "-O3", "-shared", "-fPIC", "-pthread", source, "-o", library], check=True)
        self._call = ctypes.CDLL(str(library)).copy_all
        self._threads = threads
        count = len(targets)
        self._count = ctypes.c_size_t(count)
        self._bytes = (ctypes.c_size_t * count)(*(t.numel() * t.element_size() for t in targets))
        pointers = ctypes.c_void_p * count
        self._to = pointers(*(t.data_ptr() for t in targets))
        self._from = [pointers(*(t.data_ptr() for t in source)) for source in sources]

    def __call__(self) -> None:
        for source in self._from:
            self._call(self._count, self._to, source, self._bytes, self._threads)


def resident(field: str) -> int:
    """VmRSS or VmHWM in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def extra_memory(folder: Path, share: float, threads: int) -> None:
    """One line: by how much memory rises above the targets."""
    import hypermerge_ext as hm

    names = list(shapes(share))
    state = dict(zip(names, read(folder / FILE, names, "")[0]))
    hyper = hm.load(folder / FILE)
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident("VmRSS")
    live = hyper.bind(state, threads=threads)
    live.set(*AT, threads=threads)
    print(f"\nbind and set from the file: {(resident('VmHWM') - before) / 2**20:.0f} MiB beyond the targets")


def measure(folder: Path, dtype: str, share: float, rounds: int, threads: int) -> None:
    """One table, on stdout."""
    import torch

    import hypermerge_ext as hm
    from hypermerge_ext import _core

    torch.set_num_threads(threads)
    wanted = shapes(share)
    names = list(wanted)
    path = folder / FILE
    base, first, second = read(path, names, "", "hypermerge.direction.1.", "hypermerge.direction.2.")
    targets = [tensor.clone() for tensor in base]
    state = dict(zip(names, targets))
    hyper = hm.load(path)
    lam, kap = AT
    filed = hyper.bind(state, threads=threads)
    live = hyper.bind(state, in_memory=True, threads=threads)

    def one_by_one() -> None:
        for out, b, d, q in zip(targets, base, first, second):
            hm.blend_(out, b, [d, q], AT, threads)

    def foreach() -> None:
        torch._foreach_copy_(targets, base)
        torch._foreach_add_(targets, first, alpha=lam)
        torch._foreach_add_(targets, second, alpha=kap)

    def in_place() -> None:
        for out, b, d, q in zip(targets, base, first, second):
            torch.add(b, d, alpha=lam, out=out)
            out.add_(q, alpha=kap)

    def temporaries() -> None:
        for out, b, d, q in zip(targets, base, first, second):
            out.copy_(b.float() + lam * d.float() + kap * q.float())

    ways: dict[str, Callable[[], Any]] = {
        "live.set, in memory": lambda: live.set(*AT, threads=threads),
        "live.set, from the file": lambda: filed.set(*AT, threads=threads),
        "blend_ for each tensor": one_by_one,
        "torch _foreach_copy_, 2 × _foreach_add_": foreach,
        "torch add(out=), add_": in_place,
        "torch f32 temporaries": temporaries,
        "copy past the caches, as many bytes": Copy(folder, targets, [base, first], threads),
    }
    largest = max(range(len(targets)), key=lambda i: targets[i].numel())
    exact = base[largest].double() + lam * first[largest].double() + kap * second[largest].double()
    errors = {}
    for name, way in ways.items():
        way()  # buffers, threads and pages are there from now on
        errors[name] = float((targets[largest].double() - exact).abs().max())
    times: dict[str, list[float]] = {name: [] for name in ways}
    idle = Idle()
    for _ in range(rounds):
        for name, way in ways.items():
            idle.wait()
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    numbers = sum(tensor.numel() for tensor in targets)
    moved = 4 * numbers * targets[0].element_size()
    copy_name = list(ways)[-1]
    ours = times["live.set, in memory"]
    print(f"\n{dtype}, {numbers / 1e6:.1f} M numbers in {len(names)} tensors, {_core.kernel_name()} kernels, {threads} threads, "
          f"medians of {rounds} rounds; {idle}\n")  # fmt: skip
    print("| way | ms | best | GB/s | × live.set | % of the copy's rate | largest error |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, taken in times.items():
        middle = statistics.median(taken)
        ratio = statistics.median(t / own for t, own in zip(taken, ours))
        share = statistics.median(c / t for t, c in zip(taken, times[copy_name]))
        error = "" if name == copy_name else f"{errors[name]:.2e}"
        print(f"| {name} | {1e3 * middle:.1f} | {1e3 * min(taken):.1f} | {1e-9 * moved / middle:.1f} | {ratio:.2f} | "
              f"{100 * share:.0f} % | {error} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="scratch folder with 6 GB of room (the system's own)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the network")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "DTYPE", "SHARE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step, dtype, share = options.step
        if step == "make":
            make(options.folder / FILE, shapes(float(share)), dtype)
        elif step == "memory":
            extra_memory(options.folder, float(share), options.threads)
        else:
            measure(options.folder, dtype, float(share), options.rounds, options.threads)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="live-") as scratch:
        command = [sys.executable, __file__, "--folder", scratch]
        command += ["--rounds", str(options.rounds), "--threads", str(options.threads), "--step"]
        for dtype, share in (("float16", 1), ("float32", 0.5)):
            what = [dtype, str(0.05 if options.quick else share)]
            subprocess.run([*command, "make", *what], check=True)
            for kernels in ("", "portable"):
                environment = {**os.environ, **TUNED, "HM_CPU": kernels}
                subprocess.run([*command, "table", *what], check=True, env=environment)
            subprocess.run([*command, "memory", *what], check=True)


if __name__ == "__main__":
    main()
