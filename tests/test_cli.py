"""The command line: what it prints where, exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import families
from hypermerge_ext import cli, table

SHAPES = {
    "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "model.diffusion_model.middle_block.0.weight": (16, 16),
    "model.diffusion_model.out.2.bias": (8,),
}


def state(seed, dtype=np.float16):
    """One checkpoint: a common base, two hidden factors, noise."""
    base, one, two = (
        {name: np.random.default_rng(i).standard_normal(shape) for name, shape in SHAPES.items()} for i in range(3)
    )
    rng = np.random.default_rng(100 + seed)
    a, b = np.cos(2.0 * seed), np.sin(3.0 * seed)
    return {
        k: (base[k] + 0.3 * a * one[k] + 0.1 * b * two[k] + 0.02 * rng.standard_normal(SHAPES[k])).astype(dtype)
        for k in SHAPES
    }


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Names of four checkpoints in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    names = [f"m{i}.safetensors" for i in range(4)]
    for i, name in enumerate(names):
        save_file(state(i), name)
    return names


@pytest.fixture
def hyper(files, capsys):
    """Name of a hyper-model of the four."""
    assert cli.main(["solve", *files, "-o", "x.hyper.safetensors"]) == 0
    capsys.readouterr()
    return "x.hyper.safetensors"


def run(*arguments, **more):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "hypermerge_ext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Child processes start in another folder, yet find this very package."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(cli.__file__)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))


def refused(capsys, *arguments):
    """Runs a command that must be refused: exit 1, nothing on stdout, one line on stderr, which is returned."""
    before = {name: os.stat(name).st_mtime_ns for name in os.listdir()}
    assert cli.main(list(arguments)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hyper-merge: error: ") and err.count("\n") == 1
    assert {name: os.stat(name).st_mtime_ns for name in os.listdir()} == before
    return err


def misused(capsys, *arguments):
    """Runs a command that is a usage error: exit 2, with the reason on stderr, which is returned."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_solve_prints_a_table(files, capsys):
    assert cli.main(["solve", *files, "-o", "x.hyper.safetensors"]) == 0
    out, err = capsys.readouterr()
    for part in ("m0", "m3", "λ", "κ", "residual", "stored", "‖Δ‖", "+1.0000", "together", "loss", "wrote x.hyper"):
        assert part in out
    assert "\033" not in out and "error" not in err
    widths = {len(line) for line in out.splitlines() if line[:1] in "┌│├└"}
    assert len(widths) == 1


def test_solve_json_has_the_keys_of_the_metadata(files):
    done = run("solve", *files, "-o", "x.hyper.safetensors", "--json", "--verbose")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert {"version", "method", "base", "directions", "members", "explained_variance_ratio"} <= set(answer)
    assert {"loss", "total", "blocks", "gram"} <= set(answer) and len(answer["gram"]) == 4
    assert set(answer["members"][0]) >= {"name", "header_hash", "multipliers", "residual", "residual_stored", "norm"}
    assert "kernels" in done.stderr and "past the page cache" in done.stderr
    inspected = json.loads(run("inspect", "x.hyper.safetensors", "--json").stdout)
    assert inspected.pop("file")["name"].startswith("x") and inspected == answer


def test_options_of_solve_arrive(files, capsys):
    assert cli.main([
        "solve", *files, "-o", "x.hyper.safetensors", "--json", "--directions", "1", "--method", "als",
        "--base", files[0], "--weights", "1,2", "--weights", "3,4",
        "--include", "*middle*", "--include", "*out*", "--exclude", "*.bias",
        "--dtype", "fp32", "--hash", "--threads", "1", "--memory", "64MB",
    ]) == 0  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert answer["directions"] == 1 and answer["method"] == "als" and answer["base"]["kind"] == "file"
    assert answer["selection"]["include"] == ["*middle*", "*out*"] and answer["selection"]["exclude"] == ["*.bias"]
    assert [member["weight"] for member in answer["members"]] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert all(len(member["sha256"]) == 64 for member in answer["members"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_an_output_that_is_a_pipe_is_refused_at_once(files):
    """It was opened to see whose it is, which waited for somebody to write into it."""
    os.mkfifo("x.hyper.safetensors")
    os.mkfifo("map.svg")
    assert run("solve", *files, "-o", "y.hyper.safetensors").returncode == 0
    for arguments in (
        ("solve", *files, "-o", "x.hyper.safetensors"),
        ("merge", "y.hyper.safetensors", "--at", "0.5", "-o", "x.hyper.safetensors"),
        ("map", "y.hyper.safetensors", "-o", "map.svg"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and "choose another name" in done.stderr and done.stderr.count("\n") == 1
    assert stat.S_ISFIFO(os.stat("x.hyper.safetensors").st_mode) and stat.S_ISFIFO(os.stat("map.svg").st_mode)


def test_split_writes_the_base_apart(files, capsys):
    assert cli.main(["solve", *files, "-o", "x.hyper.safetensors", "--split"]) == 0
    base = "x.base.safetensors"
    assert set(os.listdir()) - set(files) == {base, "x.hyper.safetensors"} and base in capsys.readouterr().out
    assert cli.main(["inspect", base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == len(SHAPES)
    assert cli.main(["merge", "x.hyper.safetensors", "--at", "0.5", "-o", "y.safetensors"]) == 0
    capsys.readouterr()
    save_file(state(5), "z.base.safetensors")
    assert "z.base" in refused(capsys, "solve", *files, "-o", "z.hyper.safetensors", "--split")


def test_a_hyper_model_without_its_base_is_of_the_family_that_was_solved(tmp_path, monkeypatch, capsys):
    """Its own tensors are directions alone, by which no family is known."""
    monkeypatch.chdir(tmp_path)
    paths = [path.name for path in families.save(tmp_path, families.family(3, shapes=families.sd3()))]
    for split in ([], ["--split"]):
        assert cli.main(["solve", *paths, "-o", "x.hyper.safetensors", *split]) == 0
        assert cli.main(["inspect", "x.hyper.safetensors"]) == 0
        assert "x · family sd3 · " in capsys.readouterr().out


def test_models_may_follow_options(files, capsys):
    assert cli.main(["solve", files[0], "-o", "x.hyper.safetensors", "--json", *files[1:]]) == 0
    assert [member["name"] for member in json.loads(capsys.readouterr().out)["members"]] == ["m0", "m1", "m2", "m3"]


def test_inspect_a_checkpoint_and_a_merge(hyper, files, capsys):
    assert cli.main(["inspect", files[0]]) == 0
    out = capsys.readouterr().out
    assert "parameters" in out and "F16" in out and str(os.path.getsize(files[0]) // 1000) in out
    assert cli.main(["merge", hyper, "--at", "0.5", "-o", "y.safetensors"]) == 0
    assert "λ = +0.5, κ = +0" in capsys.readouterr().out
    assert cli.main(["inspect", "y.safetensors"]) == 0
    assert "hyper-merge" in capsys.readouterr().out
    assert cli.main(["inspect", hyper]) == 0
    out = capsys.readouterr().out
    assert "λ explains" in out and "m2" in out and "middle" in out


def test_compare(files, capsys):
    with open("copy.safetensors", "wb") as out, open(files[1], "rb") as original:
        out.write(original.read())
    assert cli.main(["compare", *files, "copy.safetensors", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"gram", "distance", "cosine", "duplicates"} <= set(answer) and answer["duplicates"] == [["m1", "copy"]]
    assert cli.main(["compare", *files, "copy.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "distance" in out and "cosine" in out and "m1 and copy are equal in every merged tensor" in out


def test_compare_of_many_lists_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [f"m{i:02}.safetensors" for i in range(table.MATRIX_LIMIT + 1)]
    for i, name in enumerate(names):
        save_file(state(i), name)
    assert cli.main(["compare", *names]) == 0
    assert "nearest" in capsys.readouterr().out


def test_project_and_recover(hyper, files, capsys):
    assert cli.main(["project", hyper, files[1], files[2], "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [entry["name"] for entry in models] == ["m1", "m2"]
    assert all(len(entry["multipliers"]) == 2 and 0 <= entry["residual"] < 1 for entry in models)
    assert cli.main(["project", hyper, files[1]]) == 0
    assert "m1" in capsys.readouterr().out

    mixed = {k: (0.25 * state(0, np.float32)[k] + 0.75 * state(2, np.float32)[k]) for k in SHAPES}
    save_file(mixed, "mix.safetensors")
    assert cli.main(["recover", "mix.safetensors", "--from", *files[:3], "--blocks", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["weights"] == pytest.approx([0.25, 0, 0.75], abs=0.01) and sum(answer["weights"]) == pytest.approx(1)
    assert answer["residual"] < 0.01 and answer["blocks"]
    assert cli.main(["recover", "mix.safetensors", "--from", *files[:3], "--blocks"]) == 0
    assert "+0.7" in capsys.readouterr().out
    assert cli.main(["recover", "mix.safetensors", "--from", *files[:3], "--free", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["weights"]) == 3


def test_values_may_begin_with_a_minus_sign(hyper):
    """argparse takes "-0.3,0.2" for an option; users do not."""
    for name, arguments in {
        "space": ["--at", "-0.3,0.2"],
        "equals": ["--at=-0.3,0.2"],
        "twice": ["--at", "-0.3", "--at", "0.2"],
        "blanks": ["--at", "-.3 0.2"],
    }.items():
        assert cli.main(["merge", hyper, *arguments, "-o", name]) == 0, name
    contents = {open(name, "rb").read() for name in ("space", "equals", "twice", "blanks")}
    assert len(contents) == 1
    assert cli.main(["merge", hyper, "--at", "-0.3,0.2", "--block", "*middle*=-1e-1,0", "-o", "block"]) == 0
    assert open("block", "rb").read() not in contents


def test_the_last_block_that_matches_wins(hyper):
    def merge(name, *blocks):
        assert cli.main(["merge", hyper, "--at", "0", *[x for b in blocks for x in ("--block", b)], "-o", name]) == 0
        from safetensors.numpy import load_file

        return load_file(name)

    middle = "model.diffusion_model.middle_block.0.weight"
    wanted = merge("a", "*=0.5")
    for i, blocks in enumerate((("*middle*=-0.9", "*=0.5"), ("*=0.5", "*middle*=-0.9", "*=0.5"))):
        assert np.array_equal(merge(f"b{i}", *blocks)[middle], wanted[middle])
    assert not np.array_equal(merge("c", "*=0.5", "*middle*=-0.9")[middle], wanted[middle])


def test_exact_merge_agrees_with_the_stored_directions(hyper, files):
    from safetensors.numpy import load_file

    merge = ["merge", hyper, "--at", "0.4,-0.2", "--dtype", "fp32"]
    assert cli.main([*merge, "-o", "stored.safetensors"]) == 0
    assert cli.main([*merge, "-o", "exact.safetensors", "--exact", *files]) == 0
    stored, exact = load_file("stored.safetensors"), load_file("exact.safetensors")
    assert all(stored[k].dtype == np.float32 and np.allclose(stored[k], exact[k], atol=5e-3) for k in SHAPES)


def test_usage_errors(hyper, files, capsys):
    assert "3 multipliers" in misused(capsys, "merge", hyper, "--at", "1,2,3", "-o", "y")
    assert "3 multipliers" in misused(capsys, "merge", hyper, "--at", "1", "--block", "*=1,2,3", "-o", "y")
    assert "GLOB" in misused(capsys, "merge", hyper, "--at", "1", "--block", "0.3", "-o", "y")
    assert "list of numbers" in misused(capsys, "merge", hyper, "--at", "a,b", "-o", "y")
    assert "finite" in misused(capsys, "merge", hyper, "--at", "nan", "-o", "y")
    assert "size" in misused(capsys, "compare", *files, "--memory", "lots")
    assert "whole number" in misused(capsys, "solve", *files, "-o", "y", "--directions", "0")
    assert "-o" in misused(capsys, "solve", *files)
    assert "--frob" in misused(capsys, "solve", *files, "-o", "y", "--frob")
    assert "unrecognized" in misused(capsys, "inspect", files[0], files[1])
    assert "whole number" in misused(capsys, "solve", *files, "-o", "y", "--rank", "4,0")
    misused(capsys, "frobnicate")
    misused(capsys)
    assert sorted(os.listdir()) == sorted([*files, hyper])


def test_what_is_no_name_of_an_output(hyper, files, capsys):
    """A name with a slash at its end was refused after the models had been read; packs got files called -1.safetensors;
    hosts take what is called .ckpt for a pickle."""
    os.mkdir("there")
    for command in (
        ("solve", *files), ("merge", hyper, "--at", "1"), ("lora", hyper, "--directions", "all"), ("axes", hyper, "--flip", "1"),
    ):  # fmt: skip
        for name in ("no/", "there/", ""):
            assert "not the name of a file" in misused(capsys, *command, "-o", name)
        assert "call it .safetensors" in misused(capsys, *command, "-o", "new.CKPT")
    assert os.listdir("there") == [] and sorted(os.listdir()) == sorted([*files, hyper, "there"])


def test_every_argument_says_what_it_is():
    for name, command in cli._parser()._subparsers._group_actions[0].choices.items():
        assert [action.dest for action in command._actions if not action.help] == [], name


def test_refusals_are_one_line(files, hyper, capsys):
    assert "absent.safetensors" in refused(capsys, "inspect", "absent.safetensors")
    assert "absent.safetensors" in refused(capsys, "solve", files[0], "absent.safetensors", "-o", "y.hyper.safetensors")
    assert "input" in refused(capsys, "solve", *files, "-o", files[1])
    assert "input" in refused(capsys, "solve", *files, "-o", files[1], "--force")
    assert "input" in refused(capsys, "merge", hyper, "--at", "1", "-o", hyper, "--force")
    assert "folder" in refused(capsys, "solve", *files, "-o", "no/such/folder/y.hyper.safetensors")
    assert "folder" in refused(capsys, "solve", *files, "-o", ".")
    assert "--directions 3" in refused(capsys, "solve", *files, "-o", "y.hyper.safetensors", "--directions", "4")
    assert "nothing.*" in refused(capsys, "solve", *files, "-o", "y.hyper.safetensors", "--include", "nothing.*")
    assert "nothing.*" in refused(capsys, "merge", hyper, "--at", "1", "--block", "nothing.*=1", "-o", "y.safetensors")
    assert "weights" in refused(capsys, "solve", *files, "-o", "y.hyper.safetensors", "--weights", "1,2")
    assert files[0] in refused(capsys, "merge", files[0], "--at", "1", "-o", "y.safetensors")
    with open("broken.safetensors", "wb") as broken:
        broken.write(b"\xff" * 100)
    assert "broken.safetensors" in refused(capsys, "compare", *files, "broken.safetensors")


def test_a_shape_that_differs(files, capsys):
    odd = state(9)
    odd["model.diffusion_model.middle_block.0.weight"] = np.zeros((4, 4), np.float16)
    save_file(odd, "odd.safetensors")
    assert "middle_block.0.weight" in refused(capsys, "solve", *files, "odd.safetensors", "-o", "y.hyper.safetensors")
    assert cli.main(["solve", *files, "odd.safetensors", "-o", "y.hyper.safetensors", "--common"]) == 0


def test_not_a_number(files, capsys):
    bad = state(9)
    bad["model.diffusion_model.middle_block.0.weight"][3, 4] = np.nan
    save_file(bad, "bad.safetensors")
    line = refused(capsys, "solve", *files, "bad.safetensors", "-o", "y.hyper.safetensors")
    assert "bad.safetensors" in line and "middle_block.0.weight" in line
    assert cli.main(["solve", *files, "bad.safetensors", "-o", "y.hyper.safetensors", "--allow-nonfinite"]) == 0


def test_only_our_own_files_are_replaced(files, hyper, capsys):
    assert cli.main(["solve", *files[:3], "-o", hyper]) == 0
    assert cli.main(["merge", hyper, "--at", "1", "-o", "y.safetensors"]) == 0
    assert cli.main(["merge", hyper, "--at", "0.5", "-o", "y.safetensors"]) == 0
    capsys.readouterr()
    save_file(state(7), "foreign.safetensors")
    with open("notes.txt", "w") as notes:
        notes.write("precious")
    for target in ("foreign.safetensors", "notes.txt"):
        assert "--force" in refused(capsys, "solve", *files, "-o", target)
        assert "force" in refused(capsys, "merge", hyper, "--at", "1", "-o", target)
        assert cli.main(["solve", *files, "-o", target, "--force"]) == 0
        capsys.readouterr()


def test_ctrl_c_leaves_nothing(files, monkeypatch, capsys):
    class Interrupting:
        """Stands for the progress bar and sends the signal while the core works."""

        def __init__(self, label):
            self.label = label

        def __enter__(self):
            return (lambda done, total: signal.raise_signal(signal.SIGINT)) if self.label == "writing" else None

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(cli, "Bar", Interrupting)
    assert cli.main(["solve", *files, "-o", "x.hyper.safetensors"]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err == "hyper-merge: cancelled; nothing was written\n"
    assert sorted(os.listdir()) == files


def test_ctrl_c_after_the_file_was_complete(files, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli._Run, "written", interrupt)
    assert cli.main(["solve", *files, "-o", "x.hyper.safetensors"]) == 130
    assert "complete" in capsys.readouterr().err and os.path.exists("x.hyper.safetensors")


def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    """A real signal to a real process in the midst of its work."""
    shape = (4096, 4096)
    names = []
    for i in range(3):
        names.append(str(tmp_path / f"big{i}.safetensors"))
        save_file({f"blocks.{k}.weight": np.full(shape, i + k, np.float16) for k in range(2)}, names[-1])
    output = str(tmp_path / "x.hyper.safetensors")
    child = subprocess.Popen(
        [sys.executable, "-m", "hypermerge_ext", "solve", *names, "-o", output, "--verbose"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "kernels" in child.stderr.readline()  # from here on it reads
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and out == "" and "cancelled; nothing was written" in err and "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, names))


def test_plain_ascii_where_the_terminal_cannot_do_more(files):
    done = run("solve", *files, "-o", "x.hyper.safetensors", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.isascii() and "+-" in done.stdout and "lambda" in done.stdout
    assert "?" not in done.stdout


def test_names_cannot_steer_the_terminal(files, capsys):
    os.rename(files[0], "evil\033[2J\n.safetensors")
    assert cli.main(["solve", "evil\033[2J\n.safetensors", *files[1:], "-o", "x.hyper.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "\033" not in out and "evil?[2J?" in out
    assert "\033" not in refused(capsys, "inspect", "absent\033[2J.safetensors")


def test_a_reader_that_goes_away(hyper):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "hypermerge_ext", "inspect", hyper, "--json"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.stderr == b"" and done.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_progress_bar_on_a_terminal_only(files):
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "hypermerge_ext", "compare", *files, "--json"], stdout=subprocess.PIPE, stderr=theirs
    )
    shown = os.read(ours, 100_000).decode()  # before the last writer closes: reading fails after that
    os.close(theirs)
    os.close(ours)
    assert "reading" in shown and "%" in shown and "left" in shown
    assert json.loads(done.stdout)["models"][0] == "m0"
    assert run("compare", *files, "--json").stderr == ""


def test_it_starts_at_once_and_needs_nothing(files):
    lean = "import sys; from hypermerge_ext.cli import main; main(['inspect', sys.argv[1]]); print(set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", lean, files[0]], capture_output=True, text=True, check=True)
    for heavy in ("numpy", "torch", "tqdm", "safetensors", "inspect"):
        assert f"'{heavy}'" not in done.stdout
    times = []
    for _ in range(5):
        begun = time.monotonic()
        assert run("--version").stdout.startswith("hyper-merge ")
        times.append(time.monotonic() - begun)
    assert min(times) < 0.2


def test_help_names_every_command():
    shown = run("--help").stdout
    for command in ("solve", "inspect", "compare", "project", "recover", "axes", "map", "lora", "merge"):
        assert command in shown
        assert run(command, "--help").returncode == 0


def test_bars_and_sizes():
    plain, rich = table.Style(False, False), table.Style(True, False)
    assert table.bar(0.5, plain, 10) == "#####....." and table.bar(1.0, plain, 4) == "####"
    assert table.bar(0, plain, 4) == "...."
    assert table.bar(0.5, rich, 10) == "█████░░░░░" and len(table.bar(0.337, rich, 10)) == 10
    assert table.size(999) == "999 B" and table.size(2_130_000_000) == "2.13 GB" and table.percent(None) == "-"
    wide = table.table(["名前", "x"], [["a", "1"], ["模型", "22"]], rich)
    assert "│ a    │  1 │" in wide
