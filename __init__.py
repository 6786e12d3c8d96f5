"""ComfyUI's door: this folder, put or linked into custom_nodes, is a node pack.

Nothing is imported before ComfyUI calls the entry point, so that the folder stays harmless to everything else that may
take it for a package.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint() -> Any:
    """The extension with all nodes."""
    from .nodes import extension

    return extension()
