"""AlwaysVisible scripts, and the runner that calls their hooks and swallows what they raise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import errors

AlwaysVisible = object()
scripts_data: list[Any] = []


class Script:
    pass


class Runner:
    """Calls the hooks of scripts, each with the values of its own components."""

    def __init__(self, *scripts: tuple[Any, tuple[Any, ...]]) -> None:
        self.scripts = list(scripts)

    def call(self, hook: str, p: Any, **more: Any) -> None:
        for script, values in self.scripts:
            function = getattr(script, hook, None)
            if function is None:
                continue
            try:
                function(p, *values, **more)
            except Exception as error:
                errors.report(error)


def plot_script() -> Any:
    """The X/Y/Z plot, loaded anew as "Reload UI" does."""

    class AxisOption:
        def __init__(self, label: str, type: Any, apply: Any, cost: float = 0.0, choices: Any = None) -> None:
            self.label, self.type, self.apply, self.cost, self.choices = label, type, apply, cost, choices

    module = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Nothing", str, None)])
    script_class = type("Script", (Script,), {"__module__": "xyz_grid.py"})
    scripts_data[:] = [SimpleNamespace(script_class=script_class, module=module)]
    return module
