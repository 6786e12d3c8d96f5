"""What a saved hyper-model holds of a tensor, tensor by tensor: for hosts that patch weights one at a time.

Read from the file at every call, piece by piece through buffers that are kept for the next call: at most 16 MiB for
each direction.  Needs torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core
from ._core import ArgumentError, MismatchError
from .device import PIECE, TORCH_NAMES, Blender, pieces
from .live import blend_
from .targets import SIZES

if TYPE_CHECKING:
    from .model import HyperModel

BASE, LOW, DIRECTION = 0, 1, 2
"""Rows of a tensor, in the order in which a blend adds them up: W̃, base_low, D_1, D_2 …"""


class StoredTensor(NamedTuple):
    """A tensor that the hyper-model moves."""

    name: str
    shape: tuple[int, ...]
    rows: tuple[str | None, ...]
    """Types as in safetensors ("F16"), of W̃, base_low, D_1 … D_K; None where there is none."""


class Stored:
    """The tensors of a saved hyper-model.  May be used from several threads; they wait for each other."""

    def __init__(self, hyper: HyperModel) -> None:
        """Raises Error before `save`, or when the base that it names is not found."""
        self._core = hyper._file()
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of every tensor: also those which no direction moves."""
        self.moving: dict[str, StoredTensor] = {}
        """Those which a direction moves."""
        for name, shape, rows in _core.stored(self._core):
            self.shapes[name] = shape
            if rows is not None:
                self.moving[name] = StoredTensor(name, shape, rows)
        self._lock = threading.Lock()
        self._buffers: list[Any] = []
        self._blender: Blender | None = None

    def bytes(self, first: int = DIRECTION) -> int:
        """Bytes that the rows from `first` on take together."""
        return sum(
            prod(tensor.shape) * SIZES[dtype]
            for tensor in self.moving.values()
            for dtype in tensor.rows[first:]
            if dtype is not None
        )

    def read(self, name: str, row: int) -> Any:
        """A whole row of a tensor that moves, as a new torch tensor in CPU memory.  Raises ArgumentError, Error."""
        import torch

        tensor = self._tensor(name)
        if tensor.rows[row] is None:
            raise ArgumentError(f"{name}: row {row} is not stored")
        out = torch.empty(tensor.shape, dtype=getattr(torch, TORCH_NAMES[tensor.rows[row]]))
        _core.read_stored(self._core, name, row, 0, out.numel(), out.data_ptr())
        return out

    def blend_(
        self, out: Any, base: Any, name: str, multipliers: Sequence[float], *, start: int = 0, low: bool = False
    ) -> Any:
        """out = base + Σ_k multipliers[k]·D_k of the tensor `name`, in place; returns `out`.

        base None counts as 0; it may be `out` itself.  low: add base_low too, where there is one.  `out` may be a part
        of the tensor: the elements from `start` on, in row-major order.  Arithmetic as in `blend_` of one tensor; on
        other devices than the CPU by torch.  Raises MismatchError, ArgumentError, Error.
        """
        rows = self._used(self._tensor(name), multipliers, low)
        count = out.numel()
        if start < 0 or start + count > prod(self._tensor(name).shape):
            raise MismatchError(f"{name}: has no elements {start} … {start + count - 1}")
        if base is not None and base is not out and base.shape != out.shape:
            raise MismatchError(f"{name}: base and result have different shapes")
        same, out_, base_ = base is out, out.detach(), base
        if out_.is_contiguous() and (base is None or base.is_contiguous()):
            out_ = out_.view(-1)
            base_ = None if base is None else base.detach().view(-1)
        with self._lock:
            for index, first, size in pieces(out_.shape, PIECE):
                piece = out_[index]
                under = piece if same else None if base_ is None else base_[index]
                blend = self._blend_here if piece.is_cpu else self._blend_there
                blend(piece, under, name, rows, start + first, size)
        return out

    def _blend_here(
        self, out: Any, base: Any, name: str, rows: list[tuple[int, str, float]], start: int, count: int
    ) -> None:
        """In CPU memory: all rows are read, then blended in one pass."""
        operands = []
        for number, (row, dtype, _) in enumerate(rows):
            operands.append(self._read(number, name, row, dtype, start, count, False).view(out.shape))
        blend_(out, base, operands, [c for _, _, c in rows])

    def _blend_there(
        self, out: Any, base: Any, name: str, rows: list[tuple[int, str, float]], start: int, count: int
    ) -> None:
        """On another device: row after row goes through one buffer on each side."""
        import torch

        if self._blender is None:
            self._blender = Blender()
        blender = self._blender

        def operands() -> Iterator[tuple[Any, float]]:
            if base is not None:
                yield base, 1.0
            for row, dtype, c in rows:
                host = self._read(0, name, row, dtype, start, count, out.device.type == "cuda")
                if host.dtype in (torch.float64, torch.float8_e4m3fn, torch.float8_e5m2):
                    host = host.float()  # the device may lack these
                there = blender.buffer("stored", out.device, count, host.dtype)
                yield there.copy_(host).view(out.shape), c

        with torch.inference_mode():
            blender.write(out, operands())

    def _read(self, number: int, name: str, row: int, dtype: str, start: int, count: int, pinned: bool) -> Any:
        """Elements [start, start + count) of a row, in buffer `number`; 1-D."""
        import torch

        kind = getattr(torch, TORCH_NAMES[dtype])
        while len(self._buffers) <= number:
            self._buffers.append(torch.empty(0, dtype=torch.uint8))
        buffer, size = self._buffers[number], count * kind.itemsize
        if buffer.numel() < size or (pinned and not buffer.is_pinned()):
            buffer = torch.empty(PIECE * kind.itemsize, dtype=torch.uint8, pin_memory=pinned)
            self._buffers[number] = buffer
        out = buffer[:size].view(kind)
        _core.read_stored(self._core, name, row, start, count, out.data_ptr())
        return out

    def _tensor(self, name: str) -> StoredTensor:
        found = self.moving.get(name)
        if found is None:
            raise ArgumentError(f"{name}: no direction of the hyper-model moves this tensor")
        return found

    @staticmethod
    def _used(tensor: StoredTensor, multipliers: Sequence[float], low: bool) -> list[tuple[int, str, float]]:
        """(row, type, factor) of what a blend adds, in its order."""
        if len(multipliers) > len(tensor.rows) - DIRECTION:
            raise ArgumentError(f"{len(multipliers)} multipliers for {len(tensor.rows) - DIRECTION} directions")
        factors = [(LOW, 1.0 if low else 0.0), *enumerate(multipliers, start=DIRECTION)]
        return [(row, tensor.rows[row], float(c)) for row, c in factors if c != 0 and tensor.rows[row] is not None]
