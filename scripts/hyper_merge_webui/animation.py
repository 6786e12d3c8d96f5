"""Frames and grids over λ and κ: where they are taken, how they are put together and kept.  Knows no host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

from . import little_map
from .little_map import COLOURS, FontOf, Place
from .pack import points

FORMATS = ("GIF", "WebP")
_GAP = 4
_LEAST = 256  # pixels of a map


def path(document: dict[str, Any], text: str, frames: int, closed: bool) -> list[Place]:
    """`frames` points along the corners that `text` names, one a line: λ, κ or a model; no line = every model in turn.

    Raises ValueError, which names the line.
    """
    models = {point["name"]: point["multipliers"] for point in document["points"] if point["merged"]}
    places = points.path(points.corners(text, models), frames, closed)
    return _within(document, places)


def grid(document: dict[str, Any], lam: Place, kap: Place, columns: int, rows: int) -> tuple[list[Place], int, int]:
    """(λ, κ) row by row as the map shows them, columns, rows; a single direction has one row."""
    rows = rows if document["directions"] > 1 else 1
    return _within(document, points.grid(*lam, *kap, columns, rows)), columns, rows


def _within(document: dict[str, Any], places: list[Place]) -> list[Place]:
    return places if document["directions"] > 1 else [(lam, 0.0) for lam, _ in places]


# ---- pictures -------------------------------------------------------------------------------------------------------


def beside(
    picture: Image.Image, document: dict[str, Any], font: FontOf, way: Sequence[Place], now: Place
) -> Image.Image:
    """A frame with the map at its right, as high as the frame where it can be read, the multipliers in its corner."""
    size = max(picture.height, _LEAST)
    drawn = little_map.draw(document, size, font, way, now)
    pen = ImageDraw.Draw(drawn)
    pen.text((8, size - 6), label(document, now), COLOURS["ink"], font(little_map.text_size(size)), anchor="ls")
    return _row([picture, drawn])


def label(document: dict[str, Any], place: Place) -> str:
    """ "λ +0.40  κ -0.20"."""
    axes = document["axes"][: min(2, document["directions"])]
    return "  ".join(f"{axis['label']} {value:+.2f}" for axis, value in zip(axes, place))


def sheet(
    pictures: Sequence[Image.Image],
    columns: int,
    places: Sequence[Place],
    document: dict[str, Any],
    font: FontOf,
    with_map: bool,
) -> Image.Image:
    """All cells, λ written above the columns and κ beside the rows, and the map at the right.

    pictures: row by row; where the job was stopped, fewer than places.
    """
    width, height = pictures[0].size
    text = font(max(11, height // 16))
    rows = -(-len(places) // columns)
    names = [f"κ {places[row * columns][1]:+.2f}" for row in range(rows if document["directions"] > 1 else 0)]
    left, top = int(max([0, *map(text.getlength, names)])) + 12, max(20, height // 10)
    image = Image.new("RGB", (left + columns * (width + _GAP), top + rows * (height + _GAP)), COLOURS["bg"])
    pen = ImageDraw.Draw(image)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        image.paste(picture.convert("RGB"), (left + column * (width + _GAP), top + row * (height + _GAP)))
    for column in range(columns):
        x = left + column * (width + _GAP) + width / 2
        pen.text((x, top / 2), f"λ {places[column][0]:+.2f}", COLOURS["ink"], text, anchor="mm")
    for row, name in enumerate(names):
        y = top + row * (height + _GAP) + height / 2
        pen.text((left - 6, y), name, COLOURS["ink"], text, anchor="rm")
    if not with_map:
        return image
    size = max(_LEAST, min(image.height, 3 * max(width, height)))
    drawn = little_map.draw(document, size, font, places)
    return _row([image, drawn])


def _row(pictures: Sequence[Image.Image]) -> Image.Image:
    image = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), COLOURS["bg"])
    x = 0
    for picture in pictures:
        image.paste(picture.convert("RGB"), (x, (image.height - picture.height) // 2))
        x += picture.width
    return image


# ---- files ----------------------------------------------------------------------------------------------------------


def save(frames: Sequence[Image.Image], folder: str, kind: str, rate: float, comment: str) -> str:
    """Writes an animation of `rate` frames a second into a new numbered file; its path.

    kind: one of FORMATS.  Raises OSError, ValueError.
    """
    if not frames:
        raise ValueError("there is no frame to write")
    os.makedirs(folder, exist_ok=True)
    more: dict[str, Any] = {"save_all": True, "append_images": list(frames[1:]), "duration": 1000 / rate, "loop": 0}
    more |= {"comment": comment.encode()[:60000]} if kind == "GIF" else {"quality": 90, "method": 4}
    target = _numbered(folder, kind.lower())
    temporary = f"{target}.part"  # not by tempfile, whose files only their owner may read
    try:
        with open(temporary, "wb") as file:
            frames[0].save(file, format=kind, **more)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return target


def _numbered(folder: str, ending: str) -> str:
    numbers = [name.split("-")[0] for name in os.listdir(folder) if name.endswith(f"-hyper-merge.{ending}")]
    last = max([int(number) for number in numbers if number.isdigit()], default=-1)
    return os.path.join(folder, f"{last + 1:05}-hyper-merge.{ending}")
