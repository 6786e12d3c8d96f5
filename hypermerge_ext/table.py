"""What the command line prints for people: tables and small bars, in Unicode or, where that cannot be shown, ASCII."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

from .axes import axis_names
from .findings import in_words

BAR_CELLS = 30
MATRIX_LIMIT = 12
"""More models than this are listed by their nearest neighbour: a wider matrix would not fit a terminal."""
COLUMNS_LIMIT = 6
"""Multiplier columns shown; --json gives all."""
AXIS_LIMIT = 24
"""Columns that the name of an axis may take where it heads numbers."""


class Style(NamedTuple):
    """How to draw; see `style_for`."""

    unicode: bool
    colour: bool

    def bold(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self.colour else text

    def dim(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self.colour else text

    def accent(self, text: str) -> str:
        return f"\033[36m{text}\033[0m" if self.colour else text

    def direction(self, k: int) -> str:
        """What people call multiplier k, counted from 1."""
        greek = {1: ("λ", "lambda"), 2: ("κ", "kappa")}
        return greek[k][0 if self.unicode else 1] if k in greek else f"c{k}"

    def axis(self, k: int, names: Sequence[str | None] = ()) -> str:
        """The same, and after it the name of the axis, if it has one, cut where it is long."""
        name = self.shown((names[k - 1] if k <= len(names) else None) or "")
        if _width(name) > AXIS_LIMIT:
            dots = "…" if self.unicode else "..."
            while _width(name) > AXIS_LIMIT - len(dots):
                name = name[:-1]
            name += dots
        return f"{self.direction(k)} {name}" if name else self.direction(k)

    def shown(self, text: str) -> str:
        """A name as it can be shown: `printable`, and with ? for what ASCII lacks where that is all there is."""
        text = printable(text)
        return text if self.unicode else text.encode("ascii", "replace").decode()

    @property
    def norm(self) -> str:
        return "‖Δ‖" if self.unicode else "|delta|"

    @property
    def dot(self) -> str:
        return " · " if self.unicode else ", "


def style_for(stream: TextIO) -> Style:
    """Unicode if the stream's encoding has these signs; colour only on a terminal, and never against NO_COLOR."""
    try:
        "─│λκ‖Δ█·".encode(getattr(stream, "encoding", None) or "ascii")
        unicode = True
    except (UnicodeEncodeError, LookupError):
        unicode = False
    colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Style(unicode, colour)


def size(count: float) -> str:
    """Bytes for people: "2.13 GB"; decimal units, as disks are sold and progress bars count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percent(share: float | None, digits: int = 2) -> str:
    """0.1234 → "12.34 %"; None → "-"."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _width(text: str) -> int:
    """Columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def printable(text: str) -> str:
    """The text with control characters replaced: names come from files, and could else steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], style: Style, left: int = 1) -> str:
    """A frame around `rows`; the first `left` columns begin at the left, the others (numbers) end at the right."""
    rows = [[style.shown(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(head, *rows)]
    line, bar = ("─", "│") if style.unicode else ("-", "|")

    def rule(joints: str) -> str:
        first, middle, last = joints if style.unicode else "+++"
        return style.dim(first + middle.join(line * (width + 2) for width in widths) + last)

    def row(cells: Sequence[str], bold: bool = False) -> str:
        padded = [_pad(cell, widths[i], i >= left) for i, cell in enumerate(cells)]
        edge = style.dim(bar)
        return edge + edge.join(f" {style.bold(cell) if bold else cell} " for cell in padded) + edge

    return "\n".join([rule("┌┬┐"), row(head, bold=True), rule("├┼┤"), *map(row, rows), rule("└┴┘")])


def bar(share: float, style: Style, cells: int = BAR_CELLS) -> str:
    """A bar of `cells` columns of which `share` (0 … 1) is filled, to an eighth of a column in Unicode."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    if not style.unicode:
        full = (eighths + 4) // 8
        return "#" * full + "." * (cells - full)
    partial = " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    filled = "█" * (eighths // 8) + partial
    return style.accent(filled) + style.dim("░" * (cells - len(filled)))


def _multiplier_head(directions: int, style: Style, names: Sequence[str | None]) -> list[str]:
    heads = [style.axis(k + 1, names) for k in range(min(directions, COLUMNS_LIMIT))]
    return [*heads, "…" if style.unicode else "..."] if directions > COLUMNS_LIMIT else heads


def _multiplier_cells(multipliers: Sequence[float]) -> list[str]:
    cells = [f"{value:+.4f}" for value in multipliers[:COLUMNS_LIMIT]]
    return [*cells, ""] if len(multipliers) > COLUMNS_LIMIT else cells


def members(
    entries: Sequence[dict[str, Any]], directions: int, style: Style, names: Sequence[str | None] = ()
) -> str:
    """The table of models: multipliers, residual, residual as stored (if measured), distance from the base."""
    stored = any(entry.get("residual_stored") is not None for entry in entries)
    head = ["model", *_multiplier_head(directions, style, names), "residual", *(["stored"] if stored else []), style.norm]
    rows = []
    for entry in entries:
        row = [entry["name"], *_multiplier_cells(entry["multipliers"]), percent(entry["residual"])]
        if stored:
            row.append(percent(entry.get("residual_stored")))
        rows.append([*row, f"{entry['norm']:.4g}"])
    return table(head, rows, style)


def shares(ratios: Sequence[float], style: Style, names: Sequence[str | None] = ()) -> str:
    """One line per direction: a bar, the share it explains, and the sum so far."""
    lines, sum_so_far = [], 0.0
    width = max((_width(style.axis(k + 1, names)) for k in range(len(ratios))), default=0)
    for k, ratio in enumerate(ratios):
        sum_so_far += ratio
        name = _pad(style.axis(k + 1, names), width, right=False)
        together = f"   together {percent(sum_so_far):>8}" if k else ""
        lines.append(f"  {name}  {bar(ratio, style)} {percent(ratio):>8}{together}")
    return "\n".join(lines)


def hyper(document: dict[str, Any], style: Style, blocks: bool = False) -> str:
    """A hyper-model: members, shares, loss, base; with `blocks` also how well each block is explained."""
    directions = document["directions"]
    base = document["base"]
    base_text = {"mean": "the mean of the models", "none": "none (zero)"}.get(base["kind"], str(base.get("name")))
    loss, total = document["loss"], document["total"]
    lost = f" ({percent(loss / total)})" if total > 0 else ""
    method = document["method"]
    if document.get("iterations"):
        method += f", {document['iterations']} iterations"
    if document.get("ranks"):
        method = f"hyper-LoRAs of {'rank' if directions == 1 else 'ranks'} {', '.join(map(str, document['ranks']))}"
    names = axis_names(document)
    parts = [members(document["members"], directions, style, names)]
    if directions:
        parts.append(shares(document["explained_variance_ratio"][:directions], style, names))
    parts.append(
        f"  loss {loss:.4g} of {total:.4g}{lost}{style.dot}base: {style.shown(base_text)}{style.dot}method: {method}"
    )
    if document.get("losses") and total > 0:
        by_pass = ", ".join(percent(value / total) for value in document["losses"])
        how = " (one direction after the other, then all together)" if directions > 1 else ""
        parts.append(f"  loss after each pass{how}, and with the last multipliers: {by_pass}")
    if blocks and document.get("blocks"):
        parts.append(_blocks(document, style))
    return "\n".join(parts)


def axes(document: dict[str, Any], style: Style) -> str:
    """Each axis: its name, the models that lie furthest out on either side, and the share it explains."""
    if not document["directions"]:
        return "  no axes: the models are equal in every merged tensor"
    rows = []
    for k, (name, ratio) in enumerate(zip(axis_names(document), document["explained_variance_ratio"])):
        ends = sorted((member["multipliers"][k], member["name"]) for member in document["members"])
        low, high = ("" if value == 0 else f"{model} ({value:+.2f})" for value, model in (ends[0], ends[-1]))
        number = str(k + 1) if k >= 2 else f"{k + 1} {style.direction(k + 1)}"
        rows.append([number, name or "", low, high, percent(ratio)])
    return table(["axis", "name", "lowest model", "highest model", "explains"], rows, style, left=4)


def _blocks(document: dict[str, Any], style: Style) -> str:
    directions = document["directions"]
    explains = [f"{style.direction(k + 1)} explains" for k in range(min(directions, COLUMNS_LIMIT))]
    head = ["block", f"share of {style.norm}²" if style.unicode else "share", *explains]
    total = sum(block["total"] for block in document["blocks"].values()) or 1.0
    rows = [
        [name, percent(block["total"] / total), *map(percent, block["explained"][: len(head) - 2])]
        for name, block in document["blocks"].items()
    ]
    return table(head, rows, style)


def low_rank(counts: dict[str, int]) -> str:
    """How many tensors of a file are kept as two factors, and of which ranks."""
    least, largest = counts["least_rank"], counts["largest_rank"]
    ranks = str(least) if least == largest else f"{least} to {largest}"
    return f"{counts['tensors']:,} low-rank tensor{'s' * (counts['tensors'] != 1)} (rank {ranks})"


def checkpoint(described: dict[str, Any], style: Style) -> str:
    """What a plain checkpoint is: family, counts, element types, components, and what its metadata tells."""
    types = style.dot.join(f"{name} {count}" for name, count in _counts(described.get("dtypes", {})))
    components = style.dot.join(f"{name} {count}" for name, count in _counts(described.get("components", {})))
    rows = [
        ["family", str(described.get("family") or "unknown")],
        ["tensors", f"{described['tensors']:,}"],
        ["parameters", f"{described['parameters']:,}"],
        ["types", types],
        ["components", components],
    ]
    if described.get("size"):
        rows.insert(0, ["size", size(described["size"])])
    if described.get("header_hash"):
        rows.append(["header hash", described["header_hash"]])
    for key, value in sorted(described.get("metadata", {}).items()):
        if key.startswith(("modelspec.", "sd_merge", "format")):
            rows.append([key, value if len(value) <= 80 else value[:77] + "..."])
    return table(["file", str(described["name"])], rows, style, left=2)


def _counts(value: dict[str, Any]) -> list[tuple[str, str]]:
    """[(name, "count tensors" or "count")] of the objects in a file's description."""
    out = []
    for name, count in value.items():
        if isinstance(count, dict):
            count = count.get("tensors", "")
        out.append((name, f"{count:,}" if isinstance(count, int) else str(count)))
    return out


def compare(answer: dict[str, Any], style: Style) -> str:
    """Distances and cosines: as matrices, or for many models each one's nearest."""
    names, count = answer["models"], len(answer["models"])
    numbers = [str(i + 1) for i in range(count)]
    parts = []
    if count <= MATRIX_LIMIT:
        for title, key, form in (("distance", "distance", "{:.4g}"), ("cosine", "cosine", "{:+.3f}")):
            rows = [
                [numbers[i], names[i], *(form.format(value) if value is not None else "-" for value in answer[key][i])]
                for i in range(count)
            ]
            parts.append(table(["", title, *numbers], rows, style, left=2))
    else:
        rows = []
        for i in range(count):
            distance, near = min((answer["distance"][i][j], j) for j in range(count) if j != i)
            rows.append([names[i], names[near], f"{distance:.4g}", f"{answer['cosine'][i][near]:+.3f}"])
        parts.append(table(["model", "nearest", "distance", "cosine"], rows, style, left=2))
    return "\n".join([*parts, *("  " + style.shown(line) for line in in_words(answer))])


def recover(answer: dict[str, Any], style: Style) -> str:
    """The mixture found for a checkpoint, and how far to believe it."""
    largest = max((abs(weight) for weight in answer["weights"]), default=0.0) or 1.0
    rows = [
        [name, f"{weight:+.4f}", bar(abs(weight) / largest, style._replace(colour=False), 20)]
        for name, weight in zip(answer["parents"], answer["weights"])
    ]
    parts = [table(["parent", "weight", ""], rows, style)]
    if answer.get("blocks"):
        head = ["block", *(str(i + 1) for i in range(len(answer["parents"]))), "residual"]
        rows = [
            [block, *(f"{weight:+.3f}" for weight in found["weights"]), percent(found.get("residual"))]
            for block, found in answer["blocks"].items()
        ]
        parts.append(table(head, rows, style))
    parts.append(f"  not explained: {percent(answer['residual'])}{style.dot}rms per element {answer['rms']:.3g}")
    return "\n".join(parts)


def lora(name: str, report: dict[str, Any], style: Style) -> str:
    """How good a LoRA is: its error, the worst layer, the blocks, and what no LoRA of this kind carries."""
    least, most = report["rank"]["least"], report["rank"]["most"]
    rank = f"rank {most}" if least == most else f"ranks {least} to {most}"
    names = "the inputs' names" if report["format"] == "auto" else f"{report['format']} names"
    head = [name, f"{report['tensors']} layers", rank, names, size(report["bytes"])]
    error, worst, lost = report["relative_error"], report["worst"], report["not_carried"]
    lines = ["  " + style.bold(style.shown(style.dot.join(head)))]
    lines.append(f"  misses {percent(error)} of these layers' difference (in norm; {percent(report['relative_error_unrounded'])} before rounding)")
    lines.append(f"  worst: {style.shown(worst['tensor'])}, {percent(worst['relative_error'])}")
    if lost["tensors"]:
        lines.append(f"  not carried: {lost['tensors']} tensors (norms, biases, embeddings …), {percent(lost['share'])} of the squared difference")
    rows = [[block, percent(entry["share"]), percent(entry["relative_error"])] for block, entry in report["blocks"].items()]
    return "\n".join([*lines, "", table(["block", "share", "misses"], rows, style)])
