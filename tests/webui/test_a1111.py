"""Automatic1111's own server: set A1111_DIR to its folder, and A1111_PYTHON to the Python of its environment.

Offline, its folder needs openai/clip-vit-large-patch14 with the tokenizer's files and config.json.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("webui.host_cases", "webui.host_more", "webui.host_modes", "webui.host_pages")

from webui.host_cases import Cases, bare_start, started  # noqa: E402  after they are known as tests
from webui.host_modes import flag_start, half_start, setting_start, xl_start  # noqa: E402
from webui.host_more import More, Reload  # noqa: E402
from webui.host_pages import Pages  # noqa: E402


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    yield from started("a1111", tmp_path_factory.mktemp("a1111"))


def test_without_the_compiled_part(tmp_path):
    bare_start("a1111", tmp_path)  # the first, while no other server runs


def test_in_half_precision(tmp_path):
    half_start("a1111", tmp_path)


def test_sdxl(tmp_path):
    xl_start("a1111", tmp_path)


@pytest.mark.parametrize("flag", ["--medvram", "--lowvram", "--opt-channelslast"])
def test_with_a_flag(tmp_path, flag):
    flag_start("a1111", tmp_path, flag)


@pytest.mark.parametrize("copies", [False, True], ids=["alone", "with fp16 copies"])
def test_with_fp8_weights(tmp_path, copies):
    setting_start("a1111", tmp_path, "fp8_storage", "Enable", "Disable", cache_fp16_weight=copies)


class TestA1111(Cases):
    pass


class TestMore(More):
    pass


class TestPages(Pages):
    pass


class TestReload(Reload):
    pass
