"""Blends by torch's own operations: against the compiled part on the CPU, and on CUDA where there is a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import hypermerge_ext as hm
import oracle
from hypermerge_ext import device
from live_models import LAYOUTS, blended, copies, equal_numbers, from_torch, lay_out, make, same, state_of, to_torch

DTYPES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
AT = (0.4, -1.3, 0.25)

cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO CUDA DEVICE: blends on a GPU were NOT tested on this machine"
)


@pytest.fixture(scope="module", params=["F32", "F16", "BF16", "F8_E4M3"])
def model(request, tmp_path_factory):
    """(HyperModel, path): five models, three directions."""
    return make(tmp_path_factory.mktemp("devices"), 5, 3, request.param)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces so small that every tensor has several."""
    monkeypatch.setattr(device, "PIECE", 100)


def steps_apart(one: oracle.Tensor, other: oracle.Tensor, scale: float) -> float:
    """The largest difference, in units of half a last place at the size of the numbers."""
    room = oracle.STEP[one.dtype] * np.maximum(np.abs(other.f64()), 1e-4 * scale) + 2.0**-24 * scale
    return float((np.abs(one.f64() - other.f64()) / room).max(initial=0))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 40))
def test_pieces_are_the_tensor(shape, most):
    whole = torch.arange(int(np.prod(shape))).view(shape)
    found, end = [], 0
    for index, start, count in device.pieces(shape, most):
        assert start == end and 0 < count <= most and whole[index].numel() == count
        found += whole[index].flatten().tolist()
        end += count
    assert found == list(range(whole.numel()))


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_is_the_compiled_part_bit_for_bit(model, small_pieces, layout, in_memory):
    hyper, path = model
    for dtype in (*DTYPES, "F64"):
        state = state_of(path, dtype, layout)
        start = copies(state)
        live = hyper.bind(state, by_torch="exact", in_memory=in_memory)
        for at in (AT, (0, 2.5), ()):
            live.set(*at)
            assert same(state, blended(path, at, dtype)), (dtype, at)
        live.restore()
        assert same(state, start)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_is_within_the_stated_tolerance(model, layout):
    hyper, path = model
    for dtype in DTYPES:
        state = state_of(path, dtype, layout)
        live = hyper.bind(state, by_torch="fused")
        live.set(*AT)
        for name, item in blended(path, AT, dtype).items():
            assert steps_apart(from_torch(state[name]), item, float(np.abs(item.f64()).max())) <= 2.0, (name, dtype)


class Operations(TorchDispatchMode):
    """Notes the names of torch's operations but for views, and the devices of what they take and give."""

    def __init__(self):
        super().__init__()
        self.names, self.devices = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.names.append(function.__name__)
        self.devices |= {str(item.device) for item in (*args, found) if isinstance(item, torch.Tensor)}
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("shape", [(300,), (15, 20)], ids=["row", "matrix"])
def test_nothing_leaves_the_device_and_nothing_is_allocated_twice(dtype, shape):
    """On 'meta', where there are no numbers: which operations would run, and where."""
    blender = device.Blender()
    out, base = (torch.empty(shape, dtype=dtype, device="meta") for _ in range(2))
    directions = [torch.empty(shape, dtype=kind, device="meta") for kind in (torch.float32, torch.float16, torch.float32)]
    with torch.inference_mode():
        blender.write(out, [(base, 1.0), *((item, 0.5) for item in directions)], 4)  # makes the buffers
        with Operations() as seen:
            blender.write(out, [(base, 1.0), *((item, 0.5) for item in directions)], 4)
    assert seen.devices == {"meta"}
    copy, into, last = ["copy_.default"], ["add.out"], ["copy_.default"]
    if dtype == torch.float32:
        last = []
    elif dtype == torch.float8_e5m2:
        last = ["clamp_.default", "copy_.default"]
    assert seen.names == [*copy, *into, *copy, *into, *into, *last]  # the f16 direction goes through a copy as f32


def test_what_is_kept_on_the_device_is_read_once(model, monkeypatch):
    hyper, path = model
    state = state_of(path, "F16")
    live = hyper.bind(state, by_torch="exact", in_memory=True, keep_original=True)
    live.set(*AT)
    monkeypatch.setattr(device._core, "read_stored", lambda *_: pytest.fail("read the file again"))
    for at in ((1, 0, -1), AT):
        live.set(*at)
    monkeypatch.undo()
    assert same(state, blended(path, AT, "F16"))


def test_a_file_that_breaks_leaves_whole_tensors(tmp_path, monkeypatch):
    """An error in the middle: every tensor, also one of f32, holds its old numbers or its new ones."""
    hyper, path = make(tmp_path, 4, 2, "F32")
    state = state_of(path, "F32")
    live = hyper.bind(state, by_torch="exact")
    old, new, read = copies(state), blended(path, [0.5, 2.0], "F32"), device._core.read_stored
    for step in range(3 * len(state)):
        left = [step]

        def breaking(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise hm.Error("the disk is gone")
            read(*arguments)

        monkeypatch.setattr(device._core, "read_stored", breaking)
        with pytest.raises(hm.Error, match="the disk is gone"):
            live.set(0.5, 2.0)
        monkeypatch.undo()
        for name, item in new.items():
            now = from_torch(state[name])
            assert now.same(item) or now.same(old[name]), (step, name)
        live.restore()
    live.set(0.5, 2.0)
    assert same(state, new)


def test_overflow_and_special_numbers():
    base = torch.tensor([6e4, -6e4, 0.0, -0.0, 1e-8, float("inf"), float("nan"), 3e38])
    direction = torch.tensor([1e4, -1e4, -0.0, -0.0, 1e-8, 1.0, 1.0, 3e38])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2):
        one, other = torch.zeros(8, dtype=dtype), torch.zeros(8, dtype=dtype)
        hm.blend_(one, base, [direction], [1.5])
        device.blend_tensors(other, base, [direction], [1.5], exact=True)
        assert equal_numbers(from_torch(one), from_torch(other))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.sampled_from(["none", "out", "other"])
)
def test_one_tensor(seed, dtype, layout, kind):
    rng = np.random.default_rng(seed)
    shape = [(5, 3, 3, 3), (41, 7), (131,), (), (0, 2)][seed % 5]
    tensors = [
        to_torch(oracle.tensor(rng.standard_normal(shape), kinds)) for kinds in (dtype, dtype, "F16", "BF16", "F32")
    ]
    out, base, *directions = [lay_out(tensor, layout) for tensor in tensors]
    copy = lay_out(out.clone(), layout)
    at = rng.standard_normal(3)
    hm.blend_(out, {"none": None, "out": out, "other": base}[kind], directions, at)
    before, device.PIECE = device.PIECE, 50
    try:
        device.blend_tensors(copy, {"none": None, "out": copy, "other": base}[kind], directions, list(at), exact=True)
    finally:
        device.PIECE = before
    assert from_torch(out).same(from_torch(copy))


def test_one_tensor_refuses():
    out = torch.zeros(8)
    for operands, text in (
        ((torch.zeros(8, device="meta"), []), "device of the result"),
        ((None, [np.zeros(8)]), "device of the result"),
        ((torch.zeros(7), []), "another shape"),
        ((None, [torch.zeros(8, dtype=torch.int32)]), "not floating-point"),
        ((None, [out[:]]), "overlaps"),
    ):
        with pytest.raises(hm.ArgumentError, match=text):
            device.blend_tensors(out, *operands, [1.0] * len(operands[1]))


def test_some_tensors_elsewhere(tmp_path, small_pieces):
    """Part of the model goes to another device after it was bound, and comes back: no device is at hand, so the mark
    that torch has to do the work is set by hand.  Originals kept by the compiled part come back all the same."""
    hyper, path = make(tmp_path, 4, 2)
    state = state_of(path)
    odd = [name for name in state if state[name].ndim == 2]
    for name in odd:
        state[name].add_(0.25)
    start = copies(state)
    live = hyper.bind(state, keep_original=True)
    elsewhere = [live._targets[i] for i in (0, 2, 3)]
    look = hm.live.Target.look
    blocks = {"*middle*": [1.0, 1.0], "*.bias": [0.0, 0.5]}
    hyper.merge([0.3, -0.3], tmp_path / "y.safetensors", blocks=blocks)
    expected, seen = oracle.read(tmp_path / "y.safetensors").model, []
    with pytest.MonkeyPatch.context() as patch:

        def look_elsewhere(target, grad):
            described, by_torch = look(target, grad)
            return ((*described[:4], 0), True) if target in elsewhere else (described, by_torch)

        patch.setattr(hm.live.Target, "look", look_elsewhere)
        live._devices = device.DeviceBlends(live._hyper, live._rows, False, True)
        live.set(0.3, -0.3, blocks=blocks, progress=lambda done, total: seen.append((done, total)))
        assert same(state, expected)
        assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] == max(total for _, total in seen)
        held = copies(state)
        with pytest.raises(hm.ArgumentError, match="nowhere"):
            live.set(1, blocks={"nowhere.*": [0]})
        assert same(state, held)
        live.restore(progress=lambda done, total: seen.append((done, total)))
        assert same(state, start) and seen[-1][0] == seen[-1][1]
        live.set(0.3, -0.3, blocks=blocks)
    live.set(0.3, -0.3, blocks=blocks)
    assert same(state, expected)
    live.restore()
    assert same(state, start)


@cuda
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("exact", ["fused", "exact"])
def test_on_cuda(model, exact, in_memory):
    hyper, path = model
    for dtype in DTYPES:
        for layout in LAYOUTS:
            state = {name: tensor.to("cuda") for name, tensor in state_of(path, dtype, layout).items()}
            start = copies(state)
            live = hyper.bind(state, by_torch=exact, in_memory=in_memory)
            live.set(*AT)
            expected = blended(path, AT, dtype)
            for name, item in expected.items():
                found = from_torch(state[name])
                assert exact != "exact" or found.same(item)
                assert steps_apart(found, item, float(np.abs(item.f64()).max())) <= 2.0, (name, dtype)
            live.restore()
            assert same(state, start)


@cuda
def test_between_cpu_and_cuda(tmp_path):
    hyper, path = make(tmp_path, 4, 2, "F16")
    state = state_of(path)
    names = list(state)
    state[names[0]].data = state[names[0]].data.cuda()
    live = hyper.bind(state, by_torch=None)
    expected = blended(path, [0.5, -0.5])
    for move in ((), names, names[:2], names[2:]):
        for name in names:
            state[name].data = state[name].data.cuda() if name in move else state[name].data.cpu()
        live.set(0.5, -0.5)
        for name, item in expected.items():
            assert steps_apart(from_torch(state[name]), item, float(np.abs(item.f64()).max())) <= 2.0
        live.restore()
        assert same(state, copies(state_of(path)))
    out = torch.zeros(9, device="cuda")
    assert (hm.blend_(out, None, [torch.ones(9, device="cuda")], [2.0]) == 2).all()
    with pytest.raises(hm.ArgumentError, match="device"):
        hm.blend_(out, torch.ones(9), [], [])


@cuda
def test_memory_on_cuda_is_bounded(tmp_path):
    hyper, path = make(tmp_path, 3, 2, "F16", shapes={"large": (4000, 5000), "small": (7,)})
    state = {name: tensor.cuda() for name, tensor in state_of(path).items()}
    live = hyper.bind(state)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    live.set(1, 1)
    assert torch.cuda.max_memory_allocated() - before < 64 << 20
