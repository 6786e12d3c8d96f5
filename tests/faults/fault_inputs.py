"""Inputs that are truncated, rewritten or replaced while a pass reads them: noticed, or not felt at all."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from safetensors.numpy import load_file

import hypermerge_ext as hm
from fault_signals import Moment
from ground import AT, JOBS, Found, Ground, Job, fault, fingerprint, finish, one_line, temporaries

HOUR = 3600

# ---- what happens to a file -----------------------------------------------------------------------------------------


def truncated(path: Path, rng: Random) -> None:
    os.truncate(path, rng.choice((0, 7, 100, int(path.stat().st_size * rng.random()))))


def rewritten(path: Path, rng: Random) -> None:
    """In place: some bytes, most likely of the data."""
    with open(path, "r+b", buffering=0) as file:
        at = int(path.stat().st_size * rng.random())
        file.seek(at)
        file.write(rng.randbytes(rng.choice((1, 64, 100_000))))


def refilled(path: Path, rng: Random) -> None:
    """As `cp` does it: emptied, and filled with another model from its beginning on."""
    other = (path.parent / "other").read_bytes()
    with open(path, "wb", buffering=0) as file:
        for at in range(0, len(other), 1 << 20):
            file.write(other[at : at + (1 << 20)])


def grown(path: Path, rng: Random) -> None:
    with open(path, "ab") as file:
        file.write(rng.randbytes(rng.choice((1, 5000))))


def replaced(path: Path, rng: Random) -> None:
    """As a careful program does it: another file gets the name."""
    beside = path.with_name("beside")
    shutil.copyfile(path.parent / "other", beside)
    os.replace(beside, path)


def removed(path: Path, rng: Random) -> None:
    path.unlink()


CHANGES = (truncated, rewritten, refilled, grown, replaced, removed)

# ---- what reads it --------------------------------------------------------------------------------------------------


class Work:
    """The passes, each as a function of the folder with the inputs: returns whatever can be compared."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.names = [path.name for path in ground.models]

    def models(self, folder: Path) -> list[Path]:
        return [folder / name for name in self.names]

    def solve(self, folder: Path) -> Any:
        return hm.solve(self.models(folder)).gram

    def hash(self, folder: Path) -> Any:
        return [member["sha256"] for member in hm.solve(self.models(folder), hash=True).document["members"]]

    def compare(self, folder: Path) -> Any:
        return hm.compare(self.models(folder))["gram"]

    def project(self, folder: Path) -> Any:
        return hm.load(folder / self.ground.hyper.name).project(folder / "newcomer.safetensors")

    def recover(self, folder: Path) -> Any:
        return hm.recover(folder / "newcomer.safetensors", self.models(folder))["weights"]

    def save(self, folder: Path, solved: hm.HyperModel | None = None) -> Any:
        target = folder / "out" / JOBS["solve"].target
        (solved or hm.solve(self.models(folder))).save(target)
        return fingerprint(target)

    def merge(self, folder: Path) -> Any:
        target = folder / "out" / JOBS["merge"].target
        hm.load(folder / self.ground.hyper.name).merge(AT, target)
        return fingerprint(target)

    def exact(self, folder: Path) -> Any:
        target = folder / "out" / JOBS["exact"].target
        hm.load(folder / self.ground.hyper.name).merge(AT, target, exact=self.models(folder))
        return fingerprint(target)

    def live(self, folder: Path) -> Any:
        """In file mode: everything is read at every call."""
        hyper = hm.load(folder / self.ground.hyper.name)
        state = {name: array.copy() for name, array in self.base().items()}
        live = hyper.bind(state)
        for at in (AT, (-1, 1), AT):
            live.set(*at)
        moved = {name: array.copy() for name, array in state.items()}
        live.restore()
        for name, array in self.base().items():
            if not (state[name] == array).all():
                raise Found(f"restore brought something else back into {name}")
        return {name: array.tobytes() for name, array in moved.items()}

    def base(self) -> dict[str, np.ndarray]:
        whole = load_file(self.ground.hyper)
        return {name: array for name, array in whole.items() if not name.startswith("hypermerge.")}


PASSES = ("solve", "hash", "compare", "project", "recover", "save", "merge", "exact", "live")
READS_HYPER = {"project": 0.5, "merge": 1.0, "exact": 0.2, "live": 1.0}
"""How often the hyper-model is the file that changes."""


def _lay_out(ground: Ground, folder: Path) -> None:
    """Copies of all inputs, an hour old: a clock that ticks every few milliseconds must not hide a change."""
    for path in (*ground.models, ground.newcomer, ground.hyper):
        shutil.copyfile(path, folder / path.name)
        os.utime(folder / path.name, (time.time() - HOUR,) * 2)
    (folder / "out").mkdir()


def _victim(folder: Path, ground: Ground, rng: Random, what: str) -> Path:
    if rng.random() < READS_HYPER.get(what, 0):
        return folder / ground.hyper.name
    if what in ("project", "recover") and rng.random() < 0.5 or what == "project":
        return folder / "newcomer.safetensors"
    return folder / rng.choice(ground.models).name


def _put_other(ground: Ground, victim: Path) -> None:
    """What the victim is replaced with: a good file with other numbers."""
    if victim.name == ground.hyper.name:
        shutil.copyfile(ground.folder / "old/solve" / victim.name, victim.parent / "other")
    else:
        source = ground.newcomer if victim.name != ground.newcomer.name else ground.models[0]
        shutil.copyfile(source, victim.parent / "other")
    os.utime(victim.parent / "other", (time.time() - 2 * HOUR,) * 2)


def _attempt(work: Callable[[Path], Any], folder: Path) -> tuple[Any, BaseException | None]:
    try:
        return work(folder), None
    except hm.Error as error:
        return None, error


_KNOWN: dict[str, Any] = {}
_SECONDS: dict[str, float] = {}


@fault(2.0, inside=True)
def an_input_changes_while_it_is_read(ground: Ground, rng: Random) -> str:
    work, what, change = Work(ground), rng.choice(PASSES), rng.choice(CHANGES)
    with ground.room() as folder:
        _lay_out(ground, folder)
        victim = _victim(folder, ground, rng, what)
        _put_other(ground, victim)
        if what not in _KNOWN:
            began = time.monotonic()
            _KNOWN[what] = getattr(work, what)(folder)
            _SECONDS[what] = time.monotonic() - began
            _empty(folder / "out")
        pause, seed = rng.uniform(0, _SECONDS[what]), rng.random()
        actor = threading.Thread(target=lambda: (time.sleep(pause), change(victim, random.Random(seed))))
        actor.start()
        try:
            result, error = _attempt(getattr(work, what), folder)
        finally:
            actor.join()
        if temporaries(folder / "out"):
            raise Found(f"{what}, {change.__name__}: a temporary stayed")
        if error is None:
            if result == _KNOWN[what]:
                return f"{change.__name__}: not felt, right"
            _empty(folder / "out")
            if _attempt(getattr(work, what), folder) != (result, None):  # else it came before the file was opened
                raise Found(f"{what}, {change.__name__} {victim.name}: a result of neither file, and nothing said")
            return f"{change.__name__}: came before, right"
        _check_refusal(error, what, change, victim)
        written = list((folder / "out").iterdir())
        if what == "save" and written:  # the file was complete; only opening it again, or the rest, failed
            raise Found(f"{what}, {change.__name__}: refused, and yet written")
        return f"{change.__name__}: refused"


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _check_refusal(error: BaseException, what: str, change: Any, victim: Path) -> None:
    text = str(error)
    if "\n" in text or victim.name not in text:
        raise Found(f"{what}, {change.__name__} {victim.name}: {text}")
    if change in (replaced, removed) and "changed" in text:
        raise Found(f"{what}, {change.__name__} {victim.name}: a file that is read as it was: {text}")


@fault(0.5, inside=True)
def an_input_changes_between_two_passes(ground: Ground, rng: Random) -> str:
    """Solve has read it and save has not; or bind has, and set has not."""
    work, change = Work(ground), rng.choice(CHANGES)
    what = rng.choice(("save", "live"))
    with ground.room() as folder:
        _lay_out(ground, folder)
        victim = folder / (ground.hyper.name if what == "live" else rng.choice(ground.models).name)
        _put_other(ground, victim)
        error, right = None, True
        try:
            if what == "save":
                solved = hm.solve(work.models(folder))
                change(victim, rng)
                right = work.save(folder, solved) == ground.new["solve"][JOBS["solve"].target]
            else:
                state = {name: array.copy() for name, array in work.base().items()}
                live = hm.load(victim).bind(state)
                change(victim, rng)
                live.set(*AT)
                live.restore()
                right = all((state[name] == array).all() for name, array in work.base().items())
        except hm.Error as caught:
            error = caught
        if (error is None) != (change in (replaced, removed)):
            raise Found(f"{what}, {change.__name__}: {error}")
        if not right:
            raise Found(f"{what}, {change.__name__}: another result, and nothing said")
        if error is not None:
            _check_refusal(error, what, change, victim)
            if what == "live":
                _check_unharmed(state, work)
        if os.listdir(folder / "out") and error is not None:
            raise Found(f"stayed behind: {os.listdir(folder / 'out')}")
        return f"{change.__name__}: {'refused' if error is not None else 'not felt, right'}"


def _check_unharmed(state: dict[str, np.ndarray], work: Work) -> None:
    """A file that had changed before the call was refused before anything was written into the host's tensors."""
    for name, array in work.base().items():
        if not (state[name] == array).all():
            raise Found(f"live.set wrote into {name} before it refused")


@fault(0.5)
def an_input_of_a_command_changes(ground: Ground, rng: Random) -> str:
    """The same from outside, at any moment of a whole command."""
    job, old = ground.draw(rng)
    while job.in_place:  # its input is what others change in fault_targets.py
        job, old = ground.draw(rng)
    change = rng.choice(CHANGES)
    with ground.room() as inputs, ground.room(job, old) as room:
        _lay_out(ground, inputs)
        victim = inputs / (ground.hyper.name if job.name in ("merge", "lora") else rng.choice(ground.models).name)
        _put_other(ground, victim)
        arguments = ground.arguments(job, [inputs / path.name for path in ground.models], inputs / ground.hyper.name)
        child = ground.start(room, arguments)
        Moment(ground, job, rng).wait(child, room, job)
        change(victim, rng)
        done = finish(child)
        if done.code == 0 and not done.err:
            return f"{change.__name__}: {_whole(ground, room, job, inputs)}"
        one_line(done, 1, victim.name)
        return f"{change.__name__}: refused, {ground.judge(room, job, old)}"


def _whole(ground: Ground, room: Path, job: Job, inputs: Path) -> str:
    """Done all the same: then all of it is made of the inputs as they were, or all of it as they are now."""
    found = {name: fingerprint(room / name) for name in job.targets}
    if found == ground.new[job.name]:
        return "not felt, right"
    with ground.room() as again:
        arguments = ground.arguments(job, [inputs / path.name for path in ground.models], inputs / ground.hyper.name)
        done = finish(ground.start(again, arguments))
        if done.code != 0 or {name: fingerprint(again / name) for name in job.targets} != found:
            raise Found(f"{job.name}: a result of neither file, and nothing said")
    return "came before, right"
