"""The memory budget holds whatever the number and the size of the models."""

from __future__ import annotations

import os

import numpy as np
import pytest

import oracle

LIMIT = 400 << 20
TOTAL = 320 << 20  # of all inputs together


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """4 and 8 models of 320 MiB together, one large tensor among small ones, not in the page cache."""
    made = {}
    for count in (4, 8):
        folder = tmp_path_factory.mktemp(f"of{count}")
        numbers = TOTAL // count // 2
        rng = np.random.default_rng(count)
        pattern = rng.standard_normal(65521).astype(np.float16)
        paths = []
        for m in range(count):
            change = (0.01 * rng.standard_normal(65521)).astype(np.float16)
            data = np.resize(pattern + change, numbers)
            model, at = {}, 0
            for i, share in enumerate([0.4, *[0.05] * 8, *[0.002] * 100]):
                size = int(numbers * share) // 512 * 512
                model[f"layers.{i}.weight"] = oracle.Tensor("F16", data[at : at + size].reshape(-1, 512))
                at += size
            paths.append(folder / f"m{m}.safetensors")
            oracle.write(paths[-1], model)
        made[count] = folder, paths
    yield made
    for folder, _ in made.values():
        for path in folder.iterdir():
            path.unlink()


def cool(paths):
    """Out of the page cache, as far as the kernel agrees."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def test_peak_memory(families, peak_memory):
    peaks = {}
    for count, (folder, paths) in families.items():
        cool(paths)
        names = [path.name for path in paths]
        peaks["compare", count] = peak_memory("compare", *names, cwd=folder)
        cool(paths)
        peaks["solve", count] = peak_memory("solve", *names, "-o", "x.hyper.safetensors", cwd=folder)
        peaks["merge", count] = peak_memory(
            "merge", "x.hyper.safetensors", "--at", "1,1", "-o", "y.safetensors", cwd=folder
        )
        peaks["exact", count] = peak_memory(
            "merge", "x.hyper.safetensors", "--at", "1", "-o", "y.safetensors", "--exact", *names, cwd=folder
        )
        peaks["project", count] = peak_memory("project", "x.hyper.safetensors", names[0], cwd=folder)
        assert sorted(os.listdir(folder)) == sorted([*names, "x.hyper.safetensors", "y.safetensors"])
    print({f"{what} {count}": f"{peak / 2**20:.0f} MiB" for (what, count), peak in peaks.items()})
    assert max(peaks.values()) < LIMIT, peaks
    for what in ("compare", "solve", "merge", "exact", "project"):
        four, eight = peaks[what, 4], peaks[what, 8]
        assert abs(four - eight) <= 0.1 * max(four, eight), (what, four, eight)


def test_a_smaller_budget_is_kept_too(families, peak_memory):
    folder, paths = families[8]
    names = [path.name for path in paths]
    for budget in (16, 64):
        peak = peak_memory("compare", *names, "--memory", f"{budget}MiB", cwd=folder)
        assert peak < (budget + 64) << 20, (budget, peak)
