"""The other nodes, the page and trouble, on the real ComfyUI; see test_host.py."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hypermerge_ext as hm
from comfyui.graphs import blend, blended, checkpoint, hyper_file, latents, load, run, sample, solve
from comfyui.server import Failed, Graph, Server, prompt_of

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "models"
GOLDEN = ROOT / "tests" / "golden"
EXAMPLES = ROOT / "example_workflows"
FROZEN = Path(__file__).with_name("frozen.json")


# ---- questions, files, page -----------------------------------------------------------------------------------------


def test_nodes_and_inputs_stay_as_they_are(server):
    """Ids, inputs and outputs are what workflows are made of."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    found = {}
    for name in frozen:
        info = server.get(f"/object_info/{name}")[name]
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        kinds = {key: "COMBO" if isinstance(given[0], list) else given[0] for key, given in inputs.items()}
        found[name] = {"category": info["category"], "inputs": kinds, "outputs": info["output"]}
        assert list(kinds) == list(frozen[name]["inputs"]), "the order of widgets is part of old workflows"
    assert found == frozen


def test_info_project_and_map(server, made):
    graph = Graph()
    loaded = load(graph)
    info = graph.add("HyperMergeInfo", hyper=loaded[0])
    where = graph.add("HyperMergeProject", hyper=loaded[0], checkpoint="demo/base.safetensors")
    numbers = [graph.add("PreviewAny", source=where[output]) for output in range(3)]
    picture = graph.add("HyperMergeMap", hyper=loaded[0], project="demo/base.safetensors", theme="dark", width=640)
    shown = graph.add("PreviewImage", images=picture[0])
    entry = server.run(graph)
    assert "hot-faint" in entry["outputs"][info]["text"][0] and "base" in entry["outputs"][where]["text"][0]
    member = hm.load(made).project(str(DEMO / "base.safetensors"))
    said = [float(entry["outputs"][node]["text"][0]) for node in numbers]
    assert said == pytest.approx([*member.multipliers, member.residual])
    from PIL import Image

    with Image.open(server.output(entry, shown, "images")) as image:
        assert image.width == 640 and np.asarray(image.convert("L")).std() > 10


def test_the_page_gets_the_map_and_the_models(server, made):
    document = server.get(f"/hyper_merge/map?name={made.name}")
    assert document == server.get(f"/api/hyper_merge/map?name={made.name}")
    assert {point["name"] for point in document["points"]} == {member.name for member in hm.load(made).members}
    for name in ("no.hyper.safetensors", "../checkpoints/base.safetensors", ""):
        status, answer = server.refused(f"/hyper_merge/map?name={name}")
        assert status == 404 and list(answer) == ["error"] and "\n" not in answer["error"]
    (made.parent / "broken.hyper.safetensors").write_bytes(b"x" * 100)
    assert server.refused("/hyper_merge/map?name=broken.hyper.safetensors")[0] == 422
    (made.parent / "broken.hyper.safetensors").unlink()
    models = {entry["name"]: entry for entry in server.get("/hyper_merge/models")["models"]}
    assert models["base.safetensors"]["folder"] == "checkpoints" and models["demo/base.safetensors"]["folder"] == "demo"
    assert models["base.safetensors"]["size"] == (DEMO / "base.safetensors").stat().st_size


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_examples_run_as_they_are(server, path):
    graph = prompt_of(json.loads(path.read_text(encoding="utf-8")), server.get("/object_info"))
    outputs = server.run(graph)["outputs"]
    shown = [kind for node in outputs.values() for kind in node]
    assert "images" in shown
    for node, values in graph.items():
        if values["class_type"] in ("PreviewImage", "SaveAnimatedWEBP"):
            assert len(outputs[node]["images"]) == (25 if "contact" in path.stem and node == "8" else 1)


def test_help_texts_and_examples_are_served(server):
    for name in json.loads(FROZEN.read_text(encoding="utf-8")):
        assert server.request(f"/extensions/hyper-merge/docs/{name}.md").startswith(b"#")
    assert "hyper-merge" in server.get("/api/workflow_templates")
    words = server.get("/api/i18n")["en"]["nodeDefs"]
    assert set(json.loads(FROZEN.read_text(encoding="utf-8"))) <= set(words)


def test_a_lora_is_the_slider(server):
    graph = Graph()
    loaded = load(graph)
    node = graph.add(
        "HyperMergeSaveLoRA",
        hyper=loaded[0],
        what="direction",
        direction=1,
        lam=0.0,
        kap=0.0,
        further="",
        rank=64,
        format="auto",
        filename_prefix="loras/slider",
    )
    path = Path(server.run(graph)["outputs"][node]["text"][0].splitlines()[0])
    shutil.copy(path, server.base / "models" / "loras" / "slider.safetensors")

    def with_lora(graph):
        model = load(graph)[1]
        return graph.add("LoraLoaderModelOnly", model=model, lora_name="slider.safetensors", strength_model=0.5)[0]

    own, found, still = run(server, blended((0.5, 0))), run(server, with_lora), run(server, blended((0, 0)))
    # Norms and biases are no part of a LoRA, so most of the way is what can be asked for.
    assert np.linalg.norm(found - own) < 0.5 * np.linalg.norm(still - own)


def in_host(comfyui, folder, script, *arguments):
    """What a script beside this file answers, run by ComfyUI's Python in ComfyUI's folder."""
    packages = folder / "packages"
    packages.mkdir()
    (packages / "hypermerge_ext").symlink_to(Path(hm.__file__).parent)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(Path(__file__).with_name(script)), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=comfyui, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "family, tensors, clips", [("sd15", 686, 196), ("sdxl", 1680, 585), ("sd3", 491, 714), ("flux", 780, 196)]
)
def test_whole_checkpoints_find_their_way(comfyui, tmp_path, family, tensors, clips):
    """Names of true checkpoints, through ComfyUI's own conversions, to tensors that its own modules have."""
    with gzip.open(GOLDEN / f"{family}.json.gz") as source:
        names = json.load(source)
    folders = ("model.diffusion_model.", "cond_stage_model.", "conditioner.", "text_encoders.clip")
    asked = {
        name: [*entry, name.startswith(folders) and not name.endswith(("position_ids", "logit_scale"))]
        for name, entry in names.items()
    }
    (tmp_path / "names.json").write_text(json.dumps(asked))
    answer = in_host(comfyui, tmp_path, "in_host.py", tmp_path / "names.json")
    assert (answer["shapes"], answer["model"], answer["clip"]) == ([], tensors, clips), answer
    assert answer["missing"] == answer["lost"] == [], answer


def test_dynamic_vram_makes_patches_anew(comfyui, tmp_path):
    """The default on NVIDIA: patches are gathered and made anew before each layer, which needs no GPU to try."""
    answer = in_host(comfyui, tmp_path, "in_host_prefetch.py", tmp_path)
    if not answer:
        pytest.skip("this ComfyUI does not prefetch patches")
    assert answer["file"] == [0, True]
    assert answer["memory"][0] > 0 and answer["memory"][1]


def test_a_base_in_a_folder_of_checkpoints_is_found(server):
    """Solved on it, loaded, blended and saved again, with the numbers of the base that the demo has at the top."""
    folder = server.base / "models" / "checkpoints" / "own" / "bases"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(DEMO / "base.safetensors", folder / "demo-base.safetensors")
    solved = {"base": "own/bases/demo-base.safetensors", "name": "nested"}
    at = run(server, blended((0, 0), solved=solved))
    assert np.array_equal(at, run(server, checkpoint("base.safetensors")))
    assert not np.array_equal(run(server, blended((0.5, 0), solved=solved)), at)


@pytest.mark.parametrize("inputs", [{"lam": float("nan")}, {"strength": float("nan")}], ids=["λ", "strength_clip"])
def test_what_is_no_number_is_refused(server, inputs):
    """Prompts may hold NaN, which is neither below ComfyUI's minimum nor above its maximum."""
    at = (inputs.pop("lam", 0.5), 0.0)
    with pytest.raises(Failed, match="nan is not a finite number"):
        run(server, blended(at, **inputs))


# ---- trouble --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "models, said",
    [
        ("demo/base.safetensors", "choose two checkpoints or more; 1 chosen"),
        ("demo/base.safetensors\nno.safetensors", "'no.safetensors' is no checkpoint that ComfyUI lists"),
        ("other.safetensors\ndemo/base.safetensors", "other"),
    ],
)
def test_what_cannot_be_solved_is_said(server, models, said):
    save_file({"w": np.zeros((3, 3), np.float16)}, server.base / "models" / "checkpoints" / "other.safetensors")
    with pytest.raises(Failed, match=said):
        run(server, blended((0, 0), solved={"models": models}))


def test_too_many_multipliers_are_said(server):
    with pytest.raises(Failed, match="has 2 directions, so number 3 must stay 0"):
        run(server, blended((0, 0, 1)))


def test_interrupting_a_solve_leaves_no_file(server, made):
    """Sparse files: large to read, quick to make."""
    folder = server.base / "models" / "checkpoints"
    header = {"model.w": {"dtype": "F16", "shape": [1 << 15, 1 << 14], "data_offsets": [0, 1 << 30]}}
    raw = json.dumps(header).encode()
    for index in range(6):
        with (folder / f"large-{index}.safetensors").open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + (1 << 30))
    before = sorted(made.parent.iterdir())
    graph = Graph()
    graph.add("HyperMergeInfo", hyper=solve(graph, models="large-*.safetensors", name="large")[0])
    prompt = server.queue(graph)
    time.sleep(1)
    server.post("/interrupt", {})
    status = server.wait(prompt)["status"]
    for file in folder.glob("large-*.safetensors"):
        file.unlink()
    assert status["status_str"] == "error" and status["messages"][-1][0] == "execution_interrupted"
    assert sorted(made.parent.iterdir()) == before


def test_interrupting_sampling_leaves_the_blend_right(server):
    at = (0.3, -0.3)
    own = run(server, blended(at))
    graph = Graph()
    loaded = load(graph)
    sample(graph, blend(graph, loaded[1], loaded[0], (0.9, 0.9))[0], steps=5000)
    prompt = server.queue(graph)
    time.sleep(1.5)
    server.post("/interrupt", {})
    assert server.wait(prompt)["status"]["status_str"] == "error"
    assert np.array_equal(run(server, blended(at)), own)


def test_free_gives_the_memory_back(server):
    at = (0.25, 0.5)
    own = run(server, blended(at, directions="memory"))
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)
    assert np.array_equal(run(server, blended(at, directions="memory")), own)


def test_the_cache_knows_what_changed(server):
    """The same prompt is not run again; a checkpoint that changes is solved anew."""
    folder = server.base / "models" / "checkpoints"
    for name in ("hot-faint", "cold-dense", "cool-solid"):
        shutil.copy(DEMO / f"{name}.safetensors", folder / f"change-{name}.safetensors")
    solved = {"models": "change-*.safetensors"}

    def made_file():
        graph = Graph()
        return hyper_file(server, graph, solve(graph, **solved))

    first = made_file()
    before = first.stat().st_mtime_ns
    assert made_file() == first and first.stat().st_mtime_ns == before
    shutil.copy(DEMO / "warm-solid.safetensors", folder / "change-cool-solid.safetensors")
    assert made_file() != first


def test_many_prompts_at_once(server):
    """The queue runs one after the other, while the page asks for the map."""
    points = [(x / 4, -x / 5) for x in range(6)]
    own = [run(server, blended(at)) for at in points]
    graphs, nodes = [], []
    for at in points:
        graph = Graph()
        nodes.append(sample(graph, blended(at)(graph)))
        graphs.append(graph)
    prompts = [server.queue(graph) for graph in graphs]
    asked = threading.Thread(target=lambda: [server.get("/hyper_merge/models") for _ in range(5)])
    asked.start()
    for prompt, node, latent in zip(prompts, nodes, own):
        entry = server.wait(prompt)
        outputs = entry["outputs"]
        assert entry["status"]["status_str"] == "success"
        if node in outputs:
            assert np.array_equal(latents(server, entry, node)[0], latent)
    asked.join()


def test_without_the_binary_nodes_say_how_to_get_it(comfyui, tmp_path):
    """They are there, so workflows open; the demo's own nodes work."""
    server = Server(comfyui, tmp_path, None)
    try:
        if "is not installed in this Python" not in server.said():
            pytest.skip("hyper-merge is installed in ComfyUI's own Python")
        assert set(json.loads(FROZEN.read_text(encoding="utf-8"))) <= set(server.get("/object_info"))
        assert server.refused("/hyper_merge/map?name=x")[0] in (404, 503)
        graph = Graph()
        graph.add("HyperMergeInfo", hyper=load(graph)[0])
        with pytest.raises(Failed, match=r"is not installed in this Python(.|\n)*-m pip install hyper-merge"):
            server.run(graph)
    finally:
        server.stop()


def test_after_a_restart_nothing_is_solved_again(server, made, start):
    at = (0.6, 0.2)
    own, before = run(server, blended(at)), made.stat().st_mtime_ns
    server.stop()
    again = start()
    try:
        assert np.array_equal(run(again, blended(at)), own)

        def by_name(graph):
            loaded = graph.add("HyperMergeLoad", name=made.name, load_base=True)
            return blend(graph, loaded[1], loaded[0], at)[0]

        assert np.array_equal(run(again, by_name), own)
        assert made.stat().st_mtime_ns == before
    finally:
        again.stop()
