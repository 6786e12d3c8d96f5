"""A real A1111 or Forge, started with a data folder of its own in which this tree is the only extension."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (".*", "build", "csrc", "demo", "tests", "bench", "docs", "__pycache__")
"""Of this tree, in what is installed as an extension."""
START = 300  # seconds; a busy machine needs a minute for the imports, and another for the model
FLAGS = [
    "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--do-not-download-clip",
    "--no-half", "--api", "--api-server-stop",
]  # fmt: skip
KINDS = {
    "a1111": ["--use-cpu", "all", "--opt-sdp-attention", "--no-download-sd-model"],
    "forge": ["--always-cpu"],
}
HALF = {  # without a GPU A1111 fails where it would choose by itself what to compute with
    "a1111": ["--precision", "half"],
    "forge": [],
}
HALF_SETTINGS = {"a1111": {"sd_vae_decode_method": "Approx NN"}, "forge": {}}
"""A VAE of half precision takes minutes without a GPU."""
SETTINGS = {  # of the host: no file that nobody asked for, and a progress that can be read
    "samples_save": False,
    "grid_save": False,
    "live_previews_enable": False,
    "return_grid": True,
    "show_warnings": False,
}


class Failed(Exception):
    """The host did not start, or refused a request; the text is its own."""


class Picture(NamedTuple):
    """What a job gave: the hash of the first image's pixels, and its infotext."""

    pixels: str
    infotext: str


def install(data: Path) -> None:
    """This tree as an extension, copied as a person has it."""
    shutil.copytree(ROOT, data / "extensions" / "hyper-merge", ignore=shutil.ignore_patterns(*LEFT_OUT))


class WebUI:
    """A host started from `folder` by `python`; models, settings and outputs are under `data`."""

    def __init__(
        self, kind: str, folder: str, python: str, data: Path, package: Path | None, flags: Any = (), half: bool = False
    ) -> None:
        """kind: "a1111" or "forge".  package: the folder of the installed hypermerge_ext, or None for a host without.

        half: in half precision, where the host would use it.
        """
        self.kind, self.data, self.folder = kind, data, folder
        for name in ("extensions", "models/Stable-diffusion", "models/Lora", "packages"):
            (data / name).mkdir(parents=True, exist_ok=True)
        if package is not None and not (data / "packages" / package.name).exists():
            (data / "packages" / package.name).symlink_to(package)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data / f"{kind}.log"
        self.log.unlink(missing_ok=True)
        settings = data / "config.json"
        if not settings.exists():
            chosen = {**SETTINGS, **(HALF_SETTINGS[kind] if half else {})}
            settings.write_text(json.dumps(chosen), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": str(data / "packages"),
            "GIT": "false",
        }
        environment.setdefault("PYTHONDONTWRITEBYTECODE", "1")
        environment.setdefault("HF_HUB_OFFLINE", "1")
        environment["GRADIO_ANALYTICS_ENABLED"] = "False"
        environment.setdefault("OMP_NUM_THREADS", "1")  # threads of a small network wait for each other
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(python, flags, half), cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._wait()

    def _command(self, python: str, flags: Any, half: bool) -> list[str]:
        # Forge's Gradio serves nothing from Forge's own folder where the data lie elsewhere, unless it is told to.
        allowed = [part for path in (str(self.data), self.folder) for part in ("--gradio-allowed-path", path)]
        known = [*FLAGS, *KINDS[self.kind], *allowed]
        if half:
            place = known.index("--no-half")
            known[place : place + 1] = HALF[self.kind]
        return [python, "launch.py", *known, *flags, "--data-dir", str(self.data), "--port", str(self.port)]

    def _wait(self) -> None:
        """Reads the log: a request that comes between the page and the API makes A1111 fail."""
        end = time.monotonic() + START
        while time.monotonic() < end and self._process.poll() is None:
            if "Startup time:" in self.said():
                try:
                    self.get("/sdapi/v1/memory")
                    return
                except Failed:
                    return  # it asks for a password
                except OSError:
                    pass
            time.sleep(0.25)
        self.stop()
        raise Failed(f"{self.kind} did not start; its log ends:\n{self.said()[-3000:]}")

    def stop(self) -> None:
        """Ends the host and whatever it started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def memory(self) -> dict[str, int]:
        """Bytes: "RssAnon" is the process's own, "RssFile" lies in the page cache too."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        pairs = (line.split(":", 1) for line in lines if line.startswith("Rss"))
        return {name: int(value.split()[0]) * 1024 for name, value in pairs}

    # ---- HTTP -------------------------------------------------------------------------------------------------------

    def request(self, path: str, body: Any = None, timeout: float = 300, user: str = "") -> bytes:
        """user: "name:password".  Raises Failed with status and answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if user:
            request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Failed(f"{path}: {error.code} {error.read().decode(errors='replace')[:2000]}") from None

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, body: Any) -> Any:
        text = self.request(path, body)
        return json.loads(text) if text else None

    def options(self, **values: Any) -> None:
        self.post("/sdapi/v1/options", values)

    # ---- jobs -------------------------------------------------------------------------------------------------------

    def txt2img(self, prompt: str = "a red fox", arguments: Any = None, **more: Any) -> Picture:
        """One image of 64 × 64 in two steps.  arguments: of the accordion, as in `alwayson_scripts`; None leaves it out."""
        return self.pictures(prompt, arguments, **more)[0]

    def pictures(
        self, prompt: str = "a red fox", arguments: Any = None, route: str = "txt2img", **more: Any
    ) -> list[Picture]:
        """All images of a job."""
        body = {
            "prompt": prompt, "seed": 7, "steps": 2, "width": 64, "height": 64, "cfg_scale": 3, "sampler_name": "Euler", **more,
        }  # fmt: skip
        if arguments is not None:
            body["alwayson_scripts"] = {"Hyper-Merge": {"args": list(arguments)}}
        return _pictures(self.post(f"/sdapi/v1/{route}", body))

    def again(self, infotext: str) -> Picture:
        """What the host makes of an infotext."""
        return _pictures(self.post("/sdapi/v1/txt2img", {"infotext": infotext}))[0]


def _pictures(answer: dict[str, Any]) -> list[Picture]:
    texts = json.loads(answer["info"])["infotexts"]
    images = [Image.open(io.BytesIO(base64.b64decode(text.split(",")[-1]))) for text in answer["images"]]
    hashes = [hashlib.md5(image.convert("RGB").tobytes()).hexdigest() for image in images]
    return [Picture(*pair) for pair in zip(hashes, texts + [""] * len(hashes))]
