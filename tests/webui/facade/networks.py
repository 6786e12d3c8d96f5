"""The built-in LoRA support, imported under the name `networks`: it changes weights at forward, and remembers them.

A layer whose LoRAs are not those that are wanted is put back from its copy, and the wanted ones are added; the copy is
made when a LoRA is first wanted.  What was written in between is lost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from modules import extra_networks


class Network(NamedTuple):
    name: str
    multiplier: float


class Lora(NamedTuple):
    """What a LoRA adds: name of a layer → the difference of its weight."""

    differences: dict[str, torch.Tensor]


available: dict[str, Lora] = {}
loaded_networks: list[Network] = []
listed = 0


def list_available_networks() -> None:
    global listed
    listed += 1


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    def __init__(self) -> None:
        super().__init__("lora")

    def activate(self, p: Any, params_list: list[Any]) -> None:
        loaded_networks[:] = [Network(item.positional[0], float(item.positional[1])) for item in params_list]


def network_apply_weights(layer: Any) -> None:
    name = getattr(layer, "network_layer_name", None)
    if name is None:
        return
    current, wanted = getattr(layer, "network_current_names", ()), tuple(loaded_networks)
    if wanted and getattr(layer, "network_weights_backup", None) is None:
        if current:
            raise RuntimeError(f"{name}: changed, and no copy is there")
        layer.network_weights_backup = layer.weight.detach().to("cpu", copy=True)
        layer.network_bias_backup = None if layer.bias is None else layer.bias.detach().to("cpu", copy=True)
    if current == wanted:
        return
    network_restore_weights_from_backup(layer)
    with torch.no_grad():
        for item in wanted:
            difference = available[item.name].differences.get(name)
            if difference is not None:
                half = getattr(layer, "fp16_weight", None)  # of fp8 weights: LoRAs are added to the copy
                held = layer.weight if half is None else half
                layer.weight.copy_((held.float() + item.multiplier * difference).to(layer.weight.dtype))
    layer.network_current_names = wanted


def network_restore_weights_from_backup(layer: Any) -> None:
    with torch.no_grad():
        for name in ("weight", "bias"):
            kept = getattr(layer, f"network_{name}s_backup" if name == "weight" else "network_bias_backup", None)
            if kept is not None:
                getattr(layer, name).copy_(kept)


def network_reset_cached_weight(layer: Any) -> None:
    layer.network_current_names, layer.network_weights_backup, layer.network_bias_backup = (), None, None
