"""Hyper-models whose directions are factors, on a stand-in of ComfyUI's patcher: by both ways, from file and memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfyui import stand_in
from comfyui.blends import blend, held, hypers, names_of, patcher_of, same
from test_low_rank import DIRECTIONS, POINTS, UNET, LowRank


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory):
    return LowRank(tmp_path_factory.mktemp("low_rank_blend"), base_dtype="F32")


@pytest.fixture(scope="module")
def hyper(low_rank):
    return hypers.Hyper(str(low_rank.path), low_rank.path.name)


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("fast", [False, True], ids=["patches", "fast"])
def test_blends_of_factors(low_rank, hyper, fast, in_memory):
    """One host throughout, so that from the second point on the fast way rewrites what is loaded."""
    host, upstream = stand_in.Host(), patcher_of(hyper)
    parts = names_of(hyper).model
    for at in POINTS:
        loaded = held(host.load(blend(upstream, hyper, at, fast=fast, in_memory=in_memory)))
        assert {part.name for part in parts.values()} >= {UNET + name for name in DIRECTIONS}
        for key, part in parts.items():
            wanted, room = low_rank.blend(part.name, at)
            assert np.all(np.abs(loaded[key].double().numpy() - wanted) <= room), (key, at)
    base = {key: torch.from_numpy(low_rank.blend(part.name, (0, 0))[0]).float() for key, part in parts.items()}
    assert same(held(host.load(upstream)), base)
