"""The demo's animation, a walk over the map through all models, and its sheet of comparison with other ways to merge."""

from itertools import combinations

import numpy as np
from PIL import Image

from pictures import GROUND, INK, QUIET, RULE, Sheet, enlarged, extent, signed

STEPS = 6  # frames from one model to the next
FRAME_MS = 120
MARK = (236, 150, 60)
SIDE = 236  # of the little map


# ---- the walk ------------------------------------------------------------------------------------------------------


def walk(places):
    """[frames, 2]: once round the base, from model to model and back to the first. places: [M, 2] multipliers."""
    places = np.asarray(places)
    order = np.argsort(np.arctan2(places[:, 1], places[:, 0]))
    corners = [*places[order], places[order[0]]]
    # Slower near the models, where one wants to look, than between them.
    shares = (1 - np.cos(np.pi * np.arange(STEPS) / STEPS)) / 2
    return np.array([a + share * (b - a) for a, b in zip(corners, corners[1:]) for share in shares])


class LittleMap:
    """Where the walk is: the models as points, the way so far, the sliders' values."""

    def __init__(self, sheet, x, y, members, path):
        self.sheet, self.x, self.y, self.members, self.path = sheet, x, y, members, path
        self.reach = 1.18 * max(1.0, np.abs(path).max())

    def place(self, at):
        half = SIDE / 2
        return self.x + half + half * at[0] / self.reach, self.y + half - half * at[1] / self.reach

    def dot(self, at, radius, colour):
        x, y = self.place(at)
        angles = np.linspace(0, 2 * np.pi, 25)
        for share in np.linspace(0.1, 1, 6):
            ring = [(x + share * radius * np.cos(a), y + share * radius * np.sin(a)) for a in angles]
            self.sheet.line(ring, colour, radius / 3)

    def draw(self, frame):
        low, high = -self.reach, self.reach
        self.sheet.line([self.place((low, 0)), self.place((high, 0))])
        self.sheet.line([self.place((0, low)), self.place((0, high))])
        self.sheet.text(*np.add(self.place((high, 0)), (0, 18)), "λ", 18, QUIET, "right")
        self.sheet.text(*np.add(self.place((0, high)), (8, 14)), "κ", 18, QUIET)
        self.sheet.line([self.place(at) for at in [*self.path, self.path[0]]], RULE)
        if frame > 0:
            self.sheet.line([self.place(at) for at in self.path[: frame + 1]], MARK, 1.6)
        here = self.path[frame]
        nearest = min(self.members, key=lambda member: np.linalg.norm(member[1] - here))
        for name, at in self.members:
            self.dot(at, 3.2, INK if name == nearest[0] else QUIET)
        self.dot(here, 5.5, MARK)
        near = np.linalg.norm(nearest[1] - here) < 0.06
        self.sheet.text(self.x, self.y + SIDE + 28, f"λ {signed(round(float(here[0]), 2))}", 18)
        self.sheet.text(self.x + 92, self.y + SIDE + 28, f"κ {signed(round(float(here[1]), 2))}", 18)
        self.sheet.text(self.x + SIDE, self.y + SIDE + 28, nearest[0] if near else "", 16, MARK, "right")


def animation(path, frames, members, way):
    """frames: the four samples of every place on the way; members: (name, [2]); writes an endless GIF."""
    cell, margin = extent(2), 24
    images = []
    for number, samples in enumerate(frames):
        sheet = Sheet(margin + cell + margin + SIDE + margin, margin + SIDE + 40 + margin)
        sheet.paste(enlarged(samples, 2), margin, margin + (SIDE + 40 - cell) / 2)
        LittleMap(sheet, margin + cell + margin, margin, members, way).draw(number)
        images.append(sheet.finished())
    # One palette for all frames: else every frame shimmers a little differently.
    sample = Image.new("RGB", (images[0].width, images[0].height * 6), GROUND)
    for i in range(6):
        sample.paste(images[i * len(images) // 6], (0, i * images[0].height))
    palette = sample.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    quantised = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    quantised[0].save(path, save_all=True, append_images=quantised[1:], duration=FRAME_MS, loop=0, optimize=True)


# ---- other ways ----------------------------------------------------------------------------------------------------


def best_pair(gram, m):
    """(a, b, t, error): the weighted sum t·W_a + (1−t)·W_b of two other models, 0 ≤ t ≤ 1, that is nearest to model m.

    gram: [M, M] of the differences from the base; error: distance, in the same measure. What a tool for two models can
    do at its very best: people have to guess the two and the weight.
    """
    gram = np.asarray(gram)

    def square(x):
        return float(x @ gram @ x)

    unit = np.eye(len(gram))
    best = None
    for a, b in combinations([i for i in range(len(gram)) if i != m], 2):
        way = unit[a] - unit[b]
        length = square(way)
        t = float(np.clip((unit[m] - unit[b]) @ gram @ way / length, 0, 1)) if length > 0 else 0.0
        error = square(unit[m] - t * unit[a] - (1 - t) * unit[b]) ** 0.5
        if best is None or error < best[3]:
            best = (a, b, t, error)
    return best


def mixture(states, weights):
    """The weighted sum of models, {name: array} each, in f32: what other tools write."""
    return {name: sum(np.float32(w) * state[name] for w, state in zip(weights, states)) for name in states[0]}


def comparison_sheet(path, rows, heads, title, notes):
    """rows: (name, samples of the model, columns); a column: (samples, error, dB, remark); heads: one word per column."""
    samples = len(rows[0][1])
    wide, high, gutter, under, margin, label = extent(samples), extent(1), 26, 52, 40, 122
    sheet = Sheet(margin + label + 4 * wide + 3 * gutter + margin, 140 + len(rows) * (high + under) + margin - 24)
    sheet.text(margin, 46, title, 24)
    sheet.text(margin, 76, notes, 14, QUIET)
    for column, head in enumerate(("the model", *heads)):
        x = margin + label + column * (wide + gutter)
        sheet.text(x, 118, head, 16)
        sheet.line([(x, 127), (x + wide, 127)])
    for index, (name, own, columns) in enumerate(rows):
        y = 140 + index * (high + under)
        sheet.text(margin, y + high / 2 + 6, name, 17)
        sheet.paste(enlarged(own, samples), margin + label, y)
        least = min(error for _, error, _, _ in columns)
        for column, (pictures, error, decibels, remark) in enumerate(columns):
            x = margin + label + (column + 1) * (wide + gutter)
            sheet.paste(enlarged(pictures, samples), x, y)
            sheet.text(x, y + high + 17, f"{error:.0%} off, {decibels:.0f} dB", 14, INK if error == least else QUIET)
            sheet.text(x, y + high + 35, remark, 13, QUIET)
    sheet.save(path)
