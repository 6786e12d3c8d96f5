"""The command line: reads arguments, calls the package, prints tables or JSON.

Exit status: 0 done, 1 refused or failed (one line on stderr), 2 usage, 130 cancelled.  stdout carries results only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import __version__, _core, process, table
from ._core import Error
from .axes import axis_number
from .loras import is_ours, lora, pack_paths
from .model import HyperModel, Member, load, solve
from .pictures.output import is_ours as is_our_picture
from .progress import Bar
from .questions import compare, inspect, recover

_SIGNED = {"--at", "--block", "--weights"}
"""Options whose values may begin with a minus sign, which argparse would take for another option."""

_UNITS = {"": 1 << 20, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def _numbers(text: str) -> list[float]:
    """List of numbers from text such as 0.4,-0.2 (commas or spaces)."""
    try:
        values = [float(part) for part in re.split(r"[,\s]+", text.strip())]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 0.4,-0.2") from None
    if not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"'{text}' holds a number that is not finite")
    return values


def _block(text: str) -> tuple[str, list[float]]:
    """GLOB=0.4,-0.2 → (GLOB, numbers); the last = divides, since a name may hold one."""
    glob, equals, values = text.rpartition("=")
    if not equals or not glob:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form GLOB=λ,κ")
    return glob, _numbers(values)


def _bytes(text: str) -> int:
    """512MB, 1GiB or a bare number of MiB → bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmg]i?)?b?\s*", text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 512MB or 1GiB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def _ranks(text: str) -> list[int]:
    """64,32 → [64, 32]."""
    return [_count(part) for part in re.split(r"[,\s]+", text.strip())]


def _count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def _fraction(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1, such as 0.1")
    return value


def _output(text: str) -> str:
    """The name of a file to write: with a slash at its end it would be a folder, and noticed after hours of reading."""
    if not text or text.endswith(("/", os.sep)):
        raise argparse.ArgumentTypeError(f"'{text}' is not the name of a file to write")
    if text.lower().endswith((".ckpt", ".pt", ".pth", ".bin")):  # hosts would unpickle it
        raise argparse.ArgumentTypeError(f"'{text}' would be a safetensors file under another name; call it .safetensors")
    return text


def _axis(text: str) -> int:
    """The number of an axis."""
    try:
        return axis_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not the number of an axis, such as 1") from None


def _name(text: str) -> tuple[int, str]:
    """1=warmth → (1, "warmth")."""
    k, equals, name = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form K=NAME")
    return _axis(k), name


def _axes_drawn(text: str) -> list[int]:
    """1,3 → [1, 3]: one or two different axes."""
    found = [_axis(part) for part in re.split(r"[,\s]+", text.strip())]
    if len(found) > 2 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"'{text}' is not one or two different axes such as 1,3")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hyper-merge",
        description="Many checkpoints of one architecture become one base and a few directions with sliders.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hyper-merge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, json_too: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False)
        if json_too:
            made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
        if name != "inspect":
            made.add_argument("--threads", type=_count, metavar="N", help="threads that compute (one per CPU)")
            made.add_argument("--memory", type=_bytes, metavar="SIZE", help="for buffers, such as 512MB; a bare number is MiB (256)")
        made.add_argument("--verbose", action="store_true", help="say on stderr how the files were read")
        return made

    def selection(made: argparse.ArgumentParser) -> None:
        made.add_argument("--include", action="append", default=[], metavar="GLOB", help="merge only these tensors")
        made.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="do not merge these tensors")
        made.add_argument("--common", action="store_true", help="merge what all models share instead of refusing")
        made.add_argument("--allow-nonfinite", action="store_true", help="copy tensors that hold NaN or Inf")

    dtypes = ("fp16", "bf16", "fp32")
    made = command("solve", "find the base and the directions of several models, and write the hyper-model")
    made.add_argument("models", nargs="+", metavar="MODEL", help="checkpoints or LoRAs, as .safetensors")
    made.add_argument("-o", "--output", type=_output, required=True, metavar="OUT.hyper.safetensors", help="the hyper-model to write")
    made.add_argument("--base", metavar="mean|none|FILE", help="what differences are taken from (mean); LoRAs need FILE")
    made.add_argument("--directions", type=_count, metavar="K", help="how many (2, or fewer if the models span less)")
    made.add_argument("--method", choices=("exact", "als"), default="exact", help="als: alternating updates")
    made.add_argument("--rank", type=_ranks, action="extend", metavar="R,…", help="hyper-LoRAs: each direction's rank, which also says how many; found one by one, then improved together")
    made.add_argument("--weights", type=_numbers, action="extend", metavar="W,…", help="one number > 0 per model")
    selection(made)
    made.add_argument("--dtype", choices=dtypes, help="of the merged tensors (as in the first model)")
    made.add_argument("--hash", action="store_true", help="also record the sha256 of each file and of what is written (reads them once more)")
    made.add_argument("--split", action="store_true", help="write the base as a plain checkpoint beside the directions")
    made.add_argument("--force", action="store_true", help="replace a file that hyper-merge did not write")

    made = command("inspect", "say what a hyper-model or a checkpoint is")
    made.add_argument("model", metavar="HYPER|MODEL", help="a hyper-model, a checkpoint or a LoRA")

    made = command("compare", "distances and cosines between models, duplicates, mixtures and groups")
    made.add_argument("models", nargs="+", metavar="MODEL", help="2 to 64 checkpoints, or LoRAs alone")
    selection(made)
    made.add_argument("--plot", metavar="FILE.svg|FILE.png", help="also draw the distances, with groups together")
    made.add_argument("--theme", choices=("auto", "light", "dark"), default="auto", help="auto: an SVG follows the reader's system")
    made.add_argument("--force", action="store_true", help="replace a picture that hyper-merge did not draw")

    made = command("project", "coordinates and residual of models that were not merged")
    made.add_argument("hyper", metavar="HYPER", help="what solve wrote")
    made.add_argument("models", nargs="+", metavar="MODEL", help="checkpoints, or LoRAs for the base of HYPER")

    made = command("recover", "find the mixture of models that best explains a checkpoint")
    made.add_argument("model", metavar="MODEL", help="the checkpoint to be explained; give it before --from")
    made.add_argument("--from", dest="parents", nargs="+", action="extend", required=True, metavar="MODEL", help="what it may be a mixture of")
    made.add_argument("--free", action="store_true", help="do not force the weights to sum to 1")
    made.add_argument("--blocks", action="store_true", help="also for each block of the network")
    selection(made)

    made = command("axes", "show the axes of a hyper-model, or write it anew with others' names and signs")
    made.add_argument("hyper", metavar="HYPER", help="what solve wrote")
    made.add_argument(
        "--name", type=_name, action="append", default=[], metavar="K=NAME", help="call axis K (1, 2 …) so; K= takes the name away"
    )
    made.add_argument("--flip", type=_axis, action="append", default=[], metavar="K", help="let axis K point the other way")
    made.add_argument("-o", "--output", type=_output, metavar="OUT.hyper.safetensors", help="write there (in place of HYPER)")
    made.add_argument("--force", action="store_true", help="replace a file that hyper-merge did not write")

    made = command("map", "draw where the models lie on the plane of two directions", json_too=False)
    made.add_argument("hyper", metavar="HYPER", help="what solve wrote")
    made.add_argument("-o", "--output", required=True, metavar="MAP.svg|MAP.png", help="the picture to write")
    made.add_argument("--project", nargs="+", action="extend", default=[], metavar="MODEL", help="also show models that were not merged")
    made.add_argument("--axes", type=_axes_drawn, metavar="K,K", help="the directions to draw along (1,2)")
    made.add_argument("--theme", choices=("auto", "light", "dark"), default="auto", help="auto: an SVG follows the reader's system")
    made.add_argument("--force", action="store_true", help="replace a file that hyper-merge did not write")

    made = command("lora", "write a direction, a blend, or the difference of two checkpoints as a LoRA")
    made.add_argument("hyper", nargs="?", metavar="HYPER", help="what solve wrote, with --direction, --directions or --at")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--direction", type=_count, metavar="K", help="this direction: its strength is the multiplier")
    what.add_argument("--directions", choices=("all",), help="each in a file of its own, with the base and a list of strengths")
    what.add_argument("--at", type=_numbers, action="extend", metavar="λ,κ,…", help="this blend; missing ones are 0")
    made.add_argument("--from", dest="from_", metavar="MODEL", help="with --to, instead of HYPER: the difference of two checkpoints")
    made.add_argument("--to", metavar="MODEL", help="what the LoRA makes of --from at strength 1")
    made.add_argument("-o", "--output", type=_output, required=True, metavar="OUT.safetensors", help="the LoRA; with --directions OUT-1, OUT-2 …, OUT-base and OUT.txt")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--rank", type=_count, metavar="R", help="of every layer (64)")
    how.add_argument("--size", type=_bytes, metavar="SIZE", help="of the file, such as 150MB, spent where it helps most")
    how.add_argument("--error", type=_fraction, metavar="E", help="relative error to be reached with the fewest bytes, such as 0.1")
    made.add_argument("--format", choices=("auto", "kohya", "comfyui", "diffusers"), default="auto", help="of the names (auto: kohya where known)")
    made.add_argument("--diff", action="store_true", help="norms and biases too, as whole differences")
    made.add_argument("--dtype", choices=dtypes, help="of the factors (fp16)")
    made.add_argument("--force", action="store_true", help="replace a file that hyper-merge did not write")

    made = command("merge", "write one blend of a hyper-model as a checkpoint", json_too=False)
    made.add_argument("hyper", metavar="HYPER", help="what solve wrote")
    made.add_argument("--at", type=_numbers, action="extend", required=True, metavar="λ,κ,…", help="the multipliers; missing ones are 0")
    made.add_argument("-o", "--output", type=_output, required=True, metavar="OUT.safetensors", help="the checkpoint to write")
    made.add_argument(
        "--block", type=_block, action="append", default=[], metavar="GLOB=λ,κ", help="other multipliers for these tensors; the last match wins"
    )
    made.add_argument("--dtype", choices=dtypes, help="of the merged tensors (as stored)")
    made.add_argument("--exact", nargs="+", metavar="MODEL", help="blend from the models themselves, in solve's order")
    made.add_argument("--carrier", metavar="MODEL", help="gives what is not merged")
    made.add_argument("--vae", metavar="FILE", help="gives the VAE")
    made.add_argument("--force", action="store_true", help="replace a file that hyper-merge did not write")
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """parse_args, but "--at -0.3,0.2" and models after options ("solve A -o OUT B C") work too."""
    joined: list[str] = []
    for item in argv:
        if joined and joined[-1] in _SIGNED and re.match(r"-[\d.]", item):
            joined[-1] += "=" + item
        else:
            joined.append(item)
    args, rest = parser.parse_known_args(joined)
    if rest and (not hasattr(args, "models") or any(item.startswith("-") for item in rest)):
        parser.error("unrecognized arguments: " + " ".join(rest))
    if rest:
        args.models += rest
    return args


class _Run:
    """One command being carried out: where results go, and what it means to be interrupted."""

    def __init__(self, args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        self.args = args
        self.parser = parser
        self.style = table.style_for(sys.stdout)
        self.output: str | None = None
        self._before: tuple[int, int] | None = None
        self._begun = time.monotonic()

    def limits(self) -> dict[str, int | None]:
        """Keyword arguments of every long call."""
        return {"memory_budget": self.args.memory, "threads": self.args.threads}

    def selection(self) -> dict[str, Any]:
        """Keyword arguments about which tensors take part."""
        return {name: getattr(self.args, name) for name in ("include", "exclude", "common", "allow_nonfinite")}

    def watch_output(self, inputs: Sequence[str], output: str | None = None) -> None:
        """Refuses an output that could not be written, before hours of reading; the core looks again when it writes."""
        self.expect_output(output if output is not None else self.args.output)
        targets = [self.output, _split_base(self.output)] if getattr(self.args, "split", False) else [self.output]
        for path in targets:
            folder = os.path.dirname(os.path.abspath(path))
            if not os.path.isdir(folder):
                raise Error(f"{path}: the folder {folder} does not exist")
            if os.path.isdir(path):
                raise Error(f"{path}: is a folder; give the name of the file to write")
            if not os.path.exists(path):
                continue
            if not os.path.isfile(path):
                raise Error(f"{path}: exists and is not a file; choose another name")
            if any(os.path.exists(item) and os.path.samefile(item, path) for item in inputs):
                raise Error(f"{path}: is one of the inputs; write to another name")
            if not self.args.force and not _is_ours(path):
                raise Error(f"{path}: exists and was not written by hyper-merge; choose another name or use --force")

    def expect_output(self, path: str) -> None:
        """What `was_written` will be asked about."""
        self.output = path
        self._before = _stamp(path)

    def was_written(self) -> bool:
        """Did the output appear although the command was interrupted?"""
        return self.output is not None and _stamp(self.output) not in (None, self._before)

    def say(self, text: str) -> None:
        """A result for people, on stdout."""
        process.show(text)

    def note(self, text: str) -> None:
        """A remark, on stderr."""
        process.complain(f"hyper-merge: {table.printable(text)}")

    def written(self, *paths: str) -> None:
        """The last line of a command that wrote files."""
        files = ", ".join(f"{table.printable(path)} ({table.size(os.path.getsize(path))})" for path in paths)
        self.say(f"  wrote {files} in {time.monotonic() - self._begun:.1f} s")

    def result(self, answer: dict[str, Any]) -> None:
        """The one JSON object."""
        process.show(json.dumps(answer, ensure_ascii=True))

    def verbose_start(self) -> None:
        """--verbose: kernels and threads."""
        if self.args.verbose:
            cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            threads = getattr(self.args, "threads", None) or min(cpus, 16)
            self.note(f"version {__version__}, kernels: {_core.kernel_name()}, threads: {threads}")

    def verbose(self, what: str, statistics: dict[str, float]) -> None:
        """--verbose: how a pass, called `what`, read its files."""
        if self.args.verbose and statistics:
            direct, cached = statistics["direct_bytes"], statistics["cached_bytes"]
            seconds = max(statistics["seconds"], 1e-9)
            self.note(
                f"{what}: {table.size(direct)} read past the page cache, {table.size(cached)} through it, in "
                f"{seconds:.2f} s ({table.size((direct + cached) / seconds)}/s)"
            )


def _stamp(path: str) -> tuple[int, int] | None:
    """What tells one state of a file from another; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _split_base(output: str) -> str:
    """Where --split puts the base: NAME.hyper.safetensors → NAME.base.safetensors."""
    ending = next((e for e in (".hyper.safetensors", ".safetensors") if output.endswith(e)), "")
    return output.removesuffix(ending) + ".base.safetensors"


def _is_ours(path: str) -> bool:
    """Did hyper-merge write this file?"""
    return is_our_picture(path) or is_ours(path)


def _solve(run: _Run) -> None:
    args = run.args
    run.watch_output(args.models if args.base in (None, "mean", "none") else [*args.models, args.base])
    bar = Bar("measuring")

    def on_pass(number: int, loss: float, total: float) -> None:
        share = table.percent(loss / total if total > 0 else 0.0)
        bar.say(f"pass {number + 1} (loss {share})")
        if args.verbose:
            run.note(f"pass {number}: loss {share}")

    with bar as progress:
        hyper = solve(
            args.models,
            args.base,
            args.directions,
            args.method,
            weights=args.weights,
            dtype=args.dtype,
            hash=args.hash,
            rank=args.rank,
            on_pass=on_pass,
            progress=progress,
            **run.selection(),
            **run.limits(),
        )
    run.verbose("measuring", hyper.statistics)
    with Bar("writing") as progress:
        hyper.save(args.output, force=args.force, split=args.split, hash=args.hash, progress=progress, **run.limits())
    run.verbose("writing", hyper.statistics)
    document = hyper.document
    if args.json:
        run.result(document)
    else:
        run.say(table.hyper(document, run.style))
        run.written(args.output, *([_split_base(args.output)] if args.split else []))
    for note in document.get("notes", ()):
        run.note("note: " + note)


def _inspect(run: _Run) -> None:
    answer = inspect(run.args.model)
    if run.args.json:
        run.result(answer)
    elif "members" in answer:
        described = answer["file"]
        parts = [described["name"], f"family {answer.get('family') or described['family']}", table.size(described["size"])]
        if described.get("low_rank"):
            parts.append(table.low_rank(described["low_rank"]))
        run.say("  " + run.style.bold(run.style.shown(run.style.dot.join(parts))))
        run.say(table.hyper(answer, run.style, blocks=True))
    else:
        run.say(table.checkpoint(answer, run.style))


def _compare(run: _Run) -> None:
    from .pictures import matrix, theme  # here and in `_map`: every other command starts the sooner

    args = run.args
    if args.plot is not None:
        try:
            theme.suffix_of(args.plot)
        except Error as error:
            run.parser.error(str(error))
        theme.require()
        run.watch_output(args.models, args.plot)
    statistics: dict[str, float] = {}
    with Bar("reading") as progress:
        answer = compare(args.models, progress=progress, statistics=statistics, **run.selection(), **run.limits())
    run.verbose("reading", statistics)
    if args.plot is not None:
        matrix.draw(answer, args.plot, look=args.theme, force=args.force)
    if args.json:
        run.result(answer)
    else:
        run.say(table.compare(answer, run.style))
        if args.plot is not None:
            run.written(args.plot)
    for note in answer.get("notes", ()):
        run.note("note: " + note)


def _entry(member: Member) -> dict[str, Any]:
    """A member as JSON has it."""
    return {
        "name": member.name,
        "multipliers": list(member.multipliers),
        "residual": member.residual,
        "norm": member.norm,
    }


def _project(run: _Run) -> None:
    hyper = load(run.args.hyper)
    entries = []
    for model in run.args.models:
        with Bar(os.path.basename(model)) as progress:
            entries.append(_entry(hyper.project(model, progress=progress, **run.limits())))
        run.verbose(os.path.basename(model), hyper.statistics)
    if run.args.json:
        run.result({"models": entries})
    else:
        run.say(table.members(entries, hyper.directions, run.style, hyper.axes))


def _recover(run: _Run) -> None:
    args = run.args
    statistics: dict[str, float] = {}
    with Bar("reading") as progress:
        answer = recover(
            args.model,
            args.parents,
            free=args.free,
            blocks=args.blocks,
            progress=progress,
            statistics=statistics,
            **run.selection(),
            **run.limits(),
        )
    run.verbose("reading", statistics)
    if args.json:
        run.result(answer)
    else:
        run.say(table.recover(answer, run.style))
    for note in answer.get("notes", ()):
        run.note("note: " + note)


def _axes(run: _Run) -> None:
    args = run.args
    if args.output is not None and not args.name and not args.flip:
        run.parser.error("-o: nothing is to be written without --name or --flip")
    hyper = load(args.hyper)
    for option, ks in (("--name", [k for k, _ in args.name]), ("--flip", args.flip)):
        for k in ks:
            if not 1 <= k <= hyper.directions:
                run.parser.error(f"{option} {k}: {args.hyper} has {hyper.directions} axes")
    target = args.output if args.output is not None else args.hyper
    elsewhere = not (os.path.exists(target) and os.path.samefile(target, args.hyper))
    changes = bool(args.name or args.flip)
    if changes:
        if elsewhere:
            run.watch_output([args.hyper])
        else:
            run.expect_output(target)
        with Bar("writing") as progress:
            hyper.rename(
                dict(args.name), args.flip, target if elsewhere else None, force=args.force, progress=progress,
                **run.limits(),
            )  # fmt: skip
        run.verbose("writing", hyper.statistics)
        hyper = load(target)
    if args.json:
        run.result({"axes": [{"name": name} for name in hyper.axes], "directions": hyper.directions})
    else:
        run.say(table.axes(hyper.document, run.style))
        if changes:
            run.written(target)
    linked = hyper.base.get("name")
    if changes and elsewhere and linked and not _same_folder(target, args.hyper):
        run.note(f"note: its base {linked} is not in the file; it must lie beside it")


def _same_folder(first: str, second: str) -> bool:
    return os.path.samefile(*(os.path.dirname(os.path.realpath(path)) for path in (first, second)))


def _map(run: _Run) -> None:
    from .pictures import theme

    args = run.args
    try:
        theme.suffix_of(args.output)
    except Error as error:
        run.parser.error(str(error))
    theme.require()
    run.watch_output([args.hyper, *args.project])
    hyper = load(args.hyper)
    for k in args.axes or ():
        if not 1 <= k <= hyper.directions:
            run.parser.error(f"--axes {k}: {args.hyper} has {hyper.directions} axes")
    projected = []
    for model in args.project:
        with Bar(os.path.basename(model)) as progress:
            projected.append(hyper.project(model, progress=progress, **run.limits()))
        run.verbose(os.path.basename(model), hyper.statistics)
    hyper.map(args.output, project=projected, axes=args.axes, theme=args.theme, force=args.force)
    run.written(args.output)


def _merge(run: _Run) -> None:
    args = run.args
    others = [path for path in (args.carrier, args.vae) if path is not None]
    run.watch_output([args.hyper, *(args.exact or ()), *others])
    hyper = load(args.hyper)
    _check_counts(run, hyper)
    blocks: dict[str, list[float]] = {}
    for glob, values in args.block:
        blocks.pop(glob, None)  # a repeated glob counts at its last place: the last match wins
        blocks[glob] = values
    with Bar("writing") as progress:
        hyper.merge(
            args.at,
            args.output,
            blocks=blocks,
            dtype=args.dtype,
            exact=args.exact,
            carrier=args.carrier,
            vae=args.vae,
            force=args.force,
            progress=progress,
            **run.limits(),
        )
    run.verbose("blending", hyper.statistics)
    at = [*args.at, *[0.0] * (hyper.directions - len(args.at))]
    values = ", ".join(f"{run.style.axis(k + 1, hyper.axes)} = {value:+g}" for k, value in enumerate(at))
    run.say(f"  {table.printable(os.path.basename(args.hyper))} at {values}")
    run.written(args.output)


def _lora(run: _Run) -> None:
    args = run.args
    pair = args.from_ is not None or args.to is not None
    if pair and (args.from_ is None or args.to is None):
        run.parser.error("--from and --to belong together")
    if pair and (args.hyper or args.direction or args.directions or args.at):
        run.parser.error("either HYPER or --from and --to, not both")
    if not pair and not (args.hyper and (args.direction or args.directions or args.at)):
        run.parser.error("give HYPER with --direction, --directions all or --at, or --from and --to")
    options = {
        "rank": args.rank, "error": args.error, "size": args.size, "dtype": args.dtype, "format": args.format,
        "whole": args.diff, "force": args.force, **run.limits(),
    }  # fmt: skip
    if pair:
        run.watch_output([args.from_, args.to])
        statistics: dict[str, float] = {}
        with Bar("decomposing") as progress:
            report = lora(args.from_, args.to, args.output, progress=progress, statistics=statistics, **options)
        run.verbose("decomposing", statistics)
        _say_lora(run, [(args.output, report)])
        return
    hyper = load(args.hyper)
    if args.direction and args.direction > hyper.directions:
        run.parser.error(f"--direction {args.direction}: {args.hyper} has {hyper.directions} directions")
    if args.at and len(args.at) > hyper.directions:
        run.parser.error(f"--at: {len(args.at)} multipliers for {hyper.directions} directions of {args.hyper}")
    if args.directions:
        files, base, text = pack_paths(args.output, hyper.directions)
        for file in [*files, base]:
            run.watch_output([args.hyper], file)
        with Bar("decomposing") as progress:
            reports = hyper.slider_pack(args.output, progress=progress, **options)
        _say_lora(run, list(zip(files, reports)), base, text)
        return
    run.watch_output([args.hyper])
    with Bar("decomposing") as progress:
        report = hyper.lora(args.output, direction=args.direction, at=args.at, progress=progress, **options)
    run.verbose("decomposing", hyper.statistics)
    _say_lora(run, [(args.output, report)])


def _say_lora(run: _Run, reports: list[tuple[str, dict[str, Any]]], *others: str) -> None:
    """The reports of the LoRAs that were written; a pack's are a list."""
    for path, report in reports:
        if run.args.error and report["relative_error"] > 1.01 * run.args.error:  # at their full rank, rounding is left
            run.note(f"note: {path} misses {report['relative_error']:.2g}, more than --error {run.args.error:g}: rounding; --dtype fp32 has less")
    if run.args.json:
        entries = [{"path": path, **report} for path, report in reports]
        run.result({"loras": entries, "files": [path for path, _ in reports] + list(others)} if others else entries[0])
        return
    for path, report in reports:
        run.say(table.lora(os.path.basename(path), report, run.style))
    run.written(*(path for path, _ in reports), *others)


def _check_counts(run: _Run, hyper: HyperModel) -> None:
    """More multipliers than directions is a usage error (exit 2)."""
    for what, values in [("--at", run.args.at), *((f"--block {glob}", values) for glob, values in run.args.block)]:
        if len(values) > hyper.directions:
            run.parser.error(f"{what}: {len(values)} multipliers for {hyper.directions} directions of {run.args.hyper}")


_COMMANDS = {
    "solve": _solve,
    "inspect": _inspect,
    "compare": _compare,
    "project": _project,
    "recover": _recover,
    "axes": _axes,
    "map": _map,
    "merge": _merge,
    "lora": _lora,
}


def _fail(text: str) -> int:
    process.complain(f"hyper-merge: error: {table.printable(text)}")
    process.give_up(sys.stdout)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out one command; returns the exit status (usage errors leave by SystemExit(2), as argparse does).

    argv: None for the process's own, which then ends with this command.
    """
    run: _Run | None = None
    with process.Interruptible(last=argv is None) as work:
        try:
            work.begin()
            process.fill_standard_streams()
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="replace")  # a name that the terminal cannot show must not end the command
            parser = _parser()
            run = _Run(_parse(parser, sys.argv[1:] if argv is None else argv), parser)
            return _carry_out(run, work)
        except KeyboardInterrupt:
            process.complain("hyper-merge: cancelled; " + _after_cancel(run))
            process.give_up(sys.stdout)
            return 130


def _carry_out(run: _Run, work: process.Interruptible) -> int:
    """The command itself; returns the exit status.  Raises KeyboardInterrupt, and SystemExit for usage errors."""
    try:
        run.verbose_start()
        _COMMANDS[run.args.command](run)
        process.flush()
        work.over()
    except BrokenPipeError:  # the reader has gone
        work.over()
        process.give_up(sys.stdout)
        return 1
    except (Error, OSError, UnicodeError, ImportError) as error:  # modules may want memory or descriptors that are not there
        work.over()
        return _fail(str(error))
    except MemoryError as error:
        work.over()
        return _fail(str(error) or "out of memory; give a smaller --memory or close other programs")
    return 0


def _after_cancel(run: _Run | None) -> str:
    """What became of the output."""
    if run is None or run.output is None:
        return "nothing was written"
    path = table.printable(run.output)
    if run.was_written():
        return f"{path} was complete and stays"
    return f"{path} stays as it was" if os.path.exists(run.output) else "nothing was written"
