"""More of what must hold in both real hosts: other checkpoints amid a job, the animation script, Reload UI."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import hypermerge_ext as hm
from webui.host_cases import AT, ELSEWHERE, LORA, Host
from webui.real_host import Failed

OTHER = "model-1.safetensors"
KEPT = "kept.safetensors"


class More:
    """With the same host as Cases; each test leaves the weights at the base's own."""

    @pytest.fixture(autouse=True)
    def _base_again(self, host: Host) -> Any:
        yield
        host.api("set", enabled=False)

    @pytest.fixture
    def kept(self, host: Host) -> Any:
        """kept(**more) → the picture of the blend as a checkpoint of its own, which the host loads for all of the job."""
        strength = strength_of(host)
        host.job(
            "save-checkpoint", hyper=host.hyper, multipliers=AT, text_encoder=strength, file_name=KEPT, dtype="fp32"
        )

        def picture(**more: Any) -> str:
            return host.server.txt2img(override_settings={"sd_model_checkpoint": KEPT}, **more).pixels

        yield picture
        (host.checkpoints / KEPT).unlink()

    # ---- other checkpoints amid a job -----------------------------------------------------------------------------

    def test_a_refiner(self, host, kept):
        """The blend, then another checkpoint, which is left alone."""
        more = {"steps": 4, "refiner_switch_at": 0.5}
        moved, base = live(host), host.pixels()
        expected = kept(refiner_checkpoint=OTHER, **more)
        assert live(host, refiner_checkpoint=OTHER, **more) == expected
        assert live(host) == moved and host.pixels() == base
        assert live(host, refiner_checkpoint=OTHER, **more) == expected != host.pixels(refiner_checkpoint=OTHER, **more)

    @pytest.mark.parametrize("limit", [1, 2])
    def test_the_base_as_a_refiner(self, host, limit):
        """What is moved is the job's own checkpoint; a base that is kept from an earlier job refines as it is."""
        more: dict[str, Any] = {"steps": 4, "refiner_switch_at": 0.5, "refiner_checkpoint": host.base}
        more |= {"override_settings": {"sd_model_checkpoint": OTHER}}
        host.server.options(sd_checkpoints_limit=limit)
        try:
            plain, moved = host.picture(**more), live(host)
            assert host.pixels(**more) == plain.pixels and live(host) == moved
            refused = host.picture(AT, **more)
            assert refused.pixels == plain.pixels and "Hyper-Merge at" not in refused.infotext
            assert live(host) == moved
        finally:
            host.server.options(sd_checkpoints_limit=1)

    def test_another_checkpoint_for_the_hires_pass(self, host, kept):
        more = hires(host) | {"hr_checkpoint_name": OTHER}
        moved, base = live(host), host.pixels()
        expected = kept(**more)
        assert live(host, **more) == expected != host.pixels(**more)
        assert live(host) == moved and host.pixels() == base

    # ---- a base that is a checkpoint ------------------------------------------------------------------------------

    def test_a_sibling_of_the_base_is_left_alone(self, host):
        """All these files have one header; only the base is the base."""
        files = [host.checkpoints / name for name in host.models]
        hm.solve(files[1:], base=files[0], directions=2).save(host.hypers / "linked.hyper.safetensors")

        def picture(model: str) -> Any:
            return host.server.pictures(
                arguments=[True, "linked.hyper.safetensors", *AT, "", 1.0, ""],
                override_settings={"sd_model_checkpoint": model},
            )[0]

        try:
            base, sibling = (host.pixels(override_settings={"sd_model_checkpoint": name}) for name in host.models[:2])
            moved, refused = picture(host.models[0]), picture(host.models[1])
            assert moved.pixels not in (base, sibling) and "Hyper-Merge at" in moved.infotext
            assert refused.pixels == sibling and "Hyper-Merge at" not in refused.infotext
        finally:
            (host.hypers / "linked.hyper.safetensors").unlink()

    # ---- the animation script -------------------------------------------------------------------------------------

    @pytest.mark.parametrize("ending", ["GIF", "WebP"])
    def test_an_animation(self, host, ending):
        """Frames are the pictures of their places; the file has them all."""
        before = animations(host)
        found = animation(host, "path", "0, 0\n0.6, -0.8", 3, ending)
        places = [(0.0, 0.0), (0.3, -0.4), (0.6, -0.8)]
        assert [picture.pixels for picture in found[1:]] == [host.pixels(place) for place in places]
        assert all("Hyper-Merge at: " in picture.infotext for picture in found[1:])
        (path,) = animations(host) - before
        with Image.open(path) as image:
            assert image.format == ending.upper() and image.n_frames == 3
            assert image.width > image.height == 256  # the map is beside it
        assert host.held() in (None, places[-1])

    def test_a_grid_with_the_map(self, host):
        found = animation(host, "grid", "", 2, "GIF")
        places = [(lam, kap) for kap in (1, -1) for lam in (-1, 1)]
        assert [picture.pixels for picture in found[1:]] == [host.pixels(place) for place in places]


def strength_of(host: Host) -> float:
    """Of the text encoder: Forge rounds its embeddings while it loads them, to half precision."""
    return 1.0 if host.kind == "a1111" else 0.0


def live(host: Host, **more: Any) -> str:
    return host.server.txt2img(arguments=host.arguments(AT, strength_of(host)), **more).pixels


def hires(host: Host) -> dict[str, Any]:
    found = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 1}
    found |= {"denoising_strength": 0.7}
    return found | ({"hr_additional_modules": ["Use same choices"]} if host.kind == "forge" else {})


def animations(host: Host) -> set[Path]:
    return {path for path in host.data.rglob("*-hyper-merge.*") if path.suffix in (".gif", ".webp")}


def animation(host: Host, kind: str, points: str, frames: int, ending: str) -> list[Any]:
    """The file's first frame, and the single pictures."""
    values = [kind, points, frames, 4, ending, False, -1, 1, -1, 1, 2, 2, True, False]
    on = (True, host.hyper, 0, 0, "", 1.0, "")
    return host.server.pictures("a red fox", on, script_name="Hyper-Merge animation", script_args=values)


# ---- Reload UI ------------------------------------------------------------------------------------------------------


class Reload:
    """The last: what "Reload UI" does to a server."""

    def test_reload_ui(self, host, browser):
        from webui.host_pages import HostPage

        base, moved, with_lora = host.pixels(), host.pixels(AT), host.pixels(AT, LORA)
        hooks = hooked(host)
        assert hooks["scripts"] == 2 and min(hooks["axes"].values()) == max(hooks["axes"].values()) == 1
        for _ in range(2):
            host.move(ELSEWHERE)
            assert host.held() == ELSEWHERE
            page = HostPage(browser, host)
            page.open("txt2img")
            reload_ui(host, page)
            page.close()
            assert hooked(host) == hooks
            assert host.held() is None and host.server.txt2img().pixels == base  # also for jobs that bring nothing
            assert host.pixels(AT) == moved and host.pixels(AT, LORA) == with_lora and host.pixels() == base
            assert host.pixels((0, 0), f"a red fox <hm:{AT[0]}:{AT[1]}>") == moved
        page = HostPage(browser, host)
        page.open("txt2img")
        page.choose("txt2img", "hyper", host.hyper)  # those of other tests are in the list now too
        page.enable("txt2img")
        page.at("txt2img", *AT)
        page.until(lambda: host.held() == AT, 30)
        page.close()
        assert page.errors == []
        said = host.server.said()
        assert (
            "Error loading script" not in said
            and "Error calling" not in said
            and "Error executing callback" not in said
        )


def hooked(host: Host) -> dict[str, Any]:
    """How often our scripts and axes are known to the host, for txt2img."""
    info = [item for item in host.server.get("/sdapi/v1/script-info") if not item["is_img2img"]]
    plot = next(item for item in info if item["name"].lower().startswith("x/y/z"))
    axes = [label for label in plot["args"][0]["choices"] if label.startswith("[Hyper-Merge]")]
    routes = [path for path in host.server.get("/openapi.json")["paths"] if path.startswith("/hyper-merge/")]
    return {
        "scripts": sum(item["name"].lower().startswith("hyper-merge") for item in info),
        "axes": {label: axes.count(label) for label in axes},
        "routes": sorted(routes),
    }


def reload_ui(host: Host, page: Any) -> None:
    """Settings → Reload UI; until the server is there again."""
    count = host.server.said().count("Startup time:")
    page.tab("Settings")
    button = page.page.locator("#settings_restart_gradio")
    while "Reloading" not in page.page.locator("body").inner_text():
        button.click(timeout=30_000)  # does nothing before Gradio has hung its event on it
        page.page.wait_for_timeout(500)
    host.until(lambda: host.server.said().count("Startup time:") > count, 120)

    def answers() -> bool:
        try:
            return bool(host.api("list"))
        except (Failed, OSError):
            return False

    host.until(answers, 30)
    time.sleep(1)
