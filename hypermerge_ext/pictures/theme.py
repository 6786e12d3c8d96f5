"""How all pictures look: two palettes, sizes of type, and a figure that is made and saved the same way everywhere.

matplotlib draws, by its objects alone (no pyplot) and under settings of our own, so that neither a user's matplotlibrc
nor a host that draws too changes the picture, or is changed by it.  It is imported when the first picture is drawn.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import _core
from .._core import ArgumentError, Error
from . import output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE, TEXT, SMALL, TINY = 15.0, 10.0, 8.5, 7.5
"""Sizes of type, in points."""
FONT = "DejaVu Sans"
"""Comes with matplotlib, and has Greek."""
_LIKE_FONT = "Verdana, sans-serif"
"""For an SVG shown where that is not installed: as wide, so that names keep to their places."""
DPI = 160
"""Pixels per inch of a PNG."""
SUFFIXES = (".svg", ".png")
THEMES = ("auto", "light", "dark")
REMEDY = "pip install 'hyper-merge[pictures]', or: pip install matplotlib"

_OLDEST = (3, 6)
_MORE_FONTS = (  # for names in other scripts, where the machine has one of them
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "Malgun Gothic", "PingFang SC",
    "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip


class Theme(NamedTuple):
    """A palette: colours as #rrggbb in small letters, none twice, since `save` knows the parts of an SVG by colour."""

    name: str
    ground: str
    """Behind everything."""
    ink: str
    """Text and points."""
    quiet: str
    """Text of the second order, rings."""
    rule: str
    """Grid and frames."""
    base: str
    """What everything is measured from."""
    stranger: str
    """Models that were not merged."""
    directions: tuple[str, ...]
    """Of direction 1, 2, …; after the last it begins again."""
    rest: str
    """What no direction explains."""
    ramp: tuple[str, str]
    """The two ends of a scale, from nothing to most."""

    def direction(self, k: int) -> str:
        """Colour of direction k, counted from 1."""
        return self.directions[(k - 1) % len(self.directions)]

    def colours(self) -> tuple[str, ...]:
        """All of them, in an order that is the same in every theme."""
        single = (self.ground, self.ink, self.quiet, self.rule, self.base, self.stranger, self.rest)
        return (*single, *self.directions, *self.ramp)


LIGHT = Theme(
    name="light",
    ground="#fefefe",
    ink="#1d2127",
    quiet="#666c77",
    rule="#dfe1e6",
    base="#c9303c",
    stranger="#0b7f78",
    directions=("#2a66b0", "#c4640f", "#3d8a3a", "#8650aa", "#9a7d12", "#4f7785"),
    rest="#d3d6dc",
    ramp=("#f4f6f9", "#24508c"),
)
DARK = Theme(
    name="dark",
    ground="#1e2025",
    ink="#ecece8",
    quiet="#a0a3aa",
    rule="#373b44",
    base="#ff6f70",
    stranger="#4fd0c4",
    directions=("#6fadf2", "#f09a4c", "#77c46f", "#c093ea", "#d2b54d", "#8ab6c6"),
    rest="#474c57",
    ramp=("#262930", "#86bdf7"),
)


def theme_for(name: str) -> Theme:
    """The palette to draw with; "auto" is light, and `save` gives an SVG the dark one beside it.  Raises ArgumentError."""
    if name not in THEMES:
        raise ArgumentError(f"theme is one of {', '.join(THEMES)}, not {name!r}")
    return DARK if name == "dark" else LIGHT


def suffix_of(path: str | os.PathLike[str]) -> str:
    """ ".svg" or ".png"; raises ArgumentError for a file name that ends otherwise."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in SUFFIXES:
        raise ArgumentError(f"{os.fspath(path)}: pictures are written as .svg or .png; give a name that ends so")
    return suffix


def require() -> None:
    """Raises Error, with the line that installs it, where matplotlib is missing or too old."""
    try:
        import matplotlib
    except ImportError as reason:
        raise Error(f"pictures are drawn by matplotlib, which cannot be imported ({reason}); {REMEDY}") from None
    found = tuple(int(part) for part in re.findall(r"\d+", matplotlib.__version__)[:2])
    if found < _OLDEST:
        raise Error(
            f"pictures need matplotlib {_OLDEST[0]}.{_OLDEST[1]} or later, not {matplotlib.__version__}; "
            "pip install --upgrade matplotlib"
        )


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "font.family": [FONT, *_installed_fonts()],
        "font.size": TEXT,
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.rule,
        "axes.labelcolor": theme.ink,
        "axes.linewidth": 0.8,
        "axes.unicode_minus": True,
        "grid.color": theme.rule,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "text.parse_math": False,  # names of models may hold a $
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "svg.fonttype": "none",  # text stays text: it can be found, selected and read aloud
        "svg.hashsalt": output.MARK,  # the same picture is the same file
    }


def _installed_fonts() -> list[str]:
    from matplotlib import font_manager

    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return [name for name in _MORE_FONTS if name in names]


@contextlib.contextmanager
def canvas(size: tuple[float, float], theme: Theme) -> Iterator[Figure]:
    """An empty figure of `size` inches, to be drawn on and saved within the `with`: outside, settings are others'.

        with theme.canvas((10, 6), theme.LIGHT) as figure:
            axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
            …
            theme.save(figure, "picture.svg")

    Raises Error where matplotlib is missing.
    """
    require()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _settings(theme)]):
        yield Figure(figsize=size)


def width_of(text: str, size: float, bold: bool = False) -> float:
    """Width of a line of text in points, as it will be drawn; within `canvas` only."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    properties = FontProperties(size=size, weight="bold" if bold else "normal")
    with _quietly():
        return text_to_path.get_text_width_height_descent(text, properties, False)[0]


def wrapped(text: str, size: float, width: float) -> list[str]:
    """The text in lines of at most `width` points, broken at spaces; within `canvas` only."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and width_of(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def save(
    figure: Figure,
    path: str | os.PathLike[str],
    *,
    both: bool = False,
    titles: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Writes the figure as SVG or PNG, by the end of `path`; whole or not at all.  Within `canvas` only.

    both: an SVG drawn in LIGHT turns into DARK where the reader's system asks for it.
    titles: of an SVG, {gid of an artist: the text that a browser shows while the pointer rests there}.
    force: replace a file that hyper-merge did not write.
    Raises Error; ArgumentError for another ending.
    """
    suffix = suffix_of(path)
    output.check_target(path, force=force)
    made = f"{output.MARK} {_core.version}"
    stream = io.BytesIO()
    with _quietly():
        if suffix == ".png":
            figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": made})
        else:
            figure.savefig(stream, format="svg", metadata={"Creator": made, "Date": None})
    data = stream.getvalue()
    if suffix == ".svg":
        text = data.decode("utf-8")
        for gid, title in (titles or {}).items():
            opening = f'<g id="{gid}">'
            text = text.replace(opening, f"{opening}<title>{escape(title, quote=False)}</title>", 1)
        text = re.sub(rf'(style="[^"]*\'{FONT}\')', rf"\1, {_LIKE_FONT}", text)
        data = (_with_dark(text) if both else text).encode("utf-8")
    output.write(path, data)


def _with_dark(svg: str) -> str:
    """The SVG with rules that exchange each colour of LIGHT for that of DARK.

    By attribute selectors beside the inline styles, so that programs which know no such rules still show LIGHT.
    """
    rules = []
    for light, dark in zip(LIGHT.colours(), DARK.colours()):
        for what in ("fill", "stroke"):
            rules.append(f'[style*="{what}: {light}"]{{{what}:{dark}!important}}')
    style = "<style>@media (prefers-color-scheme:dark){" + "".join(rules) + "}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[0] + style, svg, count=1)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """A name in a script that no font here has is drawn as boxes, without a word on stderr for each of its letters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        yield
