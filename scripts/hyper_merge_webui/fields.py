"""A hyper-model and a point on its map, as components: the same in the accordions and in the tab."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from . import host, jobs, options, parts, settings
from .parts import GRADIO_3

NONE_YET = "No hyper-models yet: solve for one"
NONE_YET_ELSEWHERE = "No hyper-models yet: see the tab Hyper-Merge"
CHOOSE = "Choose a hyper-model to see its map"


@dataclasses.dataclass
class Fields:
    """The components, in the order of Settings.of but for `enabled`."""

    hyper: Any
    lam: Any
    kap: Any
    further: Any
    text_encoder: Any
    blocks: Any
    refresh: Any
    pad: Any

    @property
    def values(self) -> list[Any]:
        return [self.hyper, self.lam, self.kap, self.further, self.text_encoder, self.blocks]


def hyper_list() -> list[str]:
    """The hyper-models; none where the folder cannot be read."""
    try:
        return host.hyper_names()
    except OSError:
        return []


def build(place: str) -> Fields:
    """Hyper-model, pad, sliders, blocks, within the context that is open."""
    names = hyper_list()
    first = names[0] if names else None
    with gr.Row(elem_classes="hyper-merge-choice"):
        # What the API sets from an infotext becomes of the type of this value, and nothing where it is None; a later
        # Gradio would refuse a text that is not in the list.
        hyper = gr.Dropdown(
            names, value=first or ("" if GRADIO_3 else None), label="Hyper-model", elem_id=parts.elem_id(place, "hyper")
        )
        refresh = gr.Button("⟳", elem_id=parts.elem_id(place, "refresh"), elem_classes=["tool", "hyper-merge-tool"])
    with gr.Row(elem_classes="hyper-merge-point"):
        with gr.Column(scale=6, min_width=250):
            pad = gr.HTML(pad_of(place, first), elem_id=parts.elem_id(place, "pad"), elem_classes=parts.FLAT)
        with gr.Column(scale=5, min_width=220, elem_classes="hyper-merge-numbers"):
            numbers = _numbers(place, _directions(first))
            blocks = _blocks(place)
    fields = Fields(hyper, *numbers, blocks, refresh, pad)
    parts.transient(hyper, *numbers, blocks)
    _connect(place, fields)
    return fields


def _numbers(place: str, count: int) -> list[Any]:
    limit = options.limit()

    def slider(name: str, label: str, value: float, most: float, **more: Any) -> Any:
        return gr.Slider(-most, most, value, step=0.01, label=label, elem_id=parts.elem_id(place, name), **more)

    return [
        slider("lam", "λ", 0.0, limit),
        slider("kap", "κ", 0.0, limit, visible=count > 1),
        gr.Textbox(
            "",
            label="Further directions",
            placeholder="0.1, -0.2",
            elem_id=parts.elem_id(place, "further"),
            visible=count > 2,
            max_lines=1,
        ),
        slider("text_encoder", "Text encoder", 1.0, 2.0),
    ]


def _blocks(place: str) -> Any:
    with gr.Accordion("Blocks", open=False, elem_classes="hyper-merge-blocks"):
        preset = gr.Dropdown(list(settings.PRESETS), value=None, label="Preset", elem_id=parts.elem_id(place, "preset"))
        blocks = gr.Textbox(
            "",
            label="Multipliers of single blocks",
            info="The last line that fits a tensor decides. The text encoder's factor holds on top of all lines but those "
            "for the text encoder alone, as TEXT = x0.5",
            lines=3,
            max_lines=8,
            placeholder="OUT = x0.5\n*.input_blocks.* = 0, 0",
            elem_id=parts.elem_id(place, "blocks"),
        )
    parts.transient(preset)
    preset.change(lambda name: settings.PRESETS.get(name, ""), [preset], [blocks], **parts.QUICK)
    return blocks


def _connect(place: str, fields: Fields) -> None:
    for component in fields.values[1:]:
        component.change(**parts.tell(place))
    fields.hyper.change(
        lambda name: chosen(place, name), [fields.hyper], [fields.pad, fields.kap, fields.further], **parts.QUICK
    ).then(**parts.tell(place))
    fields.refresh.click(
        lambda name: listed(place, name),
        [fields.hyper],
        [fields.hyper, fields.pad],
        **parts.QUICK,
    ).then(**parts.tell(place))


# ---- what they show -------------------------------------------------------------------------------------------------


def _map(name: str | None, place: str = "tab") -> tuple[dict[str, Any] | None, str]:
    """The map of a hyper-model, or None and why there is none."""
    if not name:
        return None, CHOOSE if hyper_list() else NONE_YET if place == "tab" else NONE_YET_ELSEWHERE
    try:
        return jobs.map_document(name), ""
    except Exception as reason:  # whatever is wrong with that file, the page has to come up
        return None, str(reason).removeprefix("hyper-merge: ")


def pad_of(place: str, name: str | None) -> str:
    document, message = _map(name, place)
    return parts.pad(place, name if document and name else "", document, options.limit(), message)


def _directions(name: str | None) -> int:
    document, _ = _map(name)
    return document["directions"] if document else 2


def chosen(place: str, name: str | None) -> tuple[Any, ...]:
    """Another hyper-model: its pad, and only as many fields as it has directions.

    What is hidden becomes 0: the blend would be refused for a value that nobody sees.  Of a hyper-model that is not
    there nothing is known, so nothing is lost.
    """
    document, _ = _map(name)
    count = _directions(name)

    def field(number: int, nothing: Any) -> Any:
        shown = count >= number
        return gr.update(visible=shown) if shown or not document else gr.update(visible=False, value=nothing)

    return pad_of(place, name), field(2, 0.0), field(3, "")


def listed(place: str, name: str | None) -> tuple[Any, ...]:
    """The list of hyper-models read anew; what was chosen stays while it is there."""
    names = hyper_list()
    kept = name if name in names else (names[0] if names else None)
    return gr.update(choices=names, value=kept), pad_of(place, kept)
