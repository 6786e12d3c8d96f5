"""A campaign of faults: everything that can go wrong around a merge, many times, at moments drawn by lot.

    python tests/faults/campaign.py --rounds 200 --report faults.md

Whatever happens: the old file is whole or the new one is complete and right, there is one clear line, nothing stays
behind after the next run, no process dies or hangs, and what it says is true.  The report counts what was tried.  Some
faults need root (mount, chattr) or Linux; where they cannot be brought about the report says so.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from ground import FAULTS, LIMIT, Fault, Ground  # noqa: E402  after the path
from inside import round_of  # noqa: E402

MODULES = ("fault_signals", "fault_space", "fault_inputs", "fault_targets", "fault_limits", "fault_host", "fault_torch")
SEED = "hyper-merge"

for _module in MODULES:
    importlib.import_module(_module)


class Count:
    """What came of one kind of fault."""

    def __init__(self) -> None:
        self.survived: collections.Counter[str] = collections.Counter()
        self.skipped: collections.Counter[str] = collections.Counter()
        self.found: list[str] = []

    def add(self, answer: dict[str, str], number: int) -> None:
        if "survived" in answer:
            self.survived[answer["survived"]] += 1
        elif "skipped" in answer:
            self.skipped[answer["skipped"]] += 1
        else:
            self.found.append(f"round {number}: {answer['found']}")

    @property
    def tried(self) -> int:
        return self.survived.total() + len(self.found)


def rounds_of(fault: Fault, rounds: int) -> int:
    """How often this fault is tried in a campaign of so many rounds."""
    return max(1, round(rounds * fault.share))


def bring_about(ground: Ground, fault: Fault, first: int, count: int, seed: str) -> Count:
    """`count` rounds of one fault."""
    result = Count()
    if not fault.inside:
        for number in range(first, first + count):
            answer = round_of(ground, fault.name, f"{seed}/{fault.name}/{number}")
            result.add(answer, number)
            if "skipped" in answer:
                break
        return result
    next_round = first
    while next_round < first + count:
        for number, answer in _inside(ground, fault, next_round, first + count - next_round, seed):
            result.add(answer, number)
            next_round = number + 1
            if "skipped" in answer:
                return result
    return result


def _inside(ground: Ground, fault: Fault, first: int, count: int, seed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Rounds in a process of their own.  Its death is the answer of the round in which it died."""
    arguments = [str(HERE / "inside.py"), str(ground.folder), fault.module, fault.name, seed, str(first), str(count)]
    child = ground.python(ground.folder, arguments, stderr=subprocess.STDOUT)
    reached, other = first - 1, []
    try:
        for line in _lines(child):
            if line.startswith("{"):
                answer = json.loads(line)
                reached = answer.pop("round")
                yield reached, answer
            else:
                other.append(line)
    finally:
        child.kill()
        child.communicate()
    if reached < first + count - 1:
        yield reached + 1, {"found": f"the process ended with {child.returncode}: {''.join(other)[-3000:]}"}


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    """Its lines; ends with it.  A child of which nothing comes for too long is killed."""
    assert child.stdout is not None
    line = " "
    while line:
        dog = threading.Timer(2 * LIMIT, child.kill)
        dog.start()
        line = child.stdout.readline()
        dog.cancel()
        if line:
            yield line
    child.wait()


# ---- the report -----------------------------------------------------------------------------------------------------


def table(counts: dict[str, Count]) -> str:
    """The report, as Markdown."""
    lines = ["| fault | tried | survived | found | how it ended |", "|---|---:|---:|---:|---|"]
    for name, count in counts.items():
        ways = ", ".join(f"{way} {number}" for way, number in count.survived.most_common())
        ways += "; ".join(f"SKIPPED: {reason}" for reason in count.skipped)
        lines.append(f"| {name} | {count.tried} | {count.survived.total()} | {len(count.found)} | {ways} |")
    tried, survived = (sum(numbers) for numbers in zip(*((c.tried, c.survived.total()) for c in counts.values())))
    lines.append(f"| **all** | **{tried}** | **{survived}** | **{tried - survived}** | |")
    for name, count in counts.items():
        for text in count.found[:20]:
            lines.append(f"\n{name}, {text}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="of the chief faults; others have a share (200)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the counts go, besides stdout")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="faults whose names hold this")
    parser.add_argument("--megabytes", type=float, default=25, help="of each model (25)")
    parser.add_argument("--seed", default=SEED, help="other moments")
    parser.add_argument("--first", type=int, default=0, metavar="ROUND", help="begin at this round")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    args = parser.parse_args()
    # A shell that starts this in the background may have had signals ignored, and all that is started here inherits it.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory(prefix="hyper-merge-faults-", dir=args.folder) as folder:
        ground = Ground(Path(folder), args.megabytes)
        for fault in FAULTS.values():
            if args.only and not any(text in fault.name for text in args.only):
                continue
            began = time.monotonic()
            counts[fault.name] = bring_about(ground, fault, args.first, rounds_of(fault, args.rounds), args.seed)
            count = counts[fault.name]
            print(
                f"{fault.name}: {count.tried} tried, {len(count.found)} found"
                + "".join(f", SKIPPED ({reason})" for reason in count.skipped)
                + f" ({time.monotonic() - began:.0f} s)",
                *count.found[:5],
                sep="\n    ",
                flush=True,
            )
            if args.report is not None:
                args.report.write_text(table(counts), encoding="utf-8")
    text = table(counts) if counts else "no such fault\n"
    print(text)
    return 1 if not counts or any(count.found for count in counts.values()) else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
