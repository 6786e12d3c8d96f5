"""A short campaign of faults, a few rounds of each (HM_FAULT_ROUNDS); campaign.py runs a long one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from campaign import FAULTS, SEED, bring_about, rounds_of  # noqa: E402  after the path
from ground import Ground  # noqa: E402

ROUNDS = int(os.environ.get("HM_FAULT_ROUNDS", "2"))


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    return Ground(tmp_path_factory.mktemp("faults"), megabytes=3, measured=1)


@pytest.mark.parametrize("name", FAULTS)
def test_survives(ground, name):
    count = bring_about(ground, FAULTS[name], 0, rounds_of(FAULTS[name], ROUNDS), SEED)
    assert not count.found, "\n".join(count.found)
    if count.skipped:
        pytest.skip(f"NOT TRIED: {', '.join(count.skipped)}")
    assert count.tried > 0
