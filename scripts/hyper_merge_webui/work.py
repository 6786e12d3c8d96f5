"""Long jobs behind a button: the host's queue and bar, Stop in the button's place while one runs, a line after it."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from . import host, parts
from .pack import hypermerge

_MOST_STOPPED = 64  # of calls that have not come yet


class Work(NamedTuple):
    """Components of one job."""

    button: Any
    number: Any
    """Receives the job's number in the host's queue."""
    status: Any
    place: str
    name: str
    calls: Calls


class Calls:
    """The calls of one button, by their numbers.

    Stop means its own page's call, wherever that is: running, in the host's queue, or still in Gradio's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: str | None = None
        self._stopped: deque[str] = deque(maxlen=_MOST_STOPPED)

    @contextlib.contextmanager
    def running(self, number: str) -> Iterator[None]:
        """The queue has let it in.  Raises host.Stopped when it was stopped before."""
        with self._lock:
            if number in self._stopped:
                self._stopped.remove(number)
                raise host.Stopped("stopped")
            self._running = number
        try:
            yield
        finally:
            with self._lock:
                self._running = None

    def stop(self, number: str) -> None:
        with self._lock:
            if self._running == number:
                host.interrupt()
            elif number:
                self._stopped.append(number)


def build(place: str, name: str, label: str, variant: str = "secondary") -> Work:
    """The button `label`, its Stop, the place of the bar, and the line below, within the context that is open."""
    with gr.Column(elem_classes="hyper-merge-job", min_width=120):
        with gr.Row():
            button = gr.Button(
                label, variant=variant, elem_id=parts.elem_id(place, name), elem_classes="hyper-merge-go"
            )
            stop = gr.Button(
                "Stop", variant="stop", elem_id=parts.elem_id(place, f"{name}_stop"), elem_classes="hyper-merge-stop"
            )
        gr.HTML("", elem_id=parts.elem_id(place, f"{name}_progress"), elem_classes=parts.FLAT)
        status = gr.HTML("", elem_id=parts.elem_id(place, f"{name}_status"), elem_classes=parts.FLAT)
        number = gr.Textbox("", visible=False)
    parts.transient(number)
    calls = Calls()
    stop.click(calls.stop, [number], [], **parts.QUICK, **parts.running(place, name))
    return Work(button, number, status, place, name, calls)


def connect(work: Work, function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any] = ()) -> Any:
    """Lets the button call function(*values) → HTML, or with `outputs` a tuple of their values and the HTML.

    What it raises becomes the line below the button; the other outputs then stay as they are.
    """

    def guarded(number: str, *values: Any) -> tuple[Any, ...]:
        try:
            with work.calls.running(number):
                found = function(*values)
        except host.Stopped:
            found = (*(gr.update() for _ in outputs), parts.note("Stopped; nothing was written."))
        except Exception as reason:  # shown where the button is
            if not isinstance(reason, (ValueError, OSError, hypermerge().Error)):
                host.log.exception("hyper-merge: unexpected")
            found = (*(gr.update() for _ in outputs), parts.bad(reason))
        return found if isinstance(found, tuple) else (found,)

    return work.button.click(
        host.gpu_call(guarded),
        inputs=[work.number, *inputs],
        outputs=[*outputs, work.status],
        show_progress=False,
        **parts.task(work.place, work.name),
    )
