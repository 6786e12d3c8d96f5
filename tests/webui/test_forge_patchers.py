"""The live blend in Forge: its patchers, its LoRAs, and weights that are packed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from webui.facade import forge, network
from webui.facade.harness import HYPER, same

LAYER = "diffusion_model.middle_block.0.weight"
WITH_LORA = "a cat<lora:style:1>"


@pytest.fixture(params=["plain", "packed"])
def webui(open_webui, request):
    started = open_webui(forge=request.param)
    started.load_base()
    started.lora(layers=(LAYER,))
    return started


def test_with_and_without_lora_before_and_after_a_move_and_back_to_zero(webui):
    base = webui.held()
    a, d = webui.image(), webui.image(WITH_LORA)
    c = webui.image(settings=webui.at(0.7, 0.3))
    e = webui.image(WITH_LORA, webui.at(0.7, 0.3))
    assert len({a, c, d, e}) == 4
    assert webui.image(WITH_LORA, webui.at(0.7, 0.3)) == e
    other = webui.image(WITH_LORA, webui.at(-0.2, 0.1))
    assert other not in (a, c, d, e)
    assert webui.image(WITH_LORA, webui.at(0.7, 0.3)) == e
    assert webui.image(settings=webui.at(0.7, 0.3)) == c
    assert webui.image(WITH_LORA) == d
    assert webui.image() == a
    assert same(webui.held(), base)
    assert webui.errors.reported == []


def test_a_token_before_and_after_a_lora(webui):
    e = webui.image(WITH_LORA, webui.at(0.5, 0.25))
    assert webui.image("<hm:0.5:0.25>" + WITH_LORA) == e
    assert webui.image(WITH_LORA + "<hm:0.5:0.25>") == e
    assert webui.image(WITH_LORA) != e


def test_hires_with_a_prompt_of_its_own(webui):
    plain = webui.image(settings=webui.at(0.5), enable_hr=True)
    moved = webui.image("a cat<hm:0.5>", enable_hr=True, hr_prompt="a cat<hm:-0.5>")
    assert moved != plain
    assert webui.image("a cat<hm:0.5>", enable_hr=True, hr_prompt="a cat<hm:0.5>") == plain


def test_the_blend_is_that_of_the_merged_checkpoint(open_webui, tmp_path):
    webui = open_webui(forge="plain")
    webui.load_base()
    moved = webui.image(settings=webui.at(0.5, -0.25))
    webui.blended((0.5, -0.25), webui.checkpoints, dtype="fp32")
    webui.host.refresh_models()
    assert webui.image(override_settings={"sd_model_checkpoint": "blend(0.5,-0.25).safetensors"}) == moved
    assert webui.live.current() is None


def test_a_text_encoder_that_was_cut_into_parts(open_webui):
    webui = open_webui(forge="plain")
    webui.load_base()
    base = webui.held()
    cut = "clip_l.transformer.text_model.encoder.layers.0.mlp."
    webui.live.want(webui.at(0.5))
    moved = network.read(webui.blended((0.5,), webui.models, dtype="fp32"))
    whole = moved["cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"]
    held = webui.held()
    assert torch.equal(torch.cat([held[cut + "upper.weight"], held[cut + "lower.weight"]]), whole)
    assert not torch.equal(held[cut + "upper.weight"], base[cut + "upper.weight"])
    webui.live.off()
    assert same(webui.held(), base)


def test_a_text_encoder_that_the_host_has_rounded(open_webui):
    """As --clip-in-fp8 does with embeddings, which Forge widens again: at 0, 0 is what was loaded; and where the text
    encoder's factor is 0, but the UNet moves, its own prompts are used, not those that were encoded before.
    """
    webui = open_webui(forge="plain")
    webui.load_base()
    embedding = webui.model.forge_objects_original.clip.cond_stage_model.clip_l.transformer.text_model.embeddings
    weight = embedding.token_embedding.wrapped.weight
    with torch.inference_mode():
        weight.copy_(weight.to(torch.float8_e4m3fn))
    base, plain = webui.held(), webui.image()
    moved = webui.image(settings=webui.at(0.5))
    assert webui.image(settings=webui.at()) == plain != moved and same(webui.held(), base)
    still = webui.at(0.5, text_encoder=0.0)
    after_a_move = webui.image(settings=webui.at(0.25)) and webui.image(settings=still)
    assert webui.image() == plain and webui.image(settings=still) == after_a_move
    assert webui.image(settings=webui.at()) == plain and webui.live.current() is not None
    assert webui.image() == plain and webui.live.current() is None


def test_a_loaded_patcher_is_refreshed_once_for_each_move(open_webui):
    """In place: LoRAs are taken out and put in again when the weights move, and not otherwise."""
    webui = open_webui(forge="plain")
    webui.load_base()
    webui.lora(layers=(LAYER,))
    webui.image(WITH_LORA, webui.at(0.5))
    before = forge.work["refreshed"]
    webui.image(WITH_LORA, webui.at(0.5))
    assert forge.work["refreshed"] == before
    webui.image(WITH_LORA, webui.at(0.25))
    assert forge.work["refreshed"] == before + 2


def test_packed_weights_of_another_model_are_refused(open_webui):
    webui = open_webui(forge="packed")
    found = webui.run(webui.job("a cat", webui.at(0.5), override_settings={"sd_model_checkpoint": "m1.safetensors"}))
    assert found.comments and "is not the base of" in found.comments[0]


def test_packed_weights_go_by_patches_that_leave_nothing_behind(open_webui):
    webui = open_webui(forge="packed")
    webui.load_base()
    webui.image(settings=webui.at(0.5))
    after = webui.model.forge_objects_after_applying_lora
    assert [key[0].startswith("hyper-merge:") for key in after.unet.lora_patches] == [True]
    assert list(forge.calculators) == ["hyper-merge"]
    webui.live.off()
    after = webui.model.forge_objects_after_applying_lora
    assert not after.unet.lora_patches and not after.clip.patcher.lora_patches
    assert not forge.calculators


def test_patches_of_a_model_that_is_gone_leave_nothing_behind_either(open_webui):
    webui = open_webui(forge="packed")
    webui.load_base()
    webui.image(settings=webui.at(0.5))
    webui.image(override_settings={"sd_model_checkpoint": "m1.safetensors"})
    webui.live.off()
    assert not forge.calculators


def test_numbers_that_are_none_reach_no_weight(webui):
    base = webui.held()
    for settings in (webui.at(float("nan")), webui.at(0.5, text_encoder=float("inf"))):
        assert "finite numbers" in webui.live.want(settings)
        found = webui.run(webui.job(settings=settings))
        assert "finite numbers" in found.comments[0] and webui.live.current() is None
    assert same(webui.held(), base) and webui.image() == webui.image(settings=webui.at())


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_model_that_is_thrown_away_is_not_kept_alive(open_webui, kind):
    webui = open_webui(forge=kind)
    webui.load_base()
    webui.image(settings=webui.at(0.5))
    model = weakref.ref(webui.model)
    layer = weakref.ref(webui.model.forge_objects.unet.model.diffusion_model.middle_block[0])
    webui.image(override_settings={"sd_model_checkpoint": "m1.safetensors"})
    gc.collect()
    assert model() is None and layer() is None


def test_before_the_first_model_is_loaded(open_webui):
    """Forge loads lazily; until then there is a stand-in for a model."""
    webui = open_webui(forge="plain")
    assert webui.live.want(webui.at(0.5)).startswith("no model is loaded yet")


@pytest.mark.parametrize("keep_original", [False, True])
def test_a_tensor_that_the_host_has_transposed(open_webui, keep_original):
    """As the projection of a larger text encoder; with an original that is not quite the base, too."""
    webui = open_webui(forge="plain")
    weights, hyper = webui.ext("weights"), webui.host.open_hyper(HYPER)
    name = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    held = hyper.stored.read(name, 0).T.contiguous().float()
    if keep_original:
        held[0, 1] += 1
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(held.clone(), requires_grad=False)
    part = webui.ext("pack").Part(name, 0, tuple(held.shape), True)
    targets = weights.Targets({}, {"weight": (weights.Parameter(module, "weight"), part)})
    blend = weights.Written(hyper, targets, keep_original, False)
    blend.set((0.5, -0.25), {})
    moved = network.read(webui.blended((0.5, -0.25), webui.models, dtype="fp32"))[name]
    assert torch.equal(module.weight, moved.T)
    blend.set((0.5, -0.25), {"*": (0.0, 0.0)})
    assert torch.equal(module.weight, hyper.stored.read(name, 0).T.float())
    blend.restore()
    assert torch.equal(module.weight, held)


def test_a_part_that_holds_something_else(open_webui):
    webui = open_webui(forge="plain")
    webui.load_base()
    layer = webui.model.forge_objects_original.clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0]
    with torch.inference_mode():
        layer.mlp.upper.weight[0, 0] += 1
    webui.model.sd_checkpoint_info.filename = str(webui.checkpoints / "m0.safetensors")  # no file that vouches for it
    assert "is not the base of x.hyper.safetensors" in webui.live.want(webui.at(0.5))
