"""Node definitions as ComfyUI's /object_info gives them: our nodes with their frozen inputs, and a sink to queue for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HYPER = "demo-8.hyper.safetensors"
FOUR = "four-directions.hyper.safetensors"
FROZEN = Path(__file__).parent.parent / "comfyui" / "frozen.json"

_MULTIPLIER = {"default": 0.0, "min": -10.0, "max": 10.0, "step": 0.01, "round": 0.0001}
_DETAILS: dict[str, dict[str, dict[str, Any]]] = {
    "HyperMergeSolve": {
        "models": {"multiline": True},
        "base": {"options": ["mean", "none"]},
        "directions": {"default": 2, "min": 1, "max": 63},
        **{name: {"multiline": True, "advanced": True} for name in ("include", "exclude")},
        "dtype": {"options": ["keep", "fp16"], "advanced": True},
        **{name: {"advanced": True} for name in ("common", "allow_nonfinite")},
    },
    "HyperMergeLoad": {"name": {"options": [HYPER, FOUR, "(hyper input)"]}, "load_base": {"default": True}},
    "HyperMergeBlend": {
        "lam": {**_MULTIPLIER, "display_name": "λ"},
        "kap": {**_MULTIPLIER, "display_name": "κ"},
        "strength_clip": {**_MULTIPLIER, "default": 1.0},
        "directions": {"options": ["file", "memory"], "advanced": True},
        "method": {"options": ["auto", "patch"], "advanced": True},
        "blocks": {"forceInput": True},
    },
}
_OPTIONAL = {"HyperMergeLoad": ("hyper",), "HyperMergeBlend": ("clip", "blocks")}
_DEFAULTS = {"STRING": "", "FLOAT": 0.0, "INT": 0, "BOOLEAN": False}


def definitions() -> dict[str, Any]:
    """{node id: definition}, with all inputs in the order that old workflows rely on."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    sink = {"category": "test", "inputs": {"model": "MODEL", "clip": "CLIP"}, "outputs": []}
    return {name: _definition(name, node) for name, node in {**frozen, "TestSink": sink}.items()}


def _definition(name: str, node: dict[str, Any]) -> dict[str, Any]:
    optional = _OPTIONAL.get(name, ())
    inputs = {key: [kind, _options(name, key, kind)] for key, kind in node["inputs"].items()}
    return {
        "input": {
            "required": {key: spec for key, spec in inputs.items() if key not in optional},
            "optional": {key: spec for key, spec in inputs.items() if key in optional},
        },
        "input_order": {
            "required": [key for key in inputs if key not in optional],
            "optional": [key for key in inputs if key in optional],
        },
        "output": node["outputs"],
        "output_is_list": [False] * len(node["outputs"]),
        "output_name": [kind.lower() for kind in node["outputs"]],
        "name": name,
        "display_name": name.replace("HyperMerge", "HyperMerge "),
        "description": "",
        "python_module": "custom_nodes.hyper-merge",
        "category": node["category"],
        "output_node": name in ("TestSink", "HyperMergeInfo"),
    }


def _options(name: str, key: str, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {"default": _DEFAULTS[kind]} if kind in _DEFAULTS else {}
    if kind == "COMBO":
        options["options"] = ["keep"]
    return {**options, **_DETAILS.get(name, {}).get(key, {})}
