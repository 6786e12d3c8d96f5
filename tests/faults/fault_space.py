"""No room: full disks, limits on file sizes, outputs that cannot take what is printed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from fault_signals import Moment
from ground import JOBS, Found, Ground, Job, Skipped, fault, finish, one_line, refused_or_done, temporaries

def call(*command: object) -> None:
    """Runs a system tool.  Raises Skipped where it is missing or refuses."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    except FileNotFoundError:
        raise Skipped(f"{command[0]} is missing") from None
    if done.returncode != 0:
        raise Skipped(f"{' '.join(map(str, command[:2]))}: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(ground: Ground, *options: object) -> Iterator[Path]:
    """A folder on which something is mounted: mount(8) with `options`.  Raises Skipped without the right to do so."""
    if os.geteuid() != 0:
        raise Skipped("only root can mount")
    folder = Path(tempfile.mkdtemp(prefix="mount-", dir=ground.folder))
    try:
        call("mount", *options, folder)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def small_disk(ground: Ground, size: int, kind: str) -> Iterator[Path]:
    """A disk of its own with `size` bytes, "tmpfs" or "ext2", whose files cannot have their space reserved."""
    if kind == "tmpfs":
        with mounted(ground, "-t", "tmpfs", "-o", f"size={size // 4096 * 4096 or 4096}", "none") as folder:
            yield folder
        return
    image = Path(tempfile.mkstemp(prefix="disk-", dir=ground.folder)[1])
    try:
        os.truncate(image, max(size, 256 << 10))
        call("mkfs.ext2", "-q", "-F", "-m", "0", image)
        with mounted(ground, "-o", "loop", image) as folder:
            shutil.rmtree(folder / "lost+found")
            yield folder
    finally:
        image.unlink()


def needed(ground: Ground, job: Job, which: str = "reference") -> int:
    """Bytes of what a job writes, or of the "old" version."""
    return sum((ground.folder / which / job.name / name).stat().st_size for name in job.targets)


def _outcome(ground: Ground, folder: Path, job: Job, old: bool, said: str) -> str:
    outcome = ground.judge(folder, job, old)
    if (said == "done") != (outcome == "new file whole"):
        raise Found(f"{said}, but {outcome}")
    return f"{said}, {outcome}"


def _small(ground: Ground, rng: Random, kind: str) -> str:
    """A disk that is too small, or large enough."""
    job, old = ground.draw(rng)
    size = int(needed(ground, job) * rng.uniform(0.02, 1.2)) + (4 << 10)
    if old:
        size += needed(ground, job, "old")
    with small_disk(ground, size, kind) as disk:
        try:
            if old:
                ground.put_old(disk, job)
        except OSError:
            return "not even the old file fits"
        said = refused_or_done(ground.run(disk, job), *job.targets)
        return _outcome(ground, disk, job, old, said)


@fault(0.5)
def a_tmpfs_that_is_too_small(ground: Ground, rng: Random) -> str:
    return _small(ground, rng, "tmpfs")


@fault(0.25)
def an_ext2_disk_that_is_too_small(ground: Ground, rng: Random) -> str:
    return _small(ground, rng, "ext2")


def _fills_up(ground: Ground, rng: Random, kind: str) -> str:
    """There was room when it began; then somebody else takes all of it."""
    job, old = ground.draw(rng)
    size = int(1.5 * needed(ground, job)) + int(1.2 * needed(ground, job, "old")) + (4 << 20)
    with small_disk(ground, size, kind) as disk:
        if old:
            ground.put_old(disk, job)
        child = ground.start(disk, ground.arguments(job))
        Moment(ground, job, rng).wait(child, disk, job)
        hog = disk / "hog"
        with open(hog, "wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\1" * size) == size:
                        pass
        said = refused_or_done(finish(child), *job.targets)
        hog.unlink()
        return _outcome(ground, disk, job, old, said)


@fault(0.25)
def a_tmpfs_that_fills_up_meanwhile(ground: Ground, rng: Random) -> str:
    return _fills_up(ground, rng, "tmpfs")


@fault(0.5)
def an_ext2_disk_that_fills_up_meanwhile(ground: Ground, rng: Random) -> str:
    return _fills_up(ground, rng, "ext2")


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@fault(0.5)
def a_limit_on_file_sizes(ground: Ground, rng: Random) -> str:
    """RLIMIT_FSIZE from the beginning on."""
    job, old = ground.draw(rng)
    size = rng.choice((0, 1, 4096, int(needed(ground, job) * rng.uniform(0, 1.1))))
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job), preexec_fn=lambda: _limit(size))
        said = refused_or_done(finish(child), *job.targets)
        return _outcome(ground, room, job, old, said)


@fault()
def a_limit_on_file_sizes_from_some_moment_on(ground: Ground, rng: Random) -> str:
    """The same, set from outside while it runs: so every stage of the writing meets a write that fails."""
    if not hasattr(resource, "prlimit"):
        raise Skipped("limits of other processes cannot be set here")
    job, old = ground.draw(rng)
    size = rng.choice((0, 4096, int(needed(ground, job) * rng.uniform(0, 1))))
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job))
        Moment(ground, job, rng).wait(child, room, job)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (size, size))
        said = refused_or_done(finish(child), *job.targets)
        return _outcome(ground, room, job, old, said)


# ---- what is printed ------------------------------------------------------------------------------------------------


@fault(0.1)
def nobody_takes_what_is_printed(ground: Ground, rng: Random) -> str:
    """stdout on a full disk, closed, or a pipe that nobody reads.  Files are written all the same."""
    job, old = JOBS["merge"], rng.random() < 0.5
    arguments = rng.choice((ground.arguments(job), ["compare", *map(str, ground.models), "--json"]))
    writes = arguments[0] == "merge"
    way = rng.choice(("full", "closed", "broken"))
    with ground.room(job, old) as room:
        if way == "full":
            with open("/dev/full", "w") as full:
                done = finish(ground.start(room, arguments, stdout=full))
            one_line(done, 1, "standard output", "stdout")
        elif way == "closed":
            done = finish(ground.start(room, arguments, stdout=None, preexec_fn=lambda: os.close(1)))
            if done.code not in (0, 1) or len(done.err.splitlines()) > 1 or "Traceback" in done.err:
                raise Found(f"with stdout closed: {done}")
        else:
            reader, writer = os.pipe()
            os.close(reader)
            done = finish(ground.start(room, arguments, stdout=writer))
            os.close(writer)
            if done.code != 1 or done.err:
                raise Found(f"with a broken pipe: {done}")
        outcome = ground.judge(room, job, old)
        if writes and outcome != "new file whole":
            raise Found(outcome)
        return f"{way}: {'new file whole' if writes else 'ended'}"


@fault(0.1)
def nobody_takes_what_is_said(ground: Ground, rng: Random) -> str:
    """stderr closed or full: the work is done all the same, and no output of ours gets its number."""
    job, old = ground.draw(rng)
    way = rng.choice(("closed", "all closed", "full"))
    with ground.room(job, old) as room:
        if way == "full":
            with open("/dev/full", "w") as full:
                done = finish(ground.start(room, [*ground.arguments(job), "--verbose"], stderr=full))
        else:
            numbers = (0, 1, 2) if way == "all closed" else (2,)
            streams = {"stdout": subprocess.DEVNULL, "stderr": None, "preexec_fn": lambda: [*map(os.close, numbers)]}
            done = finish(ground.start(room, ground.arguments(job), **streams))
        if done.code != 0:
            raise Found(f"stderr {way}: exit status {done.code}")
        if temporaries(room) or ground.judge(room, job, old) != "new file whole":
            raise Found(f"stderr {way}: not written")
        return f"{way}: new file whole"
