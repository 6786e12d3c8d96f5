"""Map documents of families that nobody merged: many models, one direction, four, a base far away."""

from __future__ import annotations

import math
import random
from typing import Any


def family(
    count: int, directions: int = 2, *, seed: int = 0, names: str = "model-{:02d}", far_base: bool = False
) -> dict[str, Any]:
    """`count` models on a disc in the plane of the first two directions; far_base: as for a base of nothing, λ near 1."""
    chance = random.Random(seed)
    points = []
    for m in range(count):
        angle, radius = 2 * math.pi * chance.random(), math.sqrt(chance.random())
        values = [radius * math.cos(angle), radius * math.sin(angle), *(chance.uniform(-1, 1) for _ in range(directions))]
        if far_base:
            values[0] = 1 - 0.05 * chance.random()
        values = [round(value, 4) for value in values[:directions]]
        point = {"name": names.format(m), "merged": True, "at": values[:2], "multipliers": values}
        points.append({**point, "residual": round(chance.uniform(0, 0.8), 3), "norm": 1.0, "off": 0.3, "error": None})
    explained = [0.5 * 0.6**k for k in range(directions)]
    labels = ["λ", "κ"]
    axes = [
        {"direction": k + 1, "label": labels[k], "name": None, "explained": explained[k], "norm": 1.0}
        for k in range(min(2, directions))
    ]
    base = {"kind": "none" if far_base else "mean", "name": None, "shown": not far_base}
    return {"axes": axes, "points": points, "hull": [], "base": base, "directions": directions, "explained": explained}
