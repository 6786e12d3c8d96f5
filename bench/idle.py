"""Was the machine idle?  What a benchmark finds on a busy one is about its neighbours."""

from __future__ import annotations

import time

SHARE = 0.1
"""Of all CPUs, that others may take."""


class Idle:
    """Waits for an idle machine before each run, and remembers when that was in vain."""

    def __init__(self, patience: float = 20) -> None:
        self._patience = patience
        self._runs = self._busy = 0
        self._most = 0.0

    def wait(self) -> None:
        """Returns when others leave the CPUs alone, or after `patience` seconds."""
        self._runs += 1
        until = time.monotonic() + self._patience
        while (share := busy_share()) > SHARE:
            if time.monotonic() > until:
                self._busy += 1
                self._most = max(self._most, share)
                return

    def __str__(self) -> str:
        if self._busy == 0:
            return f"idle before each of {self._runs} runs"
        return f"NOT idle before {self._busy} of {self._runs} runs (others had up to {self._most:.0%} of the CPUs)"


def busy_share(seconds: float = 0.4) -> float:
    """Of the CPUs' time, what anybody used or the host of a virtual machine withheld, while this process slept."""
    before = _ticks()
    time.sleep(seconds)
    spent = [now - then for now, then in zip(_ticks(), before, strict=True)]
    waiting = spent[3] + spent[4]  # idle, and idle until a disk answers
    return 1 - waiting / max(sum(spent), 1)


def _ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal."""
    with open("/proc/stat", encoding="ascii") as file:
        return [int(word) for word in file.readline().split()[1:9]]
