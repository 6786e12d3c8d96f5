"""The portable kernels give what the fast ones give: the same bytes in merges, the same Gram to rounding."""

from __future__ import annotations

import json

import numpy as np
import pytest

import oracle
from families import family, save

PORTABLE = {"HM_CPU": "portable"}


def test_the_environment_chooses(cli, tmp_path):
    paths = save(tmp_path, family(2))
    assert "kernels: portable" in cli("compare", *paths, "--verbose", env=PORTABLE).stderr
    with open("/proc/cpuinfo") as source:
        flags = source.read().split()
    wanted = "avx2" if {"avx2", "fma", "f16c"} <= set(flags) else "portable"
    assert f"kernels: {wanted}" in cli("compare", *paths, "--verbose").stderr


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64"])
def test_merges_are_the_same_bytes(cli, tmp_path, dtype):
    paths = save(tmp_path, family(4, seed=71, dtypes=dtype, delta=0.2))
    assert cli("solve", *paths, "-o", "x.hyper.safetensors", cwd=tmp_path).returncode == 0
    for asked in ((), ("--dtype", "fp16"), ("--dtype", "bf16"), ("--dtype", "fp32")):
        hashes = set()
        for name, env in (("fast", {}), ("portable", PORTABLE)):
            arguments = ("merge", "x.hyper.safetensors", "--at", "0.3,-1.7", "-o", f"{name}.safetensors", *asked)
            assert cli(*arguments, env=env, cwd=tmp_path).returncode == 0
            hashes.add(oracle.read(tmp_path / f"{name}.safetensors").data_sha256)
        assert len(hashes) == 1


def test_gram_and_solution_agree(cli, tmp_path):
    paths = save(tmp_path, family(9, seed=72, dtypes=("F16", "BF16", "F32")))
    found = []
    for env in ({}, PORTABLE):
        done = cli("solve", *paths, "-o", "x.hyper.safetensors", "--json", "--directions", "3", env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append((json.loads(done.stdout), oracle.read(tmp_path / "x.hyper.safetensors")))
    (fast, first), (portable, second) = found
    gram = np.array(fast["gram"])
    assert np.array(portable["gram"]) == pytest.approx(gram, abs=1e-7 * np.abs(gram).max())
    assert portable["loss"] == pytest.approx(fast["loss"], abs=1e-6 * fast["total"])
    for one, other in zip(fast["members"], portable["members"]):
        assert one["multipliers"] == pytest.approx(other["multipliers"], abs=1e-5)
        assert one["residual_stored"] == pytest.approx(other["residual_stored"], abs=1e-5)
    for name, item in first.model.items():
        numbers, others = item.f64(), second.model[name].f64()
        step = 2 * oracle.STEP[item.dtype] if item.dtype in oracle.STEP else 0
        assert np.abs(numbers - others).max() <= (step + 1e-5) * np.abs(numbers).max()
