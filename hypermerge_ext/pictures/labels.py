"""Names beside points: none covers another or a point, none leaves its frame, and the same picture comes out each time.

Every name tries places around its point, near ones first, then farther ones that a thin leader joins to the point.
The crowded choose first; then each in turn looks once more, now that all the others stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Point = tuple[float, float]
Segment = tuple[Point, Point]
Line = tuple[Point, Point, float]
"""A segment, and what it costs to cover it; a name one unit farther from its point costs 0.4."""

NEAR = 5.0
"""Clear distance of a name from the middle of its point; all lengths are in points of type (1/72 inch)."""
FARTHER = (10.0, 16.0, 24.0, 34.0, 46.0, 60.0, 78.0, 100.0, 126.0, 156.0, 192.0, 236.0, 290.0, 360.0, 450.0)
LEADER_FROM = 12.0
"""A name farther from its point than this gets a leader."""
ANGLES = 24
GAP = 1.5
"""Between names."""
PASSES = 6
FEW = 32
"""Up to so many names, more ways to place them are tried: the time that takes grows with the third power."""
LOOKS = 40
"""So many free places are weighed each time; where all are bad, looking on would take minutes."""

_LEADER, _CROSSING, _DOUBT = 8.0, 30.0, 3.0
"""Cost of being so far that a leader is needed, of a leader that crosses a name or another leader, and of each other point
that is nearly as near as the name's own (twice, if nearer)."""


class Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: Box, gap: float = 0.0) -> bool:
        return (
            self.x0 < other.x1 + gap
            and other.x0 < self.x1 + gap
            and self.y0 < other.y1 + gap
            and other.y0 < self.y1 + gap
        )

    def within(self, other: Box) -> bool:
        return self.x0 >= other.x0 and self.y0 >= other.y0 and self.x1 <= other.x1 and self.y1 <= other.y1

    def nearest(self, point: Point) -> Point:
        """The point of the box that is nearest to `point`."""
        return min(max(point[0], self.x0), self.x1), min(max(point[1], self.y0), self.y1)


class Label(NamedTuple):
    """Where a name stands."""

    box: Box
    align: str
    """"left", "right" or "center": how the text fills the box, so that its near end is next to its point."""
    leader: Segment | None
    """From the point to the box, where they are not neighbours."""


class _Choice(NamedTuple):
    cost: float
    box: Box
    leader: Segment | None


def place(
    points: Sequence[Point],
    sizes: Sequence[Point],
    bounds: Box,
    dot: float = 3.0,
    lines: Sequence[Line] = (),
    centre: Point | None = None,
) -> list[Label] | None:
    """Places a box of sizes[i] for each points[i] inside `bounds`, none meeting another or a dot; None without room.

    dot: radius of the points' marks.  lines: what names should rather not cover.  centre: names lie rather on the side
    of their point that is away from it; None: the middle of the points.
    """
    if not points:
        return []
    desk = _Desk(points, sizes, bounds, dot, lines, centre)
    attempts = [attempt for order in desk.orders() if (attempt := desk.attempt(order)) is not None]
    if not attempts:
        return None
    best = min(attempts, key=lambda attempt: sum(choice.cost for choice in attempt))
    return [_label(point, choice) for point, choice in zip(points, desk.untangled(best))]


def _label(point: Point, choice: _Choice) -> Label:
    box = choice.box
    align = "left" if box.x0 >= point[0] else "right" if box.x1 <= point[0] else "center"
    return Label(box, align, choice.leader)


class _Desk:
    """One placement being worked on; what never changes during it is computed once."""

    def __init__(
        self,
        points: Sequence[Point],
        sizes: Sequence[Point],
        bounds: Box,
        dot: float,
        lines: Sequence[Line],
        centre: Point | None,
    ) -> None:
        self.points, self.sizes, self.bounds, self.lines = points, sizes, bounds, lines
        self.places = sorted(set(points))
        self.dots = [Box(x - dot, y - dot, x + dot, y + dot) for x, y in self.places]
        middle = (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
        self.centre = middle if centre is None else centre
        self.offers = [_Offers(self, i) for i in range(len(points))]

    def orders(self) -> list[list[int]]:
        """In which order names may choose: the crowded first, the outermost first, along the axes; a few, both ways."""
        indices = range(len(self.points))

        def crowd(i: int) -> int:
            return sum(math.dist(self.points[i], other) < 60 for other in self.points)

        orders = [
            sorted(indices, key=lambda i: (-crowd(i), i)),
            sorted(indices, key=lambda i: (-math.dist(self.points[i], self.centre), i)),
            sorted(indices, key=lambda i: (self.points[i][1], i)),
            sorted(indices, key=lambda i: (self.points[i][0], i)),
        ]
        return orders + [order[::-1] for order in orders] if len(indices) <= FEW else orders[:3]

    def attempt(self, order: list[int]) -> list[_Choice] | None:
        """Every name in that order takes the best place left; then all look again until nobody moves."""
        placed: dict[int, _Choice] = {}
        for i in order:
            choice = self.best(i, placed)
            if choice is None:
                return None
            placed[i] = choice
        for _ in range(PASSES):
            moved = False
            for i in sorted(order, key=lambda i: (-placed[i].cost, i)):
                old = placed.pop(i)
                placed[i] = self.best(i, placed) or old
                moved = moved or placed[i].box != old.box
            if not moved:
                break
        return [placed[i] for i in range(len(order))]

    def best(self, i: int, placed: dict[int, _Choice]) -> _Choice | None:
        """The cheapest free place for name i among the others, or None."""
        found: _Choice | None = None
        others = list(placed.values())
        looks = 0
        for cost, box, _ in self.offers[i]:
            if found is not None and (cost >= found.cost or looks == LOOKS):
                break
            if any(box.meets(other.box, GAP) for other in others):
                continue
            looks += 1
            burden, leader = self.offers[i].weighed(box)
            cost += burden
            if found is None or cost < found.cost:
                most = math.inf if found is None else (found.cost - cost) / _CROSSING
                cost += _CROSSING * self.crossings(box, leader, others, most)
            if found is None or cost < found.cost:
                found = _Choice(cost, box, leader)
        return found

    @staticmethod
    def crossings(box: Box, leader: Segment | None, others: list[_Choice], most: float) -> int:
        """Leaders of others below this name, names and leaders of others below this leader; `most` are enough."""
        count = 0
        for other in others:
            if other.leader is not None:
                count += crosses_box(other.leader, box)
                count += leader is not None and crosses(leader, other.leader)
            count += leader is not None and crosses_box(leader, other.box)
            if count >= most:
                break
        return count

    def untangled(self, choices: list[_Choice]) -> list[_Choice]:
        """Two names whose leaders cross exchange their places, where both fit there and the leaders become shorter."""
        choices = list(choices)
        for i, one in enumerate(choices):
            for j in range(i):
                other = choices[j]
                if one.leader is None or other.leader is None or not crosses(one.leader, other.leader):
                    continue
                swapped = self.swapped(i, other.box), self.swapped(j, one.box)
                rest = [choice.box for k, choice in enumerate(choices) if k not in (i, j)]
                boxes = [choice.box for choice in swapped]
                free = all(self.is_free(box) and not any(box.meets(r, GAP) for r in rest) for box in boxes)
                if free and not boxes[0].meets(boxes[1], GAP) and _length(*swapped) < _length(one, other):
                    one, choices[i], choices[j] = swapped[0], *swapped
        return choices

    def swapped(self, i: int, box: Box) -> _Choice:
        """Name i in the middle of `box`."""
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        width, height = self.sizes[i]
        moved = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return _Choice(0.0, moved, (self.points[i], moved.nearest(self.points[i])))

    def is_free(self, box: Box) -> bool:
        """Inside the frame, and on no point?"""
        return box.within(self.bounds) and not any(box.meets(dot) for dot in self.dots)


class _Offers:
    """The places that one name may take, the cheapest first."""

    def __init__(self, desk: _Desk, i: int) -> None:
        self.desk = desk
        self.point, self.size = desk.points[i], desk.sizes[i]
        self.burdens: dict[Box, tuple[float, Segment | None]] = {}
        around = (choice for reach in (NEAR, *FARTHER) for choice in self.ring(reach))
        self.around = sorted(around, key=lambda choice: choice.cost)
        self.elsewhere: list[_Choice] | None = None

    def __iter__(self) -> Iterator[_Choice]:
        """Around the point; at last anywhere, since crowded pictures too shall have all their names."""
        yield from self.around
        if self.elsewhere is None:
            self.elsewhere = sorted(self.anywhere(), key=lambda choice: choice.cost)
        yield from self.elsewhere

    def ring(self, reach: float) -> Iterator[_Choice]:
        (x, y), (width, height) = self.point, self.size
        out = (x - self.desk.centre[0], y - self.desk.centre[1])
        length = math.hypot(*out)
        for step in range(ANGLES):
            angle = 2 * math.pi * step / ANGLES
            ux, uy = math.cos(angle), math.sin(angle)
            # At the sides the box is centred on the direction, at the corners its corner lies on it.
            cx = x + ux * reach + max(-1.0, min(1.0, 1.6 * ux)) * width / 2
            cy = y + uy * reach + max(-1.0, min(1.0, 1.6 * uy)) * height / 2
            outward = (ux * out[0] + uy * out[1]) / length if length > 0 else 0.0
            slant = 0.0 if abs(uy) < 1e-9 else 1.0 if abs(ux) > 1e-9 else 0.6
            taste = slant + 2.0 * (1 - outward) + (0.3 if ux < 0 else 0.0)
            yield from self.offer(cx, cy, taste)

    def anywhere(self) -> Iterator[_Choice]:
        bounds, (width, height) = self.desk.bounds, self.size
        columns = max(1, int(2 * (bounds.x1 - bounds.x0) / width))
        rows = max(1, int(2 * (bounds.y1 - bounds.y0) / height))
        for column in range(columns):
            for row in range(rows):
                cx = bounds.x0 + width / 2 + column * width / 2
                cy = bounds.y0 + height / 2 + row * height / 2
                yield from self.offer(cx, cy, _CROSSING)

    def offer(self, cx: float, cy: float, taste: float) -> Iterator[_Choice]:
        """The box around (cx, cy), if it may stand there; `taste` is its cost beside that of its distance."""
        width, height = self.size
        box = Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        if not self.desk.is_free(box):
            return
        away = math.dist(box.nearest(self.point), self.point)
        yield _Choice(taste + 0.4 * (away - NEAR) + (_LEADER if away > LEADER_FROM else 0.0), box, None)

    def weighed(self, box: Box) -> tuple[float, Segment | None]:
        """What a name that stands there costs more, for lines below it and points that it may be taken to belong to; and
        its leader, which it has where it is far from its point or others are as near."""
        if box not in self.burdens:
            end = box.nearest(self.point)
            away = math.dist(end, self.point)
            doubt = self.doubt(box, away)
            lines = sum(cost for start, stop, cost in self.desk.lines if crosses_box((start, stop), box))
            leader = (self.point, end) if away > LEADER_FROM or (doubt and away > NEAR + 1) else None
            self.burdens[box] = lines + _DOUBT * doubt, leader
        return self.burdens[box]

    def doubt(self, box: Box, away: float) -> int:
        """How many other points are as near to the box as its own, which is `away`; a nearer one counts twice."""
        x0, y0, x1, y1 = box
        near, nearly, count = away * away, (away + NEAR / 2) ** 2, 0
        for x, y in self.desk.places:  # in plain numbers, since this is asked some million times for 64 names
            across = x0 - x if x < x0 else x - x1 if x > x1 else 0.0
            up = y0 - y if y < y0 else y - y1 if y > y1 else 0.0
            square = across * across + up * up
            if square < nearly and (x, y) != self.point:
                count += 2 if square < near else 1
        return count


def _length(*choices: _Choice) -> float:
    return sum(math.dist(*choice.leader) for choice in choices if choice.leader is not None)


def crosses(one: Segment, other: Segment) -> bool:
    """Do two segments cross, other than at a common end?"""
    (a, b), (c, d) = one, other
    if {a, b} & {c, d}:
        return False

    def side(p: Point, q: Point, r: Point) -> bool:
        return (q[0] - p[0]) * (r[1] - p[1]) > (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)


def crosses_box(segment: Segment, box: Box) -> bool:
    """Does a part of the segment lie inside the box?"""
    (x, y), (u, v) = segment
    x0, y0, x1, y1 = box
    if (x <= x0 and u <= x0) or (x >= x1 and u >= x1) or (y <= y0 and v <= y0) or (y >= y1 and v >= y1):
        return False  # as nearly always, so it is asked first
    u, v = u - x, v - y
    enter, leave = 0.0, 1.0
    for start, step, low, high in ((x, u, x0, x1), (y, v, y0, y1)):
        if step == 0:
            if not low < start < high:
                return False
            continue
        first, last = sorted(((low - start) / step, (high - start) / step))
        enter, leave = max(enter, first), min(leave, last)
    return enter < leave
