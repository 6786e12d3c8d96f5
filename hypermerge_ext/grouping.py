"""Which models belong together: average linkage on a matrix of distances, an order that shows it, and groups.

Plain Python: with at most 64 models a few hundred thousand steps are all it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Matrix = Sequence[Sequence[float]]

SILHOUETTE = 0.25
"""Mean silhouette from which groups are believed.  The silhouette of a model is 1 − (mean distance to its own group) /
(mean distance to the nearest other group): 0.25 says that a group is at most three quarters as wide as the gap around it.
Models that were trained independently of each other lie equally far apart, which gives about 0."""

MISPLACED = 0.1
"""Below this a single model might as well belong to another group."""
GOOD_ENOUGH = 0.9
"""Of the best mean silhouette: a few groups that are nearly as clear say more than many small ones."""


class Join(NamedTuple):
    """Two clusters become one.  Clusters 0 … M − 1 are the models, M + j is what join j made."""

    left: int
    right: int
    height: float
    """Mean distance between a model of one and a model of the other."""


def average_linkage(distance: Matrix) -> list[Join]:
    """The M − 1 joins of M models, nearest clusters first; heights never fall.  Ties go to the first pair."""
    count = len(distance)
    between = {i: {j: distance[i][j] for j in range(count) if j != i} for i in range(count)}
    sizes = [1] * count
    joins: list[Join] = []
    while len(between) > 1:
        height, left, right = min((value, i, j) for i, row in between.items() for j, value in row.items() if i < j)
        first, second = between.pop(left), between.pop(right)
        new, size = count + len(joins), sizes[left] + sizes[right]
        row = {k: (sizes[left] * first[k] + sizes[right] * second[k]) / size for k in between}
        for k, value in row.items():
            del between[k][left], between[k][right]
            between[k][new] = value
        between[new] = row
        sizes.append(size)
        joins.append(Join(left, right, height))
    return joins


def order(joins: Sequence[Join], distance: Matrix) -> list[int]:
    """The models so that every cluster stands together; at each join the two ends that meet are the nearest that can.
    Else as they were given."""
    rows: list[list[int]] = [[i] for i in range(len(joins) + 1)]
    for join in joins:
        left, right = rows[join.left], rows[join.right]
        ways = [
            (distance[a[-1]][b[0]], a + b)
            for one, other in ((left, right), (right, left))
            for a in (one, one[::-1])
            for b in (other, other[::-1])
        ]
        rows.append(min(ways)[1])
    return rows[-1] if distance else []


def clusters(joins: Sequence[Join], count: int) -> list[list[int]]:
    """The partition of the models into `count` clusters, by undoing the last joins."""
    members: dict[int, list[int]] = {i: [i] for i in range(len(joins) + 1)}
    for j, join in enumerate(joins[: len(joins) + 1 - count]):
        members[len(joins) + 1 + j] = members.pop(join.left) + members.pop(join.right)
    return sorted(sorted(cluster) for cluster in members.values())


def silhouettes(partition: Sequence[Sequence[int]], distance: Matrix) -> list[float]:
    """Of every model that is not alone in its cluster; negative where it lies nearer to another one."""
    found = []
    for own in partition:
        for i in own if len(own) > 1 else ():
            inner = sum(distance[i][j] for j in own) / (len(own) - 1)
            outer = min(sum(distance[i][j] for j in other) / len(other) for other in partition if other is not own)
            found.append((outer - inner) / max(inner, outer) if max(inner, outer) > 0 else 0.0)
    return found


def groups(joins: Sequence[Join], distance: Matrix) -> list[list[int]]:
    """The partition that the distances speak for most clearly; [] where they speak for none.

    Considered are the cuts through the tree in which every model clearly belongs to its own group and the mean
    silhouette (a model that is alone counts 0) reaches SILHOUETTE; of these that with the fewest groups near the best.
    """
    found: list[tuple[float, list[list[int]]]] = []
    for count in range(2, len(distance)):
        partition = clusters(joins, count)
        values = silhouettes(partition, distance)
        mean = sum(values) / len(distance)
        if min(values) >= MISPLACED and mean >= SILHOUETTE:
            found.append((mean, partition))
    best = max((mean for mean, _ in found), default=0.0)
    return next((partition for mean, partition in found if mean >= GOOD_ENOUGH * best), [])
