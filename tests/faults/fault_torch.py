"""Torch tensors that are freed, moved or shrunk behind our back: refused or followed, never read where they are not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

import hypermerge_ext as hm
from ground import AT, JOBS, Found, Ground, fault, fingerprint

State = dict[str, torch.Tensor]


def _own(path: Path) -> State:
    """The tensors of a file in memory of their own, which can be given back."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _state(ground: Ground) -> State:
    return {name: tensor for name, tensor in _own(ground.hyper).items() if not name.startswith("hypermerge.")}


def freed(state: State, name: str) -> None:
    """The storage gives its memory back, as sharding and offloading hosts do."""
    state[name].untyped_storage().resize_(0)


def shrunk(state: State, name: str) -> None:
    state[name].untyped_storage().resize_(2)


def moved(state: State, name: str) -> None:
    """Other storage, same tensor; the old one goes."""
    state[name].data = state[name].data.clone()
    gc.collect()


def exchanged(state: State, name: str) -> None:
    """Another tensor lies in the host's dict; the bound one is the host's no longer."""
    state[name] = state[name].clone()
    gc.collect()


def deleted(state: State, name: str) -> None:
    del state[name]
    gc.collect()


def reshaped(state: State, name: str) -> None:
    state[name].resize_(3)


CHANGES = (freed, shrunk, moved, exchanged, deleted, reshaped)


def _right(ground: Ground, state: State, but: str) -> None:
    blend = load_file(ground.folder / "reference/merge" / JOBS["merge"].target)
    for name, tensor in state.items():
        if name != but and not torch.equal(tensor, blend[name]):
            raise Found(f"{name} holds something else")


def _bound(ground: Ground, rng: Random) -> str:
    change: Callable[[State, str], None] = rng.choice(CHANGES)
    state = _state(ground)
    name = rng.choice(list(state))
    live = hm.load(ground.hyper).bind(state, in_memory=rng.random() < 0.5)
    if rng.random() < 0.5:
        live.set(0.5, 0.5)
    change(state, name)
    outcome = "followed"
    try:
        live.set(*AT)
    except hm.Error as error:
        outcome = "refused"
        if name not in str(error) or "\n" in str(error):
            raise Found(f"{change.__name__}: {error}") from None
    if (outcome == "refused") != (change in (freed, shrunk, reshaped)):
        raise Found(f"{change.__name__}: {outcome}")
    if outcome == "followed":
        _right(ground, state, name if change in (exchanged, deleted) else "")
    return f"bound, {change.__name__}: {outcome}"


def _borrowed(ground: Ground, rng: Random) -> str:
    """A state dict that solve borrowed: save reads it a second time, when it may be gone."""
    change: Callable[[State, str], None] = rng.choice(CHANGES)
    states = [_own(path) for path in ground.models]
    state, name = rng.choice(states), rng.choice(list(states[0]))
    names = [path.stem for path in ground.models]
    when = rng.choice(("solve", "save"))
    with ground.room() as room:
        target, outcome = room / JOBS["solve"].target, "right"
        try:
            if when == "solve":
                sources = [hm.source(one, name) for one, name in zip(states, names)]
                change(state, name)
                solved = hm.solve(sources)
            else:
                solved = hm.solve(states, names=names)
                change(state, name)
            solved.save(target)
        except hm.Error as error:
            outcome = "refused"
            if name not in str(error) or "\n" in str(error):
                raise Found(f"{change.__name__} before {when}: {error}") from None
        if (outcome == "refused") != (change in (freed, shrunk)):
            raise Found(f"{change.__name__} before {when}: {outcome}")
        if outcome == "right":
            written, expected = load_file(target), load_file(ground.hyper)
            if not all(torch.equal(written[key], expected[key]) for key in expected):
                raise Found(f"{change.__name__} before {when}: another result")
        return f"borrowed, {change.__name__}: {outcome}"


def _only_the_blend(ground: Ground, rng: Random) -> str:
    """Only the live blend is kept; afterwards nothing may hold the host's tensors any more."""
    state = _state(ground)
    tensors = [weakref.ref(tensor) for tensor in state.values()]
    live = hm.load(ground.hyper).bind(state)
    del state
    gc.collect()
    live.set(*AT)
    live.restore()
    if any(tensor() is None for tensor in tensors):
        raise Found("a bound tensor was freed")
    del live
    gc.collect()
    if any(tensor() is not None for tensor in tensors):
        raise Found("a tensor outlives its blend")
    fingerprint(ground.hyper)
    return "kept, then let go"


@fault(inside=True)
def torch_tensors_go_away(ground: Ground, rng: Random) -> str:
    return rng.choice((_bound, _bound, _borrowed, _borrowed, _only_the_blend))(ground, rng)
