"""What a person chose: the hyper-model, the multipliers, the text encoder's share, the blocks; and how that is written.

Knows no host.  Blocks are a text, one line for each, of which the last that fits a tensor decides:

    *.output_blocks.* = 0, 0        multipliers λ, κ … for tensors whose names match the pattern, as in ComfyUI
    OUT03 = x0.5                    half of λ, κ …: also IN, IN04, IN00-IN05, MID, OUT, TEXT (text encoder) and * (all)
    1,1,1,0,0,0,1,1,1,1,1,1         block weights as other tools write them: 12, 17, 20 or 26 factors from BASE on

The text encoder's factor holds on top of these, but for lines that fit nothing else than its tensors: there they decide.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from glob import escape
from typing import Any

from .pack import keys, points

TextMoves = tuple[tuple[str, tuple[float, ...]], ...]
"""Names of tensors, and their multipliers."""

PRESETS: dict[str, str] = {
    "all blocks": "",
    "U-Net only": "TEXT = x0",
    "text encoder only": "* = x0\nTEXT = x1",
    "input blocks only": "* = x0\nIN = x1",
    "middle block only": "* = x0\nMID = x1",
    "output blocks only": "* = x0\nOUT = x1",
    "not the input blocks": "IN = x0",
    "not the output blocks": "OUT = x0",
    "rising": "1," + ",".join(f"{i / 24:.2g}" for i in range(25)),
    "falling": "1," + ",".join(f"{i / 24:.2g}" for i in range(24, -1, -1)),
    "strong in the middle": "1," + ",".join(f"{1 - abs(i - 12) / 12:.2g}" for i in range(25)),
    "strong at the ends": "1," + ",".join(f"{abs(i - 12) / 12:.2g}" for i in range(25)),
}
"""Names for the list beside the field, and the text that each puts into it."""

_IN, _OUT = [f"IN{i:02}" for i in range(12)], [f"OUT{i:02}" for i in range(12)]
_ORDER = [*_IN, "M00", *_OUT]
_LISTS: dict[int, list[str]] = {
    26: ["BASE", *_ORDER],
    20: ["BASE", *_IN[:9], "M00", *_OUT[:9]],
    17: ["BASE", *(_IN[i] for i in (1, 2, 4, 5, 7, 8)), "M00", *_OUT[3:]],
    12: ["BASE", *(_IN[i] for i in (4, 5, 7, 8)), "M00", *_OUT[:6]],
}
_GROUPS = {"IN": ("*input_blocks.*",), "OUT": ("*output_blocks.*",), "MID": ("*middle_block.*",)}
_SHORT = re.compile(r"(IN|OUT|M)(\d\d?)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One point of one hyper-model; `Settings()` is "off"."""

    enabled: bool = False
    hyper: str = ""
    """Name of the file in models/hyper_merge, as the host's list shows it."""
    multipliers: tuple[float, ...] = (0.0, 0.0)
    """λ, κ and further ones; those that are missing are 0."""
    text_encoder: float = 1.0
    """Factor on the multipliers of the text encoder's tensors, but where a line of `blocks` is for these alone."""
    blocks: str = ""
    """The text described above."""

    @staticmethod
    def of(
        enabled: Any,
        hyper: Any,
        lam: Any = 0.0,
        kap: Any = 0.0,
        further: str | None = "",
        text_encoder: Any = 1.0,
        blocks: str | None = "",
    ) -> Settings:
        """From the values of the accordion's components, in their order.  Raises ValueError."""
        values = (float(lam or 0), float(kap or 0), *points.numbers(further or "", "further"))
        strength = 1.0 if text_encoder is None else float(text_encoder)
        return Settings(bool(enabled), str(hyper or ""), values, strength, (blocks or "").strip())

    def at(self, count: int) -> tuple[float, ...]:
        """The `count` multipliers.  Raises ValueError when another one than these is not 0, or one is no number."""
        if not all(map(math.isfinite, (*self.multipliers, self.text_encoder))):
            raise ValueError("multipliers and the text encoder's factor are finite numbers, as 0.4")
        values = [*self.multipliers, 0.0, 0.0]
        further = ", ".join(number(value) for value in values[2:])
        return tuple(points.at(count, values[0], values[1], further))

    @property
    def further(self) -> str:
        """Multipliers of directions 3, 4 … as the field shows them."""
        return ", ".join(number(value) for value in self.multipliers[2:])

    def replaced(self, **changes: Any) -> Settings:
        """The same with other values for some fields; lam= and kap= replace one multiplier."""
        values = [*self.multipliers, 0.0, 0.0][: max(2, len(self.multipliers))]
        for index, name in enumerate(("lam", "kap")):
            if name in changes:
                values[index] = float(changes.pop(name))
        changes.setdefault("multipliers", tuple(values))
        return dataclasses.replace(self, **changes)

    def pairs(self, count: int, moving: Names | Iterable[str]) -> dict[str, list[float]]:
        """What HyperModel.merge and Live.set take as `blocks`: glob → `count` multipliers; the text encoder first.

        moving: names of the tensors that the hyper-model moves.  Raises ValueError, which names the line.
        """
        at, names = self.at(count), Names.of(moving)
        rules: list[tuple[str, list[float]]] = []
        found: dict[str, list[float]] = {}
        for number_, line in enumerate(self.blocks.splitlines(), start=1):
            rules += _line(line.partition("#")[0].strip(), f"blocks, line {number_}", at, names)

        def put(glob: str, values: Sequence[float]) -> None:
            found.pop(glob, None)  # the last one decides, also in order
            found[glob] = list(values)

        def put_text(glob: str, values: Sequence[float]) -> None:
            for inner in names.text_among(glob) if self.text_encoder != 1 else ():
                put(inner, [c * self.text_encoder for c in values])

        put_text("*", at)
        for glob, values in rules:
            put(glob, values)
            put_text(glob, values)
        return found


class Names:
    """The tensors that a hyper-model moves, and which patterns fit any of them: asked at each move of a slider."""

    def __init__(self, moving: Iterable[str]) -> None:
        self._all = tuple(moving)
        self._text = tuple(name for name in sorted(self._all) if keys.is_text(name))
        self._fitting: dict[str, bool] = {}
        self._among: dict[str, list[str]] = {}

    @staticmethod
    def of(moving: Names | Iterable[str]) -> Names:
        return moving if isinstance(moving, Names) else Names(moving)

    def fit(self, glob: str) -> bool:
        """Does a tensor's name match?"""
        if glob not in self._fitting:
            self._fitting[glob] = any(fnmatch.fnmatchcase(name, glob) for name in self._all)
        return self._fitting[glob]

    def text_among(self, glob: str) -> list[str]:
        """Globs that fit just those of the text encoder's tensors that `glob` fits among others.

        None where it fits these alone: it is about them then.  "*" is about everything, also where nothing else moves.
        """
        if glob not in self._among:
            fits = re.compile(fnmatch.translate(glob)).match
            inner = [name for name in self._text if fits(name)]
            if inner == list(self._text):
                inner = [wide for wide in keys.TEXT_GLOBS if self.fit(wide)]
            else:
                inner = [escape(name) for name in inner]
            self._among[glob] = [] if keys.is_text_alone(glob, self._all) else inner
        return self._among[glob]

    def text_moves(self, at: Sequence[float], pairs: Mapping[str, Sequence[float]]) -> TextMoves:
        """What the text encoder's tensors are moved by, zeros too: equal for equal text encoders, () where it has none."""
        last_first = reversed(list(pairs.items()))
        rules = [(re.compile(fnmatch.translate(glob)).match, tuple(values)) for glob, values in last_first]
        found = []
        for name in self._text:
            values = next((values for matches, values in rules if matches(name)), tuple(at))
            found.append((name, values))
        return tuple(found)


def number(value: float) -> str:
    """As short as can be read back exactly: "0.25", "-1"."""
    return repr(float(value) + 0.0).removesuffix(".0")


# ---- blocks ---------------------------------------------------------------------------------------------------------


def check_blocks(text: str, count: int, moving: Names | Iterable[str]) -> None:
    """Raises ValueError, which names the line that is wrong."""
    Settings(blocks=text).pairs(count, moving)


def _line(line: str, what: str, at: Sequence[float], names: Names) -> list[tuple[str, list[float]]]:
    if not line:
        return []
    selector, equals, values = line.rpartition("=")
    if not equals:
        return _weights(line, what, at, names)
    globs, known = _selected(selector.strip(), what)
    given = _values(values.strip(), what, at)
    fitting = [glob for glob in globs if names.fit(glob)]
    if not fitting and not known:
        raise ValueError(f"{what}: no tensor that the hyper-model moves matches the pattern {globs[0]}")
    return [(glob, given) for glob in fitting]


def _values(text: str, what: str, at: Sequence[float]) -> list[float]:
    """Multipliers, or a factor on those that hold everywhere: x0.5."""
    if text[:1] in ("x", "X", "×"):
        factor = points.numbers(text[1:], what)
        if len(factor) != 1:
            raise ValueError(f"{what}: '{text}' is not a factor such as x0.5")
        return [c * factor[0] for c in at]
    given = points.numbers(text, what)
    if not given:
        raise ValueError(f"{what}: no multipliers after the = sign; write them as: 0.4, -0.2")
    if len(given) > len(at):
        raise ValueError(f"{what}: {len(given)} multipliers for {len(at)} directions")
    return given + [0.0] * (len(at) - len(given))


def _weights(line: str, what: str, at: Sequence[float], names: Names) -> list[tuple[str, list[float]]]:
    """A list of factors, from BASE on: for everything, then block by block."""
    try:
        factors = points.numbers(line, what)
    except ValueError:
        factors = []
    listed = _LISTS.get(len(factors))
    if listed is None:
        raise ValueError(
            f"{what}: '{line}' is neither GLOB = λ, κ, as in *.input_blocks.* = 0, 0, nor 12, 17, 20 or 26 block "
            "weights"
        )
    found = []
    if len(factors) in (12, 17):  # made for LoRAs, which leave the blocks that are not in the list alone
        found += [(glob, [0.0 for _ in at]) for glob in ("*input_blocks.*", "*output_blocks.*") if names.fit(glob)]
        found.insert(0, ("*", [c * factors[0] for c in at]))
    for name, factor in zip(listed, factors):
        globs = ["*"] if name == "BASE" else _short(name)
        if name != "BASE" or len(factors) not in (12, 17):
            found += [(glob, [c * factor for c in at]) for glob in globs if names.fit(glob)]
    return found


def _selected(text: str, what: str) -> tuple[list[str], bool]:
    """Globs, and whether `text` is one of our short names, which need not fit."""
    if not text:
        raise ValueError(f"{what}: a line is of the form GLOB = λ, κ, as in *.input_blocks.* = 0, 0")
    upper = text.upper()
    if upper in _GROUPS:
        return list(_GROUPS[upper]), True
    if upper == "TEXT":
        return list(keys.TEXT_GLOBS), True
    if upper in ("BASE", "*"):
        return ["*"], True
    first, dash, last = upper.partition("-")
    if dash and _SHORT.fullmatch(first) and _SHORT.fullmatch(last):
        names = [_padded(first), _padded(last)]
        try:
            begin, end = map(_ORDER.index, names)
        except ValueError:
            raise ValueError(f"{what}: blocks are IN00 … IN11, M00, OUT00 … OUT11, not {text}") from None
        return [glob for name in _ORDER[begin : end + 1] for glob in _short(name)], True
    if _SHORT.fullmatch(text):
        return _short(_padded(upper)), True
    return [text], False


def _padded(name: str) -> str:
    found = _SHORT.fullmatch(name)
    assert found is not None  # both callers have matched it
    return f"{found[1].upper()}{int(found[2]):02}"


def _short(name: str) -> list[str]:
    kind, index = name.rstrip("0123456789"), int(name.lstrip("INOUTM"))
    return list(_GROUPS["MID"]) if kind == "M" else [f"*{'input' if kind == 'IN' else 'output'}_blocks.{index}.*"]


# ---- infotext -------------------------------------------------------------------------------------------------------

_NAME, _AT, _TEXT, _BLOCKS = "Hyper-Merge", "Hyper-Merge at", "Hyper-Merge text encoder", "Hyper-Merge blocks"
BASE_KEY = "Hyper-Merge base"
"""The base's own model hash: "Model hash" is the blend's."""


def write_infotext(settings: Settings, base_hash: str | None = None) -> dict[str, str]:
    """What goes into p.extra_generation_params; {} when it is off."""
    if not settings.enabled:
        return {}
    found = {_NAME: settings.hyper, _AT: ", ".join(number(value) for value in settings.multipliers)}
    if settings.text_encoder != 1:
        found[_TEXT] = number(settings.text_encoder)
    if settings.blocks:
        found[_BLOCKS] = settings.blocks
    if base_hash:
        found[BASE_KEY] = base_hash
    return found


def read_infotext(params: Mapping[str, Any]) -> Settings:
    """The same back, from the dict that the host makes of an infotext; off where it names no hyper-model."""
    name = params.get(_NAME)
    if not name:
        return Settings()
    try:
        values = tuple(points.numbers(str(params.get(_AT, "0, 0")), _AT))
        strength = float(params.get(_TEXT, 1))
    except ValueError:
        return Settings()
    return Settings(True, str(name), values or (0.0, 0.0), strength, str(params.get(_BLOCKS, "")))


def restore_model_hash(params: dict[str, Any]) -> None:
    """For on_infotext_pasted: the host takes "Model hash" for a checkpoint, so it gets the base's back."""
    if params.get(_NAME) and params.get(BASE_KEY):
        params["Model hash"] = params[BASE_KEY]
    elif params.get(_NAME):
        params.pop("Model hash", None)  # where hosts make no hashes, only the blend had one


def blend_hash(identity: str, settings: Settings) -> str:
    """Ten hexadecimal digits in place of the model's hash: of the hyper-model and the point.

    identity: of the hyper-model's file wherever it lies (the hash of its header).
    """
    point = [*map(number, settings.multipliers)]
    while point and point[-1] == "0":
        point.pop()
    text = "\0".join([identity, *point, "", number(settings.text_encoder), settings.blocks])
    return hashlib.sha256(text.encode()).hexdigest()[:10]
