"""What the campaigns found, one test for each: the defect in a sentence, and how it comes about every time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch

import hypermerge_ext as hm
import oracle
from families import family, save

MODELS = 4


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return save(folder, family(MODELS, dtypes="F16", delta=0.3))


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def once(action):
    """A progress function that acts at its last call of a pass, when all is read and nothing is in place yet."""

    def progress(done, total):
        if done == total and not progress.acted:
            progress.acted = True
            action()

    progress.acted = False
    return progress


def python(environment, script, *arguments, **more):
    """Runs a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=60, **more,
    )  # fmt: skip


# ---- the place that is written to -----------------------------------------------------------------------------------


def test_a_renamed_folder_keeps_no_temporary(files, tmp_path, out):
    """The temporary was sought under the old path, and stayed for good in a folder that had been renamed."""
    moved = tmp_path / "moved"
    with pytest.raises(hm.Error, match="x.hyper.safetensors.*its folder was moved or removed"):
        hm.solve(files).save(out / "x.hyper.safetensors", progress=once(lambda: out.rename(moved)))
    assert os.listdir(moved) == []


def test_a_file_that_appears_meanwhile_is_not_replaced(files, out):
    """Whose the target is was asked at the beginning only: what somebody put there meanwhile was lost."""
    target = out / "x.hyper.safetensors"
    with pytest.raises(hm.ArgumentError, match="x.hyper.safetensors.*another file got this name"):
        hm.solve(files).save(target, progress=once(lambda: target.write_bytes(b"precious")))
    assert target.read_bytes() == b"precious" and os.listdir(out) == [target.name]


def test_of_two_files_none_appears_without_the_other(files, out):
    """solve --split put the base in place before it found that the hyper-model could not follow."""
    hm.solve(files[:3]).save(out / "x.hyper.safetensors", split=True)
    base = (out / "x.base.safetensors").read_bytes()
    target = out / "x.hyper.safetensors"
    with pytest.raises(hm.ArgumentError, match="another file got this name"):
        hm.solve(files).save(target, split=True, progress=once(lambda: target.write_bytes(b"precious")))
    assert (out / "x.base.safetensors").read_bytes() == base and len(os.listdir(out)) == 2


def test_a_strangers_file_does_not_become_the_result(files, out):
    """Whatever had the temporary's name was put in place, also when it was not our file any more."""
    target = out / "x.hyper.safetensors"

    def exchange():
        (temporary,) = out.iterdir()
        temporary.unlink()
        temporary.write_bytes(b"not ours")

    with pytest.raises(hm.Error, match="x.hyper.safetensors.*was taken away"):
        hm.solve(files).save(target, progress=once(exchange))
    assert [path.read_bytes() for path in out.iterdir()] == [b"not ours"] and not target.exists()


def test_our_own_file_is_known_when_no_more_can_be_opened(files, out, environment):
    """With all descriptors in use it said of our own file that hyper-merge had not written it."""
    target = out / "x.hyper.safetensors"
    hm.solve(files).save(target)
    done = python(
        environment,
        """
        import os, resource, sys
        import hypermerge_ext as hm
        solved = hm.solve(sys.argv[2:])
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            while True:
                os.open(os.devnull, os.O_RDONLY)
        except OSError:
            pass
        try:
            solved.save(sys.argv[1])
        except hm.Error as error:
            print(error)
        """,
        target,
        *files,
    )
    assert "x.hyper.safetensors" in done.stdout and "Too many open files" in done.stdout, done
    assert "was not written by hyper-merge" not in done.stdout


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_whoever_asks_a_command_to_end_gets_an_answer(files, out, environment, number, over):
    """SIGTERM and SIGHUP killed it on the spot, and gigabytes stayed behind; SIGINT after SIGINT showed tracebacks."""
    target = out / "x.hyper.safetensors"
    if over:
        hm.solve(files[:3]).save(target)
    before = target.read_bytes() if over else None
    done = python(
        environment,
        """
        import os, signal, sys
        from hypermerge_ext import cli
        number = getattr(signal, sys.argv.pop(1))
        if signal.getsignal(number) == signal.SIG_IGN:  # as nohup leaves it, and a command then goes on
            signal.signal(number, signal.SIG_DFL)
        class Asking:
            def __init__(self, label):
                self.label = label
            def __enter__(self):
                return (lambda done, total: os.kill(os.getpid(), number)) if self.label == "writing" else None
            def __exit__(self, *_):
                os.kill(os.getpid(), number)  # and again, while it tidies up
        cli.Bar = Asking
        sys.exit(cli.main())
        """,
        number, "solve", *files, "-o", target.name,
        cwd=out,
    )  # fmt: skip
    line = "hyper-merge: cancelled; " + ("x.hyper.safetensors stays as it was" if over else "nothing was written")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", line + "\n")
    assert os.listdir(out) == ([target.name] if over else [])
    assert not over or target.read_bytes() == before


def test_signals_are_left_alone_where_they_were_not_ours(files, out, environment):
    """nohup stays nohup."""
    done = python(
        environment,
        """
        import os, signal, sys
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        from hypermerge_ext import cli
        show = cli.table.hyper
        cli.table.hyper = lambda *given: (os.kill(os.getpid(), signal.SIGHUP), show(*given))[1]
        sys.exit(cli.main())
        """,
        "solve", *files, "-o", "x.hyper.safetensors",
        cwd=out,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and os.listdir(out) == ["x.hyper.safetensors"]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams(files, out, environment, closed):
    """With stdout or stderr closed it ended in a traceback, or without a word; and files got the streams' numbers."""
    command = [sys.executable, "-m", "hypermerge_ext", "solve", *map(str, files), "-o", "x.hyper.safetensors"]
    done = subprocess.run(
        command, cwd=out, env=environment, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: [*map(os.close, closed)],
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == b"" and len(oracle.read(out / "x.hyper.safetensors").model) > 0


def test_standard_output_on_a_full_disk(files, out, environment):
    """It ended with a traceback that Python adds when it cannot flush, and exit status 120."""
    command = [sys.executable, "-m", "hypermerge_ext", "compare", *map(str, files), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, timeout=60, stdout=full, stderr=subprocess.PIPE, text=True)
    line = "hyper-merge: error: standard output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_module_that_cannot_be_loaded_is_one_line(files, out, environment):
    """Out of memory or of descriptors, a late import ended in a traceback."""
    done = python(
        environment,
        """
        import sys
        from hypermerge_ext import cli
        def late(*_):
            raise ImportError("unicodedata.so: failed to map segment from shared object")
        cli.table.hyper = late
        sys.exit(cli.main())
        """,
        "solve", *files, "-o", "x.hyper.safetensors",
        cwd=out,
    )  # fmt: skip
    line = "hyper-merge: error: unicodedata.so: failed to map segment from shared object\n"
    assert (done.returncode, done.stderr) == (1, line)


# ---- inside a host --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [10, 0])
def test_python_ends_while_a_daemon_thread_works(out, tmp_path, environment, patience):
    """Python takes the thread's stack away while ours still compute on it: the host died by SIGSEGV when it was closed,
    and left a temporary.  Now the call is cancelled; where that takes too long, the stack stays."""
    rng = np.random.default_rng(0)
    model = {f"layers.{i}.weight": oracle.tensor(rng.standard_normal((1024, 1024)), "F16") for i in range(4)}
    for m in range(2):
        oracle.write(tmp_path / f"m{m}.safetensors", model)
    script = """
    import sys, threading, time
    import hypermerge_ext as hm
    hm.sources._PATIENCE = float(sys.argv[1])
    models, target = sys.argv[3:] * 16, sys.argv[2]
    begun = threading.Event()
    def work():
        while True:
            hm.solve(models).save(target, progress=lambda done, total: begun.set())
    def deep(levels):  # so deep that Python gives the pages of the stack back
        return max([0], key=lambda _: deep(levels - 1)) if levels else work()
    class Slow:
        def __del__(self, sleep=time.sleep):
            sleep(0.3)  # large hosts take their time to end
    slow = Slow()
    threading.stack_size(16 << 20)
    threading.Thread(target=deep, args=(60,), daemon=True).start()
    begun.wait()
    """
    for _ in range(3):
        models = sorted(tmp_path.glob("m?.safetensors"))
        done = python(environment, script, patience, out / "x.hyper.safetensors", *models)
        assert done.returncode == 0, (signal.Signals(-done.returncode) if done.returncode < 0 else done)
        assert patience == 0 or set(os.listdir(out)) <= {"x.hyper.safetensors"}


def test_a_forked_child_does_not_wait_for_the_parents_thread(files, tmp_path, environment):
    """The lock of a live blend that was at work in a thread stayed locked in the child for ever."""
    hm.solve(files).save(tmp_path / "x.hyper.safetensors")
    done = python(
        environment,
        """
        import os, sys, threading
        import numpy as np
        from safetensors.numpy import load_file
        import hypermerge_ext as hm
        state = {name: value for name, value in load_file(sys.argv[1]).items() if not name.startswith("hypermerge.")}
        live = hm.load(sys.argv[1]).bind(state)
        inside, leave = threading.Event(), threading.Event()
        def progress(done, total):
            inside.set()
            leave.wait()
        thread = threading.Thread(target=lambda: live.set(0.5, progress=progress))
        thread.start()
        inside.wait()
        child = os.fork()
        if child == 0:
            live.set(0.25)
            os._exit(7 if live.at == (0.25, 0.0) else 1)
        leave.set()
        thread.join()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), live.at)
        """,
        tmp_path / "x.hyper.safetensors",
    )
    assert done.stdout == "7 (0.5, 0.0)\n", done


@pytest.mark.parametrize("when", ["before solve", "before save", "before project", "before merge"])
def test_memory_that_was_borrowed_and_freed_is_not_read(files, out, when):
    """A tensor that its owner had freed was read all the same, and the process died by SIGSEGV."""
    states = [{"layers.0.weight": torch.randn(512, 512), "other": torch.randn(7)} for _ in range(3)]
    sources = [hm.source(state, f"model {m}") for m, state in enumerate(states)]
    solved = hm.solve(sources) if when != "before solve" else None
    storage = states[1]["layers.0.weight"].untyped_storage()
    storage.resize_(0)
    with pytest.raises(hm.ArgumentError, match="^model 1: layers.0.weight: its memory was freed or moved") as caught:
        if when == "before solve":
            hm.solve(sources)
        elif when == "before save":
            solved.save(out / "x.hyper.safetensors")
        elif when == "before project":
            solved.project({"layers.0.weight": torch.randn(512, 512), "other": torch.randn(7)})
        else:
            solved.merge([1], out / "y.safetensors")
    assert (caught.value.file, caught.value.tensor) == ("model 1", "layers.0.weight") and os.listdir(out) == []


def test_a_call_in_a_thread_reports_and_fails_as_any_other(files):
    """Threads are watched for the end of Python; what the caller gave and gets must not change by that."""
    seen, caught = [], []

    def stop(done, total):
        raise LookupError("stop")

    def work():
        hm.solve(files, progress=lambda done, total: seen.append((done, total)))
        try:
            hm.solve(files, progress=stop)
        except LookupError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen and seen[-1][0] == seen[-1][1] > 0 and str(caught[0]) == "stop"
    assert len(hm.sources._in_threads) == 0  # the traceback that is kept here must not keep the call
