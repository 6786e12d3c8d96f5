"""Blends on the real ComfyUI, from its own server: set COMFYUI_DIR to its folder, and COMFYUI_PYTHON to its Python.

Everything runs on the demo family, which samples in a fraction of a second.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import hypermerge_ext as hm
from comfyui.graphs import FOUR, blend, blended, checkpoint, hyper_file, latents, load, run, sample
from comfyui.server import Failed, Graph

DEMO = Path(__file__).resolve().parents[2] / "demo" / "models"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def test_a_model_at_its_own_point_is_that_model(server):
    """With K = M − 1 nothing is lost but the rounding of what is stored."""
    graph = Graph()
    hyper = hm.load(hyper_file(server, graph, load(graph, models=FOUR, directions=3)))
    solved = {"models": FOUR, "directions": 3}
    for member in hyper.members:
        own = run(server, checkpoint(f"{member.name}.safetensors"))
        found = run(server, blended(member.multipliers, solved=solved))
        assert np.abs(found - own).max() < 0.01 * np.abs(own).max() and np.abs(found - own).std() < 2e-3 * own.std()


def test_zero_is_the_base(server):
    own = run(server, lambda graph: load(graph)[1])
    assert np.array_equal(run(server, blended((0, 0))), own)
    assert np.array_equal(run(server, blended((0, 0), method="patch")), own)
    linked = {"base": "demo/base.safetensors"}
    own = run(server, checkpoint("base.safetensors"))
    assert np.array_equal(run(server, blended((0, 0), solved=linked)), own)


def test_every_way_and_every_order_gives_the_same_bits(server):
    first = {}
    points = [(1, -0.5), (-0.3, 0.8), (1, -0.5), (0, 0), (-0.3, 0.8)]
    for method, directions in (("auto", "file"), ("patch", "file"), ("auto", "memory"), ("patch", "memory")):
        for at in points:
            found = run(server, blended(at, method=method, directions=directions))
            assert np.array_equal(found, first.setdefault(at, found))
    assert not np.array_equal(first[points[0]], first[points[1]])


def test_moves_are_written_in_place(server):
    """After the first load nothing is patched again: ComfyUI says each time that it loads a model completely."""
    run(server, blended((0.1, 0.1)))
    before = server.said().count("loaded completely")
    for step in range(4):
        run(server, blended((0.2 + step / 10, -0.4)))
    assert server.said().count("loaded completely") == before
    run(server, blended((0.2, 0.1), method="patch"))
    assert server.said().count("loaded completely") == before + 1


def save_checkpoint(server, at, name, **options):
    """What HyperMerge Save Checkpoint writes: its path."""
    graph = Graph()
    given = {"dtype": "keep", "from_inputs": False, "further": "", "strength_clip": 1.0} | options
    hyper = load(graph)[0]
    prefix = f"checkpoints/{name}"
    node = graph.add("HyperMergeSaveCheckpoint", hyper=hyper, lam=at[0], kap=at[1], filename_prefix=prefix, **given)
    return Path(server.run(graph)["outputs"][node]["text"][0])


def same_numbers(path, other):
    """Have the two files the same tensors, bit for bit?"""
    written, wanted = load_file(path), load_file(other)
    return written.keys() == wanted.keys() and all(np.array_equal(written[key], wanted[key]) for key in wanted)


def test_it_is_what_the_command_line_merges(server, made):
    """The saved checkpoint is hyper-merge's own, byte for byte, and samples like the blend."""
    at = (0.6, -0.8)
    path = save_checkpoint(server, at, "kept")
    own = server.base / "own.safetensors"
    hm.load(made).merge(at, own, force=True)
    assert path.parent == server.base / "output" / "checkpoints"
    assert same_numbers(path, own)
    kept = run(server, checkpoint(path.name))
    live = run(server, blended(at))
    assert np.abs(kept - live).max() < 0.01 * np.abs(live).max()


def test_blends_from_the_inputs(server, made):
    at = (0.6, -0.8)
    path = save_checkpoint(server, at, "exact", dtype="fp32", from_inputs=True)
    own = server.base / "exact.safetensors"
    hyper = hm.load(made)
    names = [f"{member.name}.safetensors" for member in hyper.members]
    hyper.merge(at, own, exact=[str(DEMO / name) for name in names], dtype="fp32", force=True)
    assert same_numbers(path, own)


def test_comfyuis_own_save_keeps_the_blend(server):
    """CheckpointSave writes what it computes with; loaded again it samples the same picture."""
    at = (-0.7, 0.4)
    graph = Graph()
    loaded = load(graph)
    model = blend(graph, loaded[1], loaded[0], at)
    graph.add("ModelSave", model=model[0], filename_prefix="diffusion_models/by-comfyui")
    server.run(graph)
    (path,) = (server.base / "output" / "diffusion_models").glob("by-comfyui*")
    shutil.copy(path, server.base / "models" / "checkpoints" / "by-comfyui.safetensors")
    assert np.array_equal(run(server, checkpoint("by-comfyui.safetensors")), run(server, blended(at)))


# ---- together with other nodes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(server):
    """A LoRA for the demo family; ComfyUI lists it."""
    rng = np.random.default_rng(4)
    tensors = {}
    for name, weight in load_file(DEMO / "base.safetensors").items():
        if weight.ndim == 2 and "joint_blocks" in name:
            stem = name.removeprefix("model.").removesuffix(".weight")
            tensors[f"{stem}.lora_up.weight"] = (0.15 * rng.standard_normal((weight.shape[0], 4))).astype(np.float16)
            tensors[f"{stem}.lora_down.weight"] = (0.15 * rng.standard_normal((4, weight.shape[1]))).astype(np.float16)
    save_file(tensors, server.base / "models" / "loras" / "test.safetensors")
    return "test.safetensors"


@pytest.mark.parametrize("method", ["auto", "patch"])
def test_lora_before_and_after(server, lora, method):
    at = (0.8, -0.6)

    def before(graph):
        loaded = load(graph)
        patched = graph.add("LoraLoaderModelOnly", model=loaded[1], lora_name=lora, strength_model=0.7)
        return blend(graph, patched[0], loaded[0], at, method=method)[0]

    def after(graph):
        loaded = load(graph)
        model = blend(graph, loaded[1], loaded[0], at, method=method)
        return graph.add("LoraLoaderModelOnly", model=model[0], lora_name=lora, strength_model=0.7)[0]

    plain, one, two = run(server, blended(at)), run(server, before), run(server, after)
    assert np.abs(one - two).max() < 1e-4 < 0.05 < np.abs(one - plain).max()
    assert np.array_equal(run(server, blended(at)), plain)
    assert np.array_equal(run(server, before), one)


def test_two_blends_in_one_graph(server):
    """Side by side, each samples as it does alone; one after the other, they add up."""
    one, two = (1.0, 0.0), (-0.5, 0.75)
    graph = Graph()
    loaded = load(graph)
    nodes = [sample(graph, blend(graph, loaded[1], loaded[0], at)[0]) for at in (one, two)]
    entry = server.run(graph)
    assert np.array_equal(latents(server, entry, nodes[0])[0], run(server, blended(one)))
    assert np.array_equal(latents(server, entry, nodes[1])[0], run(server, blended(two)))
    chained = run(server, blended(one, chain=(two,)))
    assert np.abs(chained - run(server, blended((0.5, 0.75)))).max() < 1e-4
    assert np.array_equal(chained, run(server, blended(one, chain=(two,), method="patch")))


def test_on_top_of_another_model(server):
    """Directions go onto whatever MODEL comes in."""
    at = (0.5, 0.5)

    def build(graph):
        hyper = load(graph)
        return blend(graph, checkpoint("hot-dense.safetensors")(graph), hyper[0], at)[0]

    graph = Graph()
    hyper = hm.load(hyper_file(server, graph, load(graph)))
    tensors = load_file(DEMO / "hot-dense.safetensors")
    stored = load_file(hyper._path)
    for name, tensor in tensors.items():
        moved = tensor.astype(np.float32)
        for k, c in enumerate(at, start=1):
            if f"hypermerge.direction.{k}.{name}" in stored:
                moved = moved + np.float32(c) * stored[f"hypermerge.direction.{k}.{name}"].astype(np.float32)
        tensors[name] = moved
    save_file(tensors, server.base / "models" / "checkpoints" / "by-hand.safetensors")
    assert np.array_equal(run(server, build), run(server, checkpoint("by-hand.safetensors")))


def test_blocks_through_the_input(server):
    def build(text):
        def built(graph):
            loaded = load(graph)
            given = graph.add("PrimitiveStringMultiline", value=text)
            return blend(graph, loaded[1], loaded[0], (0.9, -0.9), blocks=given[0])[0]

        return built

    assert np.array_equal(run(server, build("model.* = 0.2, 0.4")), run(server, blended((0.2, 0.4))))
    assert np.array_equal(run(server, build("# nothing")), run(server, blended((0.9, -0.9))))
    only = run(server, build("*.final_layer.* = 0, 0"))
    assert not np.array_equal(only, run(server, blended((0.9, -0.9))))
    with pytest.raises(Failed, match="matches the pattern"):
        run(server, build("*.input_blocks.* = 0, 0"))


def test_a_schedule_that_stands_still_is_a_blend(server):
    def scheduled(start, end, method="auto", before=(0, 0), **more):
        graph = Graph()
        loaded = load(graph)
        model = blend(graph, loaded[1], loaded[0], before, method=method)
        scene = graph.add("HyperMergeDemoConditioning", shape="square", hue=0.1, x=0.0, y=0.0, radius=10.0)
        node = graph.add(
            "HyperMergeSchedule",
            model=model[0],
            positive=scene[0],
            negative=scene[0],
            hyper=loaded[0],
            lam_start=start[0],
            kap_start=start[1],
            lam_end=end[0],
            kap_end=end[1],
            **{"start_percent": 0.0, "end_percent": 1.0, "keyframes": 4, **more},
        )
        saved = sample(graph, model[0], condition=[node[0], node[1]])
        return latents(server, server.run(graph), saved)[0]

    at = (1.0, -0.5)
    fixed = run(server, blended(at))
    assert np.abs(scheduled(at, at) - fixed).max() < 1e-4
    assert np.array_equal(scheduled((0, 0), (0, 0)), run(server, blended((0, 0))))
    moving = scheduled((0, 0), at)
    assert np.abs(moving - fixed).max() > 0.01 and np.abs(moving - run(server, blended((0, 0)))).max() > 0.01
    assert np.array_equal(scheduled((0, 0), at, method="patch"), moving)
    # Hooks leave nothing behind in the loaded weights.
    assert np.array_equal(run(server, blended(at)), fixed)
    with pytest.raises(Failed, match="must be smaller"):
        scheduled((0, 0), at, start_percent=0.5, end_percent=0.5)


@pytest.mark.parametrize("kind, count", [("grid", 6), ("path", 5)])
def test_a_sweep_samples_every_point(server, kind, count):
    graph = Graph()
    loaded = load(graph)
    sweep = graph.add(
        "HyperMergeSweep",
        model=loaded[1],
        hyper=loaded[0],
        kind=kind,
        lam_from=-1.0,
        lam_to=1.0,
        kap_from=-0.5,
        kap_to=0.5,
        columns=3,
        rows=2,
        points="hot-faint\n0, 0\n1, 0.5",
        frames=5,
        closed=False,
        strength_clip=1.0,
        directions="memory",
        method="auto",
    )
    saved = sample(graph, sweep[0])
    labels = graph.add("PreviewAny", source=sweep[2])
    entry = server.run(graph)
    found = latents(server, entry, saved)
    assert len(found) == count and len({latent.tobytes() for latent in found}) == count
    assert len(entry["outputs"][labels]["text"]) == count
    if kind == "grid":
        assert entry["outputs"][labels]["text"][0] == "λ -1  κ 0.5"
        assert np.array_equal(found[0], run(server, blended((-1.0, 0.5))))
    else:
        assert np.array_equal(found[-1], run(server, blended((1, 0.5))))


# ---- a family with text encoders ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worded(server):
    """Two small SD1.5 networks with CLIP; what they say is noise, but it is the same noise for the same weights."""
    rng = np.random.default_rng(8)
    noise = rng.standard_normal(1 << 20).astype(np.float32)
    with gzip.open(GOLDEN / "sd15.json.gz") as source:
        clip = {name: shape for name, (shape, _) in json.load(source).items() if name.startswith("cond_stage_model.")}
    shapes = {**json.loads((GOLDEN / "sd15-mini.json").read_text(encoding="utf-8")), **clip}
    for m in range(2):
        model = {}
        for index, (name, shape) in enumerate(shapes.items()):
            size = int(np.prod(shape))
            if name.endswith("position_ids"):
                model[name] = np.arange(size).reshape(shape)
                continue
            base = np.resize(np.roll(noise, 7919 * index), size)
            change = np.resize(np.roll(noise, 104729 * (index + 1) * (m + 1)), size)
            norm = name.endswith("weight") and len(shape) == 1
            numbers = base / np.sqrt(max(1, size / max(1, shape[0]))) * (1 + 0.3 * change) + norm
            model[name] = numbers.astype(np.float16).reshape(shape)
        save_file(model, server.base / "models" / "checkpoints" / f"worded-{m}.safetensors")
    return "worded-*.safetensors"


def test_text_encoders_move_too(server, worded):
    """Prompts are read by the blended CLIP: as by the checkpoint that is written at the same point."""
    at = (0.5, 0.0)

    def picture(graph, model, clip):
        words = graph.add("CLIPTextEncode", text="a red fox, (autumn:1.2)", clip=clip)
        empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
        sampled = graph.add(
            "KSampler", model=model, positive=words[0], negative=words[0], latent_image=empty[0], seed=3, steps=2,
            cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        saved = graph.add("SaveLatent", samples=sampled[0], filename_prefix="latents/words")
        path = server.output(server.run(graph), saved, "latents")
        return load_file(path)["latent_tensor"]

    def live(strength, method="auto"):
        graph = Graph()
        loaded = load(graph, models=worded)
        moved = blend(graph, loaded[1], loaded[0], at, method=method, clip=loaded[2], strength=strength)
        return picture(graph, moved[0], moved[1])

    def kept(strength):
        graph = Graph()
        loaded = load(graph, models=worded)
        node = graph.add(
            "HyperMergeSaveCheckpoint",
            hyper=loaded[0],
            lam=at[0],
            kap=at[1],
            further="",
            strength_clip=strength,
            filename_prefix="checkpoints/worded",
            dtype="fp32",
            from_inputs=False,
        )
        name = Path(server.run(graph)["outputs"][node]["text"][0]).name
        graph = Graph()
        opened = graph.add("CheckpointLoaderSimple", ckpt_name=name)
        return picture(graph, opened[0], opened[1])

    whole, half, still = live(1.0), live(-0.5), live(0.0)
    assert np.array_equal(live(1.0, "patch"), whole) and np.array_equal(live(-0.5, "patch"), half)
    scale = np.abs(whole).max()
    assert np.abs(whole - still).max() > 1e-3 * scale and np.abs(half - whole).max() > 1e-3 * scale
    for found, strength in ((whole, 1.0), (half, -0.5), (still, 0.0)):
        assert np.abs(kept(strength) - found).max() < 1e-4 * scale
