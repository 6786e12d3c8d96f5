"""Run by ComfyUI's Python in ComfyUI's folder: do the names of a whole checkpoint lead to tensors that its models have?

    python in_host.py NAMES.json    prints {"model", "clip", "lost", "missing", "shapes"}

NAMES.json: {name: [shape, dtype, moves]}.  Nothing is allocated: all modules are made on the device "meta".
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, os.getcwd())
names = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402  before everything else of ComfyUI

comfy.options.enable_args_parsing()

import comfy.model_detection as detection  # noqa: E402
import torch  # noqa: E402

from comfyui import pack  # noqa: E402


def meta() -> dict[str, torch.Tensor]:
    """The checkpoint's state dict; conversions take things out of it, and look at single numbers."""
    return {
        name: torch.ones(shape, dtype=getattr(torch, dtype), device="meta" if shape else "cpu")
        for name, (shape, dtype, _) in names.items()
    }


def held(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


prefix = detection.unet_prefix_from_state_dict(meta())
config = detection.model_config_from_unet(meta(), prefix)
config.set_inference_dtype(torch.float16, None)
stored = SimpleNamespace(
    shapes={name: tuple(shape) for name, (shape, _, _) in names.items()},
    moving={name for name, (_, _, moves) in names.items() if moves},
)
found = pack.part("logic.apply").names_of(
    SimpleNamespace(stored=stored, name="names"),
    detection.unet_prefix_from_state_dict,
    config.process_unet_state_dict,
    config.process_clip_state_dict,
)
target = config.clip_target(state_dict=meta())
modules = {"model": held(config.get_model(meta(), prefix, device="meta"))}
words = {"dtype": torch.float16, "device": "meta", "model_options": {}}
modules["clip"] = held(target.clip(**{**target.params, **words}))
answer = {"missing": [], "shapes": []}
known = set()
for kind, parts in (("model", found.model), ("clip", found.clip)):
    moving = {key: part for key, part in parts.items() if part.name in stored.moving}
    known |= {part.name for part in moving.values()}
    answer[kind] = len({part.name for part in moving.values()})
    answer["missing"] += [key for key in moving if key not in modules[kind]]
    answer["shapes"] += [key for key, part in moving.items() if modules[kind].get(key, part.shape) != part.shape]
answer["lost"] = sorted(stored.moving - known)
print(json.dumps(answer))
