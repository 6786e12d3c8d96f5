"""What one would do without hyper-merge; each prints JSON with the seconds that its work took, imports not counted.

    python bench/peers.py torch MODEL…              stack all weights in f32, centre, multiply, eigvalsh
    python bench/peers.py sd-mecha FOLDER MODEL…    n_average to an fp16 file in FOLDER
    python bench/peers.py mergekit FOLDER MODEL…    the same with mergekit-pytorch's linear merge
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path


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


def mecha_average(folder: Path, paths: list[str]) -> dict[str, object]:
    import sd_mecha
    import torch

    begun = time.monotonic()
    models = [sd_mecha.model(path, config="sd1-ldm") for path in paths]
    out = folder / "average.safetensors"
    sd_mecha.merge(sd_mecha.n_average(*models), output=out, output_dtype=torch.float16, tqdm=_Silent)
    return {"seconds": time.monotonic() - begun}


def mergekit_average(folder: Path, paths: list[str]) -> dict[str, object]:
    from mergekit.scripts.merge_raw_pytorch import main as merge

    begun = time.monotonic()
    models = [{"model": path, "parameters": {"weight": 1.0}} for path in paths]
    config = folder / "config.yml"  # JSON is YAML
    config.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": "float16"}), encoding="utf-8")
    with contextlib.redirect_stdout(sys.stderr):
        merge([str(config), str(folder), "--quiet"], standalone_mode=False)
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
    if what == "torch":
        result = torch_eigenvalues(paths)
    else:
        folder = Path(paths[0])
        folder.mkdir(exist_ok=True)
        result = {"sd-mecha": mecha_average, "mergekit": mergekit_average}[what](folder, paths[1:])
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
