from __future__ import annotations

from collections import defaultdict
from typing import Any

callbacks: dict[str, list[Any]] = defaultdict(list)


def __getattr__(name: str) -> Any:
    """on_model_loaded(f), on_before_ui(f) …"""
    if not name.startswith("on_"):
        raise AttributeError(name)
    return lambda function, **more: callbacks[name].append(function)


def call(name: str, *values: Any, **named: Any) -> None:
    for function in callbacks[name]:
        function(*values, **named)
