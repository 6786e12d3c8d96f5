"""What the extension costs inside the real A1111 and Forge: a move of λ, κ, its memory, and its share of the start.

    A1111_DIR=… A1111_PYTHON=… FORGE_DIR=… FORGE_PYTHON=… python bench/automatic1111.py [--folder FOLDER] [--rounds 7]
        [--host a1111] [--half] [--supermerger FOLDER] [--quick]

Three random fine-tunes of true SD1.5 size (6.4 GB) and the hyper-model that the host solves of them with the first as
its base (3.9 GB) are kept in FOLDER; --quick takes a network of a quarter, most of it VAE and text encoder.  A move is a
request to the API until the weights are written.  A full load is the last step of what other merging extensions do at
each change: a new model made of the checkpoint's configuration, its weights read from the file.

With --supermerger, a checkout of that extension (of revision c60e6f3: the one after it fails for SD1.5) whose requirements
the host's Python has, such a change is measured whole: its triple sum of the same three checkpoints, then its loading of the
result, by its own functions and its defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from idle import Idle

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from webui import sd15  # noqa: E402  after the path
from webui.real_host import WebUI, install  # noqa: E402

KINDS = ("a1111", "forge")
MIB = 2**20
# A second extension, for what the host's API does not offer.
LOADING = '''
import time

from modules import call_queue, script_callbacks, sd_models


def load():
    """Seconds of a full load of the checkpoint that is loaded now."""
    data = sd_models.model_data
    with call_queue.queue_lock:
        begun = time.perf_counter()
        if hasattr(sd_models, "forge_model_reload"):
            data.forge_hash = ""
            sd_models.forge_model_reload()
        else:
            info = data.sd_model.sd_checkpoint_info
            data.__init__()
            sd_models.load_model(info)
        return time.perf_counter() - begun


script_callbacks.on_app_started(lambda demo, app: app.add_api_route("/bench/load", load, methods=["POST"]))
'''
# As SuperMerger's button "Merge!": its merge, then its loader; all but models and weights as when its page opens.
MERGING = '''
import time

import torch
from modules import call_queue, script_callbacks, sd_models


def merge(body: dict):
    """Seconds of SuperMerger's triple sum of body["models"], three names, by body["weights"], two numbers, until it is loaded."""
    from scripts.mergers import mergers

    a, b, c = body["models"]
    with call_queue.queue_lock, torch.no_grad():
        begun = time.perf_counter()
        mergers.cachedealer(True)
        said, name, _, weights, metadata = mergers.smerge(
            weights_a="", weights_b="", model_a=a, model_b=b, model_c=c, base_alpha=body["weights"][0],
            base_beta=body["weights"][1], mode="Triple sum", calcmode="normal", useblocks=False, custom_name="",
            save_sets=[], id_sets=[], wpresets=False, deep="", fine="", bake_in_vae="None", opt_value=0.3, inex="Off",
            ex_blocks=[], ex_elems="", deepprint=False,
            lucks={"on": False, "mode": [], "set": [], "upp": "1", "low": "0", "uppd": "1", "lowd": "0", "seed": 0, "num": 1,
                   "cust": "", "round": 3},
        )
        if said:
            raise RuntimeError(said)
        mergers.model_loader(sd_models.get_closet_checkpoint_match(a), weights, metadata, name)
        mergers.cachedealer(False)
        return time.perf_counter() - begun


script_callbacks.on_app_started(lambda demo, app: app.add_api_route("/bench/merge", merge, methods=["POST"]))
'''
IMPORTS = ("import", "paths", "initialize", "launcher", "startup", "environment")
"""Records of the host's profile that have nothing to do with extensions."""


@contextlib.contextmanager
def running(kind: str, data: Path, half: bool = False) -> Iterator[WebUI]:
    """A host with what lies in `data`; half: in half precision, as far as it goes there."""
    import hypermerge_ext

    folder, python = os.environ[f"{kind.upper()}_DIR"], os.environ[f"{kind.upper()}_PYTHON"]
    host = WebUI(kind, folder, python, data, Path(hypermerge_ext.__file__).parent, half=half)
    try:
        yield host
    finally:
        host.stop()


# ---- a move, against a load -----------------------------------------------------------------------------------------


def job(host: WebUI, route: str, **body: Any) -> Any:
    task = host.post(f"/hyper-merge/v1/{route}", body)
    while task["state"] in ("queued", "running"):
        time.sleep(0.2)
        task = host.get(f"/hyper-merge/v1/progress?job={task['job']}")
    if task["state"] != "done":
        sys.exit(f"bench: {route}: {task['error'] or task['state']}")
    return task["result"]


def moves(kind: str, data: Path, rounds: int, half: bool, supermerger: Path | None) -> dict[str, Any]:
    """Seconds of loads, of moves and of SuperMerger's merges, bytes of memory that a live blend takes."""
    extensions = data / "extensions"
    shutil.rmtree(extensions, ignore_errors=True)
    (data / "config.json").unlink(missing_ok=True)  # what a run of the other precision chose
    install(data)
    scripts = extensions / "bench" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "bench_loading.py").write_text(LOADING, encoding="utf-8")
    if supermerger:
        shutil.copytree(supermerger, extensions / "supermerger", ignore=shutil.ignore_patterns(".git"))
        (scripts / "bench_merging.py").write_text(MERGING, encoding="utf-8")
    rng = random.Random(1)
    found: dict[str, Any] = {"load": [], "merge": []}
    with running(kind, data, half) as host:
        models = sorted(path.name for path in (data / "models" / "Stable-diffusion").glob("model-*.safetensors"))
        hyper = job(host, "solve", models=models, base=models[0], name="bench")["name"]
        job(host, "load-base", name=hyper)

        idle = found["idle"] = Idle()

        def move() -> float:
            idle.wait()
            begun = time.perf_counter()
            body = {"hyper": hyper, "multipliers": [rng.uniform(-1, 1), rng.uniform(-1, 1)]}
            text = host.post("/hyper-merge/v1/set", body)["text"]
            if "λ" not in text:
                sys.exit(f"bench: {text}")
            return time.perf_counter() - begun

        for where in ("file", "memory"):
            host.options(hyper_merge_in_memory=where == "memory")
            host.txt2img()
            before = host.memory()["RssAnon"]
            with sampled(lambda: host.memory()["RssAnon"]) as peak:
                first = move()
                found[where] = [move() for _ in range(rounds)]
            host.txt2img()
            found[f"{where} first"], found[f"{where} peak"] = first, max(peak) - before
            found[f"{where} held"] = host.memory()["RssAnon"] - before
            host.post("/hyper-merge/v1/set", {"enabled": False})
        for _ in range(3):
            idle.wait()
            found["load"].append(float(host.request("/bench/load", {})))
        for turn in range(4 if supermerger else 0):
            idle.wait()
            weights = [rng.uniform(0, 0.5), rng.uniform(0, 0.5)]
            seconds = float(host.request("/bench/merge", {"models": models, "weights": weights}, timeout=900))
            found["merge"] += [seconds] if turn else []  # the first one hashes the files
    return found


@contextlib.contextmanager
def sampled(read: Callable[[], int]) -> Iterator[list[int]]:
    """Values that are read every few milliseconds meanwhile."""
    values, over = [read()], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            values.append(read())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield values
    finally:
        over.set()
        watcher.join()


# ---- the start ------------------------------------------------------------------------------------------------------


def start(kind: str, data: Path) -> dict[str, float]:
    """Seconds: "own", what the host ascribes to our files; "all", everything that extensions can delay."""
    with running(kind, data) as host:
        records = host.get("/internal/profile-startup")["records"]
    own = sum(seconds for name, seconds in records.items() if "hyper_merge" in name)
    leaves = {name: seconds for name, seconds in records.items() if not any(part in name for part in IMPORTS)}
    inner = {name.partition("/")[0] for name in leaves if "/" in name}
    return {"own": own, "all": sum(seconds for name, seconds in leaves.items() if name not in inner)}


def starts(kind: str, folder: Path, rounds: int) -> dict[str, float]:
    """Taking turns, without any checkpoint, so that none is loaded meanwhile; the first starts compile and do not count."""
    with_, without = folder / f"start-{kind}-with", folder / f"start-{kind}-without"
    for data in (with_, without):
        shutil.rmtree(data, ignore_errors=True)
    install(with_)
    found: dict[Path, list[dict[str, float]]] = {with_: [], without: []}
    for turn in range(rounds + 1):
        for data in (with_, without) if turn % 2 == 0 else (without, with_):
            found[data].append(start(kind, data))
    runs = {data: [run["all"] for run in found[data][1:]] for data in found}
    return {
        "own": statistics.median(run["own"] for run in found[with_][1:]),
        "difference": statistics.median(runs[with_]) - statistics.median(runs[without]),
        "spread": max(max(each) - min(each) for each in runs.values()),
    }


# ---- tables ---------------------------------------------------------------------------------------------------------


def report(kind: str, found: dict[str, Any]) -> None:
    print(f"\n{kind}: one move, medians; a full load takes {span(found['load'])}; {found['idle']}")
    merged = bool(found["merge"])
    if merged:
        print(f"SuperMerger's triple sum of three checkpoints and its loading: {span(found['merge'])}")
    more = " SuperMerger / move |" if merged else ""
    print(f"| directions | seconds | least … most | first move | load / move |{more} memory held | peak |")
    print("|---|---|---|---|---|---|---|" + "---|" * merged)
    for where in ("file", "memory"):
        move = statistics.median(found[where])
        more = f" {statistics.median(found['merge']) / move:.0f} × |" if merged else ""
        print(
            f"| {where} | {move:.2f} | {min(found[where]):.2f} … {max(found[where]):.2f} | {found[f'{where} first']:.1f} "
            f"| {statistics.median(found['load']) / move:.0f} × |{more} {found[f'{where} held'] / MIB:.0f} MiB "
            f"| {found[f'{where} peak'] / MIB:.0f} MiB |"
        )


def span(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} … {max(seconds):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "webui")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3, help="with and without the extension each; 0 leaves them out")
    parser.add_argument("--host", choices=KINDS, action="append")
    parser.add_argument("--half", action="store_true", help="weights of half precision, where the host has them so")
    parser.add_argument("--supermerger", type=Path, help="a checkout of SuperMerger, to run beside")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # the start that counts is not the first
    kinds = [kind for kind in args.host or KINDS if f"{kind.upper()}_DIR" in os.environ]
    if not kinds:
        sys.exit("bench: set A1111_DIR and A1111_PYTHON, or FORGE_DIR and FORGE_PYTHON")
    folder = (args.folder / ("mini" if args.quick else "sd15")).resolve()
    checkpoints = folder / "models" / "Stable-diffusion"
    checkpoints.mkdir(parents=True, exist_ok=True)
    if len(list(checkpoints.glob("model-*.safetensors"))) < len(sd15.PLACES):
        sd15.write_family(checkpoints, full=not args.quick)
    for kind in kinds:
        report(kind, moves(kind, folder, args.rounds, args.half, args.supermerger))
        if args.starts:
            took = starts(kind, folder, args.starts)
            print(
                f"start: {took['own']:.2f} s in our files; {took['difference']:+.2f} s against a start without the "
                f"extension (such starts differ by up to {took['spread']:.2f} s among themselves)"
            )


if __name__ == "__main__":
    main()
