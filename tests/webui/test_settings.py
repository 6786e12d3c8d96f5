"""What a person chose, as text: blocks, presets, infotext.  Knows no host."""

from __future__ import annotations

import sys

import pytest

from webui.facade import harness, network

MOVING = [*network.SHAPES, "model.diffusion_model.input_blocks.4.1.proj.weight", "model.diffusion_model.out.2.weight"]
IN0, IN4 = MOVING[0], MOVING[-2]
MIDDLE, OUT3 = "model.diffusion_model.middle_block.0.weight", "model.diffusion_model.output_blocks.3.0.bias"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
OTHER = "model.diffusion_model.out.2.weight"


@pytest.fixture
def settings():
    """The module, imported where no host is."""
    harness.purge()
    harness.load_package()
    import hyper_merge_webui.settings as module

    assert not any(name.split(".")[0] == "modules" for name in sys.modules)
    yield module
    harness.purge()


@pytest.fixture
def moved(settings):
    """moved(blocks, …) → the multipliers of a tensor, as a blend of λ 1, κ 0.5 would take them."""
    from hyper_merge_webui.weights import multipliers_of

    def of(name, blocks, **more):
        chosen = settings.Settings(True, "x", (1.0, 0.5), blocks=blocks, **more)
        return multipliers_of(name, chosen.at(2), chosen.pairs(2, MOVING))

    return of


def test_values_of_the_components(settings):
    made = settings.Settings.of(True, "x", 0.25, None, "0.1; -2", 0.5, " IN = x0 \n")
    assert made == settings.Settings(True, "x", (0.25, 0.0, 0.1, -2.0), 0.5, "IN = x0")
    assert made.further == "0.1, -2" and made.at(4) == (0.25, 0.0, 0.1, -2.0)
    with pytest.raises(ValueError, match="number 4 must stay 0"):
        made.at(3)
    with pytest.raises(ValueError, match="'a' is not a number"):
        settings.Settings.of(True, "x", 0, 0, "a")
    assert settings.Settings.of(False, None) == settings.Settings()


def test_without_blocks_everything_moves_alike(moved):
    assert moved(IN0, "") == moved(TEXT, "") == [1.0, 0.5]


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("*.input_blocks.* = 0.25", IN0, [0.25, 0]),
        ("*.input_blocks.* = 0.25", MIDDLE, [1, 0.5]),
        ("IN = x0.5", IN4, [0.5, 0.25]),
        ("in04=X2", IN4, [2, 1]),
        ("IN4 = ×2", IN4, [2, 1]),
        ("IN04 = x2", IN0, [1, 0.5]),
        ("IN01-M00 = x0", IN4, [0, 0]),
        ("IN01-M00 = x0", MIDDLE, [0, 0]),
        ("IN01-M00 = x0", IN0, [1, 0.5]),
        ("IN01-M00 = x0", OUT3, [1, 0.5]),
        ("MID = 0.1, 0.2  # the middle", MIDDLE, [0.1, 0.2]),
        ("OUT11 = x0", OUT3, [1, 0.5]),
        ("TEXT = x0", TEXT, [0, 0]),
        ("* = x0\nTEXT = x1", TEXT, [1, 0.5]),
        ("* = x0\nTEXT = x1", OTHER, [0, 0]),
        ("BASE = x0\nOUT03 = -1, 1", OUT3, [-1, 1]),
        ("0.5" + ",1" * 25, OTHER, [0.5, 0.25]),
        ("0.5" + ",1" * 25, TEXT, [0.5, 0.25]),
        ("1," + "0," * 12 + "2" + ",3" * 12, MIDDLE, [2, 1]),
        ("1," + "0," * 12 + "2" + ",3" * 12, OUT3, [3, 1.5]),
        ("1 " + "0 " * 9 + "2" + " 3" * 9, MIDDLE, [2, 1]),
        ("0,2,1,1,1,1,1,1,1,1,1,1", IN4, [2, 1]),
        ("1,2,1,1,1,1,1,1,1,1,1,1", IN0, [0, 0]),
    ],
)
def test_a_line_of_blocks(moved, line, name, expected):
    assert moved(name, line) == pytest.approx(expected)


def test_the_last_line_decides(moved):
    assert moved(IN0, "IN = x2\n\n*.input_blocks.0.* = x4\nIN = x3") == [3, 1.5]
    assert moved(IN0, "IN = x2\n\nIN = x3\n*.input_blocks.0.* = x4") == [4, 2]


WIDE = "*encoder.layers.0.*"
"""Fits tensors of the text encoder only."""


@pytest.mark.parametrize(
    ("line", "text", "other"),
    [
        ("", [0.5, 0.25], [1, 0.5]),
        ("IN = x2", [0.5, 0.25], [1, 0.5]),
        # Lines for all tensors, or for some of the text encoder's among others: its factor holds on top.
        ("* = x3", [1.5, 0.75], [3, 1.5]),
        ("* = 0.2, 0.4", [0.1, 0.2], [0.2, 0.4]),
        ("*.bias = x3", [1.5, 0.75], [1, 0.5]),
        ("*.weight = x3", [0.5, 0.25], [3, 1.5]),
        ("3" + ",1" * 25, [1.5, 0.75], [3, 1.5]),
        # Lines for the text encoder alone decide.
        ("TEXT = x1", [1, 0.5], [1, 0.5]),
        ("* = x0\nTEXT = x1", [1, 0.5], [0, 0]),
        (f"{WIDE} = 0.3, 0.1", [0.3, 0.1], [1, 0.5]),
        ("TEXT = x1\n* = x3", [1.5, 0.75], [3, 1.5]),
    ],
)
def test_the_text_encoders_factor_holds_but_where_a_line_is_for_it_alone(moved, line, text, other):
    found = moved(TEXT, line, text_encoder=0.5), moved(OTHER, line, text_encoder=0.5)
    assert found == (pytest.approx(text), pytest.approx(other))


def test_the_text_encoders_factor_where_nothing_else_moves(settings):
    chosen = settings.Settings(True, "x", (1.0,), 0.5, "* = x3")
    assert chosen.pairs(1, [TEXT])["cond_stage_model.*"] == [1.5]
    odd = "cond_stage_model.a[0].bias"  # a name that would be a pattern
    pairs = settings.Settings(True, "x", (1.0,), 0.5, "*.bias = x3").pairs(1, [odd, TEXT[:-4] + "weight", OUT3])
    from hyper_merge_webui.weights import multipliers_of

    assert [multipliers_of(name, [1.0], pairs) for name in (odd, OUT3)] == [[1.5], [3]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("*.nowhere.* = 1", "blocks, line 2: no tensor that the hyper-model moves matches the pattern *.nowhere.*"),
        ("IN05", "blocks, line 2: 'IN05' is neither GLOB"),
        ("1,2,3", "nor 12, 17, 20 or 26 block weights"),
        ("IN = 1, 2, 3", "3 multipliers for 2 directions"),
        ("IN =", "no multipliers after the = sign"),
        ("IN = x", "'x' is not a factor"),
        ("= 1", "a line is of the form GLOB"),
        ("IN12-OUT03 = 1", "blocks are IN00 … IN11"),
        ("IN = a", "'a' is not a number"),
    ],
)
def test_a_line_that_is_wrong(settings, line, said):
    with pytest.raises(ValueError) as refused:
        settings.check_blocks(f"TEXT = x1\n{line}", 2, MOVING)
    assert said in str(refused.value)


def test_presets(settings, moved):
    for text in settings.PRESETS.values():
        settings.check_blocks(text, 2, MOVING)
    assert moved(TEXT, settings.PRESETS["U-Net only"]) == [0, 0] != moved(IN0, settings.PRESETS["U-Net only"])
    assert moved(MIDDLE, settings.PRESETS["strong in the middle"]) == [1, 0.5]
    assert moved(IN0, settings.PRESETS["strong in the middle"]) == [0, 0]


def test_names_that_do_not_fit_a_model_are_passed_over(settings):
    """A preset for SD1.5 on a network without such blocks; but a pattern that a person wrote must fit."""
    flux = ["model.diffusion_model.double_blocks.0.img_mod.lin.weight"]
    assert settings.Settings(True, "x", (1.0,), blocks="IN = x0\nOUT03 = x2").pairs(1, flux) == {}


POINTS = [
    ((0.25, -0.5), 1.0, ""),
    ((0.1 + 0.2, 1e-9), 0.30000000000000004, "IN = x0.5"),
    ((-1.0,), 1.0, '*.input_blocks.* = 0, 0\nOUT03 = x0.5  # with: colon, "quotes"'),
    ((0.0, 0.0, 3.0, -0.0), 2.0, "1," * 25 + "1"),
]


@pytest.mark.parametrize(("multipliers", "strength", "blocks"), POINTS)
def test_infotext_comes_back_exactly(settings, multipliers, strength, blocks):
    sys.path.insert(0, str(harness.HERE))
    try:
        from modules import infotext_utils
    finally:
        sys.path.remove(str(harness.HERE))
    chosen = settings.Settings(True, "my models, 8: a.hyper.safetensors", multipliers, strength, blocks)
    line = infotext_utils.write({"Steps": "20", **settings.write_infotext(chosen, "0123456789"), "Version": "1"})
    params = infotext_utils.parse_generation_parameters(line)
    assert settings.read_infotext(params) == chosen
    params["Model hash"] = "of the blend"
    settings.restore_model_hash(params)
    assert params["Model hash"] == "0123456789"


def test_infotext_of_other_pictures(settings):
    assert settings.read_infotext({"Steps": "20"}) == settings.Settings()
    assert settings.read_infotext({"Hyper-Merge": "x", "Hyper-Merge at": "no"}) == settings.Settings()
    assert settings.write_infotext(settings.Settings(False, "x", (1.0,))) == {}
    params = {"Model hash": "abc"}
    settings.restore_model_hash(params)
    assert params == {"Model hash": "abc"}
    params |= {"Hyper-Merge": "x"}  # the base had no hash: the host would look for a checkpoint with the blend's
    settings.restore_model_hash(params)
    assert params == {"Hyper-Merge": "x"}


def test_the_hash_of_a_blend(settings):
    one = settings.Settings(True, "x", (0.25, 0.0))
    same = [settings.Settings(True, "other name", (0.25,)), settings.Settings(True, "x", (0.25, -0.0, 0.0))]
    others = [settings.Settings(True, "x", (0.25, 0.0), 0.5), settings.Settings(True, "x", (0.0, 0.25)),
              settings.Settings(True, "x", (0.25, 0.0), blocks="IN = x0")]  # fmt: skip
    found = settings.blend_hash("file", one)
    assert len(found) == 10 and {settings.blend_hash("file", item) for item in same} == {found}
    assert len({settings.blend_hash("file", item) for item in [one, *others]} | {settings.blend_hash("f2", one)}) == 5
