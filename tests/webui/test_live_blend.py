"""The live blend in Automatic1111: what the weights hold around pictures, LoRAs and model switches."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from webui.facade import network
from webui.facade.harness import BASE, HYPER, same


def blend_of(webui, tmp_path, *at, **more):
    """What the weights must hold at a point, as the host would load a checkpoint of the blend."""
    dtypes = {name: value.dtype for name, value in webui.held().items()}
    dtype = "fp32" if torch.float32 in dtypes.values() else None
    held = network.read(webui.blended(at, tmp_path, dtype=dtype, **more))
    return {name: held[name].to(dtypes[name]) for name in dtypes}


def test_a_picture_of_the_blend_is_that_of_the_merged_checkpoint(webui, tmp_path):
    webui.blended((0.5, -0.25), webui.checkpoints, dtype="fp32")
    webui.host.refresh_models()
    moved = webui.run(webui.job("a cat", webui.at(0.5, -0.25)))
    assert same(webui.held(), blend_of(webui, tmp_path, 0.5, -0.25))
    other = webui.job("a cat", override_settings={"sd_model_checkpoint": "blend(0.5,-0.25).safetensors"})
    assert webui.run(other).images == moved.images


def test_with_and_without_lora_before_and_after_a_move_and_back_to_zero(webui):
    """The table of the notes: A, C without a LoRA at two points; D, E the same with one."""
    webui.lora()
    base = webui.held()
    a = webui.image()
    d = webui.image("a cat<lora:style:1>")
    c = webui.image(settings=webui.at(0.7, 0.3))
    e = webui.image("a cat<lora:style:1>", webui.at(0.7, 0.3))
    assert len({a, c, d, e}) == 4
    assert webui.image("a cat<lora:style:1>", webui.at(0.7, 0.3)) == e
    assert webui.image(settings=webui.at(0.7, 0.3)) == c
    assert webui.image("a cat<lora:style:1>", webui.at(-0.2, 0.1)) not in (a, c, d, e)
    assert webui.image("a cat<lora:style:1>", webui.at(0.7, 0.3)) == e
    assert webui.image("a cat<lora:style:1>", webui.at()) == d
    assert webui.image("a cat<lora:style:1>") == d
    assert webui.image() == a
    assert same(webui.held(), base)


def test_a_move_while_a_lora_is_in_the_weights_keeps_both(webui):
    webui.lora()
    with_lora = "a cat<lora:style:1>"
    expected = webui.image(with_lora, webui.at(0.4))
    webui.image(with_lora)
    assert webui.live.want(webui.at(0.4)).startswith("x · λ 0.4  κ 0")
    assert webui.image(with_lora, webui.at(0.4)) == expected
    assert webui.live.off() == "off"
    assert webui.live.current() is None
    assert webui.image(with_lora) == webui.image(with_lora, webui.at())


def test_lora_on_a_tensor_that_no_direction_moves(open_webui):
    """Its layer is written by nobody, so the host's copy has to be put back before the copy is dropped."""
    webui = open_webui(no_half=True)
    webui.solve(HYPER, include=["*input_blocks*"])
    webui.load_base()
    webui.lora()
    base, plain = webui.held(), webui.image()
    moved = webui.image(settings=webui.at(0.2))
    webui.image("a cat<lora:style:1>", webui.at(0.4))
    webui.live.want(webui.at(0.2))
    assert webui.image(settings=webui.at(0.2)) == moved != plain
    with_lora = webui.image("a cat<lora:style:1>", webui.at(0.2))
    webui.live.want(webui.at(0.4))
    assert webui.image("a cat<lora:style:1>", webui.at(0.2)) == with_lora
    webui.live.off()
    assert same(webui.held(), base) and webui.image() == plain


def test_conds_are_encoded_anew_only_when_the_text_encoder_moves(webui, monkeypatch):
    encoded = []
    run = type(webui.model).get_learned_conditioning
    monkeypatch.setattr(
        type(webui.model), "get_learned_conditioning", lambda self, texts: encoded.append(texts) or run(self, texts)
    )

    def count(*job):
        encoded.clear()
        webui.image(*job)
        return len([texts for texts in encoded if texts == ["a cat"]])

    assert count("a cat", webui.at(0.5)) == 1
    assert count("a cat", webui.at(0.5)) == 0
    assert count("a cat", webui.at(0.25)) == 1
    assert count("a cat", webui.at(0.25, text_encoder=0.0)) == 1
    assert count("a cat", webui.at(-1.0, text_encoder=0.0)) == 0
    assert count("a cat", webui.at(-0.5, blocks="TEXT = x0")) == 0
    assert count("a cat") == 1  # the host may have rounded what it loaded: that is not the same as moved by zeros
    assert count("a cat", webui.at(0.5)) == 1
    assert count("a cat") == 1


def test_the_empty_prompt_follows_the_text_encoder(webui):
    before = webui.model.cond_stage_model_empty_prompt
    webui.lora("words", ("transformer_text_model_encoder_layers_0_mlp_fc1",))
    webui.image("a cat<lora:words:1><hm:0.5>")
    with torch.no_grad():
        webui.networks.loaded_networks.clear()
        expected = webui.model.get_learned_conditioning([""])
    assert torch.equal(webui.model.cond_stage_model_empty_prompt, expected) and not torch.equal(expected, before)
    webui.image()
    assert webui.model.cond_stage_model_empty_prompt is before


def test_the_empty_prompt_of_a_module_that_gets_other_weights(webui):
    """The host makes it with the module alone, so a moved one would stay for every checkpoint after."""
    model, before = webui.model, webui.model.cond_stage_model_empty_prompt
    for name, forced in (("m1", False), (BASE, True)):
        webui.image(settings=webui.at(0.5))
        assert model.cond_stage_model_empty_prompt is not before
        webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases[f"{name}.safetensors"], forced)
        assert webui.model is model and model.cond_stage_model_empty_prompt is before
        webui.load_base()


def test_a_model_that_is_used_again_without_a_callback(open_webui):
    """Two models are kept; going back to one that was moved tells nobody."""
    webui = open_webui(no_half=True)
    webui.shared.opts.data["sd_checkpoints_limit"] = 2
    webui.load_base()
    base, plain, model = webui.held(), webui.image(), webui.model
    moved = webui.image(settings=webui.at(0.5))
    other = {"override_settings": {"sd_model_checkpoint": "m1.safetensors"}}
    webui.run(webui.job("a cat", **other))
    assert webui.model is not model
    said = webui.run(webui.job("a cat", webui.at(0.5), **other)).comments
    assert said == [
        "Hyper-Merge: m1 is not the base of x.hyper.safetensors; load its base with the button “Load base”, then the "
        "sliders move it"
    ]
    back = {"override_settings": {"sd_model_checkpoint": f"{BASE}.safetensors"}}
    assert webui.image(**back) == plain
    assert webui.model is model and same(webui.held(), base)
    assert webui.image(settings=webui.at(0.5), **back) == moved


def test_another_checkpoint_in_the_same_module(webui):
    """The host reads the next checkpoint into the module that it has; nothing of the blend may come back."""
    module = webui.model
    webui.image(settings=webui.at(0.5))
    other = webui.job("a cat", override_settings={"sd_model_checkpoint": "m1.safetensors"})
    image = webui.run(other).images
    assert webui.model is module and webui.live.current() is None
    held = {name: value.float() for name, value in network.read(webui.checkpoints / "m1.safetensors").items()}
    assert same(webui.held(), held)
    webui.live.off()
    assert same(webui.held(), held) and len(image) == 1


def test_a_model_that_is_thrown_away_is_not_kept_alive(webui):
    webui.image(settings=webui.at(0.5))
    layer = webui.model.model.diffusion_model.middle_block[0]
    gone = [weakref.ref(webui.model), weakref.ref(layer), weakref.ref(layer.weight)]
    del layer
    webui.sd_models.load_model()
    gc.collect()
    assert [item() for item in gone] == [None, None, None]
    assert webui.live.current() is None


def test_a_model_that_is_read_anew(webui):
    """The same checkpoint into the same module, as a change of settings asks for."""
    base, moved = webui.held(), webui.image(settings=webui.at(0.5))
    webui.sd_models.reload_model_weights(forced_reload=True)
    assert webui.live.current() is None and same(webui.held(), base)
    assert webui.image(settings=webui.at(0.5)) == moved


def test_a_model_that_is_thrown_away_but_still_held_by_somebody(webui):
    """Its weights are on the device "meta", and there is nothing to put back."""
    held = webui.model
    moved = webui.image(settings=webui.at(0.5))
    webui.sd_models.load_model()
    assert next(held.parameters()).is_meta
    found = webui.run(webui.job("a cat", webui.at(0.5)))
    assert found.images == [moved] and found.comments == []


def test_storage_that_moves(open_webui):
    """--medvram: parameters stay, their storage does not."""
    webui = open_webui(no_half=True, medvram=True)
    webui.load_base()
    base, plain = webui.held(), webui.image()
    moved = webui.image(settings=webui.at(0.5, 0.5))
    assert webui.image(settings=webui.at(0.1)) != moved
    assert webui.image(settings=webui.at(0.5, 0.5)) == moved
    assert webui.image() == plain and same(webui.held(), base)


@pytest.mark.parametrize("no_half", [True, False])
def test_channels_last(open_webui, tmp_path, no_half):
    webui = open_webui(no_half=no_half, opt_channelslast=True)
    base = webui.load_base() and webui.held()
    assert not webui.model.model.diffusion_model.input_blocks[0][0].weight.is_contiguous()
    webui.image(settings=webui.at(0.5, -1))
    assert same(webui.held(), blend_of(webui, tmp_path, 0.5, -1))
    webui.live.off()
    assert same(webui.held(), base)


def test_fp8_weights_with_fp16_copies(open_webui, tmp_path):
    """LoRAs are added to the copies, so these move too."""
    webui = open_webui()
    webui.shared.opts.data.update(fp8_storage=True, cache_fp16_weight=True)
    webui.load_base()
    webui.lora()
    layer = webui.model.model.diffusion_model.middle_block[0]
    base, copy, plain = webui.held(), layer.fp16_weight.clone(), webui.image()
    with_lora = webui.image("a cat<lora:style:1>")
    webui.image("a cat<lora:style:1>", webui.at(0.5, 0.25))
    moved = network.read(webui.blended((0.5, 0.25), tmp_path))["model.diffusion_model.middle_block.0.weight"]
    assert torch.equal(layer.fp16_weight, moved)
    assert webui.image("a cat<lora:style:1>", webui.at()) == with_lora
    assert webui.image() == plain
    webui.live.off()
    assert same(webui.held(), base) and torch.equal(layer.fp16_weight, copy)


def test_fp8_switched_on_reads_the_model_anew(open_webui):
    webui = open_webui()
    webui.load_base()
    moved = webui.image(settings=webui.at(0.5))
    webui.shared.opts.data["fp8_storage"] = True
    plain = webui.image()
    assert webui.live.current() is None
    found = webui.run(webui.job("a cat", webui.at(0.5)))
    assert found.images[0] not in (plain, moved) and found.comments == []
    assert webui.image() == plain


@pytest.mark.parametrize("limit", [1, 2])
def test_a_refiner_in_the_middle_of_a_job(open_webui, limit):
    """It takes the model's place while the picture is made; the next picture of the batch is a blend again."""
    webui = open_webui(no_half=True)
    webui.shared.opts.data["sd_checkpoints_limit"] = limit
    webui.load_base()
    found = webui.run(webui.job(["a cat", "a cat"], webui.at(0.5), refiner="m2.safetensors"))
    assert found.images[0] == found.images[1]
    assert found.infotexts[1]["Hyper-Merge at"] == "0.5, 0"
    assert webui.run(webui.job(["a cat"], refiner="m2.safetensors")).images[0] != found.images[0]
    assert webui.run(webui.job(["a cat"], webui.at(0.5), refiner="m2.safetensors")).images[0] == found.images[0]


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_base_is_the_refiner_of_another_checkpoint(open_webui, limit, wanted):
    """What is moved is the job's own checkpoint; the host may have kept the base as the job before left it."""
    webui = open_webui(no_half=True)
    webui.shared.opts.data["sd_checkpoints_limit"] = limit
    webui.load_base()
    more = {"override_settings": {"sd_model_checkpoint": "m2.safetensors"}, "refiner": f"{BASE}.safetensors"}
    back = {"override_settings": {"sd_model_checkpoint": f"{BASE}.safetensors"}}
    plain = webui.image(**more)
    moved = webui.image(settings=webui.at(0.5, -0.25), **back)
    found = webui.run(webui.job("a cat", webui.at(0.5, -0.25) if wanted else None, **more))
    assert found.images == [plain] and "Hyper-Merge at" not in found.infotexts[0]
    assert len(found.comments) == wanted
    assert webui.image(settings=webui.at(0.5, -0.25), **back) == moved != webui.image(**back)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_checkpoint_of_its_own_for_the_hires_pass(open_webui, limit):
    webui = open_webui(no_half=True)
    webui.shared.opts.data["sd_checkpoints_limit"] = limit
    webui.load_base()
    more = {"enable_hr": True, "hr_checkpoint": "m2.safetensors"}
    found = webui.run(webui.job(["a cat", "a cat"], webui.at(0.5), **more))
    assert found.images[0] == found.images[1] != webui.image("a cat", **more)
    assert {text["Hyper-Merge at"] for text in found.infotexts} == {"0.5, 0"}


def test_a_file_that_is_cut_off_while_it_is_live(webui):
    """Neither directions nor base can be read any more: the host loads its checkpoint again, and the job says why."""
    base, plain = webui.held(), webui.image()
    path = webui.hypers / HYPER
    webui.live.want(webui.at(0.25))
    path.write_bytes(path.read_bytes()[:-64])
    found = webui.run(webui.job("a cat", webui.at(0.5)))
    assert found.images == [plain] and "Hyper-Merge" not in found.infotexts[0]
    assert "the checkpoint was loaded again" in found.comments[0] and "cut short" in found.comments[1]
    assert same(webui.held(), base)


def test_a_file_that_is_replaced_while_it_is_live(webui):
    """The old one is still open: its base comes back, then the new one's directions are used."""
    base, moved = webui.held(), webui.image(settings=webui.at(0.5))
    path = webui.hypers / HYPER
    path.unlink()
    assert webui.image(settings=webui.at(0.5)) == moved
    webui.solve(HYPER, directions=1)
    assert webui.image(settings=webui.at(0.5)) == moved
    found = webui.run(webui.job("a cat", webui.at(0.5, 0.5)))
    assert len(found.comments) == 1 and "has 1 direction, so κ must stay 0" in found.comments[0]
    assert same(webui.held(), base)


def test_without_a_loaded_model(open_webui):
    webui = open_webui(no_half=True)
    assert webui.live.want(webui.at(0.5)).startswith("no model is loaded yet")
    assert webui.model is None


def test_while_another_unet_computes(webui):
    from modules import sd_unet

    plain = webui.image()
    sd_unet.current_unet = object()
    found = webui.run(webui.job("a cat", webui.at(0.5)))
    assert found.images == [plain] and "choose “None” for SD Unet" in found.comments[0]


def test_what_nobody_expected_is_said_in_the_picture(webui, monkeypatch):
    base, plain = webui.held(), webui.image()
    webui.image(settings=webui.at(0.25))
    monkeypatch.setattr(webui.host, "hyper_path", lambda name: 1 / 0)
    found = webui.run(webui.job("a cat", webui.at(0.5)))
    assert found.images == [plain] and found.comments == ["Hyper-Merge: division by zero"]
    assert same(webui.held(), base)


def test_tensors_on_another_device(webui, monkeypatch):
    """Blended by torch's own operations, which find every parameter anew as well."""
    model = type(webui.ext("pack").Hyper(str(webui.hypers / HYPER), HYPER).model)
    bind, ways = model.bind, []
    monkeypatch.setattr(
        model, "bind", lambda self, state, **more: ways.append(1) or bind(self, state, by_torch="exact", **more)
    )
    base, plain = webui.held(), webui.image()
    webui.live.want(webui.at(0.5, -0.25))
    by_torch = webui.held()
    for parameter in webui.model.parameters():
        parameter.data = parameter.data.clone()
    assert webui.image() == plain and same(webui.held(), base)
    webui.live.off()
    monkeypatch.undo()
    webui.live.want(webui.at(0.5, -0.25))
    assert same(webui.held(), by_torch) and ways == [1]


@pytest.mark.parametrize(
    ("held", "stored"),
    [
        ("model.diffusion_model.out.2.weight", "model.diffusion_model.out.2.weight"),
        ("cond_stage_model.wrapped.transformer.text_model.embeddings.token_embedding.wrapped.weight",
         "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"),
        ("cond_stage_model.wrapped.transformer.text_model.final_layer_norm.bias",
         "cond_stage_model.transformer.final_layer_norm.bias"),
        ("cond_stage_model.wrapped.model.ln_final.weight", "conditioner.embedders.0.model.ln_final.weight"),
        ("conditioner.embedders.1.wrapped.model.token_embedding.wrapped.weight",
         "conditioner.embedders.1.model.token_embedding.weight"),
    ],
)  # fmt: skip
def test_names_of_the_host_and_of_files(webui, held, stored):
    """SD1.5 as it is and as some files spell it, SD2 turbo, SDXL."""
    module = torch.nn.Module()
    *path, leaf = held.split(".")
    place = module
    for part in path:
        place.add_module(part, torch.nn.Module())
        place = getattr(place, part)
    place.register_parameter(leaf, torch.nn.Parameter(torch.zeros(2)))
    found = webui.ext("a1111").targets(module, [stored, "first_stage_model.decoder.weight"])
    assert {key: name for key, (_, name) in found.whole.items()} == {held: stored}
    assert webui.ext("a1111").targets(module, ["another"]).whole == {}


def test_the_vae_is_not_moved(webui):
    """The host exchanges it by itself; a checkpoint that is saved has it."""
    webui.solve(HYPER, include=["*"])
    webui.load_base()
    before = webui.held()["first_stage_model.decoder.weight"]
    webui.live.want(webui.at(0.5))
    assert webui.live.current() == webui.at(0.5)
    assert torch.equal(webui.held()["first_stage_model.decoder.weight"], before)
