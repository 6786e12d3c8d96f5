"""The queue: first come, first served, for jobs of the page and of the API."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any


class FIFOLock:
    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[object] = deque()
        self._held = False

    def acquire(self, blocking: bool = True) -> bool:
        ticket = object()
        with self._condition:
            if self._held or self._waiting:
                if not blocking:
                    return False
                self._waiting.append(ticket)
                self._condition.wait_for(lambda: not self._held and self._waiting[0] is ticket)
                self._waiting.popleft()
            self._held = True
            return True

    def release(self) -> None:
        with self._condition:
            self._held = False
            self._condition.notify_all()

    __enter__ = acquire

    def __exit__(self, *reason: Any) -> None:
        self.release()


queue_lock = FIFOLock()


def wrap_gradio_gpu_call(function: Any, extra_outputs: Any = None) -> Any:
    from . import shared

    def called(*values: Any) -> Any:
        with queue_lock:
            shared.state.begin(job="task")
            try:
                return function(*values)
            finally:
                shared.state.end()

    return called
