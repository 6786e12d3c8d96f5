"""The line of parameters under a picture: `Steps: 20, Model hash: 0123456789, Note: "a, b"`."""

from __future__ import annotations

import json
import string

_KEY = set(string.ascii_letters + string.digits + "_ -/")


def write(params: dict[str, str]) -> str:
    """Values with a comma, a colon or a line end are written as JSON strings."""
    return ", ".join(f"{key}: {_quoted(str(value))}" for key, value in params.items())


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(letter in value for letter in ",:\n") else value


def parse_generation_parameters(line: str) -> dict[str, str]:
    """Keys of letters, digits, blanks, dashes; a value ends at a comma, or with its quotes."""
    found, rest = {}, line
    while rest.strip():
        key, colon, rest = rest.partition(":")
        key, rest = key.strip(), rest.lstrip()
        if not colon or not set(key) <= _KEY:
            raise ValueError(f"{key}: not a key of an infotext")
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:].lstrip().removeprefix(",")
        else:
            value, _, rest = rest.partition(",")
        found[key] = value
    return found
