"""The benchmark: hyper-merge beside what the machine and other tools give, as ratios.

    make bench [QUICK=1] [SDXL=1] [BENCH_DIR=…]      (python bench/run.py --folder … [--quick] [--sdxl])

Every ratio comes from runs that took turns (who begins changes from round to round), the medians divided; seconds are
those of whole processes, start included.  "Cold" files were dropped from the page cache, and that was checked.  The
raw figures beside are what raw_io.c gets for the same bytes.  The table goes to stdout and build/bench/results.md.
--sdxl measures three checkpoints of SDXL's size instead, in one round (49 GB of disk), the memory above all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from extents import extents, is_merged
from idle import Idle

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "build" / "bench" / "results.md"
MIB = 1 << 20
DIRECT = ("direct", "4", str(4 * MIB))
CACHED = ("cached", "2", str(MIB))
WARM = 0.985
"""Share of the files that must be in the page cache; some kernels take a little away at any time."""


class Done:
    """One process that ran to its end: wall seconds, peak resident bytes, its output."""

    def __init__(self, command: Sequence[str | os.PathLike[str]], folder: Path) -> None:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            begun = time.monotonic()
            child = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=out, stderr=err)
            _, status, usage = os.wait4(child.pid, 0)
            self.seconds = time.monotonic() - begun
            child.returncode = os.waitstatus_to_exitcode(status)
            self.peak = usage.ru_maxrss * 1024
            out.seek(0)
            err.seek(0)
            self.out, self.err = out.read(), err.read()
        if child.returncode != 0:
            typed = " ".join(map(str, command))[:300]
            raise RuntimeError(f"{typed}\nended with {child.returncode}: {self.err[-2000:]}")


class Bench:
    def __init__(self, folder: Path, peers: Path | None, quick: bool) -> None:
        self.folder, self.peers, self.quick = folder.resolve(), peers and peers.absolute(), quick
        self.rounds = 5
        self.idle = Idle()
        self.rows: list[tuple[str, str, str, str]] = []
        self.peaks: dict[tuple[str, int], int] = {}
        self.out = self.folder / "bench-scratch"
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self.raw = self.out / "raw_io"
        subprocess.run(["gcc", "-O2", "-pthread", HERE / "raw_io.c", "-o", self.raw], check=True)

    # ---- the parts of a measurement ------------------------------------------------------------------------------

    def models(
        self, name: str, divide: int, dtype: str = "fp16", delta: float = 0.03, shapes: str = "sd15", count: int = 8
    ) -> list[Path]:
        """The files of a set, made where they are missing."""
        folder = self.folder / name
        say(f"models: {folder}")
        options = ["--shapes", shapes, "--count", str(count), "--divide", str(divide), "--dtype", dtype]
        subprocess.run([sys.executable, HERE / "models.py", folder, *options, "--delta", str(delta)], check=True)
        return [folder / f"model-{m + 1}.safetensors" for m in range(count)]

    def tool(self, *words: str | Path) -> Done:
        """The command line, as a user starts it."""
        return Done([sys.executable, "-m", "hypermerge_ext", *words], self.out)

    def evict(self, files: Sequence[Path]) -> None:
        share = float(Done([self.raw, "evict", *files], self.out).out)
        if share > 0.01:
            raise RuntimeError(f"{share:.0%} of the files stayed in the page cache: nothing here can be called cold")

    def warm(self, files: Sequence[Path]) -> None:
        for _ in range(5):
            self.read(CACHED, [(file, 0, file.stat().st_size) for file in files])
            share = float(Done([self.raw, "resident", *files], self.out).out)
            if share > WARM:
                return
        raise RuntimeError(f"only {share:.0%} of the files stay in the page cache: memory is too short for a warm run")

    def read(self, how: Sequence[str], parts: Sequence[tuple[Path, int, int]]) -> float:
        """Seconds to read these (file, offset, bytes)."""
        listing = self.out / "list"
        listing.write_text("".join(f"{offset} {size} {file}\n" for file, offset, size in parts))
        return float(Done([self.raw, "read", *how, listing], self.out).out.split()[1])

    def write(self, size: int) -> float:
        """Seconds to write and fsync a file of this size."""
        target = self.out / "raw"
        seconds = float(Done([self.raw, "write", *DIRECT, target, str(size)], self.out).out.split()[1])
        target.unlink()
        return seconds

    def turns(self, *runs: Callable[[], float]) -> list[list[float]]:
        """Each of the runs once per round, starting with another one each time.  Seconds, by run."""
        seconds: list[list[float]] = [[] for _ in runs]
        for turn in range(self.rounds):
            for i in range(len(runs)):
                which = (i + turn) % len(runs)
                self.idle.wait()
                seconds[which].append(runs[which]())
            say("  " + " | ".join(f"{taken[-1]:.2f} s" for taken in seconds))
        return seconds

    def ratio(self, what: str, ours: list[float], raw: list[float], size: int, bar: float, more: str = "") -> None:
        """A row for ours / raw."""
        pairs = sorted(a / b for a, b in zip(ours, raw, strict=True))
        found = statistics.median(ours) / statistics.median(raw)
        self.row(
            what,
            f"**{found:.2f} ×** (rounds {pairs[0]:.2f} … {pairs[-1]:.2f}); {statistics.median(ours):.2f} s against "
            f"{statistics.median(raw):.2f} s for {size / 1e9:.2f} GB{more}",
            f"≤ {bar} ×",
            found <= bar,
        )

    def row(self, what: str, found: str, bar: str = "", met: bool | None = None) -> None:
        self.rows.append((what, found, bar, "" if met is None else "met" if met else "**missed**"))
        verdict = "" if met is None else " met" if met else " MISSED"
        say(f"  {what}: {found}{verdict}".replace("\\|", "|"))

    def peak(self, command: str, models: int, done: Done) -> None:
        self.peaks[command, models] = max(self.peaks.get((command, models), 0), done.peak)

    # ---- the measurements ----------------------------------------------------------------------------------------

    def eigenvalues(self) -> None:
        divide = 64 if self.quick else 16
        for dtype in ("fp16", "bf16"):
            for delta in (0.03, 0.001):
                name = "slice" if (dtype, delta) == ("fp16", 0.03) else "slice-other"
                files = self.models(name, divide, dtype, delta)
                answer = json.loads(Done([sys.executable, HERE / "eigenvalues.py", *files], self.out).out)
                numbers = sum(size for _, size in extents(files[0])) // 2
                self.row(
                    f"eigenvalues against f64: {dtype}, \\|Δ\\|/\\|W\\| = {delta * 100:g} %",
                    f"**{answer['error']:.1e}** · σ₁² ({numbers / 1e6:.0f} M numbers × 8)",
                    "≤ 1e-6 · σ₁²",
                    answer["error"] <= 1e-6,
                )
                if name == "slice":
                    self.expected = answer["reference"]
        shutil.rmtree(self.folder / "slice-other")

    def compare(self, files: list[Path], warm: bool) -> None:
        parts = [(file, *extent) for file in files for extent in extents(file)]
        ready = self.warm if warm else self.evict
        said: list[str] = []

        def ours() -> float:
            ready(files)
            done = self.tool("compare", "--json", "--verbose", *files)
            self.peak("compare", len(files), done)
            said[:] = re.findall(r"reading: (.*)", done.err)
            return done.seconds

        def raw() -> float:
            ready(files)
            return self.read(CACHED if warm else DIRECT, parts)

        how = "warm, against two pread threads" if warm else "cold, against a direct read"
        if not warm:
            raw()  # of files that were just made, some disks take several times as long at the first time
        say(f"compare, {how}: ours | raw")
        self.ratio(
            f"`compare`, {len(files)} checkpoints, {how}",
            *self.turns(ours, raw),
            sum(size for _, _, size in parts),
            2.4 if warm else 1.15,
            (", stretch 1.8 ×" if warm else "") + f" (its own account: {said[0]})",
        )

    def solve_and_merge(self, files: list[Path], directions: int = 2) -> None:
        """`directions` is what the disk has room for."""
        hyper, merged = self.out / "family.hyper.safetensors", self.out / "merged.safetensors"
        twice = [(file, *extent) for file in files for extent in extents(file)] * 2
        copied = [(files[0], *extent) for extent in extents(files[0], lambda *of: not is_merged(*of))]

        def solve() -> float:
            self.evict(files)
            hyper.unlink(missing_ok=True)
            done = self.tool("solve", *files, "--directions", str(directions), "-o", hyper)
            self.peak("solve", len(files), done)
            return done.seconds

        def raw_solve() -> float:
            self.evict(files)
            return self.read(DIRECT, twice + copied) + self.write(hyper.stat().st_size)

        def merge() -> float:
            self.evict([hyper])
            merged.unlink(missing_ok=True)
            done = self.tool("merge", hyper, "--at", ",".join(("0.4", "-0.2")[:directions]), "-o", merged)
            self.peak("merge", len(files), done)
            return done.seconds

        def raw_merge() -> float:
            self.evict([hyper])
            return self.read(DIRECT, [(hyper, 0, hyper.stat().st_size)]) + self.write(merged.stat().st_size)

        # In the first round ours come first: only then are the sizes of their files known.
        say("solve and merge: solve | raw | merge | raw")
        solving, raw_solving, merging, raw_merging = self.turns(solve, raw_solve, merge, raw_merge)
        touched = sum(size for _, _, size in twice + copied) + hyper.stat().st_size
        self.ratio("`solve` to a file, cold, against 2 reads and 1 write", solving, raw_solving, touched, 1.3)
        touched = hyper.stat().st_size + merged.stat().st_size
        self.ratio("`merge` to a file, cold, against 1 read and 1 write", merging, raw_merging, touched, 1.3)
        hyper.unlink()
        merged.unlink()

    def memory_of_few_and_many(self, files: list[Path]) -> None:
        """After the measurements of all files: the same with half of them must take as much."""
        hyper, merged = self.out / "family.hyper.safetensors", self.out / "merged.safetensors"
        four = files[:4]
        self.evict(four)  # reading past the page cache takes other buffers, so both must do it
        self.peak("compare", 4, self.tool("compare", "--json", *four))
        self.peak("solve", 4, self.tool("solve", *four, "-o", hyper))
        self.evict([hyper])
        self.peak("merge", 4, self.tool("merge", hyper, "--at", "0.4,-0.2", "-o", merged))
        for command in ("compare", "solve", "merge"):
            few, many = self.peaks[command, 4], self.peaks[command, 8]
            apart = abs(many - few) / min(many, few)
            self.row(
                f"peak memory of `{command}`, 4 and 8 checkpoints",
                f"{few / MIB:.0f} and **{many / MIB:.0f} MiB**, {apart:.1%} apart",
                "≤ 400 MiB, within 10 %",
                max(few, many) <= 400 * MIB and apart <= 0.1,
            )
        hyper.unlink()
        merged.unlink()

    def sdxl(self) -> None:
        """Once: what matters at this size is that it runs at all on a small machine."""
        self.rounds = 1
        files = self.models("sdxl", 16 if self.quick else 1, shapes="sdxl", count=3)
        self.compare(files, warm=False)
        self.solve_and_merge(files, directions=1)
        peaks = " · ".join(f"{self.peaks[command, 3] / MIB:.0f}" for command in ("compare", "solve", "merge"))
        most = max(self.peaks.values())
        self.row("peak memory, `compare` · `solve` · `merge`", f"**{peaks} MiB**", "≤ 400 MiB", most <= 400 * MIB)

    def neighbours(self) -> None:
        files = self.models("slice", 64 if self.quick else 16)
        self.warm(files)
        size = sum(file.stat().st_size for file in files)
        last: dict[str, Done] = {}

        def child(key: str, *command: str | Path) -> Callable[[], float]:
            def run() -> float:
                last[key] = Done(command, self.out)
                return last[key].seconds

            return run

        def inside(key: str) -> str:
            return f"without imports {json.loads(last[key].out)['seconds']:.1f} s"

        def beside(name: str, against: str, ours: list[float], theirs: list[float], key: str, more: str) -> None:
            slow, fast = statistics.median(theirs), statistics.median(ours)
            self.row(
                f"beside: {name}, {size / 1e9:.1f} GB warm, against `{against}`",
                f"**{slow / fast:.1f} ×** the time ({slow:.1f} s against {fast:.2f} s; {inside(key)}), "
                f"{last[key].peak / last['ours'].peak:.1f} × the memory ({last[key].peak / MIB:.0f} MiB){more}",
            )

        module = (sys.executable, "-m", "hypermerge_ext")
        say("beside: compare | torch")
        ours, theirs = self.turns(
            child("ours", *module, "compare", "--json", *files),
            child("torch", sys.executable, HERE / "peers.py", "torch", *files),
        )
        found = json.loads(last["torch"].out)["spectrum"]
        error = max(abs(a - b) for a, b in zip(found, self.expected, strict=True)) / self.expected[0]
        beside("torch stack + eigh", "compare", ours, theirs, "torch", f"; its error: {error:.1e} · σ₁²")

        hyper = self.out / "family.hyper.safetensors"
        for name, package, what in (
            ("sd-mecha", "sd_mecha", "n_average to a file"),
            ("mergekit", "mergekit", "linear (mergekit-pytorch) to a file"),
        ):
            try:
                Done([self.peers or "", "-c", f"import {package}"], self.out)
            except (OSError, RuntimeError):
                self.row(f"beside: {name} {what}", f"not run: {name} is not installed")
                continue
            say(f"beside: solve | {name}")
            out = self.out / f"{name}-out"
            ours, theirs = self.turns(
                child("ours", *module, "solve", *files, "-o", hyper),
                child(name, self.peers, HERE / "peers.py", name, out, *files),
            )
            beside(f"{name} {what}", "solve", ours, theirs, name, "")
            hyper.unlink()
            shutil.rmtree(out)

    def report(self) -> str:
        small = " Small files: only to try the benchmark." if self.quick else ""
        lines = [
            f"Machine: {machine()}, {self.idle}. {self.rounds} rounds, medians.{small}",
            "",
            "| what | measured | bar | |",
            "|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in self.rows),
        ]
        return "\n".join(lines) + "\n"


def memory(key: str) -> int:
    """Bytes, from /proc/meminfo."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(re.search(rf"^{key}:\s+(\d+) kB", file.read(), re.MULTILINE)[1]) * 1024


def machine() -> str:
    """CPU, cores, memory, kernel."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"model name\s*:\s*(.*)", file.read())
    return (
        f"{model[1] if model else platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, "
        f"{memory('MemTotal') / 2**30:.0f} GiB, {platform.system()} {platform.release()}"
    )


def say(text: str) -> None:
    """What happens, on stderr: the table alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def everything(bench: Bench) -> None:
    """All measurements at SD1.5 size."""
    bench.eigenvalues()
    files = bench.models("quick" if bench.quick else "full", 16 if bench.quick else 1)
    size = sum(file.stat().st_size for file in files)
    room = shutil.disk_usage(bench.folder).free
    if room < 1.2 * size:
        sys.exit(f"bench: {room / 1e9:.1f} GB free in {bench.folder}, {1.2 * size / 1e9:.1f} needed; set BENCH_DIR")
    bench.compare(files, warm=False)
    bench.compare(files if memory("MemAvailable") > 1.3 * size + 2**31 else files[:4], warm=True)
    bench.solve_and_merge(files)
    bench.memory_of_few_and_many(files)
    bench.neighbours()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the models and the outputs go")
    parser.add_argument("--peers", type=Path, help="an interpreter that has sd-mecha and mergekit")
    parser.add_argument("--quick", action="store_true", help="small files")
    parser.add_argument("--sdxl", action="store_true", help="three checkpoints of SDXL's size, one round")
    args = parser.parse_args()
    bench = Bench(args.folder, args.peers, args.quick)
    try:
        if args.sdxl:
            bench.sdxl()
        else:
            everything(bench)
    except RuntimeError as error:
        sys.exit(f"bench: {error}")
    finally:
        shutil.rmtree(bench.out, ignore_errors=True)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(bench.report(), encoding="utf-8")
    print(bench.report(), end="")


if __name__ == "__main__":
    main()
