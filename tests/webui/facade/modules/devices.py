from __future__ import annotations

import contextlib

fp8 = False


def autocast():
    return contextlib.nullcontext()
