"""The two sheets of the demo, laid out with Pillow: a map over lambda and kappa, and a model beside its approximation.

Everything is drawn at twice its final size and reduced once at the end: this smooths lines and text, while the pixels
of the samples, enlarged by a whole factor, stay square and sharp.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GROUND = (30, 32, 37)
INK = (236, 236, 232)
QUIET = (160, 163, 170)
RULE = (74, 78, 88)
OVER = 2  # drawn this much larger than shown
ZOOM = 3  # one pixel of a sample, as shown
GAP = 2  # between samples that belong together

# The font that Pillow brings has no Greek, and none is shipped for two letters: they are drawn as strokes, in a box of
# width 1 and height 1 (the height of a lower-case letter is 0.62 of it), y downwards.
STROKES = {
    "λ": (
        [(0.02, 0.02), (0.16, 0.0), (0.26, 0.1), (0.56, 0.92), (0.66, 1.0), (0.74, 0.96)],
        [(0.36, 0.42), (0.02, 1.0)],
    ),
    "κ": ([(0.08, 0.38), (0.08, 1.0)], [(0.56, 0.38), (0.1, 0.74)], [(0.24, 0.64), (0.58, 1.0)]),
}


def enlarged(pictures, columns):
    """n pictures 0 ... 1 -> one image, row by row, `columns` wide, whole pixels enlarged."""
    tiles = [Image.fromarray((np.clip(p, 0, 1) * 255 + 0.5).astype(np.uint8)) for p in pictures]
    side, gap = tiles[0].width * ZOOM * OVER, GAP * OVER
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), GROUND)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile.resize((side, side), Image.Resampling.NEAREST), (column * (side + gap), row * (side + gap)))
    return sheet


def extent(count):
    """Size as shown of `count` enlarged samples side by side."""
    return count * (32 * ZOOM + GAP) - GAP


class Sheet:
    """A page to draw on. All measures are those of the finished picture."""

    def __init__(self, width, height):
        self.image = Image.new("RGB", (width * OVER, height * OVER), GROUND)
        self.pen = ImageDraw.Draw(self.image)

    def paste(self, image, x, y):
        self.image.paste(image, (round(x * OVER), round(y * OVER)))

    def line(self, points, colour=RULE, width=1.0):
        scaled = [(x * OVER, y * OVER) for x, y in points]
        self.pen.line(scaled, fill=colour, width=max(1, round(width * OVER)), joint="curve")

    def width_of(self, text, size):
        return sum(self._advance(piece, size) for piece in _pieces(text))

    def text(self, x, y, text, size=15, colour=INK, align="left"):
        """Writes on the base line y; λ and κ may stand anywhere in the text."""
        total = self.width_of(text, size)
        x -= {"left": 0, "centre": total / 2, "right": total}[align]
        for piece in _pieces(text):
            if piece in STROKES:
                box, top = 0.74 * size, y - 0.74 * size
                for stroke in STROKES[piece]:
                    self.line([(x + box * u, top + box * v) for u, v in stroke], colour, 0.085 * size)
            else:
                font = ImageFont.load_default(size * OVER)
                self.pen.text((x * OVER, y * OVER), piece, fill=colour, font=font, anchor="ls")
            x += self._advance(piece, size)

    def _advance(self, piece, size):
        if piece in STROKES:
            return 0.62 * size
        return ImageFont.load_default(size * OVER).getlength(piece) / OVER

    def arrow(self, x0, y0, x1, y1, colour=QUIET):
        """A line with a small head at its end; horizontal or vertical."""
        self.line([(x0, y0), (x1, y1)], colour, 1.2)
        ux, uy = np.sign(x1 - x0), np.sign(y1 - y0)
        barbs = [(x1 - 6 * ux + side * 4 * uy, y1 - 6 * uy + side * 4 * ux) for side in (-1, 1)]
        self.line([barbs[0], (x1, y1), barbs[1]], colour, 1.2)

    def finished(self):
        """The picture in its final size."""
        return self.image.resize((self.image.width // OVER, self.image.height // OVER), Image.Resampling.BOX)

    def save(self, path):
        self.finished().save(path, optimize=True)


def _pieces(text):
    """The text cut into runs of the font's own letters and single Greek ones."""
    pieces = [""]
    for letter in text:
        if letter in STROKES:
            pieces += [letter, ""]
        else:
            pieces[-1] += letter
    return [piece for piece in pieces if piece]


def signed(value):
    return "0" if value == 0 else f"{value:+.3g}"


# ---- the sheets ----------------------------------------------------------------------------------------------------


def map_sheet(path, cells, values, words, title, notes):
    """λ to the right, κ upwards. cells[λ, κ]: the four samples there; words: {letter: (low end, high end)}."""
    cell, space = extent(2), 12
    left, top, right, bottom = 118, 108, 44, 88
    span = len(values) * (cell + space) - space
    sheet = Sheet(left + span + right, top + span + bottom)
    sheet.text(left, 42, title, 24)
    sheet.text(left, 72, notes, 14, QUIET)
    for i, x_value in enumerate(values):
        x = left + i * (cell + space)
        sheet.text(x + cell / 2, top + span + 26, signed(x_value), 16, align="centre")
        for j, y_value in enumerate(values):
            y = top + (len(values) - 1 - j) * (cell + space)
            sheet.paste(enlarged(cells[x_value, y_value], 2), x, y)
            if i == 0:
                sheet.text(left - 18, y + cell / 2 + 6, signed(y_value), 16, align="right")
    low, high = words["λ"]
    line, middle = top + span + 56, left + span / 2
    sheet.text(left, line, low, 16, QUIET)
    sheet.text(left + span, line, high, 16, QUIET, align="right")
    sheet.arrow(middle - 150, line - 5, middle - 28, line - 5)
    sheet.text(middle, line, "λ", 24, align="centre")
    sheet.arrow(middle + 28, line - 5, middle + 150, line - 5)
    low, high = words["κ"]
    column, middle = 42, top + span / 2
    sheet.text(column, top + 14, high, 16, QUIET, align="centre")
    sheet.text(column, top + span - 4, low, 16, QUIET, align="centre")
    sheet.arrow(column, middle + 150, column, middle + 28)
    sheet.text(column, middle + 6, "κ", 24, align="centre")
    sheet.arrow(column, middle - 28, column, middle - 150)
    sheet.save(path)


def model_sheet(path, rows, title, notes):
    """rows: (name, small lines of text, samples of the model, samples of its approximation)."""
    samples = len(rows[0][2])
    wide, high, space, gutter = extent(samples), extent(1), 10, 34
    label, top, margin = 208, 132, 40
    sheet = Sheet(label + 2 * wide + gutter + margin, top + len(rows) * (high + space) - space + margin)
    sheet.text(margin, 46, title, 24)
    sheet.text(margin, 76, notes, 14, QUIET)
    second = label + wide + gutter
    for x, word in ((label, "the model"), (second, "its approximation")):
        sheet.text(x, top - 18, word, 16)
        sheet.line([(x, top - 9), (x + wide, top - 9)])
    for index, (name, lines, model, approximation) in enumerate(rows):
        y = top + index * (high + space)
        sheet.text(margin, y + 30, name, 18)
        for number, line in enumerate(lines):
            sheet.text(margin, y + 54 + 20 * number, line, 14, QUIET)
        sheet.paste(enlarged(model, samples), label, y)
        sheet.paste(enlarged(approximation, samples), second, y)
    sheet.save(path)
