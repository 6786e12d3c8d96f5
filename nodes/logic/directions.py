"""Where a patch takes directions from: the file, through a bounded buffer, or memory, which can be given back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from .binary import hypermerge


class Part(NamedTuple):
    """The part of a hyper-model's tensor that one of the host's tensors is."""

    name: str
    start: int = 0
    """First element, in row-major order of the hyper-model's tensor."""
    shape: tuple[int, ...] = ()
    """Of the host's tensor."""
    transposed: bool = False
    """The host's tensor is the whole one, rows and columns exchanged."""


class Directions:
    """The directions of one hyper-model, as patches need them.  May be used from several threads."""

    def __init__(self, stored: Any, identity: str, in_memory: bool) -> None:
        """stored: hypermerge_ext.stored.Stored.  in_memory: a tensor is kept from its first use until `drop`."""
        self.identity, self.in_memory = identity, in_memory
        self._stored = stored
        self._kept: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Directions {'in memory' if self.in_memory else 'from the file'}>"

    @property
    def bytes_kept(self) -> int:
        """Bytes of main memory that the kept tensors take."""
        with self._lock:
            return sum(tensor.numel() * tensor.element_size() for tensor in self._kept.values())

    @property
    def bytes_needed(self) -> int:
        """Bytes that all of them would take."""
        return self._stored.bytes(1)

    def drop(self) -> None:
        """Gives the memory back; what is used again is read again."""
        with self._lock:
            self._kept.clear()

    def tensors(self, part: Part) -> tuple[Any, ...]:
        """base_low, D_1 … D_K of a part, each as a torch tensor of the part's elements, or None where there is none."""
        rows = self._stored.moving[part.name].rows
        found = []
        for row in range(1, len(rows)):
            tensor = None if rows[row] is None else self._row(part.name, row)
            if tensor is not None and not part.transposed:
                count = 1
                for size in part.shape:
                    count *= size
                tensor = tensor.view(-1)[part.start : part.start + count].view(part.shape)
            found.append(tensor)
        return tuple(found)

    def blend_(self, out: Any, base: Any, part: Part, multipliers: Sequence[float], low: bool) -> None:
        """out = base (0 when None) + base_low if `low` + Σ multipliers[k]·D_k, in place; `out` has the part's shape."""
        if self.in_memory:
            blend_tensors(out, base, part, self.tensors(part), multipliers, low)
            return
        if part.transposed:
            out, base = out.T, out.T if base is out else None if base is None else base.T
            self._stored.blend_(out, base, part.name, multipliers, low=low)
            return
        self._stored.blend_(out, base, part.name, multipliers, start=part.start, low=low)

    def _row(self, name: str, row: int) -> Any:
        with self._lock:
            if (name, row) not in self._kept:
                self._kept[name, row] = self._stored.read(name, row)
            return self._kept[name, row]


def blend_tensors(
    out: Any, base: Any, part: Part, tensors: Sequence[Any], multipliers: Sequence[float], low: bool
) -> None:
    """As Directions.blend_, with the tensors that Directions.tensors gave, wherever the host has moved them."""
    same = base is out
    if part.transposed:
        out, base = out.T, None if base is None else base.T
    used, factors = [], []
    for tensor, c in zip(tensors, [1.0 if low else 0.0, *multipliers]):
        if tensor is not None and c != 0:
            used.append(tensor if tensor.device == out.device else tensor.to(out.device))
            factors.append(float(c))
    hypermerge().blend_(out, out if same else base, used, factors)
