"""What must be refused: exit 1, one line that names file and tensor, nothing written."""

from __future__ import annotations

import importlib.util
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

import hypermerge_ext as hm
import oracle
from families import SHAPES, family, save, sd3
from hypermerge_ext import cli as command_line
from oracle import tensor

_spec = importlib.util.spec_from_file_location("hostile_make", Path(__file__).parent / "hostile" / "make.py")
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)
CASES = list(hostile.cases())
UNET = "model.diffusion_model."


@pytest.fixture
def says(tmp_path, monkeypatch, capsys, snapshot):
    """says("solve", …): the line with which a command run in tmp_path refuses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        before = snapshot(tmp_path)
        status = command_line.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 1, (status, out, err)
        assert out == "" and err.startswith("hyper-merge: error: ") and err.endswith("\n") and err.count("\n") == 1
        assert err[:-1].isprintable() and len(err) < 2000
        assert snapshot(tmp_path) == before
        return err

    return run


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, data, reason, expected", CASES, ids=[case[0] for case in CASES])
def test_hostile_files(says, tmp_path, capsys, name, data, reason, expected):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(data)
    if expected is None:
        assert command_line.main(["inspect", str(path), "--json"]) == 0, reason
        assert json.loads(capsys.readouterr().out)["size"] == len(data)
        return
    for arguments in (("inspect", path.name), ("solve", path.name, path.name, "-o", "x.hyper.safetensors")):
        line = says(*arguments)
        assert path.name in line and expected in line, reason
    with pytest.raises(hm.FormatError) as caught:
        hm.inspect(path)
    assert caught.value.file == str(path)


def test_accepted_oddities_can_be_merged(tmp_path):
    """The valid ones that hold floats go the whole way."""
    merged = 0
    for name, data, _, expected in CASES:
        path = tmp_path / f"{name}.safetensors"
        if expected is not None:
            continue
        path.write_bytes(data)
        if not any(item.dtype in oracle.FLOATS and item.stored.size for item in oracle.read(path).model.values()):
            with pytest.raises(hm.Error):
                hm.solve([path, path])
            continue
        hm.solve([path, path]).save(tmp_path / "x.hyper.safetensors", force=True)
        assert oracle.read(tmp_path / "x.hyper.safetensors").weights().keys() == oracle.read(path).model.keys()
        merged += 1
    assert merged >= 10


def pickled() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return out.getvalue()


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("old.ckpt", pickled(), "convert"),
        ("bare.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "convert"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(64), "model.gguf"),
        ("empty.safetensors", b"", "0 bytes"),
    ],
)
def test_other_formats(says, tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    good = save(tmp_path, family(2))
    for arguments in (
        ("inspect", name),
        ("solve", good[0], name, "-o", "x.hyper.safetensors"),
        ("merge", name, "--at", "1", "-o", "y"),
    ):
        line = says(*arguments)
        assert name in line and words in line


def test_folders_and_absent_files(says, tmp_path):
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "model_index.json").write_text("{}")
    good = save(tmp_path, family(2))
    line = says("solve", good[0], "diffusers", "-o", "x.hyper.safetensors")
    assert "diffusers" in line and "convert" in line
    assert "absent.safetensors" in says("solve", good[0], "absent.safetensors", "-o", "x.hyper.safetensors")
    assert "/dev/null" in says("solve", good[0], "/dev/null", "-o", "x.hyper.safetensors")


# ---- models that do not go together ---------------------------------------------------------------------------------


def test_nan_and_infinity_are_named_with_tensor_and_index(says, tmp_path, capsys):
    name = UNET + "middle_block.0.weight"
    for dtype, value in (
        ("F16", np.nan),
        ("F16", np.inf),
        ("BF16", -np.inf),
        ("F32", np.nan),
        ("F64", np.inf),
        ("F8_E4M3", np.nan),
        ("F8_E5M2", np.inf),
    ):
        models = family(3, seed=1, dtypes=dtype)
        bad = models[1][name].stored.copy()
        code = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C, "BF16": 0xFF80}.get(dtype, value)
        bad.reshape(-1)[1234] = code
        models[1][name] = oracle.Tensor(dtype, bad)
        paths = save(tmp_path, models)
        line = says("solve", *paths, "-o", "x.hyper.safetensors")
        assert "m1.safetensors" in line and name in line and ("1234" in line or "[37, 13]" in line)
        with pytest.raises(hm.MismatchError) as caught:
            hm.compare(paths)
        assert caught.value.tensor == name and caught.value.file.endswith("m1.safetensors")
        hm.solve(paths, allow_nonfinite=True).save(tmp_path / "x.hyper.safetensors")
        file = oracle.read(tmp_path / "x.hyper.safetensors")
        assert file.model[name].same(models[0][name]) and file.direction(1, name) is None
        others = [item for item in SHAPES if item != name]
        truth = oracle.solve(oracle.stacked(models, others))
        assert file.document["total"] == pytest.approx(truth.total, rel=1e-6)
        assert any(name in note for note in file.document["notes"])
        (tmp_path / "x.hyper.safetensors").unlink()


def test_nan_in_what_is_only_copied_is_nobodys_business(tmp_path):
    models = family(2, seed=2)
    for model in models:
        model["first_stage_model.decoder.conv_in.weight"] = tensor(np.full((2, 2), np.nan), "F16")
    hm.solve(save(tmp_path, models)).save(tmp_path / "x.hyper.safetensors")
    assert np.isnan(
        oracle.read(tmp_path / "x.hyper.safetensors").model["first_stage_model.decoder.conv_in.weight"].f64()
    ).all()


def test_shapes_that_differ(says, tmp_path):
    models = family(3, seed=3, dtypes="F16")
    name = UNET + "middle_block.0.weight"
    models[2][name] = tensor(np.zeros((33, 57)), "F16")  # as many numbers
    paths = save(tmp_path, models)
    line = says("solve", *paths, "-o", "x.hyper.safetensors")
    assert "m2.safetensors" in line and name in line and "--common" in line and "33" in line and "57" in line
    hm.solve(paths, common=True).save(tmp_path / "x.hyper.safetensors")
    file = oracle.read(tmp_path / "x.hyper.safetensors")
    assert file.model[name].same(models[0][name]) and file.direction(1, name) is None
    truth = oracle.solve(oracle.stacked(models, [item for item in SHAPES if item != name]))
    assert file.document["total"] == pytest.approx(truth.total, rel=1e-6)


def test_missing_names_list_the_first_few(says, tmp_path):
    models = family(3, seed=4)
    shapes = {f"{UNET}input_blocks.{i}.0.weight": (3,) for i in range(1, 9)}
    for model in models:
        model.update({name: tensor(np.ones(shape), "F32") for name, shape in shapes.items()})
    for name in list(shapes)[2:]:
        del models[1][name]
    paths = save(tmp_path, models)
    line = says("solve", *paths, "-o", "x.hyper.safetensors")
    assert "m1.safetensors" in line and "--common" in line and "6" in line
    assert sum(name in line for name in list(shapes)[2:]) >= 2 and not any(name in line for name in list(shapes)[:2])
    document = hm.solve(paths, common=True).document
    assert document["total"] == pytest.approx(oracle.solve(oracle.stacked(models, list(SHAPES))).total, rel=1e-6)


def test_a_component_that_some_inputs_lack_comes_from_the_carrier_with_a_note(tmp_path):
    models = family(3, seed=5)
    models[1] = {name: item for name, item in models[1].items() if not name.startswith("cond_stage")}
    hyper = hm.solve(save(tmp_path, models))
    assert any("text" in note and "m1" in note for note in hyper.document["notes"])
    hyper.save(tmp_path / "x.hyper.safetensors")
    file = oracle.read(tmp_path / "x.hyper.safetensors")
    for name in SHAPES:
        copied = name.startswith("cond_stage")
        assert (file.direction(1, name) is None) == copied
        assert not copied or file.model[name].same(models[0][name])


def cross_attention(width: int, channels: int = 4, label=False, prefix=UNET) -> dict[str, tuple[int, ...]]:
    """Names and shapes by which SD1 (768), SD2 (1024) and SDXL (2048, labelled) are known."""
    shapes = {
        prefix + "input_blocks.0.0.weight": (8, channels, 3, 3),
        prefix + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, width),
        prefix + "middle_block.0.weight": (6, 6),
    }
    if label:
        shapes[prefix + "label_emb.0.0.weight"] = (4, 4)
    return shapes


def test_other_architectures(says, tmp_path):
    one, two, xl = (
        family(2, shapes=cross_attention(*kind), dtypes="F16") for kind in ((768,), (1024,), (2048, 4, True))
    )
    three = family(2, shapes=sd3(), dtypes="F16")
    other = family(2, shapes={"conv.weight": (3, 3), "conv.bias": (3,)}, dtypes="F16")
    files = {
        name: save(tmp_path, models, name)[0].name
        for name, models in (("sd1-", one), ("sd2-", two), ("sdxl-", xl), ("sd3-", three), ("own-", other))
    }
    for first in files:
        for second in files:
            if first == second:
                hm.solve([tmp_path / f"{first}0.safetensors", tmp_path / f"{first}1.safetensors"])
                continue
            line = says("solve", files[first], files[second], "-o", "x.hyper.safetensors")
            assert files[first] in line or files[second] in line
    assert "sdxl" in says("solve", files["sd1-"], files["sdxl-"], "-o", "x.hyper.safetensors").lower()


@pytest.mark.parametrize("channels", [9, 8])
def test_an_inpainting_model_is_named_as_such(says, tmp_path, channels):
    plain = family(2, shapes=cross_attention(768), dtypes="F16")
    odd = family(1, shapes=cross_attention(768, channels), dtypes="F16")
    paths = save(tmp_path, [*plain, *odd])
    line = says("solve", *paths, "-o", "x.hyper.safetensors")
    assert "m2.safetensors" in line and ("inpainting" if channels == 9 else "pix2pix") in line and "--common" in line
    hyper = hm.solve(paths, common=True)
    hyper.save(tmp_path / "x.hyper.safetensors")
    assert oracle.read(tmp_path / "x.hyper.safetensors").model[UNET + "input_blocks.0.0.weight"].shape[1] == 4
    alike = hm.solve(save(tmp_path, family(2, shapes=cross_attention(768, channels), dtypes="F16"), "odd"))
    assert alike.directions == 1  # among themselves they merge


@pytest.mark.parametrize("flag", ["v_pred", "edm_vpred.sigma_max", "edm_mean"])
def test_predictions_do_not_mix(says, tmp_path, flag):
    models = family(3, seed=6, dtypes="F16")
    mark = tensor(np.zeros(0), "F32") if flag == "v_pred" else tensor(np.array(1.0), "F32")
    models[1][flag] = mark
    line = says("solve", *save(tmp_path, models), "-o", "x.hyper.safetensors")
    assert "m1.safetensors" in line and ("v-pred" in line or "EDM" in line)
    for model in models:
        model[flag] = mark
        model["ztsnr"] = tensor(np.zeros(0), "F32")
    hm.solve(save(tmp_path, models)).save(tmp_path / "x.hyper.safetensors")
    file = oracle.read(tmp_path / "x.hyper.safetensors")
    assert file.model[flag].same(mark) and file.model["ztsnr"].shape == (0,)


@pytest.mark.parametrize(
    "companion",
    ["scaled_fp8", "middle_block.0.scale_weight", "middle_block.0.weight_scale", "middle_block.0.comfy_quant"],
)
def test_scaled_fp8_is_refused_by_name(says, tmp_path, companion):
    models = family(2, seed=7, dtypes="F8_E4M3")
    name = companion if companion == "scaled_fp8" else UNET + companion
    item = tensor(np.zeros(0), "F8_E4M3") if companion == "scaled_fp8" else tensor(np.array(0.5), "F32")
    models[1][name] = tensor(np.zeros(3), "U8") if "quant" in companion else item
    line = says("solve", *save(tmp_path, models), "-o", "x.hyper.safetensors")
    assert "m1.safetensors" in line and "fp8" in line and name in line


def test_loras_are_refused(says, tmp_path):
    models = family(2, seed=8, dtypes="F16")
    paths = save(tmp_path, models)
    for number, names in enumerate(
        (
            (
                "lora_unet_input_blocks_1_1_proj_in.lora_down.weight",
                "lora_unet_input_blocks_1_1_proj_in.lora_up.weight",
            ),
            (
                "unet.down_blocks.0.attentions.0.to_q.lora_A.weight",
                "unet.down_blocks.0.attentions.0.to_q.lora_B.weight",
            ),
        )
    ):
        oracle.write(tmp_path / f"lora{number}.safetensors", {name: tensor(np.ones((4, 4)), "F16") for name in names})
        line = says("solve", paths[0], f"lora{number}.safetensors", "-o", "x.hyper.safetensors")
        assert f"lora{number}.safetensors" in line and "LoRA" in line


def test_a_hyper_model_is_no_checkpoint(says, tmp_path):
    paths = save(tmp_path, family(3, seed=9))
    hm.solve(paths).save(tmp_path / "x.hyper.safetensors")
    assert "x.hyper.safetensors" in says("solve", paths[0], "x.hyper.safetensors", "-o", "y.hyper.safetensors")
    assert paths[0].name in says("merge", paths[0].name, "--at", "1", "-o", "y.safetensors")


# ---- hostile metadata documents -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A good hyper-model of three models at K = 2, with the file it came from."""
    folder = tmp_path_factory.mktemp("written")
    models = family(3, seed=10, dtypes="F16")
    for model in models:
        model["steps"] = tensor(np.arange(7), "I64")
    hm.solve(save(folder, models)).save(folder / "x.hyper.safetensors", base_low=True)
    return oracle.read(folder / "x.hyper.safetensors")


def rewritten(path, written, change=None, text=None, tensors=None):
    """The same file with another document."""
    document = written.document
    if change is not None:
        change(document)
    metadata = {**written.metadata, "hypermerge": text if text is not None else json.dumps(document)}
    oracle.write(path, tensors if tensors is not None else written.model, metadata)


def test_the_rewritten_file_is_good_to_begin_with(tmp_path, written):
    rewritten(tmp_path / "x.hyper.safetensors", written)
    hm.load(tmp_path / "x.hyper.safetensors").merge([1, 1], tmp_path / "y.safetensors")


def drop(*keys):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def put(value, *keys):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


CHANGES = {
    "no version": drop("version"),
    "version 2": put(2, "version"),
    "version text": put("1", "version"),
    "K one more": put(3, "directions"),
    "K one less": put(1, "directions"),
    "K negative": put(-1, "directions"),
    "K fraction": put(1.5, "directions"),
    "K huge": put(2**53, "directions"),
    "K text": put("2", "directions"),
    "no K": drop("directions"),
    "no members": drop("members"),
    "members empty": put([], "members"),
    "members object": put({}, "members"),
    "members numbers": put([1, 2, 3], "members"),
    "too many members": lambda d: d.update(members=d["members"] * 22),
    "a member less": lambda d: d["members"].pop(),
    "member without name": drop("members", 0, "name"),
    "member without multipliers": drop("members", 1, "multipliers"),
    "multipliers too many": lambda d: d["members"][0]["multipliers"].append(0.5),
    "multipliers text": put(["1", "2"], "members", 0, "multipliers"),
    "multipliers null": put([None, 1], "members", 0, "multipliers"),
    "residual null": put(None, "members", 0, "residual"),
    "no norm": drop("members", 2, "norm"),
    "weight negative": lambda d: [member.update(weight=-1) for member in d["members"]],
    "header_hash short": put("abc", "members", 0, "header_hash"),
    "header_hash not hex": put("z" * 64, "members", 0, "header_hash"),
    "no gram": drop("gram"),
    "gram not square": lambda d: d["gram"].pop(),
    "gram row short": lambda d: d["gram"][1].pop(),
    "gram text": put("x", "gram", 0, 0),
    "no loss": drop("loss"),
    "no explained": drop("explained_variance_ratio"),
    "explained short": put([1.0], "explained_variance_ratio"),
    "no base": drop("base"),
    "base kind unknown": put("median", "base", "kind"),
    "base file without name": put({"kind": "file"}, "base"),
    "base path": put({"kind": "file", "name": "../m0.safetensors", "header_hash": "0" * 64}, "base"),
    "base absolute path": put({"kind": "file", "name": "/etc/passwd", "header_hash": "0" * 64}, "base"),
    "base windows path": put({"kind": "file", "name": "..\\m0.safetensors", "header_hash": "0" * 64}, "base"),
    "base name empty": put({"kind": "file", "name": "", "header_hash": "0" * 64}, "base"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_documents(says, tmp_path, written, name):
    rewritten(tmp_path / "x.hyper.safetensors", written, CHANGES[name])
    for arguments in (
        ("inspect", "x.hyper.safetensors"),
        ("merge", "x.hyper.safetensors", "--at", "1", "-o", "y.safetensors"),
    ):
        assert "x.hyper.safetensors" in says(*arguments)


def texts(good: str):
    yield "empty", ""
    yield "not json", "hello"
    yield "array", "[]"
    yield "null", "null"
    yield "cut", good[:-1]
    yield "text behind", good + "x"
    yield "second object", good + good
    yield "duplicate key", good[:-1] + ',"version":1}'
    yield "NaN", good.replace('"loss": ', '"loss": NaN, "x": ')
    yield "Infinity", good.replace('"loss": ', '"loss": Infinity, "x": ')
    yield "1e999", good.replace('"loss": ', '"loss": 1e999, "x": ')
    yield "leading zero", good.replace('"version": 1', '"version": 01')
    yield "comment", good.replace("{", "{/* */", 1)
    yield "nul", good.replace('"m0"', '"m\\u00000"')
    yield "deep", '{"version":1,"x":' + "[" * 100_000 + "]" * 100_000 + "}"
    yield "huge", good[:-1] + ',"x":"' + "y" * (5 << 20) + '"}'
    yield "long number", good.replace('"loss": ', '"loss": ' + "1" * 1000 + ', "x": ')


@pytest.mark.parametrize("which", [name for name, _ in texts("{}")])
def test_hostile_document_texts(says, tmp_path, written, which):
    text = dict(texts(json.dumps(written.document)))[which]
    rewritten(tmp_path / "x.hyper.safetensors", written, text=text)
    for arguments in (
        ("inspect", "x.hyper.safetensors"),
        ("merge", "x.hyper.safetensors", "--at", "1", "-o", "y.safetensors"),
    ):
        assert "x.hyper.safetensors" in says(*arguments)


def with_tensors(written, **changes):
    """The tensors of the file, some replaced (by full name with _ for nothing), some taken out (None)."""
    model = {**written.model, **changes}
    return {name: item for name, item in model.items() if item is not None}


MIDDLE = UNET + "middle_block.0.weight"
TENSORS = {
    "direction of another shape": {f"hypermerge.direction.1.{MIDDLE}": tensor(np.zeros((33, 57)), "F16")},
    "direction shorter": {f"hypermerge.direction.2.{MIDDLE}": tensor(np.zeros(3), "F16")},
    "direction of integers": {f"hypermerge.direction.1.{MIDDLE}": tensor(np.zeros((57, 33)), "I16")},
    "direction of nothing": {"hypermerge.direction.1.no.such.tensor": tensor(np.zeros(3), "F16")},
    "direction without a name": {"hypermerge.direction.1.": tensor(np.zeros(3), "F16")},
    "direction 0": {f"hypermerge.direction.0.{MIDDLE}": tensor(np.zeros((57, 33)), "F16")},
    "direction 3 of 2": {f"hypermerge.direction.3.{MIDDLE}": tensor(np.zeros((57, 33)), "F16")},
    "direction 01": {f"hypermerge.direction.01.{MIDDLE}": tensor(np.zeros((57, 33)), "F16")},
    "direction 99999999999999999999": {f"hypermerge.direction.{'9' * 20}.{MIDDLE}": tensor(np.zeros((57, 33)), "F16")},
    "direction 2 missing": {f"hypermerge.direction.2.{MIDDLE}": None},
    "direction 1 missing": {f"hypermerge.direction.1.{MIDDLE}": None},
    "direction of an integer tensor": {
        "hypermerge.direction.1.steps": tensor(np.zeros(7), "F16"),
        "hypermerge.direction.2.steps": tensor(np.zeros(7), "F16"),
    },
    "base tensor missing": {MIDDLE: None},
    "base tensor of another shape": {MIDDLE: tensor(np.zeros((33, 57)), "F16")},
    "base tensor of integers": {MIDDLE: tensor(np.zeros((57, 33)), "I64")},
    "base_low of another shape": {f"hypermerge.base_low.{MIDDLE}": tensor(np.zeros((2, 2)), "F16")},
    "base_low longer": {f"hypermerge.base_low.{MIDDLE}": tensor(np.zeros((570, 33)), "F16")},
    "base_low of integers": {f"hypermerge.base_low.{MIDDLE}": tensor(np.zeros((57, 33)), "I16")},
}


WITHOUT_BASE = [name for name in TENSORS if name.startswith("direction") and name[10:] in (
    "of another shape", "shorter", "of integers", "without a name", "0", "3 of 2", "01", "9" * 20, "2 missing"
)]  # fmt: skip


@pytest.mark.parametrize("name, base", [(name, "mean") for name in TENSORS] + [(name, "none") for name in WITHOUT_BASE])
def test_hyper_models_whose_tensors_do_not_fit(tmp_path, written, refused, name, base):
    """In processes of their own: what is wrong here could end the process."""
    tensors = with_tensors(written, **TENSORS[name])
    if base == "none":
        tensors = {key: item for key, item in tensors.items() if key.startswith("hypermerge.direction")}
    rewritten(tmp_path / "x.hyper.safetensors", written, put({"kind": base}, "base"), tensors=tensors)
    oracle.write(tmp_path / "m.safetensors", written.weights())
    for arguments in (
        ("merge", "x.hyper.safetensors", "--at", "1,1", "-o", "y.safetensors"),
        ("project", "x.hyper.safetensors", "m.safetensors"),
    ):
        line = refused(tmp_path, *arguments)
        assert "x.hyper.safetensors" in line or "m.safetensors" in line
        assert list(TENSORS[name])[0].split(".", 3)[-1] in line or name.endswith("without a name")


def test_names_in_messages_cannot_steer_a_terminal(says, tmp_path):
    models = family(2, seed=11)
    models[1]["model.diffusion_model.\x1b[2Jevil\r.weight"] = tensor(np.ones(3), "F32")
    line = says("solve", *save(tmp_path, models), "-o", "x.hyper.safetensors")
    assert "\x1b" not in line and "evil" in line
