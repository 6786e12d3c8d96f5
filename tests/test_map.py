"""The map: its numbers against NumPy on the models themselves, and what the drawn picture holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import partial

import numpy as np
import pytest
from PIL import Image

import families
import hypermerge_ext as hm
from hypermerge_ext import cli
from hypermerge_ext.pictures import blocks, geometry, layout, map, theme

SVG = "{http://www.w3.org/2000/svg}"


def flat(model):
    return np.concatenate([model[name].f64().ravel() for name in families.SHAPES])


def arrays(model):
    return {name: np.asarray(model[name].f64(), np.float32) for name in model}


def solved(count, directions, **options):
    """(hyper-model, the M differences from its base as rows) of a family in f32."""
    models = families.family(count)
    hyper = hm.solve([arrays(model) for model in models], directions=directions, **options)
    weights = np.array(options.get("weights") or [1.0] * count)
    rows = np.array([flat(model) for model in models])
    return hyper, rows - weights @ rows / weights.sum()


def document(count=8, directions=2, seed=0, names=None, far=0.0, equal=0, noise=0.5, scales=(1.0, 0.7, 0.4)):
    """A metadata document made up from random differences; `equal` models are copies of the first ones."""
    rng = np.random.default_rng([seed, count])
    rows = rng.standard_normal((count, 3)) * scales @ rng.standard_normal((3, 300))
    rows += noise * rng.standard_normal((count, 300))
    rows[count - equal :] = rows[:equal]
    rows -= rows.mean(axis=0)
    rows += far * rng.standard_normal(300)
    gram = rows @ rows.T
    values, vectors = (part[..., ::-1] for part in np.linalg.eigh(gram))
    values = np.maximum(values, 0)
    pivots = [vectors[np.argmax(abs(vectors[:, k])), k] for k in range(directions)]
    multipliers = vectors[:, :directions] / pivots
    rest = (values * vectors**2)[:, directions:].sum(axis=1)
    norms = np.sqrt(np.diag(gram))
    names = names or [f"model-{i}" for i in range(count)]
    return {
        "version": 1,
        "method": "exact",
        "base": {"kind": "none" if far else "mean"},
        "directions": directions,
        "members": [
            {"name": names[m], "multipliers": multipliers[m].tolist(), "residual": (rest[m] ** 0.5 / norms[m]).item(), "norm": norms[m].item()}
            for m in range(count)
        ],
        "explained_variance_ratio": (values[:directions] / values.sum()).tolist(),
        "spectrum": values.tolist(),
        "total": values.sum().item(),
        "blocks": {"middle_block": {"component": "unet", "total": values.sum().item(), "explained": (values[:directions] / values.sum()).tolist()}},
        "gram": gram.tolist(),
    }  # fmt: skip


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [None, (1, 3), (2, 1), (3,)])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 1.0, 3.0, 1.0]])
def test_every_length_is_that_of_the_weights(axes, weights):
    hyper, rows = solved(6, 3, weights=weights)
    found = geometry.map_document(hyper, axes=axes)
    chosen = [k - 1 for k in axes or (1, 2)]
    multipliers = np.array([member.multipliers for member in hyper.members])
    directions = np.linalg.lstsq(multipliers * 1.0, rows, rcond=None)[0]
    if weights:  # least squares with weights has the directions of the weighted solution
        root = np.sqrt(weights)[:, None]
        directions = np.linalg.lstsq(root * multipliers, root * rows, rcond=None)[0]
    assert [axis["direction"] for axis in found["axes"]] == [k + 1 for k in chosen]
    assert [axis["norm"] for axis in found["axes"]] == pytest.approx(
        np.linalg.norm(directions[chosen], axis=1), rel=1e-5
    )
    left = rows - multipliers[:, chosen] @ directions[chosen]
    points = found["points"]
    assert [point["at"] for point in points] == multipliers[:, chosen].tolist()
    assert [point["off"] for point in points] == pytest.approx(np.linalg.norm(left, axis=1), rel=1e-4)
    # The arrows are the leftovers along their own two leading directions: the best that two coordinates can tell.
    arrows = np.array([point["error"] for point in points])
    values, vectors = (part[..., ::-1] for part in np.linalg.eigh(left @ left.T))
    best = (vectors[:, :2] * values[:2]) @ vectors[:, :2].T
    assert arrows @ arrows.T == pytest.approx(best, abs=1e-5 * values[0])
    assert all(np.hypot(*point["error"]) <= point["off"] * (1 + 1e-9) for point in points)


def test_the_document_is_json_and_says_what_the_hyper_model_says():
    hyper, _ = solved(5, 2)
    found = geometry.map_document(hyper)
    assert json.loads(json.dumps(found)) == found == geometry.map_document(hyper.document)
    assert [point["name"] for point in found["points"]] == [member.name for member in hyper.members]
    assert [point["off"] for point in found["points"]] == pytest.approx([m.residual * m.norm for m in hyper.members])
    assert [axis["label"] for axis in found["axes"]] == ["λ", "κ"]
    assert sum(found["spectrum"]) == pytest.approx(1) and found["spectrum"][:2] == pytest.approx(found["explained"])
    assert sum(block["share"] for block in found["blocks"]) == pytest.approx(1)
    assert {block["name"] for block in found["blocks"]} == set(families.BLOCKS.values())


def test_shares_of_blocks_are_those_of_the_models():
    hyper, rows = solved(6, 2)
    found = geometry.map_document(hyper)
    cuts = np.cumsum([max(1, int(np.prod(shape))) for shape in families.SHAPES.values()])
    parts = dict(zip(families.SHAPES, np.split(rows, cuts[:-1], axis=1)))
    basis = np.linalg.svd(rows, full_matrices=False)[0][:, :2]
    for block in found["blocks"]:
        own = np.hstack([part for name, part in parts.items() if families.BLOCKS[name] == block["name"]])
        assert block["share"] == pytest.approx((own**2).sum() / (rows**2).sum(), rel=1e-4)
        explained = ((basis.T @ own) ** 2).sum(axis=1) / (own**2).sum()
        assert block["explained"] == pytest.approx(explained, rel=1e-3, abs=1e-6)


def test_a_projected_model_is_where_project_says():
    hyper, _ = solved(5, 3)
    newcomer = hyper.project(arrays(families.family(1, seed=9)[0]), name="new")
    point = geometry.map_document(hyper, [newcomer])["points"][-1]
    assert point["name"] == "new" and not point["merged"] and point["error"] is None
    assert point["at"] == list(newcomer.multipliers[:2]) and point["multipliers"] == list(newcomer.multipliers)
    third = newcomer.multipliers[2] * geometry.map_document(hyper, axes=(3,))["axes"][0]["norm"]
    assert point["off"] == pytest.approx(np.hypot(newcomer.residual * newcomer.norm, third))
    assert geometry.map_document(hyper, [newcomer._asdict()])["points"][-1] == point


def test_a_base_far_away_is_left_off():
    near, far = (geometry.map_document(document(far=far)) for far in (0.05, 50.0))
    assert near["base"]["shown"] and not far["base"]["shown"]


def test_axes_have_their_names():
    given = {**document(), "axes": [{"name": "warmth"}, {"name": None}]}
    assert [axis["name"] for axis in geometry.map_document(given)["axes"]] == ["warmth", None]


@pytest.mark.parametrize(
    ("axes", "message"),
    [((3,), "no direction 3"), ((1, 1), "different"), ((1, 2, 1), "one or two"), ((), "one or two")],
)
def test_axes_that_are_not_there_are_refused(axes, message):
    with pytest.raises(hm.ArgumentError, match=message):
        geometry.map_document(document(), axes=axes)


def test_equal_models_have_no_map():
    model = arrays(families.family(1)[0])
    with pytest.raises(hm.ArgumentError, match="no directions"):
        geometry.map_document(hm.solve([model, model]))


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_leading_eigenvectors_are_those_of_numpy(count):
    rows = np.random.default_rng(count).standard_normal((count, 3)) * (3.0, 1.0, 0.3)
    gram = rows @ rows.T
    found = geometry.leading(gram.tolist(), 2)
    values = np.linalg.eigvalsh(gram)[::-1]
    assert len(found) == min(count, 2)
    for (value, vector), expected in zip(found, values):
        assert value == pytest.approx(expected, rel=1e-9)
        assert gram @ vector == pytest.approx(value * np.array(vector), rel=1e-5, abs=1e-6 * values[0])
        assert max(vector, key=abs) > 0
    assert geometry.leading([[0.0, 0.0], [0.0, 0.0]], 2) == []


# ---- places on paper ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_hull_holds_all_points(seed):
    rng = np.random.default_rng(seed)
    places = [tuple(place) for place in rng.integers(-4, 5, (rng.integers(3, 30), 2)).astype(float)]
    places += places[:2]
    corners = [places[i] for i in geometry.hull(places)]
    assert len(set(corners)) == len(corners)
    for a, b in zip(corners, corners[1:] + corners[:1]):
        sides = [(b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for x, y in places]
        assert min(sides) >= 0 and (len(corners) < 3 or max(sides) > 0)
        assert sum(side == 0 for side, place in zip(sides, places) if place in corners) == sum(
            place in (a, b) for place in places
        )


def test_hulls_without_an_inside():
    assert geometry.hull([(1.0, 2.0)]) == [0] and geometry.hull([(1.0, 2.0)] * 3) in ([0], [1], [2])
    line = [(t, 0.1 * t + 0.7) for t in (0.3, 0.1, 0.9, 0.5)]
    assert geometry.hull(line) == [1, 2]


@pytest.mark.parametrize("seed", range(10))
def test_the_window_is_true_to_scale(seed):
    rng = np.random.default_rng(seed)
    places = [tuple(place) for place in rng.uniform(-1, 1, (6, 2))]
    norms, size, margin = tuple(rng.uniform(0.7, 1.5, 2)), (500.0, 400.0), (60.0, 40.0)
    frame = geometry.frame(places, norms, size, margin)
    assert frame.stretch == (1, 1)
    for axis, limits in enumerate((frame.x, frame.y)):
        unit = size[axis] / (limits[1] - limits[0])
        assert unit / norms[axis] == pytest.approx(frame.scale)
        on_paper = [(place[axis] - limits[0]) * unit for place in places]
        assert min(on_paper) >= margin[axis] - 1e-9 and max(on_paper) <= size[axis] - margin[axis] + 1e-9


def test_a_plane_that_would_be_a_line_is_stretched_by_a_round_number():
    places = [(-1.0, -1.0), (1.0, 1.0)]
    frames = [geometry.frame(places, norms, (500.0, 500.0), (50.0, 50.0)) for norms in ((1.0, 0.01), (0.01, 1.0))]
    assert [frame.stretch for frame in frames] == [(1, 20), (20, 1)]
    assert frames[0].y[1] - frames[0].y[0] == pytest.approx(500 / (frames[0].scale * 0.01 * 20))


@pytest.mark.parametrize("places", [[(0.2, 0.3)], [(0.0, 1.0), (2.0, 1.0)], [(1.0, -1.0), (1.0, 5.0)]])
def test_windows_of_degenerate_places_hold_them(places):
    frame = geometry.frame(places, (1.0, 0.0), (500.0, 400.0), (50.0, 50.0))
    for x, y in places:
        assert frame.x[0] < x < frame.x[1] and frame.y[0] < y < frame.y[1]


def test_blocks_share_rows_without_changing_their_sums():
    names = (
        [f"double_blocks.{i}" for i in range(19)]
        + [f"single_blocks.{i}" for i in range(38)]
        + ["final_layer", "img_in"]
    )
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(len(names)))
    given = [{"name": n, "share": s, "explained": list(rng.random(2))} for n, s in zip(names, shares)]
    whole = np.array([block["explained"] for block in given]).T @ shares
    for most in (100, 24, 12, 3):
        rows = blocks.rows(given, most)
        assert len(rows) <= most and sum(row["share"] for row in rows) == pytest.approx(1)
        assert np.array([row["explained"] for row in rows]).T @ [row["share"] for row in rows] == pytest.approx(whole)
    assert [row["name"] for row in blocks.rows(given, 100)] == names
    assert blocks.rows(given, 24)[0]["name"] == "double_blocks.0–2"
    assert blocks.rows(given, 3)[-1]["name"].endswith("others")


@pytest.mark.parametrize(
    ("share", "text"), [(0.54321, "54 %"), (0.031, "3.1 %"), (0.0001, "< 0.1 %"), (0.0, "0 %"), (0.99999, "100 %")]
)
def test_shares_are_written_for_people(share, text):
    assert blocks.percent(share) == text


# ---- the picture ----------------------------------------------------------------------------------------------------


def svg_of(found, folder, **options):
    path = folder / "map.svg"
    map.draw(found, path, force=True, **options)
    return ET.fromstring(path.read_bytes())


def texts(root):
    return ["".join(element.itertext()).strip() for element in root.iter(SVG + "text")]


def groups(root, kind):
    return [e for e in root.iter(SVG + "g") if re.fullmatch(kind + r"-\d+", e.get("id", ""))]


LONG = ["Some Model - Realistic Vision RC1 VAE", "a$b$c <&> \"d\"", "模型混合 v2", "x" * 300, "tab\there\x1b[31m"]  # fmt: skip


@pytest.mark.parametrize(("count", "directions"), [(2, 1), (3, 2), (8, 2), (8, 1), (24, 4)])
def test_the_picture_names_every_model_once(count, directions, tmp_path):
    names = (LONG + [f"model {i}" for i in range(count)])[:count]
    found = geometry.map_document(document(count, directions, names=names))
    root = svg_of(found, tmp_path)
    written = texts(root)
    for name in names:
        assert written.count(layout.shown(name)) == 1
    assert len(groups(root, "point")) == count
    assert all(
        point.find(SVG + "title").text.startswith(layout.shown(n)) for point, n in zip(groups(root, "point"), names)
    )
    assert len(groups(root, "direction")) == len(found["axes"]) and written.count("mean") == 1
    assert any(text.startswith("λ · ") and "of the differences" in text for text in written)
    off = sum(point["off"] > 0.05 for point in found["points"])
    assert len(groups(root, "ring" if directions > 1 else "error")) == off


def test_names_of_axes_and_projected_models_are_on_the_picture(tmp_path):
    given = {**document(), "axes": [{"name": "warmth"}, {"name": "détail <1>"}]}
    newcomer = hm.Member("stranger", (0.3, -2.5), 0.8, None, 12.0)
    root = svg_of(geometry.map_document(given, [newcomer]), tmp_path, title="a & b")
    written = texts(root)
    assert any(text.startswith("λ (warmth) · ") for text in written) and any(
        "κ (détail <1>)" in text for text in written
    )
    assert "stranger" in written and "projected, not merged" in written and "a & b" in written
    colours = [point.find(f".//{SVG}use").get("style") for point in groups(root, "point")]
    assert len(set(colours[:-1])) == 1 and colours[-1] not in colours[:-1] and theme.LIGHT.stranger in colours[-1]


@pytest.mark.parametrize("name", ["W" * 64, "模型" * 32, "warmth"])
def test_names_of_axes_stay_on_the_paper(name, tmp_path):
    """34 wide letters along the axis of κ are longer than the paper is high."""
    given = {**document(), "axes": [{"name": name}, {"name": name}]}
    map.draw(geometry.map_document(given), tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    ground = pixels[0, 0]
    for edge in (pixels[:12], pixels[-12:], pixels[:, :12], pixels[:, -12:]):
        assert (edge == ground).all()
    written = texts(svg_of(geometry.map_document(given), tmp_path))
    for letter in "λκ":
        assert any(re.match(rf"{letter} \({name[:2]}.*\) · .* of the differences", text) for text in written)


def test_long_names_of_blocks_leave_room_for_bars(tmp_path):
    """Names of kohya's text encoders, of LoRAs without a base, left bars a few pixels wide."""
    found = geometry.map_document(document())
    found["blocks"] = [
        {**found["blocks"][0], "name": name, "share": 0.5}
        for name in ("lora_te_text_model_encoder_layers_0_self_attn_and_so_on", "lora_unet_mid_block")
    ]
    root = svg_of(found, tmp_path)
    written = texts(root)
    assert "lora_unet_mid_block" in written and any(re.fullmatch("….*attn_and_so_on", text) for text in written)
    map.draw(found, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = np.array([int(theme.LIGHT.direction(1)[i : i + 2], 16) for i in (1, 3, 5)])
    low = (np.abs(pixels - blue).max(axis=2) < 8)[pixels.shape[0] // 2 :, pixels.shape[1] * 2 // 3 :]
    assert low.sum(axis=1).max() > 0.02 * pixels.shape[1]  # a bar of a block


def test_the_caption_tells_scales(tmp_path):
    def caption(given, **options):
        return " ".join(texts(svg_of(geometry.map_document(given, **options), tmp_path)))

    assert "rings and dashed arrows at" in caption(document(noise=3.0))
    assert "2 of 3 directions drawn" in caption(document(directions=3))
    assert "The base (zero) lies outside" in caption(document(far=30.0))
    assert "κ is drawn" in caption(document(scales=(1.0, 0.01, 0.0), noise=0.001))
    plain = caption(document(noise=0.1))
    assert "true to scale" in plain and not re.search("longer|at half|drawn|outside", plain)


@pytest.mark.parametrize("look", theme.THEMES)
def test_themes_of_an_svg(look, tmp_path):
    map.draw(geometry.map_document(document()), tmp_path / "map.svg", look=look)
    text = (tmp_path / "map.svg").read_text(encoding="utf-8")
    palette = theme.DARK if look == "dark" else theme.LIGHT
    assert f"fill: {palette.ground}" in text and f"fill: {palette.ink}" in text
    assert ("prefers-color-scheme:dark" in text) == (look == "auto")
    if look == "auto":
        assert all(f"fill:{dark}!important" in text for dark in theme.DARK.colours())


def test_no_colour_of_a_theme_comes_twice():
    for palette in (theme.LIGHT, theme.DARK):
        assert len(set(palette.colours())) == len(palette.colours())
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in palette.colours())


@pytest.mark.parametrize("look", ["light", "dark"])
def test_a_png_shows_something_in_every_part(look, tmp_path):
    map.draw(geometry.map_document(document()), tmp_path / "map.png", look=look)
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    palette = theme.DARK if look == "dark" else theme.LIGHT
    ground = np.array([int(palette.ground[i : i + 2], 16) for i in (1, 3, 5)])
    drawn = abs(picture - ground).sum(axis=2) > 60
    assert picture.shape == (1104, 1600, 3) and (picture[0, 0] == ground).all()
    assert all(part.mean() > 0.005 for half in np.array_split(drawn, 2) for part in np.array_split(half, 2, axis=1))
    for k in (1, 2):  # the arrows and bars of both directions
        colour = np.array([int(palette.direction(k)[i : i + 2], 16) for i in (1, 3, 5)])
        assert (abs(picture - colour).sum(axis=2) < 6).sum() > 1000


@pytest.mark.parametrize("suffix", theme.SUFFIXES)
def test_the_same_map_is_the_same_file(suffix, tmp_path):
    found = geometry.map_document(document())
    for name in ("a", "b"):
        map.draw(found, tmp_path / (name + suffix))
    assert (tmp_path / ("a" + suffix)).read_bytes() == (tmp_path / ("b" + suffix)).read_bytes()


@pytest.mark.parametrize(
    "given",
    [
        partial(document, 2, 1),
        partial(document, 3),
        partial(document, 8, noise=4.0),
        partial(document, 24, names=["Some Model - Realistic Vision RC1 VAE"] * 24),
        partial(document, 64, equal=32, names=[f"a rather long name of a model - v{i}" for i in range(64)]),
        partial(document, 64, 1),
    ],
    ids=["2", "3", "8", "24 long", "64 long, half of them twice", "64 on a line"],
)
def test_names_cover_neither_each_other_nor_points_nor_the_frame(given):
    found = geometry.map_document(given())
    for growth in (1.0, 1.15, 1.32):
        width, height = next(size for most, size in map.SIZES if len(found["points"]) <= most)
        with theme.canvas((width, height), theme.LIGHT) as figure:
            sheet = map._Sheet(figure, theme.LIGHT, found)
            sheet.layout.size = tuple(growth * side for side in sheet.layout.size)
            placed = sheet.layout.placed()
            if placed is None:
                continue
            boxes = [label.box for label in placed]
            extents = [text.extent() for text in sheet.layout.texts]
        assert [(b.x1 - b.x0, b.y1 - b.y0) for b in boxes] == [pytest.approx(extent) for extent in extents]
        assert not any(one.meets(other) for i, one in enumerate(boxes) for other in boxes[:i])
        across, up = sheet.layout.size
        assert all(0 < b.x0 and 0 < b.y0 and b.x1 < across and b.y1 < up for b in boxes)
        for point in found["points"]:
            x, y = sheet.layout.on_paper(sheet.layout.place(point))
            assert not any(b.x0 < x < b.x1 and b.y0 < y < b.y1 for b in boxes)
        return
    pytest.fail("no room for the names")


@pytest.mark.parametrize("directions", [1, 2])
def test_lengths_on_paper_are_those_of_weights(directions, tmp_path):
    given = document(6, directions, noise=0.3)
    gram = np.array(given["gram"])
    found = geometry.map_document(given)
    root = svg_of(found, tmp_path)
    marks = [point.find(f".//{SVG}use") for point in groups(root, "point")]
    drawn = np.array([[float(mark.get("x")), float(mark.get("y"))] for mark in marks])
    # ΔW less what is left out lies in the plane; on a line, what is left out is the height.
    places = np.array([[c * axis["norm"] for c, axis in zip(point["at"], found["axes"])] for point in found["points"]])
    if directions == 1:
        places = np.column_stack([places, [point["off"] for point in found["points"]]])
        assert (places**2).sum(axis=1) == pytest.approx(np.diag(gram))
    true = np.linalg.norm(places[:, None] - places, axis=2)
    paper = np.linalg.norm(drawn[:, None] - drawn, axis=2)
    scale = paper.max() / true.max()
    assert paper == pytest.approx(scale * true, rel=1e-3, abs=0.01)
    with theme.canvas((10, 7), theme.LIGHT):
        plan = layout.Layout(found, (400.0, 300.0), theme.LIGHT)
        on_paper = np.array([plan.on_paper(plan.place(point)) for point in found["points"]])
        assert np.linalg.norm(on_paper[:, None] - on_paper, axis=2) == pytest.approx(plan.frame.scale * true)
        rings = [plan.ring(point) for point in found["points"]]
    assert [ring.radius for ring in rings] == pytest.approx(
        [plan.frame.scale * point["off"] / 2**plan.halvings for point in found["points"]]
    )
    assert max(ring.radius for ring in rings) <= layout.LARGEST_RING * 300 * (1 + 1e-9)


def test_a_second_line_needs_room():
    with theme.canvas((2, 1), theme.LIGHT):
        one, two = (layout.Text("ab", small, (0, 0), theme.LIGHT.ink, 10.0).extent() for small in ("", "residual 12 %"))
        assert one == (theme.width_of("ab", 10) + 2, 12.0)
        assert two == (theme.width_of("residual 12 %", theme.TINY) + 2, pytest.approx(12 + 1.15 * theme.TINY))


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hyper_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    families.save(tmp_path, families.family(5))
    assert (
        cli.main(["solve", *(f"m{i}.safetensors" for i in range(4)), "-o", "x.hyper.safetensors", "--directions", "3"])
        == 0
    )
    capsys.readouterr()
    return "x.hyper.safetensors"


def test_the_command_draws(hyper_file, tmp_path, capsys):
    assert (
        cli.main(["map", hyper_file, "-o", "m.svg", "--project", "m4.safetensors", "m0.safetensors", "--axes", "1,3"])
        == 0
    )
    out, _ = capsys.readouterr()
    assert "wrote m.svg" in out
    written = texts(ET.parse(tmp_path / "m.svg").getroot())
    assert written.count("m0") == 2 and written.count("m4") == 1 and "x" in written and "c3" in written
    assert cli.main(["map", hyper_file, "-o", "m.png", "--theme", "dark"]) == 0
    assert Image.open(tmp_path / "m.png").info["Software"].startswith("hyper-merge ")
    assert cli.main(["map", hyper_file, "-o", "m.png"]) == 0, "our own pictures are replaced"


def test_what_the_command_refuses(hyper_file, tmp_path, snapshot, capsys):
    (tmp_path / "other.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "folder.png").mkdir()
    before = snapshot(tmp_path)
    cases = [
        (["-o", "other.svg"], "--force"),
        (["-o", "missing/m.svg"], "does not exist"),
        (["-o", "folder.png"], "is a folder"),
        (["-o", "m.svg", "--project", "nothing.safetensors"], "nothing.safetensors"),
    ]
    for arguments, message in cases:
        assert cli.main(["map", hyper_file, *arguments]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and message in err
    for arguments, message in [
        (["-o", "m.jpg"], ".svg or .png"),
        (["-o", "m.svg", "--axes", "1,4"], "has 3 axes"),
        (["-o", "m.svg", "--axes", "2,2"], "different axes"),
        (["-o", "m.svg", "--axes", "x"], "not the number"),
        (["-o", "m.svg", "--theme", "pink"], "invalid choice"),
    ]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["map", hyper_file, *arguments])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    assert cli.main(["map", hyper_file, "-o", "other.svg", "--force"]) == 0
    assert "hyper-merge" in (tmp_path / "other.svg").read_text(encoding="utf-8")


def test_without_matplotlib_one_line_says_how_to_get_it(hyper_file, tmp_path, refused, environment, cli):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")\n")
    path = f"{tmp_path / 'absent'}:{environment['PYTHONPATH']}"
    done = cli("map", hyper_file, "-o", "m.svg", cwd=tmp_path, env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"})
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "pip install 'hyper-merge[pictures]'" in done.stderr
    )
    assert cli("inspect", hyper_file, cwd=tmp_path, env={"PYTHONPATH": path}).returncode == 0


def test_python_draws_before_and_after_saving(tmp_path):
    models = [arrays(model) for model in families.family(4)]
    hyper = hm.solve(models[:3], names=["a", "b", "c"])
    hyper.map(tmp_path / "m.svg", project=[models[3], hm.Member("placed", (0.1, 0.2), 0.5, None, 1.0)], title="fresh")
    written = texts(ET.parse(tmp_path / "m.svg").getroot())
    assert {"a", "b", "c", "placed", "fresh"} <= set(written)
    hyper.save(tmp_path / "kept.hyper.safetensors")
    hyper.map(tmp_path / "m.svg")
    assert "kept" in texts(ET.parse(tmp_path / "m.svg").getroot())
    with pytest.raises(hm.ArgumentError, match="theme"):
        hyper.map(tmp_path / "m.svg", theme="pink")
    with pytest.raises(hm.ArgumentError, match=".svg or .png"):
        hyper.map(tmp_path / "m.pdf")


def test_drawing_touches_nothing_of_the_host(tmp_path, environment):
    code = """
import sys
import hypermerge_ext
from hypermerge_ext.pictures import geometry, map
assert "matplotlib" not in sys.modules and "numpy" not in sys.modules
import json, matplotlib
matplotlib.rcParams["text.usetex"] = True
matplotlib.rcParams["font.size"] = 40
before = matplotlib.rcParams.copy()
map.draw(geometry.map_document(json.load(open(sys.argv[1]))), sys.argv[2])
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    (tmp_path / "document.json").write_text(json.dumps(document()))
    command = [sys.executable, "-c", code, "document.json", "host.svg"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    map.draw(geometry.map_document(document()), tmp_path / "plain.svg")
    assert (tmp_path / "host.svg").read_bytes() == (tmp_path / "plain.svg").read_bytes()
