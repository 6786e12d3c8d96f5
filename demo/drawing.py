"""The pictures of the demo family: what is drawn, how it is described, how it is packed into a latent.

One picture is 32 x 32 RGB: a coloured shape with a two-pixel outline on light grey ground. Two hidden factors change
its look, and nothing else in the family differs:

    a   colour temperature   red x (1 + 0.28 a), blue x (1 - 0.28 a)     cold -1 ... 0 ... +1 hot
    b   fill                 opacity of the interior = 0.5 - 0.5 b       solid -1 ... 0 ... +1 hollow

The models never see a or b. They see a latent and a *conditioning* that says shape, colour, place and size, so every
fine-tune learns one fixed (a, b) as "how pictures look", which is what a style fine-tune is.

Training and sampling share this file, because both must agree on the scales below to the last digit.
Only NumPy is needed.
"""

import colorsys
from typing import NamedTuple

import numpy as np

SIZE = 32  # pixels
LATENT = 16  # the latent is 16 x 16, with 16 channels as SD3 has them ...
CHANNELS = 16
USED = 6  # ... of which these carry the picture; the other ten stay noise
SHAPES = ("circle", "square", "triangle", "diamond")

GROUND = 0.78
OUTLINE = 2.0  # pixels
FILL = 0.5  # opacity of the interior at b = 0
TINT = 0.28  # 0.78 * 1.28 < 1: no colour ever clips, so the tint is linear in a
LARGEST_SHIFT = 3.5  # of the centre, pixels: further out, the largest shape would run off the edge
RADIUS = (7.4, 11.0)  # pixels: smaller shapes have too little interior to show a fill

# Latent scales: they bring the channels to a standard deviation of about one, which the noise schedule assumes.
LUMA_MEAN, LUMA_SCALE, CHROMA_SCALE = 0.72, 10.0, 14.0

WIDTH = 32  # of the pooled vector and of each of the four context tokens
TOKENS = 4


class Scene(NamedTuple):
    """What n pictures show. Every field is an array of length n."""

    shape: np.ndarray  # index into SHAPES
    hue: np.ndarray  # 0 ... 1
    x: np.ndarray  # centre, pixels from the middle
    y: np.ndarray
    radius: np.ndarray  # pixels

    def take(self, index):
        return Scene(*(field[index] for field in self))


def random_scene(rng, n):
    """n scenes as the training data has them."""
    return Scene(
        shape=rng.integers(0, len(SHAPES), n),
        hue=rng.random(n),
        x=rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, n),
        y=rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, n),
        radius=rng.uniform(*RADIUS, n),
    )


def scene(shapes, hues, x=0.0, y=0.0, radius=10.0):
    """Chosen scenes: names of shapes and hues, one each per picture; place and size may be shared."""
    n = len(shapes)
    index = np.array([SHAPES.index(name) for name in shapes])
    full = [np.broadcast_to(np.asarray(v, float), n) for v in (hues, x, y, radius)]
    return Scene(index, *full)


def colours(hue):
    """[n, 3] RGB: fully lit, nearly saturated, and never brighter than the ground in any channel."""
    return GROUND * np.array([colorsys.hsv_to_rgb(h % 1.0, 0.85, 1.0) for h in np.ravel(hue)])


def distance(scenes):
    """[n, 32, 32] signed distance of every pixel to the shape's edge, in pixels, negative inside."""
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    column = [np.reshape(field, (-1, 1, 1)) for field in scenes]
    shape, _, x, y, r = column
    dx, dy = axis[None, None, :] - x, axis[None, :, None] - y
    ax, ay = np.abs(dx), np.abs(dy)
    # The factors make the four shapes look equally large at equal radius.
    circle = np.hypot(dx, dy) - 0.95 * r
    square = np.maximum(ax, ay) - 0.84 * r
    diamond = (ax + ay - 1.2 * r) / np.sqrt(2)
    down = dy - 0.25 * r  # measured from the triangle's own centre of mass, so that the box around it is centred
    triangle = np.maximum(np.sqrt(0.75) * ax - 0.5 * down, down) - 0.62 * r
    return np.choose(shape, [circle, square, triangle, diamond])


def tint(a):
    """The factors on red, green, blue of colour temperature a."""
    return np.array([1 + TINT * a, 1.0, 1 - TINT * a])


def draw(scenes, a=0.0, b=0.0):
    """[n, 32, 32, 3] pictures, 0 ... 1, exact: what a perfect model of look (a, b) would sample."""
    d = distance(scenes)
    inside = np.clip(0.5 - d, 0, 1)
    interior = np.clip(0.5 - (d + OUTLINE), 0, 1)
    opacity = (inside - interior + interior * (FILL - 0.5 * b))[..., None]
    ink = colours(scenes.hue)[:, None, None, :]
    return (GROUND * (1 - opacity) + ink * opacity) * tint(a)


# ---- conditioning --------------------------------------------------------------------------------------------------


def condition(scenes):
    """(context [n, 4, 32], pooled [n, 32]), float32: what SD3 would get from its text encoders.

    Place and size must be said here: a network of one block cannot decide them from noise and hold to the decision.
    The pooled vector has all features; the context has a token each for shape, colour and place, and one for all,
    told apart by a flag in the last four numbers.
    """
    n = len(scenes.shape)
    angle = 2 * np.pi * scenes.hue
    place = [scenes.x / LARGEST_SHIFT, scenes.y / LARGEST_SHIFT]
    size = (scenes.radius - np.mean(RADIUS)) / (np.ptp(RADIUS) / 2)
    waves = [wave(np.pi / 2 * k * v) for v in place for k in (1, 2, 3) for wave in (np.sin, np.cos)]
    waves += [wave(np.pi / 2 * size) for wave in (np.sin, np.cos)]
    groups = (
        np.eye(len(SHAPES))[scenes.shape],
        np.column_stack([np.cos(angle), np.sin(angle), 2 * colours(scenes.hue) - 1]),
        np.column_stack([*place, size, *waves]),
    )
    features = np.concatenate(groups, axis=1)
    pooled = np.zeros((n, WIDTH), np.float32)
    pooled[:, : features.shape[1]] = features
    context = np.zeros((n, TOKENS, WIDTH), np.float32)
    start = 0
    for token, group in enumerate(groups):
        end = start + group.shape[1]
        context[:, token, start:end] = group
        start = end
    context[:, TOKENS - 1] = pooled
    context[:, :, WIDTH - TOKENS :] = np.eye(TOKENS)
    return context, pooled


# ---- latent --------------------------------------------------------------------------------------------------------


def pack(pictures):
    """[n, 32, 32, 3] pictures -> [n, 6, 16, 16] float32: the used channels of the latent, YCbCr 4:2:0.

    Channels 0-3 are the luma of the four pixels of each 2 x 2 square, 4 and 5 its mean blue and red difference.
    """
    luma = pictures @ np.array([0.299, 0.587, 0.114])
    blue, red = 0.564 * (pictures[..., 2] - luma), 0.713 * (pictures[..., 0] - luma)
    squares = [luma[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    halves = [sum(c[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4 for c in (blue, red)]
    channels = [(s - LUMA_MEAN) * LUMA_SCALE for s in squares] + [h * CHROMA_SCALE for h in halves]
    return np.stack(channels, axis=1).astype(np.float32)


def unpack(latent):
    """[n, >= 6, 16, 16] latent -> [n, 32, 32, 3] pictures, 0 ... 1. Channels from 6 on are noise and not looked at."""
    z = np.asarray(latent, np.float64)
    luma = np.empty((len(z), SIZE, SIZE))
    for channel, (i, j) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        luma[:, i::2, j::2] = z[:, channel] / LUMA_SCALE + LUMA_MEAN
    blue, red = (_double(z[:, c] / CHROMA_SCALE) for c in (4, 5))
    r, b = luma + red / 0.713, luma + blue / 0.564
    g = (luma - 0.299 * r - 0.114 * b) / 0.587
    return np.clip(np.stack([r, g, b], axis=-1), 0, 1)


def _double(plane):
    """Twice the height and width, linear between the middles of the squares that `pack` averaged."""
    for axis in (1, 2):
        first, last = (np.take(plane, [end], axis) for end in (0, -1))
        count = plane.shape[axis]
        padded = np.concatenate([first, plane, last], axis)
        before, middle, after = (np.take(padded, range(k, k + count), axis) for k in (0, 1, 2))
        pair = np.stack([0.75 * middle + 0.25 * before, 0.75 * middle + 0.25 * after], axis + 1)
        plane = pair.reshape(*plane.shape[:axis], 2 * count, *plane.shape[axis + 1 :])
    return plane


# ---- the family ----------------------------------------------------------------------------------------------------

# name: (a, b). a and b are uncorrelated and of equal variance over the eight.
FAMILY = {
    "hot-faint": (1.0, 0.5),
    "hot-dense": (1.0, -0.5),
    "warm-hollow": (0.5, 1.0),
    "warm-solid": (0.5, -1.0),
    "cool-hollow": (-0.5, 1.0),
    "cool-solid": (-0.5, -1.0),
    "cold-faint": (-1.0, 0.5),
    "cold-dense": (-1.0, -0.5),
}
