"""The live blend: a loaded model's own tensors become base + Σ c·D, in place, as often as one likes."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

from . import _core
from ._core import ArgumentError, Error, MismatchError
from .names import Names, match
from .sources import Progress, job
from .targets import (
    Described, Target, count_writes, describe, grad_enabled, is_tensor, refusal, refuse_overlaps,
)  # fmt: skip

if TYPE_CHECKING:
    from .model import HyperModel

_MOST = 1e6  # as large as the compiled part takes multipliers
_SCRATCH = 64 << 20  # bytes of copies on the host, when tensors are restored that have left it


def bind(
    hyper: HyperModel,
    state: Mapping[str, Any],
    *,
    prefix: str | None = None,
    names: Names | None = None,
    in_memory: bool = False,
    keep_original: bool = False,
    strict: bool = False,
    by_torch: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Live:
    """HyperModel.bind."""
    if not isinstance(state, Mapping):
        raise TypeError(f"expected a state dict, not {type(state).__name__}; give model.state_dict()")
    if by_torch not in (None, "fused", "exact"):
        raise ArgumentError(f"by_torch is None, 'fused' or 'exact', not {by_torch!r}")
    core = hyper._file()
    stored = {name: (shape, rows) for name, shape, rows in _core.stored(core)}
    tensors = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise TypeError(f"expected tensor names as keys, found {key!r}")
        if is_tensor(value):
            tensors[key] = value
    moves = {name for name, (_, rows) in stored.items() if rows is not None}
    matched = match(list(tensors), stored.keys(), moves, prefix, names)
    targets = [
        _target(key, name, tensors[key], stored[name][0], by_torch) for key, name in matched.items() if name in moves
    ]
    bound = set(matched.values())
    unbound = [name for name in stored if name in moves and name not in bound]
    if strict and unbound:
        raise MismatchError(f"{len(unbound)} tensors that the hyper-model moves have no target: {_first(unbound)}")
    resting = [_resting(name, tensors[key], stored[name][0]) for key, name in matched.items() if name not in moves]
    rows = {name: rows for name, (_, rows) in stored.items() if rows is not None}
    live = Live(hyper, targets, unbound, [key for key in tensors if key not in matched])
    live._bind(
        core, [item for item in resting if item], rows, in_memory, keep_original, by_torch == "exact", threads, progress
    )
    return live


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _target(key: str, name: str, tensor: Any, shape: Sequence[int], by_torch: str | None) -> Target:
    target = Target(key, name, tensor, by_torch is not None)
    if target.shape != shape:
        raise refusal(
            key, f"has the shape {list(target.shape)}, in the hyper-model {list(shape)}; it belongs to another model"
        )
    return target


def _resting(name: str, tensor: Any, shape: Sequence[int]) -> Described | None:
    """A tensor that no direction moves: it only has to lie apart from the others, if it lies in CPU memory at all."""
    try:
        described = describe(name, tensor)
    except Error:
        return None
    return described if tuple(described[2]) == shape else None


class Live:
    """A hyper-model bound to tensors of a host's; made by HyperModel.bind.

    Holds the tensors and the hyper-model.  `set` and `restore` may be called from several threads; they wait for each other.
    """

    def __init__(self, hyper: HyperModel, targets: list[Target], unbound: list[str], ignored: list[str]) -> None:
        self.hyper = hyper
        self.unbound: list[str] = unbound
        """Tensors that the hyper-model moves and that have no target (a host may hold only the UNet)."""
        self.ignored: list[str] = ignored
        """Names in the state dict that the hyper-model does not know."""
        self.at: tuple[float, ...] | None = None
        """The multipliers of the latest `set`; None before it, after `restore`, and after a call that did not finish."""
        self._targets = targets
        self._versioned = [target.tensor for target in targets if target.versioned]
        self._core: _core.Live | None = None
        self._devices: Any = None
        self._free_lock()

    def __repr__(self) -> str:
        return f"<Live of {len(self._targets)} tensors at {self.at}>"

    @property
    def bound(self) -> dict[str, str]:
        """The targets that are moved: name in the state dict → name in the hyper-model."""
        return {target.key: target.name for target in self._targets}

    def set(
        self,
        *at: float,
        blocks: Mapping[str, Sequence[float]] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Writes base + Σ_k at[k]·D_k into the tensors; missing multipliers are 0.

        Always from the base, so nothing drifts: the same multipliers give the same bits, those that `merge` writes.
        blocks: other multipliers for tensors whose names (in the hyper-model) match a glob; the last match wins.
        threads: one per CPU by default.  progress: called with bytes done and in all; an exception raised in it cancels.
        What cannot work is refused before anything is written: Error, MismatchError (freed, read-only … tensors),
        ArgumentError (multipliers, globs).  After a cancel each tensor holds old or new values; the next call repairs it.
        """
        directions = self.hyper.directions
        values = _multipliers(at, directions, "set")
        pairs = []
        for glob, given in (blocks or {}).items():
            numbers = _multipliers(given, directions, f"block '{glob}'")
            pairs.append((glob, numbers + [0.0] * (directions - len(numbers))))
        self._write(values + [0.0] * (directions - len(values)), pairs, threads, progress)

    def restore(self, *, threads: int | None = None, progress: Progress | None = None) -> None:
        """Brings back the bytes that the tensors held when they were bound.  Raises as `set` does."""
        self._write(None, [], threads, progress)

    # ---- inside ----------------------------------------------------------------------------------------------------------

    def _free_lock(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._process = os.getpid()

    def _bind(
        self,
        core: _core.Hyper,
        resting: list[Described],
        rows: dict[str, Any],
        in_memory: bool,
        keep_original: bool,
        exact: bool,
        threads: int | None,
        progress: Progress | None,
    ) -> None:
        self._hyper, self._rows, self._in_memory, self._exact = core, rows, in_memory, exact
        described, elsewhere = self._look()
        homed = [item for item, target in zip(described, self._targets) if not target.by_torch]
        self._homed = [target for target in self._targets if not target.by_torch]
        self._resting = [(name, dtype, shape, strides, 0) for name, dtype, shape, strides, _ in resting]
        for target in elsewhere:
            devices = self._device_blends()
            if devices.holds_base(target):
                continue
            if not keep_original:
                raise refusal(
                    target.key,
                    "does not hold the hyper-model's base, and the first blend would destroy what it holds; load the base, or "
                    "use keep_original (takes memory for a copy)",
                )
            devices.keep(target)
        if homed:
            self._core = _core.bind(core, homed + resting, in_memory, keep_original, job(None, threads, progress, None))

    def _device_blends(self) -> Any:
        if self._devices is None:
            from .device import DeviceBlends  # needs torch

            self._devices = DeviceBlends(self._hyper, self._rows, self._in_memory, self._exact)
        return self._devices

    def _look(self) -> tuple[list[Described], list[Target]]:
        """How every target lies now, and those which torch must blend.  Raises when one of them cannot be written."""
        grad, described, elsewhere = grad_enabled(), [], []
        for target in self._targets:
            item, by_torch = target.look(grad)
            described.append(item)
            if by_torch:
                elsewhere.append(target)
        if elsewhere:
            refuse_overlaps(elsewhere)
        return described, elsewhere

    def _write(
        self,
        at: list[float] | None,
        pairs: list[tuple[str, list[float]]],
        threads: int | None,
        progress: Progress | None,
    ) -> None:
        """Under the lock: all targets, by the compiled part and by torch.  at None: restores."""
        if self._process != os.getpid():
            self._free_lock()  # a forked child, in which the parent's threads do not live on to release it
        if self._owner == threading.get_ident():
            raise Error("a live blend cannot be started from its own progress function")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                self._write_all(at, pairs, threads, progress)
            finally:
                self._owner = None

    def _write_all(
        self,
        at: list[float] | None,
        pairs: list[tuple[str, list[float]]],
        threads: int | None,
        progress: Progress | None,
    ) -> None:
        described, elsewhere = self._look()
        factors = _per_target(elsewhere, self._rows, at, pairs) if at is not None and elsewhere else []
        steps = _Steps(progress, sum(map(self._device_blends().bytes, elsewhere)) if elsewhere else 0)
        before, self.at = self.at, None
        try:
            self._write_here(described, at, pairs, threads, steps.compiled if progress else None)
            if at is None:
                self._restore_elsewhere(elsewhere, steps)
            for target, c in zip(elsewhere, factors):
                self._devices.set(target, c)
                steps.done(self._devices.bytes(target))
        except (ArgumentError, MismatchError):
            if not steps.begun:
                self.at = before  # refused before anything was written
            raise
        finally:
            count_writes(self._versioned)
        self.at = None if at is None else tuple(at)

    def _write_here(
        self,
        described: list[Described],
        at: list[float] | None,
        pairs: list[tuple[str, list[float]]],
        threads: int | None,
        progress: Progress | None,
    ) -> None:
        """By the compiled part: what is in CPU memory, unless it was elsewhere when it was bound."""
        if self._core is None:
            return
        here = [item for item, target in zip(described, self._targets) if not target.by_torch] + self._resting
        if at is None:
            self._core.restore(here, job(None, threads, progress, None))
        else:
            self._core.set(here, at, pairs, job(None, threads, progress, None))

    def _restore_elsewhere(self, targets: list[Target], steps: _Steps) -> None:
        """What was in CPU memory when it was bound may have its original there: it goes through a copy, some at a time."""
        batch: list[Target] = []
        size = 0
        for target in targets:
            if target.by_torch:
                self._devices.restore(target)
                steps.done(self._devices.bytes(target))
                continue
            batch.append(target)
            size += prod(target.shape) * target.tensor.element_size()
            if size >= _SCRATCH:
                self._restore_through_host(batch, steps)
                batch, size = [], 0
        if batch:
            self._restore_through_host(batch, steps)

    def _restore_through_host(self, targets: list[Target], steps: _Steps) -> None:
        torch = sys.modules["torch"]
        with torch.inference_mode():
            copies = {
                target.name: torch.empty(target.shape, dtype=target.tensor.dtype, device="cpu") for target in targets
            }
            described = []
            for target in self._homed:
                copy = copies.get(target.name)
                strides = target.tensor.stride() if copy is None else copy.stride()
                address = 0 if copy is None else copy.data_ptr()
                described.append((target.name, target.dtype, target.shape, strides, address))
            self._core.restore(described + self._resting, None)
            for target in targets:
                target.tensor.detach().copy_(copies[target.name])
                steps.done(self._devices.bytes(target))


class _Steps:
    """Progress over both parts of the work: first the compiled one, then `rest` bytes by torch."""

    def __init__(self, progress: Progress | None, rest: int) -> None:
        self._progress, self._rest = progress, rest
        self._done = self._total = 0
        self.begun = False

    def compiled(self, done: int, total: int) -> None:
        """Progress of the compiled part."""
        self.begun = True
        self._done = self._total = total
        self._report(done, total + self._rest)

    def done(self, size: int) -> None:
        """Torch is done with a target of `size` bytes."""
        self.begun = True
        self._done += size
        if self._progress is not None:
            self._report(self._done, self._total + self._rest)

    def _report(self, done: int, total: int) -> None:
        try:
            self._progress(done, total)
        except BaseException as reason:
            if hasattr(reason, "add_note"):  # Python 3.11
                reason.add_note(
                    "hyper-merge: cancelled; some tensors may hold new values and others old ones until the next call"
                )
            raise


def _multipliers(values: Sequence[float], directions: int, what: str) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) > directions:
        raise ArgumentError(f"{what}: {len(numbers)} multipliers for {directions} direction{'s' * (directions != 1)}")
    for k, c in enumerate(numbers, start=1):
        if not math.isfinite(c) or abs(c) > _MOST:
            raise ArgumentError(f"{what}: multiplier {k} is {c:g}; it must be a number of reasonable size")
    return numbers


def _per_target(
    targets: list[Target], names: Mapping[str, Any], at: list[float], pairs: list[tuple[str, list[float]]]
) -> list[list[float]]:
    """The multipliers of each target, as the compiled part finds them for its own.  Raises ArgumentError."""
    for glob, _ in pairs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ArgumentError(f"no merged tensor matches the glob '{glob}'")
    found = []
    for target in targets:
        values = at
        for glob, given in pairs:
            if fnmatchcase(target.name, glob):
                values = given
        found.append(values)
    return found


def blend_(
    out: Any, base: Any, directions: Sequence[Any], multipliers: Sequence[float], threads: int | None = None
) -> Any:
    """out = base + Σ_k multipliers[k]·directions[k], in place and without temporaries; returns `out`.

    One tensor alone, for a host that patches tensor by tensor: torch tensors or NumPy arrays of one shape, any
    floating-point types, any strides.  base None counts as 0; base may be `out` itself, other overlaps are refused.
    Arithmetic in f32, one rounding at the end, as in `merge`.  threads: as many as the size is worth by default.
    Tensors on another device are blended there by torch.  Raises MismatchError, ArgumentError, TypeError.
    """
    directions = list(directions)
    c = _multipliers(multipliers, len(directions), "blend_")
    if len(c) != len(directions):
        raise ArgumentError(f"blend_: {len(c)} multipliers for {len(directions)} directions")
    if not is_tensor(out):
        raise TypeError(f"blend_: expected a torch tensor or a NumPy array, not {type(out).__name__}")
    target = Target("out", "out", out)
    described, elsewhere = target.look(grad_enabled())
    if elsewhere:
        from .device import blend_tensors

        blend_tensors(out, base, directions, c)
    else:
        _core.blend(
            described,
            None if base is None else describe("base", base),
            [describe(f"direction {k}", item) for k, item in enumerate(directions, start=1)],
            c,
            job(None, threads, None, None)[1],
        )
    if target.versioned:
        count_writes([out])
    return out
