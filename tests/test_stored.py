"""What a hyper-model holds, tensor by tensor: read and blended for hosts that patch weights one at a time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import hypermerge_ext as hm
from families import SHAPES
from hypermerge_ext import stored as module
from hypermerge_ext.stored import Stored
from live_models import LAYOUTS, blended, from_torch, lay_out, make, same, state_of

AT = (0.37, -0.81)


@pytest.fixture(scope="module", params=["F16", "BF16", "F32", "F8_E4M3"])
def made(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp("stored") / "x", dtype=request.param)


def test_what_is_listed(made):
    hyper, path = made
    found = Stored(hyper)
    assert found.shapes == {name: tuple(shape) for name, shape in SHAPES.items()}
    for name, tensor in found.moving.items():
        assert tensor.shape == found.shapes[name] and len(tensor.rows) == 2 + hyper.directions
        for row in (0, 2, 3):
            assert found.read(name, row).shape == tensor.shape
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
    wanted = sum(
        int(np.prod(tensor.shape)) * sizes[dtype] for tensor in found.moving.values() for dtype in tensor.rows[2:]
    )
    assert found.bytes() == wanted < found.bytes(0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("piece", [1 << 21, 50])
def test_blends_are_the_oracles(made, layout, piece, monkeypatch):
    """Whole and in pieces that end in the middle of rows; in place and from another base."""
    monkeypatch.setattr(module, "PIECE", piece)
    hyper, path = made
    found, state = Stored(hyper), state_of(path, layout=layout)
    for name in found.moving:
        assert found.blend_(state[name], state[name], name, AT, low=True) is state[name]
    assert same(state, blended(path, AT))
    bases, outs = state_of(path, layout=layout), state_of(path)
    for name in found.moving:
        outs[name] = lay_out(torch.full_like(bases[name], 7), layout)
        found.blend_(outs[name], bases[name], name, AT, low=True)
    assert same(outs, blended(path, AT)) and same(bases, state_of_model(path))


def state_of_model(path):
    return {name: from_torch(tensor) for name, tensor in state_of(path).items()}


def test_other_devices_come_close(made, monkeypatch):
    """The way of other devices, walked on the CPU: torch multiplies and adds in one step there."""
    monkeypatch.setattr(module, "PIECE", 50)
    hyper, path = made
    found, exact = Stored(hyper), state_of(path, "F32")
    state = state_of(path, "F32")
    monkeypatch.setattr(found, "_blend_here", found._blend_there)
    for name in found.moving:
        found.blend_(state[name], state[name], name, AT, low=True)
        Stored(hyper).blend_(exact[name], exact[name], name, AT, low=True)
        assert torch.allclose(state[name], exact[name], rtol=1e-5, atol=1e-6)


def test_parts_of_a_tensor(made):
    hyper, path = made
    found = Stored(hyper)
    name = "model.diffusion_model.middle_block.0.weight"
    whole = found.blend_(torch.zeros(SHAPES[name]), None, name, AT)
    for start, count in ((0, 57 * 33), (33, 66), (40, 7), (57 * 33, 0)):
        out = torch.ones(count)
        found.blend_(out, None, name, AT, start=start)
        assert torch.equal(out, whole.view(-1)[start : start + count])
        found.blend_(out, out, name, (0.0, 0.0), start=start)
        assert torch.equal(out, whole.view(-1)[start : start + count])
    for start, count in ((-1, 3), (57 * 33 - 2, 3)):
        with pytest.raises(hm.MismatchError, match="has no elements"):
            found.blend_(torch.ones(count), None, name, AT, start=start)


def test_missing_multipliers_and_nothing_at_all(made):
    hyper, path = made
    found, name = Stored(hyper), "model.diffusion_model.middle_block.0.weight"
    one = found.blend_(torch.zeros(SHAPES[name]), None, name, (0.5,))
    assert torch.equal(one, found.blend_(torch.ones(SHAPES[name]), None, name, (0.5, 0.0)))
    assert torch.equal(found.blend_(torch.ones(SHAPES[name]), None, name, ()), torch.zeros(SHAPES[name]))


def test_refusals(made):
    hyper, path = made
    found, name = Stored(hyper), "model.diffusion_model.middle_block.0.weight"
    out = torch.zeros(SHAPES[name])
    with pytest.raises(hm.ArgumentError, match="no direction of the hyper-model moves this tensor"):
        found.blend_(out, out, "other", AT)
    with pytest.raises(hm.ArgumentError, match="4 multipliers for"):
        found.blend_(out, out, name, (1, 2, 3, 4))
    with pytest.raises(hm.MismatchError, match="different shapes"):
        found.blend_(out, torch.zeros(3), name, AT)


def test_rows_that_are_not_there(tmp_path):
    """In f32 a mean needs no low part; without base there is none at all."""
    hyper, _ = make(tmp_path / "x", dtype="F32")
    name = "model.diffusion_model.middle_block.0.weight"
    with pytest.raises(hm.ArgumentError, match="row 1 is not stored"):
        Stored(hyper).read(name, 1)
    hyper, _ = make(tmp_path / "y", base="none")
    with pytest.raises(hm.ArgumentError, match="row 0 is not stored"):
        Stored(hyper).read(name, 0)


def test_a_solved_but_unsaved_one_is_refused(tmp_path):
    _, path = make(tmp_path / "x")
    with pytest.raises(hm.Error, match="not saved yet"):
        Stored(hm.solve([tmp_path / "x" / f"m{i}.safetensors" for i in range(4)]))


def test_threads_wait_for_each_other(made):
    """They share the buffers."""
    hyper, path = made
    found, results = Stored(hyper), {}
    wanted = blended(path, AT, "F32")

    def work(number):
        states = state_of(path, "F32")
        for name in found.moving:
            found.blend_(states[name], states[name], name, AT, low=True)
        results[number] = same(states, wanted)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(6), True)
