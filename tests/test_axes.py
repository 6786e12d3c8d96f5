"""Axes that are renamed and turned round: the numbers, the names that a file may hold, and that no file is ever lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hypermerge_ext as hm
import oracle
from families import SHAPES, family, moving, save
from hypermerge_ext import cli, table
from hypermerge_ext.axes import axis_names
from live_models import blended, same, state_of

STYLE = table.Style(unicode=True, colour=False)


def make(folder: Path, name="x", dtypes="F16", count=5, directions=3, **options) -> Path:
    """A hyper-model of a small family; `options` are those of save and of solve's base."""
    path = folder / f"{name}.hyper.safetensors"
    base = options.pop("base", "mean")
    hm.solve(save(folder, family(count, dtypes=dtypes)), base, directions).save(path, **options)
    return path


@pytest.fixture
def path(tmp_path):
    return make(tmp_path)


def data(path: Path) -> bytes:
    """The data area."""
    return path.read_bytes()[8 + len(oracle.read(path).header) :]


def merged(hyper: hm.HyperModel, at, folder: Path, **options) -> oracle.Model:
    hyper.merge(at, folder / "merged.safetensors", force=True, **options)
    return oracle.read(folder / "merged.safetensors").model


def equal(one: oracle.Model, other: oracle.Model) -> bool:
    return list(one) == list(other) and all(one[name].same(other[name]) for name in one)


# ---- signs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["mean", "none", "file"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_only_signs_change(tmp_path, dtype, base):
    options = {"base": save(tmp_path, family(1, seed=9, dtypes=dtype), "base")[0]} if base == "file" else {"base": base}
    path = make(tmp_path, dtypes=dtype, base_low=base == "mean", **options)
    before, hyper = oracle.read(path), hm.load(path)
    inputs = sorted(tmp_path.glob("m*.safetensors"))
    blocks = {"*input_blocks*": (0.5, -2, 0), "*middle*": (0, 1, 0.5)}
    turned_blocks = {glob: (a, -b, -c) for glob, (a, b, c) in blocks.items()}
    expected = merged(hyper, (0.4, -1.3, 0.25), tmp_path, blocks=blocks)
    exact = merged(hyper, (0.4, -1.3, 0.25), tmp_path, exact=inputs)
    hyper.rename(flip=(2, 3))

    after = oracle.read(path)
    assert list(after.model) == list(before.model)
    for name, item in before.model.items():
        turned = name.startswith(("hypermerge.direction.2.", "hypermerge.direction.3."))
        signs = np.signbit(after.model[name].f64()) if item.dtype in oracle.FLOATS else None
        if turned:
            assert np.array_equal(signs, ~np.signbit(item.f64())), name
            assert np.array_equal(np.abs(after.model[name].f64()), np.abs(item.f64()))
        else:
            assert after.model[name].same(item), name
    for now, was in zip(hyper.members, before.document["members"]):
        a, b, c = was["multipliers"]
        assert now.multipliers == (a, -b, -c)
        assert (now.residual, now.residual_stored, now.norm) == (was["residual"], was["residual_stored"], was["norm"])
    without_members = [{**document, "members": None} for document in (before.document, after.document)]
    assert without_members[0] == without_members[1]
    assert {**before.metadata, "hypermerge": None} == {**after.metadata, "hypermerge": None}

    # The same blends lie at the multipliers with the other sign, in a file, from the inputs, and live.
    assert equal(expected, merged(hyper, (0.4, 1.3, -0.25), tmp_path, blocks=turned_blocks))
    assert equal(exact, merged(hyper, (0.4, 1.3, -0.25), tmp_path, exact=inputs))
    if base == "mean":
        state = state_of(path)
        hyper.bind(state).set(0.4, 1.3, -0.25)
        assert same(state, blended(path, (0.4, 1.3, -0.25), dtype))
        whole = merged(hyper, (0.4, 1.3, -0.25), tmp_path)
        assert all(whole[name].same(blended(path, (0.4, 1.3, -0.25), dtype)[name]) for name in moving(family(5)))


def test_of_a_low_rank_direction_one_factor_turns(tmp_path):
    """(−U) V = −(U V), to the last bit."""
    path, rng = make(tmp_path, dtypes="F32"), np.random.default_rng(0)
    file, name = oracle.read(path), "model.diffusion_model.input_blocks.1.1.proj.weight"
    model = {part: item for part, item in file.model.items() if not re.fullmatch(rf"hypermerge\..*\.{re.escape(name)}", part)}
    for k in (1, 2, 3):
        rows, columns = SHAPES[name]
        for factor, shape in (("lora_up", (rows, 4)), ("lora_down", (4, columns))):
            model[f"hypermerge.direction.{k}.{name}.{factor}"] = oracle.tensor(0.1 * rng.standard_normal(shape), "F16")
    oracle.write(path, model, file.metadata)
    hyper = hm.load(path)
    expected = merged(hyper, (0.4, -1.3, 0.25), tmp_path)
    hyper.rename(flip=[2])
    after = oracle.read(path).model
    assert list(after) == list(model)
    for part, item in model.items():
        now = after[part].f64()
        turned = part.startswith("hypermerge.direction.2.") and not part.endswith(".lora_down")
        assert np.array_equal(now, -item.f64() if turned else item.f64()), part
    assert equal(expected, merged(hyper, (0.4, 1.3, 0.25), tmp_path))


def test_turned_twice_is_what_it_was(path, tmp_path):
    before = oracle.read(path)
    area = data(path)
    hyper = hm.load(path)
    hyper.rename(flip=[1, 3])
    assert data(path) != area
    hyper.rename(flip=[3, 1])
    assert data(path) == area and oracle.read(path).metadata == before.metadata
    content = path.read_bytes()
    hyper.rename(flip=[2])
    hyper.rename({}, [2])
    assert path.read_bytes() == content


def test_a_multiplier_of_zero_stays_zero(tmp_path):
    models = family(4, dtypes="F32")
    for name, item in models[0].items():  # the mean of the four: all of its multipliers are 0, or nearly so
        models[0][name] = oracle.tensor(sum(m[name].f64() for m in models[1:]) / 3, "F32")
    hm.solve(save(tmp_path, models), base=tmp_path / "m0.safetensors").save(tmp_path / "x.hyper.safetensors")
    hyper = hm.load(tmp_path / "x.hyper.safetensors")
    assert hyper.members[0].multipliers == (0, 0) and hyper.members[0].norm == 0
    hyper.rename(flip=[1, 2])
    assert [str(c) for c in hyper.members[0].multipliers] == ["0", "0"]


def test_projections_and_hashes_follow(tmp_path):
    path = make(tmp_path, hash=True)
    hyper = hm.load(path)
    newcomer = save(tmp_path, family(6), "new")[5]
    before = hyper.project(newcomer)
    hyper.rename(flip=[1])
    after = hyper.project(newcomer)
    assert after.multipliers[0] == pytest.approx(-before.multipliers[0], rel=1e-9)
    assert after.multipliers[1:] == pytest.approx(before.multipliers[1:], rel=1e-9)
    assert after.residual == pytest.approx(before.residual, rel=1e-9)
    file = oracle.read(path)
    assert file.metadata["sshs_model_hash"] == file.data_sha256


def test_what_was_solved_and_saved_is_renamed_as_it_was_saved(tmp_path):
    hyper = hm.solve(save(tmp_path, family(4)))
    with pytest.raises(hm.ArgumentError, match="save it first"):
        hyper.rename({1: "a"})
    hyper.save(tmp_path / "x.hyper.safetensors")
    expected, was = merged(hyper, (0.5, 0.25), tmp_path), hyper.members
    hyper.rename({1: "a"}, flip=[1])
    assert hyper.axes == ["a", None] and hyper.members[0].multipliers[0] == -was[0].multipliers[0]
    assert equal(expected, merged(hyper, (-0.5, 0.25), tmp_path))
    assert hyper.document == oracle.read(tmp_path / "x.hyper.safetensors").document


def test_a_live_blend_keeps_the_axes_it_was_bound_with(path):
    hyper = hm.load(path)
    state = state_of(path)
    live = hyper.bind(state)
    expected = blended(path, (0.4, -0.2, 0), "F16")
    hyper.rename(flip=[1])
    live.set(0.4, -0.2)
    assert same(state, expected)


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_are_kept_in_the_file(path, tmp_path):
    hyper = hm.load(path)
    assert hyper.axes == [None] * 3 and "axes" not in hyper.document
    area = data(path)
    hyper.rename({1: "  warmth ", 3: 'a "b" \\ ü 色'})
    assert hyper.axes == hm.load(path).axes == ["warmth", None, 'a "b" \\ ü 色']
    assert oracle.read(path).document["axes"] == [{"name": "warmth"}, {"name": None}, {"name": 'a "b" \\ ü 色'}]
    assert data(path) == area and hm.inspect(path)["axes"][0] == {"name": "warmth"}
    hyper.rename({2: "fill", 1: None})
    assert hyper.axes == [None, "fill", 'a "b" \\ ü 色']
    hyper.rename(["x", "", None])
    assert hyper.axes == ["x", None, None]
    copy = tmp_path / "copy.hyper.safetensors"
    hyper.rename({1: "copied"}, path=copy)
    assert hyper.axes == ["x", None, None] and hm.load(copy).axes == ["copied", None, None]
    hyper.rename(hm.load(copy).axes, path=path)  # its own file, by name
    assert hyper.axes == hm.load(path).axes == ["copied", None, None]
    hyper.rename({1: ""})
    assert "axes" not in oracle.read(path).document


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\tb", "\x1b[31mred", "a\0b", "\x7f", "\x85", "\u2028", "\u202eevil", "\u2066", "\u200f", "\ufeff",
     "\uffff", "x" * 65, "é" * 65, "🙂" * 65, "x" * 100_000],
)  # fmt: skip
def test_what_is_no_name_is_refused_and_not_read(path, name, snapshot):
    before = snapshot(path.parent)
    with pytest.raises(hm.ArgumentError, match="axis 2|an axis") as caught:
        hm.load(path).rename({2: name})
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value) and len(str(caught.value)) < 600
    assert snapshot(path.parent) == before
    document = oracle.read(path).document
    assert axis_names({**document, "axes": [{"name": "a"}, {"name": name}, {}]}) == ["a", None, None]


@pytest.mark.parametrize("name", ["x" * 64, "🙂" * 64, "a\u00a0b", "\u200d", "$x$ <b>&amp;", "'", '"', "\U0001f9ff"])
def test_what_is_a_name_comes_back(path, name):
    hyper = hm.load(path)
    hyper.rename({2: name})
    assert hyper.axes == hm.load(path).axes == [None, name, None]


def test_both_parts_agree_on_what_is_a_name(path, tmp_path):
    """The compiled part refuses what the reading part does not show, and nothing else."""
    hyper, document = hm.load(path), oracle.read(path).document
    edges = [0x1F, 0x20, 0x7E, 0x7F, 0x9F, 0xA0, 0x200D, 0x200E, 0x2010, 0x2027, 0x2028, 0x202E, 0x202F, 0x2065, 0x2066, 0x2069]
    edges += [0x206A, 0xFEFE, 0xFEFF, 0xFF00, 0xFFF8, 0xFFF9, 0xFFFB, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x10FFFD]
    for code in edges:
        name = f"a{chr(code)}b"
        shown = axis_names({**document, "axes": [{"name": name}] * 3})[0] == name
        try:
            hyper.rename({1: name}, path=tmp_path / "out.hyper.safetensors")
        except hm.ArgumentError:
            assert not shown, hex(code)
        else:
            assert shown, hex(code)


@pytest.mark.parametrize(
    "axes", [None, 1, "abc", [], [{"name": "a"}], {"1": "a"}, [1, 2, 3], [{"name": 7}, {"name": []}, None]]
)
def test_documents_that_say_nonsense_of_their_axes(path, axes):
    file = oracle.read(path)
    oracle.write(path, file.model, {**file.metadata, "hypermerge": json.dumps({**file.document, "axes": axes})})
    hyper = hm.load(path)
    assert hyper.axes == [None] * 3 and "λ" in table.hyper(hyper.document, STYLE)
    hyper.rename({2: "b"}, flip=[1])
    assert hyper.axes == [None, "b", None]


def test_what_a_later_version_wrote_is_kept(path):
    file = oracle.read(path)
    document = {**file.document, "axes": [{"range": [-2, 2], "name": "a"}, {}, {"unit": None}], "later": {"x": [1e-300, True]}}
    oracle.write(path, file.model, {**file.metadata, "hypermerge": json.dumps(document), "note": "x"})
    hm.load(path).rename({2: "b", 1: None})
    file = oracle.read(path)
    expected = [{"range": [-2, 2], "name": None}, {"name": "b"}, {"unit": None, "name": None}]
    assert file.document == {**document, "axes": expected} and file.metadata["note"] == "x"


@pytest.mark.parametrize(
    "names, flip, reason",
    [({0: "a"}, (), "no axis 0"), ({4: "a"}, (), "no axis 4"), ({1: "a"}, (4,), "no axis 4"), (None, (-1,), "no axis -1"),
     (["a"], (), "3 names"), ("abc", (), "3 names"), (["a", "b", "a"], (), "1 and 3"), ({"1": "a"}, (), "no axis 1")],
)  # fmt: skip
def test_axes_that_are_not_there(path, snapshot, names, flip, reason):
    before = snapshot(path.parent)
    with pytest.raises(hm.ArgumentError, match=reason):
        hm.load(path).rename(names, flip)
    with pytest.raises(TypeError):
        hm.load(path).rename({1: 5})
    assert snapshot(path.parent) == before


def test_a_document_with_no_room_left(path, snapshot):
    file = oracle.read(path)
    text = json.dumps({**file.document, "filler": ""}, separators=(",", ":"))
    filler = "x" * ((4 << 20) - len(text) - 30)
    oracle.write(path, file.model, {"hypermerge": json.dumps({**file.document, "filler": filler}, separators=(",", ":"))})
    before = snapshot(path.parent)
    with pytest.raises(hm.ArgumentError, match="no room"):
        hm.load(path).rename(["x" * 64, "y" * 64, "z" * 64])
    assert snapshot(path.parent) == before


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_split_base_stays_where_it_is(tmp_path):
    path = make(tmp_path, split=True)
    base = tmp_path / "x.base.safetensors"
    content, expected = base.read_bytes(), merged(hm.load(path), (0.5, 0.25), tmp_path)
    hyper = hm.load(path)
    hyper.rename({1: "a"}, flip=[1])
    assert base.read_bytes() == content and hyper.base["name"] == base.name
    assert equal(expected, merged(hyper, (-0.5, 0.25), tmp_path))
    with pytest.raises(hm.ArgumentError, match="input"):
        hyper.rename(flip=[1], path=base, force=True)
    (tmp_path / "else").mkdir()
    base.rename(tmp_path / "else" / base.name)
    hm.load(path).rename({2: "b"})  # which needs no base
    assert hm.load(path, [tmp_path / "else"]).axes == ["a", "b", None]
    assert equal(expected, merged(hm.load(path, [tmp_path / "else"]), (-0.5, 0.25), tmp_path))


def test_links_are_followed(path, tmp_path):
    (tmp_path / "there").mkdir()
    real = tmp_path / "there" / "real.hyper.safetensors"
    path.rename(real)
    path.symlink_to(real)
    hyper = hm.load(path)
    hyper.rename({1: "a"})
    assert path.is_symlink() and hm.load(real).axes == hyper.axes == ["a", None, None]
    assert os.listdir(tmp_path / "there") == [real.name]


def test_a_file_that_was_replaced_meanwhile_is_not_overwritten(path, tmp_path):
    hyper, other = hm.load(path), make(tmp_path, "other", count=3, directions=1)
    os.replace(other, path)
    content = path.read_bytes()
    for target in (None, path):
        with pytest.raises(hm.Error, match="replaced"):
            hyper.rename({1: "a"}, path=target)
    assert path.read_bytes() == content

    def replace(done, total):  # and while it is being read
        if not os.path.exists(tmp_path / "newer"):
            (tmp_path / "newer").write_bytes(content)
            os.replace(tmp_path / "newer", path)
            (tmp_path / "newer").touch()

    hyper = hm.load(path)
    with pytest.raises(hm.Error, match="replaced"):
        hyper.rename({1: "a"}, progress=replace)
    assert path.read_bytes() == content


def test_a_file_that_changes_is_noticed(path):
    hyper = hm.load(path)
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))
    content = path.read_bytes()
    with pytest.raises(hm.Error, match="changed"):
        hyper.rename({1: "a"})
    assert path.read_bytes() == content


def test_cancelled_it_leaves_the_old_file(path, snapshot):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    before, hyper = snapshot(path.parent), hm.load(path)
    for target in (None, path.parent / "new.hyper.safetensors"):
        with pytest.raises(Stop):
            hyper.rename({1: "a"}, flip=[1], path=target, progress=stop)
    assert snapshot(path.parent) == before and hyper.axes == [None] * 3
    hyper.rename({1: "a"})
    assert hyper.axes == ["a", None, None]


def test_foreign_files_are_replaced_only_by_force(path, tmp_path):
    foreign = tmp_path / "notes.txt"
    foreign.write_text("precious")
    with pytest.raises(hm.ArgumentError, match="force"):
        hm.load(path).rename(flip=[1], path=foreign)
    assert foreign.read_text() == "precious"
    hm.load(path).rename({1: "a"}, path=foreign, force=True)
    assert hm.load(foreign).axes == ["a", None, None]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A hyper-model that takes a while to write."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    states = [{f"layers.{i}": rng.standard_normal((1024, 1024)).astype(np.float32) for i in range(4)} for _ in range(3)]
    hm.solve(states).save(folder / "x.hyper.safetensors")
    return folder / "x.hyper.safetensors"


def test_killed_at_any_moment_it_leaves_the_old_file_or_the_new(large, tmp_path, environment):
    path = tmp_path / "x.hyper.safetensors"
    path.write_bytes(large.read_bytes())
    hm.load(path).rename({1: "old"})
    command = [sys.executable, "-m", "hypermerge_ext", "axes", path.name, "--flip", "1", "--threads", "1", "--memory", "16MiB"]
    seen = set()
    for delay in (0, 0.005, 0.01, 0.02, 0.04):
        area, old = data(path), hm.load(path).axes
        child = subprocess.Popen([*command, "--name", f"1={delay}"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while child.poll() is None and len(os.listdir(tmp_path)) < 2 and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(delay)
        child.kill()
        child.wait()
        now = hm.load(path).axes
        assert now in (old, [str(delay), None]) and (data(path) == area) == (now == old)
        seen.add(now == old)
    assert True in seen  # some were killed in time
    hm.load(path).rename({1: "last"})
    assert os.listdir(tmp_path) == [path.name]


def test_memory_does_not_grow_with_the_file(large, tmp_path, peak_memory, path):
    small = peak_memory("axes", path, "--flip", "1", "--memory", "16MiB", "--threads", "2", cwd=tmp_path)
    copy = tmp_path / "large.hyper.safetensors"
    copy.write_bytes(large.read_bytes())
    much = peak_memory("axes", copy, "--flip", "1", "--memory", "16MiB", "--threads", "2", cwd=tmp_path)
    assert copy.stat().st_size > 48e6 and much - small < 24 << 20


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def at(path, monkeypatch):
    """The folder of the hyper-model is the current one."""
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("NO_COLOR", "1")
    return path


def test_axes_are_shown(at, capsys):
    before = at.read_bytes()
    assert cli.main(["axes", at.name]) == 0
    out, err = capsys.readouterr()
    members = hm.load(at).members
    lowest = min(members, key=lambda member: member.multipliers[1])
    line = next(line for line in out.splitlines() if "2 κ" in line)
    assert lowest.name in line and f"{lowest.multipliers[1]:+.2f}" in line and err == ""
    assert cli.main(["axes", at.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"axes": [{"name": None}] * 3, "directions": 3}
    assert at.read_bytes() == before


def test_axes_are_changed(at, capsys):
    first = hm.load(at).members[0].multipliers
    assert cli.main(["axes", at.name, "--name", "1=cold = warm", "--name", "κ=fill", "--flip", "1", "--flip", "1"]) == 0
    out = capsys.readouterr().out
    assert "cold = warm" in out and "fill" in out and f"wrote {at.name}" in out
    hyper = hm.load(at)
    assert hyper.axes == ["cold = warm", "fill", None] and hyper.members[0].multipliers == (-first[0], *first[1:])
    assert cli.main(["inspect", at.name]) == 0
    out = capsys.readouterr().out
    assert "λ cold = warm" in out and "κ fill" in out
    assert cli.main(["axes", at.name, "--name", "1=", "-o", "copy.hyper.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["axes"] == [{"name": None}, {"name": "fill"}, {"name": None}]
    assert hm.load(at).axes[0] == "cold = warm" and hm.load("copy.hyper.safetensors").axes[0] is None
    assert cli.main(["merge", at.name, "--at", "0.5", "-o", "merged.safetensors"]) == 0
    assert "λ cold = warm = +0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, reason",
    [(["--flip", "4"], "has 3 axes"), (["--name", "0=a"], "has 3 axes"), (["--name", "a"], "K=NAME"), (["--flip", "x"], "axis"),
     (["-o", "y.hyper.safetensors"], "nothing"), (["--name", "λ"], "K=NAME"), (["--name", "q=a"], "axis")],
)  # fmt: skip
def test_misuse(at, capsys, snapshot, arguments, reason):
    before = snapshot(at.parent)
    with pytest.raises(SystemExit) as left:
        cli.main(["axes", at.name, *arguments])
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == "" and reason in err and snapshot(at.parent) == before


def test_refusals(at, refused):
    (at.parent / "notes.txt").write_text("precious")
    assert "both be called" in refused(at.parent, "axes", at.name, "--name", "1=a", "--name", "2=a")
    assert "shown" in refused(at.parent, "axes", at.name, "--name", "1=a\x1b[2J")
    assert "--force" in refused(at.parent, "axes", at.name, "--flip", "1", "-o", "notes.txt")
    assert "not a hyper-model" in refused(at.parent, "axes", "m0.safetensors", "--flip", "1")
    assert "is the number" not in refused(at.parent, "axes", "missing.hyper.safetensors")


def test_a_linked_base_is_named_where_the_copy_needs_it(tmp_path, cli):
    make(tmp_path, split=True)
    (tmp_path / "else").mkdir()
    done = cli("axes", "x.hyper.safetensors", "--flip", "1", "-o", "else/y.hyper.safetensors", cwd=tmp_path)
    assert done.returncode == 0 and "x.base.safetensors" in done.stderr
    done = cli("axes", "x.hyper.safetensors", "--flip", "1", "-o", "y.hyper.safetensors", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""


def test_long_names_do_not_break_tables(path):
    hyper = hm.load(path)
    hyper.rename({1: "色" * 64, 2: "x" * 64})
    shown = table.hyper(hyper.document, STYLE)
    assert max(map(table._width, shown.splitlines())) < 140 and "x" * 10 in shown and "色色…" in shown
    assert "x" * 64 in table.axes(hyper.document, STYLE)
    plain = table.hyper(hyper.document, STYLE._replace(unicode=False))
    assert plain.isascii()


def test_models_without_axes(tmp_path):
    equal_models = family(1) * 3
    hm.solve(save(tmp_path, equal_models)).save(tmp_path / "x.hyper.safetensors")
    hyper = hm.load(tmp_path / "x.hyper.safetensors")
    assert hyper.axes == [] and "no axes" in table.axes(hyper.document, STYLE)
    with pytest.raises(hm.ArgumentError, match="there is none"):
        hyper.rename({1: "a"})
    hyper.rename()
    assert hyper.axes == []
