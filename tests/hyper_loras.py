"""Families for hyper-LoRAs, and NumPy's searches in f64 with exact decompositions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

UNET = "model.diffusion_model."
SHAPES = {
    UNET + "input_blocks.0.0.weight": (24, 8, 3, 3),
    UNET + "input_blocks.1.1.proj.weight": (40, 61),
    UNET + "middle_block.0.weight": (57, 33),
    UNET + "middle_block.1.bias": (31,),
    UNET + "output_blocks.2.0.weight": (3, 50),
}
BEYOND = 0.9
"""How far beyond the best multipliers the search seeks the next LoRAs."""

Whole = Callable[[int, int], bool]
"""(tensor, rank) → does it keep its whole direction?"""


# ---- families --------------------------------------------------------------------------------------------------------


def family(
    count: int, strengths=(1.0, 0.6, 0.4), decay: float = 0.6, noise: float = 0.02, seed: int = 0, shapes=None
) -> list[dict[str, np.ndarray]]:
    """Models in f32 along a few hidden directions, whose singular values fall like i^−decay in every tensor."""
    rng = np.random.default_rng([seed, count, 9])
    shares = rng.standard_normal((count, len(strengths))) * strengths
    models: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    for name, shape in (shapes or SHAPES).items():
        rows, columns = shape[0], int(np.prod(shape[1:], dtype=int))
        side = min(rows, columns)
        spectrum = np.arange(1, side + 1.0) ** -decay
        base = rng.standard_normal(shape)
        hidden = []
        for _ in strengths:
            left, right = (np.linalg.qr(rng.standard_normal((n, side)))[0] for n in (rows, columns))
            hidden.append(((left * spectrum) @ right.T).reshape(shape))
        for m, model in enumerate(models):
            change = np.tensordot(shares[m], hidden, 1) + noise * rng.standard_normal(shape) / np.sqrt(columns)
            model[name] = (base + 0.1 * change).astype(np.float32)
    return models


class Drawn(NamedTuple):
    """A family whose kind is drawn as well."""

    models: list[dict[str, np.ndarray]]
    ranks: tuple[int, ...]
    weights: list[float] | None


def drawn_family(seed: int) -> Drawn:
    """3 to 7 models along 2 to 5 directions; flat spectra and steep ones; one to three LoRAs, some of them wider than the
    one before; sometimes weights."""
    rng = np.random.default_rng([seed, 73])
    count = int(rng.integers(3, 8))
    strengths = [1.0, *rng.uniform(0.05, 1, int(rng.integers(1, 5)))]
    directions = int(rng.integers(1, min(count - 1, len(strengths), 3) + 1))
    decay, noise = float(rng.choice([0, 0.2, 0.4, 0.6, 0.9, 1.2])), float(rng.choice([0.005, 0.02, 0.2]))
    ranks = tuple(int(rank) for rank in rng.integers(1, 10, directions))
    weights = rng.uniform(0.3, 3, count).tolist() if rng.uniform() < 0.25 else None
    return Drawn(family(count, strengths, decay, noise, seed), ranks, weights)


# ---- differences -----------------------------------------------------------------------------------------------------


class Differences(NamedTuple):
    """[M][rows, columns] of each tensor, in f64, and the weights with sum M."""

    tensors: list[np.ndarray]
    weights: np.ndarray

    @property
    def total(self) -> float:
        return float(sum((self.weights[:, None, None] * d**2).sum() for d in self.tensors))

    @property
    def gram(self) -> np.ndarray:
        return sum(np.einsum("mij,nij->mn", d, d) for d in self.tensors)


def differences(models, base: str | dict = "mean", weights=None) -> Differences:
    count = len(models)
    w = np.ones(count) if weights is None else np.asarray(weights, float) * count / np.sum(weights)
    out = []
    for name in models[0]:
        stack = np.array([model[name].astype(float) for model in models])
        stack = stack.reshape(count, stack.shape[1] if stack.ndim > 1 else 1, -1)
        if isinstance(base, dict):
            stack = stack - base[name].astype(float).reshape(stack.shape[1:])
        elif base == "mean":
            stack = stack - np.average(stack, axis=0, weights=w)
        out.append(stack)
    return Differences(out, w)


def stays_whole(shape: tuple[int, int], rank: int, one_dimensional: bool) -> bool:
    return one_dimensional or rank >= min(shape) or rank * sum(shape) >= shape[0] * shape[1]


def wholes(models) -> Whole:
    shapes = [array.shape for array in models[0].values()]

    def whole(tensor: int, rank: int) -> bool:
        shape = shapes[tensor]
        matrix = (shape[0], int(np.prod(shape[1:], dtype=int)))
        return stays_whole(matrix, rank, len(shape) < 2)

    return whole


def truncated(matrix: np.ndarray, rank: int, whole: bool) -> np.ndarray:
    if whole:
        return matrix
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * sigma[:rank]) @ right[:rank]


# ---- searches --------------------------------------------------------------------------------------------------------


class Search:
    """Multipliers c [M, K], LoRAs [tensors][K] and their products: the state of lowrank/hyper_lora.h."""

    def __init__(self, found: Differences, ranks: Sequence[int], whole: Whole) -> None:
        self.found, self.ranks, self.whole = found, ranks, whole
        self.gram = found.gram
        self.c = np.zeros((len(found.weights), len(ranks)))
        self.previous = self.c
        self.loras = [[np.zeros(d.shape[1:]) for _ in ranks] for d in found.tensors]
        self.products = np.zeros((len(ranks), len(ranks)))
        self.along = np.zeros_like(self.c)
        self.losses: list[float] = []

    def loss(self) -> float:
        rest = np.diag(self.gram) - 2 * (self.c * self.along).sum(1)
        return float(self.found.weights @ (rest + np.einsum("mi,ij,mj->m", self.c, self.products, self.c)))

    def leading_rest(self) -> np.ndarray:
        """[M] multipliers along which the directions leave most."""
        rest = self.gram - self.c @ self.along.T - self.along @ self.c.T + self.c @ self.products @ self.c.T
        root = np.sqrt(self.found.weights)
        return np.linalg.eigh(root[:, None] * rest * root)[1][:, -1] / root

    def go_beyond(self, step: float = BEYOND) -> None:
        self.c = self.c + step * (self.c - self.previous)

    def fit(self, only: int | None = None) -> None:
        self.previous = self.c
        if only is None:
            self.c = self.along @ np.linalg.pinv(self.products)
            return
        self.c = self.c.copy()
        self.c[:, only] = 0
        self.c[:, only] = (self.along[:, only] - self.c @ self.products[only]) / self.products[only, only]

    def make_pass(self, only: int | None = None) -> float:
        """Better LoRAs of all directions or of one, the loss recorded, then the best multipliers.  Returns the loss with those."""
        w, directions = self.found.weights, range(len(self.ranks))
        normal = self.c.T @ (w[:, None] * self.c)
        for t, (d, parts) in enumerate(zip(self.found.tensors, self.loras)):
            for k in directions if only is None else [only]:
                rest = np.tensordot(w * self.c[:, k], d, 1) - sum(normal[k, j] * parts[j] for j in directions if j != k)
                parts[k] = truncated(rest / normal[k, k], self.ranks[k], self.whole(t, self.ranks[k]))
        stacks = [np.array(parts) for parts in self.loras]
        self.products = sum(np.einsum("jab,kab->jk", stack, stack) for stack in stacks)
        self.along = sum(np.einsum("mab,kab->mk", d, stack) for d, stack in zip(self.found.tensors, stacks))
        self.losses.append(self.loss())
        self.fit(only)
        return self.loss()


def search(found: Differences, ranks: Sequence[int], whole: Whole) -> Search:
    """What lowrank/hyper_lora.c does: direction by direction, then all of them."""
    state, loss = Search(found, ranks, whole), found.total
    for k in range(len(ranks)):
        state.c[:, k] = state.leading_rest()
        for number in range(24 if len(ranks) == 1 else 6):
            if number > 0:
                state.go_beyond()
            before, loss = loss, state.make_pass(k)
            if number > 0 and before - loss <= (1e-7 if len(ranks) == 1 else 1e-4) * loss:
                break
    if len(ranks) > 1:
        state.fit()
        alternate(state)
    state.losses.append(state.loss())
    return state


def alternate(state: Search) -> None:
    loss, fall, small_falls = state.loss(), np.inf, 0
    for _ in range(24):
        state.go_beyond()
        before, last, loss = loss, fall, state.make_pass()
        fall = before - loss
        small_falls = small_falls + 1 if fall <= 2e-4 * loss else 0
        if small_falls >= 2 and (fall <= last or fall <= 1e-7 * state.found.total):
            return


def truncation(found: Differences, ranks: Sequence[int], whole: Whole) -> float:
    """The loss of the full-rank directions, truncated: the full-rank bound and what truncating costs."""
    state, root = Search(found, ranks, whole), np.sqrt(found.weights)
    state.c = np.linalg.eigh(root[:, None] * state.gram * root)[1][:, ::-1][:, : len(ranks)] / root[:, None]
    state.make_pass()
    return state.losses[0]


def deflation(found: Differences, ranks: Sequence[int], whole: Whole, passes: int = 40) -> float:
    """The loss of finding one direction after the other, each in what those before it leave, until nothing falls any more."""
    for rank in ranks:
        one = Search(found, [rank], whole)
        one.c[:, 0] = one.leading_rest()
        for _ in range(passes):
            one.make_pass()
        rest = [d - np.multiply.outer(one.c[:, 0], part[0]) for d, part in zip(found.tensors, one.loras)]
        found = Differences(rest, found.weights)
    return found.total
