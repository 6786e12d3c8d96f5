"""The ground on which faults happen: small models, what every command must make of them, and the promises that hold
after any fault.  What must come out is known from runs without a fault, checked by NumPy and the safetensors package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

import hypermerge_ext

LIMIT = 60  # seconds; whatever takes longer hangs
AT = (0.4, -0.2)
MEMBERS = 4
DIRECTIONS = 2
HIDDEN = 2  # directions in which the models really differ, so that K = 2 gives every one of them back
STEP = 8e-3  # rounding of the inputs, the base and the directions together; the directions are of size 0.1


class Found(AssertionError):
    """A promise was broken."""


class Skipped(Exception):
    """This machine cannot bring the fault about."""


class Fault(NamedTuple):
    """One kind of fault; `run(ground, rng)` brings it about once and returns what it found afterwards, in few words."""

    name: str
    run: Callable[[Ground, Random], str]
    share: float
    """Of the campaign's rounds."""
    inside: bool
    """In a process of its own that has the package loaded: what happens inside a host."""
    module: str


FAULTS: dict[str, Fault] = {}


def fault(share: float = 1.0, inside: bool = False) -> Callable[[Any], Any]:
    """Enters a function into the list of faults under its own name."""

    def enter(function: Any) -> Any:
        name = function.__name__.replace("_", " ")
        FAULTS[name] = Fault(name, function, share, inside, function.__module__)
        return function

    return enter


class Job(NamedTuple):
    """A command that writes."""

    name: str
    target: str
    beside: str | None = None
    """The second file of solve --split."""
    in_place: bool = False
    """Its target is its input, the older file, which is therefore always there."""

    @property
    def targets(self) -> list[str]:
        return [self.target] if self.beside is None else [self.target, self.beside]


JOBS = {
    job.name: job
    for job in (
        Job("solve", "x.hyper.safetensors"),
        Job("split", "x.hyper.safetensors", "x.base.safetensors"),
        Job("hash", "x.hyper.safetensors"),
        Job("merge", "blend.safetensors"),
        Job("exact", "blend.safetensors"),
        Job("axes", "x.hyper.safetensors", in_place=True),
        Job("lora", "direction.safetensors"),
    )
}


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Times(NamedTuple):
    """Of an undisturbed run, in seconds from its start: when the temporary and the target appear, and its end."""

    temporary: float
    target: float
    end: float


def fingerprint(path: Path) -> str:
    """sha256 of a safetensors file, whatever the day on which it was written."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = re.sub(rb'("modelspec\.date":")[-0-9]{10}"', rb'\1"', data[8 : 8 + length])
    whole = hashlib.sha256(data[:8] + header)
    whole.update(memoryview(data)[8 + length :])
    return whole.hexdigest()


def inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def temporaries(folder: Path) -> list[str]:
    """What a writer at work has in `folder`."""
    return [name for name in os.listdir(folder) if ".hm-tmp-" in name]


class Ground:
    """A folder with models, and with what the commands make of them."""

    def __init__(self, folder: Path, megabytes: float = 6, measured: int = 3) -> None:
        """Opens the ground in `folder`, or lays it out there with models of so many megabytes and `measured` runs."""
        self.folder = Path(folder)
        self.models = [self.folder / f"models/m{m}.safetensors" for m in range(MEMBERS)]
        self.newcomer = self.folder / "models/newcomer.safetensors"
        self.hyper = self.folder / "reference/solve/x.hyper.safetensors"
        package = str(Path(hypermerge_ext.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        notes = self.folder / "ground.json"
        if not notes.exists():
            _make_models([*self.models, self.newcomer], megabytes)
            notes.write_text(json.dumps(self._make_references(measured)))
        known = json.loads(notes.read_text())
        self.jobs = [job for job in JOBS.values() if job.name in known["new"]]
        """Those that can be done here: a LoRA wants a BLAS."""
        self.new: dict[str, dict[str, str]] = known["new"]
        """Fingerprints of what a job must write: job → file name → fingerprint."""
        self.times = {name: Times(*times) for name, times in known["times"].items()}

    # ---- commands ---------------------------------------------------------------------------------------------------

    def arguments(self, job: Job, models: Sequence[Path] | None = None, hyper: Path | None = None) -> list[str]:
        """What to give to hyper-merge in a room."""
        files = [str(path) for path in models or self.models]
        at = ",".join(map(str, AT))
        merge = ["merge", str(hyper or self.hyper), "--at", at, "-o", job.target]
        return {
            "solve": ["solve", *files, "-o", job.target],
            "split": ["solve", *files, "-o", job.target, "--split"],
            "hash": ["solve", *files, "-o", job.target, "--hash"],
            "merge": merge,
            "exact": [*merge, "--exact", *files],
            "axes": ["axes", job.target, "--name", "1=warmth"],
            "lora": [*"lora --direction 1 --rank 8 --format comfyui -o".split(), job.target, str(hyper or self.hyper)],
        }[job.name]

    def start(self, room: Path, arguments: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        """hyper-merge in a process of its own."""
        return self.python(room, ["-m", "hypermerge_ext", *arguments], **more)

    def python(self, room: Path, arguments: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        """A Python process which finds this very package."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **more}
        return subprocess.Popen(
            [sys.executable, "-P", *arguments] if sys.version_info >= (3, 11) else [sys.executable, *arguments],
            cwd=room,
            env=self.environment,
            text=True,
            errors="replace",
            **streams,
        )

    def run(self, room: Path, job: Job, **more: Any) -> Done:
        """A job from beginning to end."""
        return finish(self.start(room, self.arguments(job), **more))

    def draw(self, rng: Random, files: int = 2) -> tuple[Job, bool]:
        """A job that writes at most so many files, and whether there shall be an older version."""
        job = rng.choice([job for job in self.jobs if len(job.targets) <= files])
        return job, self.has_old(job, rng)

    def has_old(self, job: Job, rng: Random) -> bool:
        return job.in_place or rng.random() < 0.5

    # ---- rooms ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def room(self, job: Job | None = None, old: bool = False, within: Path | None = None) -> Iterator[Path]:
        """An empty folder for one round, with an older version of the job's files in it if there shall be one."""
        folder = Path(tempfile.mkdtemp(prefix="room-", dir=within or self.folder))
        try:
            if job is not None and old:
                self.put_old(folder, job)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_old(self, folder: Path, job: Job) -> None:
        """Older files of ours under the names that the job will write."""
        for name in job.targets:
            shutil.copyfile(self.folder / "old" / job.name / name, folder / name)

    def state(self, folder: Path, job: Job) -> str:
        """"absent", "old" or "new": what the job's files are.  Raises Found for anything else."""
        states = {}
        for name in job.targets:
            path = folder / name
            if not path.exists():
                states[name] = "absent"
            elif path.stat().st_size == (self.folder / "old" / job.name / name).stat().st_size and (
                path.read_bytes() == (self.folder / "old" / job.name / name).read_bytes()
            ):
                states[name] = "old"
            elif fingerprint(path) == self.new[job.name][name]:
                states[name] = "new"
            else:
                raise Found(f"{name} is neither the old nor the new file ({path.stat().st_size} bytes)")
        if len(set(states.values())) > 1:
            raise Found(f"two files that belong together do not: {states}")
        return states[job.target]

    def judge(self, folder: Path, job: Job, old: bool, leftovers: bool = False) -> str:
        """What a fault left: "old file whole", "new file whole" or "no file".  Raises Found when something was lost, or
        stayed behind (temporaries too, unless `leftovers` are forgiven)."""
        state = self.state(folder, job)
        if old and state == "absent":
            raise Found("the old file is gone")
        others = set(os.listdir(folder)) - set(job.targets)
        if leftovers:
            others -= set(temporaries(folder))
        if others:
            raise Found(f"stayed behind: {sorted(others)}")
        return {"absent": "no file", "old": "old file whole", "new": "new file whole"}[state]

    def run_again(self, folder: Path, job: Job) -> None:
        """The next run must do its work and remove what the last one left.  Raises Found."""
        done = self.run(folder, job)
        if done.code != 0:
            raise Found(f"the next run failed: {done}")
        if self.judge(folder, job, True) != "new file whole":
            raise Found("the next run wrote nothing")

    # ---- laying out -------------------------------------------------------------------------------------------------

    def _make_references(self, measured: int) -> dict[str, Any]:
        new: dict[str, dict[str, str]] = {}
        times: dict[str, Times] = {}
        for job in JOBS.values():
            folder = self.folder / "reference" / job.name
            folder.mkdir(parents=True)
            if job.name == "lora" and "BLAS" in finish(self.start(folder, self.arguments(job))).err:
                continue
            self._make_old(job)
            times[job.name] = self._measure(folder, job, measured)
            new[job.name] = {name: fingerprint(folder / name) for name in job.targets}
        self._check_references(new)
        return {"new": new, "times": times}

    def _make_old(self, job: Job) -> None:
        """What an earlier run with other models or another point wrote."""
        folder = self.folder / "old" / job.name
        folder.mkdir(parents=True)
        arguments = self.arguments(job, self.models[:-1])
        if job.in_place:
            shutil.copyfile(self.hyper, folder / job.target)
            return
        if job.name not in ("solve", "split", "hash"):
            arguments = ["merge", str(self.hyper), "--at", "0.9", "-o", job.target]
        done = finish(self.start(folder, arguments))
        if done.code != 0:
            raise RuntimeError(done.err)

    def _measure(self, folder: Path, job: Job, runs: int) -> Times:
        """Runs the job so many times; medians.  The last one's files stay."""
        found = []
        for _ in range(runs):
            for name in os.listdir(folder):
                (folder / name).unlink()
            if job.in_place:
                self.put_old(folder, job)
            before = inode(folder / job.target)
            began = time.monotonic()
            child = self.start(folder, self.arguments(job))
            seen = []
            for there in (lambda: temporaries(folder), lambda: inode(folder / job.target) not in (None, before)):
                while not there() and child.poll() is None:
                    time.sleep(0.0005)
                seen.append(time.monotonic() - began)
            done = finish(child)
            found.append((*seen, time.monotonic() - began))
            if done.code != 0:
                raise RuntimeError(done.err)
        return Times(*(statistics.median(column) for column in zip(*found)))

    def _check_references(self, new: dict[str, dict[str, str]]) -> None:
        """Are they right?  By other people's reader, and NumPy."""
        models = [load_file(path) for path in self.models]
        hyper, base = load_file(self.hyper), load_file(self.folder / "reference/split/x.base.safetensors")
        hashed = load_file(self.folder / "reference/hash" / JOBS["hash"].target)
        document = json.loads(_metadata(self.hyper)["hypermerge"])
        blend = load_file(self.folder / "reference/merge" / JOBS["merge"].target)
        exact = load_file(self.folder / "reference/exact" / JOBS["exact"].target)
        for name in models[0]:
            directions = [hyper[f"hypermerge.direction.{k}.{name}"] for k in range(1, DIRECTIONS + 1)]
            start = hyper[name].astype(np.float32)
            if f"hypermerge.base_low.{name}" in hyper:
                start += hyper[f"hypermerge.base_low.{name}"].astype(np.float32)
            for model, member in zip(models, document["members"]):
                back = start + sum(c * d.astype(np.float32) for c, d in zip(member["multipliers"], directions))
                assert np.abs(back - model[name].astype(np.float32)).max() < STEP, name
            expected = start.copy()
            for c, direction in zip(AT, directions):
                expected += np.float32(c) * direction.astype(np.float32)
            assert (expected.astype(np.float16) == blend[name]).all(), name
            assert np.abs(expected - exact[name].astype(np.float32)).max() < STEP, name
            assert (base[name] == hyper[name]).all() and (hashed[name] == hyper[name]).all()
        named = load_file(self.folder / "reference/axes" / JOBS["axes"].target)
        assert named.keys() == hyper.keys() and all((named[name] == hyper[name]).all() for name in hyper)
        if "lora" in new:
            self._check_lora(hyper)
        for job in (JOBS[name] for name in new):
            for name in job.targets:
                old = self.folder / "old" / job.name / name
                assert fingerprint(old) != new[job.name][name] and load_file(old)


    def _check_lora(self, hyper: dict[str, np.ndarray]) -> None:
        """As near to the direction as any rank 8 can be?"""
        lora = load_file(self.folder / "reference/lora" / JOBS["lora"].target)
        for name in [name for name in lora if name.endswith(".lora_up.weight")][:2]:
            layer = name.removesuffix(".lora_up.weight")
            product = lora[name].astype(np.float64) @ lora[f"{layer}.lora_down.weight"].astype(np.float64)
            tensor = f"hypermerge.direction.1.{layer.removeprefix('diffusion_model.')}.weight"
            direction = hyper[tensor].astype(np.float64)
            best = np.linalg.norm(np.linalg.svd(direction, compute_uv=False)[8:])
            scale = float(lora[f"{layer}.alpha"]) / lora[name].shape[1]
            assert np.linalg.norm(direction - scale * product) < 1.01 * best, name


def _metadata(path: Path) -> dict[str, str]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length))["__metadata__"]


def _make_models(paths: Sequence[Path], megabytes: float) -> None:
    """Models that differ along two hidden directions; large tensors and small ones, so that everything has its turn."""
    paths[0].parent.mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = max(1, round(megabytes * 1e6 / 2 / 512 / 9))
    shapes = [(rows, 512)] * 8 + [(rows // 4 or 1, 512)] * 4 + [(77,)] * 40
    base = [rng.standard_normal(shape, np.float32) for shape in shapes]
    hidden = [[rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(HIDDEN)]
    for m, path in enumerate(paths):
        share = [np.cos(m * 1.3), 0.5 * np.sin(m * 1.3)]
        model = {
            f"layers.{i}.weight": (base[i] + sum(0.1 * s * h[i] for s, h in zip(share, hidden))).astype(np.float16)
            for i in range(len(shapes))
        }
        save_file(model, path)


# ---- processes ------------------------------------------------------------------------------------------------------


def finish(child: subprocess.Popen[str], limit: float = LIMIT) -> Done:
    """Waits for the end.  Raises Found for one that hangs."""
    try:
        out, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise Found(f"hung for {limit} s") from None
    return Done(child.returncode, out or "", err or "")


def one_line(done: Done, code: int, *names: str, out: bool = False) -> str:
    """Ended with `code` and one line on stderr that names one of `names`?  Returns the line; raises Found."""
    lines = done.err.splitlines()
    if done.code < 0:
        raise Found(f"died by {signal.Signals(-done.code).name}: {done.err[-2000:]}")
    if done.code != code:
        raise Found(f"exit status {done.code}, not {code}: {done.err[-2000:]}")
    if len(lines) != 1 or not lines[0].startswith("hyper-merge: "):
        raise Found(f"{len(lines)} lines on stderr instead of one: {done.err[-2000:]}")
    if names and not any(name in lines[0] for name in names):
        raise Found(f"names none of {names}: {lines[0]}")
    if done.out and not out:
        raise Found(f"printed something: {done.out[-500:]}")
    return lines[0]


def refused_or_done(done: Done, *names: str, out: bool = False) -> str:
    """"refused" with one line that names one of `names`, or "done".  out: it may show something.  Raises Found."""
    if done.code == 0:
        if done.err:
            raise Found(f"done, but with {done.err[-2000:]}")
        return "done"
    one_line(done, 1, *names, out=out)
    return "refused"
