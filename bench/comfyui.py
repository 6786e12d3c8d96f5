"""What a move of λ, κ costs inside ComfyUI: our two ways against its own `diff` patches, in one process, taking turns.

    COMFYUI_DIR=… COMFYUI_PYTHON=… python bench/comfyui.py [--folder FOLDER] [--rounds 7] [--quick]

COMFYUI_DIR is ComfyUI's folder, COMFYUI_PYTHON the Python that runs it.  Four fine-tunes of true SD1.5 size (8.5 GB)
and their hyper-model (5.9 GB) are written to FOLDER and kept; --quick takes a network of a fiftieth that ComfyUI still
knows as SD1.5.  The time is that of `load_models_gpu`, which is when weights change; what the nodes do before is told
beside it. The second table is a first use: four checkpoints to one loaded blend, each way in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from idle import Idle

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "tests" / "golden" / "sd15-mini.json"
COUNT = 4
WAYS = ("stock diff x2", "patch, file", "patch, memory", "in place, file", "in place, memory")


# ---- in ComfyUI's Python --------------------------------------------------------------------------------------------


def comfy_modules() -> None:
    """Makes ComfyUI importable, on the CPU, as its main.py does."""
    sys.path.insert(0, os.getcwd())
    sys.argv = [sys.argv[0], "--cpu"]
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()


def pack(name: str) -> Any:
    """A module of the node pack, as ComfyUI would import it."""
    if "hyper_merge_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location("hyper_merge_pack", ROOT / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["hyper_merge_pack"] = module
        spec.loader.exec_module(module)
    return importlib.import_module(f"hyper_merge_pack.nodes.{name}")


def solved(folder: Path) -> Any:
    """The Hyper of the four checkpoints; made if it is not there."""
    cache, hypers = pack("logic.cache"), pack("logic.hyper")
    question = cache.Question(tuple(map(str, sorted(folder.glob("model-*.safetensors")))), "mean", 2)
    path = folder / cache.file_name("bench", question, cache.identity(question))
    cache.solve(question, str(path))
    return hypers.Hyper(str(path), path.name)


def moves(folder: Path, rounds: int) -> dict[str, Any]:
    """{way: [wall seconds], …}, the same of the CPU, and milliseconds that the nodes take."""
    comfy_modules()
    import torch

    management = importlib.import_module("comfy.model_management")
    patching, load = pack("patching"), pack("load")
    blend = pack("logic.apply").Blend
    with torch.inference_mode():
        hyper = solved(folder)
        model = load.load_base_of(hyper)[0]
        names = patching.names_of(hyper, model)
        kept = hyper.directions(True)
        tensors = {key: kept.tensors(part) for key, part in names.model.items() if part.name in hyper.stored.moving}

        def stock(at: tuple[float, float]) -> Any:
            patcher = model.clone()
            for k, c in enumerate(at, start=1):
                patcher.add_patches({key: ("diff", (rows[k],)) for key, rows in tensors.items()}, c)
            return patcher

        def ours(fast: bool, in_memory: bool) -> Callable[[tuple[float, float]], Any]:
            return lambda at: patching.blend_model(model, hyper, blend(at, (), 1.0, in_memory, fast), names)

        ways = dict(zip(WAYS, (stock, ours(False, False), ours(False, True), ours(True, False), ours(True, True))))
        found: dict[str, Any] = {way: {"wall": [], "cpu": [], "node": []} for way in WAYS}
        rng, idle = random.Random(1), Idle()
        for turn in range(rounds + 1):
            for way in rng.sample(WAYS, len(WAYS)):
                if way.startswith("in place"):
                    management.load_models_gpu([ways[way]((rng.random(), rng.random()))])  # a move comes after a load
                idle.wait()
                start = time.perf_counter()
                patcher = ways[way]((rng.random(), -rng.random()))
                made, cpu = time.perf_counter(), time.process_time()
                management.load_models_gpu([patcher])
                if turn > 0:  # the first turn finds caches cold
                    found[way]["wall"].append(time.perf_counter() - made)
                    found[way]["cpu"].append(time.process_time() - cpu)
                    found[way]["node"].append(1000 * (made - start))
        found["tensors"], found["idle"] = len(tensors), str(idle)
        found["numbers"] = sum(rows[1].numel() for rows in tensors.values())
    return found


def first_use(folder: Path, way: str) -> dict[str, float]:
    """Seconds and peak bytes from four checkpoints to a loaded blend of all."""
    comfy_modules()
    import torch

    management, sd = importlib.import_module("comfy.model_management"), importlib.import_module("comfy.sd")
    paths = sorted(folder.glob("model-*.safetensors"))
    start = time.perf_counter()
    with torch.inference_mode():
        if way == "hyper-merge":
            for old in folder.glob("*.hyper.safetensors"):
                old.unlink()
            hyper = solved(folder)
            model = pack("load").load_base_of(hyper)[0]
            blend = pack("logic.apply").Blend((0.4, -0.2))
            patcher = pack("patching").blend_model(model, hyper, blend, pack("patching").names_of(hyper, model))
        else:
            merge = importlib.import_module("comfy_extras.nodes_model_merging").ModelMergeSimple()
            models = [
                sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0] for path in paths
            ]
            patcher = models[0]
            for count, model in enumerate(models[1:], start=2):
                (patcher,) = merge.merge(patcher, model, 1 - 1 / count)
        management.load_models_gpu([patcher])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": time.perf_counter() - start, "bytes": peak}


# ---- in the Python that was called ----------------------------------------------------------------------------------


def make_mini(folder: Path) -> None:
    """Four fine-tunes of the small network."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)
    shapes = json.loads(MINI.read_text(encoding="utf-8"))
    base = {name: (0.05 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    shared = [
        {name: (0.002 * rng.standard_normal(w.shape)).astype(np.float32) for name, w in base.items()} for _ in "ab"
    ]
    for m in range(COUNT):
        a, b = rng.standard_normal(2)
        model = {name: (w + a * shared[0][name] + b * shared[1][name]).astype(np.float16) for name, w in base.items()}
        save_file(model, folder / f"model-{m + 1}.safetensors")


def in_comfyui(what: str, folder: Path, *arguments: str) -> Any:
    """Runs this file in ComfyUI's Python; what it found."""
    import hypermerge_ext

    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    link = packages / "hypermerge_ext"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(hypermerge_ext.__file__).parent)
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), __file__, "--in-comfyui", what]
    command += ["--folder", str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=os.environ["COMFYUI_DIR"], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("bench: ComfyUI's Python failed; what it said is above")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "comfyui")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--in-comfyui", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_comfyui is not None:
        found = (
            moves(args.folder, args.rounds) if args.in_comfyui == "moves" else first_use(args.folder, args.in_comfyui)
        )
        print(json.dumps(found))
        return
    if "COMFYUI_DIR" not in os.environ:
        sys.exit("bench: set COMFYUI_DIR to ComfyUI's folder, and COMFYUI_PYTHON to the Python that runs it")
    folder = (args.folder / ("mini" if args.quick else "sd15")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if args.quick:
        make_mini(folder)
    else:
        sys.path.insert(0, str(ROOT / "bench"))
        importlib.import_module("models").make(folder, "sd15", COUNT, 1, "fp16", 0.03)
    found = in_comfyui("moves", folder, "--rounds", str(args.rounds))
    stock = statistics.median(found[WAYS[0]]["wall"])
    print(
        f"one move of λ, κ: {found['tensors']} tensors, {found['numbers'] / 1e6:.1f} M numbers; medians of "
        f"{args.rounds}; {found['idle']}"
    )
    print("| way | seconds | least … most | CPU seconds | node ms | stock / it |\n|---|---|---|---|---|---|")
    for way in WAYS:
        wall = found[way]["wall"]
        median, cpu, node = (statistics.median(found[way][key]) for key in ("wall", "cpu", "node"))
        spread = f"{min(wall):.3f} … {max(wall):.3f}"
        print(f"| {way} | {median:.3f} | {spread} | {cpu:.3f} | {node:.0f} | {stock / median:.1f} × |")
    print("\nfour checkpoints to one loaded blend\n| way | seconds | peak memory |\n|---|---|---|")
    for way in ("hyper-merge", "ModelMergeSimple x3"):
        used = in_comfyui(way, folder)
        print(f"| {way} | {used['seconds']:.1f} | {used['bytes'] / 2**30:.1f} GiB |")


if __name__ == "__main__":
    main()
