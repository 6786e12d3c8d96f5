"""`<hm:λ:κ>` in prompts, and the axes of the X/Y/Z plot."""

from __future__ import annotations

import dataclasses
from copy import copy

import pytest

from webui.facade.harness import same


def test_a_token_is_the_accordion_for_one_prompt(webui):
    base, plain = webui.held(), webui.image()
    moved = webui.image(settings=webui.at(0.4, -0.2))
    assert webui.image("a cat<hm:0.4:-0.2>") == moved
    assert webui.image() == plain
    assert same(webui.held(), base)


def test_each_prompt_of_a_batch_has_its_own(webui):
    alone = [webui.image(settings=webui.at(lam)) for lam in (0.5, 0.0, -0.5)]
    found = webui.run(webui.job(["a cat<hm:0.5>", "a cat", "a cat<hm:-0.5:0>"]))
    assert found.images == [alone[0], webui.image(), alone[2]]
    assert [text.get("Hyper-Merge at") for text in found.infotexts] == ["0.5", None, "-0.5, 0"]
    hashes = [text["Model hash"] for text in found.infotexts]
    assert len(set(hashes)) == 3 and hashes[1] == webui.model.sd_model_hash


def test_prompts_that_are_computed_at_once_have_one_blend_and_that_is_said(webui):
    """The host reads the tokens of the first; a picture's own prompt would say something else."""
    token, network = webui.ext("token"), webui.extra_networks.ExtraNetworkParams(["0.5"])

    def said(*prompts, size):
        p = webui.job(list(prompts))
        p.all_prompts, p.iteration, p.batch_size = list(prompts), 0, size
        token.apply(p, [network])
        return list(p.comments)

    assert said("a cat<hm:0.5>", "a cat<hm:-0.5>", size=1) == said("a cat<hm:0.5>", "a dog<hm:0.5>", size=2) == []
    for other in ("a cat<hm:-0.5>", "a cat"):
        assert "that of the first prompt" in said("a cat<hm:0.5>", other, size=2)[0]


def test_without_a_token_the_accordion_holds_again(webui):
    alone = [webui.image(settings=webui.at(lam, 0.1)) for lam in (0.5, 0.3)]
    found = webui.run(webui.job(["a cat<hm:0.5:0.1>", "a cat"], webui.at(0.3, 0.1)))
    assert found.images == alone


def test_other_forms(webui):
    webui.solve("y.hyper.safetensors", directions=1)
    assert webui.image("a cat<hm:y:0.5>") == webui.image(settings=webui.at(0.5, hyper="y.hyper.safetensors"))
    assert webui.image("a cat<hm:0.1><hm:x:0.5:0.2>") == webui.image("a cat<hm:x.hyper.safetensors:0.5:0.2>")
    assert webui.image("a cat<hm: 5e-1 :+.2>") == webui.image("a cat<hm:0.5:0.2>")
    assert webui.image("a cat<hm:−0.5>") == webui.image("a cat<hm:-0.5>")  # a true minus, as the map shows it
    weaker = webui.image("a cat<hm:x:0.5:te=0>")
    assert weaker == webui.image(settings=webui.at(0.5, text_encoder=0.0)) != webui.image("a cat<hm:x:0.5>")


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("<hm:0.5:b>", "<hm:0.5:b> is not of the form <hm:0.4:-0.2>"),
        ("<hm:te=b>", "is not of the form"),
        ("<hm::0.5>", "<hm::0.5> is not of the form"),
        ("<hm:0.5:>", "<hm:0.5:> is not of the form"),
        ("<hm:nan>", "0 hyper-models are called nan"),
        ("<hm:0.5:inf>", "<hm:0.5:inf> is not of the form"),
        ("<hm:0.5:size=2>", "<hm:0.5:size> is not of the form"),
        ("<hm:nobody:0.5>", "0 hyper-models are called nobody"),
        ("<hm:0.1:0.2:0.3>", "number 3 must stay 0"),
    ],
)
def test_a_token_that_is_wrong_is_said_and_moves_nothing(webui, token, said):
    found = webui.run(webui.job("a cat" + token))
    assert found.images == [webui.image()] and len(found.comments) == 1
    assert found.comments[0].startswith("Hyper-Merge: ") and said in found.comments[0]


def test_the_only_hyper_model_need_not_be_chosen(webui):
    moved = webui.image(settings=webui.at(0.5))
    found = webui.run(webui.job("a cat", webui.at(0.5, hyper="")))
    assert found.images == [moved] and found.infotexts[0]["Hyper-Merge"] == "x.hyper.safetensors"
    assert webui.image("a cat<hm:0.5>") == moved


def test_several_hyper_models_and_none_chosen(webui):
    webui.solve("y.hyper.safetensors", directions=1)
    for job in (webui.job("a cat<hm:0.5>"), webui.job("a cat", webui.at(0.5, hyper=""))):
        assert webui.run(job).comments == ["Hyper-Merge: choose a hyper-model first"]
    chosen = webui.Settings(False, "y.hyper.safetensors")
    assert webui.run(webui.job("a cat<hm:0.5>", chosen)).comments == []


def test_the_hires_pass_has_a_prompt_of_its_own(webui):
    same_ = webui.image(settings=webui.at(0.5), enable_hr=True)
    assert webui.image("a cat<hm:0.5>", enable_hr=True) == same_
    other = webui.job("a cat<hm:0.5>", enable_hr=True, hr_prompt="a cat<hm:-0.5>")
    found = webui.run(other)
    assert found.images[0] != same_ and found.infotexts[0]["Hyper-Merge at"] == "0.5"
    assert webui.image("a cat<hm:0.5>", enable_hr=True, hr_prompt="a cat") != found.images[0]


def test_a_job_inside_a_job_is_a_picture_of_the_same_model(webui):
    """Other extensions paint over parts of a picture with a job of their own, in which our script is not called."""
    expected = webui.image(settings=webui.at(0.5))
    outer = webui.job("a cat", webui.at(0.5))
    webui.run(outer)
    inner = webui.processing.StableDiffusionProcessingTxt2Img("a cat")
    assert webui.run(inner).images == [expected]
    del outer
    assert webui.run(webui.processing.StableDiffusionProcessingTxt2Img("a cat")).images != [expected]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_token_of_a_job_inside_a_job_is_of_the_outer_ones_accordion(webui, enabled):
    """Such jobs take over the outer prompt with its token: of several hyper-models the accordion's is meant."""
    webui.solve("a.hyper.safetensors", directions=1)
    accordion = dataclasses.replace(webui.at(0.1, 0.1, blocks="OUT = x0"), enabled=enabled)
    outer = webui.job("a cat<hm:0.5:0.2>", accordion)
    expected = webui.run(outer).images
    inner = webui.processing.StableDiffusionProcessingTxt2Img("a cat<hm:0.5:0.2>")
    found = webui.run(inner)
    assert (found.images, found.comments) == (expected, [])
    assert webui.image("a cat<hm:-0.5>", accordion) not in expected
    del outer


def test_extra_networks_switched_off(webui):
    moved = webui.image(settings=webui.at(0.5))
    assert webui.image(settings=webui.at(0.5), disable_extra_networks=True) == moved


def test_reload_ui_registers_once_and_switching_off_leaves_nothing(webui):
    xyz, token = webui.ext("xyz"), webui.ext("token")
    for _ in range(2):
        plot = webui.scripts.plot_script()
        webui.extra_networks.extra_network_registry.clear()
        for _ in range(2):
            xyz.register()
            token.register()
        ours = [option.label for option in plot.axis_options if option.label.startswith("[Hyper-Merge]")]
        assert len(ours) == len(set(ours)) == 8
        assert list(webui.extra_networks.extra_network_registry) == ["hm"]
    xyz.unregister()
    token.unregister()
    assert [option.label for option in plot.axis_options] == ["Nothing"]
    assert not webui.extra_networks.extra_network_registry


def test_without_the_plot_script(webui):
    webui.scripts.scripts_data.clear()
    webui.ext("xyz").register()
    webui.ext("xyz").unregister()
    assert webui.scripts.scripts_data == []


def plot(webui, job, **cells):
    """One cell of a plot: a shallow copy of the job, changed along each axis."""
    module = webui.scripts.plot_script()
    webui.ext("xyz").register()
    options = {option.label.removeprefix("[Hyper-Merge] "): option for option in module.axis_options}
    cell = copy(job)
    cell.extra_generation_params, cell.comments = {}, {}
    for label, value in cells.items():
        option = options[label]
        option.apply(cell, option.type(value), [value])
    return webui.run(cell)


def test_axes(webui):
    job = webui.job("a cat", webui.at(0.1, 0.1))
    points = [(lam, kap) for lam in ("0", "0.5") for kap in ("-0.5", "0.1")]
    cells = {(lam, kap): plot(webui, job, **{"λ": lam, "κ": kap}).images[0] for lam, kap in points}
    assert len(set(cells.values())) == 4
    assert cells["0.5", "-0.5"] == webui.image(settings=webui.at(0.5, -0.5))
    assert webui.run(job).images == [webui.image(settings=webui.at(0.1, 0.1))]


def test_axes_of_blocks_and_hyper_models(webui):
    webui.solve("y.hyper.safetensors", directions=1)
    job = webui.job("a cat", webui.Settings(False, "x.hyper.safetensors", (0.5, 0.5)))
    found = plot(webui, job, **{"× IN blocks": "0", "× MID blocks": "0.5"})
    assert found.images == [webui.image(settings=webui.at(0.5, 0.5, blocks="IN = x0\nMID = x0.5"))]
    assert found.infotexts[0]["Hyper-Merge blocks"] == "IN = x0\nMID = x0.5"
    preset = plot(webui, job, blocks="U-Net only", **{"text encoder": "1"})
    assert preset.images == [webui.image(settings=webui.at(0.5, 0.5, blocks="TEXT = x0"))]
    other = plot(webui, job, **{"hyper-model": "y.hyper.safetensors", "κ": "0"})
    assert other.images == [webui.image(settings=webui.at(0.5, 0.0, hyper="y.hyper.safetensors"))]
