"""Where weights come from: files, and state dicts of torch tensors or NumPy arrays, borrowed where they lie.

Neither torch nor NumPy is imported: a tensor is known by what it can do (`data_ptr`, `__array_interface__`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from . import _core
from ._core import ArgumentError, Source

Progress = Callable[[int, int], object]
"""Called with bytes handled so far and in all, about 20 times a second; an exception raised in it cancels the work."""

Model = Union[str, "os.PathLike[str]", Mapping[str, Any], Source]
"""A path, a mapping from tensor names to torch tensors or NumPy arrays, or what `source()` made of one of these."""

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}

_OUT_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}

_Borrowed = tuple[str, str, tuple[int, ...], tuple[int, ...], int]


def out_dtype(name: str | None) -> str | None:
    """The safetensors name of "fp16", "bf16" or "fp32" (or torch's long names); None stays None (keep each tensor's).

    Raises ArgumentError for anything else.
    """
    if name is None:
        return None
    found = _OUT_DTYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise ArgumentError(f"unknown dtype {name!r}; it is 'fp16', 'bf16' or 'fp32'")
    return found


def job(
    memory_budget: int | None, threads: int | None, progress: Progress | None, statistics: dict[str, float] | None
) -> tuple[int, int, Progress | None, dict[str, float] | None]:
    """The `job` argument of the compiled part: bytes (None = 256 MiB), threads (None = one per CPU), and two as given.

    Raises ArgumentError for numbers that are negative or too large.
    """
    if not 0 <= (memory_budget or 0) < 2**63:
        raise ArgumentError(f"memory_budget is a number of bytes, not {memory_budget}")
    if not 0 <= (threads or 0) <= 1024:
        raise ArgumentError(f"threads is a number between 1 and 1024, not {threads}")
    return memory_budget or 0, threads or 0, progress, statistics


def source(model: Model, name: str | None = None, sha256: str | None = None) -> Source:
    """Opens `model`, or returns it when it is a Source already.

    name: what tables and errors call tensors in memory; a file is always called by its file name.
    sha256: 64 hexadecimal digits known from elsewhere (a host's cache), recorded in what is written; not checked.
    Raises Error, FormatError, ArgumentError; TypeError for a mapping that is no flat state dict.
    """
    if isinstance(model, Source):
        opened = model
    elif isinstance(model, (str, os.PathLike)):
        opened = _core.open_source(model)
    elif isinstance(model, Mapping):
        opened = _borrow(model, name or "state dict")
    else:
        raise TypeError(f"expected a path or a state dict, not {type(model).__name__}")
    if sha256 is not None:
        opened.set_sha256(sha256)
    return opened


def source_list(models: Sequence[Model], names: Sequence[str] | None = None) -> list[Source]:
    """Opens several models; state dicts are called by `names`, or "model 1", "model 2" …

    Raises as `source` does, and ArgumentError when there are not as many names as models.
    """
    if isinstance(models, (str, os.PathLike, Mapping, Source)):
        raise TypeError("expected a sequence of models, not one model")
    models = list(models)
    if names is None:
        names = [f"model {i + 1}" for i in range(len(models))]
    elif len(names) != len(models):
        raise ArgumentError(f"{len(names)} names for {len(models)} models; give one for each")
    return [source(model, name) for model, name in zip(models, names)]


def _borrow(state: Mapping[str, Any], name: str) -> Source:
    """A Source over the tensors of a state dict.  Plain bookkeeping (a step count) is left out."""
    tensors: list[_Borrowed] = []
    keep: list[Any] = []
    for key, value in state.items():
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected tensor names as keys, found {key!r}")
        if hasattr(value, "data_ptr"):
            described = _torch_tensor(name, key, value)
        elif hasattr(value, "__array_interface__"):
            described = _numpy_array(name, key, value)
        elif isinstance(value, Mapping):
            raise TypeError(f"{name}: '{key}' holds a dict, not a tensor; give the inner state dict itself")
        elif value is None or isinstance(value, (str, bytes, bool, int, float)):
            continue
        else:
            raise TypeError(f"{name}: '{key}' is a {type(value).__name__}, neither a torch tensor nor a NumPy array")
        tensors.append(described[0])
        keep.append(described[1])
    return _core.borrow(name, tensors, tuple(keep))


_KNOWN: dict[Any, str | None] = {}  # text of a dtype costs more than everything else that is asked of a tensor


def dtype_name(dtype: Any) -> str | None:
    """The safetensors name of a torch or NumPy dtype; None for others."""
    try:
        return _KNOWN[dtype]
    except KeyError:
        return _KNOWN.setdefault(dtype, _DTYPES.get(str(dtype).removeprefix("torch.")))


def _dtype(owner: str, key: str, dtype: Any) -> str:
    found = dtype_name(dtype)
    if found is None:
        raise _refusal(owner, key, f"element type {dtype} cannot be merged; convert it to float16, bfloat16 or float32")
    return found


def _refusal(owner: str, key: str, reason: str) -> ArgumentError:
    error = ArgumentError(f"{owner}: {key}: {reason}")
    error.file, error.tensor = owner, key
    return error


def _torch_tensor(owner: str, key: str, tensor: Any) -> tuple[_Borrowed, Any]:
    """Description of a torch tensor, and what keeps its numbers alive (a copy, if it is not in CPU memory)."""
    dtype = _dtype(owner, key, tensor.dtype)
    if str(tensor.layout) != "torch.strided" or tensor.device.type == "meta":
        raise _refusal(owner, key, f"a {tensor.layout} tensor on device '{tensor.device}' holds no plain numbers")
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    if tensor.data_ptr() % tensor.element_size():
        tensor = tensor.clone()
    return (key, dtype, tuple(tensor.shape), tuple(tensor.stride()), tensor.data_ptr()), tensor


def _numpy_array(owner: str, key: str, array: Any) -> tuple[_Borrowed, Any]:
    """Description of a NumPy array (also with ml_dtypes' bfloat16 and float8), and what keeps its numbers alive."""
    dtype = _dtype(owner, key, array.dtype)
    size = array.dtype.itemsize
    if any(stride % size for stride in array.strides) or array.__array_interface__["data"][0] % size:
        array = array.copy()
    strides = tuple(stride // size for stride in array.strides)
    return (key, dtype, tuple(array.shape), strides, array.__array_interface__["data"][0]), array
