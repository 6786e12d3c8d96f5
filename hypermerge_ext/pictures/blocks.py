"""The panels beside the map: how much each direction explains, of everything and of each block of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .geometry import axis_label
from .labels import Box
from .theme import SMALL, TEXT, TINY, Theme, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.175
"""Inches from one block to the next."""
BAR = 0.66
"""Thickness of a bar, of that."""
HEADING = 0.27
"""Inches from a panel's upper edge to its axes."""
NAMES_MOST = 0.58
"""Of the panel's width, for the names of blocks: bars need room too."""
MOST_BARS, NUMBERED_BARS = 9, 6
"""So many directions have a bar (more if the hyper-model has more), and so many of its own a number."""


def rows(blocks: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` rows {"name", "share", "explained"} for all blocks, in their order.

    Where there are more, neighbours of one kind (input_blocks.0, input_blocks.1 …) share a row; where that is not
    enough, the smallest are put together at the end.
    """
    runs: list[list[Mapping[str, Any]]] = []
    for block in blocks:
        if runs and _kind(runs[-1][-1]["name"]) == _kind(block["name"]) != block["name"]:
            runs[-1].append(block)
        else:
            runs.append([block])
    together = 1
    longest = max(map(len, runs), default=1)
    while together < longest and sum(-(-len(run) // together) for run in runs) > most:
        together += 1
    found = [_joined(run[i : i + together]) for run in runs for i in range(0, len(run), together)]
    if len(found) > most:
        smallest = sorted(range(len(found)), key=lambda i: (found[i]["share"], i))[: len(found) - most + 1]
        others = _joined([found[i] for i in smallest])
        others["name"] = f"{len(smallest)} others"
        found = [row for i, row in enumerate(found) if i not in smallest] + [others]
    return found


def _kind(name: str) -> str:
    """The name without the number at its end."""
    return re.sub(r"\.\d+$", "", name)


def _joined(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for several blocks: shares add up, what is explained is weighed by them."""
    share = sum(block["share"] for block in blocks)
    weights = [block["share"] / share if share > 0 else 1 / len(blocks) for block in blocks]
    name = blocks[0]["name"]
    if len(blocks) > 1:
        name += "–" + blocks[-1]["name"].rpartition(".")[2]
    columns = zip(*(block["explained"] for block in blocks))
    explained = [sum(weight * value for weight, value in zip(weights, column)) for column in columns]
    return {"name": name, "share": share, "explained": explained}


def draw_directions(figure: Figure, box: Box, found: Mapping[str, Any], theme: Theme) -> None:
    """A bar for each direction there is: those of the hyper-model in their colours, what it leaves out in grey.

    box: the panel with its heading, in inches from the figure's lower left.
    """
    kept, spectrum = found["directions"], found["spectrum"]
    heading(figure, box, "Share per direction", f"together {percent(sum(found['explained']), 1)}", theme)
    axes = panel(figure, box._replace(y0=box.y0 + 0.2))
    drawn = spectrum[: max(MOST_BARS, kept)]
    colours = [theme.direction(k + 1) if k < kept else theme.rest for k in range(len(drawn))]
    axes.bar(range(len(drawn)), drawn, 0.72, color=colours)
    top = max(spectrum, default=1.0) or 1.0
    axes.set_ylim(0, 1.16 * top)
    axes.set_xlim(-0.5, max(len(drawn), 5) - 0.5)
    for k in range(min(kept, NUMBERED_BARS)):
        colour = theme.direction(k + 1)
        axes.text(k, spectrum[k] + 0.03 * top, percent(spectrum[k]), ha="center", fontsize=TINY, color=theme.quiet)
        axes.text(k, -0.04 * top, axis_label(k + 1), ha="center", va="top", fontsize=TEXT, color=colour)
    if len(spectrum) > len(drawn):
        rest = f"+ {len(spectrum) - len(drawn)} more: {percent(sum(spectrum[len(drawn) :]))}"
        axes.text(1, -0.05, rest, transform=axes.transAxes, ha="right", va="top", fontsize=TINY, color=theme.quiet)
    axes.axhline(0, color=theme.quiet, linewidth=0.6)


def draw_blocks(figure: Figure, box: Box, found: Mapping[str, Any], theme: Theme) -> None:
    """A bar for each block: what the directions explain of it; at its end the block's part of all differences."""
    height = box.y1 - box.y0 - HEADING
    lines = rows(found["blocks"], max(3, int(height / ROW) - 2))
    lines.insert(0, {"name": "whole model", "share": 1.0, "explained": found["explained"]})
    heading(figure, box, "Share per block", "part of the whole", theme)
    for line in lines:
        line["name"] = _fitting(line["name"], 72 * NAMES_MOST * (box.x1 - box.x0))
    names = max(width_of(line["name"], SMALL) for line in lines) / 72 + 0.08
    axes = panel(figure, box._replace(x0=box.x0 + names, x1=box.x1 - 0.55))
    positions = [0.0, *(n + 1.5 for n in range(len(lines) - 1))]
    start = [0.0] * len(lines)
    for k in range(found["directions"]):
        widths = [max(line["explained"][k], 0.0) for line in lines]
        axes.barh(positions, widths, BAR, left=start, color=theme.direction(k + 1))
        start = [a + b for a, b in zip(start, widths)]
    axes.barh(positions, [max(0.0, 1 - a) for a in start], BAR, left=start, color=theme.rest)
    width = axes.get_position().width * figure.get_figwidth()
    for position, line in zip(positions, lines):
        left, right = -names / width, 1 + 0.55 / width
        axes.text(left, position, line["name"], va="center_baseline", fontsize=SMALL)
        share = percent(line["share"])
        axes.text(right, position, share, ha="right", va="center_baseline", fontsize=SMALL, color=theme.quiet)
    axes.set_xlim(0, 1)
    axes.set_ylim(height / ROW - 0.5, -0.5)


def _fitting(name: str, room: float) -> str:
    """The name, or as much of its end, where it differs from others, as goes into `room` points."""
    cut = name
    while width_of(cut, SMALL) > room and len(name) > 1:
        name = name[1:]
        cut = "…" + name
    return cut


def panel(figure: Figure, box: Box) -> Axes:
    """Bare axes in the box, below the heading."""
    width, height = figure.get_size_inches()
    size = (box.x1 - box.x0) / width, (box.y1 - box.y0 - HEADING) / height
    axes = figure.add_axes((box.x0 / width, box.y0 / height, *size))
    axes.axis("off")
    return axes


def heading(figure: Figure, box: Box, title: str, remark: str, theme: Theme) -> None:
    """The first line of a panel: what it shows, and a quiet remark at the right."""
    width, height = figure.get_size_inches()
    y = (box.y1 - TEXT / 72) / height
    figure.text(box.x0 / width, y, title, fontsize=TEXT, fontweight="bold")
    figure.text(box.x1 / width, y, remark, fontsize=SMALL, color=theme.quiet, ha="right")


def percent(share: float, digits: int = 0) -> str:
    """ "54 %", "3.2 %", "0 %", "< 0.1 %"; more digits where a share is small or `digits` asks for them."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    small = 0 < share < 0.0995
    return f"{100 * share:.{max(digits, 1) if small else 0 if share >= 0.9995 else digits}f} %"
