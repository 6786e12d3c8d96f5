"""What one would do without hyper-merge; each prints JSON with the seconds that its work took, imports not counted.

    python bench/peers.py torch MODEL…              stack all weights in f32, centre, multiply, eigvalsh
    python bench/peers.py sd-mecha OUT MODEL…       n_average to an fp16 file
"""

from __future__ import annotations

import json
import sys
import time


def torch_eigenvalues(paths: list[str]) -> dict[str, object]:
    import torch
    from safetensors.torch import load_file

    begun = time.monotonic()
    rows = []
    for path in paths:
        state = load_file(path)
        rows.append(
            torch.cat(
                [
                    tensor.flatten().float()
                    for name, tensor in state.items()
                    if tensor.is_floating_point() and not name.startswith("first_stage_model.")
                ]
            )
        )
    stacked = torch.stack(rows)
    del rows
    stacked -= stacked.mean(0)
    values = torch.linalg.eigvalsh(stacked @ stacked.T).flip(0)
    return {"seconds": time.monotonic() - begun, "spectrum": values.tolist()}


def mecha_average(out: str, paths: list[str]) -> dict[str, object]:
    import sd_mecha
    import torch

    begun = time.monotonic()
    models = [sd_mecha.model(path, config="sd1-ldm") for path in paths]
    sd_mecha.merge(sd_mecha.n_average(*models), output=out, output_dtype=torch.float16, tqdm=_Silent)
    return {"seconds": time.monotonic() - begun}


class _Silent:
    """Stands for tqdm."""

    def __init__(self, iterable=None, *_, **__):
        self._iterable = iterable

    def __iter__(self):
        return iter(self._iterable)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __getattr__(self, _):
        return lambda *_, **__: None


def main() -> None:
    what, *paths = sys.argv[1:]
    result = torch_eigenvalues(paths) if what == "torch" else mecha_average(paths[0], paths[1:])
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
