"""Where everything of a map lies on paper: window and scale, rings, names.  Drawing it is left to others.

Lengths are in points of type (1/72 inch) from the lower left of the map's frame; "places" are in the units of its axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from . import geometry, labels
from .blocks import percent
from .labels import Box
from .theme import SMALL, TEXT, TINY, Theme, width_of

DOT = 3.4
"""Radius of a point."""
WITH_NUMBERS = 16
"""Up to so many models, each name has its residual below it."""
LONGEST_NAME = 34
"""Letters; the middle of a longer name is left out, since versions stand at the end."""
LARGEST_RING = 0.14
"""Of the map's shorter side, and less where there are many: a ring that would be larger is drawn at a half, a quarter …
of the map's scale, and all others with it."""
LOW = 0.16
"""Where the line of a single direction lies at most, of the map's height."""
EDGE = 4.0
"""What names keep from the frame."""
TIPS = ((1.0, 0.0), (0.0, 1.0))
"""Where one step along each axis leads."""

_OVER_DIRECTION, _OVER_ERROR, _OVER_HEIGHT, _OVER_HULL = 14.0, 6.0, 10.0, 3.0
"""What it costs a name to cover such a line; see `labels.Line`."""


def shown(name: str, most: int = LONGEST_NAME) -> str:
    """A name as it can be drawn: no control characters, and of at most so many letters (4 or more)."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    if len(name) <= most:
        return name
    tail = most // 2 - 1
    return name[: most - 1 - tail].rstrip() + "…" + name[-tail:].lstrip()


class Ring(NamedTuple):
    """What the map leaves out of a model: how long it is, and its part along the next two directions."""

    radius: float
    x: float
    y: float


class Text(NamedTuple):
    """Something that is written on the map."""

    text: str
    small: str
    """A line below it."""
    place: tuple[float, float]
    """What it names."""
    colour: str
    size: float
    bold: bool = False

    def extent(self) -> tuple[float, float]:
        """Width and height."""
        width, height = width_of(self.text, self.size, self.bold), 1.2 * self.size
        if self.small:
            width, height = max(width, width_of(self.small, TINY)), height + 1.15 * TINY
        return width + 2, height


class Layout:
    """A `geometry.map_document` in a frame of `size`; to be used within `theme.canvas`, whose fonts it measures."""

    def __init__(self, found: Mapping[str, Any], size: tuple[float, float], theme: Theme) -> None:
        self.found, self.size, self.theme = found, size, theme
        self.points = found["points"]
        self.line = len(found["axes"]) == 1
        self.norms = (found["axes"][0]["norm"], found["axes"][-1]["norm"])

    def place(self, point: Mapping[str, Any]) -> tuple[float, float]:
        """Where a model lies: at its multipliers, or above a line, as far as it lies off it, in steps of λ."""
        if self.line:
            return point["at"][0], point["off"] / (self.norms[0] or 1.0)
        return point["at"][0], point["at"][1]

    @cached_property
    def frame(self) -> geometry.Frame:
        """The window that is drawn."""
        places = [self.place(point) for point in self.points]
        if self.found["base"]["shown"]:
            places += [(0.0, 0.0), *TIPS[: len(self.found["axes"])]]
        margin = (0.13 * self.size[0], 0.12 * self.size[1])
        if not self.line:
            return geometry.frame(places, self.norms, self.size, margin)
        places += [(x, 0.0) for x, _ in places]
        frame = geometry.frame(places, (self.norms[0], self.norms[0]), self.size, margin, slim=0.0)
        height = frame.y[1] - frame.y[0]  # the line lies low, because all that is written stands above it
        low = max(frame.y[0], -LOW * height) if any(y > 0 for _, y in places) else frame.y[0]
        return frame._replace(y=(low, low + height))

    @cached_property
    def halvings(self) -> int:
        """Rings are drawn at 1/2 to this power of the map's scale."""
        largest = max((point["off"] for point in self.points if point["merged"]), default=0.0)
        crowded = min(1.0, math.sqrt(WITH_NUMBERS / len(self.points)))
        return geometry.halvings(largest * self.frame.scale, LARGEST_RING * crowded * min(self.size))

    @cached_property
    def units(self) -> tuple[float, float]:
        """Length on paper of one step along each axis."""
        (x0, x1), (y0, y1) = self.frame.x, self.frame.y
        return self.size[0] / (x1 - x0), self.size[1] / (y1 - y0)

    @property
    def is_exact(self) -> bool:
        """Does the map hold the models wholly, so that there is nothing left out to be seen?"""
        return bool(max(point["off"] for point in self.points) * self.frame.scale < 0.5)

    def on_paper(self, place: Sequence[float]) -> tuple[float, float]:
        return (place[0] - self.frame.x[0]) * self.units[0], (place[1] - self.frame.y[0]) * self.units[1]

    def ring(self, point: Mapping[str, Any]) -> Ring:
        scale = self.frame.scale / 2**self.halvings
        x, y = point["error"] or (0.0, 0.0)
        return Ring(point["off"] * scale, x * scale, y * scale)

    # ---- what is written --------------------------------------------------------------------------------------------

    def base_name(self) -> str:
        base = self.found["base"]
        return {"mean": "mean", "none": "zero"}.get(base["kind"]) or shown(f"base: {base['name']}")

    @cached_property
    def texts(self) -> list[Text]:
        """All names: of the points in their order, then of the base and the directions, where these are drawn."""
        numbers = len(self.points) <= WITH_NUMBERS
        size = TEXT if numbers else SMALL if len(self.points) <= 2 * WITH_NUMBERS else TINY
        found = []
        for point in self.points:
            share = point["off"] / point["norm"] if point["norm"] > 0 else 0.0
            small = f"residual {percent(share)}" if numbers or not point["merged"] else ""
            colour = self.theme.ink if point["merged"] else self.theme.stranger
            found.append(Text(shown(point["name"]), small, self.place(point), colour, size))
        if self.found["base"]["shown"]:
            found.append(Text(self.base_name(), "", (0.0, 0.0), self.theme.base, size))
            for axis, tip in zip(self.found["axes"], TIPS):
                colour = self.theme.direction(axis["direction"])
                found.append(Text(axis["label"], "", tip, colour, TEXT + 3, bold=True))
        return found

    def placed(self) -> list[labels.Label] | None:
        """Where the texts stand; None when there is no room for all."""
        bounds = Box(EDGE, EDGE, self.size[0] - EDGE, self.size[1] - EDGE)
        centre = self.on_paper((0.0, 0.0)) if self.found["base"]["shown"] else None
        if self.line:
            centre = (self.size[0] / 2, -10 * self.size[1])  # above the points there is nothing but room
        places = [self.on_paper(text.place) for text in self.texts]
        sizes = [text.extent() for text in self.texts]
        return labels.place(places, sizes, bounds, DOT + 1, lines=self.lines(), centre=centre)

    def lines(self) -> list[labels.Line]:
        """What names should rather not cover: directions least of all, then errors, and the hull."""
        found: list[labels.Line] = []
        if self.found["base"]["shown"]:
            base = self.on_paper((0.0, 0.0))
            found += [(base, self.on_paper(tip), _OVER_DIRECTION) for _, tip in zip(self.found["axes"], TIPS)]
        for point in self.points:
            place = self.place(point)
            x, y = self.on_paper(place)
            if self.line:
                found.append(((x, y), self.on_paper((place[0], 0.0)), _OVER_HEIGHT))
            else:
                ring = self.ring(point)
                found.append(((x, y), (x + ring.x, y + ring.y), _OVER_ERROR))
        corners = [] if self.line else [self.on_paper(self.place(self.points[i])) for i in self.found["hull"]]
        return found + [(corner, corners[i - 1], _OVER_HULL) for i, corner in enumerate(corners)]

    # ---- what must be said ------------------------------------------------------------------------------------------

    def subtitle(self) -> str:
        found, axes = self.found, self.found["axes"]
        merged = sum(point["merged"] for point in self.points)
        base = {"mean": "their mean", "none": "zero"}.get(found["base"]["kind"]) or shown(str(found["base"]["name"]))
        drawn = " and ".join(axis["label"] for axis in axes)
        share = percent(sum(axis["explained"] for axis in axes), 1)
        parts = [
            f"{merged} model{'s' * (merged != 1)} measured from {base}",
            f"the {'line' if self.line else 'plane'} of {drawn} holds {share} of the differences",
        ]
        if found["directions"] > len(axes):
            parts.append(f"{len(axes)} of {found['directions']} directions drawn")
        return " · ".join(parts)

    def caption(self) -> str:
        """What lengths mean, and what the picture does not show."""
        axes, directions = self.found["axes"], self.found["directions"]
        steps = ", ".join(f"{axis['label']} is {axis['norm']:.3g}" for axis in axes)
        angle = self.found["angle"]
        skew = angle is not None and abs(angle - 90) > 1
        along = " along the axes" if skew else ""
        lengths = f"Lengths{along} are true to scale, as distances between weights (a step of {steps} long)"
        if skew:
            lengths += f"; the two directions stand at {angle:.0f}° to one another"
        for axis, factor in zip(axes, self.frame.stretch):
            if factor > 1:
                lengths += f", but {axis['label']} is drawn {factor:g} × longer"
        if self.halvings and not self.line:
            scale = {1: "half", 2: "a quarter", 3: "an eighth"}.get(self.halvings, f"1/{2**self.halvings}")
            lengths += f"; rings and dashed arrows at {scale} of that scale"
        parts = ["The axes are the sliders: a point's coordinates are its multipliers.", lengths + "."]
        if directions > len(axes):
            parts.append(f"Residuals are those of what is drawn; all {directions} directions together leave less.")
        if not self.found["base"]["shown"]:
            zero = ", ".join(f"{axis['label']} = 0" for axis in axes)
            parts.append(f"The base ({self.base_name()}) lies outside, at {zero}.")
        return " ".join(parts)

    def title_of(self, point: Mapping[str, Any]) -> str:
        """What a browser says about a point."""
        at = ", ".join(f"{axis['label']} = {value:+.4f}" for axis, value in zip(self.found["axes"], point["at"]))
        return f"{shown(point['name'])}: {at}; residual {100 * point['residual']:.2f} %, ‖Δ‖ {point['norm']:.4g}"
