"""Which of the host's tensors is which of the hyper-model's, whatever the host does to a state dict."""

from __future__ import annotations

import logging

import pytest
import torch

from comfyui import pack
from comfyui.blends import apply, make, names_of

keys = pack.part("logic.keys")
Part = pack.part("logic.directions").Part


def fused(state):
    """As ComfyUI turns an OpenCLIP text encoder into its own: three from one, a transposed one, a new name, an
    addition.
    """
    weights = state.pop("clip.attn.in_proj_weight")
    rows = weights.shape[0] // 3
    for x, name in enumerate(("q", "k", "v")):
        state[f"te.{name}.weight"] = weights[x * rows : (x + 1) * rows]
    state["te.text_projection.weight"] = state.pop("clip.text_projection").transpose(0, 1).contiguous()
    state["te.norm.weight"] = state.pop("clip.ln_final.weight")
    state["te.position_ids"] = torch.arange(77).float()
    state["te.conv.weight"] = state.pop("clip.proj.weight")[:, :, 0, 0]
    state["te.scale"] = state.pop("clip.scale")
    return state


SHAPES = {
    "clip.attn.in_proj_weight": (12, 5),
    "clip.text_projection": (4, 4),
    "clip.ln_final.weight": (6,),
    "clip.proj.weight": (7, 3, 1, 1),
    "clip.scale": (),
}


def test_names_cuts_and_turns_are_followed():
    found, lost = keys.parts(SHAPES, fused)
    assert lost == []
    assert found == {
        "te.q.weight": Part("clip.attn.in_proj_weight", 0, (4, 5)),
        "te.k.weight": Part("clip.attn.in_proj_weight", 20, (4, 5)),
        "te.v.weight": Part("clip.attn.in_proj_weight", 40, (4, 5)),
        "te.text_projection.weight": Part("clip.text_projection", 0, (4, 4), True),
        "te.norm.weight": Part("clip.ln_final.weight", 0, (6,)),
        "te.conv.weight": Part("clip.proj.weight", 0, (7, 3)),
        "te.scale": Part("clip.scale", 0, ()),
    }


def test_the_found_parts_give_the_numbers_that_the_conversion_gives():
    """What a Part says of a real tensor is what the host makes of it."""
    real = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    converted = fused(dict(real))
    for key, part in keys.parts(SHAPES, fused)[0].items():
        if part.transposed:
            assert torch.equal(converted[key], real[part.name].T)
        else:
            run = real[part.name].reshape(-1)[part.start : part.start + converted[key].numel()]
            assert torch.equal(converted[key], run.view(part.shape))


@pytest.mark.parametrize(
    "convert",
    [
        lambda state: {"qkv": torch.cat([state["q"], state["k"]])},
        lambda state: {"q": state["q"][::2]},
        lambda state: {"q": state["q"].flip(0)},
        lambda state: {"q": state["q"][:, :2]},
        lambda state: {"q": state["q"] + state["k"]},
    ],
    ids=["joined", "every second row", "turned round", "columns", "sum"],
)
def test_what_cannot_be_followed_is_named_not_guessed(convert):
    found, lost = keys.parts({"q": (4, 3), "k": (4, 3)}, convert)
    assert found == {} and len(lost) == 1


def test_no_memory_is_taken_for_large_tensors():
    """The probe of a tensor of 10^12 elements is a view."""
    found, _ = keys.parts({"huge.weight": (1_000_000, 1_000_000)}, lambda state: state)
    assert found == {"huge.weight": Part("huge.weight", 0, (1_000_000, 1_000_000))}


def test_a_denoiser_with_and_without_its_prefix():
    shapes = {"model.diffusion_model.a.weight": (2, 2), "first_stage_model.b.weight": (3,)}
    found, _ = keys.denoiser(shapes, lambda names: "model.diffusion_model.", lambda state: state)
    assert found == {"a.weight": Part("model.diffusion_model.a.weight", 0, (2, 2))}
    found, _ = keys.denoiser({"a.weight": (2, 2)}, lambda names: "model.", lambda state: {"x": state["a.weight"]})
    assert found == {"x": Part("a.weight", 0, (2, 2))}


def test_tensors_without_a_place_are_said_in_one_line(tmp_path, caplog):
    hyper = make(tmp_path / "x")
    with caplog.at_level(logging.INFO, "hyper_merge"):
        apply.names_of(hyper, lambda names: "model.diffusion_model.", lambda state: state, lambda state: {})
    assert len(caplog.records) == 1 and "moves 2 tensors that no MODEL or CLIP holds: cond_stage_model." in caplog.text
    caplog.clear()
    assert set(names_of(hyper).clip) == {
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "clip_l.transformer.text_model.final_layer_norm.bias",
    }
    assert caplog.records == []


def test_a_glob_that_matches_nothing_is_refused(tmp_path):
    hyper = make(tmp_path / "x")
    assert apply.blocks_of([("*.input_blocks.*", [1.0, 0.0])], hyper) == (("*.input_blocks.*", (1.0, 0.0)),)
    with pytest.raises(ValueError, match=r"matches the pattern \*\.inputs\*"):
        apply.blocks_of([("*.inputs*", [0.0, 0.0])], hyper)
