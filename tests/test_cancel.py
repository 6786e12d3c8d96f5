"""Cancelled, interrupted, killed, or with files that change underneath: nothing is left behind and nothing is lost."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hypermerge_ext as hm
import oracle
from families import family, save
from oracle import tensor

MANY = 40  # so many models of a few files that a pass takes half a second and reports several times


class Stop(Exception):
    """Raised by the tests' own progress functions."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four files of 4 MB."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for m in range(4):
        model = {f"layers.{i}.weight": tensor(rng.standard_normal((512, 1024)), "F16") for i in range(4)}
        oracle.write(folder / f"m{m}.safetensors", model)
    return sorted(folder.glob("m?.safetensors"))


@pytest.fixture
def own(files, tmp_path):
    """The same four in the test's own folder, where they may be damaged."""
    copies = [tmp_path / path.name for path in files]
    for path, copy in zip(files, copies):
        copy.write_bytes(path.read_bytes())
    return copies


def at_call(number: int, action):
    """A progress function that acts at its n-th call; `calls` counts them."""

    def progress(done, total):
        progress.calls += 1
        assert 0 <= done <= total
        if progress.calls == number:
            action()

    progress.calls = 0
    return progress


def raising(reason):
    def action():
        raise reason

    return action


@pytest.fixture(scope="module")
def hyper_path(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("hyper") / "x.hyper.safetensors"
    hm.solve(files, directions=3).save(path)
    return path


class Stopper:
    """A progress function that raises its reason at the n-th call for which at least `share` of the work is done."""

    def __init__(self, share: float, number: int = 1) -> None:
        self.reason, self.share, self.left = Stop(f"{share}"), share, number

    def __call__(self, done, total):
        assert 0 <= done <= total and self.left > 0, "called again after it raised"
        if done >= self.share * total:
            self.left -= 1
            if self.left == 0:
                raise self.reason


@pytest.fixture
def work(files, hyper_path, tmp_path):
    """work(name): (function of progress, file it writes or None, what that file held before)."""
    models = files * (MANY // 4)
    target = tmp_path / "out.safetensors"

    def prepare(what):
        if what.endswith("over"):
            target.write_bytes(hyper_path.read_bytes())
        solved = hm.solve(models) if what.startswith(("save", "split", "exact")) else None
        loaded = hm.load(hyper_path)
        call = {
            "solve": lambda progress: hm.solve(models, threads=1, progress=progress),
            "save": lambda progress: solved.save(target, threads=1, progress=progress),
            "split": lambda progress: solved.save(target, split=True, threads=1, progress=progress),
            "merge": lambda progress: loaded.merge([1, 1, 1], target, threads=1, dtype="fp32", progress=progress),
            "exact": lambda progress: solved.merge([1], target, threads=1, progress=progress),
            "compare": lambda progress: hm.compare(models, threads=1, progress=progress),
            "recover": lambda progress: hm.recover(files[0], models, threads=1, progress=progress),
            "project": lambda progress: loaded.project(files[0], threads=1, progress=progress),
            "hash": lambda progress: hm.solve(files, hash=True, threads=1, progress=progress),
        }[what.split()[0]]
        return call, target, target.read_bytes() if target.exists() else None

    return prepare


@pytest.mark.parametrize("share", [0, 0.3, 1], ids=["at once", "in the middle", "at the end"])
@pytest.mark.parametrize(
    "what",
    ["solve", "hash", "save", "save over", "split", "merge", "merge over", "exact", "compare", "recover", "project"],
)
def test_an_exception_in_progress_ends_the_work_and_arrives(work, tmp_path, snapshot, what, share):
    call, target, content = work(what)
    before, stop = snapshot(tmp_path), Stopper(share)
    with pytest.raises(Stop) as caught:
        call(stop)
    assert caught.value is stop.reason
    assert snapshot(tmp_path) == before
    assert content is None or target.read_bytes() == content


@pytest.mark.parametrize("what", ["save", "save over", "split", "merge", "exact"])
def test_cancelled_in_the_last_moments(work, tmp_path, snapshot, what):
    """All is read, and the hash of what was written is still being made: nothing of it may appear."""
    call, target, content = work(what)
    before = snapshot(tmp_path)
    for number in range(1, 50):
        stop = Stopper(1, number)
        try:
            call(stop)
        except Stop as caught:
            assert caught is stop.reason and snapshot(tmp_path) == before, number
        else:
            break
    assert number > 1 and oracle.read(target).data_sha256


@pytest.mark.parametrize("action", ["solve", "save", "merge"])
def test_the_work_can_be_begun_again_after_a_cancel(files, hyper_path, tmp_path, action):
    hyper = hm.solve(files)
    stop = at_call(1, raising(Stop()))
    with pytest.raises(Stop):
        if action == "solve":
            hm.solve(files, progress=stop)
        elif action == "save":
            hyper.save(tmp_path / "x.hyper.safetensors", progress=stop)
        else:
            hyper.merge([1], tmp_path / "x.hyper.safetensors", progress=stop)
    hyper.save(tmp_path / "x.hyper.safetensors")
    assert len(oracle.read(tmp_path / "x.hyper.safetensors").document["members"]) == 4


# ---- the command line -----------------------------------------------------------------------------------------------


def start(environment, folder, *arguments):
    command = [sys.executable, "-m", "hypermerge_ext", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_temporary(child, folder, known) -> list[str]:
    """Until the child has begun to write."""
    until = time.monotonic() + 60
    while time.monotonic() < until and child.poll() is None:
        found = sorted(set(os.listdir(folder)) - known)
        if found:
            return found
        time.sleep(0.002)
    raise AssertionError(f"nothing was written: {child.communicate()}")


@pytest.fixture(scope="module")
def slow(files):
    """Arguments of a solve whose second pass takes its time."""
    return ["solve", *files * 12, "--threads", "1", "--dtype", "fp32", "--directions", "3"]


def test_ctrl_c_while_measuring(files, slow, environment, tmp_path):
    child = start(environment, tmp_path, *slow, "-o", "x.hyper.safetensors", "--verbose")
    line = child.stderr.readline()  # "kernels: …": Python has started and the work begins
    assert "kernels" in line
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 130, (out, err)
    assert out == "" and "cancelled" in err and "Traceback" not in err and os.listdir(tmp_path) == []


@pytest.mark.parametrize("over", [False, True])
def test_ctrl_c_while_writing(files, slow, environment, tmp_path, hyper_path, over):
    target = tmp_path / "x.hyper.safetensors"
    if over:
        target.write_bytes(hyper_path.read_bytes())
    known = set(os.listdir(tmp_path))
    child = start(environment, tmp_path, *slow, "-o", target.name)
    wait_for_temporary(child, tmp_path, known)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 130, (out, err)
    assert out == "" and "cancelled" in err and "Traceback" not in err
    assert set(os.listdir(tmp_path)) == known
    assert not over or target.read_bytes() == hyper_path.read_bytes()


def test_what_a_killed_writer_left_is_removed_by_the_next(files, slow, environment, tmp_path):
    child = start(environment, tmp_path, *slow, "-o", "x.hyper.safetensors")
    left = wait_for_temporary(child, tmp_path, set())
    child.kill()
    child.communicate()
    assert os.listdir(tmp_path) == left and left != ["x.hyper.safetensors"]
    (tmp_path / "y.hyper.safetensors").touch()
    hm.solve(files).save(tmp_path / "other.hyper.safetensors")
    assert set(left) <= set(os.listdir(tmp_path))  # another target's leftovers are not touched
    hm.solve(files).save(tmp_path / "x.hyper.safetensors")
    assert set(os.listdir(tmp_path)) == {"x.hyper.safetensors", "y.hyper.safetensors", "other.hyper.safetensors"}


def test_a_writer_at_work_is_not_disturbed_by_another(files, hyper_path, tmp_path):
    hyper, other = hm.solve(files), hm.solve(files[:3])
    target = tmp_path / "x.hyper.safetensors"
    hyper.save(target, progress=at_call(1, lambda: other.save(target)))
    assert len(oracle.read(target).document["members"]) == 4  # the last to finish
    assert os.listdir(tmp_path) == [target.name]


# ---- files that change ----------------------------------------------------------------------------------------------


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path):
    with open(path, "r+b") as out:
        out.seek(-64, os.SEEK_END)
        out.write(bytes(64))


def grow(path):
    with open(path, "ab") as out:
        out.write(bytes(64))


@pytest.mark.parametrize("change", [truncate, rewrite, grow])
@pytest.mark.parametrize("when", ["before solve", "in solve", "before save", "in save", "in merge"])
def test_a_file_that_changes_is_noticed(own, tmp_path, snapshot, change, when):
    victim = own[2]
    models = [hm.source(path) for path in own] * 8
    target = tmp_path / "out.safetensors"
    act = at_call(1, lambda: change(victim))
    if when == "before solve":
        change(victim)
        before = snapshot(tmp_path)
        with pytest.raises(hm.Error) as caught:
            hm.solve(models)
    elif when == "in solve":
        before = None
        with pytest.raises(hm.Error) as caught:
            hm.solve(models, threads=1, progress=act)
    else:
        hyper = hm.solve(models)
        hm.solve(own[:2]).save(target)
        content, before = target.read_bytes(), None
        if when == "before save":
            change(victim)
        progress = act if when != "before save" else None
        with pytest.raises(hm.Error) as caught:
            if when == "in merge":
                hyper.merge([1], target, threads=1, progress=progress)
            else:
                hyper.save(target, threads=1, progress=progress)
        assert target.read_bytes() == content
    assert before is None or snapshot(tmp_path) == before
    assert set(os.listdir(tmp_path)) <= {*(path.name for path in own), target.name}
    text = str(caught.value)
    assert victim.name in text and ("changed" in text or "truncated" in text)
    assert not isinstance(caught.value, (hm.FormatError, hm.MismatchError))


def test_a_file_that_is_replaced_is_still_read_as_it_was(own, files, tmp_path):
    """An editor that writes beside and renames disturbs nobody."""
    expected = hm.solve(files).gram
    sources = [hm.source(path) for path in own]

    def replace():
        (tmp_path / "new").write_bytes(own[0].read_bytes())
        os.replace(tmp_path / "new", own[2])

    replace()
    assert hm.solve(sources).gram == expected


# ---- where it may write ---------------------------------------------------------------------------------------------


def test_never_onto_an_input(own, tmp_path, refused, snapshot):
    os.symlink(own[1], tmp_path / "link.safetensors")
    os.link(own[2], tmp_path / "hard.safetensors")
    for target in (own[0].name, "link.safetensors", "hard.safetensors", f"../{tmp_path.name}/{own[0].name}"):
        for force in ((), ("--force",)):
            assert "input" in refused(tmp_path, "solve", *own, "-o", target, *force)
            with pytest.raises(hm.ArgumentError, match="input"):
                hm.solve(own).save(tmp_path / target, force=bool(force))
    before = snapshot(tmp_path)
    with pytest.raises(hm.ArgumentError, match="input"):
        hm.solve(own[1:], base=own[0]).save(own[0], force=True)
    hyper = tmp_path / "x.hyper.safetensors"
    hm.solve(own).save(hyper)
    with pytest.raises(hm.ArgumentError, match="input"):
        hm.load(hyper).merge([1], hyper, force=True)
    with pytest.raises(hm.ArgumentError, match="input"):
        hm.load(hyper).merge([1], own[1], exact=own, force=True)
    with pytest.raises(hm.ArgumentError, match="input"):
        hm.load(hyper).merge([1], own[1], carrier=own[1], force=True)
    hyper.unlink()
    assert snapshot(tmp_path) == before


def test_the_split_base_does_not_overwrite_either(own, tmp_path):
    """NAME.base.safetensors is a target as well."""
    precious = tmp_path / "x.base.safetensors"
    precious.write_bytes(b"precious")
    with pytest.raises(hm.Error, match="x.base.safetensors"):
        hm.solve(own).save(tmp_path / "x.hyper.safetensors", split=True)
    assert precious.read_bytes() == b"precious" and not (tmp_path / "x.hyper.safetensors").exists()
    os.replace(own[0], tmp_path / "y.base.safetensors")
    models = [tmp_path / "y.base.safetensors", *own[1:]]
    content = models[0].read_bytes()
    for options in ({"models": models}, {"models": models[1:], "base": models[0]}):
        with pytest.raises(hm.Error):
            hm.solve(**options).save(tmp_path / "y.hyper.safetensors", split=True, force=True)
        assert models[0].read_bytes() == content and not (tmp_path / "y.hyper.safetensors").exists()


def test_foreign_files_are_replaced_only_by_force(files, tmp_path, refused, cli):
    (tmp_path / "notes.txt").write_text("precious")
    save(tmp_path, family(1), "foreign")
    lookalike = {"sd_merge_recipe": '{"type":"webui"}', "note": "hyper-merge"}
    oracle.write(tmp_path / "recipe.safetensors", family(1)[0], lookalike)
    for name in ("notes.txt", "foreign0.safetensors", "recipe.safetensors"):
        assert "--force" in refused(tmp_path, "solve", *files, "-o", name)
        with pytest.raises(hm.ArgumentError, match="force"):
            hm.solve(files).save(tmp_path / name)
        assert cli("solve", *files, "-o", name, "--force", cwd=tmp_path).returncode == 0
        assert oracle.read(tmp_path / name).document["directions"] == 2
        hm.load(tmp_path / name).merge([1], tmp_path / f"{name}.merged")
        hm.solve(files).save(tmp_path / f"{name}.merged")  # both are ours, and may replace one another
        hm.solve(files[:2]).save(tmp_path / name)


def test_symlinks_are_followed(files, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    hm.solve(files[:2]).save(tmp_path / "elsewhere" / "real.hyper.safetensors")
    link = tmp_path / "link.hyper.safetensors"
    link.symlink_to(tmp_path / "elsewhere" / "real.hyper.safetensors")
    hm.solve(files).save(link)
    assert link.is_symlink() and len(oracle.read(link).document["members"]) == 4
    assert os.listdir(tmp_path / "elsewhere") == ["real.hyper.safetensors"]
    dangling = tmp_path / "dangling.hyper.safetensors"
    dangling.symlink_to(tmp_path / "elsewhere" / "new.hyper.safetensors")
    hm.solve(files).save(dangling)
    assert dangling.is_symlink() and (tmp_path / "elsewhere" / "new.hyper.safetensors").is_file()


def test_no_room(files, environment, tmp_path):
    """A limit on file sizes stands for a full disk."""
    child = subprocess.run(
        [sys.executable, "-m", "hypermerge_ext", "solve", *map(str, files), "-o", "x.hyper.safetensors"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip
    assert child.returncode == 1 and child.stderr.count("\n") == 1 and "x.hyper.safetensors" in child.stderr
    assert os.listdir(tmp_path) == []


def test_writing_works_in_a_folder_with_a_strange_name(files, tmp_path):
    folder = Path(tmp_path) / "Ordner é \n %s"
    folder.mkdir()
    hm.solve(files).save(folder / "x.hyper.safetensors")
    hm.load(folder / "x.hyper.safetensors").merge([1], folder / "ü.safetensors")
    assert sorted(os.listdir(folder)) == ["x.hyper.safetensors", "ü.safetensors"]
