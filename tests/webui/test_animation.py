"""The script that makes animations and grids: where its pictures are taken, what it writes, what stays moved."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image, ImageFont, ImageSequence

from webui.facade.harness import HYPER, same

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CALM = ["path", "", 4, 8, "GIF", True, -1, 1, -1, 1, 3, 2, True, False]
"""Values of the script's components, as the page has them."""


def colour(hash_of_picture: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(hash_of_picture[:6]))


@pytest.fixture
def studio(webui, tmp_path, monkeypatch):
    """The script in the stand-in, whose pictures get a colour of their own; studio(p, …) → what it returns."""
    for name in ("gradio", "modules.images"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    images = sys.modules["modules.images"]
    monkeypatch.setattr(sys.modules["modules"], "images", images, raising=False)
    images.get_font = lambda size: ImageFont.load_default()
    images.saved = []
    images.save_image = lambda image, folder, name, **more: images.saved.append((image, folder, name))
    accordion = ModuleType("hyper_merge_webui.accordion")  # the true one needs Gradio
    accordion.TITLE = "Hyper-Merge"
    monkeypatch.setitem(sys.modules, "hyper_merge_webui.accordion", accordion)
    monkeypatch.setattr(sys.modules["hyper_merge_webui"], "accordion", accordion, raising=False)
    plain = webui.processing.process_images

    def process_images(p):
        found = plain(p)
        pictures = [Image.new("RGB", (96, 64), colour(image)) for image in found.images]
        return SimpleNamespace(images=pictures, infotexts=[str(text) for text in found.infotexts], info="info")

    monkeypatch.setattr(webui.processing, "process_images", process_images)
    monkeypatch.setattr(webui.processing, "fix_seed", lambda p: None, raising=False)
    of_a_job = webui.processing.Processed
    monkeypatch.setattr(  # the stand-in's own is simpler; of the script's, the pictures are looked at
        webui.processing,
        "Processed",
        lambda one, two, *more, **named: two if hasattr(one, "prompt") else of_a_job(one, two, *more),
    )
    webui.shared.opts.data["grid_save"] = True
    spec = importlib.util.spec_from_file_location("hyper_merge_animation.py", SCRIPTS / "hyper_merge_animation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(p, **changes):
        names = module.HyperMergeAnimation.run.__code__.co_varnames[2 : 2 + len(CALM)]
        values = {**dict(zip(names, CALM)), **changes}
        p.outpath_samples = p.outpath_grids = str(tmp_path / "out")
        webui.shared.state.begin(job="script")
        with webui.call_queue.queue_lock:
            return module.HyperMergeAnimation().run(p, **values)

    run.images = images
    return run


def job(webui, settings=None):
    """A job whose accordion holds `settings`."""
    p = webui.job("a cat", settings)
    values = (settings.enabled, settings.hyper) if settings else (False, "")
    p.scripts.alwayson_scripts = [SimpleNamespace(title=lambda: "Hyper-Merge", args_from=0, args_to=2)]
    p.script_args = values
    return p


def expected(webui, studio, places, **settings):
    """The colours of pictures that are made there one by one."""
    return [colour(webui.image(settings=webui.at(*place, **settings))) for place in places]


@pytest.fixture
def document(webui):
    return webui.ext("jobs").map_document(HYPER)


def test_a_path_is_written_as_an_animation_of_those_places(webui, studio, document, tmp_path, monkeypatch):
    base = webui.held()
    whole, *pictures = studio(job(webui, webui.at()), frames=5, points="m0\n0.5, 0.25\nm1", closed=False)
    places = webui.ext("animation").path(document, "m0\n0.5, 0.25\nm1", 5, False)
    monkeypatch.undo()
    assert [picture.getpixel((5, 5)) for picture in pictures] == expected(webui, studio, places)
    assert places[0] == tuple(document["points"][0]["multipliers"])
    file = Path(whole.already_saved_as)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [file.name] == ["00000-hyper-merge.gif"]
    frames = list(ImageSequence.Iterator(Image.open(file)))
    assert len(frames) == 5 and frames[0].size == (96 + 256, 256) and frames[1].info["duration"] == 120
    assert webui.image() == webui.image(settings=webui.at()) and same(webui.held(), base)


def test_webp_without_map_and_a_second_file(webui, studio, tmp_path):
    for _ in range(2):
        whole, *pictures = studio(job(webui), ending="WebP", with_map=False, frames=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000-hyper-merge.webp",
        "00001-hyper-merge.webp",
    ]
    with Image.open(whole.already_saved_as) as image:
        assert (image.n_frames, image.size, len(pictures)) == (3, (96, 64), 3)


def test_a_grid_is_laid_out_as_the_map_and_keeps_the_accordions_blocks(webui, studio, document, monkeypatch):
    settings = webui.at(blocks="OUT = x0")
    whole, *pictures = studio(job(webui, settings), kind="grid")
    ((saved, _, name),) = studio.images.saved
    monkeypatch.undo()
    places = list(itertools.product((-1.0, 0.0, 1.0), (1.0, -1.0)))
    places.sort(key=lambda place: (-place[1], place[0]))
    assert [picture.getpixel((5, 5)) for picture in pictures] == expected(webui, studio, places, blocks="OUT = x0")
    assert saved is whole and name == "hyper-merge"
    cells = [colour_at(whole, column, row) for row in range(2) for column in range(3)]
    assert cells == [picture.getpixel((5, 5)) for picture in pictures]


def colour_at(sheet, column, row):
    """Of a cell: the map stands at the right, so cells are found from the first picture's left edge."""
    background = (0x1E, 0x20, 0x25)
    top = (256 - (20 + 2 * 68)) // 2 + 20  # the map is higher, and what stands beside it in the middle
    left = next(x for x in range(sheet.width) if all(sheet.getpixel((x, top + y)) != background for y in (3, 32, 60)))
    return sheet.getpixel((left + column * 100 + 48, top + row * 68 + 32))


def test_when_stopped_what_is_there_is_kept(webui, studio, monkeypatch):
    made = webui.processing.process_images

    def stopping(p):
        webui.shared.state.interrupted = p.hyper_merge_axes["lam"] != first
        return made(p)

    first = webui.ext("jobs").map_document(HYPER)["points"][0]["multipliers"][0]
    monkeypatch.setattr(webui.processing, "process_images", stopping)
    whole, *pictures = studio(job(webui), frames=6)
    assert len(pictures) == 1 and Image.open(whole.already_saved_as).size == (96 + 256, 256)


def test_the_frames_are_of_the_hyper_model_whose_map_is_beside_them(webui, studio, monkeypatch):
    """Also where the API has set another one for jobs whose accordion is off."""
    webui.solve("second.hyper.safetensors", directions=1)
    webui.live.want(webui.at(0.5, hyper="second.hyper.safetensors"), keep=True)
    off = webui.Settings(False, HYPER)
    _, *pictures = studio(job(webui, off), frames=2, points="0, 0.5\n0, -0.5", closed=False)
    monkeypatch.undo()
    places = [(0.0, 0.5), (0.0, -0.5)]
    assert [picture.getpixel((5, 5)) for picture in pictures] == expected(webui, studio, places)


def test_who_may_read_pictures_may_read_animations(webui, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = webui.ext("animation").save([Image.new("RGB", (8, 8))], str(tmp_path), "GIF", 8, "")
    assert Path(path).stat().st_mode == plain.stat().st_mode


def test_which_hyper_model_is_clear_or_asked_for(webui, studio):
    webui.solve("second.hyper.safetensors")
    with pytest.raises(ValueError, match="choose a hyper-model in the accordion"):
        studio(job(webui))
    with pytest.raises(ValueError, match="line 1: 'nobody' is neither"):
        studio(job(webui, webui.at()), points="nobody")


def test_one_direction_has_one_row_and_no_kappa(webui):
    animation = webui.ext("animation")
    webui.solve("line.hyper.safetensors", directions=1)
    document = webui.ext("jobs").map_document("line.hyper.safetensors")
    places, columns, rows = animation.grid(document, (-1, 1), (-1, 1), 3, 4)
    assert (places, columns, rows) == ([(-1.0, 0.0), (0.0, 0.0), (1.0, 0.0)], 3, 1)
    assert animation.label(document, (0.5, 0.0)) == "λ +0.50"
    assert {kap for _, kap in animation.path(document, "", 7, True)} == {0.0}


def test_the_small_map_shows_where_it_is(webui, document):
    def drawn(now):
        return webui.ext("little_map").draw(document, 128, lambda size: ImageFont.load_default(), [], now)

    with_handle, without = drawn((0.0, 0.0)), drawn(None)
    places = itertools.product(range(128), range(128))
    changed = [place for place in places if with_handle.getpixel(place) != without.getpixel(place)]
    distances = [math.dist(place, (63.5, 63.5)) for place in changed]
    assert len(changed) > 100 and min(distances) > 1 and max(distances) < 12  # a ring; the base's cross is seen in it


def test_a_failed_write_leaves_nothing(webui, tmp_path):
    animation = webui.ext("animation")
    folder = tmp_path / "out"
    with pytest.raises(ValueError, match="no frame"):
        animation.save([], str(folder), "GIF", 8, "")
    with pytest.raises(KeyError):
        animation.save([Image.new("RGB", (8, 8))], str(folder), "NoSuchFormat", 8, "")
    assert list(folder.iterdir()) == []
