"""What a command owes its process: it ends when it is asked to, and it bears standard streams that are closed or full."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from ._core import Error


class Interruptible:
    """Between `work.begin()` and `work.over()` within `with Interruptible(…) as work:` SIGTERM and SIGHUP raise
    KeyboardInterrupt, as Ctrl-C does.  Only the first of them all: whoever asks again while the work tidies up is not heard.

    last: the process ends with this work, so the signals stay unheard; else they get their handlers back.  Signals that the
    process ignores (nohup) or handles in another way are left alone, as they are outside the main thread.
    """

    def __init__(self, last: bool) -> None:
        self._last = last
        self._listening = self._heard = False
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """From here on KeyboardInterrupt is caught.  Raises it for a signal that came before."""
        self._listening = True
        if self._heard:
            raise KeyboardInterrupt

    def over(self) -> None:
        """From here on everything is said and done."""
        self._heard = True

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                before = signal.getsignal(number)
                if before in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = before
                    signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._last else before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first, self._heard = not self._heard, True
        if first and self._listening:
            raise KeyboardInterrupt


def fill_standard_streams() -> None:
    """Puts something in place of standard streams that are closed: else the next file that is opened gets their number, and
    whatever a library prints goes into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  stays open to the end


def show(text: str) -> None:
    """A line of results.  Raises Error where stdout cannot take it, BrokenPipeError where nobody reads it."""
    _on_stdout(lambda: print(text))


def flush() -> None:
    """Whatever was shown reaches its reader, or raises as `show` does."""
    _on_stdout(lambda: sys.stdout.flush())


def _on_stdout(act: Any) -> None:
    try:
        act()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Error(f"standard output cannot be written: {error.strerror}") from error


def complain(text: str) -> None:
    """A line on stderr, if that can take one."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        give_up(sys.stderr)


def give_up(stream: Any) -> None:
    """What is still to be written to this standard stream goes nowhere, so that the end of Python need not complain of it."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
