"""Multipliers as people write them, and the ways through their plane."""

from __future__ import annotations

import math

import pytest

from comfyui import pack

points = pack.part("logic.points")


def test_multipliers():
    assert points.at(2, 0.4, -0.2) == [0.4, -0.2]
    assert points.at(4, 0.4, -0.2, "0.1") == [0.4, -0.2, 0.1, 0.0]
    assert points.at(4, 0, 0, " 1e-1;-2 ") == [0, 0, 0.1, -2.0]
    assert points.at(1, 0.4, 0.0, "0") == [0.4]
    with pytest.raises(ValueError, match="has 1 direction, so κ must stay 0"):
        points.at(1, 0.4, 0.1)
    with pytest.raises(ValueError, match="has 2 directions, so number 4 must stay 0"):
        points.at(2, 0, 0, "0, 0.5")
    for text in ("a", "0.1, nan", "inf"):
        with pytest.raises(ValueError, match="further: '"):
            points.at(4, 0, 0, text)


@pytest.mark.parametrize(
    "lam, kap, said", [(math.nan, 0, "λ: nan"), (0, math.inf, "κ: inf"), (-math.inf, 0, "λ: -inf")]
)
def test_what_is_no_number_never_reaches_weights(lam, kap, said):
    """ComfyUI's own limits let NaN through, and do not look at what comes in by a link."""
    with pytest.raises(ValueError, match=f"{said} is not a finite number"):
        points.at(2, lam, kap)
    with pytest.raises(ValueError, match="strength_clip: nan"):
        points.finite(math.nan, "strength_clip")
    assert points.finite(2, "strength_clip") == 2.0


def test_blocks():
    text = "\n# the outer ones\n*.input_blocks.* = 0, 0.5   # softly\n model[0-9]=x.* = 1\n"
    with pytest.raises(ValueError):
        points.blocks("*.a = b", 2)
    assert points.blocks(text, 2) == [("*.input_blocks.*", [0.0, 0.5]), ("model[0-9]=x.*", [1.0, 0.0])]
    assert points.blocks(None, 2) == points.blocks(" \n", 2) == []
    for text, said in (
        ("*.a", "line 1: '.*' is not of the form GLOB"),
        ("\n= 1", "line 2"),
        ("*.a = 1, 2, 3", "line 1: 3 multipliers for 2 directions"),
    ):
        with pytest.raises(ValueError, match=said):
            points.blocks(text, 2)


def test_labels():
    assert points.label([0.5, -1.0]) == "λ 0.5  κ -1"
    assert points.label([-0.0004, 1 / 3, 2]) == "λ 0  κ 0.333  c3 2"


def test_a_grid_reads_like_a_map():
    assert points.grid(-1, 1, -1, 1, 3, 2) == [(-1, 1), (0, 1), (1, 1), (-1, -1), (0, -1), (1, -1)]
    assert points.grid(-1, 3, 0, 1, 1, 1) == [(1, 0.5)]


MODELS = {"a": (1.0, 0.0), "b c": (0.0, 1.0, 0.3), "one": (0.5,)}


def test_corners():
    assert points.corners("", MODELS) == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0)]
    assert points.corners("b c\n\n -1, 2\n 0.5 \na", MODELS) == [(0.0, 1.0), (-1.0, 2.0), (0.5, 0.0), (1.0, 0.0)]
    with pytest.raises(ValueError, match="points, line 2: 'd' is neither λ, κ nor one of the models a, b c, one"):
        points.corners("a\nd", MODELS)
    with pytest.raises(ValueError, match="line 1: '1 2 3' is not a point"):
        points.corners("1 2 3", MODELS)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("frames", [2, 7, 16])
def test_a_path_is_walked_at_one_speed(closed, frames):
    corners = [(0.0, 0.0), (3.0, 0.0), (3.0, 0.0), (3.0, 4.0)]
    found = points.path(corners, frames, closed)
    length = 12.0 if closed else 7.0
    assert len(found) == frames and found[0] == (0.0, 0.0)
    if not closed:
        assert found[-1] == pytest.approx((3.0, 4.0))
    along = [_along(point) for point in found]
    step = length / (frames if closed else frames - 1)
    assert along == pytest.approx([step * i for i in range(frames)])


def _along(point):
    """How far a point lies along (0,0) → (3,0) → (3,4) → (0,0)."""
    x, y = point
    if y == 0:
        return x
    return 3 + y if x == pytest.approx(3) else 7 + math.dist(point, (3, 4))


def test_paths_that_go_nowhere():
    assert points.path([(1.0, 2.0)], 3, True) == [(1.0, 2.0)] * 3
    assert points.path([(1.0, 2.0), (1.0, 2.0)], 2, False) == [(1.0, 2.0)] * 2
    assert points.path([(0.0, 0.0), (1.0, 1.0)], 1, False) == [(0.0, 0.0)]


def test_a_schedule():
    assert points.schedule([0, 1], [1, -1], 0.2, 0.6, 3) == [
        (pytest.approx(0.2), [0, 1]),
        (pytest.approx(0.4), [0.5, 0]),
        (pytest.approx(0.6), [1, -1]),
    ]
    with pytest.raises(ValueError, match="start_percent 0.5 must be smaller than end_percent 0.5"):
        points.schedule([0], [1], 0.5, 0.5, 2)
