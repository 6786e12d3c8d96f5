"""The soak itself, for some seconds: that it runs, and that it sees what it looks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import soak

SOAK = Path(soak.__file__)


def test_a_few_rounds(environment, tmp_path):
    command = [sys.executable, "-P", str(SOAK)] if sys.version_info >= (3, 11) else [sys.executable, str(SOAK)]
    command += ["--seconds", "3", "--sets", "60", "--scenarios", "5", "--folder", str(tmp_path)]
    paths = f"{environment['PYTHONPATH']}:{SOAK.parent}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**environment, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("well: ") and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bath(tmp_path):
    """A soak of one scenario, after its first round."""
    made = soak.Soak(tmp_path, seed=1, sets=8, scenarios=1)
    made.round(made.scenarios[0])
    assert made.wrong == [] and made.compared > 5
    return made


def test_it_sees_another_result(bath):
    scenario = bath.scenarios[0]
    scenario.points[0] = [value + 1 for value in scenario.points[0]]
    bath.round(scenario)
    assert any("blend 0 differs" in line for line in bath.wrong)
    assert any("merged file differs" in line for line in bath.wrong)


def test_it_sees_open_files(bath, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(bath, "round", lambda scenario: kept.append(open(scenario.paths[0], "rb")))
    bath.run(seconds=0)
    for file in kept:
        file.close()
    assert any("open files went from" in line for line in bath.wrong)


def test_it_sees_memory_grow(bath, monkeypatch):
    sizes = iter(range(0, 1 << 40, 1 << 20))
    monkeypatch.setattr(soak, "resident", lambda: next(sizes))
    monkeypatch.setattr(bath, "round", lambda scenario: None)
    bath.run(seconds=60)
    assert bath.wrong and "resident memory grew" in bath.wrong[0]
