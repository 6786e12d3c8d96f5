"""Forge in small: patchers over one model, LoRAs that replace parameters; what is loaded is not patched again.

`install()` turns the stand-in into Forge: its loader, its job, and the modules that A1111 lacks.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from webui.facade import network

calculators: dict[str, Any] = {}
loaded: list[Any] = []
"""Patchers whose models are where they compute."""
work = {"refreshed": 0}


class LoraLoader:
    """Of one model: which patches are in its weights, and the parameters from before."""

    def __init__(self, model: Any) -> None:
        self.model, self.backup, self.loaded_hash = model, {}, "[]"

    @torch.inference_mode()
    def refresh(self, lora_patches: dict, offload_device: Any = None, force_refresh: bool = False) -> None:
        wanted = str(list(lora_patches))
        if wanted == self.loaded_hash and not force_refresh:
            return
        work["refreshed"] += 1
        for key, parameter in self.backup.items():
            _put(self.model, key, parameter)
        self.backup = {}
        for patches in lora_patches.values():
            for key, (strength, value) in patches.items():
                parent, leaf = _parent(self.model, key)
                parameter = getattr(parent, leaf)
                self.backup.setdefault(key, parameter)
                packed = getattr(parameter, "unpack", None)
                number = (parameter if packed is None else packed()).to(torch.float32, copy=True)
                number = _add(number, strength, value)
                fresh = torch.nn.Parameter(number.to(parameter.dtype), False) if packed is None else pack(number)
                _put(self.model, key, fresh)
        self.loaded_hash = wanted


def _add(weight: torch.Tensor, strength: float, value: tuple) -> torch.Tensor:
    kind, payload = value
    if kind == "diff":
        return weight.add_(payload[0], alpha=strength)
    return calculators[kind](weight, strength, payload)


def _parent(model: Any, key: str) -> tuple[Any, str]:
    path, _, leaf = key.rpartition(".")
    return model.get_submodule(path), leaf


def _put(model: Any, key: str, parameter: Any) -> None:
    parent, leaf = _parent(model, key)
    setattr(parent, leaf, parameter)


class Packed(torch.nn.Parameter):
    """Numbers that cannot be blended as they lie, as bnb's and gguf's."""

    gguf_cls = "packed"

    def unpack(self) -> torch.Tensor:
        return self.data.view(torch.float32).view(self.shaped)


def pack(number: torch.Tensor) -> Packed:
    packed = Packed(number.contiguous().view(torch.uint8).flatten(), False)
    packed.shaped = number.shape
    return packed


class ModelPatcher:
    def __init__(self, model: Any) -> None:
        self.model, self.lora_patches, self.offload_device = model, {}, torch.device("cpu")
        if not hasattr(model, "lora_loader"):
            model.lora_loader = LoraLoader(model)
        self.lora_loader = model.lora_loader

    def clone(self) -> ModelPatcher:
        fresh = ModelPatcher(self.model)
        fresh.lora_patches = self.lora_patches.copy()
        return fresh

    def add_patches(self, *, filename: str, patches: dict, strength_patch: float = 1.0) -> set[str]:
        held = {key: value for key, value in patches.items() if key in dict(self.model.named_parameters())}
        self.lora_patches[filename, strength_patch] = {key: (strength_patch, value) for key, value in held.items()}
        return set(held)

    def refresh_loras(self) -> None:
        self.lora_loader.refresh(self.lora_patches, offload_device=self.offload_device)


class CLIP:
    def __init__(self, model: Any, patcher: Any = None) -> None:
        self.cond_stage_model, self.patcher = model, patcher or ModelPatcher(model)

    def clone(self) -> CLIP:
        return CLIP(self.cond_stage_model, self.patcher.clone())


class Objects:
    def __init__(self, unet: Any, clip: Any) -> None:
        self.unet, self.clip = unet, clip

    def shallow_copy(self) -> Objects:
        return Objects(self.unet, self.clip)


def load_models_gpu(patcher: Any) -> None:
    """A patcher that is loaded is left alone, also when somebody has changed the weights."""
    if any(item is patcher for item in loaded):
        return
    loaded[:] = [item for item in loaded if item.model is not patcher.model] + [patcher]
    patcher.refresh_loras()


class ModelConfig:
    """Cuts one tensor in two, as the host does with fused projections of some text encoders."""

    unet_key_prefix = ["model.diffusion_model."]

    def process_clip_state_dict(self, state: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in state.items():
            if not name.startswith("cond_stage_model."):
                continue
            key = name.replace("cond_stage_model.", "clip_l.")
            if "fc1.weight" in key:
                half = value.shape[0] // 2
                found[key.replace("fc1", "upper")], found[key.replace("fc1", "lower")] = value[:half], value[half:]
            else:
                found[key] = value
        return found


class Bias(torch.nn.Module):
    """What is left of a layer whose weight was cut in two."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(network.WIDTH))


def _text_encoder() -> Any:
    """The same small text model, but with its projection in two."""
    half = network.WIDTH // 2
    model = network.text_model(network.Wrapped(network.Embedding(network.VOCABULARY, network.WIDTH)))
    upper, lower = (network.Linear(network.WIDTH, half, bias=False) for _ in range(2))
    model.text_model.encoder.layers[0].mlp = network.tree(upper=upper, lower=lower, fc1=Bias())
    return network.tree(clip_l=network.tree(transformer=model))


class Engine:
    def __init__(self, info: Any, packed: bool) -> None:
        self.model_config, self.sd_checkpoint_info = ModelConfig(), info
        self.filename, self.sd_model_hash, self.current_lora_hash = info.filename, info.shorthash, "[]"
        kmodel, text = network.tree(diffusion_model=network.unet()), _text_encoder()
        with torch.inference_mode():
            self._load(kmodel, text, network.read(info.filename), packed)
        self.forge_objects = Objects(ModelPatcher(kmodel), CLIP(text))
        self.forge_objects_original = self.forge_objects.shallow_copy()
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()

    def _load(self, kmodel: Any, text: Any, state: dict[str, torch.Tensor], packed: bool) -> None:
        clip = self.model_config.process_clip_state_dict(dict(state))
        for key, _ in list(kmodel.named_parameters()):
            number = state[f"model.{key}"].float()
            _put(kmodel, key, pack(number) if packed and number.ndim > 1 else torch.nn.Parameter(number, False))
        for key, _ in list(text.named_parameters()):
            _put(text, key, torch.nn.Parameter(clip[key.replace(".wrapped.", ".")].float().clone(), False))

    @torch.inference_mode()
    def get_learned_conditioning(self, prompts: list[str]) -> torch.Tensor:
        load_models_gpu(self.forge_objects.clip.patcher)
        model = self.forge_objects.clip.cond_stage_model.clip_l.transformer
        return torch.stack([self._encode(model, text) for text in prompts])

    @staticmethod
    def _encode(transformer: Any, prompt: str) -> torch.Tensor:
        tokens = torch.tensor([ord(letter) % network.VOCABULARY for letter in prompt] or [0])
        model = transformer.text_model
        mlp, x = model.encoder.layers[0].mlp, model.embeddings.token_embedding(tokens)
        return torch.tanh(torch.cat([mlp.upper(x), mlp.lower(x)], 1) + mlp.fc1.bias)

    @torch.inference_mode()
    def run(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        load_models_gpu(self.forge_objects.unet)
        net = self.forge_objects.unet.model.diffusion_model
        held = {}
        for key, parameter in list(net.named_parameters()):
            if isinstance(parameter, Packed):  # unpacked for the time of a forward
                held[key] = parameter
                _put(net, key, torch.nn.Parameter(parameter.unpack(), False))
        try:
            return network.run_unet(net, x, cond)
        finally:
            for key, parameter in held.items():
                _put(net, key, parameter)


def load_networks(engine: Any, wanted: list[Any], available: dict[str, Any]) -> None:
    """Patchers are made anew only when the list of LoRAs is another."""
    text = str([tuple(item) for item in wanted])
    if engine.current_lora_hash == text:
        return
    engine.current_lora_hash = text
    objects, original = engine.forge_objects, engine.forge_objects_original
    objects.unet, objects.clip = original.unet, original.clip
    for item in wanted:
        differences = available[item.name].differences
        objects.unet = objects.unet.clone()
        patches = {key: ("diff", (value,)) for key, value in differences.items()}
        objects.unet.add_patches(filename=item.name, patches=patches, strength_patch=item.multiplier)
    engine.forge_objects_after_applying_lora = objects.shallow_copy()


def install(packed: bool = False) -> None:
    """The modules that are imported now become Forge's.  packed: weights with more than one dimension are packed."""
    from modules import extra_networks, processing, script_callbacks, sd_models, shared

    stand_in = SimpleNamespace(cond_stage_model=None)
    data = SimpleNamespace(sd_model=stand_in, forge_hash="", get_sd_model=lambda: data.sd_model)
    sd_models.model_data = data
    loaded.clear()
    calculators.clear()

    def forge_model_reload() -> tuple[Any, bool]:
        info = sd_models.select_checkpoint()
        if data.forge_hash == info.filename:
            return data.sd_model, False
        data.sd_model = None
        loaded.clear()
        data.sd_model, data.forge_hash = Engine(info, packed), info.filename
        script_callbacks.call("on_model_loaded", data.sd_model)
        return data.sd_model, True

    def reload_model_weights(info: Any = None) -> None:
        if info is not None:
            shared.opts.data["sd_model_checkpoint"] = info.title
        forge_model_reload()

    class ExtraNetworkLora(extra_networks.ExtraNetwork):
        def __init__(self) -> None:
            super().__init__("lora")

        def activate(self, p: Any, params_list: list[Any]) -> None:
            networks = sys.modules["networks"]
            wanted = [networks.Network(item.positional[0], float(item.positional[1])) for item in params_list]
            load_networks(data.sd_model, wanted, networks.available)

    plain_call = processing._call

    def call(p: Any, hook: str, **more: Any) -> None:
        """Around the hooks the job's objects are taken from what LoRAs made of them."""
        engine = data.sd_model
        if hook == "before_process_batch":
            engine.forge_objects = engine.forge_objects_original.shallow_copy()
        if hook == "process_batch":
            engine.forge_objects = engine.forge_objects_after_applying_lora.shallow_copy()
        plain_call(p, hook, **more)

    networks = sys.modules["networks"]
    for name in ("network_apply_weights", "network_restore_weights_from_backup", "network_reset_cached_weight"):
        delattr(networks, name)
    sd_models.forge_model_reload, sd_models.reload_model_weights = forge_model_reload, reload_model_weights
    processing._call = call
    extra_networks.register_extra_network(ExtraNetworkLora())
    for name in ("backend", "backend.patcher", "backend.patcher.lora", "modules_forge", "modules_forge.main_entry"):
        sys.modules[name] = ModuleType(name)
    sys.modules["backend"].patcher = sys.modules["backend.patcher"]
    sys.modules["backend.patcher"].lora = sys.modules["backend.patcher.lora"]
    sys.modules["backend.patcher.lora"].extra_weight_calculators = calculators
    sys.modules["modules_forge"].main_entry = sys.modules["modules_forge.main_entry"]
    sys.modules["modules_forge.main_entry"].checkpoint_change = lambda title: shared.opts.data.update(
        sd_model_checkpoint=title
    )
    sys.modules["modules_forge.main_entry"].refresh_model_loading_parameters = lambda: None
