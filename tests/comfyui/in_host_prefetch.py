"""Run by ComfyUI's Python in ComfyUI's folder: a patch as dynamic VRAM makes it anew, by ComfyUI's own functions.

    python in_host_prefetch.py FOLDER    prints {"file": [bytes moved, right], "memory": [bytes moved, right]}

FOLDER: for a small hyper-model.  Without LowVramPatch.prepare (an older ComfyUI) it prints {}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, os.getcwd())
folder = Path(sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402  before everything else of ComfyUI

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy.model_patcher import LowVramPatch  # noqa: E402
from comfy.weight_adapter import WeightAdapterBase  # noqa: E402

from comfyui import blends  # noqa: E402

AT = (0.37, -0.81)
Patch = blends.weights.patch_class(WeightAdapterBase)
hyper = blends.make(folder / "prefetch")
upstream, names, wanted = blends.patcher_of(hyper), blends.names_of(hyper).model, blends.expected(hyper, AT)
answer = {}
for where in ("file", "memory") if hasattr(LowVramPatch, "prepare") else ():
    blend = blends.apply.Blend(AT, in_memory=where == "memory")
    moved, right = 0, True
    for key, move in blends.apply.moves_of(upstream, hyper, names, blend, "MODEL", blends.HOST).items():
        patch = LowVramPatch(key, {key: [(1.0, Patch(set(), (move,)), 1.0, None, None)]})
        size = patch.memory_required()
        patch.prepare(torch.empty(size, dtype=torch.uint8), None)
        found = patch(upstream.model.get_parameter(key).to(torch.float32, copy=True))
        moved, right = moved + size, right and torch.equal(found, wanted[key])
    answer[where] = [moved, right]
print(json.dumps(answer))
