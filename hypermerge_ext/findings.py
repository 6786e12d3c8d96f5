"""What a comparison of models means: which are nearly the same, and which are mixtures of the others.

The numbers are those of `compare`: distances, and how far rounding may have moved each model.  A pair is called near

 *  when its distance is at most NEAR of the median distance; or
 *  when rounding explains the distance.  A weight stored with p bits is off by up to u = 2^−p of itself; spread evenly
    that comes to u / √3 of ‖W‖ at most, 2.8e-4 in f16 and 2.3e-3 in bf16 (`rounding`).  Copies of one model in two
    types, or one merge computed by two programs, differ by so much and are no different models.  But small fine-tunes
    in bf16 lie no further apart than that either.  So rounding is believed only where the types do differ, or where the
    pair stands out from the rest: at most STANDS_OUT of the median distance.

The same holds for what is left of a model when the nearest mixture of others is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import Any, NamedTuple

from .grouping import Matrix

EQUAL = 1e-6
"""Of the largest distance: below it the compiled part takes two models for one."""
NEAR = 0.01
"""Of the median distance between models that are not equal."""
STANDS_OUT = 0.25
"""Of the same, for a distance that rounding explains."""
OTHER_TYPES = 1.5
"""Types whose rounding differs by this factor differ: by one bit it would be 2."""
LEFT_OVER = 0.1
"""Of a mixture's distance from what it is made of, so much at most is something else: a hundredth of its square."""
LEFT_OVER_ROUNDED = 0.5
"""The same where rounding explains what is left."""
SMALLEST_PART = 0.005
"""Weights below this are not named."""
MOST_PARTS = 8
"""Of a mixture, that a sentence names."""
MOST_SENTENCES = 8
"""Of one kind: of the snapshots of one training run all but the ends are mixtures of their neighbours."""


class _Mixture(NamedTuple):
    """The convex combination nearest to a model."""

    weights: dict[int, float]
    left: float
    """Its distance from the model."""
    scale: float
    """Root mean square distance of the model from what it is mixed of."""


def findings(answer: Mapping[str, Any]) -> dict[str, Any]:
    """From a comparison {"models", "distance", "distance_to_others", "rounding"}:

    {"near_duplicates": [{"models": [name], "distance", "relative": to the median distance, "rounding": bool: called
    near only because rounding explains it}],
    "mixtures": [{"model": name, "of": [{"model": name, "weight"}], "left": the share of its distance from these that
    the mixture does not give, "rounding": bool: rounding explains what is left}],
    "dependent": [name]: others which follow from each other by adding and subtracting, as in a + (b − c)}.
    """
    names, distance = answer["models"], answer["distance"]
    distinct = sorted(set(firsts(distance)))
    median = _median(distinct, distance)
    near = near_groups(answer)
    alone = [i for i in distinct if not any(i in group[1:] for group in near)]
    mixtures = _mixtures(alone, answer)
    told = {i for e, mixture in mixtures.items() for i in (e, *mixture.weights)} | {i for group in near for i in group}
    told |= {i for j, i in enumerate(firsts(distance)) if j != i}
    rest = [i for i in alone if i not in told and _is_dependent(i, answer, median)]
    return {
        "near_duplicates": [_near_entry(group, answer, median) for group in near],
        "mixtures": [_mixture_entry(e, mixture, answer) for e, mixture in mixtures.items()],
        "dependent": [names[i] for i in rest],
    }


def firsts(distance: Matrix) -> list[int]:
    """For each model, the first one that equals it: itself, if none does."""
    equal = EQUAL * max(map(max, distance))
    found: list[int] = []
    for i in range(len(distance)):
        found.append(next((j for j in range(i) if found[j] == j and distance[i][j] <= equal), i))
    return found


def _median(distinct: Sequence[int], distance: Matrix) -> float:
    values = sorted(distance[i][j] for i, j in combinations(distinct, 2))
    return (values[len(values) // 2] + values[~(len(values) // 2)]) / 2 if values else 0.0


def in_words(answer: Mapping[str, Any], with_groups: bool = True) -> list[str]:
    """What a comparison with its findings means: duplicates, near duplicates, mixtures, groups; a sentence each."""
    lines = []
    for group in answer["duplicates"]:
        lines.append(f"{_listed(group)} are equal in every merged tensor")
    for near in answer["near_duplicates"]:
        most = "at most " if len(near["models"]) > 2 else ""
        apart = f"{most}{_percent(near['relative'])} of the median distance apart"
        if near["rounding"]:
            lines.append(f"{_listed(near['models'])} are no further apart than rounding explains: {apart}")
        else:
            lines.append(f"{_listed(near['models'])} are nearly equal: {apart}")
    for mixture in answer["mixtures"][:MOST_SENTENCES]:
        parts = _listed(_parts(mixture["of"]))
        left = f"{_percent(mixture['left'])} of its distance from them"
        explained = ", no more than rounding explains" if mixture["rounding"] else ""
        lines.append(f"{mixture['model']} is a mixture of {parts}, but for {left}{explained}")
    if len(answer["mixtures"]) > MOST_SENTENCES:
        lines.append(f"and {len(answer['mixtures']) - MOST_SENTENCES} more are mixtures too; --json has them")
    if answer["dependent"]:
        some = answer["dependent"][:MOST_SENTENCES]
        more = [f"{len(answer['dependent']) - len(some)} more"] if len(answer["dependent"]) > len(some) else []
        follow = "follows" if len(answer["dependent"]) == 1 else "follow"
        how = "from the others by adding and subtracting; recover finds the weights"
        lines.append(f"{_listed([*some, *more])} {follow} {how}")
    if not lines:
        lines.append("no two of them are equal or nearly so, and none is a mixture of others")
    grouped = answer["groups"] if with_groups else []
    lines += [f"a group: {_listed(group)}" for group in grouped[:MOST_SENTENCES]]
    if len(grouped) > MOST_SENTENCES:
        lines.append(f"and {len(grouped) - MOST_SENTENCES} more groups")
    return lines


def _parts(mixed: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a mixture is of, the largest shares first; where these are many, the small ones are summed."""
    named = mixed if len(mixed) <= MOST_PARTS else mixed[: MOST_PARTS - 1]
    told = [f"{part['model']} ({_percent(part['weight'])})" for part in named]
    rest = mixed[len(named) :]
    return [*told, f"{len(rest)} others ({_percent(sum(part['weight'] for part in rest))})"] if rest else told


def _listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    """Two digits, but no more than four decimals: "0.31 %", "50 %"."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %" if value >= 0.995 else f"{value:.2f} %"


# ---- near duplicates -------------------------------------------------------------------------------------------------


def _is_near(i: int, j: int, distance: Matrix, rounding: Sequence[float], median: float) -> bool:
    d, small, large = distance[i][j], *sorted((rounding[i], rounding[j]))
    if d <= NEAR * median:
        return True
    return d <= sqrt(small**2 + large**2) and (large > OTHER_TYPES * small or d <= STANDS_OUT * median)


def near_groups(answer: Mapping[str, Any]) -> list[list[int]]:
    """Groups of two and more in which every pair is near (a chain of small steps is none); of equal models the first."""
    distance = answer["distance"]
    distinct = sorted(set(firsts(distance)))
    median = _median(distinct, distance)
    found: list[list[int]] = []
    for i in distinct:
        for group in found:
            if all(_is_near(i, j, distance, answer["rounding"], median) for j in group):
                group.append(i)
                break
        else:
            found.append([i])
    return [group for group in found if len(group) > 1]


def _near_entry(group: Sequence[int], answer: Mapping[str, Any], median: float) -> dict[str, Any]:
    widest = max(answer["distance"][i][j] for i, j in combinations(group, 2))
    return {
        "models": [answer["models"][i] for i in group],
        "distance": widest,
        "relative": widest / median,
        "rounding": widest > NEAR * median,
    }


# ---- mixtures --------------------------------------------------------------------------------------------------------


def _mixtures(alone: Sequence[int], answer: Mapping[str, Any]) -> dict[int, _Mixture]:
    """Those of the models which are mixtures of the others; where it can be, of such as are no mixtures themselves."""
    first = {e: _mixture(e, [i for i in alone if i != e], answer) for e in alone}
    found = {e: mixture for e, mixture in first.items() if mixture is not None}
    pure = [i for i in alone if i not in found]
    return {e: _mixture(e, pure, answer) or mixture for e, mixture in found.items()}


def _mixture(e: int, parents: Sequence[int], answer: Mapping[str, Any]) -> _Mixture | None:
    """What e is a mixture of, if it is one of `parents`."""
    distance, rounding, affine = answer["distance"], answer["rounding"], answer["distance_to_others"][e]
    if len(parents) < 2:
        return None
    widest, noise = max(distance[e][i] for i in parents), max(rounding[i] for i in parents)
    if affine > max(LEFT_OVER * widest, sqrt(rounding[e] ** 2 + noise**2)):
        return None  # adding and subtracting does not come near; mixing even less
    inner = [[(distance[e][i] ** 2 + distance[e][j] ** 2 - distance[i][j] ** 2) / 2 for j in parents] for i in parents]
    weights = nearest_to_origin(inner)
    used = {i: weight for i, weight in zip(parents, weights) if weight >= SMALLEST_PART}
    square = sum(a * b * inner[i][j] for i, a in enumerate(weights) for j, b in enumerate(weights))
    scale = sqrt(sum(weight * distance[e][i] ** 2 for i, weight in zip(parents, weights)))
    mixture = _Mixture(used, sqrt(max(square, 0.0)), scale)
    good = mixture.left <= LEFT_OVER * scale or (
        mixture.left <= LEFT_OVER_ROUNDED * scale and _rounding_explains(e, mixture, rounding)
    )
    return mixture if good and len(used) > 1 else None


def _rounding_explains(e: int, mixture: _Mixture, rounding: Sequence[float]) -> bool:
    parts = sum((weight * rounding[i]) ** 2 for i, weight in mixture.weights.items())
    return mixture.left <= sqrt(rounding[e] ** 2 + parts)


def _mixture_entry(e: int, mixture: _Mixture, answer: Mapping[str, Any]) -> dict[str, Any]:
    parts = sorted(mixture.weights.items(), key=lambda part: -part[1])
    return {
        "model": answer["models"][e],
        "of": [{"model": answer["models"][i], "weight": weight} for i, weight in parts],
        "left": mixture.left / mixture.scale,
        "rounding": _rounding_explains(e, mixture, answer["rounding"]),
    }


def _is_dependent(e: int, answer: Mapping[str, Any], median: float) -> bool:
    """Does the affine hull of the others come as near to it as a mixture would have to?"""
    left, noise = answer["distance_to_others"][e], max(answer["rounding"])
    return left <= LEFT_OVER * median or (left <= LEFT_OVER_ROUNDED * median and left <= sqrt(3.0) * noise)


def nearest_to_origin(inner: Sequence[Sequence[float]]) -> list[float]:
    """Weights ≥ 0 with sum 1 for which ‖Σ w_i q_i‖ is least, from the inner products of the q.

    min ‖Σ w q‖² + (1 − Σ w)² over w ≥ 0, scaled to sum 1 afterwards: of the w that differ in length alone, with
    ‖Σ w q‖ = d at sum 1, the best gives d² / (1 + d²), which grows with d.  By the active sets of Lawson and Hanson.
    """
    count = len(inner)
    scale = sum(inner[i][i] for i in range(count)) / count or 1.0
    h = [[inner[i][j] / scale + 1.0 for j in range(count)] for i in range(count)]
    weights, active = [0.0] * count, []
    for _ in range(3 * count):
        slack = [1.0 - sum(h[i][j] * weights[j] for j in active) for i in range(count)]
        best = max((i for i in range(count) if i not in active), key=lambda i: slack[i], default=None)
        if best is None or slack[best] <= 1e-10:
            break
        active.append(best)
        while True:
            solved = _solve([[h[i][j] for j in active] for i in active], [1.0] * len(active))
            if min(solved) > 0:
                break
            step, leaving = min(
                (weights[i] / (weights[i] - value) if weights[i] > value else 0.0, i)
                for i, value in zip(active, solved)
                if value <= 0
            )
            for i, value in zip(active, solved):
                weights[i] += step * (value - weights[i])
            weights[leaving] = 0.0
            active.remove(leaving)
        for i, value in zip(active, solved):
            weights[i] = value
    total = sum(weights)
    return [weight / total for weight in weights]


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """A symmetric positive semidefinite system, a little regularised, by Gaussian elimination with row exchange."""
    count = len(right)
    rows = [row[:] + [value] for row, value in zip(matrix, right)]
    for i in range(count):
        rows[i][i] *= 1 + 1e-12
    for i in range(count):
        pivot = max(range(i, count), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, count):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, count + 1):
                rows[r][c] -= factor * rows[i][c]
    solved = [0.0] * count
    for i in reversed(range(count)):
        solved[i] = (rows[i][count] - sum(rows[i][c] * solved[c] for c in range(i + 1, count))) / rows[i][i]
    return solved
