from __future__ import annotations
import os, random
import pytest, torch
import hypermerge_ext as hm
from webui.facade.harness import BASE, HYPER, same

POINTS = {"off": None, "a": (0.5, 0.0), "b": (-0.25, 0.5), "te0": (0.5, 0.25), "blk": (0.5, 0.25)}
MORE = {"te0": {"text_encoder": 0.0}, "blk": {"blocks": "OUT = x0\nTEXT = 0.25, 0"}}
LORAS = {"": "a cat", "style": "a cat<lora:style:1>", "words": "a cat<lora:words:1>"}

def oracle(webui):
    table = {}
    for name, at in POINTS.items():
        if at is None: ck = BASE
        else:
            s = webui.at(*at, **MORE.get(name, {}))
            ck = f"o_{name}"
            h = webui.host.open_hyper(HYPER)
            h.model.merge(s.at(h.count), str(webui.checkpoints / f"{ck}.safetensors"), blocks=s.pairs(h.count, list(h.stored.moving)), dtype="fp32")
    webui.host.refresh_models()
    for name, at in POINTS.items():
        ck = BASE if at is None else f"o_{name}"
        for lora, prompt in LORAS.items():
            with webui.call_queue.queue_lock: webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases["m0.safetensors"])
            table[ck if at is None else BASE, lora, name] = webui.image(prompt, override_settings={"sd_model_checkpoint": f"{ck}.safetensors"})
    for lora, prompt in LORAS.items():
        table["m1", lora, "off"] = webui.image(prompt, override_settings={"sd_model_checkpoint": "m1.safetensors"})
    return table

@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", 4))))
@pytest.mark.parametrize("kind", ["a1", "a2", "forge", "medvram"])
def test_fuzz(open_webui, kind, seed, monkeypatch):
    first = open_webui(**({"forge": "plain"} if kind == "forge" else {"no_half": True, "medvram": kind == "medvram"}))
    def fit(webui):
        webui.solve(HYPER)
        webui.load_base()
        webui.lora()
        webui.lora("words", ("transformer_text_model_encoder_layers_0_mlp_fc1",)) if kind != "forge" else webui.lora("words", ("diffusion_model_output_blocks_0",))
    if kind == "forge": LORAS.pop("words", None); LORAS.pop("style", None)
    first.lora() if kind == "forge" else None
    fit(first) if kind != "forge" else first.load_base()
    if kind == "a2": first.shared.opts.data["sd_checkpoints_limit"] = 2
    table = oracle(first)
    first.shared.opts.data["sd_model_checkpoint"]
    webui = first
    with webui.call_queue.queue_lock: webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases[BASE + ".safetensors"])
    rng = random.Random(seed)
    ck, log = BASE, []
    def settings(name): return webui.Settings() if POINTS[name] is None else webui.at(*POINTS[name], **MORE.get(name, {}))
    for step in range(60):
        op = rng.choice(["image"] * 5 + ["want", "want", "off", "switch", "token", "fail", "refiner", "hr", "forced", "second"])
        name, lora = rng.choice(list(POINTS)), rng.choice(list(LORAS))
        log.append((op, ck, lora, name))
        if op == "want": webui.live.want(settings(name))
        elif op == "off": webui.live.off()
        elif op == "switch":
            ck = rng.choice([BASE, "m1"])
            with webui.call_queue.queue_lock: webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases[ck + ".safetensors"])
        elif op == "forced" and kind != "forge":
            with webui.call_queue.queue_lock: webui.sd_models.reload_model_weights(webui.sd_models.checkpoint_aliases[ck + ".safetensors"], forced_reload=True)
        elif op in ("image", "second"):
            got = webui.image(LORAS[lora], settings(name), override_settings={"sd_model_checkpoint": ck + ".safetensors"})
            want = table[ck, lora, name if ck == BASE else "off"]
            assert got == want, log[-8:]
        elif op == "token":
            n = rng.choice(["a", "b"])
            got = webui.image(LORAS[lora] + "<hm:x:%g:%g>" % POINTS[n], settings("off"), override_settings={"sd_model_checkpoint": ck + ".safetensors"})
            assert got == table[ck, lora, n if ck == BASE else "off"], log[-8:]
        elif op in ("refiner", "hr") and kind != "forge":
            more = {"refiner": "m1.safetensors"} if op == "refiner" else {"enable_hr": True, "hr_checkpoint": "m1.safetensors"}
            webui.image(LORAS[lora], settings(name), override_settings={"sd_model_checkpoint": ck + ".safetensors"}, **more)
        elif op == "fail":
            b = webui.live._state.binding
            if b is None: continue
            count = [rng.choice([1, 2])]
            kinds = type(b._blend._written._blends[0])
            with monkeypatch.context() as m:
                for n in ("set", "restore"):
                    def bad(self, *a, _o=getattr(kinds, n)):
                        if count[0] > 0:
                            count[0] -= 1
                            _o(self, *a)
                            raise OSError("injected")
                        return _o(self, *a)
                    m.setattr(kinds, n, bad)
                webui.live.want(settings(name))
