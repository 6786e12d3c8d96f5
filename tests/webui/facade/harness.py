"""A web UI in this process: its folders with a family of checkpoints, its modules, and the extension in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

import hypermerge_ext as hm
from families import family, save
from webui.facade import forge as forge_host, network

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[2] / "scripts" / "hyper_merge_webui"
HYPER = "x.hyper.safetensors"
BASE = "x base"
OURS = ("modules", "modules_forge", "backend", "networks", "hyper_merge_webui", "hyper_merge_pack")


def purge() -> None:
    """As if none of it had been imported."""
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]


def load_package() -> None:
    """The extension's package, as scripts/hyper_merge.py loads it."""
    spec = importlib.util.spec_from_file_location(
        "hyper_merge_webui", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["hyper_merge_webui"] = package
    spec.loader.exec_module(package)


class WebUI:
    """The host, the extension's modules as attributes of `ext`, and what a person does."""

    def __init__(self, folder: Path, dtype: str = "F16", forge: str | None = None, **flags: Any) -> None:
        """folder: receives models/.  dtype: of the checkpoints.  forge: "plain" or "packed".  flags: as on a start."""
        sys.path.insert(0, str(HERE))
        self.models = folder / "models"
        self.checkpoints, self.hypers = self.models / "Stable-diffusion", self.models / "hyper_merge"
        for place in (self.checkpoints, self.hypers, self.models / "Lora"):
            place.mkdir(parents=True)
        save(self.checkpoints, family(3, seed=4, delta=0.3, dtypes=dtype, shapes=network.SHAPES))
        self.solve(HYPER)
        for name in ("shared", "sd_models", "processing", "extra_networks", "script_callbacks", "scripts", "errors"):
            setattr(self, name, importlib.import_module(f"modules.{name}"))
        self.call_queue, self.paths = map(importlib.import_module, ("modules.call_queue", "modules.paths_internal"))
        self.paths.models_path = str(self.models)
        vars(self.shared.cmd_opts).update(flags)
        self.networks = importlib.import_module("networks")
        self.sd_models.list_models()
        self.extra_networks.register_extra_network(self.networks.ExtraNetworkLora())
        if forge is not None:
            forge_host.install(forge == "packed")
        self._extension()

    def _extension(self) -> None:
        load_package()
        self.live, self.host = self.ext("live"), self.ext("host")
        self.Settings = self.ext("settings").Settings
        self.ext("token").register()
        self.script_callbacks.on_model_loaded(self.live.forget)

    def close(self) -> None:
        purge()
        sys.path.remove(str(HERE))

    @staticmethod
    def ext(name: str) -> Any:
        return importlib.import_module(f"hyper_merge_webui.{name}")

    # ---- files ------------------------------------------------------------------------------------------------------

    def solve(self, name: str, **more: Any) -> Path:
        """A hyper-model of the three checkpoints."""
        path = self.hypers / name
        hm.solve(sorted(self.checkpoints.glob("m?.safetensors")), **more).save(path, force=True)
        return path

    def load_base(self, name: str = HYPER) -> Any:
        """As the button does; → the loaded model."""
        with self.host.job("base"):
            self.ext("jobs").load_base(name)
        return self.model

    def blended(self, at: tuple[float, ...], folder: Path, **more: Any) -> Path:
        """A checkpoint of the blend, by hypermerge_ext alone."""
        path = folder / f"blend{at}.safetensors".replace(" ", "")
        hm.load(self.hypers / HYPER).merge(at, path, force=True, **more)
        return path

    # ---- the loaded model -------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        return self.sd_models.model_data.sd_model

    def held(self) -> dict[str, torch.Tensor]:
        """Copies of what its weights hold, under the checkpoint's names."""
        objects = getattr(self.model, "forge_objects_original", None)
        parts = [self.model] if objects is None else [objects.unet.model, objects.clip.cond_stage_model]
        named = [pair for part in parts for pair in part.named_parameters()]
        return {name.replace(".wrapped.", "."): value.detach().clone() for name, value in named}

    def lora(self, name: str = "style", layers: tuple[str, ...] = ("diffusion_model_middle_block_0",)) -> None:
        """A LoRA that the host lists."""
        generator = torch.Generator().manual_seed(9)
        size = (network.WIDTH, network.WIDTH)
        self.networks.available[name] = self.networks.Lora(
            {layer: 0.3 * torch.randn(size, generator=generator) for layer in layers}
        )

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def at(self, lam: float = 0.0, kap: float = 0.0, **more: Any) -> Any:
        """The accordion, switched on."""
        return self.Settings(**{"enabled": True, "hyper": HYPER, "multipliers": (lam, kap), **more})

    def job(self, prompt: Any = "a cat", settings: Any = None, **more: Any) -> Any:
        """A job as the page and the API make it; → p, to be given to `run`."""
        p = self.processing.StableDiffusionProcessingTxt2Img(prompt, **more)
        p.scripts = self.scripts.Runner((Accordion(self.live), (settings or self.Settings(),)))
        return p

    def run(self, p: Any) -> Any:
        with self.call_queue.queue_lock:
            self.shared.state.begin(job="picture")
            try:
                found = self.processing.process_images(p)
            finally:
                self.shared.state.end()
        assert self.errors.reported == []
        return found

    def image(self, prompt: Any = "a cat", settings: Any = None, **more: Any) -> str:
        """The hash of one picture."""
        return self.run(self.job(prompt, settings, **more)).images[-1]


class Accordion:
    """The hooks of scripts/hyper_merge.py."""

    def __init__(self, live: Any) -> None:
        self.live = live

    def process(self, p: Any, settings: Any) -> None:
        self.live.for_job(p, settings)

    def process_batch(self, p: Any, settings: Any, **batch: Any) -> None:
        self.live.for_job(p)

    def before_hr(self, p: Any, settings: Any) -> None:
        self.live.for_job(p)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """The same bits in the same types."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}

    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(kinds[tensor.element_size()])

    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(bits(one[name]), bits(other[name])) for name in one
    )
