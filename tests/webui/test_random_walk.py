"""Whatever a person does in whatever order: each picture is that of a merged checkpoint which the host loads itself."""

from __future__ import annotations

import contextlib
import random

import pytest

from webui.facade.harness import BASE, HYPER

PLACES = {
    "base": {"enabled": False},
    "lambda": {"multipliers": (0.5, 0.0)},
    "both": {"multipliers": (-0.25, 0.5)},
    "text encoder off": {"multipliers": (0.5, 0.25), "text_encoder": 0.0},
    "blocks": {"multipliers": (0.5, 0.25), "blocks": "OUT = x0\nTEXT = 0.25, 0"},
    "weaker words": {"multipliers": (0.5, 0.25), "text_encoder": 0.5, "blocks": "*.weight = x2\nIN = x0"},
}
TOKENS = {"lambda": "<hm:x:0.5:0>", "both": "<hm:x:-0.25:0.5>"}
KINDS = {"one kept": {}, "two kept": {}, "medvram": {"medvram": True}, "forge": {"forge": "plain"}}


class Walk:
    def __init__(self, webui, kind, seed):
        self.webui, self.random, self.steps = webui, random.Random(seed), []
        self.forge = kind == "forge"
        webui.load_base()
        layer = "diffusion_model.middle_block.0.weight" if self.forge else "diffusion_model_middle_block_0"
        webui.lora(layers=(layer,))
        webui.lora("words", () if self.forge else ("transformer_text_model_encoder_layers_0_mlp_fc1",))
        webui.shared.opts.data["sd_checkpoints_limit"] = 2 if kind == "two kept" else 1
        self.expected = {(place, prompt): self.merged(place, prompt) for place in PLACES for prompt in self.prompts}
        self.others = {prompt: self.picture("m1", prompt) for prompt in self.prompts}
        self.checkpoint = BASE

    prompts = ("a cat", "a cat<lora:style:1>", "a cat<lora:words:1>")

    def settings(self, place):
        return self.webui.Settings(**{"enabled": True, "hyper": HYPER, **PLACES[place]})

    def merged(self, place, prompt):
        settings, path = self.settings(place), self.webui.checkpoints / f"at {place}.safetensors"
        if not settings.enabled:
            return self.picture(BASE, prompt)
        if not path.exists():
            hyper = self.webui.host.open_hyper(HYPER)
            pairs = settings.pairs(hyper.count, hyper.stored.moving)
            hyper.model.merge(settings.at(hyper.count), path, blocks=pairs, dtype="fp32")
            self.webui.host.refresh_models()
        return self.picture(path.stem, prompt)

    def picture(self, checkpoint, prompt, place="base", **more):
        chosen = {"sd_model_checkpoint": f"{checkpoint}.safetensors"}
        return self.webui.image(prompt, self.settings(place), override_settings=chosen, **more)

    def step(self):
        kinds = [self.look] * 5 + [self.token, self.move, self.move, self.choose, self.fail]
        kind = self.random.choice(kinds if self.forge else [*kinds, self.visit])
        place, prompt = self.random.choice(list(PLACES)), self.random.choice(self.prompts)
        self.steps.append((kind.__name__, self.checkpoint, place, prompt))
        kind(place, prompt)

    def look(self, place, prompt, token=""):
        found = self.picture(self.checkpoint, prompt + token, "base" if token else place)
        expected = self.expected[place, prompt] if self.checkpoint == BASE else self.others[prompt]
        assert found == expected, self.steps[-8:]

    def token(self, place, prompt):
        place = self.random.choice(list(TOKENS))
        self.look(place, prompt, TOKENS[place])

    def move(self, place, prompt):
        self.webui.live.want(self.settings(place))

    def choose(self, place, prompt):
        self.checkpoint = self.random.choice([BASE, "m1"])
        chosen = self.webui.sd_models.checkpoint_aliases[f"{self.checkpoint}.safetensors"]
        again = {} if self.forge else {"forced_reload": self.random.random() < 0.3}
        with self.webui.call_queue.queue_lock:
            self.webui.sd_models.reload_model_weights(chosen, **again)

    def visit(self, place, prompt):
        """A refiner, or a hires pass by another checkpoint: what comes after must not show it."""
        refiner = self.random.random() < 0.5
        more = {"refiner": "m1.safetensors"} if refiner else {"enable_hr": True, "hr_checkpoint": "m1.safetensors"}
        self.picture(self.checkpoint, prompt, place, **more)

    def fail(self, place, prompt):
        """A write breaks off; now and then putting back the base does too."""
        binding, count = self.webui.live._state.binding, self.random.choice([1, 2])
        if binding is None:
            return
        with breaking(type(binding._blend._written), count):
            self.move(place, prompt)


@contextlib.contextmanager
def breaking(kind, count):
    """The next `count` writes raise when they are done."""
    left = [count]

    def wrapped(write):
        def broken(self, *values):
            write(self, *values)
            left[0] -= 1
            if left[0] >= 0:
                raise OSError("the disk is gone")

        return broken

    with pytest.MonkeyPatch.context() as patch:
        for name in ("set", "restore"):
            patch.setattr(kind, name, wrapped(getattr(kind, name)))
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_is_that_of_a_merged_checkpoint(open_webui, kind):
    walk = Walk(open_webui(no_half=True, **KINDS[kind]), kind, seed=7)
    for _ in range(60):
        walk.step()
    assert len({*walk.expected.values()}) >= 2 * len(PLACES)
