"""LoRA files that must be refused: exit 1, one line that names file and reason, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import hypermerge_ext as hm
import lora_models as lm
import oracle
from hypermerge_ext import cli as command_line
from oracle import tensor

TO_Q = lm.UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = lm.UNET + "input_blocks.3.0.op.weight"
BIAS = lm.UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.bias"
LAYER = lm.LAYERS[TO_Q][0]
UP, DOWN = f"{LAYER}.lora_up.weight", f"{LAYER}.lora_down.weight"


@pytest.fixture
def refused(monkeypatch, capsys, snapshot):
    """refused(folder, "solve", …): the line with which a command run there refuses; nothing is written."""

    def run(folder: Path, *arguments: str) -> str:
        monkeypatch.chdir(folder)
        before = snapshot(folder)
        status = command_line.main(list(arguments))
        out, err = capsys.readouterr()
        assert status == 1 and out == "", (status, out, err)
        assert err.startswith("hyper-merge: error: ") and err.count("\n") == 1 and err[:-1].isprintable()
        assert snapshot(folder) == before
        return err

    return run


@pytest.fixture
def base(tmp_path) -> Path:
    oracle.write(tmp_path / "base.safetensors", lm.base())
    return tmp_path / "base.safetensors"


def pair(**more) -> oracle.Model:
    good = {UP: tensor(np.ones((32, 2)), "F16"), DOWN: tensor(np.ones((2, 32)), "F16")}
    return {**good, **{name: item for name, item in more.items()}}


def with_one(suffix: str, shape=(2, 2), dtype: str = "F16") -> oracle.Model:
    return pair(**{LAYER + suffix: tensor(np.ones(shape), dtype)})


@pytest.mark.parametrize(
    "suffix, kind",
    [
        (".hada_w1_a", "LoHa"), (".hada_t1", "LoHa"), (".lokr_w1", "LoKr"), (".lokr_w2_a", "LoKr"), (".dora_scale", "DoRA"),
        (".lora_magnitude_vector", "DoRA"), (".w_norm", "norm"), (".b_norm", "norm"), (".oft_blocks", "OFT"),
        (".a1.weight", ".a1.weight"), (".set_weight", ".set_weight"), (".reshape_weight", ".reshape_weight"),
        (".lora_up.bias", ".lora_up.bias"), (".weight", ".weight"), (".diff_bb", ".diff_bb"),
    ],
)  # fmt: skip
def test_unknown_suffixes_refuse_the_file_and_are_named(base, tmp_path, refused, suffix, kind):
    oracle.write(tmp_path / "l.safetensors", with_one(suffix))
    line = refused(tmp_path, "solve", "l.safetensors", "--base", "base.safetensors", "-o", "x.hyper.safetensors")
    assert "l.safetensors" in line and suffix in line and kind in line and "suffix" in line


HOSTILE = {
    "no such layer": (pair(**{"lora_unet_nowhere.lora_up.weight": tensor(np.ones((32, 2)), "F16"),
                              "lora_unet_nowhere.lora_down.weight": tensor(np.ones((2, 32)), "F16")}), "has no place in base"),
    "a part of a name": ({k.replace("attn1_to_q", "attn1_to"): v for k, v in pair().items()}, "has no place in base"),
    "more than a name": ({k.replace("attn1_to_q", "attn1_to_qq"): v for k, v in pair().items()}, "has no place in base"),
    "an endless name": ({k.replace("attn1_to_q", "q" * 5000): v for k, v in pair().items()}, "has no place in base"),
    "a line break in a name": ({k.replace("to_q", "to\n"): v for k, v in pair().items()}, "has no place in base"),
    "too many rows": (pair(**{UP: tensor(np.ones((33, 2)), "F16")}), "33 × 32"),
    "too few columns": (pair(**{DOWN: tensor(np.ones((2, 31)), "F16")}), "32 × 31"),
    "different ranks": (pair(**{DOWN: tensor(np.ones((3, 32)), "F16")}), "do not go together"),
    "rank 0": ({UP: tensor(np.ones((32, 0)), "F16"), DOWN: tensor(np.ones((0, 32)), "F16")}, "holds no numbers"),
    "half a pair": ({UP: pair()[UP]}, "lora_down"),
    "the other half": ({DOWN: pair()[DOWN]}, "lora_up"),
    "alpha alone": ({LAYER + ".alpha": tensor(np.float32(1), "F32")}, "is missing"),
    "mid alone": ({LAYER + ".lora_mid.weight": tensor(np.ones((1, 1, 3, 3)), "F32")}, "is missing"),
    "a vector": (pair(**{UP: tensor(np.ones(32), "F16")}), "two dimensions"),
    "a number": (pair(**{DOWN: tensor(np.float32(1), "F32")}), "two dimensions"),
    "integers": (pair(**{UP: tensor(np.ones((32, 2)), "I32")}), "floating-point"),
    "a kernel in up": (pair(**{UP: tensor(np.ones((32, 2, 3, 3)), "F16")}), "must be 1"),
    "two alphas": (with_one(".alpha", (2,), "F32"), "must be one number"),
    "no alpha": (with_one(".alpha", (0,), "F32"), "must be one number"),
    "alpha is NaN": (pair(**{LAYER + ".alpha": tensor(np.float32(np.nan), "F32")}), "not a finite number"),
    "alpha is true": (pair(**{LAYER + ".alpha": tensor(np.True_, "BOOL")}), "no alpha"),
    "a middle that does not fit": (with_one(".lora_mid.weight", (5, 2, 1, 1)), "do not go together"),
    "both a difference and factors": (with_one(".diff", (32, 32)), "only one of them"),
    "two spellings of up": (pair(**{LAYER + ".lora_B.weight": tensor(np.ones((32, 2)), "F16")}), "is there twice"),
    "two layers for one tensor": (pair(**{
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight": pair()[UP],
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight": pair()[DOWN]}), "means the same tensor"),
    "a bias where there is none": (with_one(".diff_b", (32,)), "does not have"),
    "a whole difference of another shape": ({LAYER + ".diff": tensor(np.ones((32, 31)), "F16"),
                                             lm.LAYERS[CONV][0] + ".diff": tensor(np.ones((32, 32, 3, 3)), "F16")}, "32 × 31"),
    "a direction of ours": (pair(**{"hypermerge.x.alpha.lora_up": tensor(np.ones((1, 1)), "F16"),
                                    "hypermerge.x.alpha.lora_down": tensor(np.ones((1, 1)), "F16")}), "hyper-model"),
    "NaN": (pair(**{DOWN: tensor(np.full((2, 32), np.nan), "F16")}), "NaN"),
    "Inf": (pair(**{UP: tensor(np.full((32, 2), np.inf), "F16")}), "Inf"),
    "a kernel of another shape": ({lm.LAYERS[CONV][0] + ".lora_up.weight": tensor(np.ones((32, 1, 1, 1)), "F16"),
                                   lm.LAYERS[CONV][0] + ".lora_down.weight": tensor(np.ones((1, 32, 9, 1)), "F16")}, "another model"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(base, tmp_path, refused, case):
    file, words = HOSTILE[case]
    oracle.write(tmp_path / "l.safetensors", file)
    line = refused(tmp_path, "solve", "l.safetensors", "--base", "base.safetensors", "-o", "x.hyper.safetensors")
    assert "l.safetensors" in line and words in line and len(line) < 2000


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--base", "mean"), "not their mean"),
        (("--base", "none", "c.safetensors"), "a difference from a checkpoint"),
        (("c.safetensors",), "a difference from a checkpoint"),
        (("d.safetensors",), "as diffusers does"),
        (("s.safetensors",), "another network|its shape"),
        (("w.safetensors",), "needs the checkpoint"),
    ],
)
def test_what_needs_a_base(refused, tmp_path, arguments, words):
    lm.write(tmp_path / "l.safetensors", lm.lora(1))
    lm.write(tmp_path / "d.safetensors", lm.lora(2), "diffusers")
    lm.write(tmp_path / "w.safetensors", lm.Lora(lm.lora(2).layers, {BIAS: np.ones(32)}))
    oracle.write(tmp_path / "c.safetensors", lm.base())
    layer = lm.LAYERS[TO_Q][0]
    oracle.write(tmp_path / "s.safetensors", {layer + ".lora_up.weight": tensor(np.ones((5, 1)), "F16"),
                                              layer + ".lora_down.weight": tensor(np.ones((1, 5)), "F16")})  # fmt: skip
    line = refused(tmp_path, "solve", "l.safetensors", *arguments, "-o", "x.hyper.safetensors")
    assert any(word in line for word in words.split("|"))


@pytest.mark.parametrize("inputs", [("l", "c"), ("l", "d"), ("l", "w")])
def test_advice_of_compare_and_recover_is_for_solve(refused, tmp_path, inputs):
    """They have no --base of their own, which the advice once told people to give."""
    lm.write(tmp_path / "l.safetensors", lm.lora(1))
    lm.write(tmp_path / "d.safetensors", lm.lora(2), "diffusers")
    lm.write(tmp_path / "w.safetensors", lm.Lora(lm.lora(2).layers, {BIAS: np.ones(32)}))
    oracle.write(tmp_path / "c.safetensors", lm.base())
    first, second = (f"{name}.safetensors" for name in inputs)
    for arguments in (("compare", first, second), ("recover", first, "--from", first, second)):
        line = refused(tmp_path, *arguments)
        assert "--base" in line and "solve" in line


def test_a_lora_for_another_model_names_both(tmp_path, refused):
    """SDXL's names on SD 1."""
    oracle.write(tmp_path / "base.safetensors", lm.base())
    layer = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    oracle.write(tmp_path / "l.safetensors", {f"{layer}.lora_up.weight": tensor(np.ones((4, 1)), "F16"),
                                              f"{layer}.lora_down.weight": tensor(np.ones((1, 4)), "F16")})  # fmt: skip
    line = refused(tmp_path, "solve", "l.safetensors", "--base", "base.safetensors", "-o", "x.hyper.safetensors")
    assert "base.safetensors" in line and layer in line and "another model" in line


# ---- layers that the base lacks --------------------------------------------------------------------------------------


def strangers(path: Path, keep: bool = True) -> Path:
    """A LoRA beside whose layers there are two that the base lacks, and a bias that it has no place for."""
    item = lm.lora(1, names=[TO_Q, CONV] if keep else [])
    file = oracle.read(lm.write(path, item)).model
    factors = lm.layer(np.random.default_rng(1), (16, 16), 2)
    for stem in ("lora_unet_mid_block_resnets_0_conv1", "lora_te2_text_model_encoder_layers_0_mlp_fc1"):
        file[stem + ".lora_up.weight"], file[stem + ".lora_down.weight"] = (tensor(f, "F16") for f in factors[:2])
    if keep:
        file[lm.LAYERS[CONV][0] + ".diff_b"] = tensor(np.ones(32), "F16")
    oracle.write(path, file)
    return path


def test_layers_that_the_base_lacks_may_be_left_out(base, tmp_path, cli):
    path = strangers(tmp_path / "l.safetensors")
    other = lm.write(tmp_path / "o.safetensors", lm.lora(2))
    arguments = ["solve", path, other, "--base", base, "-o", tmp_path / "x.hyper.safetensors", "--json"]
    refused = cli(*arguments)
    assert (
        refused.returncode == 1
        and "has no place in base.safetensors" in refused.stderr
        and "--common" in refused.stderr
    )
    assert len(refused.stderr.splitlines()) == 1
    done = cli(*arguments, "--common")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    [note] = [note for note in document["notes"] if "lacks" in note]
    assert note.startswith(
        "3 layers of l.safetensors that base.safetensors lacks, left out (the first is lora_te2_text_model"
    )
    items = [lm.rounded(lm.lora(1, names=[TO_Q, CONV])), lm.rounded(lm.lora(2))]
    wanted = np.array([lm.row(lm.delta(item), list(lm.LAYERS)) for item in items])
    assert np.abs(np.array(document["gram"]) - wanted @ wanted.T).max() <= 1e-6 * (wanted**2).sum()
    placed = hm.load(tmp_path / "x.hyper.safetensors").project(path)  # it was solved with --common
    np.testing.assert_allclose(placed.multipliers, document["members"][0]["multipliers"], atol=1e-3)


def test_a_lora_of_which_nothing_fits_is_refused_in_any_case(base, tmp_path):
    path = strangers(tmp_path / "l.safetensors", keep=False)
    with pytest.raises(hm.MismatchError, match="none of its 2 layers has a place in base.safetensors"):
        hm.solve([path], base, common=True)
