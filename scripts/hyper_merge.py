"""The door for Automatic1111 and Forge, which run every file of this folder: accordion, tab, and what they hook.

All of it is in the package hyper_merge_webui beside this file, loaded once under that name: "Reload UI" runs this file
again, but the package keeps the state of the live blend.  Nothing here may import hypermerge_ext while the file is
being run: the host has put this folder's parent on sys.path then, where its sources lie, not the installed package.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from modules import script_callbacks, scripts

NAME = "hyper_merge_webui"


def part(name: str) -> Any:
    """A module of the package."""
    if NAME not in sys.modules:
        folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), NAME)
        spec = importlib.util.spec_from_file_location(
            NAME, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[NAME] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module(f"{NAME}.{name}")


accordion, live, pack, settings, topbar = map(part, ("accordion", "live", "pack", "settings", "topbar"))


class HyperMerge(scripts.Script):
    """λ and κ of every job: the weights are moved before anything of it is computed."""

    def title(self) -> str:
        return accordion.TITLE

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        if pack.missing():
            return accordion.build_missing()
        # Forge's API asks twice more, for the values alone: building all again takes it half a second.
        if not hasattr(self, "components"):
            self.components, self.infotext_fields = accordion.build("img2img" if is_img2img else "txt2img")
            self.paste_field_names = accordion.PASTED
        return self.components

    def process(self, p: Any, *values: Any) -> None:
        if values:
            live.for_values(p, values)

    def process_batch(self, p: Any, *values: Any, **batch: Any) -> None:
        if values:
            live.for_job(p)

    def before_hr(self, p: Any, *values: Any) -> None:
        if values:
            live.for_job(p)


def _before_ui() -> None:
    part("xyz").register()
    part("token").register()


def _unloaded() -> None:
    """Reload UI, or the extension was switched off: nothing of ours stays in the host."""
    part("xyz").unregister()
    part("token").unregister()
    live.off()


def _on(event: str, function: Callable[..., Any]) -> None:
    """script_callbacks.on_EVENT(function), which would look through the whole call stack to find out whose file this is:
    eight times that is half a second of A1111's start, and more of Forge's.  So it is told, where that can be.
    """
    known = getattr(script_callbacks, "callback_map", {}).get(f"callbacks_{event}")
    add = getattr(script_callbacks, "add_callback", None)
    if add is None or known is None or "filename" not in inspect.signature(add).parameters:
        getattr(script_callbacks, f"on_{event}")(function)
    else:
        add(known, function, category=event, filename=__file__)


_on("before_ui", _before_ui)
_on("after_component", topbar.follow)
_on("ui_settings", part("options").register)
_on("ui_tabs", lambda: part("tab").tabs())
_on("app_started", lambda demo, app: part("api").register(app))
_on("model_loaded", live.forget)
_on("infotext_pasted", lambda infotext, params: settings.restore_model_hash(params))
_on("script_unloaded", _unloaded)
