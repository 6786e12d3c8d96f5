"""The real ComfyUI, for the tests that need it: COMFYUI_DIR is its folder, COMFYUI_PYTHON the Python that runs it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import hypermerge_ext as hm
from comfyui.graphs import hyper_file, solve
from comfyui.server import Graph, Server

DEMO = Path(__file__).resolve().parents[2] / "demo" / "models"


@pytest.fixture(scope="session")
def comfyui():
    """ComfyUI's folder."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set: nothing was tested on the real ComfyUI")
    return folder


@pytest.fixture(scope="session")
def start(comfyui, tmp_path_factory):
    """start() → a Server; all of them use one folder, with the demo family among its checkpoints."""
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "models" / "checkpoints").mkdir(parents=True)
    for file in DEMO.glob("*.safetensors"):
        shutil.copy(file, folder / "models" / "checkpoints")
    return lambda: Server(comfyui, folder, Path(hm.__file__).parent)


@pytest.fixture(scope="session")
def server(start):
    running = start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def made(server):
    """The hyper-model of the eight at K = 2."""
    graph = Graph()
    return hyper_file(server, graph, solve(graph))
