"""Blends by torch's own in-place operations, for tensors that are not in CPU memory: they stay where they are.

The arithmetic is that of the compiled part, x = base (+ base_low); x += c·D in f32; one rounding at the end.  But devices
multiply and add in one step, so a sum may differ by one rounding of f32 for each direction, and what is stored by one unit
in its last place.  With `exact` the product is rounded before it is added, and the numbers are the same.

Work goes piece by piece through buffers that are kept for the next call: at most 32 MiB on a device and 16 MiB on the host.
Base and directions are read from the file at every call, or kept on the device in the types in which they are stored.
A low-rank direction crosses over as its factors, and is multiplied out there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

from . import _core
from ._core import ArgumentError
from .targets import SIZES, Target, is_torch, refusal, span_of

PIECE = 2 << 20
"""Elements blended at a time: 8 MiB for the sum, 8 MiB for an operand as f32, at most 16 MiB for one as it is stored."""

TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def pieces(shape: Sequence[int], most: int) -> Iterator[tuple[tuple, int, int]]:
    """Cuts a tensor into runs of at most `most` elements.

    Yields (index, start, count): tensor[index] is the elements [start, start + count) in row-major order.
    """
    if 0 in shape:
        return
    cut, inner = len(shape), 1  # dimensions from `cut` on stay whole
    while cut > 0 and inner * shape[cut - 1] <= most:
        cut -= 1
        inner *= shape[cut]
    if cut == 0:
        yield (), 0, inner
        return
    step, start = most // inner, 0
    for outer in itertools.product(*map(range, shape[: cut - 1])):
        for at in range(0, shape[cut - 1], step):
            size = min(step, shape[cut - 1] - at)
            yield (*outer, slice(at, at + size)), start, size * inner
            start += size * inner


class Blender:
    """The arithmetic, and its buffers.  Used by one thread at a time, within torch.inference_mode()."""

    def __init__(self, exact: bool = False) -> None:
        import torch

        self._torch = torch
        self._exact = exact
        self._buffers: dict[tuple[str, Any], Any] = {}
        self._views: dict[tuple[str, Any, Any], Any] = {}  # of the same, as numbers

    def buffer(self, role: str, device: Any, count: int, dtype: Any, pinned: bool = False) -> Any:
        """`count` ≤ PIECE numbers of the one buffer that all uses of a role on a device share; 1-D."""
        view = self._views.get((role, device, dtype))
        if view is not None and view.numel() >= count:
            return view[:count]
        size = dtype.itemsize
        whole = self._buffers.get((role, device))
        if whole is None or whole.numel() < count * size:
            whole = self._torch.empty(PIECE * size, dtype=self._torch.uint8, device=device, pin_memory=pinned)
            self._buffers[role, device] = whole
            self._views = {key: view for key, view in self._views.items() if key[:2] != (role, device)}
        view = whole[: whole.numel() // size * size].view(dtype)
        self._views[role, device, dtype] = view
        return view[:count]

    def write(self, out: Any, operands: Iterable[tuple[Any, float]], terms: int = 0) -> None:
        """out = Σ c·numbers, added up in the order given, from 0; a factor of 1 in front stands for a base.

        out has at most PIECE elements, and is written by one operation, so that it holds the old numbers or the new ones.
        Operands are used one after the other, so they may share memory.  terms: how many they are, where that is known;
        the last sum then goes straight to `out` where torch rounds it on the way without a copy of its own.
        """
        torch, sum = self._torch, like(self.buffer("sum", out.device, out.numel(), self._torch.float32), out)
        straight = out.dtype == torch.float32 or (out.is_cuda and out.dtype in (torch.float16, torch.bfloat16))
        done = 0
        for numbers, c in operands:
            done += 1
            if done == 1 and c == 1:
                sum.copy_(numbers)
                continue
            if done == 1:
                sum.zero_()
            if straight and done == terms:
                self._add(out, sum, numbers, c)
                return
            self._add(sum, sum, numbers, c)
        if done == 0:
            sum.zero_()
        if out.dtype.itemsize == 1:
            most = torch.finfo(out.dtype).max  # fp8 saturates
            sum.clamp_(-most, most)
        out.copy_(sum)

    def _add(self, out: Any, sum: Any, numbers: Any, c: float) -> None:
        """out = sum + c·numbers; out may be sum."""
        torch = self._torch
        # CUDA reads half types into the sum as it goes; elsewhere torch would make a copy of its own, each time anew.
        direct = numbers.dtype == torch.float32 or (sum.is_cuda and numbers.dtype in (torch.float16, torch.bfloat16))
        if self._exact or not direct:
            numbers = like(self.buffer("operand", sum.device, sum.numel(), torch.float32), sum).copy_(numbers)
        if self._exact:
            torch.add(sum, numbers.mul_(c), out=out)
        else:
            torch.add(sum, numbers, alpha=c, out=out)


def like(row: Any, tensor: Any) -> Any:
    """A 1-D tensor in the shape of another."""
    return row if tensor.ndim == 1 else row.view(tensor.shape)


class DeviceBlends:
    """The blends of a live binding for its targets on other devices.  Used by one thread at a time."""

    def __init__(self, hyper: _core.Hyper, rows: dict[str, Sequence[str | None]], in_memory: bool, exact: bool) -> None:
        """rows: of each tensor that moves, the stored types of W̃, base_low, D_1 … D_K; None where there is none."""
        import torch

        self._torch = torch
        self._hyper, self._rows, self._in_memory = hyper, rows, in_memory
        self._blender = Blender(exact)
        self._ranks = _core.ranks(hyper)
        self._factors: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._kept: dict[tuple[str, int], Any] = {}
        self._originals: dict[str, Any] = {}

    def bytes(self, target: Target) -> int:
        """Bytes that a blend of the target reads, for progress."""
        size = prod(target.shape)
        return sum(
            size * SIZES[dtype] if not rank else (target.shape[0] + size // max(target.shape[0], 1)) * rank * 4
            for dtype, rank in zip(self._rows[target.name], self._ranks_of(target))
            if dtype is not None
        )

    def _ranks_of(self, target: Target) -> Sequence[int]:
        """Row by row; 0 for a row that is stored in full."""
        return self._ranks.get(target.name) or (0,) * len(self._rows[target.name])

    def holds_base(self, target: Target) -> bool:
        """Does the target hold cast(W̃), bit for bit?"""
        with self._torch.inference_mode():
            if self._rows[target.name][0] is None:
                return False
            return all(self._torch.equal(self._bits(base), self._bits(held)) for base, held in self._base(target))

    def keep(self, target: Target) -> None:
        """Keeps a copy of what the target holds, on its device."""
        with self._torch.inference_mode():
            self._originals[target.name] = target.tensor.detach().clone()

    def set(self, target: Target, at: Sequence[float]) -> None:
        """target = W̃ (+ base_low) + Σ at[k]·D_k"""
        with self._torch.inference_mode():
            tensor, rows = self._flat(target), self._used(target, at)
            for index, start, count in pieces(tensor.shape, PIECE):
                out = tensor[index] if index else tensor
                operands = (
                    (like(self._numbers(target, row, dtype, start, count, out.device), out), c) for row, dtype, c in rows
                )
                self._blender.write(out, operands, len(rows))

    def restore(self, target: Target) -> None:
        """Brings back what the target held when it was bound."""
        with self._torch.inference_mode():
            kept = self._originals.get(target.name)
            if kept is not None:
                target.tensor.detach().copy_(kept)
                return
            for base, held in self._base(target):
                held.copy_(base)

    def _used(self, target: Target, at: Sequence[float]) -> list[tuple[int, str, float]]:
        """(row, type, factor) of what a blend adds, in its order."""
        rows = enumerate(zip(self._rows[target.name], (1.0, 1.0, *at)))
        return [(row, dtype, c) for row, (dtype, c) in rows if dtype is not None and c != 0]

    def _base(self, target: Target) -> Iterator[tuple[Any, Any]]:
        """Pieces of cast(W̃) and of the target."""
        tensor = self._flat(target)
        dtype = self._rows[target.name][0]
        for index, start, count in pieces(tensor.shape, PIECE):
            held = tensor[index]
            base = like(self._numbers(target, 0, dtype, start, count, held.device), held)
            if base.dtype != held.dtype:
                cast = self._torch.empty(held.shape, dtype=held.dtype, device=held.device)
                self._blender.write(cast, [(base, 1.0)])
                base = cast
            yield base, held

    def _numbers(self, target: Target, row: int, dtype: str, start: int, count: int, device: Any) -> Any:
        """Elements [start, start + count) of a stored row on the device; 1-D.

        In their stored type, or as f32 where the device may lack that type and where they are computed from factors.
        """
        if self._ranks_of(target)[row]:
            return self._product(target, row, start, count, device)
        if not self._in_memory:
            host = self._read(target, row, dtype, start, count, device)
            if device.type == "cpu":
                return host
            return self._blender.buffer("stored", device, count, host.dtype).copy_(host)
        kept = self._kept.get((target.name, row))
        if kept is None or kept.device != device:
            kept = None
            for _, first, size in pieces((prod(target.shape),), PIECE):
                host = self._read(target, row, dtype, first, size, device)
                if kept is None:
                    kept = self._torch.empty(prod(target.shape), dtype=host.dtype, device=device)
                kept[first : first + size].copy_(host)
            self._kept[target.name, row] = kept
        return kept if count == kept.numel() else kept[start : start + count]

    def _product(self, target: Target, row: int, start: int, count: int, device: Any) -> Any:
        """The same of a row that is kept as factors."""
        up, down = self._factors_of(target, row, device)
        columns = down.shape[1]
        first, last = start // columns, -(-(start + count) // columns)
        numbers = self._torch.mm(up[first:last], down).view(-1)
        return numbers[start - first * columns :][:count]

    def _factors_of(self, target: Target, row: int, device: Any) -> tuple[Any, Any]:
        """up [out, r] and down [r, in…] on the device, as f32; of the latest target, or of all where they are kept."""
        found = self._factors.get((target.name, row))
        if found is not None and found[0].device == device:
            return found
        torch, rank, rows = self._torch, self._ranks_of(target)[row], target.shape[0]
        up = torch.empty((rows, rank), dtype=torch.float32)
        down = torch.empty((rank, prod(target.shape) // rows), dtype=torch.float32)
        _core.read_factors(self._hyper, target.name, row, up.data_ptr(), down.data_ptr())
        if not self._in_memory:
            self._factors = {key: pair for key, pair in self._factors.items() if key[0] == target.name}
        self._factors[target.name, row] = up.to(device), down.to(device)
        return self._factors[target.name, row]

    def _read(self, target: Target, row: int, dtype: str, start: int, count: int, device: Any) -> Any:
        kind = getattr(self._torch, TORCH_NAMES[dtype])
        host = self._blender.buffer("host", self._torch.device("cpu"), count, kind, pinned=device.type == "cuda")
        _core.read_stored(self._hyper, target.name, row, start, count, host.data_ptr())
        lacking = dtype == "F64" or (SIZES[dtype] == 1 and device.type not in ("cpu", "cuda"))
        return host.float() if lacking and dtype != target.dtype else host

    @staticmethod
    def _flat(target: Target) -> Any:
        """The tensor, as one row where that makes no difference."""
        tensor = target.tensor.detach()
        return tensor.view(-1) if tensor.is_contiguous() else tensor

    def _bits(self, tensor: Any) -> Any:
        torch = self._torch
        kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
        return tensor.contiguous().view(kinds[tensor.dtype.itemsize])


def blend_tensors(out: Any, base: Any, directions: Sequence[Any], c: Sequence[float], exact: bool = False) -> None:
    """out = base + Σ c[k]·directions[k] on the device of `out`; base None counts as 0.  Raises ArgumentError."""
    import torch

    given = [*(() if base is None or base is out else [(base, 1.0)]), *zip(directions, c)]
    written = _extent(out)
    for tensor, _ in given:
        if not is_torch(tensor) or tensor.device != out.device:
            raise refusal("blend_", f"all tensors must be on the device of the result, {out.device}", ArgumentError)
        if tensor.shape != out.shape:
            raise refusal("blend_", "an operand has another shape than the result", ArgumentError)
        if not tensor.is_floating_point():
            raise refusal("blend_", f"an operand is of type {tensor.dtype}, not floating-point", ArgumentError)
        first, end = _extent(tensor)
        if first < written[1] and written[0] < end:
            raise refusal("blend_", "an operand overlaps the result; clone it", ArgumentError)
    used = [(tensor, factor) for tensor, factor in given if factor != 0]
    if base is out:
        used.insert(0, (out, 1.0))
    with torch.inference_mode():
        blender = Blender(exact)
        for index, _, _ in pieces(out.shape, PIECE):
            blender.write(out[index], [(tensor[index], factor) for tensor, factor in used], len(used))


def _extent(tensor: Any) -> tuple[int, int]:
    first = tensor.data_ptr()
    return first, first + span_of(tensor.shape, tensor.stride()) * tensor.element_size()
