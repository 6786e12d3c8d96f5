"""Forge's own server: set FORGE_DIR to its folder, and FORGE_PYTHON to the Python of its environment."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("webui.host_cases", "webui.host_more", "webui.host_modes", "webui.host_pages")

from webui.host_cases import Cases, bare_start, started  # noqa: E402  after they are known as tests
from webui.host_modes import flag_start, half_start  # noqa: E402
from webui.host_more import More, Reload  # noqa: E402
from webui.host_pages import Pages  # noqa: E402


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    yield from started("forge", tmp_path_factory.mktemp("forge"))


def test_without_the_compiled_part(tmp_path):
    bare_start("forge", tmp_path)  # the first, while no other server runs


def test_in_half_precision(tmp_path):
    half_start("forge", tmp_path)


@pytest.mark.parametrize("kind", ["e4m3fn", "e5m2"])
def test_with_fp8_weights(tmp_path, kind):
    flag_start("forge", tmp_path, f"--unet-in-fp8-{kind}", f"--clip-in-fp8-{kind}", log=f"torch.float8_{kind}")


class TestForge(Cases):
    pass


class TestMore(More):
    pass


class TestPages(Pages):
    pass


class TestReload(Reload):
    pass
