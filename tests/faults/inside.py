"""Brings faults about inside a host: a process of its own, whose death is what the campaign watches for.

    python inside.py FOLDER FAULT SEED FIRST COUNT      prints one line of JSON per round
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent))

from ground import FAULTS, Found, Ground, Skipped  # noqa: E402  after the path


def _held(before: tuple[int, int] | None) -> tuple[int, int]:
    """Descriptors and threads of this process.  The system shows a thread that was joined for a moment longer."""
    gc.collect()
    time.sleep(0.05 if before is None else 0)
    until = time.monotonic() + 2
    while True:
        held = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        if before is None or not _more(held, before) or time.monotonic() > until:
            return held
        time.sleep(0.01)


def _more(held: tuple[int, int], before: tuple[int, int]) -> bool:
    return any(now > then for now, then in zip(held, before))


def round_of(ground: Ground, name: str, seed: str) -> dict[str, str]:
    """One round: {"survived": what was found afterwards}, {"found": what was broken} or {"skipped": why}."""
    try:
        return {"survived": FAULTS[name].run(ground, Random(seed))}
    except Skipped as reason:
        return {"skipped": str(reason)}
    except Found as found:
        return {"found": str(found)}
    except BaseException:
        return {"found": traceback.format_exc()}


def main() -> None:
    folder, module, name, seed, first, count = sys.argv[1:]
    importlib.import_module(module)
    ground = Ground(Path(folder))
    before: tuple[int, int] | None = None
    for number in range(int(first), int(first) + int(count)):
        answer = round_of(ground, name, f"{seed}/{name}/{number}")
        held = _held(before)
        if before is not None and _more(held, before) and "survived" in answer:
            answer = {"found": f"descriptors and threads: {before} before, {held} after"}
        before = before or held  # the first round may load libraries
        print(json.dumps({"round": number, **answer}), flush=True)


if __name__ == "__main__":
    main()
