"""Axes of the X/Y/Z plot script: λ, κ, text encoder, hyper-model, blocks and groups of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import host
from .settings import PRESETS, number

PREFIX = "[Hyper-Merge] "
GROUPS = ("IN", "MID", "OUT")
"""Axes of factors on λ, κ … there."""
_COST = 0.6
"""Between a VAE (0.7) and what costs nothing, so that the axis is an outer loop."""


def register() -> None:
    """on_before_ui, when the host's scripts are loaded; "Reload UI" makes the plot script's list anew."""
    plot = _plot()
    if plot is None or any(option.label.startswith(PREFIX) for option in plot.axis_options):
        return
    numbers = {"λ": "lam", "κ": "kap", "text encoder": "text_encoder"}
    numbers |= {f"× {group} blocks": group for group in GROUPS}
    for label, field in numbers.items():
        plot.axis_options.append(plot.AxisOption(PREFIX + label, float, changing(field), cost=_COST))
    choices: dict[str, tuple[str, Callable[[], list[str]]]] = {
        "hyper-model": ("hyper", host.hyper_names),
        "blocks": ("blocks", lambda: list(PRESETS)),
    }
    for label, (field, listed) in choices.items():
        cost = 0.9 if field == "hyper" else _COST
        plot.axis_options.append(plot.AxisOption(PREFIX + label, str, changing(field), cost=cost, choices=listed))


def unregister() -> None:
    plot = _plot()
    if plot is not None:
        plot.axis_options[:] = [option for option in plot.axis_options if not option.label.startswith(PREFIX)]


def changing(field: str) -> Callable[[Any, Any, Any], None]:
    """Gives the job of a cell its value.  Cells are shallow copies of one job, so what they share must not change."""

    def apply(p: Any, value: Any, values: Any) -> None:
        axes = dict(getattr(p, "hyper_merge_axes", None) or {})
        if field in GROUPS:
            axes["lines"] = (*axes.get("lines", ()), f"{field} = x{number(value)}")
        else:
            axes[field] = PRESETS.get(value, value) if field == "blocks" else value
        p.hyper_merge_axes = axes

    return apply


def _plot() -> Any:
    """The module of the plot script, as the host loaded it; None where it is not there."""
    from modules import scripts

    for data in getattr(scripts, "scripts_data", ()):
        if data.script_class.__module__ == "xyz_grid.py" and hasattr(data.module, "axis_options"):
            return data.module
    return None
