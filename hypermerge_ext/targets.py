"""Tensors that are written to: torch tensors and NumPy arrays, looked at anew before every blend.

Hosts move storage, change devices and free memory behind our back, so nothing that is said here of a tensor is kept but
what it was when it was bound.  As in sources.py neither torch nor NumPy is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ._core import ArgumentError, MismatchError
from .sources import dtype_name

Described = tuple[str, str, Sequence[int], Sequence[int], int]
"""Name, dtype, shape, strides in elements, address: what the compiled part wants to know."""

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes per element of the types that can hold a blend."""


def refusal(key: str, reason: str, error: type = MismatchError) -> Exception:
    """The error which says that `reason` is wrong with the tensor `key`."""
    refused = error(f"{key}: {reason}")
    refused.tensor = key
    return refused


def is_torch(value: Any) -> bool:
    """Is it a torch tensor?  Known by what it can do."""
    return hasattr(value, "data_ptr") and hasattr(value, "untyped_storage")


def is_tensor(value: Any) -> bool:
    """Is it a torch tensor or a NumPy array?"""
    return is_torch(value) or hasattr(value, "__array_interface__")


def grad_enabled() -> bool:
    """Would torch record what is done to a tensor now?  False when torch is not loaded."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.is_grad_enabled()


class Target:
    """A tensor of the host's, and the tensor of the hyper-model that belongs to it."""

    __slots__ = (
        "key",
        "name",
        "tensor",
        "dtype",
        "shape",
        "by_torch",
        "versioned",
        "_is_torch",
        "_seen",
        "_span",
        "_size",
    )

    def __init__(self, key: str, name: str, tensor: Any, by_torch: bool = False) -> None:
        """key: what the host calls it.  name: what the hyper-model calls it.  by_torch: see below.  Raises MismatchError."""
        self.key, self.name, self.tensor = key, name, tensor
        self.dtype = dtype_name(tensor.dtype) or ""
        """As in safetensors: "F16" …"""
        self.shape = tuple(tensor.shape)
        if self.dtype not in SIZES:
            raise refusal(key, f"is of type {tensor.dtype}; only f64, f32, f16, bf16 and fp8 tensors can hold a blend")
        self.by_torch = False
        """Torch's own operations blend it wherever it is: it was not in CPU memory when it was bound."""
        self.versioned = False
        """Does torch count the writes to it?"""
        self._is_torch = is_torch(tensor)
        self._seen: tuple | None = None
        self._size = SIZES[self.dtype]
        self._span = 0
        if self._is_torch:
            if str(tensor.layout) != "torch.strided" or tensor.is_neg() or tensor.is_conj():
                raise refusal(key, "is a sparse or lazily negated tensor, which cannot be written in place")
            self.by_torch = by_torch or not tensor.is_cpu
            self.versioned = not tensor.is_inference()

    def look(self, grad: bool) -> tuple[Described, bool]:
        """How it lies now, and whether torch must blend it.  The address is 0 then.

        grad: what grad_enabled() says.  Raises MismatchError when it must not or cannot be written.
        """
        tensor = self.tensor
        if not self._is_torch:
            return self._look_at_array(tensor), False
        shape, strides, dtype = tensor.shape, tensor.stride(), tensor.dtype
        seen = self._seen
        if seen is None or seen[0] != shape or seen[1] != strides or seen[2] is not dtype:
            self._measure(shape, strides, dtype)
        if self._span > 0 and tensor.storage_offset() * self._size + self._span > tensor.untyped_storage().nbytes():
            raise refusal(self.key, "its memory was freed or made smaller; load the model again and bind it")
        if grad and tensor.requires_grad:
            raise refusal(
                self.key,
                "requires gradients, so torch forbids to write into it; bind model.state_dict(), call "
                "requires_grad_(False), or work under torch.no_grad()",
            )
        if tensor.is_cpu:
            if not self.by_torch:
                return (self.name, self.dtype, shape, strides, tensor.data_ptr()), False
        elif tensor.device.type == "meta":
            raise refusal(self.key, "is on the device 'meta' and has no numbers; load the model first")
        return (self.name, self.dtype, shape, strides, 0), True

    def _measure(self, shape: Sequence[int], strides: Sequence[int], dtype: Any) -> None:
        """Takes note of a new shape; everything here is as it was at most calls."""
        if dtype_name(dtype) != self.dtype:
            raise refusal(self.key, f"was {self.dtype} when it was bound and is {dtype} now; bind the model again")
        if tuple(shape) != self.shape:
            raise refusal(
                self.key,
                f"had the shape {list(self.shape)} when it was bound and has {list(shape)} now; bind the model again",
            )
        if 0 not in shape and any(stride == 0 and size > 1 for size, stride in zip(shape, strides)):
            raise refusal(
                self.key, "shares memory between its own elements (an expanded view); make it contiguous first"
            )
        self._span = span_of(shape, strides) * self._size
        self._seen = shape, strides, dtype

    def _look_at_array(self, array: Any) -> Described:
        address, read_only = array.__array_interface__["data"]
        size = self._size
        if read_only:
            raise refusal(self.key, "is read-only; give an array that may be written")
        if dtype_name(array.dtype) != self.dtype:
            raise refusal(
                self.key, f"was {self.dtype} when it was bound and is {array.dtype} now; bind the model again"
            )
        if address % size or any(stride % size for stride in array.strides):
            raise refusal(self.key, f"does not lie at multiples of its element size ({size} bytes); copy it")
        return self.name, self.dtype, array.shape, tuple(stride // size for stride in array.strides), address

    def extent(self) -> tuple[str, int, int, str]:
        """Device, first address, address behind the last byte, key; of a torch tensor that was looked at."""
        first = self.tensor.data_ptr()
        return str(self.tensor.device), first, first + self._span, self.key


def span_of(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last, those between the rows too; torch's strides are never negative."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))


def refuse_overlaps(targets: Iterable[Target]) -> None:
    """Raises MismatchError when two tensors share memory.  For those which the compiled part does not see."""
    last: tuple[str, int, int, str] | None = None
    for extent in sorted(target.extent() for target in targets):
        if extent[1] == extent[2]:
            continue
        if last is not None and last[0] == extent[0] and extent[1] < last[2]:
            raise refusal(
                extent[3],
                f"lies in the same memory as {last[3]}; give every tensor memory of its own (clone one of them)",
            )
        last = extent


def count_writes(tensors: list[Any]) -> None:
    """Tells torch that these tensors were written to, so that a backward pass which still needs the old numbers notices."""
    torch = sys.modules.get("torch")
    if torch is None or not tensors or torch.is_inference_mode_enabled():
        return
    bump = getattr(torch.autograd.graph, "increment_version", None)
    if bump is None:
        return
    try:
        bump(tensors)
    except TypeError:  # torch before 2.6 takes one at a time
        for tensor in tensors:
            bump(tensor)


def describe(key: str, value: Any) -> Described:
    """How a tensor that is only read lies in CPU memory.  Nothing is copied.  Raises ArgumentError."""
    if not is_tensor(value):
        raise TypeError(f"{key}: expected a torch tensor or a NumPy array, not {type(value).__name__}")
    dtype = dtype_name(value.dtype)
    size = SIZES.get(dtype or "")
    if size is None:
        raise refusal(key, f"is of type {value.dtype}, which is not a floating-point type that we know", ArgumentError)
    if is_torch(value):
        if not value.is_cpu or str(value.layout) != "torch.strided":
            where = f"is a {value.layout} tensor on device '{value.device}'"
            raise refusal(key, f"{where}; give a plain tensor where the result is", ArgumentError)
        strides, address = value.stride(), value.data_ptr()
        span = span_of(value.shape, strides)
        if span > 0 and (value.storage_offset() + span) * size > value.untyped_storage().nbytes():
            raise refusal(key, "its memory was freed", ArgumentError)
        return key, dtype, value.shape, strides, address
    address = value.__array_interface__["data"][0]
    if address % size or any(stride % size for stride in value.strides):
        raise refusal(key, "does not lie at multiples of its element size; copy it", ArgumentError)
    return key, dtype, value.shape, tuple(stride // size for stride in value.strides), address
