from __future__ import annotations
import importlib.util, sys
from pathlib import Path
import pytest, torch
import hypermerge_ext as hm
from webui.facade import network
from webui.facade.harness import BASE, HYPER, same
from families import family, save

def test_base_of_same_name(webui):
    jobs = webui.ext("jobs")
    other = sorted(webui.checkpoints.glob("m?.safetensors"))[:2]
    hm.solve(other, directions=1).save(webui.hypers / HYPER, force=True)
    webui.load_base()
    want = network.read(str(webui.checkpoints / f"{BASE}.safetensors"))
    held = webui.held()
    assert same(held, {n: want[n].float() for n in held})

def test_nan_token(webui):
    base = webui.held(); plain = webui.image()
    for tok in ("<hm:nan:1>", "<hm:inf>", "<hm:0.5:te=nan>"):
        p = webui.job(f"a cat{tok}")
        webui.run(p); print(tok, getattr(p, "comments", None))
        assert same(webui.held(), base), tok
    print(webui.live.want(webui.at(float("nan"))))
    assert same(webui.held(), base)

def test_damaged_kept(open_webui, monkeypatch):
    webui = open_webui(no_half=True)
    webui.shared.opts.data["sd_checkpoints_limit"] = 2
    webui.load_base()
    base = webui.held(); plain = webui.image()
    webui.live.want(webui.at(0.5))
    blend = webui.live._state.binding._blend
    m1 = next(t for t in webui.sd_models.checkpoints_list if t.startswith("m1"))
    webui.image(override_settings={"sd_model_checkpoint": m1})
    with webui.call_queue.queue_lock:
        webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases["m1.safetensors"])
    monkeypatch.setattr(type(blend), "restore", lambda self: 1/0)
    print(webui.live.off())
    monkeypatch.undo()
    with webui.call_queue.queue_lock:
        webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases[f"{BASE}.safetensors"])
    assert same(webui.held(), base)

def test_reload_fails(webui, monkeypatch):
    base = webui.held(); plain = webui.image()
    webui.live.want(webui.at(0.5))
    blend = webui.live._state.binding._blend
    def fail(self, *a): raise OSError("gone")
    monkeypatch.setattr(type(blend), "restore", fail)
    monkeypatch.setattr(webui.sd_models, "reload_model_weights", lambda **k: 1/0)
    print(webui.live.off())
    monkeypatch.undo()
    print("then", webui.image() == plain, webui.live.status(), webui.live.off())
    assert webui.image() == plain
    assert same(webui.held(), base)

def test_bad_further(webui):
    """door"""
    plain = webui.image()
    p0 = webui.job(settings=webui.at(0.5)); moved = webui.run(p0).images[-1]
    p = webui.job()
    class Bad:
        def process(self, p, s): raise ValueError
        def process_batch(self, p, s, **k): webui.live.for_job(p)
        def before_hr(self, p, s): pass
    p.scripts = webui.scripts.Runner((Bad(), (webui.Settings(),)))
    try: webui.run(p)
    except AssertionError: print("reported", webui.errors.reported)

@pytest.mark.parametrize("how", ["switch", "forced"])
def test_empty_prompt_after_switch(webui, how):
    before = webui.model.cond_stage_model_empty_prompt
    webui.image(settings=webui.at(0.5))
    assert webui.model.cond_stage_model_empty_prompt is not before
    model = webui.model
    with webui.call_queue.queue_lock:
        al = webui.sd_models.checkpoint_aliases
        if how == "switch":
            webui.sd_models.reload_model_weights(al["m1.safetensors"])
        else:
            webui.sd_models.reload_model_weights(al[BASE + ".safetensors"], forced_reload=True)
    assert webui.model is model
    webui.image()
    assert webui.model.cond_stage_model_empty_prompt is before

def test_nowebui(webui):
    pytest.importorskip("fastapi")
    from fastapi import FastAPI
    webui.shared.cmd_opts.api = False
    webui.shared.cmd_opts.nowebui = True
    app = FastAPI(); webui.ext("api").register(app)
    assert any("hyper-merge" in r.path for r in app.routes)

def test_forge_damaged(open_webui, monkeypatch):
    webui = open_webui(forge="plain"); webui.load_base()
    plain = webui.image(); base = webui.held()
    webui.image(settings=webui.at(0.25))
    blend = webui.live._state.binding._blend
    def half(self, *a):
        with torch.inference_mode():
            next(webui.model.forge_objects_original.unet.model.parameters()).add_(1)
        raise OSError("gone")
    for n in ("set", "restore"): monkeypatch.setattr(type(blend), n, half)
    p = webui.job("a cat", webui.at(0.5)); found = webui.run(p)
    print(found.comments, found.infotexts)
    monkeypatch.undo()
    assert "Hyper-Merge" not in found.infotexts[0]
    assert webui.image() == plain
    assert same(webui.held(), base)

def test_base_of_same_name_forge(open_webui):
    webui = open_webui(forge="plain"); webui.load_base()
    other = sorted(webui.checkpoints.glob("m?.safetensors"))[:2]
    hm.solve(other, directions=1).save(webui.hypers / HYPER, force=True)
    a = webui.held()
    webui.load_base()
    assert not same(webui.held(), a)
