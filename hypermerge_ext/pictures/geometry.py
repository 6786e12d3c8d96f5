"""The map of a hyper-model as numbers: where its models lie on the plane of two directions, and how far off it.

Knows no library and no host: the drawing here and the pads in the hosts' windows show the same `map_document`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import Any, NamedTuple, Protocol, Union

from .._core import ArgumentError, FormatError
from ..axes import axis_names

FAR = 6.0
"""A base farther away than so many times the models' own spread is left off the map: it would press them into a dot."""
SLIM = 0.2
"""See `frame`."""
ITERATIONS = 300
"""Of the power method; a tie between leftover directions converges to nothing in particular, and needs not."""

Point = tuple[float, float]


class _Hyper(Protocol):
    @property
    def document(self) -> Mapping[str, Any]: ...


class _Member(Protocol):
    name: str
    multipliers: Sequence[float]
    residual: float
    norm: float


Hyper = Union[_Hyper, Mapping[str, Any]]
"""A HyperModel, or its metadata document."""


def axis_label(k: int) -> str:
    """What people call multiplier k, counted from 1."""
    return {1: "λ", 2: "κ"}.get(k, f"c{k}")


def map_document(
    hyper: Hyper, projected: Iterable[_Member | Mapping[str, Any]] = (), axes: Sequence[int] | None = None
) -> dict[str, Any]:
    """Everything that a map of `hyper` shows, ready for JSON.

    projected: models that were not merged, as `HyperModel.project` gives them.
    axes: one or two directions, counted from 1, to draw along; None: the first two, or the only one.

    Returns, with lengths as they are in weight space:
    "axes": [{"direction", "label", "name" (given by the user, or None), "explained", "norm" (‖D_k‖)}], one or two;
    "angle": degrees between the two, 90 but for hyper-LoRAs (None: one axis, or one without length);
    "points": [{"name", "merged", "at" (multipliers along the axes), "multipliers" (all K), "residual", "norm" (‖ΔW‖),
    "off" (how far the model itself is from its point), "error" (whereto: its coordinates along the two directions that
    hold most of what the map leaves out; None for projected models)}], members first;
    "hull": [indices of points, counter-clockwise]; "base": {"kind", "name", "shown" (near enough to be on the map)};
    "directions": K; "explained": [K]; "spectrum": [shares of all directions, as far as known];
    "blocks": [{"name", "component", "share" (of all variance), "explained": [K]}].
    Raises ArgumentError for axes that are not there, and where there are no directions.
    """
    document = hyper if isinstance(hyper, Mapping) else hyper.document
    chosen = _axes(axes, document["directions"])
    members = document["members"]
    weights = [member.get("weight", 1.0) for member in members]
    multipliers = [member["multipliers"] for member in members]
    lengths, left = _products(document, multipliers, weights, chosen)
    errors = _error_vectors(left)
    points = [_point(member, chosen, lengths, error) for member, error in zip(members, errors)]
    points += [_point(_entry(member), chosen, lengths, None) for member in projected]
    places = [_place(point["at"]) for point in points if point["merged"]]
    norms = [math.sqrt(max(lengths[k][k], 0.0)) for k in chosen]
    return {
        "axes": [_axis(document, k, norm) for k, norm in zip(chosen, norms)],
        "angle": _angle(lengths, chosen),
        "points": points,
        "hull": hull(places),
        "base": _base(document["base"], [(x * norms[0], y * norms[-1]) for x, y in places]),
        "directions": document["directions"],
        "explained": list(document["explained_variance_ratio"]),
        "spectrum": _spectrum(document),
        "blocks": _blocks(document, weights),
    }


def _axes(axes: Sequence[int] | None, directions: int) -> list[int]:
    """Indices, from 0."""
    if directions == 0:
        raise ArgumentError("there is no map: the hyper-model has no directions, all its models are equal to the base")
    if axes is None:
        return list(range(min(directions, 2)))
    if not 1 <= len(axes) <= 2 or len(set(axes)) < len(axes):
        raise ArgumentError("axes are one or two different directions, such as 1,3")
    for k in axes:
        if not 1 <= k <= directions:
            raise ArgumentError(f"axes: there is no direction {k}, only 1 … {directions}")
    return [k - 1 for k in axes]


def _angle(lengths: list[list[float]], chosen: list[int]) -> float | None:
    if len(chosen) < 2:
        return None
    j, k = chosen
    size = math.sqrt(max(lengths[j][j] * lengths[k][k], 0.0))
    return math.degrees(math.acos(min(max(lengths[j][k] / size, -1.0), 1.0))) if size > 0 else None


def _axis(document: Mapping[str, Any], k: int, norm: float) -> dict[str, Any]:
    return {
        "direction": k + 1,
        "label": axis_label(k + 1),
        "name": axis_names(document)[k],
        "explained": document["explained_variance_ratio"][k],
        "norm": norm,
    }


def _entry(member: _Member | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(member, Mapping):
        return member
    return {key: getattr(member, key) for key in ("name", "multipliers", "residual", "norm")}


def _point(
    entry: Mapping[str, Any], chosen: list[int], lengths: list[list[float]], error: Point | None
) -> dict[str, Any]:
    values = list(entry["multipliers"])
    others = [value if k not in chosen else 0.0 for k, value in enumerate(values)]
    # The residual is perpendicular to all directions, so what the undrawn ones hold comes on top of it.
    beside = sum(others[i] * others[j] * lengths[i][j] for i in range(len(others)) for j in range(len(others)))
    off = math.hypot(entry["residual"] * entry["norm"], math.sqrt(max(beside, 0.0)))
    return {
        "name": entry["name"],
        "merged": error is not None,
        "at": [values[k] for k in chosen],
        "multipliers": values,
        "residual": entry["residual"],
        "norm": entry["norm"],
        "off": off,
        "error": None if error is None else list(_within(error, off)),
    }


def _place(at: Sequence[float]) -> Point:
    return at[0], at[1] if len(at) > 1 else 0.0


def _within(vector: Point, most: float) -> Point:
    length = math.hypot(*vector)
    scale = most / length if length > most else 1.0
    return vector[0] * scale, vector[1] * scale


# ---- directions and what they leave out, from the Gram matrix -------------------------------------------------------


def _mixtures(multipliers: list[Sequence[float]], weights: list[float]) -> list[list[float]]:
    """a with D_k = Σ_m a_km ΔW_m: a_km = w_m c_mk / Σ_j w_j c_jk²."""
    rows = []
    for column in zip(*multipliers):
        weighted = list(map(mul, weights, column))
        square = sum(map(mul, weighted, column))
        rows.append([value / square if square > 0 else 0.0 for value in weighted])
    return rows


def _form(rows: list[list[float]], gram: list[list[float]]) -> list[list[float]]:
    """rows · gram · rowsᵀ."""
    half = [[sum(map(mul, row, line)) for line in gram] for row in rows]  # the Gram matrix is symmetric
    return [[sum(map(mul, one, other)) for other in rows] for one in half]


def _products(
    document: Mapping[str, Any], multipliers: list[Sequence[float]], weights: list[float], chosen: list[int]
) -> tuple[list[list[float]], list[list[float]]]:
    """⟨D_j, D_k⟩ of all directions, and ⟨R_m, R_n⟩ of what the chosen ones leave of the models, R_m = ΔW_m − Σ c_mk D_k.

    Directions are mixtures of the models, but for hyper-LoRAs.  Those bring ⟨D_j, D_k⟩ along, and since their multipliers
    are the best ones, ⟨ΔW_m, D_k⟩ = Σ_j ⟨D_k, D_j⟩ c_mj.
    """
    gram, lengths = document["gram"], document.get("direction_gram")
    count, directions = len(gram), document["directions"]
    drawn = [[row[k] for k in chosen] for row in multipliers]
    if lengths is None:
        mixtures = _mixtures(multipliers, weights)
        left = [
            [float(m == n) - sum(c * mixtures[k][n] for c, k in zip(drawn[m], chosen)) for n in range(count)]
            for m in range(count)
        ]
        return _form(mixtures, gram), _form(left, gram)
    if len(lengths) != directions or any(len(row) != directions for row in lengths):
        raise FormatError("the hyper-model's metadata is damaged: direction_gram is not K × K")
    along = [[sum(map(mul, lengths[k], row)) for k in chosen] for row in multipliers]
    inner = _form(drawn, [[lengths[j][k] for k in chosen] for j in chosen])
    rest = [
        [
            gram[m][n] - sum(map(mul, drawn[m], along[n])) - sum(map(mul, along[m], drawn[n])) + inner[m][n]
            for n in range(count)
        ]
        for m in range(count)
    ]
    return lengths, rest


def _error_vectors(left: list[list[float]]) -> list[Point]:
    """Of each model what the drawn directions leave out, along the two directions that hold most of that.

    left: the Gram matrix of what they leave.
    """
    count = len(left)
    vectors = leading(left, 2)
    columns = [[math.sqrt(value) * part for part in vector] for value, vector in vectors]
    columns += [[0.0] * count] * (2 - len(columns))
    return list(zip(columns[0], columns[1]))


def leading(matrix: list[list[float]], wanted: int) -> list[tuple[float, list[float]]]:
    """The largest eigenvalues of a symmetric positive matrix, descending, with unit eigenvectors, by the power method.

    The sign is that of the component of largest magnitude, made positive.  Fewer than `wanted` where the rank is less.
    """
    count = len(matrix)
    trace = sum(matrix[i][i] for i in range(count))
    found: list[tuple[float, list[float]]] = []
    for order in range(wanted):
        vector = [math.sin(1.0 + (order + 1) * (i + 1)) for i in range(count)]
        value = 0.0
        for _ in range(ITERATIONS):
            image = [sum(map(mul, row, vector)) for row in matrix]
            for _, known in found:
                along = sum(map(mul, known, image))
                image = [a - along * b for a, b in zip(image, known)]
            length = math.sqrt(sum(map(mul, image, image)))
            if not length > 1e-12 * trace:
                return found
            previous, value = value, length
            vector = [a / length for a in image]
            if abs(value - previous) <= 1e-13 * value:
                break
        pivot = max(vector, key=abs)
        found.append((value, [a if pivot > 0 else -a for a in vector]))
    return found


# ---- places ---------------------------------------------------------------------------------------------------------


def hull(places: Sequence[Point]) -> list[int]:
    """Indices of the corners of the convex hull, counter-clockwise; two of points on a line, one of a single place."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    distinct = [i for n, i in enumerate(order) if n == 0 or places[i] != places[order[n - 1]]]
    if len(distinct) < 3:
        return distinct

    def chain(indices: Iterable[int]) -> list[int]:
        kept: list[int] = []
        for i in indices:
            while len(kept) > 1 and _turn(places[kept[-2]], places[kept[-1]], places[i]) <= 0:
                kept.pop()
            kept.append(i)
        return kept[:-1]

    return chain(distinct) + chain(reversed(distinct))


def _turn(a: Point, b: Point, c: Point) -> float:
    """Positive where the way a → b → c turns left; nothing where rounding alone bends it."""
    first, second = (b[0] - a[0]) * (c[1] - a[1]), (b[1] - a[1]) * (c[0] - a[0])
    turn = first - second
    return turn if abs(turn) > 1e-12 * (abs(first) + abs(second)) else 0.0


class Frame(NamedTuple):
    """The part of the plane that a picture shows, in multipliers, and its scale."""

    x: Point
    y: Point
    scale: float
    """Length on paper per length in weight space, along an axis that is not stretched."""
    stretch: Point
    """How much longer each axis is drawn than true to scale: 1, but for one of a plane that would be a mere line."""


def frame(places: Sequence[Point], norms: Point, size: Point, margin: Point, slim: float = SLIM) -> Frame:
    """The window in which all places appear, in the middle and true to scale, of a box of `size` with `margin` around.

    norms: ‖D‖ along both axes; a length of 0 counts as that of the other axis.
    slim: an axis that would fill less than this part of what the other fills is stretched, by 2, 5, 10, 20 …
    """
    longest = max(norms) or 1.0
    units = [norm if norm > 1e-9 * longest else longest for norm in norms]
    spans = [(min(values), max(values)) for values in zip(*places)]
    room = [max(size[i] - 2 * margin[i], 1e-3 * size[i]) for i in (0, 1)]
    fills = [(span[1] - span[0]) * units[i] / room[i] for i, span in enumerate(spans)]
    stretch = [1.0, 1.0]
    if min(fills) > 1e-9 * max(fills):
        thin = fills.index(min(fills))
        wanted = slim * max(fills) / min(fills)
        stretch[thin] = _round_number(wanted) if wanted > 1 else 1.0
    fill = max(fill * factor for fill, factor in zip(fills, stretch))
    scale = 1 / fill if fill > 0 else min(size) / (2 * units[0])
    window = []
    for i, span in enumerate(spans):
        middle, half = sum(span) / 2, size[i] / scale / units[i] / stretch[i] / 2
        window.append((middle - half, middle + half))
    return Frame(window[0], window[1], scale, (stretch[0], stretch[1]))


def _round_number(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 …"""
    power = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value * (1 - 1e-9))


def halvings(largest: float, most: float) -> int:
    """How often a length must be halved until it is at most `most`."""
    return max(0, math.ceil(math.log2(largest / most) - 1e-9)) if largest > 0 else 0


def _base(base: Mapping[str, Any], places: list[Point]) -> dict[str, Any]:
    """places: of the merged models, in lengths of weight space, with the base at (0, 0)."""
    spans = [(min(values), max(values)) for values in zip(*places)]
    spread = math.hypot(*(high - low for low, high in spans)) / 2
    away = math.hypot(*((low + high) / 2 for low, high in spans))
    return {"kind": base["kind"], "name": base.get("name"), "shown": spread == 0 or away <= FAR * spread}


# ---- shares ---------------------------------------------------------------------------------------------------------


def _spectrum(document: Mapping[str, Any]) -> list[float]:
    """σ_k² / Σ σ² of all directions, those that were left out too, as far as the document tells."""
    shares = list(document["explained_variance_ratio"])
    total = document["total"]
    if document["method"] in ("exact", "als") and total > 0:  # else the directions are not those of the spectrum
        shares += [value / total for value in document.get("spectrum", ())[len(shares) :]]
    while len(shares) > document["directions"] and shares[-1] < 1e-9:
        shares.pop()
    return shares


def _blocks(document: Mapping[str, Any], weights: list[float]) -> list[dict[str, Any]]:
    sizes = {}
    for name, block in document["blocks"].items():
        gram = block.get("gram")
        trace = sum(weight * gram[m][m] for m, weight in enumerate(weights)) if gram else block.get("total", 0.0)
        sizes[name] = max(trace, 0.0)
    whole = sum(sizes.values()) or 1.0
    return [
        {
            "name": name,
            "component": block.get("component"),
            "share": sizes[name] / whole,
            "explained": list(block["explained"]),
        }
        for name, block in document["blocks"].items()
    ]
