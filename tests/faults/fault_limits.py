"""Little memory, few or many file descriptors."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import hypermerge_ext as hm
from ground import AT, JOBS, Found, Ground, Job, fault, fingerprint, finish, one_line, refused_or_done

MIB = 1 << 20

# ---- address space --------------------------------------------------------------------------------------------------

STEP = 16 * MIB
_LEAST: dict[str, int] = {}


def _fits(ground: Ground, command: list[str], size: int, job: Job | None) -> bool:
    with ground.room(job, job is not None and job.in_place) as room:
        done = finish(
            ground.python(room, command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)))
        )
        return done.code == 0


def _least(ground: Ground, job: Job | None) -> int:
    """The smallest RLIMIT_AS, to a few MiB, with which a command works; None: with which Python loads the package."""
    name, command = "import", ["-c", "import hypermerge_ext.cli; hypermerge_ext.cli._parser()"]
    if job is not None:
        name, command = job.name, ["-m", "hypermerge_ext", *ground.arguments(job)]
    if name not in _LEAST:
        low, high = 0, 128  # steps
        while high - low > 1:
            middle = (low + high) // 2
            fits = _fits(ground, command, middle * STEP, job)
            low, high = (low, middle) if fits else (middle, high)
        _LEAST[name] = high * STEP
    return _LEAST[name]


@fault()
def little_address_space(ground: Ground, rng: Random) -> str:
    """RLIMIT_AS between what Python needs to load the package and what the work takes."""
    job, old = ground.draw(rng)
    size = int(rng.uniform(_least(ground, None) + 2 * MIB, 1.05 * _least(ground, job)))
    with ground.room(job, old) as room:
        child = ground.start(
            room, ground.arguments(job), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))
        )
        said = refused_or_done(finish(child), "memory", "address space", *job.targets)
        outcome = ground.judge(room, job, old)
        if (said == "done") != (outcome == "new file whole"):
            raise Found(f"{said}, but {outcome}")
        return f"{said}, {outcome}"


@fault(0.25, inside=True)
def memory_runs_out_in_a_host(ground: Ground, rng: Random) -> str:
    """The same in a process that goes on: MemoryError or success, and afterwards all works again."""
    what = rng.choice(("solve", "save", "merge", "compare"))
    solved = hm.solve(ground.models)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with ground.room() as room:
        target = room / JOBS["solve"].target
        size = _in_use() + int(rng.choice((0, 1, 8, 40, 120, 400)) * rng.uniform(0.5, 1.5) * MIB)
        outcome = "done"
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))
        try:
            _do(ground, solved, what, target)
        except MemoryError:
            outcome = "MemoryError"
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if outcome != "done" and os.listdir(room):
            raise Found(f"stayed behind: {os.listdir(room)}")
        solved.save(target)
        if fingerprint(target) != ground.new["solve"][target.name]:
            raise Found("another file afterwards")
        return f"{what}: {outcome}"


def _in_use() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _do(ground: Ground, solved: hm.HyperModel, what: str, target: Path) -> None:
    if what == "solve":
        hm.solve(ground.models)
    elif what == "save":
        solved.save(target)
    elif what == "merge":
        hm.load(ground.hyper).merge(AT, target)
    else:
        hm.compare(ground.models)


# ---- file descriptors -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _descriptors(count: int) -> Iterator[list[int]]:
    """So many open descriptors."""
    first = os.open(os.devnull, os.O_RDONLY)
    held = [first]
    try:
        for _ in range(count - 1):
            held.append(os.dup(first))
        yield held
    finally:
        for number in held:
            os.close(number)


@contextlib.contextmanager
def _room_for(free: int) -> Iterator[None]:
    """All descriptors but `free` of them are taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(free):
            os.close(held.pop())
        yield
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@fault(0.1, inside=True)
def thousands_of_descriptors_in_use(ground: Ground, rng: Random) -> str:
    """Numbers far beyond 1024 (where select() would write beside its bitmap)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = rng.randint(1100, 6000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted + 100), hard))
    try:
        with ground.room() as room, _descriptors(min(wanted, hard - 100)) as held:
            if max(held) < 1024:
                return f"only {len(held)} can be had"
            hm.solve(ground.models).save(room / JOBS["solve"].target)
            hm.load(ground.hyper).merge(AT, room / JOBS["merge"].target)
            if ground.state(room, JOBS["solve"]) != "new" or ground.state(room, JOBS["merge"]) != "new":
                raise Found("not written")
            hm.compare(ground.models)
            return "new files whole"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@fault(inside=True)
def no_more_descriptors(ground: Ground, rng: Random) -> str:
    """EMFILE at the n-th open: an error that names the file, or success with less."""
    what, free, old = rng.choice(("solve", "save", "merge", "compare")), rng.randint(0, 14), rng.random() < 0.5
    job = JOBS["merge" if what == "merge" else "solve"]
    solved = hm.solve(ground.models) if what == "save" else None
    names = [path.name for path in (*ground.models, ground.hyper)] + job.targets
    with ground.room(job, old) as room:
        outcome = "done"
        with _room_for(free):
            try:
                _do(ground, solved, what, room / job.target)
            except (hm.Error, OSError) as error:
                outcome = "refused"
                if not any(name in str(error) for name in names) or "\n" in str(error):
                    raise Found(f"{what} with {free}: {error}") from None
                if "not written by hyper-merge" in str(error):
                    raise Found(f"{what} with {free} says of our own file: {error}") from None
        state = ground.judge(room, job, old)
        if outcome == "done" and what in ("save", "merge") and state != "new file whole":
            raise Found(f"{what} with {free}: {outcome}, {state}")
        return f"{what}: {outcome}"


@fault(0.25)
def few_descriptors_for_a_command(ground: Ground, rng: Random) -> str:
    job, old = ground.draw(rng)
    count = rng.randint(8, 24)
    with ground.room(job, old) as room:
        child = ground.start(
            room, ground.arguments(job), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
        )
        done = finish(child)
        names = [path.name for path in (*ground.models, ground.hyper)] + job.targets + ["OpenBLAS"]
        said = refused_or_done(done, *names)
        if "not written by hyper-merge" in done.err:
            raise Found(f"with {count} says of our own file: {done.err}")
        return f"{said}, {ground.judge(room, job, old)}"


@fault(0.1)
def no_more_threads(ground: Ground, rng: Random) -> str:
    """Thread stacks that hardly fit: fewer threads, or none at all, do the same work."""
    job, old = ground.draw(rng)
    stack = rng.choice((64, 256, 1024)) * MIB
    limit = _least(ground, job) + rng.randint(0, 3) * stack

    def tighten() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    with ground.room(job, old) as room:
        try:
            child = ground.start(room, ground.arguments(job), preexec_fn=tighten)
        except subprocess.SubprocessError:
            return "the machine has no such stacks"
        done = finish(child)
        if done.code != 0:
            one_line(done, 1, "memory", "address space", *job.targets)
            ground.judge(room, job, old)
            return "refused"
        if ground.judge(room, job, old) != "new file whole":
            raise Found("not written")
        return "new file whole"


