"""What happens to the place that is written to: folders that go away, files that appear, other writers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from fault_signals import Moment
from fault_space import call, mounted
from ground import (
    JOBS, Done, Found, Ground, Job, fault, fingerprint, finish, one_line, refused_or_done, temporaries,
)  # fmt: skip

TARGETS = {job.target for job in JOBS.values()}

# ---- the folder -----------------------------------------------------------------------------------------------------


@fault(0.5)
def its_folder_is_removed_meanwhile(ground: Ground, rng: Random) -> str:
    job, old = ground.draw(rng)
    with ground.room() as room:
        folder = room / "out"
        folder.mkdir()
        if old:
            ground.put_old(folder, job)
        child = ground.start(folder, _into(folder, ground.arguments(job)))
        Moment(ground, job, rng).wait(child, folder, job)
        shutil.rmtree(folder, ignore_errors=True)
        if again := rng.random() < 0.5:
            folder.mkdir(exist_ok=True)
        said = refused_or_done(finish(child), *job.targets, out=True)  # all was well until its size was to be shown
        left = sorted(path.name for path in room.rglob("*") if path.is_file())
        if said == "refused" and left or temporaries(room):
            raise Found(f"{said}, but there is {left}")
        return f"{said}, {'made again' if again else 'gone'}"


@fault(0.5)
def its_folder_is_renamed_meanwhile(ground: Ground, rng: Random) -> str:
    """And perhaps another one gets the name.  Nothing may be left in either, or whole files."""
    job, old = ground.draw(rng)
    with ground.room() as room:
        folder, moved = room / "out", room / "moved"
        folder.mkdir()
        if old:
            ground.put_old(folder, job)
        child = ground.start(folder, _into(folder, ground.arguments(job)))
        Moment(ground, job, rng).wait(child, folder, job)
        os.rename(folder, moved)
        if rng.random() < 0.5:
            folder.mkdir()
        done = finish(child)
        outcomes = [ground.judge(moved, job, old)]
        if folder.exists():
            outcomes.append(ground.judge(folder, job, False))
        # Once the new file is in place, only its size cannot be shown any more.
        said = refused_or_done(done, *job.targets, out=outcomes[0] == "new file whole")
        if outcomes.count("new file whole") > 1 or (said == "done") > ("new file whole" in outcomes):
            raise Found(f"{said}, but {outcomes}")
        return f"{said}, {' and '.join(outcomes)}"


def _into(folder: Path, arguments: list[str]) -> list[str]:
    """The same with the output by its full path."""
    return [str(folder / item) if item in TARGETS else item for item in arguments]


@fault(0.1)
def a_folder_that_is_read_only(ground: Ground, rng: Random) -> str:
    """A read-only mount: it stops root too."""
    job, old = ground.draw(rng)
    with ground.room(job, old) as room, mounted(ground, "--bind", room) as folder:
        call("mount", "-o", "remount,bind,ro", folder)
        said = refused_or_done(ground.run(folder, job), *job.targets)
        outcome = ground.judge(folder, job, old)
        if said == "done" or outcome == "new file whole":
            raise Found(f"{said}, {outcome} on a read-only file system")
        return f"{said}, {outcome}"


@contextlib.contextmanager
def _immutable(path: Path) -> Iterator[None]:
    """Nothing in this folder (or of this file) can be changed, by root either."""
    call("chattr", "+i", path)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


@fault(0.5)
def a_folder_that_freezes_meanwhile(ground: Ground, rng: Random) -> str:
    """From some moment on no name in it can be made, renamed or removed: the temporary must stay, till the next run."""
    job, old = ground.draw(rng)
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job))
        try:
            Moment(ground, job, rng).wait(child, room, job)
            with _immutable(room):
                done = finish(child)
        finally:
            child.kill()
        said = refused_or_done(done, *job.targets)
        outcome = ground.judge(room, job, old, leftovers=said == "refused")
        if (said == "done") != (outcome == "new file whole"):
            raise Found(f"{said}, but {outcome}")
        ground.run_again(room, job)
        return f"{said}, {outcome}"


@fault(0.1)
def an_old_file_that_cannot_be_replaced(ground: Ground, rng: Random) -> str:
    job = JOBS[rng.choice(("solve", "merge", "exact"))]
    with ground.room(job, True) as room, _immutable(room / job.target):
        one_line(ground.run(room, job), 1, job.target)
        outcome = ground.judge(room, job, True)
        if outcome != "old file whole":
            raise Found(outcome)
        return f"refused, {outcome}"


@fault(0.1)
def a_link_to_another_file_system(ground: Ground, rng: Random) -> str:
    """The temporary lies beside the file itself, not beside the link."""
    job, old = ground.draw(rng, 1)
    with ground.room() as room, mounted(ground, "-t", "tmpfs", "-o", "size=1g", "none") as other:
        if old:
            ground.put_old(other, job)
        os.symlink(other / job.target, room / job.target)
        child = ground.start(room, ground.arguments(job))
        if kill := rng.random() < 0.5:
            Moment(ground, job, rng).wait(child, other, job)
            child.kill()
        done = finish(child)
        if os.listdir(room) != [job.target] or not (room / job.target).is_symlink():
            raise Found(f"beside the link: {os.listdir(room)}")
        outcome = ground.judge(other, job, old, leftovers=kill)
        if not kill and (done.code, outcome) != (0, "new file whole"):
            raise Found(f"{outcome}: {done}")
        ground.run_again(other, job)
        return outcome


# ---- the file -------------------------------------------------------------------------------------------------------


@fault(0.2)
def a_target_that_is_an_input(ground: Ground, rng: Random) -> str:
    """By its name, a hard link, a symlink, another folder, a detour; also with --force."""
    job = JOBS[rng.choice(("solve", "merge", "exact"))]
    with ground.room() as room:
        (room / "models").mkdir()
        for path in (*ground.models, ground.hyper):
            shutil.copyfile(path, room / "models" / path.name)
        models = [room / "models" / path.name for path in ground.models]
        hyper = room / "models" / ground.hyper.name
        victim = hyper if job.name == "merge" or job.name == "exact" and rng.random() < 0.3 else rng.choice(models)
        before = {path.name: fingerprint(path) for path in (*models, hyper)}
        spelling = rng.choice(("name", "hard link", "symlink", "folder", "detour", "chain", "bind mount"))
        with contextlib.ExitStack() as stack:
            target = _spelled(stack, ground, room, victim, spelling)
            arguments = ground.arguments(job, models, hyper)
            arguments[arguments.index("-o") + 1] = str(target)
            if rng.random() < 0.5:
                arguments.append("--force")
            line = one_line(finish(ground.start(room, arguments)), 1, target.name)
        if "input" not in line:
            raise Found(f"{spelling}: {line}")
        if before != {path.name: fingerprint(path) for path in (*models, hyper)}:
            raise Found(f"{spelling}: an input was changed")
        if sorted(os.listdir(room / "models")) != sorted(before):
            raise Found(f"{spelling}: {os.listdir(room / 'models')}")
        return f"refused: {spelling}"


def _spelled(stack: contextlib.ExitStack, ground: Ground, room: Path, victim: Path, spelling: str) -> Path:
    """Another way to say `victim`."""
    if spelling == "hard link":
        os.link(victim, room / "hard.safetensors")
        return room / "hard.safetensors"
    if spelling == "symlink":
        os.symlink(victim, room / "soft.safetensors")
        return room / "soft.safetensors"
    if spelling == "chain":
        os.symlink(victim, room / "first.safetensors")
        os.symlink("first.safetensors", room / "second.safetensors")
        return room / "second.safetensors"
    if spelling == "folder":
        os.symlink("models", room / "elsewhere")
        return room / "elsewhere" / victim.name
    if spelling == "detour":
        return room / "models" / ".." / "models" / "." / victim.name
    if spelling == "bind mount":
        return stack.enter_context(mounted(ground, "--bind", victim.parent)) / victim.name
    return victim


@fault(0.5)
def somebody_puts_a_file_there_meanwhile(ground: Ground, rng: Random) -> str:
    """A file that is not ours must not be replaced, also when it came after we had looked."""
    job, old = ground.draw(rng)
    victim = rng.choice(job.targets)
    precious = b"precious" * 1000
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job))
        moment = Moment(ground, job, rng)
        moment.wait(child, room, job)
        while moment.anchor == "start" and child.poll() is None and not temporaries(room):
            time.sleep(0.0005)  # before that it is the plain case of a foreign file
        late = child.poll() is not None or not temporaries(room)
        (room / "precious").write_bytes(precious)
        os.replace(room / "precious", room / victim)
        done = finish(child)
        if (room / victim).read_bytes() == precious:
            (room / victim).unlink()
            if temporaries(room):
                raise Found(f"stayed behind: {temporaries(room)}")
            if done.code != 0:
                one_line(done, 1, *job.targets)
            return f"{'done before' if done.code == 0 else 'refused'}, precious file whole"
        if late:
            return "at the very last moment"
        raise Found(f"a file that appeared after the beginning was replaced: {done}")


@fault(0.25)
def its_temporary_is_taken_away(ground: Ground, rng: Random) -> str:
    """Removed, or replaced by something else of that name."""
    job, old = ground.draw(rng)
    with ground.room(job, old) as room:
        child = ground.start(room, ground.arguments(job))
        Moment(ground, job, rng).wait(child, room, job)
        found, put = temporaries(room), rng.random() < 0.5
        for name in found:
            with contextlib.suppress(FileNotFoundError):  # it was put in place this very moment
                (room / name).unlink()
                if put:
                    (room / name).write_bytes(b"not ours")
        done = finish(child)
        for name in found:
            if (room / name).exists() and (room / name).read_bytes() == b"not ours":
                (room / name).unlink()
        for name in job.targets:
            if (room / name).exists() and (room / name).read_bytes() == b"not ours":
                raise Found(f"a stranger's file became {name}")
        said = refused_or_done(done, *job.targets)
        outcome = ground.judge(room, job, old)
        if said == "done" and outcome != "new file whole":
            raise Found(f"{said}, but {outcome}")
        return f"{said}, {outcome}"


@fault(0.1)
def the_target_becomes_a_folder(ground: Ground, rng: Random) -> str:
    job = JOBS[rng.choice(("solve", "merge", "exact"))]
    with ground.room() as room:
        child = ground.start(room, ground.arguments(job))
        Moment(ground, job, rng).wait(child, room, job)
        with contextlib.suppress(FileExistsError):
            (room / job.target).mkdir()
        said = refused_or_done(finish(child), job.target)
        if said == "refused":
            (room / job.target).rmdir()
        return f"{said}, {ground.judge(room, job, False)}"


# ---- other writers --------------------------------------------------------------------------------------------------


def _failed(job: Job, done: Done) -> bool:
    """Did a writer fail though nothing was wrong?  Who writes in place of what he reads must notice that another did so."""
    if job.in_place and done.code == 1:
        return "replaced by another file" not in one_line(done, 1, job.target)
    return done.code != 0 or done.err != ""


@fault(0.5)
def several_writers_of_one_name(ground: Ground, rng: Random) -> str:
    """All come to their end, the last one's file stays; perhaps one of them is killed."""
    job, old = ground.draw(rng, 1)
    with ground.room(job, old) as room:
        children = []
        for _ in range(rng.randint(2, 4)):
            arguments = ground.arguments(job)
            children.append(ground.start(room, arguments))
            time.sleep(rng.uniform(0, 0.5 * ground.times[job.name].end))
        victim = rng.choice(children) if rng.random() < 0.5 else None
        if victim is not None:
            time.sleep(rng.uniform(0, ground.times[job.name].end))
            victim.kill()
        for child in children:
            done = finish(child)
            if child is not victim and _failed(job, done):
                raise Found(f"a writer failed beside others: {done}")
        outcome = ground.judge(room, job, True, leftovers=victim is not None)
        if outcome != "new file whole":
            raise Found(outcome)
        ground.run_again(room, job)
        return f"{outcome}{', one of them killed' if victim is not None else ''}"


@fault(0.25)
def a_writer_that_sleeps_is_not_dead(ground: Ground, rng: Random) -> str:
    """A stopped writer keeps its temporary while others come and go; a killed one's is taken away."""
    job, old = ground.draw(rng, 1)
    with ground.room(job, old) as room:
        sleeper = ground.start(room, ground.arguments(job))
        try:
            moment = Moment(ground, job, rng)
            moment.wait(sleeper, room, job)
            sleeper.send_signal(signal.SIGSTOP)
            time.sleep(0.01)
            before = temporaries(room)
            done = ground.run(room, job)
            if done.code != 0 or done.err:
                raise Found(f"failed beside a sleeping writer: {done}")
            if temporaries(room) != before:
                raise Found(f"the sleeper had {before}, and now there is {temporaries(room)}")
        finally:
            sleeper.send_signal(signal.SIGCONT)
        done = finish(sleeper)
        if _failed(job, done):
            raise Found(f"the sleeper failed: {done}")
        return ground.judge(room, job, old) + (", its temporary untouched" if before else "")


@fault(0.25)
def crowds_of_stale_temporaries(ground: Ground, rng: Random) -> str:
    """Of many killed runs, of other targets, and things that only look like them."""
    job, old = ground.draw(rng, 1)
    with ground.room(job, old) as room:
        for number in range(rng.randint(1, 300)):
            (room / f".{job.target}.hm-tmp-{rng.randint(1, 10**6)}-{number}").write_bytes(b"stale")
        others = {f".other.{job.target}.hm-tmp-1-0", f"{job.target}.hm-tmp-1-0", ".hm-tmp-1-0"}
        for name in others:
            (room / name).write_bytes(b"another's")
        folder = room / f".{job.target}.hm-tmp-folder"
        folder.mkdir()
        os.mkfifo(room / f".{job.target}.hm-tmp-fifo")
        os.symlink("/dev/null", room / f".{job.target}.hm-tmp-link")
        done = ground.run(room, job)
        if done.code != 0 or done.err:
            raise Found(f"failed: {done}")
        left = set(os.listdir(room)) - {job.target}
        if not others <= left:
            raise Found(f"another's file was removed: {others - left}")
        stale = [name for name in left if (room / name).is_file() and (room / name).read_bytes() == b"stale"]
        if stale:
            raise Found(f"{len(stale)} stale temporaries stay")
        if ground.state(room, job) != "new":
            raise Found("not written")
        return "new file whole, stale ones gone"
