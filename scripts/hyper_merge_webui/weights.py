"""A hyper-model bound to the weights of a loaded model, without holding these: the host may move, replace or free them.

Knows no host: a1111.py and forge.py say which parameters there are.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

from .pack import Hyper, hypermerge, keys

log = logging.getLogger("hyper_merge")

Pairs = Mapping[str, Sequence[float]]
"""Glob → K multipliers; the last that matches decides."""

_ROW_BASE = 0  # of hypermerge_ext.stored


class Parameter:
    """Stands for a parameter of a module, and finds it anew at each use.

    So nothing that the host throws away is kept alive, and a parameter that it replaces is followed.  Has every
    attribute of the tensor; to hypermerge_ext it is one.
    """

    __slots__ = ("_module", "_name")

    def __init__(self, module: Any, name: str) -> None:
        self._module, self._name = weakref.ref(module), name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now(), name)

    def now(self) -> Any:
        """The tensor.  Raises ReferenceError when the module is gone."""
        module = self._module()
        found = None if module is None else getattr(module, self._name, None)
        if found is None:
            raise ReferenceError(f"hyper-merge: {self._name}: the host has thrown this weight away")
        return found

    def is_inference(self) -> bool:
        """True: torch need not count the writes, which happen between two runs."""
        return True


def parameters(module: Any, prefix: str = "") -> dict[str, Parameter]:
    """Every parameter once, under its name with `prefix` in front."""
    found, seen = {}, set()
    for path, child in module.named_modules():
        for name, value in child._parameters.items():
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                found[f"{prefix}{path}.{name}" if path else f"{prefix}{name}"] = Parameter(child, name)
    return found


class Targets(NamedTuple):
    """What is to be moved: the host's names, and which tensor (or part of one) of the hyper-model each is."""

    whole: dict[str, tuple[Parameter, str]]
    parts: dict[str, tuple[Parameter, Any]] = {}
    """With nodes/logic's Part: a run of rows, or a transposed tensor."""
    copies: dict[str, tuple[Parameter, str]] = {}
    """Further copies of the same tensors, which must move with them."""

    @property
    def names(self) -> set[str]:
        """Tensors of the hyper-model that have a target."""
        return {name for _, name in self.whole.values()} | {part.name for _, part in self.parts.values()}


class Blend(Protocol):
    """What moves weights; each of these two writes all of them, always from the base."""

    def set(self, at: Sequence[float], pairs: Pairs) -> None: ...

    def restore(self) -> None: ...


class Written:
    """Moves whole tensors, parts of tensors and further copies in place."""

    def __init__(self, hyper: Hyper, targets: Targets, keep_original: bool, in_memory: bool) -> None:
        """Compares everything with the hyper-model's base once.  Raises MismatchError where it holds something else."""
        moving = hyper.stored.moving
        self.moved: list[Parameter] = []
        """All that is written to."""
        self._blends: list[Blend] = []
        for group in (targets.whole, targets.copies):
            moved = {key: pair for key, pair in group.items() if pair[1] in moving}
            if moved:
                live = hyper.model.bind(
                    {key: parameter for key, (parameter, _) in moved.items()},
                    names={key: name for key, (_, name) in moved.items()},
                    in_memory=in_memory and group is targets.whole,
                    keep_original=keep_original,
                )
                self._blends.append(_Whole(live))
                self.moved += [parameter for parameter, _ in moved.values()]
        parts = {key: pair for key, pair in targets.parts.items() if pair[1].name in moving}
        if parts:
            self._blends.append(_Parts(hyper, parts, keep_original))
            self.moved += [parameter for parameter, _ in parts.values()]
        left = [name for name in moving if name not in targets.names]
        if left:
            log.info("hyper-merge: %s moves tensors that stay as they are while live: %s", hyper.name, keys.few(left))
        if not self._blends:
            raise hypermerge().MismatchError("the loaded model has none of the tensors that the hyper-model moves")

    def set(self, at: Sequence[float], pairs: Pairs) -> None:
        for blend in self._blends:
            blend.set(at, pairs)

    def restore(self) -> None:
        for blend in self._blends:
            blend.restore()


class _Whole:
    def __init__(self, live: Any) -> None:
        self._live = live

    def set(self, at: Sequence[float], pairs: Pairs) -> None:
        self._live.set(*at, blocks=dict(pairs))

    def restore(self) -> None:
        self._live.restore()


class _Parts:
    """Tensors that the host has cut out of the hyper-model's, or transposed; one at a time, read from the file."""

    def __init__(self, hyper: Hyper, parts: Mapping[str, tuple[Parameter, Any]], keep_original: bool) -> None:
        self._stored, self._directions = hyper.stored, hyper.directions(False)
        self._parts = dict(parts)
        self._originals: dict[str, Any] = {}
        for key, (parameter, part) in self._parts.items():
            held = parameter.detach()
            if tuple(held.shape) != part.shape:
                raise hypermerge().MismatchError(
                    f"{key}: has the shape {list(held.shape)}, in the hyper-model {list(part.shape)}"
                )
            if not _equal(held, self._base(part, held)):
                if not keep_original:
                    raise hypermerge().MismatchError(f"{key}: does not hold the hyper-model's base")
                self._originals[key] = held.to("cpu", copy=True)

    def set(self, at: Sequence[float], pairs: Pairs) -> None:
        import torch

        with torch.inference_mode():
            for parameter, part in self._parts.values():
                out = parameter.detach()
                self._directions.blend_(out, self._base(part, out), part, multipliers_of(part.name, at, pairs), True)

    def restore(self) -> None:
        import torch

        with torch.inference_mode():
            for key, (parameter, part) in self._parts.items():
                out = parameter.detach()
                original = self._originals.get(key)
                out.copy_(self._base(part, out) if original is None else original)

    def _base(self, part: Any, like: Any) -> Any:
        """W̃ of the part, in the type in which it is stored, where `like` is."""
        whole = self._stored.read(part.name, _ROW_BASE)
        if part.transposed:
            return whole.T.to(like.device)
        count = like.numel()
        return whole.view(-1)[part.start : part.start + count].view(part.shape).to(like.device)


def _equal(held: Any, base: Any) -> bool:
    import torch

    cast = base.to(held.dtype)
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[held.element_size()]
    return torch.equal(held.contiguous().view(kind), cast.contiguous().view(kind))


def multipliers_of(name: str, at: Sequence[float], pairs: Pairs) -> list[float]:
    """Those of the last glob that matches the tensor's name, else `at`."""
    values = list(at)
    for glob, given in pairs.items():
        if fnmatchcase(name, glob):
            values = list(given)
    return values
