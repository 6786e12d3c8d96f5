"""What a hyper-model is, as text."""

from __future__ import annotations

from typing import Any

from .binary import part
from .hyper import Hyper


def info(hyper: Hyper) -> str:
    """The tables that `hyper-merge inspect` prints, under the file's name."""
    table = part("table")
    style = table.Style(unicode=True, colour=False)
    return f"{hyper.name}\n{table.hyper(hyper.document, style, blocks=True)}"


def place(hyper: Hyper, member: Any) -> str:
    """Where another checkpoint lies: a Member as HyperModel.project gives it."""
    table = part("table")
    style = table.Style(unicode=True, colour=False)
    entry = {
        "name": member.name,
        "multipliers": list(member.multipliers),
        "residual": member.residual,
        "norm": member.norm,
    }
    return table.members([entry], hyper.count, style)
