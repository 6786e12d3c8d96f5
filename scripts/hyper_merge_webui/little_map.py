"""A small map for pictures: the models, the way that an animation goes or the cells of a grid, and where it is now.

Knows no host; colours and shapes are those of the pad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageDraw

Place = tuple[float, float]
FontOf = Callable[[int], Any]
"""A font of so many pixels."""

COLOURS = {
    "bg": "#1e2025",
    "ink": "#ecece8",
    "soft": "#a0a3aa",
    "line": "#454a54",
    "faint": "#2c2f36",
    "accent": "#6fadf2",
}
COLOURS |= {"hull": "#2a3440", "base": "#ff6f70"}
_FINE = 3
"""Drawn so many times larger and reduced, for smooth edges."""
_FREE = 1.35
"""Models reach to 1 by definition; a third more is in view."""


def draw(
    document: dict[str, Any], size: int, font: FontOf, way: Sequence[Place] = (), now: Place | None = None
) -> Image.Image:
    """`size` × `size` pixels of a map_document.

    way: (λ, κ) of all frames or cells; now: of this one.
    """
    sheet = _Sheet(document, size, font, [*way, *([now] if now else [])])
    sheet.axes()
    sheet.models()
    sheet.way(way)
    if now is not None:
        sheet.handle(now)
    return sheet.picture()


def text_size(size: int) -> int:
    """Of the letters on a map of so many pixels."""
    return min(18, max(9, size // 26))


class _Sheet:
    def __init__(self, document: dict[str, Any], size: int, font: FontOf, others: Sequence[Place]) -> None:
        self.document, self.size, self.font = document, size, font
        points = [point for point in document["points"] if point["merged"]]
        self.places = [_pair(point["multipliers"]) for point in points]
        self.names = [point["name"] for point in points]
        most = max([1e-6, *(abs(value) for place in (*self.places, *others) for value in place)])
        self.unit = _FINE * size / 2 / (_FREE * most)
        self.image = Image.new("RGB", (_FINE * size, _FINE * size), COLOURS["bg"])
        self.pen = ImageDraw.Draw(self.image)

    def picture(self) -> Image.Image:
        """Names are drawn last, at their true size."""
        image = self.image.resize((self.size, self.size), Image.LANCZOS)
        pen, font = ImageDraw.Draw(image), self.font(text_size(self.size))
        for name, (x, y) in zip(self.names, self.places):
            across, down = (value / _FINE for value in self.at((x, y)))
            width = pen.textlength(name, font=font)
            left = min(max(2.0, across - width / 2), self.size - width - 2)
            above = y > 0
            pen.text((left, down + (-7 if above else 7)), name, COLOURS["soft"], font, anchor="lb" if above else "lt")
        axes = self.document["axes"]
        titles = [axis.get("name") or axis["label"] for axis in axes]
        pen.text((self.size - 6, self.size / 2 - 5), titles[0], COLOURS["ink"], font, anchor="rs")
        if len(titles) > 1:
            pen.text((self.size / 2 + 5, 4), titles[1], COLOURS["ink"], font, anchor="lt")
        return image

    def at(self, place: Place) -> Place:
        """In pixels of the large drawing."""
        half = _FINE * self.size / 2
        return half + place[0] * self.unit, half - place[1] * self.unit

    def axes(self) -> None:
        full, half = _FINE * self.size, _FINE * self.size / 2
        for n in range(-20, 21):
            colour = COLOURS["line" if n == 0 else "faint"]
            place = half + n / 2 * self.unit
            self.pen.line((place, 0, place, full), colour, _FINE)
            self.pen.line((0, place, full, place), colour, _FINE)

    def models(self) -> None:
        hull = [self.at(self.places[index]) for index in self.document["hull"]]
        if len(hull) > 2:
            self.pen.polygon(hull, COLOURS["hull"], COLOURS["accent"], _FINE)
        x, y = self.at((0.0, 0.0))
        arm = 5 * _FINE
        self.pen.line((x - arm, y, x + arm, y), COLOURS["base"], 2 * _FINE)
        self.pen.line((x, y - arm, x, y + arm), COLOURS["base"], 2 * _FINE)
        for place in self.places:
            self.dot(place, 3.5, COLOURS["ink"])

    def way(self, places: Sequence[Place]) -> None:
        for place in places:
            self.dot(place, 2, COLOURS["accent"])

    def handle(self, place: Place) -> None:
        x, y = self.at(place)
        for radius, colour, width in ((9, COLOURS["bg"], 5), (8, COLOURS["accent"], 3)):
            reach = radius * _FINE
            self.pen.ellipse((x - reach, y - reach, x + reach, y + reach), None, colour, width * _FINE)

    def dot(self, place: Place, radius: float, colour: str) -> None:
        x, y = self.at(place)
        reach = radius * _FINE
        self.pen.ellipse((x - reach, y - reach, x + reach, y + reach), colour)


def _pair(values: Sequence[float]) -> Place:
    return float(values[0]), float(values[1]) if len(values) > 1 else 0.0
