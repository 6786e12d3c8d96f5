"""What ComfyUI promises about patches, in small: enough of a host to try patches on.

It follows what ComfyUI does where our patches depend on it: copies of weights in float32, new parameters, a backup
shared by clones, a uuid that decides whether a loaded model is patched anew, injections around every use, layers that
stay behind and apply their patches at each forward, and a prefetch that makes patches anew.  `work` counts what a
patcher had to do.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

ON_LOAD, ON_DETACH = "loaded", "detached"


class AdapterBase:
    """Stands for WeightAdapterBase."""

    name: str
    loaded_keys: set
    weights: Any


class Injection(NamedTuple):
    inject: Callable[[Any], None]
    eject: Callable[[Any], None]


class Kept(NamedTuple):
    weight: torch.Tensor
    inplace_update: bool


def calculate_weight(patches: list, weight: torch.Tensor, key: str) -> torch.Tensor:
    for strength, value, strength_model, _, _ in patches:
        weight *= strength_model
        if isinstance(value, AdapterBase):
            weight = value.calculate_weight(weight, key, strength, strength_model, None, None, weight.dtype, None)
        elif isinstance(value, list):  # a nested weight, as merge nodes give it
            nested = calculate_weight(value[1:], value[0].to(weight.dtype, copy=True), key)
            weight += strength * nested
        else:
            weight += strength * value[0].to(weight.dtype)
    return weight


def prefetched(value: Any, copies: list[torch.Tensor]) -> Any:
    """The value with its tensors copied to where the model computes; patches are made anew around them."""
    if isinstance(value, torch.Tensor):
        copies.append(value.clone())
        return copies[-1]
    if isinstance(value, AdapterBase):
        return type(value)(value.loaded_keys, prefetched(value.weights, copies))
    if isinstance(value, (tuple, list)):  # a NamedTuple is a plain tuple afterwards
        return (tuple if isinstance(value, tuple) else list)(prefetched(item, copies) for item in value)
    return value


class Model(torch.nn.Module):
    """A module with what ComfyUI hangs on it."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for key, tensor in tensors.items():
            *folders, last = key.split(".")
            inside: torch.nn.Module = self
            for name in folders:
                if name not in inside._modules:
                    inside.add_module(name, torch.nn.Module())
                inside = inside._modules[name]
            inside.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
        self.current_weight_patches_uuid = None
        self.model_lowvram = False
        self.model_loaded_weight_memory = 0
        self.late: dict[str, list] = {}  # weights that are patched at each forward
        self.patched: set[str] = set()  # weights that are patched where they lie; not again before they are unpatched

    def now(self, key: str) -> torch.Tensor:
        """The weight that a forward would use."""
        weight = get_weight(self, key)
        return calculate_weight(self.late[key], weight.clone(), key) if key in self.late else weight


def get_weight(model: Model, key: str) -> torch.Tensor:
    return model.get_parameter(key)


def set_weight(model: Model, key: str, tensor: torch.Tensor) -> None:
    folder, _, last = key.rpartition(".")
    setattr(model.get_submodule(folder), last, torch.nn.Parameter(tensor, requires_grad=False))


class Patcher:
    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.dtype = model, dtype
        self.load_device = self.offload_device = torch.device("cpu")
        self.patches: dict[str, list] = {}
        self.backup: dict[str, Kept] = {}
        self.patches_uuid = uuid.uuid4()
        self.attachments: dict[str, Any] = {}
        self.injections: dict[str, list[Injection]] = {}
        self.callbacks: dict[str, dict[str, list]] = {}
        self.is_injected = self.skip_injection = False
        self.work: Counter = Counter()

    def clone(self) -> Patcher:
        other = Patcher(self.model, self.dtype)
        other.patches = {key: list(patches) for key, patches in self.patches.items()}
        other.backup, other.patches_uuid, other.work = self.backup, self.patches_uuid, self.work
        other.attachments = dict(self.attachments)
        other.injections = {key: list(given) for key, given in self.injections.items()}
        other.callbacks = {
            kind: {key: list(given) for key, given in keyed.items()} for kind, keyed in self.callbacks.items()
        }
        other.is_injected, other.skip_injection = self.is_injected, self.skip_injection
        return other

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0, strength_model: float = 1.0) -> list[str]:
        ejected = self._eject()
        known = [key for key in patches if key in self.model.state_dict()]
        for key in known:
            self.patches.setdefault(key, []).append((strength, patches[key], strength_model, None, None))
        self.patches_uuid = uuid.uuid4()
        self._inject(ejected)
        return known

    def model_state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    # ---- loading ----------------------------------------------------------------------------------------------------

    def patch_weight_to_device(self, key: str, device_to: Any = None) -> None:
        self.work["patched"] += 1
        weight = get_weight(self.model, key)
        if key not in self.backup:
            self.backup[key] = Kept(weight, False)
        changed = calculate_weight(self.patches[key], weight.to(torch.float32, copy=True), key)
        set_weight(self.model, key, changed.to(weight.dtype))

    def patch_model(self, device_to: Any = None, lowvram_model_memory: int = 0) -> None:
        """lowvram_model_memory > 0: so many weights are patched, the others when they are used."""
        self.work["loads"] += 1
        keys = [key for key, _ in self.model.named_parameters() if key in self.patches]
        here = keys if lowvram_model_memory == 0 else keys[:lowvram_model_memory]
        for key in here:
            if key not in self.model.patched:
                self.patch_weight_to_device(key, device_to)
                self.model.patched.add(key)
        self.model.late = {key: self.patches[key] for key in keys if key not in here}
        self.model.model_lowvram = lowvram_model_memory > 0
        self.model.model_loaded_weight_memory = lowvram_model_memory or len(keys)
        self.model.current_weight_patches_uuid = self.patches_uuid
        self._call(ON_LOAD, device_to, lowvram_model_memory, False, lowvram_model_memory == 0)
        if not self.skip_injection:
            self._inject(True)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        self._eject()
        if unpatch_weights:
            for key, kept in self.backup.items():
                set_weight(self.model, key, kept.weight)
            self.backup.clear()
            self.model.patched.clear()
            self.model.late, self.model.model_lowvram = {}, False
            self.model.current_weight_patches_uuid = None
            self.model.model_loaded_weight_memory = 0

    def partially_unload(self, count: int) -> None:
        """Moves some weights out, to make room for another model: they get their patches when they are used."""
        for key in list(self.backup)[:count]:
            set_weight(self.model, key, self.backup.pop(key).weight)
            self.model.patched.discard(key)
            self.model.late[key] = self.patches[key]
        self.model.model_lowvram = True

    def unpatch_hooks(self) -> None:
        self.work["hooks taken off"] += 1

    def partially_load(self, lowvram: int = 0) -> None:
        """Before every use: the whole model anew when the uuid has changed, else nothing but injections."""
        other = self.model.current_weight_patches_uuid not in (None, self.patches_uuid)
        self._eject()
        self.skip_injection = True
        self.unpatch_model(self.offload_device, unpatch_weights=other)
        if self.model.current_weight_patches_uuid is None or self.model.model_lowvram:
            self.patch_model(self.load_device, lowvram)
        self.skip_injection = False
        self._inject(True)

    def detach(self, unpatch_all: bool = True) -> None:
        self._eject()
        if unpatch_all:
            self.unpatch_model()
        self._call(ON_DETACH, unpatch_all)

    # ---- what nodes hang on it --------------------------------------------------------------------------------------

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def set_injections(self, key: str, injections: list[Injection]) -> None:
        self.injections[key] = injections

    def add_callback_with_key(self, kind: str, key: str, function: Callable) -> None:
        self.callbacks.setdefault(kind, {}).setdefault(key, []).append(function)

    def remove_callbacks_with_key(self, kind: str, key: str) -> None:
        self.callbacks.get(kind, {}).pop(key, None)

    def _call(self, kind: str, *arguments: Any) -> None:
        for functions in list(self.callbacks.get(kind, {}).values()):
            for function in functions:
                function(self, *arguments)

    def _inject(self, wanted: bool) -> None:
        if wanted and not self.is_injected and not self.skip_injection:
            for injections in self.injections.values():
                for injection in injections:
                    injection.inject(self)
                    self.is_injected = True

    def _eject(self) -> bool:
        was, self.is_injected = self.is_injected, False
        if was:
            for injections in self.injections.values():
                for injection in injections:
                    injection.eject(self)
        return was


class Host:
    """Keeps one clone of each model loaded, as ComfyUI's list of loaded models does."""

    def __init__(self) -> None:
        self._loaded: dict[int, Patcher] = {}

    def load(self, patcher: Patcher, lowvram: int = 0) -> Model:
        before = self._loaded.get(id(patcher.model))
        if before is not None and before is not patcher:
            before.detach(unpatch_all=False)
        self._loaded[id(patcher.model)] = patcher
        patcher.partially_load(lowvram)
        return patcher.model

    def free(self) -> None:
        """What /free asks for."""
        for patcher in self._loaded.values():
            patcher.detach(unpatch_all=True)
        self._loaded.clear()
