"""Killed, interrupted, asked to end: at moments spread over the whole run, and at those that matter most."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import threading
import time
from pathlib import Path
from random import Random

from ground import JOBS, LIMIT, Done, Found, Ground, Job, Skipped, fault, finish, inode, one_line, temporaries

ANCHORS = ("start", "temporary", "header", "target")
"""From when a moment is counted: the beginning of the process, the first sight of its temporary, of that file's header
(which is written last of all), or of the target in its place."""


class Moment:
    """A moment in the run of a job, drawn by lot."""

    def __init__(self, ground: Ground, job: Job, rng: Random) -> None:
        times = ground.times[job.name]
        writing = times.target - times.temporary
        self.anchor = rng.choices(ANCHORS, (3, 4, 2, 1))[0]
        self.delay = {
            "start": rng.uniform(0, times.end),
            "temporary": rng.choice((rng.uniform(0, writing), writing * rng.uniform(0.8, 1.1))),
            "header": rng.uniform(0, 0.2 * writing),
            "target": rng.uniform(0, times.end - times.target),
        }[self.anchor]

    def wait(self, child: subprocess.Popen[str], room: Path, job: Job) -> None:
        """Returns at the moment, or when the child has ended before."""
        before = inode(room / job.target)
        until = time.monotonic() + LIMIT
        while child.poll() is None and not self._has_come(room, job, before):
            if time.monotonic() > until:
                raise Found(f"nothing happened for {LIMIT} s")
            if self.anchor != "header":
                time.sleep(0.0002)
        until = time.monotonic() + self.delay
        while child.poll() is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.001))

    def _has_come(self, room: Path, job: Job, before: int | None) -> bool:
        if self.anchor == "start":
            return True
        if self.anchor == "target":
            return inode(room / job.target) not in (None, before)
        if self.anchor == "temporary":
            return bool(temporaries(room))
        return any(_has_header(room / name) for name in temporaries(room)) or inode(room / job.target) not in (
            None,
            before,
        )


def _has_header(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8).strip(b"\0") != b""
    except FileNotFoundError:
        return False


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def _kill(ground: Ground, rng: Random, job: Job) -> str:
    old = ground.has_old(job, rng)
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job))
        Moment(ground, job, rng).wait(child, room, job)
        child.kill()
        done = finish(child)
        if done.code not in (0, -signal.SIGKILL):
            raise Found(f"ended with {done} when it was killed")
        left = temporaries(room)
        outcome = ground.judge(room, job, old, leftovers=True)
        if left or rng.random() < 0.1:
            ground.run_again(room, job)
        return outcome + (", temporary removed by the next run" if left else "")


@fault()
def kill_during_solve(ground: Ground, rng: Random) -> str:
    return _kill(ground, rng, JOBS["solve"])


@fault()
def kill_during_merge(ground: Ground, rng: Random) -> str:
    return _kill(ground, rng, JOBS["merge"])


@fault(0.5)
def kill_during_merge_exact(ground: Ground, rng: Random) -> str:
    return _kill(ground, rng, JOBS["exact"])


@fault(0.5)
def kill_during_solve_hash(ground: Ground, rng: Random) -> str:
    return _kill(ground, rng, JOBS["hash"])


@fault()
def kill_during_solve_split(ground: Ground, rng: Random) -> str:
    """Two files that belong together must also stay together.  Once a kill came between them, while the folder was synced
    after the first; now they are put in place in one go, and only some microseconds are left for it."""
    return _kill(ground, rng, JOBS["split"])


@fault(0.5)
def kill_while_a_hyper_model_is_renamed_in_place(ground: Ground, rng: Random) -> str:
    """What it writes takes the place of what it reads."""
    return _kill(ground, rng, JOBS["axes"])


@fault(0.25)
def kill_while_a_lora_is_written(ground: Ground, rng: Random) -> str:
    if JOBS["lora"] not in ground.jobs:
        raise Skipped("no BLAS is installed")
    return _kill(ground, rng, JOBS["lora"])


# ---- signals that can be answered -----------------------------------------------------------------------------------


def _cancelled(ground: Ground, room: Path, job: Job, old: bool, done: Done) -> str:
    """After a signal which asks to end: at once clean, one line, and no untruth in it."""
    outcome = ground.judge(room, job, old)
    if done.code == 0 and done.err == "" and outcome == "new file whole":
        return "done before the signal"
    line = one_line(done, 130, out=True)
    if ("complete" in line) != (outcome == "new file whole"):
        raise Found(f"{outcome}, but it says: {line}")
    return f"cancelled, {outcome}"


def _signal(ground: Ground, rng: Random, which: signal.Signals, times: int = 1) -> str:
    job, old = ground.draw(rng)
    with ground.room(job, old) as room:
        ready, writer = os.pipe()
        with open(ready, "rb"):
            child = ground.python(
                room, ["-c", _READY, str(writer), *ground.arguments(job)], pass_fds=[writer]
            )
            os.close(writer)
            os.read(ready, 1)  # from here on the command has begun
            Moment(ground, job, rng).wait(child, room, job)
            for number in range(times):
                child.send_signal(which)
                if number + 1 < times:
                    time.sleep(rng.uniform(0, 0.02))
            return _cancelled(ground, room, job, old, finish(child))


# Tells when the first line of a command runs: before, Python itself starts, and a signal finds nothing of ours.
_READY = """
import os, sys
ready = int(sys.argv.pop(1))
from hypermerge_ext import __main__, cli
command = cli._COMMANDS[sys.argv[1]]
def begin(run):
    os.write(ready, b"!")
    os.close(ready)
    command(run)
cli._COMMANDS[sys.argv[1]] = begin
sys.exit(__main__.main())
"""


@fault()
def sigint_at_any_moment(ground: Ground, rng: Random) -> str:
    return _signal(ground, rng, signal.SIGINT)


@fault(0.5)
def sigint_several_times_over(ground: Ground, rng: Random) -> str:
    return _signal(ground, rng, signal.SIGINT, rng.randint(2, 5))


@fault()
def sigterm_at_any_moment(ground: Ground, rng: Random) -> str:
    return _signal(ground, rng, signal.SIGTERM)


@fault(0.25)
def sighup_at_any_moment(ground: Ground, rng: Random) -> str:
    return _signal(ground, rng, signal.SIGHUP)


@fault(0.25)
def a_signal_while_it_starts(ground: Ground, rng: Random) -> str:
    """Before our first line runs, Python answers in its own way; nothing may be written or left."""
    job, old = JOBS["merge"], rng.random() < 0.5
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job))
        time.sleep(rng.uniform(0, 0.08))
        child.send_signal(rng.choice((signal.SIGINT, signal.SIGTERM)))
        done = finish(child)
        outcome = ground.judge(room, job, old)
        if done.code == 0 and outcome != "new file whole":
            raise Found(f"says it is done: {done}")
        return outcome


@fault(0.25)
def sigint_while_a_terminal_shows_the_progress(ground: Ground, rng: Random) -> str:
    """The bar is wiped away, and the one line stands alone."""
    job, old = ground.draw(rng)
    with ground.room(job, old) as room:
        master, slave = pty.openpty()
        shown = bytearray()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, master)
            child = ground.start(room, [*ground.arguments(job), "--threads", "1"], stderr=slave)
            os.close(slave)
            reader = threading.Thread(target=_read_terminal, args=(master, shown, child))
            reader.start()
            Moment(ground, job, rng).wait(child, room, job)
            early = not temporaries(room)
            child.send_signal(signal.SIGINT)
            done = finish(child)
            reader.join()
        text = shown.decode(errors="replace").replace("\r\n", "\n")
        outcome = ground.judge(room, job, old)
        if done.code == 0 and outcome == "new file whole":
            return "done before the signal"
        if early and done.code != 130:
            return "before it began"
        line = text.rsplit("\r", 1)[-1]
        if done.code != 130 or line.count("\n") != 1 or "cancelled" not in line or "Traceback" in text:
            raise Found(f"exit status {done.code}, shown: {text[-1000:]!r}")
        return f"cancelled, {outcome}"


def _read_terminal(master: int, shown: bytearray, child: subprocess.Popen[str]) -> None:
    """All that the child shows on its terminal."""
    while True:
        ended = child.poll() is not None
        ready, _, _ = select.select([master], [], [], 0.05)
        if ready:
            try:
                shown += os.read(master, 65536)
            except OSError:  # nobody holds the other end any more
                return
        elif ended:
            return


@fault(0.25)
def stopped_and_continued(ground: Ground, rng: Random) -> str:
    """Ctrl-Z and fg: time passes and nothing else."""
    job, old = ground.draw(rng)
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job))
        Moment(ground, job, rng).wait(child, room, job)
        child.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0, 0.3))
        child.send_signal(signal.SIGCONT)
        done = finish(child)
        outcome = ground.judge(room, job, old)
        if done.code != 0 or done.err or outcome != "new file whole":
            raise Found(f"{outcome} after {done}")
        return outcome
