"""Routes under /hyper-merge/v1, there where the host's own API is: with --api or --nowebui, and behind --api-auth.

    GET  list                         hyper-models, checkpoints
    GET  get                          what the weights hold, and what `set` asked for
    POST set     {hyper, multipliers, text_encoder?, blocks?, enabled?}   until the next; jobs may bring their own
    GET  table?name=  map?name=       what a hyper-model is
    POST solve, project, recover, compare, load-base, save-checkpoint, save-lora    {arguments} → {job}
    GET  progress?job=                state, 0 … 1, text, result, error; of the latest job without a number
    POST cancel  {job}

Long jobs wait in the host's queue.  Errors: 404 no such hyper-model, checkpoint or job; 422 what cannot be done; 503
the compiled part is missing; {"detail": why}.
"""

from __future__ import annotations

import inspect
import math
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from fastapi import Body, Depends, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from . import host, jobs, live, tasks
from .pack import missing
from .settings import Settings

PREFIX = "/hyper-merge/v1"


def register(app: Any) -> None:
    """on_app_started.  After "Reload UI" the host makes a new app."""
    from modules import shared

    if not any(getattr(shared.cmd_opts, flag, False) for flag in ("api", "nowebui")):  # the latter is the API alone
        return
    guard = [Depends(_authentication(shared.cmd_opts.api_auth))] if getattr(shared.cmd_opts, "api_auth", None) else []
    for method, name, endpoint in [
        ("GET", "list", listed),
        ("GET", "get", get),
        ("POST", "set", set_),
        ("GET", "table", table),
        ("GET", "map", map_),
        ("GET", "progress", progress),
        ("POST", "cancel", cancel),
        *(("POST", name, _starting(name, job)) for name, job in _JOBS.items()),
    ]:
        app.add_api_route(f"{PREFIX}/{name}", endpoint, methods=[method], dependencies=guard)


def _authentication(pairs: str) -> Callable[..., None]:
    """The host's own: --api-auth user:password,user:password."""
    known = [pair.strip().partition(":")[::2] for pair in pairs.split(",")]
    basic = HTTPBasic()

    def check(credentials: HTTPBasicCredentials = Depends(basic)) -> None:
        given = (credentials.username.encode(), credentials.password.encode())
        found = [
            secrets.compare_digest(given[0], user.encode()) & secrets.compare_digest(given[1], password.encode())
            for user, password in known
        ]
        if not any(found):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return check


# ---- answers --------------------------------------------------------------------------------------------------------


def listed() -> dict[str, Any]:
    return {"hyper_models": host.hyper_names(), "models": host.model_names()}


def get() -> dict[str, Any]:
    return {"current": _as_json(live.current()), "set": _as_json(live.kept()), "status": live.status()}


def set_(wanted: dict = Body(...)) -> dict[str, Any]:
    """→ as `get`, with `text`: what happened."""
    settings = _settings(wanted)
    if settings.enabled:
        _answered(lambda: host.hyper_path(settings.hyper))
    text = live.want(settings, keep=True)
    return {**get(), "text": text}


def table(name: str) -> dict[str, str]:
    return {"text": _answered(lambda: jobs.table(name))}


def map_(name: str) -> dict[str, Any]:
    found: dict[str, Any] = _answered(lambda: jobs.map_document(name))
    return found


def progress(job: str | None = None) -> dict[str, Any]:
    return _task(job).describe()


def cancel(wanted: dict = Body(default={})) -> dict[str, Any]:
    task = _task(wanted.get("job"))
    tasks.cancel(task)
    return task.describe()


# ---- jobs -----------------------------------------------------------------------------------------------------------


class _Job(NamedTuple):
    function: Callable[..., Any]
    """Of `jobs`; the request's arguments are its own."""
    answer: Callable[[Any], Any]
    """Its result as JSON."""
    of_a_point: bool = False
    """Its first argument is a point: hyper, multipliers, text_encoder, blocks."""


_JOBS = {
    "solve": _Job(jobs.solve, lambda made: made._asdict()),
    "project": _Job(jobs.project, lambda found: {"text": found[0], "map": found[1]}),
    "recover": _Job(jobs.recover, lambda text: {"text": text}),
    "compare": _Job(jobs.compare, lambda text: {"text": text}),
    "load-base": _Job(jobs.load_base, lambda title: {"title": title}),
    "save-checkpoint": _Job(jobs.save_checkpoint, lambda made: made._asdict(), True),
    "save-lora": _Job(jobs.save_lora, lambda files: [made._asdict() for made in files], True),
}


def _starting(kind: str, job: _Job) -> Callable[..., dict[str, Any]]:
    def start(arguments: dict = Body(...)) -> dict[str, Any]:
        _compiled()
        point: list[Any] = []
        if job.of_a_point:
            settings, arguments = _split(arguments)
            point = [settings]
        try:
            inspect.signature(job.function).bind(*point, **arguments)
        except TypeError as reason:
            raise HTTPException(422, f"{kind}: {reason}") from reason
        return tasks.start(kind, lambda: job.answer(job.function(*point, **arguments))).describe()

    start.__name__ = f"hyper_merge_{kind.replace('-', '_')}"
    return start


# ---- inside ---------------------------------------------------------------------------------------------------------


def _settings(given: dict[str, Any]) -> Settings:
    """Raises HTTPException."""
    try:
        multipliers = given.get("multipliers", ())
        if isinstance(multipliers, str):  # each letter of which would be taken for a number
            raise TypeError(f"{multipliers!r} is a text")
        return Settings(
            bool(given.get("enabled", True)),
            str(given.get("hyper") or ""),
            tuple(map(_finite, multipliers)),
            _finite(given.get("text_encoder", 1.0)),
            str(given.get("blocks") or "").strip(),
        )
    except (TypeError, ValueError) as reason:
        raise HTTPException(422, f"multipliers are a list of numbers, text_encoder is a number: {reason}") from reason


def _finite(value: Any) -> float:
    """Python's JSON reads NaN and 1e999, and no answer could be written with them.  Raises TypeError, ValueError."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _split(given: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The point, and the arguments that are not of it."""
    point = {"enabled", "hyper", "multipliers", "text_encoder", "blocks"}
    return _settings(given), {key: value for key, value in given.items() if key not in point}


def _as_json(settings: Settings | None) -> dict[str, Any] | None:
    if settings is None:
        return None
    return {
        "hyper": settings.hyper,
        "multipliers": list(settings.multipliers),
        "text_encoder": settings.text_encoder,
        "blocks": settings.blocks,
    }


def _task(number: str | None) -> tasks.Task:
    task = tasks.find(number)
    if task is None:
        raise HTTPException(404, f"there is no job {number}" if number else "there is no job")
    return task


def _compiled() -> None:
    told = missing()
    if told is not None:
        raise HTTPException(503, told)


def _answered(function: Callable[[], Any]) -> Any:
    _compiled()
    try:
        return function()
    except FileNotFoundError as reason:
        raise HTTPException(404, str(reason)) from reason
    except Exception as reason:  # whatever is wrong with the file
        host.log_unexpected(reason)
        raise HTTPException(422, str(reason)) from reason
