"""Stop under a button, in a stand-in for Gradio: it means that button's job, wherever it is in the host's queue."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType

import pytest


@pytest.fixture
def button(webui, monkeypatch):
    """button(function) → (press, stop): what the page calls."""
    gradio = ModuleType("gradio")
    gradio.__version__ = "4.40.0"
    gradio.update = lambda **changes: changes
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.delitem(sys.modules, "hyper_merge_webui.work", raising=False)
    monkeypatch.delitem(sys.modules, "hyper_merge_webui.parts", raising=False)
    work = webui.ext("work")

    class Button:
        def click(self, function, **more):
            return function

    def make(function):
        built = work.Work(Button(), None, None, "tab", "solve", work.Calls())
        return work.connect(built, function, []), built.calls.stop

    return make


def begun(press, number="task(1)"):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(press(number)))
    thread.start()
    return thread, answers


def test_stop_of_a_job_that_waits_leaves_the_running_one_alone(webui, button):
    called = []
    press, stop = button(lambda: called.append(1) or "done")
    state = webui.shared.state
    with webui.call_queue.queue_lock:
        state.begin(job="picture")
        thread, answers = begun(press)
        time.sleep(0.1)
        stop("task(1)")
        assert not state.interrupted
        state.end()
    thread.join(20)
    assert not called and "Stopped" in answers[0][0]
    assert press("task(2)") == ("done",) and called == [1]


def test_stop_of_a_job_that_runs(webui, button):
    started = threading.Event()

    def work():
        moved = webui.host.report("solving")
        started.set()
        for done in range(2000):
            moved(done, 2000)
            time.sleep(0.005)

    press, stop = button(work)
    thread, answers = begun(press)
    assert started.wait(20)
    stop("task(1)")
    thread.join(20)
    assert "Stopped" in answers[0][0]


def test_stop_of_one_page_leaves_the_jobs_of_others_alone(webui, button):
    """The same button in two tabs of the browser: one's job runs, the other's waits."""
    started, go = threading.Event(), threading.Event()

    def work():
        started.set()
        go.wait(20)
        webui.host.report("solving")(1, 2)
        return "done"

    press, stop = button(work)
    first, running = begun(press, "task(1)")
    assert started.wait(20)
    second, waiting = begun(press, "task(2)")
    time.sleep(0.1)
    stop("task(2)")
    go.set()
    for thread in (first, second):
        thread.join(20)
    assert running == [("done",)] and "Stopped" in waiting[0][0]


def test_stop_comes_before_the_call_itself(button):
    """Which may wait in Gradio's own queue, where nobody here knows of it."""
    press, stop = button(lambda: "done")
    stop("task(2)")
    assert press("task(1)") == ("done",)
    assert "Stopped" in press("task(2)")[0]
    assert press("task(2)") == ("done",)


def test_what_it_raises_is_said_and_the_next_call_runs(button):
    answers = iter([ValueError("choose two"), "done"])

    def work():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    press, stop = button(work)
    assert "choose two" in press("task(1)")[0]
    stop("task(1)")
    assert press("task(2)") == ("done",)
