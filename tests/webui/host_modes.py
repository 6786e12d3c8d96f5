"""What must hold in a real host that keeps its weights in another way (half precision, fp8, channels last, medvram), and
for SDXL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from webui import sdxl
from webui.host_cases import AT, ELSEWHERE, LORA, Host, environment


def half_start(kind: str, data: Path) -> None:
    """Weights of half precision, which the host chooses where nobody forbids it; and a page that is older than its models."""
    environment(kind)
    host = Host(kind, data, half=True)
    try:
        there_and_back(host)
        if kind == "a1111":  # Forge's API fails at every infotext
            (host.hypers / "another.hyper.safetensors").write_bytes((host.hypers / host.hyper).read_bytes())
            first = host.picture(AT)
            assert host.again(first.infotext) == first and host.hyper in first.infotext
    finally:
        host.server.stop()


def xl_start(kind: str, data: Path) -> None:
    """SDXL: two text encoders, and conditions that are made of more than the prompt; the blend is the merged checkpoint's."""
    environment(kind)
    host = Host(kind, data, xl=True)
    try:
        there_and_back(host)
        both, unet = host.pixels(AT), host.with_blocks(0, "")
        second = host.with_blocks(0, "conditioner.embedders.1.* = 0.6, -0.8")
        assert len({host.pixels(), both, unet, second}) == 4
        first = host.picture(AT)
        assert host.again(first.infotext) == first
        host.job("save-checkpoint", hyper=host.hyper, multipliers=AT, file_name="kept.safetensors", dtype="fp32")
        (host.checkpoints / "kept.yaml").write_text(sdxl.CONFIG, encoding="utf-8")
        assert host.server.txt2img(override_settings={"sd_model_checkpoint": "kept.safetensors"}).pixels == both
        assert host.pixels(AT) == both and "Traceback" not in host.server.said()
    finally:
        host.server.stop()


def flag_start(kind: str, data: Path, *flags: str, log: str = "") -> None:
    """Started with `flags`, of which the host's log must say `log`."""
    environment(kind)
    host = Host(kind, data, flags=flags)
    try:
        assert log in host.server.said()
        there_and_back(host)
        assert "Traceback" not in host.server.said()
    finally:
        host.server.stop()


def setting_start(kind: str, data: Path, setting: str, value: str, before: str, **more: Any) -> None:
    """With `setting` of the host changed to `value` while it runs, and back to `before`.

    Once without us at first: A1111 itself does not come back from fp8 to the same picture, but the second time as the first.
    """
    environment(kind)
    host = Host(kind, data)
    try:
        host.server.options(**{setting: value}, **more)
        changed = host.server.txt2img().pixels
        host.server.options(**{setting: before})
        plain = host.server.txt2img().pixels
        moved = host.pixels(AT)
        host.server.options(**{setting: value})
        assert host.pixels() == changed != plain and host.pixels(AT) != moved
        there_and_back(host)
        host.move(AT)
        host.server.options(**{setting: before})
        assert host.server.txt2img().pixels == moved != plain  # what the API set holds for the new weights too
        host.api("set", enabled=False)
        assert host.pixels() == plain and host.pixels(AT) == moved
        assert "Traceback" not in host.server.said()
    finally:
        host.server.stop()


def there_and_back(host: Host) -> None:
    """By jobs and by moves between them, with a LoRA on top and without."""
    base, with_lora, moved = host.pixels(), host.pixels(prompt=LORA), host.pixels(AT)
    assert len({base, with_lora, moved}) == 3
    assert host.pixels((0, 0)) == base and host.pixels(AT) == moved
    both = host.pixels(AT, LORA)
    assert both not in (base, with_lora, moved) and host.pixels(ELSEWHERE) not in (base, moved)
    assert host.pixels(AT, LORA) == both and host.pixels((0, 0), LORA) == with_lora
    host.move(AT)
    assert host.server.txt2img().pixels == moved and host.server.txt2img(LORA).pixels == both
    host.api("set", enabled=False)
    assert host.pixels() == base and host.pixels(prompt=LORA) == with_lora and host.pixels(AT) == moved
    assert host.pixels() == base
