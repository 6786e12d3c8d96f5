"""Forge's list of checkpoints at the top of the page: it shows what "Load base" has loaded, also a file that is new.

A1111's follows its own script on the page; Forge's knows the checkpoints of the time when the page came up.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import host, parts

_LAST = "forge_refresh_checkpoint"
"""Id of the button beside the list, which Forge makes right after it."""


def follow(component: Any, elem_id: str | None = None, **_: Any) -> None:
    """For on_after_component: beside Forge's list a button that nobody sees; the page's script presses it."""
    if elem_id != _LAST:
        return
    from modules_forge import main_entry

    listed = getattr(main_entry, "ui_checkpoint", None)
    if listed is None:
        return
    button = gr.Button(
        "Loaded checkpoint", elem_id=parts.elem_id("top", "checkpoint"), elem_classes="hyper-merge-hidden"
    )
    button.click(shown, [], [listed], **parts.QUICK)


def shown() -> Any:
    """The list as it is now, with the checkpoint that the host was told to use."""
    titles, chosen = host.checkpoint_titles()
    return gr.update(choices=titles, value=chosen)
