"""Eigenvalues of the Gram matrix: ours against f64 arithmetic by NumPy.

    python bench/eigenvalues.py MODEL…      prints JSON: spectrum (ours), reference, error (largest difference / σ₁²)

The reference reads the merged tensors in chunks, converts to f64, subtracts the mean before it multiplies and keeps f64
throughout; it shares nothing with the core but the list of merged names.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from extents import extents, header, is_merged

import hypermerge_ext as hm

CHUNK = 1 << 16


def to_f64(raw: np.ndarray, dtype: str) -> np.ndarray:
    """16-bit numbers → f64, exactly."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view(np.float16).astype(np.float64)


def reference(paths: list[str]) -> np.ndarray:
    """Eigenvalues of the Gram matrix about the mean, largest first."""
    dtype = next(entry["dtype"] for name, entry in header(paths[0])[0].items() if is_merged(name, entry["dtype"]))
    files = [np.memmap(path, np.uint8, "r") for path in paths]
    gram = np.zeros((len(paths), len(paths)))
    for offset, size in extents(paths[0]):
        for at in range(offset, offset + size, 2 * CHUNK):
            end = min(at + 2 * CHUNK, offset + size)
            rows = np.stack([to_f64(np.array(file[at:end]), dtype) for file in files])
            rows -= rows.mean(0)
            gram += rows @ rows.T
    return np.linalg.eigvalsh(gram)[::-1]


def main() -> None:
    paths = sys.argv[1:]
    expected = reference(paths)
    spectrum = np.array(hm.solve(paths).document["spectrum"])
    error = float(np.max(np.abs(spectrum - expected)) / expected[0])
    json.dump({"spectrum": spectrum.tolist(), "reference": expected.tolist(), "error": error}, sys.stdout)


if __name__ == "__main__":
    main()
