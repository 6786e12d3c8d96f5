"""Checkpoints, and the loaded model: what is read anew, what is used again, and who is told."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch

from webui.facade import network

from . import devices, paths_internal, script_callbacks, shared

checkpoints_list: dict[str, Any] = {}
checkpoint_aliases: dict[str, Any] = {}
model_path = ""


class CheckpointInfo:
    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.name = os.path.relpath(filename, model_path)
        self.name_for_extra = os.path.splitext(os.path.basename(filename))[0]
        with open(filename, "rb") as file:
            self.sha256 = hashlib.sha256(file.read()).hexdigest()
        self.shorthash = self.sha256[:10]
        self.title = f"{self.name} [{self.shorthash}]"


def list_models() -> None:
    """Makes every CheckpointInfo anew."""
    global model_path
    model_path = os.path.join(paths_internal.models_path, "Stable-diffusion")
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    found = [os.path.join(folder, name) for folder, _, names in os.walk(model_path) for name in names]
    for path in sorted(found):
        if path.endswith((".safetensors", ".ckpt")):
            info = CheckpointInfo(path)
            checkpoints_list[info.title] = info
            checkpoint_aliases.update(dict.fromkeys([info.title, info.name, info.shorthash], info))


def checkpoint_tiles(use_short: bool = False) -> list[str]:
    return [info.name_for_extra if use_short else info.name for info in checkpoints_list.values()]


class Model(torch.nn.Module):
    """As the host builds an SD1.5."""

    def __init__(self) -> None:
        super().__init__()
        embedding = network.Wrapped(network.Embedding(network.VOCABULARY, network.WIDTH))
        self.model = network.tree(diffusion_model=network.unet())
        self.cond_stage_model = network.Wrapped(network.tree(transformer=network.text_model(embedding)))
        self.first_stage_model = network.tree(decoder=network.Linear(4, 3, bias=False))
        network.name_layers(self.model)
        network.name_layers(self.cond_stage_model.wrapped)

    def get_learned_conditioning(self, prompts: list[str]) -> torch.Tensor:
        _hop(self.cond_stage_model)
        return torch.stack([network.run_text(self.cond_stage_model.wrapped.transformer, text) for text in prompts])

    def run(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        _hop(self.model)
        return network.run_unet(self.model.diffusion_model, x, cond)


def _hop(module: torch.nn.Module) -> None:
    """--medvram: a module comes and goes, and the storage of its parameters with it."""
    if shared.cmd_opts.medvram:
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()


class _ModelData:
    def __init__(self) -> None:
        self.sd_model: Any = None
        self.loaded_sd_models: list[Any] = []

    def get_sd_model(self) -> Any:
        if self.sd_model is None:
            load_model()
        return self.sd_model


model_data = _ModelData()


def select_checkpoint() -> Any:
    return checkpoint_aliases.get(shared.opts.sd_model_checkpoint) or next(iter(checkpoints_list.values()))


def _load_weights(model: Any, info: Any) -> None:
    """Reads a checkpoint into a model, in the types that the options ask for."""
    if devices.fp8:
        model.half()
    state = network.read(info.filename)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            held = state[name.replace(".wrapped.", ".")]
            parameter.data = (held.float() if shared.cmd_opts.no_half else held.half()).clone()
    if shared.cmd_opts.opt_channelslast:
        model.to(memory_format=torch.channels_last)
    for module in model.modules():
        for name in ("fp16_weight", "fp16_bias"):
            if hasattr(module, name):
                delattr(module, name)
        if hasattr(module, "network_current_names"):  # the LoRA support forgets at load_state_dict
            module.network_current_names, module.network_weights_backup, module.network_bias_backup = (), None, None
    devices.fp8 = bool(shared.opts.fp8_storage)
    if devices.fp8:
        for part in (model.model, model.cond_stage_model):
            for module in part.modules():
                if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                    _to_fp8(module)
    model.sd_checkpoint_info, model.sd_model_hash = info, info.shorthash
    model.sd_model_checkpoint = info.filename
    shared.opts.data["sd_model_checkpoint"] = info.title


def _to_fp8(module: Any) -> None:
    if shared.opts.cache_fp16_weight:
        module.fp16_weight = module.weight.data.clone().half()
        if module.bias is not None:
            module.fp16_bias = module.bias.data.clone().half()
    module.to(torch.float8_e4m3fn)


def get_empty_cond(model: Any) -> torch.Tensor:
    """Activates extra networks for a job that is none."""
    from . import extra_networks, processing

    extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})
    return model.get_learned_conditioning([""])


def load_model(info: Any = None) -> Any:
    """A new model; the one before is thrown away, to the meta device."""
    info = info or select_checkpoint()
    if model_data.sd_model is not None:
        model_data.sd_model.to("meta")
        model_data.loaded_sd_models.remove(model_data.sd_model)
    model = Model()
    _load_weights(model, info)
    _is_now(model)
    script_callbacks.call("on_model_loaded", model)
    with torch.no_grad():
        model.cond_stage_model_empty_prompt = get_empty_cond(model)
    return model


def _is_now(model: Any) -> None:
    model_data.sd_model = model
    model_data.loaded_sd_models = [model, *(other for other in model_data.loaded_sd_models if other is not model)]


def reload_model_weights(info: Any = None, forced_reload: bool = False) -> Any:
    """Nothing where the checkpoint is loaded already; a kept model is used again, and nobody is told of it.

    Else the checkpoint is read into the very module that held another, or into a new one where there is room for more.
    """
    info, model = info or select_checkpoint(), model_data.sd_model
    if model is None:
        return load_model(info)
    if bool(shared.opts.fp8_storage) != devices.fp8:
        forced_reload = True
    elif model.sd_model_checkpoint == info.filename and not forced_reload:
        return model
    kept = next((m for m in model_data.loaded_sd_models if m.sd_checkpoint_info.filename == info.filename), None)
    if kept is not None and not forced_reload:
        _is_now(kept)
        shared.opts.data["sd_model_checkpoint"] = info.title
        return kept
    if len(model_data.loaded_sd_models) < shared.opts.sd_checkpoints_limit:
        model_data.sd_model = None
        return load_model(info)
    model = model_data.loaded_sd_models.pop()
    _load_weights(model, info)
    script_callbacks.call("on_model_loaded", model)
    _is_now(model)
    return model


class SkipWritingToConfig:
    """The refiner's switch does not change what is chosen at the top of the page."""

    def __enter__(self) -> None:
        self._chosen = shared.opts.data["sd_model_checkpoint"]

    def __exit__(self, *reason: Any) -> None:
        shared.opts.data["sd_model_checkpoint"] = self._chosen
