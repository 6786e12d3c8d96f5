"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

from .sources import Progress

_FORMAT = "{desc} {percentage:3.0f} % |{bar:24}| {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left"


def _columns() -> int:
    """Width of the terminal; some (containers, pseudo-terminals) say 0 × 0, where tqdm would draw nothing."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


class Bar:
    """`with Bar("reading") as progress:` gives the function to hand to a long call, or None when nobody watches.

    The bar shows bytes, bytes per second and the time left, begins anew with a second pass, and wipes itself away.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._tqdm: Any = None
        self._bar: Any = None

    def say(self, label: str) -> None:
        """Another label from now on."""
        self._label = label
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)

    def __enter__(self) -> Progress | None:
        if not sys.stderr.isatty():
            return None
        try:
            from tqdm import tqdm  # 30 ms that only a terminal pays
        except ImportError:
            return None
        tqdm.monitor_interval = 0  # its watchdog thread is of no use for a bar that is called 20 times a second
        self._tqdm = tqdm
        return self._report

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _report(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = self._tqdm(
                total=total,
                desc=self._label,
                unit="B",
                unit_scale=True,
                bar_format=_FORMAT,
                leave=False,
                file=sys.stderr,
                ncols=_columns(),
                nrows=24,
            )
        elif total != self._bar.total or done < self._bar.n:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)
