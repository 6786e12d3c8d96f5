"""Patches on a stand-in of ComfyUI's patcher: exact, in any order with LoRAs, made anew by a prefetch, given back."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch

from comfyui import pack, stand_in
from comfyui.blends import HOST, Patch, apply, blend, expected, held, make, names_of, patcher_of, same

directions = pack.part("logic.directions")
weights = pack.part("logic.weights")

AT = (0.37, -0.81)


@pytest.fixture(scope="module")
def hyper(tmp_path_factory):
    return make(tmp_path_factory.mktemp("patches") / "a")


@pytest.fixture(params=[False, True], ids=["file", "memory"])
def more(request):
    return {"in_memory": request.param, "fast": False}


def test_a_blend_is_the_oracles_to_the_last_bit(hyper, more):
    host, upstream = stand_in.Host(), patcher_of(hyper)
    assert same(held(host.load(blend(upstream, hyper, AT, **more))), expected(hyper, AT))
    assert same(held(host.load(upstream)), expected(hyper, (0, 0)))


@pytest.mark.parametrize("dtype, name", [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_a_blend_is_rounded_once_in_half_types(hyper, more, dtype, name):
    """The host holds cast(W̃) and rounds at the end, so what it comes to is the oracle's on that base."""
    model = stand_in.Host().load(blend(patcher_of(hyper, dtype), hyper, AT, **more))
    again = stand_in.Host().load(blend(patcher_of(hyper, torch.float32), hyper, AT, **more))
    if name == "F16":  # the file's own type: nothing is lost on the way in
        assert same(held(model), {key: tensor.to(dtype) for key, tensor in held(again).items()})
    for key, tensor in held(model).items():
        assert tensor.dtype == dtype
        assert torch.allclose(tensor.float(), held(again)[key], rtol=2**-7, atol=1e-3)


def test_zero_leaves_the_model_alone(hyper, more):
    upstream = patcher_of(hyper)
    changed = blend(upstream, hyper, (0, 0), **more)
    assert all(patches[0][1].move.low for patches in changed.patches.values())  # what is left only adds base_low
    assert same(held(stand_in.Host().load(changed)), expected(hyper, (0, 0)))


def test_lora_before_and_after(hyper, more):
    """Patches add up: the same result whichever way round, but for the rounding of sums."""
    generator = torch.Generator().manual_seed(3)
    lora = {
        key: (0.01 * torch.randn(tensor.shape, generator=generator),)
        for key, tensor in patcher_of(hyper).model_state_dict().items()
    }
    wanted = {key: tensor + 0.5 * lora[key][0] for key, tensor in expected(hyper, AT).items()}
    before = patcher_of(hyper).clone()
    before.add_patches(lora, 0.5)
    after = blend(patcher_of(hyper), hyper, AT, **more).clone()
    after.add_patches(lora, 0.5)
    for patcher in (blend(before, hyper, AT, **more), after):
        for key, tensor in held(stand_in.Host().load(patcher)).items():
            assert torch.allclose(tensor, wanted[key], rtol=0, atol=1e-6)


def test_a_patch_made_anew_by_a_prefetch_is_the_same(hyper, more):
    """ComfyUI copies the tensors of `weights` to the device and makes a patch of the same type around them."""
    upstream = patcher_of(hyper)
    changed = blend(upstream, hyper, AT, **more)
    copied = []
    for key, patches in changed.patches.items():
        again = stand_in.prefetched(patches[0][1], copied)
        assert type(again) is Patch and again is not patches[0][1]
        weight = upstream.model.get_parameter(key).to(torch.float32, copy=True)
        out = again.calculate_weight(weight, key, 1.0, 1.0, None, None, torch.float32, None)
        assert out is weight and torch.equal(out, expected(hyper, AT)[key])
    assert bool(copied) == more["in_memory"]


def test_layers_that_stay_behind_are_patched_at_each_forward(hyper, more):
    changed = blend(patcher_of(hyper), hyper, AT, **more)
    model = stand_in.Host().load(changed, lowvram=2)
    assert model.model_lowvram and model.late
    assert same(held(model), expected(hyper, AT)) and same(held(model), expected(hyper, AT))


def test_nested_in_a_merge(hyper, more):
    """Merge nodes give a weight and its patches as one value: half the base plus half the blend."""
    upstream = patcher_of(hyper)
    changed = blend(upstream, hyper, AT, **more)
    merged = upstream.clone()
    nested = {key: [upstream.model.get_parameter(key), *patches] for key, patches in changed.patches.items()}
    merged.add_patches(nested, 0.5, 0.5)
    base, moved = expected(hyper, (0, 0)), expected(hyper, AT)
    for key, tensor in held(stand_in.Host().load(merged)).items():
        assert torch.allclose(tensor, (base[key] + moved[key]) / 2, rtol=0, atol=1e-6)


def test_strength_multiplies_the_multipliers(hyper, more):
    """Hooks give a strength for each step."""
    changed = blend(patcher_of(hyper), hyper, (1, 0), **more)
    for key, patches in changed.patches.items():
        weight = expected(hyper, (0, 0))[key].clone()
        patches[0][1].calculate_weight(weight, key, -0.25, 1.0, None, None)
        assert torch.equal(weight, expected(hyper, (-0.25, 0))[key])


def test_blocks_and_text_encoders(hyper, more):
    blocks = (("*.input_blocks.*", (0.0, 0.0)), ("*.input_blocks.1.*", (1.0, 0.0)))
    found = held(stand_in.Host().load(blend(patcher_of(hyper), hyper, AT, blocks=blocks, **more)))
    for key, tensor in found.items():
        at = (1, 0) if "input_blocks.1." in key else (0, 0) if "input_blocks" in key else AT
        assert torch.equal(tensor, expected(hyper, at)[key])
    clip = blend(patcher_of(hyper, part="clip"), hyper, AT, "CLIP", strength_clip=0.5, **more)
    half = tuple(0.5 * c for c in AT)
    assert same(held(stand_in.Host().load(clip)), expected(hyper, half, part="clip"))


@pytest.mark.parametrize("fast", [False, True], ids=["patch", "auto"])
@pytest.mark.parametrize(
    "glob, held_to", [("*", 0.5), ("cond*", 1), ("*transformer*", 1), ("*weight", 0.5)], ids=lambda given: str(given)
)
def test_the_text_encoders_factor_holds_on_top_of_blocks(hyper, glob, held_to, fast):
    """0 leaves them as they are, whatever the blocks say of everything; lines about them alone decide themselves."""
    found = names_of(hyper).clip
    names = [part.name for part in found.values() if part.name in hyper.stored.moving]
    assert any(fnmatchcase(name, glob) for name in names)
    for factor in (0.5, 0.0):
        more = {"strength_clip": factor, "blocks": ((glob, (1.0, 0.5)),), "fast": fast}
        clip = held(stand_in.Host().load(blend(patcher_of(hyper, part="clip"), hyper, AT, "CLIP", **more)))
        for key, tensor in clip.items():
            if fnmatchcase(found[key].name, glob):
                at = (1.0, 0.5) if held_to == 1 else (factor, 0.5 * factor)
            else:
                at = tuple(c * factor for c in AT)
            assert torch.equal(tensor, expected(hyper, at, part="clip")[key])


def test_memory_is_given_back_and_taken_anew(hyper):
    host = stand_in.Host()
    changed = blend(patcher_of(hyper), hyper, AT, in_memory=True, fast=False)
    kept = hyper.directions(True)
    kept.drop()
    host.load(changed)
    moved = [part.name for part in names_of(hyper).model.values() if part.name in hyper.stored.moving]
    assert kept.bytes_kept == sum(2 * 2 * torch.Size(hyper.stored.shapes[name]).numel() for name in moved)
    assert kept.bytes_kept <= kept.bytes_needed
    host.free()
    assert kept.bytes_kept == 0
    assert same(held(host.load(changed)), expected(hyper, AT)) and kept.bytes_kept > 0


def test_memory_is_given_back_when_the_base_was_used_last(hyper):
    """All clones are one loaded model, and ComfyUI tells only the one that is loaded."""
    host, upstream, kept = stand_in.Host(), patcher_of(hyper), hyper.directions(True)
    for at in (AT, (0.5, 0.0)):
        host.load(blend(upstream, hyper, at, in_memory=True))
    host.load(upstream)
    assert kept.bytes_kept > 0  # the next move needs them
    host.free()
    assert kept.bytes_kept == 0
    assert [len(given) for given in upstream.callbacks[stand_in.ON_DETACH].values()] == [1]
    assert same(held(host.load(upstream)), expected(hyper, (0, 0)))


def test_directions_that_do_not_fit_are_read_from_the_file(hyper, caplog):
    small = HOST._replace(free_memory=lambda: apply.KEEP_FREE)
    hyper.directions(True).drop()
    found = apply.directions_of(hyper, apply.Blend(AT, in_memory=True), small)
    assert found is hyper.directions(False) and "not free" in caplog.text


def test_another_family_is_refused(hyper):
    stranger = stand_in.Patcher(stand_in.Model({"diffusion_model.conv.weight": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match="another family"):
        blend(stranger, hyper, AT)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda tensor: tensor.to(torch.uint8), "quantised: .* holds uint8 numbers"),
        (lambda tensor: tensor.repeat_interleave(2, 0), "another model .* has the shape"),
    ],
)
def test_a_weight_that_cannot_take_it_is_named(hyper, change, said):
    upstream = patcher_of(hyper)
    key = "diffusion_model.middle_block.0.weight"
    stand_in.set_weight(upstream.model, key, change(upstream.model.get_parameter(key)))
    with pytest.raises(ValueError, match=said) as refused:
        blend(upstream, hyper, AT)
    assert key in str(refused.value)


def test_a_weight_that_another_node_reshapes_is_named(hyper):
    changed = blend(patcher_of(hyper), hyper, AT, fast=False)
    key, patches = next(iter(changed.patches.items()))
    with pytest.raises(ValueError, match="put HyperMerge Blend before it"):
        patches[0][1].calculate_weight(torch.zeros(5, 5, 5), key, 1.0, 1.0, None, None)


def test_missing_tensors_are_said_in_one_line(hyper, caplog):
    upstream = patcher_of(hyper)
    del upstream.model.diffusion_model.middle_block
    found = held(stand_in.Host().load(blend(upstream, hyper, AT)))
    wanted = expected(hyper, AT)
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.items()) and len(found) == len(wanted) - 1
    said = [record.message for record in caplog.records if "lacks 1 tensors" in record.message]
    assert len(said) == 1 and "diffusion_model.middle_block.0.weight" in said[0]


def test_base_low_is_added_to_its_own_base_only(tmp_path):
    """A mean that fp16 holds badly has a low part, which belongs to this very base."""
    hyper = make(tmp_path / "low", delta=0.002)
    assert any(tensor.rows[1] is not None for tensor in hyper.stored.moving.values())
    own = held(stand_in.Host().load(blend(patcher_of(hyper), hyper, AT)))
    assert same(own, expected(hyper, AT))
    other = patcher_of(hyper)
    other.set_attachments(apply.BASE_OF, None)
    plain = held(stand_in.Host().load(blend(other, hyper, AT)))
    key = next(key for key, part in names_of(hyper).model.items() if hyper.stored.moving[part.name].rows[1] is not None)
    assert not torch.equal(plain[key], own[key]) and torch.allclose(plain[key], own[key], atol=1e-3)


@pytest.mark.parametrize("fast", [False, True], ids=["patch", "auto"])
def test_base_low_is_added_once_by_two_blends_in_a_row(tmp_path, fast):
    hyper = make(tmp_path / "low", delta=0.002)
    parts = names_of(hyper).model
    host, upstream = stand_in.Host(), patcher_of(hyper)
    key = next(key for key, part in parts.items() if hyper.stored.moving[part.name].rows[1] is not None)
    low = hyper.stored.read(parts[key].name, 1).float()
    assert low.abs().max() > 1e-6
    for one, two in (((0.3, 0.1), (0.07, -0.91)), ((0.0, 0.0), AT)):
        found = held(host.load(blend(blend(upstream, hyper, one, fast=fast), hyper, two, fast=fast)))
        assert (found[key] - expected(hyper, AT)[key]).abs().max() < low.abs().max() / 8
    assert same(held(host.load(blend(upstream, hyper, AT, fast=fast))), expected(hyper, AT))  # theirs is still there


def test_parameters_that_comfyui_never_patches_are_named(hyper, caplog):
    """Such as blocks.0.modulation of Wan: accepted by add_patches, passed over when patches are applied."""
    upstream = patcher_of(hyper)
    found = names_of(hyper).model
    apply.say_what_is_passed_over(upstream.model, hyper, found)
    assert not caplog.records
    key = "diffusion_model.middle_block.0.weight"
    upstream.model.get_submodule(key.rpartition(".")[0]).add_module("inside", torch.nn.Linear(2, 2))
    apply.say_what_is_passed_over(upstream.model, hyper, found)
    (record,) = caplog.records
    assert f"these 1 stay as they are: {key};" in record.message
    assert not weights.is_passed_over(upstream.model, "diffusion_model.nowhere.weight")
    upstream.model.diffusion_model.register_buffer("pos_embed", torch.zeros(1, 4, 4))  # as in SD3
    assert weights.is_passed_over(upstream.model, "diffusion_model.pos_embed")


def test_without_a_base_a_blend_takes_the_models_place(tmp_path):
    hyper = make(tmp_path / "none", base="none", directions=3)
    assert hyper.replaces
    at = hyper.model.members[0].multipliers
    upstream = stand_in.Patcher(
        stand_in.Model({key: torch.full(part.shape, 7.0) for key, part in names_of(hyper).model.items()})
    )
    for fast in (False, True):
        found = held(stand_in.Host().load(blend(upstream.clone(), hyper, at, fast=fast)))
        for key, part in names_of(hyper).model.items():
            rows = [hyper.stored.read(part.name, 2 + k).double() for k in range(3)]
            assert torch.allclose(found[key].double(), sum(c * row for c, row in zip(at, rows)), atol=1e-5)


@pytest.mark.parametrize("in_memory", [False, True])
def test_parts_and_transposed_tensors(hyper, in_memory):
    """A host may cut a fused tensor into three, and turn one round."""
    name = "model.diffusion_model.middle_block.0.weight"
    whole = sum(c * hyper.stored.read(name, 2 + k).float() for k, c in enumerate(AT))
    source = hyper.directions(in_memory)
    rows, columns = whole.shape
    part = directions.Part(name, 19 * columns, (19, columns))
    out = torch.zeros(19, columns)
    source.blend_(out, out, part, AT, False)
    assert torch.allclose(out, whole[19:38], atol=1e-7)
    out = torch.ones(columns, rows)
    source.blend_(out, out, directions.Part(name, 0, (columns, rows), True), AT, False)
    assert torch.allclose(out, 1 + whole.T, atol=1e-6)
    assert weights.Move(source, part, (0.0, 0.0), False, False).is_still
