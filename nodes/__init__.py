"""The nodes for ComfyUI: thin; what they do is in `logic`, which knows no host.  ComfyUI is imported when it asks."""

from __future__ import annotations

import logging
from typing import Any

from .logic.binary import MissingBinary, hypermerge


def extension() -> Any:
    """What ComfyUI's entry point returns: the extension with all nodes.

    They are there without the compiled part too, so that workflows open; each says how to get it when it is run.
    """
    from comfy_api.latest import ComfyExtension

    from . import ask, blend, demo, host, load, routes, save, schedule, solve, sweep

    host.register_folder()
    routes.register()
    try:
        hypermerge()
    except MissingBinary as reason:
        logging.getLogger("hyper_merge").warning("%s", reason)
    modules = (solve, load, blend, schedule, sweep, ask, save, demo)

    class HyperMergeExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return [node for module in modules for node in module.NODES]

    return HyperMergeExtension()
