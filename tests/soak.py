"""A soak: the whole life of hyper-models in one process, over and over, with options chosen by chance.

    python tests/soak.py [--seconds 60] [--seed 0] [--sets 1000] [--folder DIR]

Each round picks one of a few dozen scenarios (models, types, base, method, files …), solves, saves, opens, binds, sets a
thousand blends, restores, merges, writes LoRAs, renames axes, projects, compares and recovers, and has some of that cancelled
or refused on the way.
Whatever threads and budget it was given, a scenario must give the same bits as in its first round; nothing may stay behind
in the folder; once every scenario was seen, descriptors and memory must not grow.

Exit 0: all was well, the last line says what was done.  Exit 1: one line per violation.  Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import hypermerge_ext as hm
import live_models
from families import SHAPES, family, save

WINDOW = 64
GROWTH = 16 << 20
"""Bytes by which the least resident memory of WINDOW rounds may exceed that of the first ones after the warm-up.  From round
to round the allocator gives back more or less of what many threads have freed; only what never comes back is a leak."""
WIDE = {**SHAPES, "model.diffusion_model.input_blocks.2.1.proj.weight": (310, 433)}
GLOBS = ("model.diffusion_model.*", "*.weight", "cond_stage_model.*", "*middle_block*")


class Stop(Exception):
    """Raised in a progress callback."""


@dataclass
class Scenario:
    """One choice of everything that decides the result."""

    number: int
    paths: list[Path] = field(default_factory=list)
    solve: dict = field(default_factory=dict)
    save: dict = field(default_factory=dict)
    merge: dict = field(default_factory=dict)
    bind: dict = field(default_factory=dict)
    lora: dict = field(default_factory=dict)
    """Empty: none is written."""
    target: str | None = None
    layout: str = "contiguous"
    points: list[list[float]] = field(default_factory=list)
    """Multipliers that are looked at bit by bit."""
    results: dict[str, str] = field(default_factory=dict)
    """Of the first round: step → digest."""


def choose(number: int, seed: int, folder: Path) -> Scenario:
    """Scenario `number`; its models are written to `folder`."""
    chance = random.Random(f"{seed} {number}")
    count = chance.choice((1, 2, 3, 4, 5, 8))
    dtypes = chance.choice(("F32", "F16", "BF16", ("F16", "BF16", "F32"), ("F8_E4M3", "F16")))
    shapes = WIDE if chance.random() < 0.3 else SHAPES
    made = family(count + 1, seed=number, delta=0.1, dtypes=dtypes, shapes=shapes)
    paths = save(folder, made, prefix=f"s{number}m")
    base = chance.choice(("mean", "mean", "mean", "none", "file")) if count > 1 else chance.choice(("none", "file"))
    rank = count - 1 if base == "mean" else count
    found = Scenario(number, paths)
    found.solve = {
        "base": paths[-1] if base == "file" else base,
        "directions": chance.randint(1, min(3, rank)),
        "method": chance.choice(("exact", "exact", "als")),
        "weights": [1 + m for m in range(count)] if chance.random() < 0.3 else None,
        "exclude": ["*final_layer_norm*"] if chance.random() < 0.3 else [],
        "dtype": chance.choice((None, "fp16", "bf16", "fp32")),
    }
    found.save = {
        "split": base == "mean" and chance.random() < 0.3,
        "base_low": base == "mean" and chance.random() < 0.3,
        "hash": chance.random() < 0.3,
    }
    found.merge = {
        "dtype": chance.choice((None, "fp16", "fp32")),
        "blocks": {chance.choice(GLOBS): [0.1]} if chance.random() < 0.4 else None,
        "exact": paths[:-1] if chance.random() < 0.3 else None,
        "carrier": paths[0] if chance.random() < 0.2 else None,
    }
    if chance.random() < 0.3:
        found.lora = chance.choice(({"rank": 4}, {"error": 0.2, "whole": True}, {"size": 40000, "format": "comfyui"}))
        found.lora = {**found.lora, "direction": 1, "dtype": chance.choice((None, "fp32"))}
    found.bind = {"in_memory": chance.random() < 0.5, "keep_original": True}
    found.target = chance.choice((None, "F16", "F32", "BF16"))
    found.layout = chance.choice(live_models.LAYOUTS)
    found.points = [
        [round(chance.uniform(-2, 2), 3) for _ in range(found.solve["directions"])] for _ in range(4)
    ]
    return found


def digest_file(path: Path) -> str:
    """sha256 of all its bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_state(state: dict) -> str:
    """sha256 of the bits that the tensors of a state dict hold."""
    whole = hashlib.sha256()
    for name, tensor in state.items():
        whole.update(name.encode() + b"\0" + live_models.from_torch(tensor).stored.tobytes())
    return whole.hexdigest()


def digest_answer(answer) -> str:
    """sha256 of an answer's JSON; its numbers do not depend on threads either."""
    return hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the listing's own
            continue
    return sorted(found)


class Soak:
    """The rounds, and what was wrong in them."""

    def __init__(self, folder: Path, seed: int, sets: int, scenarios: int) -> None:
        self.folder = folder
        self.sets = sets
        self.chance = random.Random(seed)
        self.models = folder / "models"
        self.models.mkdir()
        self.out = folder / "out"
        self.out.mkdir()
        self.scenarios = [choose(number, seed, self.models) for number in range(scenarios)]
        self.wrong: list[str] = []
        self.files: list[str] = []
        self.rounds = self.blends = self.cancelled = self.refused = self.compared = 0

    def check(self, scenario: Scenario, step: str, digest: str) -> None:
        """The same as in the first round?"""
        first = scenario.results.setdefault(step, digest)
        self.compared += 1
        if first != digest:
            self.wrong.append(f"round {self.rounds}, scenario {scenario.number}: {step} differs from the first round")

    def work(self) -> dict:
        """Threads and memory by chance: no result may depend on them."""
        return {"threads": self.chance.choice((None, 1, 2, 3, 7)), "memory_budget": self.chance.choice((None, 16 << 20, 64 << 20))}

    def interrupt(self, scenario: Scenario, step: str, call, **arguments) -> None:
        """Sometimes the call is first cancelled from its progress, at a random moment; it must leave nothing behind."""
        if self.chance.random() > 0.25:
            return
        left = self.chance.randint(0, 3)
        before = sorted(os.listdir(self.out))

        def progress(_done: int, _total: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stop

        try:
            call(**arguments, progress=progress)
        except Stop:
            self.cancelled += 1
            if sorted(os.listdir(self.out)) != before:
                self.wrong.append(f"round {self.rounds}, scenario {scenario.number}: cancelled {step} left a file behind")

    def refuse(self, scenario: Scenario) -> None:
        """Errors are a part of life, too, and must cost nothing."""
        for call in (
            lambda: hm.load(scenario.paths[0]),
            lambda: hm.solve([self.out / "absent.safetensors"]),
            lambda: hm.solve(scenario.paths, directions=99),
            lambda: hm.compare([scenario.paths[0], self.scenarios[scenario.number - 1].paths[0].with_suffix(".ckpt")]),
        ):
            try:
                call()
                self.wrong.append(f"round {self.rounds}, scenario {scenario.number}: a call was not refused")
            except (hm.Error, OSError):
                self.refused += 1

    def live(self, scenario: Scenario, hyper: hm.HyperModel, path: Path) -> None:
        """bind, a thousand sets, restore.  The tensors hold the base, or else a model."""
        kind = scenario.solve["base"]
        whole = kind == "mean" and not scenario.save["split"]
        loaded = path if whole else scenario.paths[0] if kind in ("mean", "none") else kind
        state = live_models.state_of(loaded, dtype=scenario.target, layout=scenario.layout)
        before = digest_state(state)
        live = hyper.bind(state, **scenario.bind, threads=self.chance.choice((None, 1, 2)))
        every = max(1, self.sets // len(scenario.points))
        for number in range(self.sets):
            point, look = divmod(number, every)
            if look == every - 1 and point < len(scenario.points):
                live.set(*scenario.points[point], threads=self.chance.choice((None, 1, 2)))
                self.check(scenario, f"blend {point}", digest_state(state))
            else:
                live.set(*(self.chance.uniform(-2, 2) for _ in range(hyper.directions)), threads=1)
        self.blends += self.sets
        self.interrupt(scenario, "set", live.set)
        live.restore()
        if digest_state(state) != before:
            self.wrong.append(f"round {self.rounds}, scenario {scenario.number}: restore did not bring back the bits")

    def round(self, scenario: Scenario) -> None:
        """One life."""
        inputs, path = scenario.paths[:-1], self.out / f"x{scenario.number}.hyper.safetensors"
        merged = self.out / f"merged{scenario.number}.safetensors"
        self.interrupt(scenario, "solve", lambda **more: hm.solve(inputs, **scenario.solve, **more), **self.work())
        hyper = hm.solve(inputs, **scenario.solve, **self.work())
        self.check(scenario, "solved document", digest_answer(hyper.document))
        self.interrupt(scenario, "save", lambda **more: hyper.save(path, **scenario.save, **more), **self.work())
        hyper.save(path, **scenario.save, **self.work())
        self.check(scenario, "saved file", digest_file(path))
        loaded = hm.load(path, folders=[self.models])
        self.check(scenario, "document", digest_answer(loaded.document))
        self.live(scenario, loaded, path)
        at = scenario.points[0]
        self.interrupt(scenario, "merge", lambda **more: loaded.merge(at, merged, **scenario.merge, **more), **self.work())
        loaded.merge(at, merged, **scenario.merge, **self.work())
        self.check(scenario, "merged file", digest_file(merged))
        if scenario.lora:
            lora = self.out / f"lora{scenario.number}.safetensors"
            self.interrupt(scenario, "lora", lambda **more: loaded.lora(lora, **scenario.lora, **more), **self.work())
            self.check(scenario, "LoRA's report", digest_answer(loaded.lora(lora, **scenario.lora, **self.work())))
            self.check(scenario, "LoRA", digest_file(lora))
        self.check(scenario, "projection", digest_answer(loaded.project(scenario.paths[-1], **self.work())))
        if len(inputs) > 1:
            self.check(scenario, "comparison", digest_answer(hm.compare(inputs, **self.work())))
        self.check(scenario, "recipe", digest_answer(hm.recover(merged, inputs, blocks=True, free=True, **self.work())))
        self.check(scenario, "description", digest_answer(hm.inspect(merged)))
        loaded.rename({1: "first"}, flip=[1], path=None, **self.work())
        loaded.rename({1: None}, flip=[1], path=None, **self.work())
        self.check(scenario, "document, renamed twice", digest_answer(loaded.document))
        self.refuse(scenario)
        for entry in os.scandir(self.out):
            os.unlink(entry.path)

    def run(self, seconds: float) -> None:
        """All scenarios twice, then by chance until the time is over."""
        began, told, warm = time.monotonic(), 0.0, 2 * len(self.scenarios)
        memory: list[int] = []
        while not self.wrong and (self.rounds < warm + 1 or time.monotonic() - began < seconds):
            scenario = self.scenarios[self.rounds % len(self.scenarios)] if self.rounds < warm else self.chance.choice(self.scenarios)
            self.round(scenario)
            self.rounds += 1
            gc.collect()
            files = descriptors()
            if self.rounds == warm:
                self.files = files
            if self.rounds > warm:
                memory.append(resident())
                if files != self.files:
                    self.wrong.append(f"round {self.rounds}: open files went from {self.files} to {files}")
                first, last = min(memory[:WINDOW]), min(memory[-WINDOW:])
                if last > first + GROWTH:
                    self.wrong.append(f"round {self.rounds}: resident memory grew from {first} to {last} bytes")
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{told - began:7.0f} s  {self}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.blends} blends, {self.compared} results compared, {self.cancelled} cancelled, "
            f"{self.refused} refused, {resident() >> 20} MiB, {len(descriptors())} open files"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="solve, save, open, bind, set, restore, merge, project: over and over")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", type=int, default=1000, help="blends per round")
    parser.add_argument("--scenarios", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where the models go (a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="hm_soak_") as folder:
        soak = Soak(Path(folder), options.seed, options.sets, options.scenarios)
        soak.run(options.seconds)
        left = os.listdir(soak.out)
    wrong = soak.wrong + ([f"left behind: {left}"] if left else [])
    print("\n".join(wrong) if wrong else f"well: {soak}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
