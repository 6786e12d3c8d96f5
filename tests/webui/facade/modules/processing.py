"""A job: the order in which the host calls scripts, extra networks, text encoder and sampler; and what it keeps."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from . import extra_networks, sd_models, shared


class StableDiffusionProcessing:
    cached_c = [None, None]
    cached_uc = [None, None]

    def __init__(self, prompt: str = "", **more: Any) -> None:
        self.prompt, self.negative_prompt, self.n_iter, self.batch_size, self.seed = prompt, "", 1, 1, 1
        self.scripts: Any = None
        self.disable_extra_networks = False
        self.all_prompts: Any = None
        self.override_settings: dict[str, Any] = {}
        self.refiner: str | None = None
        self.enable_hr, self.hr_prompt, self.hr_checkpoint, self.is_hr_pass = False, "", None, False
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        self.__dict__.update(more)
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            if hasattr(type(self), name):
                setattr(self, name, getattr(type(self), name))

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    @property
    def sd_model(self) -> Any:
        return shared.sd_model

    def encoded(self, prompt: str, cache: list[Any], data: Any) -> torch.Tensor:
        """Kept over jobs: by prompt, checkpoint and extra networks, but not by what the text encoder's weights are."""
        key = (prompt, shared.sd_model.sd_checkpoint_info, dict(data), shared.opts.fp8_storage)
        if cache[0] is None or cache[0] != key:
            cache[1] = shared.sd_model.get_learned_conditioning([prompt])[0]
            cache[0] = key
        return cache[1]

    def setup_conds(self) -> None:
        self.c = self.encoded(self.prompts[0], self.cached_c, self.extra_network_data)
        self.uc = self.encoded(self.negative_prompt, self.cached_uc, self.extra_network_data)


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    cached_hr_c = [None, None]
    cached_hr_uc = [None, None]


class Processed:
    """Images as hashes of their numbers, and the infotext of each."""

    def __init__(self, images: list[str], infotexts: list[dict[str, str]], comments: list[str]) -> None:
        self.images, self.infotexts, self.comments = images, infotexts, comments


def process_images(p: StableDiffusionProcessing) -> Processed:
    chosen = p.override_settings.get("sd_model_checkpoint")
    info = sd_models.checkpoint_aliases.get(chosen)
    sd_models.reload_model_weights(info) if info is not None else sd_models.reload_model_weights()
    p.sd_model_name = shared.sd_model.sd_checkpoint_info.name_for_extra
    p.sd_model_hash = shared.sd_model.sd_model_hash
    prompts = p.prompt if isinstance(p.prompt, list) else [p.prompt] * p.n_iter
    p.all_prompts = prompts
    _call(p, "process")
    images, infotexts = [], []
    with torch.no_grad():
        for number, prompt in enumerate(prompts):
            if shared.state.interrupted:
                break
            sd_models.reload_model_weights(info)  # a refiner may have taken the model's place
            p.iteration, p.prompts = number, [prompt]
            _call(p, "before_process_batch", batch_number=number)
            p.prompts, p.extra_network_data = extra_networks.parse_prompts(p.prompts)
            if not p.disable_extra_networks:
                extra_networks.activate(p, p.extra_network_data)
            _call(p, "process_batch", batch_number=number)
            p.setup_conds()
            images.append(_hash(_sample(p)))
            infotexts.append(_infotext(p))
    return Processed(images, infotexts, list(p.comments))


def _call(p: Any, hook: str, **more: Any) -> None:
    if p.scripts is not None:
        p.scripts.call(hook, p, **more)


def _sample(p: Any) -> torch.Tensor:
    x = torch.randn((1, 4, 5, 5), generator=torch.Generator().manual_seed(p.seed))
    x = _step(p, x)
    if p.refiner is not None:
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(sd_models.checkpoint_aliases[p.refiner])
        extra_networks.activate(p, p.extra_network_data)
        p.setup_conds()
        x = _step(p, x)
    if p.enable_hr:
        x = _hires(p, x)
    return x


def _step(p: Any, x: torch.Tensor) -> torch.Tensor:
    return shared.sd_model.run(x, p.c) - 0.5 * shared.sd_model.run(x, p.uc)


def _hires(p: Any, x: torch.Tensor) -> torch.Tensor:
    """Its own checkpoint and its own prompt, whose networks are activated before it is encoded; the hook comes last."""
    p.is_hr_pass = True
    if p.hr_checkpoint is not None:
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(sd_models.checkpoint_aliases[p.hr_checkpoint])
    prompts, data = extra_networks.parse_prompts([p.hr_prompt or p.all_prompts[p.iteration]])
    if not p.disable_extra_networks:
        extra_networks.activate(p, data)
    p.c = p.encoded(prompts[0], p.cached_hr_c, data)
    p.uc = p.encoded(p.negative_prompt, p.cached_hr_uc, data)
    _call(p, "before_hr")
    x = _step(p, x)
    p.is_hr_pass = False
    return x


def _hash(x: torch.Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]


def _infotext(p: Any) -> dict[str, str]:
    return {"Model hash": p.sd_model_hash, "Model": p.sd_model_name, **p.extra_generation_params}
