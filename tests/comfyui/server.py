"""A real ComfyUI, started in a folder of its own, with this pack as its only one: what the tests need of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START = 180  # seconds; importing everything takes a busy machine a minute


class Failed(Exception):
    """A prompt that ended in an error; the text is ComfyUI's own."""


class Server:
    """ComfyUI from `folder`, its models and outputs under `base`."""

    def __init__(self, folder: str, base: Path, package: Path | None) -> None:
        """package: the folder of the installed hypermerge_ext.  COMFYUI_PYTHON runs it, or the Python of the tests."""
        self.base = base
        for name in ("custom_nodes", "models/checkpoints", "models/diffusion_models", "models/loras", "input", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        pack = base / "custom_nodes" / "hyper-merge"
        if not pack.exists():
            pack.symlink_to(ROOT)
        packages = base / "packages"  # with nothing else in it, whatever lies beside the package
        packages.mkdir(exist_ok=True)
        if package is not None and not (packages / package.name).exists():
            (packages / package.name).symlink_to(package)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = base / "comfyui.log"
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(packages)}
        environment["OMP_NUM_THREADS"] = "1"  # the demo family is too small for threads, which only wait for each other
        command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--disable-api-nodes"]
        command += ["--base-directory", str(base), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, OSError):
                time.sleep(0.5)
        self.stop()
        raise Failed(f"ComfyUI did not start; its log ends:\n{self.said()[-3000:]}")

    def stop(self) -> None:
        """Ends it as Ctrl-C would, and by force when that takes long."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def memory(self) -> int:
        """Resident bytes of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024

    # ---- HTTP -------------------------------------------------------------------------------------------------------

    def request(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, body: Any) -> Any:
        text = self.request(path, body)
        return json.loads(text) if text else None

    def refused(self, path: str) -> tuple[int, Any]:
        """Status and body of a request that must fail."""
        try:
            self.request(path)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        raise AssertionError(f"{path} was answered")

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def queue(self, graph: Mapping[str, Any]) -> str:
        """Queues a prompt; its id.  Raises Failed when ComfyUI does not accept it."""
        try:
            return self.post("/prompt", {"prompt": graph})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Failed(error.read().decode()) from error

    def wait(self, prompt: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry of a prompt that is done, however it ended."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt}")
            if prompt in history and history[prompt]["status"].get("status_str"):
                return history[prompt]
            if self._process.poll() is not None:
                raise Failed(f"ComfyUI ended; its log ends:\n{self.said()[-3000:]}")
            time.sleep(0.05)
        raise Failed(f"the prompt took longer than {timeout} s")

    def run(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a prompt; the history entry, with "outputs": {node: {…}}.  Raises Failed with what ComfyUI said."""
        entry = self.wait(self.queue(graph))
        if entry["status"]["status_str"] != "success":
            messages = [message for kind, message in entry["status"]["messages"] if kind == "execution_error"]
            raise Failed(messages[0]["exception_message"] if messages else json.dumps(entry["status"]))
        return entry

    def output(self, entry: Mapping[str, Any], node: str, kind: str, index: int = 0) -> Path:
        """A file that a node wrote."""
        file = entry["outputs"][node][kind][index]
        return self.base / file["type"] / file["subfolder"] / file["filename"]


class Graph(dict):
    """A prompt that grows: node = graph.add("KSampler", seed=1, model=loader[0])."""

    def add(self, class_type: str, **inputs: Any) -> Node:
        key = str(len(self) + 1)
        self[key] = {"class_type": class_type, "inputs": inputs}
        return Node(key)


class Node(str):
    """The id of a node; node[1] is the link to its second output."""

    def __getitem__(self, output: int) -> list[Any]:  # type: ignore[override]
        return [str(self), output]


_WIDGETS = {"BOOLEAN", "COMBO", "FLOAT", "INT", "STRING"}


def prompt_of(workflow: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt that the page makes of a saved workflow.  info: /object_info.  Notes are left out."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in ("MarkdownNote", "Note"):
            continue
        known = info[node["type"]]["input"]
        links = {given["name"]: given["link"] for given in node["inputs"] if given["link"] is not None}
        values, inputs = list(node["widgets_values"]), {}
        for name, given in {**known.get("required", {}), **known.get("optional", {})}.items():
            options = given[1] if len(given) > 1 else {}
            is_widget = isinstance(given[0], list) or given[0] in _WIDGETS
            if is_widget and not options.get("forceInput"):
                inputs[name] = values.pop(0)
                if options.get("control_after_generate"):
                    values.pop(0)
            if name in links:
                inputs[name] = origins[links[name]]
        assert values == [], (node["type"], values)
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
