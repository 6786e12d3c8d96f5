"""Graphs of the demo family, as prompts for the real ComfyUI, and what comes out of them."""

from __future__ import annotations

import numpy as np

from comfyui.server import Graph

LATENT_SIZE = 16 * 16 * 16
FOUR = "\n".join(f"demo/{name}.safetensors" for name in ("hot-faint", "warm-solid", "cool-hollow", "cold-dense"))
EIGHT = "demo/*-*.safetensors"


def solve(graph, models=EIGHT, directions=2, base="mean", name="test"):
    return graph.add(
        "HyperMergeSolve",
        models=models,
        base=base,
        directions=directions,
        name=name,
        include="",
        exclude="",
        dtype="keep",
        common=False,
        allow_nonfinite=False,
    )


def load(graph, **more):
    """HyperMerge Load of what HyperMerge Solve made."""
    return graph.add("HyperMergeLoad", name="(hyper input)", load_base=True, hyper=solve(graph, **more)[0])


def blend(graph, model, hyper, at, method="auto", directions="file", strength=1.0, **more):
    lam, kap, *further = [*at, 0.0, 0.0][: max(2, len(at))]
    return graph.add(
        "HyperMergeBlend",
        model=model,
        hyper=hyper,
        lam=lam,
        kap=kap,
        further=", ".join(map(str, further)),
        strength_clip=strength,
        directions=directions,
        method=method,
        **more,
    )


def sample(graph, model, steps=6, condition=None):
    """Samples and saves the latent; the node that saves."""
    if condition is None:
        scene = graph.add("HyperMergeDemoConditioning", shape="square", hue=0.1, x=0.0, y=0.0, radius=10.0)
        condition = [scene[0], scene[0]]
    empty = graph.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    sampled = graph.add(
        "KSampler",
        model=model,
        positive=condition[0],
        negative=condition[1],
        latent_image=empty[0],
        seed=11,
        steps=steps,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return graph.add("SaveLatent", samples=sampled[0], filename_prefix="latents/x")


def latents(server, entry, node):
    """All latents that a node saved: [n, 4096] float32."""
    found = []
    for index in range(len(entry["outputs"][node]["latents"])):
        raw = server.output(entry, node, "latents", index).read_bytes()
        found.append(np.frombuffer(raw[-4 * LATENT_SIZE :], "<f4"))
    return np.array(found)


def run(server, build, **more):
    """build(graph) → the MODEL's link; the latent that it samples."""
    graph = Graph()
    node = sample(graph, build(graph), **more)
    return latents(server, server.run(graph), node)[0]


def blended(at, chain=(), solved=None, **more):
    """A `build` for run: Solve → Load → Blend at the point."""

    def build(graph):
        loaded = load(graph, **(solved or {}))
        model = loaded[1]
        for point in (at, *chain):
            model = blend(graph, model, loaded[0], point, **more)[0]
        return model

    return build


def checkpoint(name):
    return lambda graph: graph.add("CheckpointLoaderSimple", ckpt_name=name)[0]


def hyper_file(server, graph, node):
    """Path of the hyper-model that a Solve or Load node gives."""
    info = graph.add("HyperMergeInfo", hyper=node[0])
    said = server.run(graph)["outputs"][info]["text"][0]
    return server.base / "models" / "hyper_merge" / said.splitlines()[0]
