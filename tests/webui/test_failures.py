"""What goes wrong in the middle: a write that fails, a model that cannot be read again, fields that hold no numbers."""

from __future__ import annotations

import pytest
import torch

import hypermerge_ext as hm
from webui.facade.harness import BASE, HYPER, same


@pytest.fixture
def failing():
    """failing(webui) → a context in which the blend's writes spoil a weight and fail."""

    def spoil(webui):
        blend = webui.live._state.binding._blend
        parameter = blend._written.moved[0]

        def write(self, *values):
            with torch.inference_mode():
                parameter.now().data.add_(1)
            raise OSError("the disk is gone")

        context = pytest.MonkeyPatch.context()
        patch = context.__enter__()
        for name in ("set", "restore"):
            patch.setattr(type(blend._written), name, write)
        return context

    return spoil


def choose(webui, name):
    """At the top of the page."""
    with webui.call_queue.queue_lock:
        webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases[f"{name}.safetensors"])


def test_a_kept_model_that_is_damaged_is_not_used_again(open_webui, failing):
    """The host keeps two models; what is damaged is the one that is not loaded now."""
    webui = open_webui(no_half=True)
    webui.shared.opts.data["sd_checkpoints_limit"] = 2
    webui.load_base()
    base, plain, damaged = webui.held(), webui.image(), webui.model
    webui.live.want(webui.at(0.5))
    choose(webui, "m1")
    context = failing(webui)
    assert webui.live.off() == "the disk is gone; the checkpoint was loaded again"
    context.__exit__(None, None, None)
    choose(webui, BASE)
    assert webui.model is not damaged
    assert same(webui.held(), base) and webui.image() == plain


def test_a_damaged_model_that_cannot_be_read_again_is_not_taken_for_the_base(webui, failing, monkeypatch):
    base, plain = webui.held(), webui.image()
    moved = webui.image(settings=webui.at(0.5))
    context = failing(webui)
    monkeypatch.setattr(webui.sd_models, "reload_model_weights", lambda *given, **more: 1 / 0)
    said = webui.live.off()
    assert "the model is damaged, and could not be loaded again (division by zero)" in said
    assert webui.live.status() == said and webui.live.current() is None
    assert "the model is damaged" in webui.live.want(webui.at(0.25))
    monkeypatch.undo()
    context.__exit__(None, None, None)
    assert webui.image(settings=webui.at(0.5)) == moved
    assert webui.image() == plain and same(webui.held(), base)


def test_forge_reads_a_damaged_model_again_for_the_next_picture(open_webui, failing):
    webui = open_webui(forge="plain")
    webui.load_base()
    base, plain = webui.held(), webui.image()
    webui.live.want(webui.at(0.25))
    context = failing(webui)
    assert "is loaded again for the next picture" in webui.live.off()
    assert "the model is damaged" in webui.live.want(webui.at(0.5)) and webui.live.current() is None
    context.__exit__(None, None, None)
    assert webui.image() == plain and same(webui.held(), base)


@pytest.mark.parametrize("forge", [None, "plain"])
def test_another_base_under_the_same_name_is_read(open_webui, forge):
    """A hyper-model was solved anew: the host thinks it holds that file, and the directions would move another base."""
    webui = open_webui(no_half=True, forge=forge)
    webui.load_base()
    before = webui.held()
    models = sorted(webui.checkpoints.glob("m?.safetensors"))[:2]
    hm.solve(models, directions=1).save(webui.hypers / HYPER, force=True)
    webui.load_base()
    base = webui.held()
    assert not same(base, before)
    webui.live.want(webui.at(1.0))
    moved = webui.held()
    choose(webui, "m1")
    choose(webui, BASE)
    assert same(webui.held(), base)
    webui.live.want(webui.at(1.0))
    assert same(webui.held(), moved)


def test_a_field_that_holds_no_numbers_is_said_and_takes_nothing_from_the_job_before(webui):
    """Such a job would have no settings of its own, like one that another extension runs inside a job."""
    plain = webui.image()
    before = webui.job(settings=webui.at(0.5))
    assert webui.run(before).images != [plain]
    p = webui.job()
    p.scripts = webui.scripts.Runner((Values(webui.live), (True, HYPER, 0.5, 0.0, "lots", 1.0, "")))
    found = webui.run(p)
    assert found.images == [plain] and "Hyper-Merge" not in found.infotexts[0]
    assert found.comments == ["Hyper-Merge: further: 'lots' is not a number; write them as: 0.4, -0.2"]
    p = webui.job()
    p.scripts = webui.scripts.Runner((Values(webui.live), (False, HYPER, 0.5, 0.0, "lots", 1.0, "")))
    found = webui.run(p)
    assert found.images == [plain] and found.comments == []


class Values:
    """The hooks of scripts/hyper_merge.py."""

    def __init__(self, live):
        self.live = live

    def process(self, p, *values):
        self.live.for_values(p, values)

    def process_batch(self, p, *values, **batch):
        self.live.for_job(p)
