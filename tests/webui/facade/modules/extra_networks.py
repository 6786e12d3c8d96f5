"""`<name:argument:argument>` in prompts: every network is activated in every batch, those without a token with []."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from . import errors

extra_network_registry: dict[str, Any] = {}
_TOKEN = re.compile(r"<(\w+):([^>]+)>")


class ExtraNetwork:
    def __init__(self, name: str) -> None:
        self.name = name


class ExtraNetworkParams:
    def __init__(self, items: list[str]) -> None:
        self.items = items
        self.positional = [item for item in items if "=" not in item]
        self.named = dict(item.split("=", 1) for item in items if "=" in item)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExtraNetworkParams) and self.items == other.items


def register_extra_network(network: Any) -> None:
    extra_network_registry[network.name] = network


def parse_prompts(prompts: list[str]) -> tuple[list[str], dict[str, list[ExtraNetworkParams]]]:
    """The prompts without tokens, and the tokens of the first: those of the others do not count."""
    found: dict[str, list[ExtraNetworkParams]] = defaultdict(list)
    for match in _TOKEN.finditer(prompts[0]):
        found[match[1]].append(ExtraNetworkParams(match[2].split(":")))
    return [_TOKEN.sub("", prompt) for prompt in prompts], found


def activate(p: Any, data: dict[str, list[ExtraNetworkParams]]) -> None:
    named = [extra_network_registry[name] for name in data if name in extra_network_registry]
    for network in [*named, *(other for other in extra_network_registry.values() if other not in named)]:
        try:
            network.activate(p, data.get(network.name, []))
        except Exception as error:
            errors.report(error)
