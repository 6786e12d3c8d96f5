"""`<hm:λ:κ>` in a prompt: the multipliers of that prompt alone.

    <hm:0.4:-0.2>              λ and κ (and further ones) of the hyper-model that the accordion shows
    <hm:my-models:0.4:-0.2>    of another hyper-model: its name, or how it begins
    <hm:0.4:te=0.5>            with a factor for the text encoder

The later of two counts.  Without a token the accordion's values hold again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from . import bases, host, live

NAME = "hm"
_TOKEN = re.compile(r"<hm:([^>]+)>")


def register() -> None:
    """on_before_ui: the host empties its table of extra networks at each "Reload UI"."""
    from modules import extra_networks

    class HyperMergeNetwork(extra_networks.ExtraNetwork):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(NAME)

        def activate(self, p: Any, params_list: Sequence[Any]) -> None:
            apply(p, params_list)

        def deactivate(self, p: Any) -> None:
            """The next prompt says what it wants."""

    extra_networks.register_extra_network(HyperMergeNetwork())


def unregister() -> None:
    from modules import extra_networks

    extra_networks.extra_network_registry.pop(NAME, None)


def apply(p: Any, params_list: Sequence[Any]) -> None:
    """Called for each batch, after prompts were parsed and before they are encoded; also without any token."""
    p.hyper_merge_token = None
    if params_list:
        last = params_list[-1]
        try:
            p.hyper_merge_token = changes(last.positional, last.named)
        except (ValueError, FileNotFoundError) as reason:
            p.comment(f"Hyper-Merge: {reason}")
    if _differ(p):
        p.comment(
            "Hyper-Merge: pictures of one batch are of one blend, that of the first prompt; for others set the batch "
            "size to 1"
        )
    live.for_prompts(p)


def _differ(p: Any) -> bool:
    """Do prompts that are computed at once ask for several blends?  The host reads the tokens of the first only."""
    prompts = getattr(p, "all_prompts", None)
    if not prompts or getattr(p, "is_hr_pass", False):
        return False
    first = p.iteration * p.batch_size
    return len({tuple(_TOKEN.findall(str(prompt))) for prompt in prompts[first : first + p.batch_size]}) > 1


def changes(positional: Sequence[str], named: dict[str, str]) -> dict[str, Any]:
    """What a token changes, for Settings.replaced.  Raises ValueError, FileNotFoundError."""
    found: dict[str, Any] = {}
    words = [word.strip() for word in positional]
    if words and words[0] and _number(words[0]) is None:
        found["hyper"] = hyper_called(words.pop(0))
    numbers, strength = [_number(word) for word in words], _number(named.get("te", "1"))
    unknown = [name for name in named if name != "te"]
    if unknown or None in numbers or strength is None or not (found or words or named):
        raise ValueError(f"<hm:{':'.join([*positional, *unknown])}> is not of the form <hm:0.4:-0.2>")
    if numbers:
        found["multipliers"] = tuple(numbers)
    if "te" in named:
        found["text_encoder"] = strength
    return found


def hyper_called(name: str) -> str:
    """A hyper-model by its file's name, without its ending, or by how it begins.  Raises FileNotFoundError."""
    names = host.hyper_names()
    if name in names:
        return name
    matches = [listed for listed in names if bases.stem(listed) == name] or [
        listed for listed in names if bases.stem(listed).startswith(name)
    ]
    if len(matches) != 1:
        many = f": {', '.join(matches[:3])}" if matches else ""
        raise FileNotFoundError(f"{len(matches)} hyper-models are called {name}{many}")
    return matches[0]


def _number(word: str) -> float | None:
    """None for what is none.  The map shows a true minus, so that is read as well."""
    try:
        found = float(word.replace("−", "-"))
    except ValueError:
        return None
    return found if math.isfinite(found) else None
