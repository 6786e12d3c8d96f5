"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from .sources import Progress

_FORMAT = "{desc} {percentage:3.0f} % |{bar:30}| {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"


class Bar:
    """`with Bar("reading") as progress:` gives the function to hand to a long call, or None when nobody watches.

    The bar shows bytes, bytes per second and the time left, begins anew when a second pass begins, and wipes itself away.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None

    def __enter__(self) -> Progress | None:
        if not sys.stderr.isatty():
            return None
        try:
            from tqdm import tqdm  # 30 ms that only a terminal pays
        except ImportError:
            return None
        tqdm.monitor_interval = 0  # its watchdog thread is of no use for a bar that is called 20 times a second
        self._bar = tqdm(
            total=0, desc=self._label, unit="B", unit_scale=True, bar_format=_FORMAT, leave=False, file=sys.stderr
        )
        return self._report

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _report(self, done: int, total: int) -> None:
        if total != self._bar.total or done < self._bar.n:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)
