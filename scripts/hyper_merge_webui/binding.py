"""One hyper-model bound to one loaded model: what its weights hold, and the way from there to another point."""

from __future__ import annotations

import logging
import time
import weakref
from types import ModuleType
from typing import Any

from . import bases, host
from .pack import Hyper, hypermerge, identity_of, missing, points
from .settings import Names, Settings, TextMoves
from .weights import Blend

log = logging.getLogger("hyper_merge")

_UNKNOWN: TextMoves = (("unknown", ()),)
"""What a text encoder is moved by that is damaged: by nothing that it is ever moved by."""


class Refused(RuntimeError):
    """Why the weights stay as they are, for the person."""


class Damaged(Refused):
    """The weights hold neither a blend nor the base."""


class Binding:
    """Keeps no part of the model alive."""

    def __init__(self, model: Any, hyper: Hyper, blend: Blend, adapter: ModuleType, in_memory: bool) -> None:
        self.model = weakref.ref(model)
        self.hyper, self._blend, self._adapter, self._in_memory = hyper, blend, adapter, in_memory
        self.settings: Settings | None = None
        """What the weights hold; None = the base."""
        self.text: TextMoves = ()
        """What the text encoder's weights are moved by; () while the weights are the host's own.

        By zeros is something else: the host may have rounded what it loaded in a way of its own, as Forge does for fp8.
        """
        self.header_hash = bases.header_hash(hyper)
        self._moving = Names(hyper.stored.moving)
        self._file = host.file_of(model)
        self._written: tuple[Any, ...] | None = None
        self._empty = _empty_prompt(adapter, model)
        self._empty_text: TextMoves = ()

    @staticmethod
    def make(model: Any, settings: Settings, adapter: ModuleType) -> Binding:
        """Raises Refused, with the sentence that says what to do."""
        told = missing()
        if told is not None:
            raise Refused(told)
        if not settings.hyper:
            raise Refused("choose a hyper-model first")
        hm = hypermerge()
        try:
            hyper = host.open_hyper(settings.hyper)
            known, in_memory = _is_base(hyper, host.file_of(model)), _in_memory()
            return Binding(model, hyper, adapter.bind(model, hyper, known, in_memory), adapter, in_memory)
        except hm.MismatchError as reason:
            log.info("hyper-merge: %s: %s", host.name_of(model), reason)
            raise Refused(
                f"{host.name_of(model)} is not the base of {settings.hyper}; load its base with the button “Load "
                "base”, then the sliders move it"
            ) from reason
        except (hm.Error, OSError) as reason:
            raise Refused(str(reason).removeprefix("hyper-merge: ")) from reason

    def is_of(self, model: Any) -> bool:
        """Is it bound to this very model, with the checkpoint that it held then?"""
        return model is not None and self.model() is model and host.file_of(model) == self._file

    def is_alive(self) -> bool:
        """False when the host has read another checkpoint into the model, or thrown it away."""
        model = self.model()
        weights = getattr(model, "parameters", tuple)  # Forge frees them, A1111 sends them to the device "meta"
        return host.file_of(model) == self._file and not any(weight.is_meta for weight in weights())

    def is_to(self, settings: Settings) -> bool:
        """Is it the hyper-model of that name, as its file is now, with its directions where they are wanted?"""
        if settings.hyper != self.hyper.name or self._in_memory != _in_memory():
            return False
        try:
            return bool(identity_of(host.hyper_path(settings.hyper)) == self.hyper.identity)
        except OSError:
            return True  # gone meanwhile: ours is still open

    def bring(self, settings: Settings) -> float | None:
        """Seconds of writing; None when nothing was to be written.  Raises Refused."""
        if settings == self.settings:
            self._refresh()
            return None
        try:
            at = settings.at(self.hyper.count)
            pairs = settings.pairs(self.hyper.count, self._moving)
            text = self._moving.text_moves(at, pairs)
        except ValueError as reason:
            raise Refused(str(reason)) from reason
        wanted = None  # nothing moves: the base
        if any(map(any, (at, *pairs.values()))):
            wanted = (at, tuple((glob, tuple(values)) for glob, values in pairs.items()))
        if self._written == wanted:
            self._refresh()
            self.settings = settings
            return None
        begun = time.perf_counter()
        if wanted is None:
            self.rest()
        else:
            self._write(lambda: self._blend.set(at, pairs))
            self._written, self.text = wanted, text
        self.settings = settings
        return time.perf_counter() - begun

    def rest(self) -> None:
        """The base again, bit for bit.  Raises Refused."""
        if self._written is None:
            self._refresh()
            self.settings = None
            return
        self._write(self._blend.restore)
        self._at_base()

    def encode_empty_prompt(self, model: Any) -> None:
        """The host keeps one encoded prompt, to fill others up with; it follows the text encoder."""
        if self._empty is None or self._empty_text == self.text:
            return
        if self.text:
            self._adapter.encode_empty_prompt(model)
            self._empty_text = self.text
        else:
            self.put_back_empty_prompt()

    def unhook(self) -> None:
        """Its weights are gone: what the blend has told the host of itself is taken back all the same."""
        unhook = getattr(self._blend, "unhook", None)
        if unhook is not None:
            unhook()

    def put_back_empty_prompt(self) -> None:
        model = self.model()
        if self._empty is not None and model is not None and self._empty_text:
            model.cond_stage_model_empty_prompt = self._empty
        self._empty_text = ()

    def _write(self, write: Any) -> None:
        """After a failure in the middle the base is tried; where that fails too, the weights are of no more use."""
        self._written = ("unknown",)
        try:
            write()
            return
        except Exception as reason:
            failed = reason
            log.warning("hyper-merge: the blend could not be written: %s", failed, exc_info=failed)
        try:
            self._blend.restore()
        except Exception as reason:
            self.settings, self.text = None, _UNKNOWN
            raise Damaged(str(failed).removeprefix("hyper-merge: ")) from reason
        self._at_base()
        raise Refused(str(failed).removeprefix("hyper-merge: ")) from failed

    def _at_base(self) -> None:
        self._written, self.settings, self.text = None, None, ()

    def _refresh(self) -> None:
        """Where the host makes its patches anew, ours have to be among them."""
        refresh = getattr(self._blend, "refresh", None)
        if refresh is not None:
            refresh()


def describe(hyper: Hyper, settings: Settings) -> str:
    """ "8-models · λ 0.4  κ -0.2"."""
    return f"{bases.stem(hyper.name)} · {points.label(settings.at(hyper.count))}"


def _is_base(hyper: Hyper, path: str | None) -> bool:
    """False also for files of other kinds: what the model holds then decides."""
    try:
        return path is not None and bases.is_base(hyper, path)
    except (hypermerge().Error, OSError):
        return False


def _in_memory() -> bool:
    return bool(host.option("hyper_merge_in_memory", False))


def _empty_prompt(adapter: ModuleType, model: Any) -> Any:
    found = getattr(adapter, "empty_prompt", None)
    return None if found is None else found(model)
