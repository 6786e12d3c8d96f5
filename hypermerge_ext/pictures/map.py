"""Draws the map of a hyper-model: its models on the plane of two sliders, and what the plane does not hold of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._core import Error
from . import blocks, theme
from .labels import Box, Label
from .layout import DOT, LONGEST_NAME, TIPS, WITH_NUMBERS, Layout, shown
from .theme import SMALL, TEXT, TINY, TITLE, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = ((14, (10.0, 6.9)), (32, (12.5, 8.6)), (math.inf, (15.5, 10.4)))
"""(models, inches): so that the names of so many models have room; a picture without room grows."""
GROWTH, MOST_GROWTHS = 1.15, 12
LEFT, RIGHT, TOP, BOTTOM = 0.75, 0.3, 0.95, 1.75
"""Inches around the map's frame: the axis of κ, the paper's edge, the title, the axis of λ with the legend below."""
MARGIN = 0.15
"""Inches that the text of an axis keeps from the paper's edge."""
COLUMN, GUTTER = 2.9, 0.42
"""Inches: the panels at the right, and what keeps them from the map."""
HULL_ALPHA = 0.12
DASHED: dict[str, Any] = {"linewidth": 0.9, "dashes": (3, 2.2)}


def draw(
    found: Mapping[str, Any], path: str | os.PathLike[str], *, title: str = "", look: str = "auto", force: bool = False
) -> None:
    """Writes the picture of a `geometry.map_document` as SVG or PNG, by the end of `path`.

    title: what the hyper-model is called.  look: "light", "dark", or "auto": an SVG follows the reader's system, a PNG
    is light.  force: replace a file that hyper-merge did not write.
    Raises Error; ArgumentError for another ending.
    """
    theme.suffix_of(path)
    palette = theme.theme_for(look)
    width, height = next(size for most, size in SIZES if len(found["points"]) <= most)
    for _ in range(MOST_GROWTHS):
        with theme.canvas((width, height), palette) as figure:
            sheet = _Sheet(figure, palette, found)
            placed = sheet.layout.placed()
            if placed is not None:
                sheet.draw(title, placed)
                titles = {f"point-{i + 1}": sheet.layout.title_of(point) for i, point in enumerate(found["points"])}
                theme.save(figure, path, both=look == "auto", titles=titles, force=force)
                return
        width, height = width * GROWTH, height * GROWTH
    raise Error(f"{os.fspath(path)}: {len(found['points'])} names find no room on one map; project fewer models")


class _Sheet:
    """One picture being drawn."""

    def __init__(self, figure: Figure, palette: Theme, found: Mapping[str, Any]) -> None:
        self.figure, self.theme, self.found = figure, palette, found
        width, height = figure.get_size_inches()
        self.box = Box(LEFT, BOTTOM, width - RIGHT - COLUMN - GUTTER, height - TOP)  # the map, in inches
        across, up = self.box.x1 - self.box.x0, self.box.y1 - self.box.y0
        self.layout = Layout(found, (72 * across, 72 * up), palette)
        self.axes: Axes = figure.add_axes((self.box.x0 / width, self.box.y0 / height, across / width, up / height))

    def draw(self, title: str, placed: list[Label]) -> None:
        self.draw_frame()
        if not self.layout.line:
            self.draw_hull()
        for index, point in enumerate(self.found["points"]):
            self.draw_point(index + 1, point)
        if self.found["base"]["shown"]:
            self.draw_directions()
        self.draw_names(placed)
        self.draw_texts(title)
        self.draw_caption(self.draw_legend())
        self.draw_panels()

    # ---- the map, from the ground up --------------------------------------------------------------------------------

    def draw_frame(self) -> None:
        axes, frame = self.axes, self.layout.frame
        axes.set_xlim(*frame.x)
        axes.set_ylim(*frame.y)
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=5)
        axes.locator_params(nbins=8)
        if self.layout.line:
            axes.set_yticks([tick for tick in axes.get_yticks() if -1e-9 <= tick <= frame.y[1]])
        for through_zero in (axes.axhline, axes.axvline):
            through_zero(0, color=self.theme.quiet, linewidth=0.7, alpha=0.6, zorder=1)

    def draw_hull(self) -> None:
        from matplotlib.patches import Polygon

        corners = [self.layout.place(self.found["points"][i]) for i in self.found["hull"]]
        if len(corners) < 2:
            return
        look: dict[str, Any] = {"facecolor": self.theme.quiet, "alpha": HULL_ALPHA, "linewidth": 0}
        self.axes.add_patch(Polygon(corners, closed=True, zorder=1.2, gid="hull", **look))
        x, y = zip(*corners, corners[0])
        self.axes.plot(x, y, color=self.theme.quiet, linewidth=0.7, alpha=0.5, zorder=1.3)

    def draw_point(self, number: int, point: Mapping[str, Any]) -> None:
        """A model's mark, and what the map leaves out of it: on a line its height, on a plane a ring and an arrow."""
        x, y = self.layout.place(point)
        if not self.layout.line:
            self.draw_ring(number, point)
        elif y > 0:
            colour = self.theme.quiet if point["merged"] else self.theme.stranger
            self.axes.plot((x, x), (0, y), color=colour, zorder=2, gid=f"error-{number}", **DASHED)
        self.axes.plot(x, y, zorder=3.2, gid=f"point-{number}", **self.mark(point["merged"]))

    def draw_ring(self, number: int, point: Mapping[str, Any]) -> None:
        from matplotlib.patches import Ellipse

        ring, place, unit = self.layout.ring(point), self.layout.place(point), self.layout.units
        colour, style = (self.theme.quiet, "-") if point["merged"] else (self.theme.stranger, (0, (1, 2)))
        if not DOT <= ring.radius <= max(self.layout.size):
            return
        look: dict[str, Any] = {"fill": False, "edgecolor": colour, "linestyle": style, "linewidth": 0.8}
        alpha = 0.55 if len(self.found["points"]) <= 2 * WITH_NUMBERS else 0.3
        size = 2 * ring.radius / unit[0], 2 * ring.radius / unit[1]
        self.axes.add_patch(Ellipse(place, *size, alpha=alpha, zorder=1.6, gid=f"ring-{number}", **look))
        if math.hypot(ring.x, ring.y) > 2 * DOT:
            tip = place[0] + ring.x / unit[0], place[1] + ring.y / unit[1]
            self.arrow(
                place, tip, f"error-{number}", "->", 7, color=colour, zorder=2, linewidth=0.9, linestyle=(0, (3, 2.2))
            )

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], gid: str, head: str, size: float, **look: Any
    ) -> None:
        from matplotlib.patches import FancyArrowPatch

        ends: dict[str, Any] = {"arrowstyle": head, "mutation_scale": size, "shrinkA": 0, "shrinkB": 0}
        self.axes.add_patch(FancyArrowPatch(start, end, gid=gid, **ends, **look))

    def draw_directions(self) -> None:
        """The base, and from it one step along each slider."""
        for axis, tip in zip(self.found["axes"], TIPS):
            colour, gid = self.theme.direction(axis["direction"]), f"direction-{axis['direction']}"
            self.arrow((0, 0), tip, gid, "-|>", 13, color=colour, zorder=2.5, linewidth=2.2)
        look: dict[str, Any] = {"color": self.theme.base, "markeredgecolor": self.theme.ground, "markersize": 2.6 * DOT}
        self.axes.plot(0, 0, "o", zorder=4, gid="base", **look)

    def mark(self, merged: bool) -> dict[str, Any]:
        """Of a model that was merged, or only projected."""
        if merged:
            form, size, edge, colours = "o", 2 * DOT, 0.8, (self.theme.ink, self.theme.ground)
        else:
            form, size, edge, colours = "D", 2 * DOT - 0.8, 1.5, (self.theme.ground, self.theme.stranger)
        look = {"linestyle": "none", "marker": form, "markersize": size, "markeredgewidth": edge}
        return {**look, "markerfacecolor": colours[0], "markeredgecolor": colours[1]}

    # ---- what is written on it --------------------------------------------------------------------------------------

    def draw_names(self, placed: list[Label]) -> None:
        from matplotlib.transforms import Affine2D

        across, up = self.layout.size
        paper = Affine2D().scale(1 / across, 1 / up) + self.axes.transAxes
        for text, label in zip(self.layout.texts, placed):
            if label.leader is not None:
                self.axes.plot(*zip(*label.leader), color=self.theme.quiet, linewidth=0.5, zorder=2.8, transform=paper)
            box = label.box
            x = {"left": box.x0 + 1, "right": box.x1 - 1, "center": (box.x0 + box.x1) / 2}[label.align]
            common: dict[str, Any] = {"transform": paper, "ha": label.align, "zorder": 5, "bbox": self.behind()}
            weight = "bold" if text.bold else "normal"
            look: dict[str, Any] = {"fontsize": text.size, "fontweight": weight, "color": text.colour}
            self.axes.text(x, box.y1 - 0.92 * text.size, text.text, **look, **common)
            if text.small:
                self.axes.text(x, box.y0 + 0.3 * TINY, text.small, fontsize=TINY, color=self.theme.quiet, **common)

    def behind(self) -> dict[str, Any]:
        """What dims lines behind a name."""
        return {"facecolor": self.theme.ground, "edgecolor": "none", "alpha": 0.72, "pad": 0.6}

    # ---- around it --------------------------------------------------------------------------------------------------

    def draw_texts(self, title: str) -> None:
        width, height = self.figure.get_size_inches()
        left = self.box.x0 / width
        title = shown(title) or "Map of models"
        self.figure.text(left, 1 - 0.44 / height, title, fontsize=TITLE, fontweight="bold")
        self.figure.text(left, 1 - 0.7 / height, self.layout.subtitle(), fontsize=SMALL, color=self.theme.quiet)
        self.axes.set_xlabel(*self.axis_text(0), labelpad=7)
        self.axes.set_ylabel(*self.axis_text(1), labelpad=7)

    def axis_text(self, index: int) -> tuple[str, dict[str, Any]]:
        """What stands along an axis, and how it looks."""
        if index == len(self.found["axes"]):
            step = self.found["axes"][0]["label"]
            return f"distance from the line, in steps of {step}", {"color": self.theme.quiet}
        axis = self.found["axes"][index]
        share = f" · {blocks.percent(axis['explained'], 1)} of the differences"
        text = axis["label"] + share
        for letters in range(LONGEST_NAME, 3, -1) if axis["name"] else ():
            text = f"{axis['label']} ({shown(axis['name'], letters)}){share}"
            if theme.width_of(text, TEXT) <= self.room_along(index):
                break
        return text, {"color": self.theme.direction(axis["direction"])}

    def room_along(self, index: int) -> float:
        """Points that the text of an axis may take: it stands in the middle of the axis, and the paper ends."""
        first, last = (self.box.x0, self.box.x1) if index == 0 else (self.box.y0, self.box.y1)
        middle, paper = (first + last) / 2, self.figure.get_size_inches()[index]
        return 144 * (min(middle, paper - middle) - MARGIN)

    def draw_legend(self) -> float:
        """Returns its lower edge, in inches."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        quiet, held = self.theme.quiet, "line" if self.layout.line else "plane"
        handles: list[Any] = [Line2D([], [], label="model", **self.mark(True))]
        if not all(point["merged"] for point in self.found["points"]):
            handles.append(Line2D([], [], label="projected, not merged", **self.mark(False)))
        left_out = f"residual: what the {held} does not hold"
        if self.layout.line and not self.layout.is_exact:
            handles.append(Line2D([], [], label=left_out, color=quiet, **DASHED))
        elif not self.layout.is_exact:
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": quiet}
            handles.append(Line2D([], [], label=left_out, **{**self.mark(True), **ring}))
            handles.append(Line2D([], [], label="error, along the next two directions", color=quiet, **DASHED))
        if not self.layout.line:
            handles.append(Patch(facecolor=quiet, alpha=HULL_ALPHA, label="convex hull of the models"))
        width, height = self.figure.get_size_inches()
        top = BOTTOM - 0.68
        long = sum(theme.width_of(handle.get_label(), TINY) + 4 * TINY for handle in handles)
        rows = 1 if long <= self.layout.size[0] else 2
        self.figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(self.box.x0 / width, top / height),
            ncol=-(-len(handles) // rows), fontsize=TINY, labelcolor=self.theme.ink, frameon=False, borderpad=0,
            borderaxespad=0, handletextpad=0.5, columnspacing=1.4,
        )  # fmt: skip
        return top - 0.19 * rows

    def draw_caption(self, top: float) -> None:
        width, height = self.figure.get_size_inches()
        for number, line in enumerate(theme.wrapped(self.layout.caption(), TINY, self.layout.size[0])):
            y = (top - 0.05 - 0.165 * number) / height
            self.figure.text(self.box.x0 / width, y, line, fontsize=TINY, color=self.theme.quiet, va="top")

    def draw_panels(self) -> None:
        width, height = self.figure.get_size_inches()
        left, right, top = width - RIGHT - COLUMN, width - RIGHT, height - TOP
        blocks.draw_directions(self.figure, Box(left, top - 1.75, right, top), self.found, self.theme)
        blocks.draw_blocks(self.figure, Box(left, 0.3, right, top - 2.05), self.found, self.theme)
