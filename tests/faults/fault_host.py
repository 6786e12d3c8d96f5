"""Inside somebody's process: cancelled, left at the end, forked, loaded twice, collected, rained on by signals."""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import hypermerge_ext as hm
from ground import AT, JOBS, LIMIT, Found, Ground, Skipped, fault, fingerprint, finish, temporaries


class Stop(Exception):
    """Raised by progress functions here."""


def _arrays(ground: Ground) -> dict[str, np.ndarray]:
    """The base of the reference, as a host holds it."""
    return {name: array for name, array in load_file(ground.hyper).items() if not name.startswith("hypermerge.")}


Call = Callable[..., Any]


def _calls(ground: Ground, target: Path) -> dict[str, Call]:
    """Every long call, as a function of progress."""
    solved, loaded = hm.solve(ground.models), hm.load(ground.hyper)
    state = _arrays(ground)
    live = loaded.bind(state)
    few = {"threads": 1, "memory_budget": 16 << 20}
    return {
        "solve": lambda progress: hm.solve(ground.models, progress=progress, **few),
        "hash": lambda progress: hm.solve(ground.models, hash=True, progress=progress, **few),
        "save": lambda progress: solved.save(target, progress=progress, **few),
        "save hash": lambda progress: solved.save(target, hash=True, progress=progress, **few),
        "merge": lambda progress: loaded.merge(AT, target, progress=progress, **few),
        "exact": lambda progress: loaded.merge(AT, target, exact=ground.models, progress=progress, **few),
        "compare": lambda progress: hm.compare(ground.models, progress=progress, **few),
        "recover": lambda progress: hm.recover(ground.newcomer, ground.models, progress=progress, **few),
        "project": lambda progress: loaded.project(ground.newcomer, progress=progress, **few),
        "live.set": lambda progress: live.set(*AT, progress=progress, threads=1),
        "live.restore": lambda progress: live.restore(progress=progress, threads=1),
        "bind": lambda progress: loaded.bind(_arrays(ground), progress=progress, threads=1),
    }


# ---- progress -------------------------------------------------------------------------------------------------------


@fault(inside=True)
def an_exception_in_progress(ground: Ground, rng: Random) -> str:
    """Of any kind, at any call: it arrives as it is, nothing is written, and the same work can be done again."""
    old = rng.random() < 0.5
    job = JOBS["solve"]
    with ground.room(job, old) as room:
        what, call = rng.choice(list(_calls(ground, room / job.target).items()))
        kind = rng.choice((Stop, KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit, hm.Cancelled))
        reason, left = kind("stop"), [rng.choice((1, 1, 2, 3, 5))]

        def progress(done: int, total: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Found("called again after it raised")
            if left[0] == 0:
                raise reason

        try:
            call(progress)
        except BaseException as caught:
            if caught is not reason:
                raise
            outcome = f"{kind.__name__} arrived"
            if ground.judge(room, job, old) == "new file whole":
                raise Found(f"{what}: cancelled, and yet written") from None
        else:
            outcome = "done before"
        call(None)
        return outcome


@fault(0.5, inside=True)
def cancelled_from_another_thread(ground: Ground, rng: Random) -> str:
    """A button: progress raises once a flag is set, at any moment."""
    old, flag = rng.random() < 0.5, threading.Event()
    job = JOBS["solve"]
    with ground.room(job, old) as room:
        what, call = rng.choice(list(_calls(ground, room / job.target).items()))
        began = time.monotonic()
        call(None)
        pause = rng.uniform(0, time.monotonic() - began)
        for name in os.listdir(room):
            (room / name).unlink()
        if old:
            ground.put_old(room, job)

        def progress(done: int, total: int) -> None:
            if flag.is_set():
                raise Stop

        button = threading.Timer(pause, flag.set)
        button.start()
        try:
            call(progress)
            outcome = "done before"
        except Stop:
            outcome = "cancelled"
        finally:
            button.cancel()
            button.join()
        state = "absent" if not old and not os.listdir(room) else _loose_state(ground, room, job, what)
        if outcome == "cancelled" and state == "new":
            raise Found(f"{what}: cancelled, and yet written")
        return outcome


def _loose_state(ground: Ground, room: Path, job: Any, what: str) -> str:
    """Calls other than save write other things under the same name; then only whole files count."""
    if set(os.listdir(room)) != {job.target}:
        raise Found(f"stayed behind: {os.listdir(room)}")
    if (room / job.target).read_bytes() == (ground.folder / "old" / job.name / job.target).read_bytes():
        return "old"
    if not load_file(room / job.target):
        raise Found(f"{what} wrote no tensors")
    return "new"


@fault(0.5, inside=True)
def a_rain_of_signals(ground: Ground, rng: Random) -> str:
    """A profiler's timer interrupts every system call over and over again."""
    drops = 0

    def drop(*_: object) -> None:
        nonlocal drops
        drops += 1

    before = signal.signal(signal.SIGALRM, drop)
    signal.siginterrupt(signal.SIGALRM, True)
    pause = rng.choice((0.0003, 0.001, 0.004))
    signal.setitimer(signal.ITIMER_REAL, pause, pause)
    try:
        with ground.room() as room:
            hm.solve(ground.models).save(room / JOBS["solve"].target)
            hm.load(ground.hyper).merge(AT, room / JOBS["merge"].target)
            if ground.state(room, JOBS["solve"]) != "new" or ground.state(room, JOBS["merge"]) != "new":
                raise Found("not written")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if drops == 0:
        raise Found("no signal came")
    return "new files whole"


# ---- the end of the interpreter -------------------------------------------------------------------------------------

_ENDING = """
import json, os, sys, threading, time
import hypermerge_ext as hm
folder, way, pause, depth, models = json.loads(sys.argv[1])
if way == "no patience":
    hm.sources._PATIENCE = 0
begun = threading.Event()
def ticking(done, total):
    begun.set()
def work():
    while True:
        solved = hm.solve(models * 8, progress=ticking if way != "no progress" else None)
        begun.set()
        solved.save(folder + "/x.hyper.safetensors", progress=ticking if way != "no progress" else None)
        if way == "not daemon":
            return
def deep(levels):
    return max([0], key=lambda _: deep(levels - 1)) if levels else work()
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.3)  # as the end of a large host does
slow = Slow()
threading.stack_size(16 << 20)
threading.Thread(target=deep, args=(depth,), daemon=way != "not daemon").start()
begun.wait(20)
time.sleep(pause)
if way == "exception":
    raise RuntimeError("the host fails")
if way == "exec":
    os.execv(sys.executable, [sys.executable, "-c", "pass"])
if way == "_exit":
    os._exit(0)
if way == "second end":
    import atexit
    atexit.register(lambda: hm.compare(models))
"""


WAYS = ("daemon", "daemon", "no progress", "no patience", "not daemon", "exception", "_exit", "exec", "second end")


@fault()
def the_interpreter_ends_while_a_thread_works(ground: Ground, rng: Random) -> str:
    """As hosts do when they are closed: their working threads are daemons."""
    way = rng.choice(WAYS)
    job, old = JOBS["solve"], rng.random() < 0.5
    with ground.room(job, old) as room:
        task = json.dumps(
            [str(room), way, rng.uniform(0, 0.5), rng.choice((0, 60)), [str(path) for path in ground.models]]
        )
        done = finish(ground.python(room, ["-c", _ENDING, task]))
        if done.code != (1 if way == "exception" else 0):
            raise Found(f"{way}: {done}")
        names = set(os.listdir(room))
        left = temporaries(room)
        if names - set(left) - {job.target}:
            raise Found(f"stayed behind: {names}")
        if left and way not in ("_exit", "exec", "no patience"):
            raise Found(f"{way}: a temporary stayed")
        if old and job.target not in names:
            raise Found("the old file is gone")
        if job.target in names:
            load_file(room / job.target)
        if left:
            ground.run_again(room, job)
        return f"{way}: ended"


# ---- fork -----------------------------------------------------------------------------------------------------------


def _in_child(work: Callable[[], None], limit: float = LIMIT) -> None:
    """Runs `work` in a forked child.  Raises Found when it fails, dies or hangs."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, about threads
        child = os.fork()
    if child == 0:
        text = ""
        try:
            signal.alarm(int(limit))
            work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, text.encode()[:60000])
            os._exit(1 if text else 0)
    os.close(writer)
    with open(reader, "rb") as said:
        text = said.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        which = signal.Signals(os.WTERMSIG(status)).name
        raise Found("the child hung" if which == "SIGALRM" else f"the child died by {which}")
    if status != 0:
        raise Found(f"in the child: {text}")


@contextlib.contextmanager
def _busy(work: Callable[[], None], count: int = 1) -> Iterator[None]:
    """Threads that do `work` over and over again."""
    stop, failures = threading.Event(), []

    def loop() -> None:
        while not stop.is_set():
            try:
                work()
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=loop) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise Found(f"in a thread: {failures[0]!r}")


@fault(0.5, inside=True)
def fork_while_a_thread_works(ground: Ground, rng: Random) -> str:
    """A child that then uses the module, also the very objects that are at work in the parent."""
    hyper, state = hm.load(ground.hyper), _arrays(ground)
    live = hyper.bind(state)
    solved = hm.solve(ground.models)
    gram = solved.gram
    with ground.room() as room:
        target = room / JOBS["solve"].target

        def child() -> None:
            if hm.solve(ground.models).gram != gram:
                raise Found("another result")
            if use == "save":
                hm.solve(ground.models).save(room / "child.hyper.safetensors", force=True)
            elif use == "live":
                live.set(*AT)
            elif use == "same":
                try:
                    solved.save(room / "child.hyper.safetensors", force=True)
                except hm.Error as error:  # the parent's thread was saving it, which never ends in the child
                    if "saved" not in str(error):
                        raise

        use, busy = rng.choice(("solve", "save", "live", "same")), rng.choice(("solve", "save", "live"))
        work = {
            "solve": lambda: hm.solve(ground.models),
            "save": lambda: solved.save(target, force=True),
            "live": lambda: live.set(rng.random(), 0),
        }[busy]
        with _busy(work):
            time.sleep(rng.uniform(0, 0.1))
            _in_child(child, 20)
        if temporaries(room):
            raise Found(f"stayed behind: {temporaries(room)}")
        return f"{use} in the child"


@fault(0.1, inside=True)
def a_child_that_ends_in_the_ordinary_way(ground: Ground, rng: Random) -> str:
    """sys.exit in a forked child runs what is to be done at the end: it must not wait for the parent's threads."""
    with _busy(lambda: hm.compare(ground.models)):
        time.sleep(rng.uniform(0, 0.05))
        began = time.monotonic()
        script = textwrap.dedent(
            """
            import os, sys, threading, time
            import hypermerge_ext as hm
            models = sys.argv[1:]
            threading.Thread(target=lambda: [hm.compare(models) for _ in range(20)], daemon=True).start()
            time.sleep(0.05)
            child = os.fork()
            if child == 0:
                sys.exit(0)
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status))
            """
        )
        with ground.room() as room:
            done = finish(ground.python(room, ["-W", "ignore", "-c", script, *map(str, ground.models)]))
    if done.code != 0 or time.monotonic() - began > 4:
        raise Found(f"after {time.monotonic() - began:.1f} s: {done}")
    return "ended at once"


# ---- loaded twice ---------------------------------------------------------------------------------------------------


def _load_as(name: str) -> ModuleType:
    """The package once more, under another name, as hosts do that name modules by their paths."""
    place = Path(hm.__file__)
    spec = importlib.util.spec_from_file_location(name, place, submodule_search_locations=[str(place.parent)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@fault(0.25, inside=True)
def loaded_under_two_names(ground: Ground, rng: Random) -> str:
    """Both work, also at once and into one file; what belongs to the one is refused by the other in plain words."""
    name = f"/home/somebody/custom_nodes/hyper-merge_{rng.randint(0, 10**9)}"
    other = _load_as(name)
    try:
        if other.Error is hm.Error or other._core is hm._core:
            raise Found("the second one is the first one")
        try:
            other.solve([hm.source(ground.models[0]), hm.source(ground.models[1])])
        except TypeError as error:
            if "Source" not in str(error):
                raise Found(f"unclear: {error}") from None
        else:
            raise Found("a Source of the other was taken for an own one")
        try:
            other.source(ground.folder / "nothing.safetensors")
        except other.Error as error:
            if isinstance(error, hm.Error):
                raise Found("they share their exceptions") from None
        with ground.room() as room, _busy(lambda: hm.compare(ground.models)):
            target = room / JOBS["solve"].target
            other.solve(ground.models).save(target)
            if fingerprint(target) != ground.new["solve"][target.name]:
                raise Found("another file")
            other.load(target).bind(_arrays(ground)).set(*AT)
        return "both work"
    finally:
        for key in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
            del sys.modules[key]
        del other
        gc.collect()


@fault(0.1, inside=True)
def loaded_and_thrown_away(ground: Ground, rng: Random) -> str:
    """The module object goes while objects of it live on."""
    name = f"_faults_thrown_{rng.randint(0, 10**9)}"
    other = _load_as(name)
    source, hyper = other.source(ground.models[0]), other.load(ground.hyper)
    for key in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
        del sys.modules[key]
    del other
    gc.collect()
    if not source.path or hyper.directions < 1 or not json.loads(source.describe()):
        raise Found("objects died with their module")
    del source, hyper
    gc.collect()
    return "objects live on"


@fault(0.1, inside=True)
def another_interpreter_in_the_process(ground: Ground, rng: Random) -> str:
    """It works there, or is refused in plain words."""
    interpreters = _interpreters()
    code = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {[str(Path(hm.__file__).parent.parent)]!r}
        try:
            import hypermerge_ext as hm
        except ImportError as error:
            if "interpreter" not in str(error):
                raise
        else:
            assert len(hm.compare({[str(path) for path in ground.models]!r})["gram"]) == {len(ground.models)}
        """
    )
    made = interpreters.create()
    try:
        with _busy(lambda: hm.compare(ground.models)):
            failed = interpreters.run_string(made, code)
        if failed is not None:
            raise Found(f"in the other interpreter: {failed}")
    finally:
        interpreters.destroy(made)
    hm.compare(ground.models)
    return "works or is refused"


def _interpreters() -> Any:
    for name in ("_interpreters", "_xxsubinterpreters"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise Skipped("this Python has no interpreters module")


# ---- memory that belongs to Python ----------------------------------------------------------------------------------


@fault(0.5, inside=True)
def the_collector_runs_during_a_live_blend(ground: Ground, rng: Random) -> str:
    """Cycles through sources, hyper-models and live blends are collected by another thread at any moment."""
    state = _arrays(ground)
    live = hm.load(ground.hyper).bind(state, in_memory=rng.random() < 0.5)

    def litter() -> None:
        class Cycle:
            pass

        knot = Cycle()
        arrays = {f"t{i}": np.zeros(1000, np.float32) for i in range(4)}
        knot.source = hm.source(arrays)  # type: ignore[attr-defined]
        knot.hyper = hm.load(ground.hyper)  # type: ignore[attr-defined]
        knot.live = knot.hyper.bind(_arrays(ground))  # type: ignore[attr-defined]
        knot.self = knot  # type: ignore[attr-defined]
        del knot
        gc.collect()

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with _busy(litter):
            for _ in range(10):
                live.set(rng.uniform(-1, 1), rng.uniform(-1, 1), progress=lambda *_: gc.collect() and None)
            live.set(*AT)
    finally:
        gc.set_threshold(*before)
    blend = load_file(ground.folder / "reference/merge" / JOBS["merge"].target)
    for name, array in state.items():
        if array.tobytes() != blend[name].tobytes():
            raise Found(f"{name} holds something else")
    del live
    gc.collect()
    return "right"
