"""What must hold in the real A1111 and in the real Forge alike; test_a1111.py and test_forge.py run it in each."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import hypermerge_ext as hm
from webui import sd15, sdxl
from webui.real_host import Failed, Picture, WebUI, install

ROOT = Path(__file__).resolve().parents[2]
LORA = "a red fox <lora:lora-test:1>"
AT, ELSEWHERE = (0.6, -0.8), (-0.5, 0.4)


class Host:
    """The running host, the hyper-model of the family, and the title of its base's checkpoint."""

    def __init__(self, kind: str, data: Path, half: bool = False, flags: Sequence[str] = (), xl: bool = False) -> None:
        """half: in half precision, and with the hyper-model made only after the page was built.  flags: of the host.
        xl: a family of SDXL's kind.
        """
        self.kind, self.data = kind, data
        self.checkpoints, self.hypers = data / "models" / "Stable-diffusion", data / "models" / "hyper_merge"
        self.checkpoints.mkdir(parents=True)
        (data / "models" / "Lora").mkdir()
        network: dict[str, Any] = {"names": sdxl.shapes(), "config": sdxl.CONFIG} if xl else {}
        self.models = [path.name for path in sd15.write_family(self.checkpoints, **network)]
        layers = (sdxl if xl else sd15).lora_layers()
        sd15.write_lora(data / "models" / "Lora" / "lora-test.safetensors", layers)
        self.hypers.mkdir()
        install(data)
        self.hyper = "family.hyper.safetensors"
        solved = hm.solve([self.checkpoints / name for name in self.models], directions=2)
        if not half:
            solved.save(self.hypers / self.hyper)
        self.server = WebUI(kind, *environment(kind), data, Path(hm.__file__).parent, flags, half)
        if half:
            solved.save(self.hypers / self.hyper)
        try:
            self.server.txt2img()  # A1111 loads its first model beside everything else, and another beside that fails
            self.base: str = self.job("load-base", name=self.hyper)["title"]
        except BaseException:
            self.server.stop()
            raise

    # ---- our own routes -------------------------------------------------------------------------------------------

    def api(self, route: str, **body: Any) -> Any:
        """Of our own routes: GET without a body."""
        path = f"/hyper-merge/v1/{route}"
        return self.server.post(path, body) if body else self.server.get(path)

    def move(self, at: Any, **more: Any) -> dict[str, Any]:
        return self.api("set", hyper=self.hyper, multipliers=list(at), **more)

    def held(self) -> Any:
        """Multipliers that the weights hold; None for the base."""
        current = self.api("get")["current"]
        return current and tuple(current["multipliers"])

    def job(self, route: str, **body: Any) -> Any:
        """The result of a long job.  Raises Failed with its error, or its state."""
        task = self.api(route, **body)
        while task["state"] in ("queued", "running"):
            time.sleep(0.1)
            task = self.api(f"progress?job={task['job']}")
        if task["state"] != "done":
            raise Failed(task["error"] or task["state"])
        return task["result"]

    # ---- pictures -------------------------------------------------------------------------------------------------

    def arguments(self, at: Any = None, text_encoder: float = 1.0, blocks: str = "") -> list[Any]:
        """Of the accordion; at: λ, κ, None leaves it switched off."""
        return [at is not None, self.hyper, *(at or (0, 0)), "", text_encoder, blocks]

    def picture(self, at: Any = None, prompt: str = "a red fox", **more: Any) -> Picture:
        return self.server.txt2img(prompt, self.arguments(at), **more)

    def pixels(self, at: Any = None, prompt: str = "a red fox", **more: Any) -> str:
        return self.picture(at, prompt, **more).pixels

    def again(self, infotext: str) -> Picture:
        """What the host makes of an infotext that is given back to it."""
        return self.server.again(infotext)

    def with_blocks(self, text_encoder: float, blocks: str) -> str:
        return self.server.txt2img(arguments=self.arguments(AT, text_encoder, blocks)).pixels

    # ---- the queue ------------------------------------------------------------------------------------------------

    def wait_for_step(self) -> None:
        """Until a job samples."""
        self.until(lambda: self.server.get("/sdapi/v1/progress")["state"]["sampling_step"] > 0)

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come true in time"
            time.sleep(0.02)

    def grid(self, x: tuple[str, str], y: tuple[str, str], **more: Any) -> list[Picture]:
        """An X/Y grid of the accordion switched on at 0, 0.  x, y: axis label and values."""
        info = self.server.get("/sdapi/v1/script-info")
        script = next(item for item in info if item["name"].lower().startswith("x/y/z") and not item["is_img2img"])
        labels = script["args"][0]["choices"]
        axes: list[Any] = []
        for label, values in (x, y, ("Nothing", "")):
            axes += [labels.index(label), values, []]
        arguments = [*axes, False, True, False, False, False, False, False, 0, False]
        on = (True, self.hyper, 0, 0, "", 1.0, "")
        found = self.server.pictures("a red fox", on, script_name=script["name"], script_args=arguments, **more)
        return [picture for picture in found if "X Type" not in picture.infotext]


def environment(kind: str) -> tuple[str, str]:
    """Folder of the host and its Python, or a skip that says what was not tested."""
    for name in (f"{kind.upper()}_DIR", f"{kind.upper()}_PYTHON"):
        if not os.environ.get(name):
            pytest.skip(f"{name} is not set: nothing was tested in the real {kind.capitalize()}")
    return os.environ[f"{kind.upper()}_DIR"], os.environ[f"{kind.upper()}_PYTHON"]


def started(kind: str, folder: Path) -> Iterator[Host]:
    """For the fixtures: a Host, or a skip that says what was not tested."""
    environment(kind)
    host = Host(kind, folder)
    yield host
    host.server.stop()


class Cases:
    """Each test leaves the weights at the base's own."""

    @pytest.fixture(autouse=True)
    def _base_again(self, host: Host) -> Iterator[None]:
        yield
        host.api("set", enabled=False)

    # ---- pictures -------------------------------------------------------------------------------------------------

    def test_table_of_moves(self, host):
        """Without and with a LoRA, at the base and moved, in the orders in which a naive write goes wrong."""
        base, base_lora = host.pixels(), host.pixels(prompt=LORA)
        moved_lora = host.pixels(AT, LORA)  # the LoRA of the job before is in the weights
        assert host.pixels(AT, LORA) == moved_lora
        moved = host.pixels(AT)
        assert host.pixels(AT) == moved
        assert host.pixels((0, 0), LORA) == base_lora and host.pixels((0, 0)) == base
        assert host.pixels(AT) == moved and host.pixels(AT, LORA) == moved_lora
        assert host.pixels() == base and host.pixels(prompt=LORA) == base_lora
        assert len({base, base_lora, moved, moved_lora}) == 4

    def test_it_is_the_checkpoint_that_is_saved_there(self, host):
        # Forge rounds the embeddings of a text encoder while it loads them, to half precision.
        strength = 1.0 if host.kind == "a1111" else 0.0
        live = [host.server.txt2img(prompt, host.arguments(AT, strength)).pixels for prompt in ("a red fox", LORA)]
        title = host.job(
            "save-checkpoint", hyper=host.hyper, multipliers=AT, text_encoder=strength, file_name="kept", dtype="fp32"
        )["name"]
        there = {"override_settings": {"sd_model_checkpoint": title}}
        assert [host.pixels(**there), host.pixels(prompt=LORA, **there)] == live
        (host.checkpoints / title).unlink()

    def test_the_first_move_after_loading_is_like_later_ones(self, host):
        moved = host.pixels(AT)
        host.pixels(override_settings={"sd_model_checkpoint": "model-1.safetensors"})
        assert host.pixels(AT) == moved

    def test_prompt_token(self, host):
        """Per prompt; a prompt without one is at the accordion's point again, or at the base."""
        moved, base = host.pixels(AT), host.pixels()
        token = f"<hm:{AT[0]}:{AT[1]}>"
        assert host.pixels((0, 0), f"a red fox {token}") == moved
        assert host.pixels((0, 0)) == base
        assert host.pixels((0, 0), f"{LORA} {token}") == host.pixels(AT, LORA)

    def test_text_encoder_and_blocks(self, host):
        whole, still = host.with_blocks(1.0, ""), host.with_blocks(0.0, "")
        assert whole == host.pixels(AT) and still == host.with_blocks(1.0, "TEXT = x0")
        words = host.with_blocks(0.0, "* = x0\nTEXT = x1")  # lines decide after the factor
        others = [host.with_blocks(1.0, "OUT = x0"), host.with_blocks(1.0, "IN = x0.5")]
        assert len({whole, still, words, host.pixels(), *others}) == 6
        assert host.with_blocks(1.0, "* = x0") == host.pixels()

    def test_the_same_in_img2img(self, host):
        def picture(at):
            image, arguments = sd15.picture(64), host.arguments(at)
            more = {"init_images": [image], "denoising_strength": 0.8, "steps": 3}
            return host.server.pictures(arguments=arguments, route="img2img", **more)[0].pixels

        base, moved = picture(None), picture(AT)
        assert base != moved and picture((0, 0)) == base

    # ---- hires fix and batches ------------------------------------------------------------------------------------

    def test_hires_fix_and_batches(self, host):
        hires = {
            "enable_hr": True,
            "hr_scale": 2,
            "hr_upscaler": "Latent",
            "hr_second_pass_steps": 1,
            "denoising_strength": 0.7,
        }
        if host.kind == "forge":
            hires["hr_additional_modules"] = ["Use same choices"]
        base, moved = host.pixels(**hires), host.pixels(AT, **hires)
        assert base != moved and host.pixels(AT, **hires) == moved and host.pixels(**hires) == base
        single = [host.pixels(AT, seed=seed) for seed in (7, 8)]
        batch = host.server.pictures(arguments=host.arguments(AT), n_iter=2)
        assert [picture.pixels for picture in batch if picture.infotext][-2:] == single

    # ---- XYZ, infotext --------------------------------------------------------------------------------------------

    def test_xyz_grid(self, host):
        found = host.grid(("[Hyper-Merge] λ", "0, 0.6"), ("[Hyper-Merge] κ", "0, -0.8"))
        points = [(0, 0), (0.6, 0), (0, -0.8), (0.6, -0.8)]
        assert sorted(picture.pixels for picture in found) == sorted(host.pixels(at) for at in points)
        assert [picture.infotext.count("Hyper-Merge at: ") for picture in found] == [1] * 4

    def test_infotext_round_trip(self, host):
        if host.kind == "forge":
            pytest.skip("Forge's API fails at every infotext; test_generate_and_paste gives one back on the page")
        arguments = [True, host.hyper, 0.25, -1.5, "", 0.5, "OUT = x0.5\nIN00 = 0.1, -0.3"]
        first = host.server.txt2img("a red fox, (autumn:1.2)", arguments)
        again = host.again(first.infotext)
        assert again == first
        plain = host.picture()
        assert "Hyper-Merge" not in plain.infotext
        assert host.again(plain.infotext) == plain
        hashes = [re.search(r"Model hash: (\w+)", text)[1] for text in (first.infotext, plain.infotext)]
        assert hashes[0] != hashes[1] and len(hashes[0]) == len(hashes[1])

    # ---- the queue ------------------------------------------------------------------------------------------------

    def test_a_move_during_a_job_waits(self, host):
        """The picture is what it is without the move; the newest move is there when the job is done."""
        alone = host.pixels(AT, steps=20)
        found: list[str] = []
        job = threading.Thread(target=lambda: found.append(host.pixels(AT, steps=20)))
        job.start()
        host.wait_for_step()
        said = [host.move(at)["text"] for at in ((0.1, 0.1), (0.3, -0.3), ELSEWHERE)]
        assert job.is_alive() and said == ["waits for the running job"] * 3
        assert host.held() == AT
        job.join()
        assert found == [alone]
        host.until(lambda: host.held() == ELSEWHERE)
        assert host.server.txt2img().pixels == host.pixels(ELSEWHERE)

    def test_interrupt(self, host):
        moved = host.pixels(AT)
        job = threading.Thread(target=lambda: host.pixels(ELSEWHERE, steps=60))
        job.start()
        host.wait_for_step()
        host.server.post("/sdapi/v1/interrupt", {})
        job.join(60)
        assert not job.is_alive()
        assert host.pixels(AT) == moved

    def test_a_solve_can_be_cancelled(self, host):
        before = sorted(path.name for path in host.hypers.iterdir())
        job = threading.Thread(target=lambda: host.pixels(AT, steps=20))
        job.start()
        host.wait_for_step()
        waits = host.api("solve", models=host.models[:2], name="waits")["job"]
        assert host.api("cancel", job=waits)["state"] == "cancelled"
        job.join()
        runs = host.api("solve", models=host.models, name="runs", directions=1)["job"]
        host.until(lambda: host.api(f"progress?job={runs}")["progress"] > 0)
        host.api("cancel", job=runs)
        host.until(lambda: host.api(f"progress?job={runs}")["state"] == "cancelled")
        assert sorted(path.name for path in host.hypers.iterdir()) == before
        assert host.job("compare", models=host.models[:2])["text"]  # the host's state is as it was

    # ---- models ---------------------------------------------------------------------------------------------------

    def test_model_switch(self, host):
        """Another model is left alone, and says why; the base is whole when it comes back."""
        other = {"override_settings": {"sd_model_checkpoint": "model-1.safetensors"}}
        base, moved, plain = host.pixels(), host.pixels(AT), host.pixels(**other)
        refused = host.picture(AT, **other)
        assert refused.pixels == plain != moved and "Hyper-Merge at" not in refused.infotext
        assert host.pixels() == base and host.pixels(AT) == moved
        assert [host.pixels(**other), host.pixels(), host.pixels(AT)] == [plain, base, moved]

    def test_models_that_are_kept_loaded(self, host):
        """The host takes a kept model again without telling anybody; A1111 alone keeps several."""
        if host.kind == "forge":
            pytest.skip("Forge keeps one model")
        other = {"override_settings": {"sd_model_checkpoint": "model-1.safetensors"}}
        base, moved, plain = host.pixels(), host.pixels(AT), host.pixels(**other)
        host.server.options(sd_checkpoints_limit=2, sd_checkpoints_keep_in_cpu=True)
        try:
            found = [
                host.pixels(at, **more) for at, more in [(AT, {}), (None, other), (None, {}), (AT, {}), (AT, other)]
            ]
            assert found == [moved, plain, base, moved, plain]
            assert host.pixels() == base
        finally:
            host.server.options(sd_checkpoints_limit=1)

    # ---- the API --------------------------------------------------------------------------------------------------

    def test_api(self, host):
        listed = host.api("list")
        assert host.hyper in listed["hyper_models"] and set(host.models) <= set(listed["models"])
        assert not any(name.endswith(".hyper.safetensors") for name in listed["models"])
        assert host.api("get")["current"] is None
        base = host.pixels()
        text = host.move(AT)["text"]
        assert "λ 0.6" in text and host.held() == AT
        assert host.server.txt2img().pixels == host.pixels(AT)  # holds for jobs that bring nothing of their own
        assert host.pixels((0, 0)) == base  # a job's own come first
        assert len(host.api(f"map?name={host.hyper}")["points"]) == 3
        assert "model-2" in host.api(f"table?name={host.hyper}")["text"]
        solved = host.job("solve", models=host.models[:2], name="two", directions=1)["name"]
        assert solved in host.api("list")["hyper_models"] and len(host.api(f"map?name={solved}")["points"]) == 2
        (host.hypers / solved).unlink()
        placed = host.job("project", name=host.hyper, models=["model-1.safetensors"])
        assert "model-1" in placed["text"]
        mixed = host.job("recover", model="model-1.safetensors", parents=["model-0.safetensors", "model-2.safetensors"])
        assert "model-0" in mixed["text"] and "model-2" in mixed["text"]

    def test_api_refuses(self, host):
        for route, body, status in [
            ("set", {"hyper": "nothing.hyper.safetensors", "multipliers": [1]}, 404),
            ("set", {"hyper": host.hyper, "multipliers": ["x"]}, 422),
            ("map?name=nothing", {}, 404),
            ("table?name=../../config.json", {}, 404),
            ("progress?job=hyper-merge-999", {}, 404),
            ("solve", {"surprise": 1}, 422),
        ]:
            with pytest.raises(Failed, match=f": {status} .*detail"):
                host.api(route, **body)
        with pytest.raises(Failed, match="two checkpoints or more"):
            host.job("solve", models=host.models[:1])
        with pytest.raises(Failed, match="no checkpoint that this web UI lists"):
            host.job("solve", models=["nobody-*"])

    def test_saved_loras_are_listed_and_move_the_base(self, host):
        made = host.job("save-lora", hyper=host.hyper, multipliers=AT, what="blend", rank=32, file_name="moved")
        assert [Path(item["path"]).parent.name for item in made] == ["Lora"]
        found = host.pixels(prompt="a red fox <lora:moved:1>")
        assert found not in (host.pixels(), host.pixels(AT))  # of rank 32, so near it but not the same


def bare_start(kind: str, data: Path) -> None:
    """Without the compiled part the host starts, and says what to do; with --api-auth our routes ask for it too."""
    folder, python = environment(kind)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run([python, "-c", "import hypermerge_ext"], cwd=data, env=clean, capture_output=True)
    if found.returncode == 0:
        pytest.skip(f"hyper-merge is installed in {python}")
    install(data)
    server = WebUI(kind, folder, python, data, None, ["--api-auth", "fox:red"])
    try:
        for user in ("", "fox:blue"):
            with pytest.raises(Failed, match=": 401 "):
                server.request("/hyper-merge/v1/list", user=user)
        assert b"hyper_models" in server.request("/hyper-merge/v1/list", user="fox:red")
        with pytest.raises(Failed, match=": 503 .*pip install"):
            server.request("/hyper-merge/v1/solve", {"models": ["a", "b"]}, user="fox:red")
        assert b"pip install" in server.request("/config")  # the page's components
        assert "Error loading script" not in server.said() and "Error calling" not in server.said()
    finally:
        server.stop()
