"""The fast path: what is written into loaded weights is what patches would have made, in every order of use."""

from __future__ import annotations

import itertools

import pytest
import torch

from comfyui import stand_in
from comfyui.blends import blend, expected, fast_path, held, make, names_of, patcher_of, same

POINTS = ((0.0, 0.0), (1.0, -0.5), (0.37, -0.81), (-1.0, 0.0), (0.0, 0.25))


@pytest.fixture(scope="module")
def hyper(tmp_path_factory):
    return make(tmp_path_factory.mktemp("fast") / "a")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another hyper-model of the same architecture."""
    return make(tmp_path_factory.mktemp("fast") / "b", seed=9)


@pytest.fixture(params=[False, True], ids=["file", "memory"])
def in_memory(request):
    return request.param


def test_only_the_first_load_patches(hyper, in_memory):
    host, upstream = stand_in.Host(), patcher_of(hyper)
    for at in POINTS * 2:
        model = host.load(blend(upstream, hyper, at, in_memory=in_memory))
        assert same(held(model), expected(hyper, at))
    moved = sum(part.name in hyper.stored.moving for part in names_of(hyper).model.values())
    assert upstream.work["loads"] == 1 and upstream.work["patched"] == moved


def test_it_equals_patches_bit_for_bit(hyper, in_memory):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        fast, slow = stand_in.Host(), stand_in.Host()
        one, two = patcher_of(hyper, dtype), patcher_of(hyper, dtype)
        for at in POINTS:
            found = held(fast.load(blend(one, hyper, at, in_memory=in_memory)))
            assert same(found, held(slow.load(blend(two, hyper, at, in_memory=in_memory, fast=False))))
        assert one.work["loads"] == 1 < two.work["loads"]


def test_branches_of_one_graph_take_turns(hyper):
    """Two Blend nodes on one loader, the loader's own model between them, and each of them again."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    branches = {at: blend(upstream, hyper, at) for at in POINTS[1:3]}
    for at in (POINTS[1], POINTS[2], POINTS[1], None, POINTS[2], None, POINTS[1]):
        model = host.load(upstream if at is None else branches[at])
        assert same(held(model), expected(hyper, at or (0, 0)))


def test_the_same_patcher_again_does_nothing(hyper):
    host, upstream = stand_in.Host(), patcher_of(hyper)
    changed = blend(upstream, hyper, POINTS[1])
    host.load(changed)
    before = dict(upstream.work)
    for _ in range(3):
        assert same(held(host.load(changed)), expected(hyper, POINTS[1]))
    assert dict(upstream.work) == before


def test_clones_of_a_blend_are_the_blend(hyper):
    """Other nodes clone what they get, also while it is loaded."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    one = blend(upstream, hyper, POINTS[1])
    host.load(one)
    copy = one.clone()
    host.load(blend(upstream, hyper, POINTS[2]))
    assert same(held(host.load(copy)), expected(hyper, POINTS[1]))
    assert same(held(host.load(copy.clone())), expected(hyper, POINTS[1]))


def test_lora_after_a_blend_takes_the_ordinary_way(hyper):
    host, upstream = stand_in.Host(), patcher_of(hyper)
    lora = {key: (torch.full_like(weight, 0.01),) for key, weight in upstream.model_state_dict().items()}
    plain = blend(upstream, hyper, POINTS[1])
    host.load(plain)
    for at in POINTS[1:4]:
        changed = blend(upstream, hyper, at).clone()
        changed.add_patches(lora, 0.5)
        found = held(host.load(changed))
        for key, tensor in expected(hyper, at).items():
            assert torch.allclose(found[key], tensor + 0.005, rtol=0, atol=1e-6)
    assert same(held(host.load(plain)), expected(hyper, POINTS[1]))


def test_lora_before_a_blend_keeps_its_weight(hyper):
    """Keys with other patches are patched by the host itself, in order, and give what it always gives."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    key = "diffusion_model.middle_block.0.weight"
    before = upstream.clone()
    before.add_patches({key: (torch.full_like(upstream.model.get_parameter(key), 0.02),)}, 0.5)
    for at in POINTS[1:4]:
        found = held(host.load(blend(before, hyper, at)))
        slow = held(stand_in.Host().load(blend(_with_lora(hyper, key), hyper, at, fast=False)))
        assert same(found, slow)
    assert upstream.work["loads"] == 1


def _with_lora(hyper, key):
    patcher = patcher_of(hyper)
    patcher.add_patches({key: (torch.full_like(patcher.model.get_parameter(key), 0.02),)}, 0.5)
    return patcher


def test_two_hyper_models_on_one_model(hyper, other):
    """Both move; whichever of the two changes, the result is that of patches in the same order."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    slow_host, slow = stand_in.Host(), patcher_of(hyper)
    for one, two in itertools.product(POINTS[:3], repeat=2):
        found = held(host.load(blend(blend(upstream, hyper, one), other, two)))
        wanted = slow_host.load(blend(blend(slow, hyper, one, fast=False), other, two, fast=False))
        assert same(found, held(wanted))
    assert upstream.work["loads"] == 1


def test_unloading_and_loading_again(hyper, in_memory):
    host, upstream = stand_in.Host(), patcher_of(hyper)
    changed = blend(upstream, hyper, POINTS[1], in_memory=in_memory)
    host.load(changed)
    host.free()
    assert same(held(upstream.model), expected(hyper, (0, 0)))  # the host's backup went back
    for at in POINTS[1:4]:
        assert same(held(host.load(blend(upstream, hyper, at, in_memory=in_memory))), expected(hyper, at))
    assert upstream.work["loads"] == 2


def test_nothing_is_held_by_a_blend_that_is_gone(hyper):
    """The loaded weights stay right when the patcher that made them is collected."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    for at in POINTS:
        host.load(blend(upstream, hyper, at))
        stray = blend(upstream, hyper, (0.9, 0.9))
        del stray
        assert same(held(upstream.model), expected(hyper, at))


def test_a_blend_that_was_cut_off_is_put_right(hyper, monkeypatch):
    """An interrupt in the middle leaves some weights new and some old; the next load writes all of them."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    host.load(blend(upstream, hyper, POINTS[1]))
    whole, calls = fast_path._rewrite, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(fast_path, "_rewrite", fails)
    with pytest.raises(KeyboardInterrupt):
        host.load(blend(upstream, hyper, POINTS[2]))
    monkeypatch.undo()
    for at in (POINTS[1], POINTS[2]):
        assert same(held(host.load(blend(upstream, hyper, at))), expected(hyper, at))


def test_layers_that_were_moved_out_since(hyper):
    """Under pressure a host leaves layers behind, with patches of the old point: all of it is loaded anew."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    one = blend(upstream, hyper, POINTS[1])
    host.load(one)
    one.unpatch_model()
    host.load(one, lowvram=2)
    assert upstream.model.model_lowvram
    found = held(host.load(blend(upstream, hyper, POINTS[2]), lowvram=2))
    assert upstream.model.model_lowvram and same(found, expected(hyper, POINTS[2]))


@pytest.mark.parametrize("lowvram", [0, 3])
def test_layers_that_come_back(hyper, lowvram):
    """A host that takes layers in again leaves those alone which it has patched: with the old multipliers."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    one = blend(upstream, hyper, POINTS[1])
    assert same(held(host.load(one)), expected(hyper, POINTS[1]))
    branches = {at: blend(upstream, hyper, at) for at in POINTS[:4]}
    for at in (POINTS[2], POINTS[1], POINTS[2], POINTS[0]):
        host._loaded[id(upstream.model)].partially_unload(2)
        for _ in range(2):
            assert same(held(host.load(branches[at], lowvram=lowvram)), expected(hyper, at))


def test_text_encoders_too(hyper):
    host, upstream = stand_in.Host(), patcher_of(hyper, part="clip")
    for at, strength in itertools.product(POINTS[:3], (1.0, -0.5, 0.0)):
        changed = blend(upstream, hyper, at, "CLIP", strength_clip=strength)
        wanted = expected(hyper, tuple(strength * c for c in at), part="clip")
        assert same(held(host.load(changed)), wanted)
    assert upstream.work["loads"] == 1


def test_blocks_are_part_of_the_point(hyper):
    host, upstream = stand_in.Host(), patcher_of(hyper)
    blocks = (("*.input_blocks.*", (0.0, 0.0)),)
    for chosen in ((), blocks, ()):
        found = held(host.load(blend(upstream, hyper, POINTS[1], blocks=chosen)))
        for key, tensor in found.items():
            at = (0, 0) if chosen and "input_blocks" in key else POINTS[1]
            assert torch.equal(tensor, expected(hyper, at)[key])
    assert upstream.work["loads"] == 1


# ---- when it keeps out ----------------------------------------------------------------------------------------------


def _gpu(patcher):
    patcher.load_device = torch.device("cuda")


def _dynamic(patcher):
    patcher.is_dynamic = lambda: True


def _partly(patcher):
    patcher.model.model_lowvram = True


def _older(patcher):
    del patcher.backup


@pytest.mark.parametrize(
    "change, said",
    [(_gpu, "cuda"), (_dynamic, "dynamic VRAM"), (_partly, "in parts"), (_older, "lack backup")],
)
def test_it_says_why_not(hyper, change, said):
    patcher = patcher_of(hyper)
    assert fast_path.why_not(patcher) is None
    change(patcher)
    assert said in fast_path.why_not(patcher)


def test_elsewhere_patches_are_ordinary(hyper):
    """On another device every change has a uuid of its own, and nothing is injected."""
    upstream = patcher_of(hyper)
    upstream.is_dynamic = lambda: True
    one, two = blend(upstream, hyper, POINTS[1]), blend(upstream, hyper, POINTS[1])
    assert one.patches_uuid != two.patches_uuid and not one.injections and fast_path.KEY not in one.attachments
    fast = [blend(patcher, hyper, POINTS[1]) for patcher in [patcher_of(hyper)] for _ in range(2)]
    assert fast[0].patches_uuid == fast[1].patches_uuid and fast[0].injections


def test_weights_in_other_shapes_of_storage_are_left_to_the_host(hyper):
    """Views, and backups that the host writes into, are patched by the host: same numbers, no writing in place."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    host.load(blend(upstream, hyper, POINTS[1]))
    key = "diffusion_model.middle_block.0.weight"
    upstream.backup[key] = stand_in.Kept(upstream.backup[key].weight, True)
    before = upstream.work["patched"]
    assert same(held(host.load(blend(upstream, hyper, POINTS[2]))), expected(hyper, POINTS[2]))
    assert upstream.work["patched"] == before + 1
