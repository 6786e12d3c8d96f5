"""Points in the plane of multipliers, as people write them: λ, κ and further ones, blocks, grids and paths."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

LETTERS = ("λ", "κ")


def numbers(text: str, what: str) -> list[float]:
    """Numbers separated by commas, semicolons or blanks.  Raises ValueError."""
    found = []
    for word in re.split(r"[,;\s]+", text.strip()):
        if not word:
            continue
        try:
            value = float(word)
        except ValueError:
            raise ValueError(f"{what}: '{word}' is not a number; write them as: 0.4, -0.2") from None
        if not math.isfinite(value):
            raise ValueError(f"{what}: '{word}' is not a finite number")
        found.append(value)
    return found


def finite(value: float, what: str) -> float:
    """The number itself: links and prompts bring NaN past a host's own limits.  Raises ValueError."""
    if not math.isfinite(value):
        raise ValueError(f"{what}: {value} is not a finite number")
    return float(value)


def at(count: int, lam: float, kap: float, further: str = "") -> list[float]:
    """The `count` multipliers of a blend.  Raises ValueError when there are more than directions, or one is NaN."""
    given = [finite(lam, LETTERS[0]), finite(kap, LETTERS[1]), *numbers(further, "further")]
    for k, value in enumerate(given[count:], start=count + 1):
        if value != 0:
            name = LETTERS[k - 1] if k <= len(LETTERS) else f"number {k}"
            raise ValueError(
                f"the hyper-model has {count} direction{'s' * (count != 1)}, so {name} must stay 0; solve for more "
                "directions"
            )
    return given[:count] + [0.0] * (count - len(given))


def blocks(text: str | None, count: int) -> list[tuple[str, list[float]]]:
    """Lines `GLOB = λ, κ …` as (glob, `count` multipliers); blank lines and what follows a # are left out.

    Raises ValueError, which names the line.
    """
    found = []
    for number, line in enumerate((text or "").splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        glob, equals, values = line.rpartition("=")
        if not equals or not glob.strip():
            raise ValueError(
                f"blocks, line {number}: '{line}' is not of the form GLOB = λ, κ, as in *.input_blocks.* = 0, 0"
            )
        given = numbers(values, f"blocks, line {number}")
        if len(given) > count:
            raise ValueError(f"blocks, line {number}: {len(given)} multipliers for {count} directions")
        found.append((glob.strip(), given + [0.0] * (count - len(given))))
    return found


def label(values: Sequence[float]) -> str:
    """ "λ 0.5  κ -1", three digits after the point at most."""
    names = [LETTERS[k] if k < len(LETTERS) else f"c{k + 1}" for k in range(len(values))]
    return "  ".join(f"{name} {round(value, 3) + 0.0:g}" for name, value in zip(names, values))


def grid(
    lam_from: float, lam_to: float, kap_from: float, kap_to: float, columns: int, rows: int
) -> list[tuple[float, float]]:
    """(λ, κ) row by row, as a map shows them: λ grows to the right, the row of kap_to is the first."""
    return [(x, y) for y in _spread(kap_to, kap_from, rows) for x in _spread(lam_from, lam_to, columns)]


def _spread(first: float, last: float, count: int) -> list[float]:
    if count == 1:
        return [(first + last) / 2]
    return [first + (last - first) * i / (count - 1) for i in range(count)]


def corners(text: str, models: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """The corners of a path: each line `λ, κ` or the name of a model; no line at all means every model in turn.

    models: names and multipliers.  Raises ValueError, which names the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line:
            continue
        if line in models:
            found.append(_pair(models[line]))
            continue
        try:
            values = numbers(line, "")
        except ValueError:
            known = ", ".join(models)
            raise ValueError(f"points, line {number}: '{line}' is neither λ, κ nor one of the models {known}") from None
        if len(values) not in (1, 2):
            raise ValueError(f"points, line {number}: '{line}' is not a point λ, κ")
        found.append(_pair(values))
    return found or [_pair(values) for values in models.values()]


def _pair(values: Sequence[float]) -> tuple[float, float]:
    return float(values[0]) if values else 0.0, float(values[1]) if len(values) > 1 else 0.0


def path(points: Sequence[tuple[float, float]], frames: int, closed: bool) -> list[tuple[float, float]]:
    """`frames` points evenly along the path through `points`: by length, so that the speed is the same everywhere.

    An open path ends on its last point; a closed one ends one step before its first, so that a loop does not stutter.
    """
    if closed and len(points) > 1:
        points = [*points, points[0]]
    lengths = [math.dist(a, b) for a, b in zip(points, points[1:])]
    total = sum(lengths)
    if total == 0 or frames == 1:
        return [points[0]] * frames
    steps = frames if closed else frames - 1
    found = []
    for frame in range(frames):
        rest, k = total * frame / steps, 0
        while k < len(lengths) - 1 and rest > lengths[k]:
            rest -= lengths[k]
            k += 1
        share = min(1.0, rest / lengths[k]) if lengths[k] > 0 else 0.0
        found.append(tuple(a + (b - a) * share for a, b in zip(points[k], points[k + 1])))
    return found


def schedule(
    start: Sequence[float], end: Sequence[float], first: float, last: float, count: int
) -> list[tuple[float, list[float]]]:
    """(share of the sampling, multipliers) of `count` keyframes from `first` to `last`; 0 is the first step, 1 the
    last.
    """
    if not first < last:
        raise ValueError(f"start_percent {first:g} must be smaller than end_percent {last:g}")
    found = []
    for i in range(count):
        share = i / (count - 1)
        found.append((first + (last - first) * share, [a + (b - a) * share for a, b in zip(start, end)]))
    return found
