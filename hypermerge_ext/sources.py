"""Where weights come from: files, and state dicts of torch tensors or NumPy arrays, borrowed where they lie.

Neither torch nor NumPy is imported: a tensor is known by what it can do (`data_ptr`, `__array_interface__`).
"""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from . import _core
from ._core import ArgumentError, Cancelled, Source

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

_PATIENCE = 10.0  # seconds that the end of the interpreter waits for a progress function, or for a disk

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


class _Watched:
    """The progress function of a call in a thread.  Only the call holds it, so it lives as long as that."""

    __slots__ = ("progress", "__weakref__")

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def __call__(self, done: int, total: int) -> None:
        progress = self.progress
        del self  # a traceback that somebody keeps must not hold it
        _stop_if_ending()
        if progress is not None:
            progress(done, total)


_in_threads: weakref.WeakKeyDictionary[_Watched, threading.Thread] = weakref.WeakKeyDictionary()
_ending = False


def _end_threads() -> None:
    """At the end of the interpreter: calls in threads that it does not wait for (hosts work in daemon threads) are
    cancelled, so that they take away what they were writing, and are waited for."""
    global _ending
    _ending = True
    until = time.monotonic() + _PATIENCE
    while any(thread.is_alive() for thread in list(_in_threads.values())) and time.monotonic() < until:
        time.sleep(0.005)


atexit.register(_end_threads)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_threads.clear)  # other threads do not live on in a child


def _stop_if_ending() -> None:
    if _ending:
        raise Cancelled("cancelled: Python is ending")


def job(
    memory_budget: int | None, threads: int | None, progress: Progress | None, statistics: dict[str, float] | None
) -> tuple[int, int, Progress | None, dict[str, float] | None]:
    """The `job` argument of the compiled part: bytes (None = 256 MiB), threads (None = one per CPU), and two as given.
    For one call only, made in this thread.

    Raises ArgumentError for numbers that are negative or too large, Cancelled in a thread when Python is ending.
    """
    if not 0 <= (memory_budget or 0) < 2**63:
        raise ArgumentError(f"memory_budget is a number of bytes, not {memory_budget}")
    if not 0 <= (threads or 0) <= 1024:
        raise ArgumentError(f"threads is a number between 1 and 1024, not {threads}")
    if threading.get_ident() == threading.main_thread().ident:
        return memory_budget or 0, threads or 0, progress, statistics
    _stop_if_ending()
    watched = _Watched(progress)
    _in_threads[watched] = threading.current_thread()
    return memory_budget or 0, threads or 0, watched, statistics


def source(model: Model, name: str | None = None, sha256: str | None = None) -> Source:
    """Opens `model`, or returns it when it is a Source already.

    name: what tables and errors call tensors in memory; a file is always called by its file name.
    sha256: 64 hexadecimal digits known from elsewhere (a host's cache), recorded in what is written; not checked.
    Raises Error, FormatError, ArgumentError; TypeError for a mapping that is no flat state dict.
    """
    if isinstance(model, Source):
        opened = model
        look_again(opened)
    elif isinstance(model, (str, os.PathLike)):
        opened = _core.open_source(model)
    elif isinstance(model, Mapping):
        opened = _borrow(model, name or "state dict")
    else:
        raise TypeError(f"expected a path or a state dict, not {type(model).__name__}")
    if sha256 is not None:
        opened.set_sha256(sha256)
    return opened


def is_lora(opened: Source) -> bool:
    """Is this the factors of a LoRA, rather than a checkpoint?"""
    return bool(json.loads(opened.describe())["family"] == "lora")


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


Selection = tuple[Sequence[str], Sequence[str], bool, bool]


def selection(
    include: Sequence[str], exclude: Sequence[str], common: bool, allow_nonfinite: bool = False
) -> Selection:
    """The `selection` argument of the compiled part.  One glob may be given as it is: its letters are no globs."""
    globs = [(given,) if isinstance(given, str) else given for given in (include, exclude)]
    return globs[0], globs[1], common, allow_nonfinite


class _Lent:
    """Tensors that a Source has borrowed, and where they lay.  Only the Source holds it."""

    def __init__(self, owner: str, names: list[str], tensors: list[Any]) -> None:
        self._owner, self._names, self._tensors = owner, names, tensors
        self._places = [_place(tensor) for tensor in tensors]

    def look_again(self) -> None:
        """Raises ArgumentError when the memory of a tensor is elsewhere now, or is less."""
        for name, tensor, place in zip(self._names, self._tensors, self._places):
            if _place(tensor) != place:
                raise _refusal(self._owner, name, "its memory was freed or moved since it was borrowed; give it anew")


def _place(tensor: Any) -> tuple[int, int]:
    """Address and bytes of the memory that a torch tensor or a NumPy array has now."""
    if hasattr(tensor, "data_ptr"):
        return tensor.data_ptr(), tensor.untyped_storage().nbytes()
    return tensor.__array_interface__["data"][0], tensor.nbytes


_lent: weakref.WeakValueDictionary[int, _Lent] = weakref.WeakValueDictionary()  # by the id of the Source


def look_again(borrowed: Source) -> None:
    """To be called before anything reads a Source that was made earlier.  Raises ArgumentError when tensors are gone.

    A host may free memory behind our back (offloading does), and reading where it was would end the process.
    """
    lent = _lent.get(id(borrowed))
    if lent is not None:
        lent.look_again()


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
    lent = _Lent(name, [described[0] for described in tensors], keep)
    made = _core.borrow(name, tensors, lent)
    _lent[id(made)] = lent
    return made


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
