"""The long jobs of the tab and the API, in the host's folders, with its progress bar and its Stop."""

from __future__ import annotations

import json
import os

import pytest

import hypermerge_ext as hm
from webui.facade import network
from webui.facade.harness import BASE, HYPER, same


@pytest.fixture
def jobs(webui):
    return webui.ext("jobs")


MODELS = ["m0.safetensors", "m1.safetensors", "m2.safetensors"]


def test_solve_finds_again_what_it_made(webui, jobs):
    made = jobs.solve(MODELS, name="my / models")
    assert made.name.startswith("my _ models-") and os.path.dirname(made.path) == str(webui.hypers)
    assert made.text.endswith(" MB") and made.name in webui.host.hyper_names()
    assert jobs.solve("m?.safetensors", name="my / models").text == "was there already"
    document = hm.load(made.path).document
    assert [member["name"] for member in document["members"]] == ["m0", "m1", "m2"] and document["directions"] == 2


def test_titles_and_patterns_name_checkpoints(webui, jobs):
    title = next(title for title in webui.sd_models.checkpoints_list if title.startswith("m1"))
    assert webui.host.chosen_models([title, "m*"]) == ["m1.safetensors", "m0.safetensors", "m2.safetensors"]
    with pytest.raises(ValueError, match="'nobody' is no checkpoint that this web UI lists"):
        jobs.solve("m0.safetensors\nnobody")
    with pytest.raises(ValueError, match="choose two checkpoints or more; 1 chosen"):
        jobs.solve(MODELS[:1])


def test_a_base_of_its_own_is_the_checkpoint_itself(webui, jobs):
    made = jobs.solve(MODELS[1:], base="m0.safetensors", name="on m0")
    before = set(os.listdir(webui.checkpoints))
    assert jobs.load_base(made.name).startswith("m0.safetensors [")
    assert set(os.listdir(webui.checkpoints)) == before
    assert webui.live.want(webui.at(0.5, hyper=made.name)).startswith("on m0-")


@pytest.mark.parametrize("forge", [None, "plain", "packed"])
def test_a_checkpoint_with_the_same_header_as_the_base_is_not_taken_for_it(open_webui, forge):
    """All checkpoints of one tool have it; the blend of the base would take this one's place, and nobody be told."""
    webui = open_webui(no_half=True, forge=forge)
    hashes = [json.loads(hm.source(webui.checkpoints / name).describe())["header_hash"] for name in MODELS]
    assert len(set(hashes)) == 1
    made = webui.ext("jobs").solve(MODELS[1:], base=MODELS[0], name="on m0")
    for name, taken in ((MODELS[1], False), (MODELS[0], True)):
        with webui.host.job("load"):
            webui.host.load_model(str(webui.checkpoints / name))
        own, plain = webui.held(), webui.image()
        said = webui.live.want(webui.at(0.5, hyper=made.name))
        assert said.startswith("on m0-") if taken else f"{name[:2]} is not the base of on m0-" in said
        found = webui.run(webui.job(settings=webui.at(0.5, hyper=made.name)))
        assert (found.images != [plain]) == taken and (found.comments == []) == taken
        webui.live.off()
        assert webui.image() == plain and same(webui.held(), own)


def test_a_base_that_is_gone(webui, jobs):
    made = jobs.solve(MODELS[1:], base="m0.safetensors", name="on m0")
    (webui.checkpoints / "m0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="the base m0.safetensors, which is not among the .*; put it there$"):
        jobs.load_base(made.name)


def test_the_base_is_written_once(webui, jobs, monkeypatch):
    path = webui.checkpoints / f"{BASE}.safetensors"
    stamp = path.stat().st_mtime_ns
    assert jobs.load_base(HYPER).startswith(f"{BASE}.safetensors [")
    assert path.stat().st_mtime_ns == stamp
    assert webui.shared.opts.saved > 0
    webui.solve(HYPER, directions=1)
    jobs.load_base(HYPER)
    assert path.stat().st_mtime_ns != stamp


def test_a_file_of_that_name_that_is_not_ours_is_left_alone(webui, jobs):
    made = jobs.solve(MODELS, name="other")
    foreign = webui.checkpoints / f"{made.name.removesuffix('.hyper.safetensors')} base.safetensors"
    foreign.write_bytes((webui.checkpoints / MODELS[0]).read_bytes())
    with pytest.raises(hm.Error, match="not written by hyper-merge"):
        jobs.load_base(made.name)
    assert foreign.read_bytes() == (webui.checkpoints / MODELS[0]).read_bytes()


def test_base_none_loads_the_mean(webui, jobs):
    """Directions without a base replace what the model holds; the mean of the models stands for a base."""
    made = jobs.solve(MODELS, base="none", name="none")
    with webui.host.job("base"):
        jobs.load_base(made.name)
    base, plain = webui.held(), webui.image()
    document = hm.load(made.path).document
    first = [member["multipliers"] for member in document["members"]][0]
    assert webui.live.want(webui.at(*first, hyper=made.name)).startswith("none-")
    assert not same(webui.held(), base)
    webui.live.off()
    assert same(webui.held(), base) and webui.image() == plain


def test_a_saved_checkpoint_is_the_live_blend(webui, jobs):
    settings = webui.at(0.5, -0.25, text_encoder=0.5, blocks="OUT = x0")
    webui.live.want(settings)
    made = jobs.save_checkpoint(settings, "my blend", dtype="fp32")
    assert made.name == "my blend.safetensors" in webui.host.model_names()
    held = network.read(made.path)
    assert same(webui.held(), {name: held[name].float() for name in webui.held()})
    with pytest.raises(ValueError, match="give the file a name"):
        jobs.save_checkpoint(settings, " .safetensors")
    with pytest.raises(hm.Error, match="not written by hyper-merge"):
        jobs.save_checkpoint(settings, "m0")


def test_a_name_leads_to_no_other_folder(webui, jobs):
    made = jobs.save_checkpoint(webui.at(0.5), "../../x/y")
    assert os.path.dirname(made.path) == str(webui.checkpoints)
    with pytest.raises(FileNotFoundError):
        jobs.table("../Stable-diffusion/m0.safetensors")


def test_a_checkpoint_from_the_inputs(webui, jobs):
    made = jobs.save_checkpoint(webui.at(0.5), "exact", from_inputs=True)
    assert os.path.getsize(made.path) > 0
    other = webui.checkpoints / "others" / MODELS[1]  # of the same header, as one tool's files have
    other.parent.mkdir()
    other.write_bytes((webui.checkpoints / MODELS[2]).read_bytes())
    webui.host.refresh_models()
    with pytest.raises(ValueError, match="different checkpoints are called so: .*m1.*; blend the stored directions"):
        jobs.save_checkpoint(webui.at(0.5), "exact2", from_inputs=True)
    other.unlink()
    (webui.checkpoints / MODELS[1]).unlink()
    webui.host.refresh_models()
    with pytest.raises(FileNotFoundError, match="m1, which x.hyper.safetensors was made of"):
        jobs.save_checkpoint(webui.at(0.5), "exact2", from_inputs=True)


def test_loras(webui, jobs):
    listed = webui.networks.listed
    made = jobs.save_lora(webui.at(0.5), "all of x", "all", rank=2)
    assert [file.name for file in made] == ["all of x-1.safetensors", "all of x-2.safetensors"]
    assert all("relative error" in file.text and os.path.dirname(file.path).endswith("Lora") for file in made)
    assert webui.networks.listed == listed + 1
    assert jobs.save_lora(webui.at(0.5), "one", "direction", 2, 2)[0].name == "one.safetensors"
    assert jobs.save_lora(webui.at(0.5, 0.1), "point", "blend", rank=2)[0].name == "point.safetensors"
    with pytest.raises(ValueError, match="not 'blends'"):
        jobs.save_lora(webui.at(0.5), "point", "blends")
    with pytest.raises(ValueError, match="cannot hold multipliers of single blocks"):
        jobs.save_lora(webui.at(0.5, blocks="IN = x0"), "point", "blend")


def test_all_loras_or_none(webui, jobs):
    """The second cannot be written: a person who reads that nothing was written finds nothing."""
    folder = webui.models / "Lora"
    (folder / "x-2.safetensors").write_bytes(b"hers")
    with pytest.raises(hm.Error):
        jobs.save_lora(webui.at(0.5), "x", "all", rank=2)
    assert os.listdir(folder) == ["x-2.safetensors"]


def test_questions(webui, jobs):
    assert jobs.table(HYPER).startswith("x.hyper.safetensors\n") and "m2" in jobs.table(HYPER)
    assert [point["name"] for point in jobs.map_document(HYPER)["points"]] == ["m0", "m1", "m2"]
    jobs.save_checkpoint(webui.at(0.5, 0.25), "new")
    text, document = jobs.project(HYPER, ["new.safetensors"])
    assert "new" in text and [point["name"] for point in document["points"]] == ["m0", "m1", "m2", "new"]
    assert "m1" in jobs.recover("new.safetensors", MODELS)
    assert "m1" in jobs.compare(MODELS)
    with pytest.raises(ValueError, match="choose a checkpoint to project"):
        jobs.project(HYPER, [])
    with pytest.raises(ValueError, match="choose the checkpoints"):
        jobs.recover("m0.safetensors", [])


def test_the_map_follows_its_file(webui, jobs):
    assert jobs.map_document(HYPER)["directions"] == 2
    webui.solve(HYPER, directions=1)
    assert jobs.map_document(HYPER)["directions"] == 1


def test_stop(webui, jobs):
    """Stop in the page: nothing is written, and the next job runs."""
    before = set(os.listdir(webui.hypers))
    state = webui.shared.state
    with webui.host.job("solve"), pytest.raises(webui.host.Stopped):
        state.interrupt()
        jobs.solve(MODELS, name="stopped")
    assert set(os.listdir(webui.hypers)) == before
    assert state.job == "" and not state.interrupted
    with webui.host.job("solve"):
        jobs.solve(MODELS, name="stopped")
    assert len(set(os.listdir(webui.hypers)) - before) == 1


def test_the_bar(webui, jobs):
    state, seen = webui.shared.state, []
    with webui.host.job("bar"):
        moved = webui.host.report("solving")
        for done in (0, 25, 50, 100):
            moved(done, 100)
            seen.append((state.sampling_step, *webui.host.progress()))
        assert state.textinfo == "solving" and state.job_count == 1
    assert [step for step, _, _ in seen] == [0, 250, 500, 1000] and [share for _, share, _ in seen] == [0, 0.25, 0.5, 1]
    assert seen[0][2] == "solving" and all(text == "solving, 0 s left" for _, _, text in seen[1:])


def test_folders_of_flags(webui, tmp_path):
    flags = webui.shared.cmd_opts
    flags.hyper_merge_dir, flags.lora_dir, flags.ckpt_dir = (str(tmp_path / name) for name in ("h", "l", "c"))
    (tmp_path / "h" / "deep").mkdir(parents=True)
    (tmp_path / "h" / "deep" / HYPER).write_bytes((webui.hypers / HYPER).read_bytes())
    assert webui.host.hyper_names() == [f"deep/{HYPER}"] and webui.host.lora_folder() == str(tmp_path / "l")
    assert webui.host.model_folders()[0] == str(tmp_path / "c")
    assert webui.live.want(webui.at(0.5, hyper=f"deep/{HYPER}")).startswith("x · λ 0.5")


def test_lists_of_a_folder_that_is_not_there(webui):
    webui.shared.cmd_opts.hyper_merge_dir = str(webui.models / "nowhere")
    assert webui.host.hyper_names() == []
