"""Random families and globs: hyper-merge against the oracle and against Python's own fnmatch."""

from __future__ import annotations

import json
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import hypermerge_ext as hm
import oracle
from families import moving, save
from oracle import tensor

settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("suite")

NAMES = st.text("abxyz019._-", min_size=1, max_size=12).map(lambda text: "net." + text)
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple) | st.sampled_from(
    [(), (0,), (1,), (4097,), (129, 33), (3, 1, 1367)]
)
TYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2"])


@st.composite
def families(draw):
    """A few models of random names and shapes, each with its own type."""
    shapes = draw(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=6))
    count = draw(st.integers(2, 7))
    dtypes = draw(st.lists(TYPES, min_size=count, max_size=count))
    delta = draw(st.sampled_from([1.0, 0.03, 0.001]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return [
        {name: tensor(base[name] + delta * rng.standard_normal(shapes[name]), dtype) for name in shapes}
        for dtype in dtypes
    ]


@settings(max_examples=60)
@given(families(), st.data())
def test_random_families(models, data):
    names = sorted(models[0])
    include = data.draw(st.lists(st.sampled_from(["*", "net.[a-m]*", "*.*[!0-9]", "net.?*"]), max_size=2), "include")
    exclude = data.draw(st.lists(st.sampled_from(["*0*", "*_*", "net.a*"]), max_size=2), "exclude")
    idle = [glob for glob in (*include, *exclude) if not any(fnmatchcase(name, glob) for name in names)]
    chosen = [name for name in names if not include or any(fnmatchcase(name, glob) for glob in include)]
    chosen = [name for name in chosen if not any(fnmatchcase(name, glob) for glob in exclude)]
    chosen = [name for name in chosen if models[0][name].stored.size]
    weights = data.draw(
        st.none() | st.lists(st.floats(0.05, 20), min_size=len(models), max_size=len(models)), "weights"
    )
    base = data.draw(st.sampled_from(["mean", "none"]), "base")
    with tempfile.TemporaryDirectory() as folder:
        paths = save(Path(folder), models)
        options = {"base": base, "weights": weights, "include": include, "exclude": exclude}
        if idle or not chosen:
            with pytest.raises(hm.Error):
                hm.solve(paths, **options)
            return
        rows = oracle.stacked(models, chosen)
        truth = oracle.solve(rows, base, weights=weights)
        ranked = truth.spectrum / max(truth.spectrum[0], 1e-300)
        assume(not ((ranked > 1e-11) & (ranked < 1e-7)).any())  # else the rank is a matter of opinion
        hyper = hm.solve(paths, **options)
        document = hyper.document
        assert document["directions"] == truth.multipliers.shape[1]
        assert np.abs(np.array(document["spectrum"]) - truth.spectrum).max() <= 1e-6 * truth.spectrum[0] + 1e-300
        assert np.array(document["gram"]) == pytest.approx(truth.gram, abs=1e-6 * np.abs(truth.gram).max() + 1e-300)
        assert document["loss"] == pytest.approx(truth.loss, abs=1e-6 * truth.total)
        found = np.array([member["multipliers"] for member in document["members"]]).reshape(len(models), -1)
        for k in np.flatnonzero(truth.gaps > 1e-3):
            others = np.delete(np.sort(np.abs(truth.multipliers[:, k])), -1)
            if others.max(initial=0) < 1 - 1e-4:  # two equal largest ones leave the sign open
                assert found[:, k] == pytest.approx(truth.multipliers[:, k], abs=1e-5 / truth.gaps[k])

        hyper.save(Path(folder) / "x.hyper.safetensors")
        file = oracle.read(Path(folder) / "x.hyper.safetensors")
        at = data.draw(st.lists(st.floats(-2, 2, width=32), max_size=document["directions"]), "at")
        hm.load(Path(folder) / "x.hyper.safetensors").merge(at, Path(folder) / "y.safetensors")
        out = oracle.read(Path(folder) / "y.safetensors").model
        for name in set(chosen) & set(moving(models)):
            directions = [file.direction(k + 1, name) for k in range(document["directions"])]
            base_tensor = file.model.get(name)
            wanted = oracle.blend(base_tensor, file.low(name), directions, at, out[name].dtype)
            assert out[name].same(wanted), name


# ---- globs ----------------------------------------------------------------------------------------------------------

LETTERS = "ab.-]![*?^\\é1"


@settings(max_examples=400)
@given(
    st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    st.text(LETTERS, max_size=7),
)
@example(["a-", "a]", "b"], "[a-]")
@example(["]", "a"], "[]]")
@example(["!", "a"], "[!]")
@example(["!", "a"], "[!!]")
@example(["[", "[a", "a"], "[a")
@example(["b", "a"], "[b-a]")
@example(["-", "a", "b"], "[a--]")
@example(["a", "-", "b", "."], "[--b]")
@example(["^", "a"], "[^a]")
@example(["\\", "a"], "[\\a]")
@example(["é", "a"], "?")
@example(["é", "a", "b"], "[b-é]")
@example(["aaaaaa", "aaaaab"], "*a*a*a*a*b")
def test_globs_are_those_of_fnmatch(names, glob):
    """Tensor i moves by 2^i, so that the total tells exactly which tensors were merged."""
    models = [{name: np.array([step * 2.0**i], np.float32) for i, name in enumerate(names)} for step in (0, 1)]
    expected = sum(4**i for i, name in enumerate(names) if fnmatchcase(name, glob))
    if expected == 0:
        with pytest.raises(hm.Error, match="matches|glob"):
            hm.solve(models, include=[glob])
    else:
        assert hm.solve(models, include=[glob]).total == expected / 2
    if 0 < expected < sum(4**i for i in range(len(names))):
        assert hm.solve(models, exclude=[glob]).total == (sum(4**i for i in range(len(names))) - expected) / 2


# ---- numbers as text ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hyper_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    hm.solve([{"layers.0.weight": np.array([x, y], np.float32)} for x, y in ((0, 1), (2, 5), (-3, 1))]).save(
        folder / "x.hyper.safetensors"
    )
    return folder / "x.hyper.safetensors"


@settings(max_examples=100)
@given(at=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2))
@example(at=[5e-324, -0.0])
@example(at=[0.1, 1 / 3])
@example(at=[1e6, -1e6])
def test_multipliers_in_a_recipe_come_back_to_the_last_bit(hyper_path, at):
    out = hyper_path.parent / "y.safetensors"
    hm.load(hyper_path).merge(at, out)
    recipe = json.loads(oracle.read(out).metadata["sd_merge_recipe"])
    assert recipe["at"] == at  # equality of doubles; json.loads makes an int of -0


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 9))
def test_the_document_comes_back_to_the_last_bit(seed, count):
    rng = np.random.default_rng(seed)
    models = [{"layers.0.weight": rng.standard_normal(50).astype(np.float32)} for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        hyper = hm.solve(models)
        before = hyper.document
        hyper.save(Path(folder) / "x.hyper.safetensors")
        after = hm.load(Path(folder) / "x.hyper.safetensors").document
        for member in after["members"]:
            assert member.pop("residual_stored") >= 0
        assert after == before


@settings(max_examples=30)
@given(value=st.floats(-1e6, 1e6))
def test_a_multiplier_typed_on_the_command_line_is_the_same_number(hyper_path, value):
    from hypermerge_ext import cli

    one, two = hyper_path.parent / "one.safetensors", hyper_path.parent / "two.safetensors"
    hm.load(hyper_path).merge([value, 0.5], one)
    assert cli.main(["merge", str(hyper_path), "--at", f"{value!r},0.5", "-o", str(two)]) == 0
    assert oracle.read(one).data_sha256 == oracle.read(two).data_sha256
