"""The extension's page among the host's settings."""

from __future__ import annotations

from typing import Any

SECTION = ("hyper_merge", "Hyper-Merge")

LIVE = "hyper_merge_live"
LIMIT = "hyper_merge_limit"
IN_MEMORY = "hyper_merge_in_memory"


def register() -> None:
    """For on_ui_settings."""
    import gradio as gr
    from modules import shared

    def add(key: str, default: Any, label: str, component: Any = None, **arguments: Any) -> None:
        shared.opts.add_option(key, shared.OptionInfo(default, label, component, arguments or None, section=SECTION))

    add(LIVE, True, "Move the loaded model while the point on the map is dragged; else only when a job begins")
    add(
        IN_MEMORY,
        False,
        "Keep directions in main memory, which is faster and takes as much as they are large; else they are read from "
        "the file at each move, through a small buffer",
    )
    add(
        LIMIT,
        2.0,
        "Range of the sliders λ and κ, both ways; models lie between -1 and 1 (after Reload UI)",
        gr.Slider,
        minimum=1,
        maximum=10,
        step=0.5,
    )


def limit() -> float:
    """Of a multiplier on sliders and pads, both ways."""
    from modules import shared

    return float(getattr(shared.opts, LIMIT, None) or 2.0)
