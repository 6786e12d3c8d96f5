"""`<hm:λ:κ>` in a prompt: the multipliers of that prompt alone.

    <hm:0.4:-0.2>              λ and κ (and further ones) of the hyper-model that the accordion shows
    <hm:my-models:0.4:-0.2>    of another hyper-model: its name, or how it begins
    <hm:0.4:te=0.5>            with a factor for the text encoder

The later of two counts.  Without a token the accordion's values hold again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import bases, host, live

NAME = "hm"


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
    live.for_prompts(p)


def changes(positional: Sequence[str], named: dict[str, str]) -> dict[str, Any]:
    """What a token changes, for Settings.replaced.  Raises ValueError, FileNotFoundError."""
    found: dict[str, Any] = {}
    words = [word.strip() for word in positional]
    if words and not _is_number(words[0]):
        found["hyper"] = hyper_called(words.pop(0))
    try:
        if words:
            found["multipliers"] = tuple(float(word) for word in words)
        if "te" in named:
            found["text_encoder"] = float(named["te"])
    except ValueError:
        raise ValueError(f"<hm:{':'.join(positional)}> is not of the form <hm:0.4:-0.2>") from None
    unknown = [name for name in named if name != "te"]
    if unknown or not found:
        raise ValueError(f"<hm:{':'.join([*positional, *unknown])}> is not of the form <hm:0.4:-0.2>")
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


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
