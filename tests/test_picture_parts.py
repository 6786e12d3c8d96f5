"""What pictures are made with: places for names, files that are written whole, the theme."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import random

import pytest

from hypermerge_ext import Error
from hypermerge_ext.pictures import labels, output, theme
from hypermerge_ext.pictures.labels import Box

FRAME = Box(0.0, 0.0, 700.0, 600.0)


def check(points, sizes, placed, bounds=FRAME, dot=3.0):
    assert placed is not None and len(placed) == len(points)
    boxes = [label.box for label in placed]
    for (width, height), box in zip(sizes, boxes):
        assert box.x1 - box.x0 == pytest.approx(width) and box.y1 - box.y0 == pytest.approx(height)
        assert box.within(bounds)
        assert not any(box.meets(Box(x - dot, y - dot, x + dot, y + dot)) for x, y in points)
    assert not any(one.meets(other) for i, one in enumerate(boxes) for other in boxes[:i])
    for point, label in zip(points, placed):
        away = math.dist(label.box.nearest(point), point)
        assert label.leader is not None or away <= labels.LEADER_FROM
        if label.leader is not None:
            assert label.leader == (point, label.box.nearest(point))
        starts = {"left": label.box.x0 >= point[0], "right": label.box.x1 <= point[0], "center": True}
        assert starts[label.align]


def sizes_of(count, rng):
    return [(rng.uniform(20, 120), 10.0) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 8, 24, 64])
@pytest.mark.parametrize("shape", ["scattered", "clustered", "on a line", "slanted", "in one place", "in two places"])
def test_names_find_room(count, shape):
    rng = random.Random(count)
    points = {
        "scattered": lambda i: (rng.uniform(30, 670), rng.uniform(30, 570)),
        "clustered": lambda i: (200 + 300 * (i % 2) + rng.gauss(0, 25), 300 + rng.gauss(0, 25)),
        "on a line": lambda i: (40 + 620 * i / count, 300.0),
        "slanted": lambda i: (100 + 500 * i / count, 100 + 400 * i / count),
        "in one place": lambda i: (350.0, 300.0),
        "in two places": lambda i: (200.0 + 300 * (i % 2), 300.0),
    }[shape]
    places, sizes = [points(i) for i in range(count)], sizes_of(count, rng)
    check(places, sizes, labels.place(places, sizes, FRAME))


def test_names_at_corners_stay_inside():
    points = [(4.0, 4.0), (696.0, 4.0), (4.0, 596.0), (696.0, 596.0)]
    sizes = [(100.0, 12.0)] * 4
    check(points, sizes, labels.place(points, sizes, FRAME))


def test_a_lonely_name_stands_beside_its_point():
    (label,) = labels.place([(350.0, 300.0)], [(80.0, 10.0)], FRAME)
    assert label.leader is None and label.align == "left" and label.box.x0 == pytest.approx(350 + labels.NEAR)


def test_names_turn_away_from_the_centre_and_from_lines():
    left, right = labels.place([(200.0, 300.0), (500.0, 300.0)], [(60.0, 10.0)] * 2, FRAME)
    assert left.box.x1 < 200 and right.box.x0 > 500
    line = ((350.0, 300.0), (600.0, 300.0), 14.0)
    (label,) = labels.place([(350.0, 300.0)], [(80.0, 10.0)], FRAME, lines=[line])
    assert not labels.crosses_box(line[:2], label.box)


def test_names_without_room_are_told():
    assert labels.place([(50.0, 50.0)] * 9, [(60.0, 30.0)] * 9, Box(0.0, 0.0, 100.0, 100.0)) is None
    assert labels.place([], [], FRAME) == []


def test_placing_is_the_same_each_time():
    rng = random.Random(7)
    points = [(rng.uniform(200, 400), rng.uniform(200, 400)) for _ in range(30)]
    sizes = sizes_of(30, rng)
    assert labels.place(points, sizes, FRAME) == labels.place(points, sizes, FRAME)


@pytest.mark.parametrize("seed", range(200))
def test_crossings_are_those_of_many_points_on_the_way(seed):
    rng = random.Random(seed)
    start, end = ((rng.uniform(0, 10), rng.uniform(0, 10)) for _ in range(2))
    box = Box(3.0, 4.0, 7.0, 6.0)
    steps = [
        (start[0] + t / 2000 * (end[0] - start[0]), start[1] + t / 2000 * (end[1] - start[1])) for t in range(2001)
    ]
    inside = any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for x, y in steps)
    if inside:
        assert labels.crosses_box((start, end), box)
    else:  # a corner may be cut between two steps
        near = any(box.x0 - 0.01 < x < box.x1 + 0.01 and box.y0 - 0.01 < y < box.y1 + 0.01 for x, y in steps)
        assert near or not labels.crosses_box((start, end), box)


def test_segments_cross():
    assert labels.crosses(((0, 0), (2, 2)), ((0, 2), (2, 0)))
    assert not labels.crosses(((0, 0), (1, 1)), ((2, 2), (3, 0)))
    assert not labels.crosses(((0, 0), (2, 2)), ((0, 0), (2, 0))), "leaders of one point"


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_with_usual_rights(tmp_path):
    path = tmp_path / "picture.svg"
    output.write(path, b"one")
    mask = os.umask(0)
    os.umask(mask)
    assert path.read_bytes() == b"one" and path.stat().st_mode & 0o777 == 0o666 & ~mask
    output.write(path, b"two")
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == ["picture.svg"]


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "picture.svg").write_bytes(b"old")
    (tmp_path / "link.svg").symlink_to(tmp_path / "real" / "picture.svg")
    output.write(tmp_path / "link.svg", b"new")
    assert (tmp_path / "link.svg").is_symlink() and (tmp_path / "real" / "picture.svg").read_bytes() == b"new"
    assert os.listdir(tmp_path / "real") == ["picture.svg"]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "picture.svg"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(Error, match=r"picture\.svg: cannot be written: No space left on device"):
        output.write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["picture.svg"]


def test_leftovers_of_killed_writers_are_removed_and_those_at_work_are_not(tmp_path):
    stale, held, other = (
        tmp_path / f".{name}.hm-tmp-{rest}" for name, rest in (("p.svg", "7-0"), ("p.svg", "8-0"), ("q.svg", "7-0"))
    )
    for path in (stale, held, other):
        path.write_bytes(b"half")
    with open(held, "rb") as at_work:
        fcntl.flock(at_work, fcntl.LOCK_EX)
        output.write(tmp_path / "p.svg", b"new")
        assert sorted(os.listdir(tmp_path)) == sorted(["p.svg", held.name, other.name])
    output.write(tmp_path / "p.svg", b"newer")
    assert sorted(os.listdir(tmp_path)) == sorted(["p.svg", other.name])


def test_our_pictures_are_known_and_others_are_not(tmp_path):
    for suffix in theme.SUFFIXES:
        path = tmp_path / f"picture{suffix}"
        with theme.canvas((2, 1), theme.LIGHT) as figure:
            figure.text(0.1, 0.5, "hyper-merge 1")
            theme.save(figure, path)
            figure.savefig(tmp_path / f"other{suffix}")
            assert output.is_ours(path) and not output.is_ours(tmp_path / f"other{suffix}")
            theme.save(figure, path)
            with pytest.raises(Error, match="--force"):
                theme.save(figure, tmp_path / f"other{suffix}")
            theme.save(figure, tmp_path / f"other{suffix}", force=True)
        assert output.is_ours(tmp_path / f"other{suffix}")
    assert not output.is_ours(tmp_path / "nothing.svg") and not output.is_ours(tmp_path)


def test_targets_that_cannot_be(tmp_path):
    with pytest.raises(Error, match="does not exist"):
        output.check_target(tmp_path / "no" / "picture.svg")
    (tmp_path / "picture.svg").mkdir()
    with pytest.raises(Error, match="not a file"):
        output.check_target(tmp_path / "picture.svg", force=True)


def test_text_is_broken_at_blanks():
    with theme.canvas((2, 1), theme.LIGHT):
        text = "lengths are true to scale, as distances between weights"
        lines = theme.wrapped(text, 10, 120)
        assert len(lines) > 2 and " ".join(lines) == text
        assert all(theme.width_of(line, 10) <= 120 for line in lines)
        assert theme.width_of("λκ", 20) == pytest.approx(2 * theme.width_of("λκ", 10), rel=0.05)


def test_an_old_matplotlib_is_refused(monkeypatch):
    import matplotlib

    monkeypatch.setattr(matplotlib, "__version__", "3.5.3")
    with pytest.raises(Error, match=r"3\.6 or later, not 3\.5\.3"):
        theme.require()
