"""Long jobs that the API starts: each waits in the host's queue, in a thread of its own, and has a number."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from . import host

_KEPT = 64
_tasks: OrderedDict[str, Task] = OrderedDict()
_lock = threading.Lock()
_numbers = itertools.count(1)


class Task:
    """One job.  `state` is queued, running, done, failed or cancelled."""

    def __init__(self, kind: str) -> None:
        self.id, self.kind, self.state = f"hyper-merge-{next(_numbers)}", kind, "queued"
        self.result: Any = None
        self.error: str | None = None
        self.ended = threading.Event()

    def describe(self) -> dict[str, Any]:
        """As the API answers; progress 0 … 1."""
        share, text = host.progress() if self.state == "running" else (float(self.state == "done"), None)
        return {
            "job": self.id,
            "kind": self.kind,
            "state": self.state,
            "progress": share,
            "text": text,
            "result": self.result,
            "error": self.error,
        }


def start(kind: str, function: Callable[[], Any]) -> Task:
    """Begins function() when the host's queue lets it; its result must be fit for JSON."""
    task = Task(kind)
    with _lock:
        _tasks[task.id] = task
        for old in [key for key, item in _tasks.items() if item.ended.is_set()][: max(0, len(_tasks) - _KEPT)]:
            del _tasks[old]
    threading.Thread(target=_run, args=(task, function), name=task.id, daemon=True).start()
    return task


def find(number: str | None) -> Task | None:
    """By number; without one the latest."""
    with _lock:
        if number:
            return _tasks.get(number)
        return next(reversed(_tasks.values()), None)


def cancel(task: Task) -> None:
    """A job that waits never begins; one that runs stops at its next report of progress, and leaves no file behind."""
    with _lock:
        if task.state == "queued":
            task.state = "cancelled"
        elif task.state == "running":
            host.interrupt()


def _run(task: Task, function: Callable[[], Any]) -> None:
    try:
        with host.job(f"hyper-merge {task.kind}"):
            with _lock:
                if task.state == "cancelled":
                    return
                task.state = "running"
            state = _ended(task, function)
            with _lock:  # before the queue lets the next job in, which a late `cancel` would stop otherwise
                task.state = state
    finally:
        task.ended.set()


def _ended(task: Task, function: Callable[[], Any]) -> str:
    """Calls it; → the state that the job is in then."""
    try:
        task.result = function()
    except host.Stopped:
        return "cancelled"
    except Exception as reason:
        host.log_unexpected(reason)
        task.error = str(reason).removeprefix("hyper-merge: ")
        return "failed"
    return "done"
