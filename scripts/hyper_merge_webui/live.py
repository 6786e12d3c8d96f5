"""The one live blend of this process: what the weights of the loaded model are now, and who may change them.

    live.want(settings)         a person moves a slider: written at once when the host is idle, else the newest waits
    live.for_job(p, settings)   a job, a batch, the hires pass begins: what is written is what the job wants
    live.for_prompts(p)         prompts were parsed: the same, with the token that was in them
    live.off()                  the base again, bit for bit, and everything is given back
    live.status()               what is there now, in one line
    live.current()              the Settings that the weights hold, None when they are the base's own

All of these may be called from any thread.  None of them raises what a person cannot mend: refusals come back as the
text that is shown to her.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from . import a1111, forge, host
from .binding import Binding, Damaged, Refused, describe
from .settings import Settings, blend_hash, write_infotext

log = logging.getLogger("hyper_merge")

_TOKEN = re.compile(r"<hm:", re.IGNORECASE)
WAITS = "waits for the running job"
_PATIENCE = 0.25  # seconds until a move says that it waits for a job


class _Move:
    """A wish of a person's, and what became of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.begun, self.finished = threading.Event(), threading.Event()
        self.text = ""

    def finish(self, text: str) -> None:
        self.text = text
        self.begun.set()
        self.finished.set()


class _State:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Of all below but the moves; taken after the queue's lock."""
        self.binding: Binding | None = None
        self.kept: Settings | None = None
        self.outer: weakref.ref[Any] | None = None
        """The latest job whose settings are known: jobs inside it (by other extensions) have none of their own."""
        self.text = ""
        """Of the latest blend."""
        self.refused = ""
        """Why there is none, if one was wanted."""
        self.moves = threading.Lock()
        self.pending: _Move | None = None
        self.writing: _Move | None = None
        self.worker: threading.Thread | None = None


_state = _State()


# ---- a person moves a slider ----------------------------------------------------------------------------------------


def want(settings: Settings, keep: bool = False, wait: float = 30.0) -> str:
    """Moves the loaded model there; a short text for the person who moved the slider.

    Written at once when no job runs; else the newest waits for the job's end and older ones are dropped, and the text
    says so.  Not enabled = the base.  keep: hold for jobs too that bring no settings of their own (the API's `set`).
    Must not be called with the queue's lock held.  wait: seconds to wait for the writing itself.
    """
    if keep:
        _state.kept = settings if settings.enabled else None
    move = _Move(settings)
    with _state.moves:
        if _state.pending is not None:
            _state.pending.finish("a newer value took its place")
        _state.pending = move
        if _state.worker is None:
            _state.worker = threading.Thread(target=_work, name="hyper-merge live", daemon=True)
            _state.worker.start()
    while not move.begun.wait(_PATIENCE):
        if _state.writing is None:
            return WAITS
    return move.text if move.finished.wait(wait) else "is being written"


def _work() -> None:
    """Writes the newest wish, under the queue's lock, until there is none."""
    while True:
        with host.lock():
            with _state.moves:
                move, _state.pending = _state.pending, None
                _state.writing = move
            if move is not None:
                move.begun.set()
                try:
                    move.finish(_move(move.settings))
                except Exception as reason:  # the thread must live on, and the person learn of it
                    log.exception("hyper-merge: the blend could not be written")
                    move.finish(str(reason))
        with _state.moves:
            _state.writing = None
            if _state.pending is None:
                _state.worker = None
                return


def _move(settings: Settings) -> str:
    with _state.lock:
        try:
            if settings.enabled:
                return _bring(settings)
            _release()
            return "off"
        except Refused as reason:
            _state.refused = str(reason)
            return _state.refused


def waits() -> bool:
    """Is a move not written yet, because a job runs?"""
    return _state.pending is not None or _state.writing is not None


def off() -> str:
    """The base again, under the queue's lock like `want`; a short text."""
    _state.kept = None
    return want(Settings())


def current() -> Settings | None:
    """What the loaded model's weights hold now; None = its own."""
    binding = _state.binding
    return binding.settings if binding is not None and binding.is_of(host.loaded_model()) else None


def kept() -> Settings | None:
    """What `want(…, keep=True)` set for jobs that bring nothing of their own."""
    return _state.kept


def status() -> str:
    """One line: "8-models · λ 0.4  κ -0.2 · 0.31 s", "off", or why not."""
    return _state.text if current() is not None else _state.refused or "off"


# ---- a job ----------------------------------------------------------------------------------------------------------


def for_job(p: Any, settings: Settings | None = None) -> None:
    """Brings the weights to what the job `p` wants; called under the queue's lock, as all hooks of a job are.

    Script.process calls it with the accordion's settings (which are then known to p: XYZ axes and prompt tokens change
    them from there), Script.process_batch and Script.before_hr without.  Also writes infotext and model hash into p.
    What cannot be done is said in p.comment(…), and the weights stay the base's own.
    """
    if settings is not None:
        p.hyper_merge, p.hyper_merge_token, p.hyper_merge_file = settings, None, None
        _state.outer = weakref.ref(p)
        if _has_tokens(p) and not getattr(p, "disable_extra_networks", False):
            return  # they are known once the prompts are parsed, and until then nothing is computed
    main = not getattr(p, "is_hr_pass", False)
    wanted = _serve(p, main)
    if main:
        _tell(p, wanted)


def for_values(p: Any, values: Sequence[Any]) -> None:
    """The same with the values of the accordion's components; one that is wrong is said, and nothing is moved by it."""
    try:
        settings = Settings.of(*values)
    except (TypeError, ValueError) as reason:
        # Without settings of its own the job would be taken for one inside the job before, and get that one's point.
        settings = Settings()
        if values[0]:
            _say(p, f"Hyper-Merge: {reason}")
    for_job(p, settings)


def for_prompts(p: Any) -> None:
    """The same when prompts were parsed and extra networks are activated: also amid a job, for its hires pass."""
    if getattr(p, "all_prompts", None):  # else no job: the host encodes its empty prompt
        _serve(p, False)


def _serve(p: Any, main: bool) -> Settings:
    """→ what the weights hold.  main: the job begins with what is loaded now.

    A checkpoint that takes its place for a while, as a refiner, is left as it is, even where it is the base itself.
    """
    with _state.lock:
        wanted, model = wanted_by(p), host.loaded_model()
        if main:
            p.hyper_merge_file = host.file_of(model)
        own = getattr(p, "hyper_merge_file", None) in (None, host.file_of(model))
        try:
            if own and wanted.enabled:
                _bring(wanted, p)
            elif own or (_state.binding is not None and _state.binding.is_of(model)):
                _rest(p)
            _encode_empty_prompt()
            return wanted if own else Settings()
        except Refused as reason:
            _refuse(p, str(reason))
        except Exception as reason:  # the host would only print it, and nobody learn why the picture is another
            log.exception("hyper-merge: the blend could not be made")
            _refuse(p, str(reason))
        return Settings()


def _refuse(p: Any, text: str) -> None:
    """Says why the job goes without, and puts the base back where something else is in the weights."""
    if text != _state.refused:
        log.warning("hyper-merge: %s", text)
    _say(p, f"Hyper-Merge: {text}")
    try:
        _rest(p)
        _encode_empty_prompt()
    except Exception as reason:
        if not isinstance(reason, Refused):
            log.exception("hyper-merge: the base could not be put back")
        _say(p, f"Hyper-Merge: {reason}")
    _state.refused = text


def wanted_by(p: Any) -> Settings:
    """What a job wants: its own accordion's, or what holds for all, changed by XYZ axes and the prompt's token."""
    own, token = getattr(p, "hyper_merge", None), getattr(p, "hyper_merge_token", None)
    axes = getattr(p, "hyper_merge_axes", None) or {}
    if own is None:
        outer = _state.outer() if _state.outer is not None else None
        if outer is not None and token is None:
            return wanted_by(outer)
        # The token of a job inside a job changes what the outer one's accordion says.
        own = getattr(outer, "hyper_merge", None) or Settings()
        axes = {**(getattr(outer, "hyper_merge_axes", None) or {}), **axes}
    if not own.enabled and _state.kept is not None:
        own = _state.kept
    changes = {**axes, **(token or {})}
    if not own.hyper and not changes.get("hyper") and (own.enabled or changes):
        # An infotext that is given to the API cannot set a list that was empty when the page was built.
        changes["hyper"] = _only_one()
    if not changes:
        return own
    lines = changes.pop("lines", ())
    if lines:
        changes["blocks"] = "\n".join(filter(None, [changes.get("blocks", own.blocks), *lines]))
    return own.replaced(enabled=True, **changes)


def _only_one() -> str:
    names = host.hyper_names()
    return names[0] if len(names) == 1 else ""


def _has_tokens(p: Any) -> bool:
    return any(_TOKEN.search(str(prompt)) for prompt in getattr(p, "all_prompts", None) or ())


def _tell(p: Any, wanted: Settings) -> None:
    """Infotext and model hash; the base's own where nothing is moved."""
    params, model = p.extra_generation_params, host.loaded_model()
    for key in [key for key in params if key.startswith("Hyper-Merge")]:
        del params[key]
    binding = _state.binding
    if model is None or not wanted.enabled or binding is None or not binding.is_of(model):
        if getattr(p, "hyper_merge_hash", None) and model is not None:
            p.sd_model_hash = model.sd_model_hash
        p.hyper_merge_hash = None
        return
    params.update(write_infotext(wanted, model.sd_model_hash))
    p.hyper_merge_hash = p.sd_model_hash = blend_hash(binding.header_hash, wanted)


def _say(p: Any, text: str) -> None:
    if hasattr(p, "comment"):
        p.comment(text)


# ---- the weights ----------------------------------------------------------------------------------------------------


def forget(model: Any = None) -> None:
    """on_model_loaded: the weights of `model` were loaded anew, so what was known of them does not hold."""
    with _state.lock:
        binding = _state.binding
        if binding is not None and (model is None or binding.model() is model):
            _drop(binding)


def _bring(settings: Settings, p: Any = None) -> str:
    """Binds if need be, and writes if need be.  Raises Refused."""
    model = host.loaded_model()
    if model is None:
        raise Refused("no model is loaded yet; the blend is written when the first picture is made")
    adapter = forge if forge.is_forge(model) else a1111
    told = adapter.hindrance()
    if told is not None:
        raise Refused(told)
    binding = _bound(model, settings, adapter)
    seconds = _changing(binding, lambda: binding.bring(settings), p)
    _state.text = describe(binding.hyper, settings) + ("" if seconds is None else f" · {seconds:.2f} s")
    _state.refused = ""
    return _state.text


def _bound(model: Any, settings: Settings, adapter: ModuleType) -> Binding:
    """The binding of this model to this hyper-model.  Raises Refused."""
    _drop_dead()
    binding = _state.binding
    if binding is not None and binding.is_of(model):
        if binding.is_to(settings):
            return binding
        _release()
    made = Binding.make(model, settings, adapter)
    _release()  # another model's, which the host keeps
    _state.binding = made
    return made


def _changing(binding: Binding, change: Callable[[], Any], p: Any = None) -> Any:
    """What was encoded by a text encoder that moved is not used again; weights that are damaged are loaded anew."""
    before = binding.text
    try:
        return change()
    except Damaged as reason:
        host.forget_conds(p)
        raise Refused(f"{reason}; {_loaded_again(binding)}") from reason
    finally:
        if binding.text != before:
            host.forget_conds(p)


def _loaded_again(binding: Binding) -> str:
    """→ what became of damaged weights.  Until they are replaced the binding stays, so that nobody takes them for the
    base, and restoring is tried again.
    """
    try:
        done = host.reload_model(binding.model())
    except Exception as reason:
        log.exception("hyper-merge: the checkpoint could not be loaded again")
        return f"the model is damaged, and could not be loaded again ({reason}): choose another one, then this one"
    if not done:
        return "the model is damaged, and is loaded again for the next picture"
    _drop(binding)
    return "the checkpoint was loaded again"


def _rest(p: Any = None) -> None:
    """The base again, but ready to move on: a prompt without token between others that have one.  Raises Refused.

    Also of a model that is not the loaded one now: a host that keeps it may take it for the job's refiner.
    """
    _drop_dead()
    binding = _state.binding
    if binding is not None:
        _changing(binding, binding.rest, p)
    _state.refused = ""


def _release() -> None:
    """The base again, and nothing of ours is left.  Raises Refused."""
    _drop_dead()
    binding, _state.refused = _state.binding, ""
    if binding is not None:
        _changing(binding, binding.rest)
        binding.put_back_empty_prompt()
        _state.binding = None


def _drop_dead() -> None:
    """Forgets a model that the host has thrown away, or loaded another checkpoint into."""
    binding = _state.binding
    if binding is not None and not binding.is_alive():
        _drop(binding)


def _drop(binding: Binding) -> None:
    """Its weights are another checkpoint's now; but what the host keeps of the empty prompt it does not make anew."""
    if binding.text:
        host.forget_conds()
    binding.put_back_empty_prompt()
    binding.unhook()
    _state.binding = None


def _encode_empty_prompt() -> None:
    """The host keeps one prompt encoded, which must follow the text encoder."""
    binding, model = _state.binding, host.loaded_model()
    if binding is not None and binding.is_of(model):
        binding.encode_empty_prompt(model)
