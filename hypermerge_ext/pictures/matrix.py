"""Draws how far models lie from each other: a matrix of distances, ordered so that groups show, and the tree behind it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..findings import firsts, in_words, near_groups
from ..grouping import average_linkage, groups, order
from . import theme
from .theme import SMALL, TEXT, TINY, TITLE, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS = ((8, 0.62), (12, 0.54), (16, 0.47), (24, 0.36), (40, 0.25), (math.inf, 0.19))
"""(models, inches): the side of a cell."""
WITH_VALUES = 0.45
"""Inches from which a cell has room for its number."""
LONGEST_NAME = 48
"""Letters."""
GAP = 0.09
"""Inches between groups."""
EDGE, HEAD, FOOT = 0.35, 0.95, 0.8
"""Inches: around everything, for the title, for the scale below the matrix."""
TREE, BRANCH = 1.35, 0.14
"""Inches: the width of the tree, and what keeps it from the matrix."""
NARROWEST = 5.6
"""Inches: for the title and the words of a picture of two models."""
LINE = 0.185
"""Inches from one line of words to the next."""
MOST_LINES = 12
DARK_FROM = 0.62
"""Strength of a cell's colour from which numbers on it are better read in the colour of the ground, in both themes."""
SHADES = 64
"""Steps of a cell's colour."""
SCALE = (1.7, 0.13)
"""Inches: the bar that says which colour is which distance."""


def draw(
    answer: Mapping[str, Any], path: str | os.PathLike[str], *, look: str = "auto", force: bool = False
) -> None:
    """Writes the picture of what `compare` answered, as SVG or PNG by the end of `path`.

    look: "light", "dark", or "auto": an SVG follows the reader's system, a PNG is light.  force: replace a file that
    hyper-merge did not write.  Raises Error; ArgumentError for another ending.
    """
    theme.suffix_of(path)
    sheet = _Sheet(answer, theme.theme_for(look))
    with theme.canvas((1.0, 1.0), sheet.theme) as figure:
        width, height = sheet.lay_out()
        figure.set_size_inches(width, height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))  # inches, from the upper left
        axes.set_axis_off()
        sheet.draw(axes)
        theme.save(figure, path, both=look == "auto", force=force)


_Box = tuple[float, float, float, float]


class _Sheet:
    """One picture.  Lengths are in inches."""

    def __init__(self, answer: Mapping[str, Any], palette: Theme) -> None:
        self.theme = palette
        self.answer, self.distance = answer, answer["distance"]
        count = len(self.distance)
        self.joins = average_linkage(self.distance)
        self.order = order(self.joins, self.distance)
        self.groups = groups(self.joins, self.distance)
        self.cell = next(side for most, side in CELLS if count <= most)
        self.names = [_shown(name) for name in answer["models"]]
        self.first = firsts(self.distance)
        self.near = {i: group for group in near_groups(answer) for i in group}
        self.nearest, self.farthest = self.range()
        size = math.floor(math.log10(self.farthest)) if self.farthest > 0 else 0
        self.power = 3 * (size // 3) if not -1 <= size < 3 else 0  # 0.1 to 999 stand as they are
        self.decimals = max(2 - size + self.power, 0)
        self.places = self.stand()

    def range(self) -> tuple[float, float]:
        """Distances of the strongest and of the faintest colour.

        Pairs that are (nearly) equal are marked and do not count; and where all lie about equally far apart the picture
        shall look so: the strong end is half the faint one at most.
        """
        pairs = [(i, j) for i in range(len(self.distance)) for j in range(i) if not self.sign(i, j)]
        farthest = max((self.distance[i][j] for i, j in pairs), default=0.0)
        nearest = min((self.distance[i][j] for i, j in pairs), default=0.0)
        return min(nearest, farthest / 2), farthest

    def sign(self, i: int, j: int) -> str:
        """= for equal models, ≈ for nearly equal ones."""
        first, second = self.first[i], self.first[j]
        return "=" if first == second else "≈" if second in self.near.get(first, ()) else ""

    def stand(self) -> dict[int, float]:
        """Where the row of each model begins, from the matrix' upper edge; groups stand a little apart."""
        group_of = {i: number for number, group in enumerate(self.groups) for i in group}
        at, places = 0.0, {}
        for previous, i in zip([None, *self.order], self.order):
            if previous is not None and group_of.get(previous) != group_of.get(i):
                at += GAP
            places[i] = at
            at += self.cell
        return places

    @property
    def side(self) -> float:
        return max(self.places.values()) + self.cell

    def lay_out(self) -> tuple[float, float]:
        """Width and height of the picture; sets where the matrix begins, and the words below it."""
        longest = 1.03 * max(theme.width_of(f"{name}  {len(self.names)}", self.size) for name in self.names) / 72
        self.left, self.top = EDGE + longest + 0.12, HEAD + EDGE
        width = max(self.left + self.side + BRANCH + TREE + EDGE, NARROWEST)
        room = (width - 2 * EDGE) * 72
        sentences = in_words(self.answer, with_groups=False)[:MOST_LINES]
        lines = [line for sentence in sentences for line in _wrapped(_clean(sentence), room, SMALL)]
        if len(lines) > MOST_LINES:
            lines[MOST_LINES - 1 :] = ["…"]
        self.lines = lines
        return width, self.top + self.side + FOOT + LINE * len(lines) + EDGE

    @property
    def size(self) -> float:
        """Of names, in points."""
        return TEXT if self.cell > 0.4 else SMALL if self.cell > 0.24 else TINY

    def draw(self, axes: Axes) -> None:
        self.draw_head(axes)
        self.draw_cells(axes)
        self.draw_names(axes)
        self.draw_groups(axes)
        self.draw_tree(axes)
        self.draw_scale(axes)
        for number, line in enumerate(self.lines):
            y = self.top + self.side + FOOT + LINE * number
            axes.text(EDGE, y, line, size=SMALL, color=self.theme.ink, va="top")

    def draw_head(self, axes: Axes) -> None:
        unit = f", in units of 10{_raised(self.power)}" if self.power else ""
        count = f"{self.answer['tensors']:,} tensor{'s' if self.answer['tensors'] != 1 else ''}"
        axes.text(EDGE, EDGE, "How far apart the models lie", size=TITLE, color=self.theme.ink, va="top", weight="bold")
        framed = "groups by average linkage" if self.groups else "no clear groups"
        under = f"‖A − B‖ over {count}{unit}; {framed}"
        axes.text(EDGE, EDGE + 0.33, under, size=SMALL, color=self.theme.quiet, va="top")

    def strength(self, i: int, j: int) -> float:
        """Of the colour of a cell, 0 … 1: the nearer the stronger."""
        if self.sign(i, j):
            return 1.0
        return min((self.farthest - self.distance[i][j]) / (self.farthest - self.nearest), 1.0)

    def draw_cells(self, axes: Axes) -> None:
        """Each cell in one colour over another, more or less opaque: so that both can be exchanged in an SVG."""
        inner = self.cell - 0.02
        own: list[_Box] = []
        cells: dict[float, list[_Box]] = {}
        for i in self.order:
            for j in self.order:
                box = (self.left + self.places[j] + 0.01, self.top + self.places[i] + 0.01, inner, inner)
                strength = round(self.strength(i, j) * SHADES) / SHADES
                (own if i == j else cells.setdefault(strength, [])).append(box)
        self.fill(axes, own, self.theme.rule)
        self.fill(axes, [box for boxes in cells.values() for box in boxes], self.theme.ramp[0])
        for strength, boxes in sorted(cells.items()):
            self.fill(axes, boxes, self.theme.ramp[1], strength)
        for i in self.order:
            for j in self.order:
                if i != j:
                    self.draw_value(axes, i, j)

    def draw_value(self, axes: Axes, i: int, j: int) -> None:
        """The number in a cell, where it has room, or the sign that stands for it."""
        sign = self.sign(i, j)
        text = sign or (self.value(self.distance[i][j]) if self.cell >= WITH_VALUES else "")
        if text:
            x, y = (edge + self.places[k] + self.cell / 2 for edge, k in ((self.left, j), (self.top, i)))
            dark = self.strength(i, j) > DARK_FROM
            axes.text(
                x, y, text, ha="center", va="center_baseline", color=self.theme.ground if dark else self.theme.ink,
                size=1.5 * self.size if sign else min(SMALL, 16 * self.cell), weight="bold" if sign else "normal",
            )  # fmt: skip

    def fill(self, axes: Axes, boxes: Sequence[_Box], colour: str, alpha: float = 1.0) -> None:
        """All boxes (left, top, width, height) as one patch: thousands of patches would take matplotlib a minute."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        if boxes and alpha > 0:
            corners = [((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)) for x, y, w, h in boxes]
            codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
            path = Path([corner for box in corners for corner in box], codes)
            axes.add_patch(PathPatch(path, facecolor=colour, edgecolor="none", alpha=alpha))

    def value(self, distance: float) -> str:
        """In the picture's unit, with three digits of the largest."""
        return f"{distance / 10.0**self.power:.{self.decimals}f}"

    def draw_names(self, axes: Axes) -> None:
        """Names at the left, and the numbers that they have in the table, which also head the columns."""
        for i in self.order:
            middle = self.places[i] + self.cell / 2
            number, x = str(i + 1), self.left - 0.08
            room = theme.width_of("  " + str(len(self.names)), self.size) / 72
            common: dict[str, Any] = {"size": self.size, "va": "center"}
            axes.text(x, self.top + middle, number, ha="right", color=self.theme.quiet, **common)
            axes.text(x - room, self.top + middle, self.names[i], ha="right", color=self.theme.ink, **common)
            if self.cell > 0.15:
                axes.text(
                    self.left + middle, self.top - 0.07, number, ha="center", va="bottom", color=self.theme.quiet,
                    size=min(self.size, 40 * self.cell),
                )  # fmt: skip

    def draw_groups(self, axes: Axes) -> None:
        """A frame around each group on the diagonal."""
        from matplotlib.patches import Rectangle

        for group in self.groups:
            if len(group) < 2:
                continue
            first = min(self.places[i] for i in group)
            side = max(self.places[i] for i in group) + self.cell - first
            corner = (self.left + first, self.top + first)
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=self.theme.ink, linewidth=1.3))

    def draw_tree(self, axes: Axes) -> None:
        """Each join as a bracket at its height, from the matrix to the right."""
        left, highest = self.left + self.side + BRANCH, max((join.height for join in self.joins), default=0.0)
        if highest == 0:
            return
        ends = {i: (left, self.top + self.places[i] + self.cell / 2) for i in self.order}
        for number, join in enumerate(self.joins):
            x = left + TREE * join.height / highest
            (x1, y1), (x2, y2) = ends[join.left], ends[join.right]
            corners = ([x1, x, x, x2], [y1, y1, y2, y2])
            axes.plot(*corners, color=self.theme.quiet, linewidth=1.1, solid_capstyle="round", solid_joinstyle="round")
            ends[len(self.order) + number] = (x, (y1 + y2) / 2)

    def draw_scale(self, axes: Axes) -> None:
        """Which colour is which distance, and what the signs are."""
        (width, height), signs = SCALE, {self.sign(i, j) for i in self.order for j in self.order if i != j}
        x, y, steps = self.left, self.top + self.side + 0.25, 9
        common: dict[str, Any] = {"size": TINY, "color": self.theme.quiet, "va": "top"}
        texts = [text for sign, text in (("=", "= equal"), ("≈", "≈ nearly equal")) if sign in signs]
        beside = x + width + 0.2 if "" in signs else x
        axes.text(beside, y + height / 2, "   ".join(texts), **{**common, "va": "center", "color": self.theme.ink})
        if "" not in signs:
            return
        for step in range(steps):
            box = (x + width * step / steps, y, width / steps - 0.015, height)
            self.fill(axes, [box], self.theme.ramp[0])
            self.fill(axes, [box], self.theme.ramp[1], 1 - step / (steps - 1))
        axes.text(x, y + height + 0.05, self.value(self.nearest), ha="left", **common)
        axes.text(x + width, y + height + 0.05, self.value(self.farthest), ha="right", **common)


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _wrapped(text: str, room: float, size: float) -> list[str]:
    """The text in lines of at most `room` points; a word that is longer is cut."""
    lines: list[str] = []
    for word in text.split():
        while len(word) > 1 and 1.03 * theme.width_of(word, size) > room:
            word = word[: len(word) * 3 // 4] + "…"
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and 1.03 * theme.width_of(joined, size) <= room:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _shown(name: str) -> str:
    """A name as it can be drawn; the middle of a very long one is left out, since versions stand at the end."""
    name = _clean(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
