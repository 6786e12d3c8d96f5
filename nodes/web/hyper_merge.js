/**
 * ComfyUI's side of the pad: puts it on the Blend node, finds the hyper-model whose map it shows, and makes one undo step
 * and one queued prompt of every drag.  Besides: the picker of models on Solve, and the text of Info.
 *
 * Values live in the node's own widgets; the pad and the picker are only other hands on them.  They are never serialised,
 * so a workflow looks and runs the same where this file is not loaded.
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Pad } from "./pad.mjs";
import { Picker } from "./picker.mjs";
import { TextView } from "./text_view.mjs";

const PAD_HEIGHT = 250;      // px, least
const PICKER_HEIGHT = 190;
const TEXT_HEIGHT = 100;
const HYPER = "hyper";       // input of all nodes that take a hyper-model
const FROM_INPUT = "(hyper input)";
const BYPASS = 4;            // mode of a node that ComfyUI passes by

/** What nodes said when they last ran, by key(): {name, at}. */
const ran = new Map();
/** Map documents by file name, as promises. */
const maps = new Map();
/** Everything of ours that is on the canvas and has to follow it. */
const views = new Set();

const key = (node) => `${app.graph?.id ?? ""}/${node.graph?.id ?? ""}/${node.id}`;
const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const inputOf = (node, name) => node.inputs?.findIndex((input) => (input.widget?.name ?? input.name) === name) ?? -1;
const isLinked = (node, name) => inputOf(node, name) >= 0 && node.isInputConnected(inputOf(node, name));

/** Runs after whatever the object does at this event; objects, not prototypes: nothing of the host is replaced. */
function also(object, method, ours) {
    const theirs = object[method];
    object[method] = function (...parameters) {
        const result = theirs?.apply(this, parameters);
        ours.apply(this, parameters);
        return result;
    };
}

/** The node that feeds an input, past reroutes and bypassed nodes; null: none, or one outside of this subgraph. */
function originOf(node, name) {
    for (let steps = 0, slot = inputOf(node, name); slot >= 0 && steps < 100; steps++) {
        const origin = node.getInputNode(slot);
        if (!origin) return null;
        const passed = origin.type === "Reroute" ? 0 : origin.mode === BYPASS ? inputOf(origin, name) : -1;
        if (passed < 0) return origin;
        [node, slot] = [origin, passed];
    }
    return null;
}

/** File name of the hyper-model that comes in at `hyper`: as chosen on Load, else as it was when the graph last ran. */
function hyperOf(node) {
    if (!isLinked(node, HYPER)) return null;
    const origin = originOf(node, HYPER);
    if (origin?.comfyClass === "HyperMergeLoad" && !isLinked(origin, HYPER)) {
        const name = widgetOf(origin, "name")?.value;
        if (name !== FROM_INPUT) return name;
    }
    return ran.get(origin ? key(origin) : "")?.name ?? ran.get(key(node))?.name ?? null;
}

function fetchMap(name) {
    if (!maps.has(name)) {
        const asked = api.fetchApi(`/hyper_merge/map?name=${encodeURIComponent(name)}`).then(async (answer) => {
            const document = await answer.json();
            if (!answer.ok) throw new Error(document.error ?? answer.statusText);
            return document;
        });
        asked.catch(() => maps.delete(name));  // the next look asks again
        maps.set(name, asked);
    }
    return maps.get(name);
}

/** "dark" or "light", by the colour that the palette in use gives to menus. */
function hostTheme() {
    const painter = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    painter.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--comfy-menu-bg").trim() || "#222";
    painter.fillRect(0, 0, 1, 1);
    const [red, green, blue] = painter.getImageData(0, 0, 1, 1).data;
    return 0.3 * red + 0.59 * green + 0.11 * blue < 128 ? "dark" : "light";
}

/** One undo step, and one prompt with "Run (On Change)", for all that happens between the two. */
const change = { begin: () => app.canvas?.emitBeforeChange?.(), end: () => app.canvas?.emitAfterChange?.() };

/** A widget that only shows: neither its place nor its value is written into workflows or prompts. */
function addView(node, name, element, least) {
    const options = { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: () => least,
        getValue: () => "", setValue() {} };
    const widget = node.addDOMWidget(name, `hyper_merge_${name}`, element, options);
    widget.serialize = false;
    element.style.minHeight = `${least - 2 * (widget.margin ?? 10)}px`;
    return widget;
}

/** On the classic canvas our elements lie above it: its wheel and its middle button have to be handed down. */
function passToCanvas(element, signal) {
    const hand = (kind, wanted) => element.addEventListener(kind, (event) => {
        if (!element.closest(".dom-widget") || !wanted(event)) return;
        event.preventDefault();
        event.stopPropagation();
        app.canvas.canvas.dispatchEvent(new event.constructor(kind, event));
    }, { signal, passive: false });
    const scrolls = (event) => event.composedPath().some((part) => part.dataset?.scrolls !== undefined);
    hand("wheel", (event) => event.ctrlKey || !scrolls(event));
    hand("pointerdown", (event) => event.button === 1);
    hand("pointermove", (event) => event.buttons & 4);
    hand("pointerup", (event) => event.button === 1);
}

/** After the page has drawn what changed now. */
function mountSoon() {
    requestAnimationFrame(() => requestAnimationFrame(() => views.forEach((view) => view.mount())));
}

/** Something of ours on a node: built when the node comes onto a canvas, taken down when it goes. */
class View {
    constructor(node, name, least) {
        this.node = node;
        this.element = document.createElement("div");
        this.element.dataset.hyperMerge = name;
        this.widget = addView(node, name, this.element, least);
        also(node, "onAdded", () => this.open());
        also(node, "onRemoved", () => this.close());
        also(node, "onConfigure", () => this.sync());
        also(node, "onConnectionsChange", () => this.sync());
        this.open();
    }

    open() {
        if (this.face) return;
        this.closing = new AbortController();
        passToCanvas(this.element, this.closing.signal);
        this.face = this.build();
        this.face.theme = hostTheme();
        views.add(this);
        queueMicrotask(() => this.sync());  // a node that is just being made has no links yet
        mountSoon();
    }

    /**
     * Vue nodes mount the elements of widgets once per node id: after undo has made the nodes anew, or when a subgraph is
     * entered, they still show the element of another node with that id.  Ours then takes the place of that one of ours.
     */
    mount() {
        if (!this.face || this.element.isConnected || this.node.graph !== app.canvas.graph) return;
        const place = `[data-node-id="${CSS.escape(this.node.id)}"] [data-hyper-merge="${this.widget.name}"]`;
        document.querySelector(place)?.replaceWith(this.element);
    }

    close() {
        views.delete(this);
        this.closing?.abort();
        this.face?.destroy();
        this.face = null;
    }

    sync() {}
}

// ---- Blend ----------------------------------------------------------------------------------------------------------

/** Multipliers beyond the first two, as the input `further` holds them: "0.1, -0.2". */
const readFurther = (text) => String(text ?? "").split(/[\s,;]+/).filter(Boolean).map((part) => Number(part) || 0);

function writeFurther(values) {
    const last = values.findLastIndex((value) => value !== 0);
    return values.slice(0, last + 1).join(", ");
}

class BlendPad extends View {
    constructor(node) {
        super(node, "pad", PAD_HEIGHT);
        for (const name of ["lam", "kap", "further"]) {
            const widget = widgetOf(node, name);
            if (widget) also(widget, "callback", () => this.sync());
        }
    }

    build() {
        const limits = widgetOf(this.node, "lam")?.options ?? {};
        return new Pad(this.element, {
            limits: [limits.min ?? -10, limits.max ?? 10],
            axes: this.node.properties?.hyper_merge_axes,
            onBegin: change.begin,
            onInput: (values) => this.write(values),
            onEnd: change.end,
            onAxes: (axes) => {
                change.begin();
                this.node.properties.hyper_merge_axes = axes;
                change.end();
            },
        });
    }

    read() {
        const [lam, kap] = ["lam", "kap"].map((name) => Number(this.incoming(name) ?? widgetOf(this.node, name)?.value) || 0);
        return [lam, kap, ...readFurther(widgetOf(this.node, "further")?.value)];
    }

    /** Of a linked input: what a plain number node gives, or what it was at the last run. */
    incoming(name) {
        if (!isLinked(this.node, name)) return null;
        const origin = originOf(this.node, name);
        const numbers = (origin?.widgets ?? []).filter((widget) => typeof widget.value === "number");
        const source = origin && !origin.inputs?.some((_, slot) => origin.isInputConnected(slot));
        if (source && numbers.length === 1) return numbers[0].value;
        return ran.get(key(this.node))?.at?.[name === "lam" ? 0 : 1] ?? null;
    }

    /** By value alone: the widgets' own callbacks would round to the digits that they show. */
    write([lam, kap, ...further]) {
        const texts = { lam, kap, further: writeFurther(further) };
        for (const [name, value] of Object.entries(texts)) {
            const widget = widgetOf(this.node, name);
            if (widget && widget.value !== value && !isLinked(this.node, name)) widget.value = value;
        }
        app.canvas?.setDirty(true, true);
    }

    sync() {
        if (!this.face || !this.node.graph) return;
        const driver = (name) => (isLinked(this.node, name)
            ? `set by ${originOf(this.node, name)?.title ?? "the subgraph's input"}` : null);
        const further = driver("further");
        this.face.driven = [driver("lam"), driver("kap"), ...Array(62).fill(further)];
        this.face.value = this.read();
        this.face.applied = ran.get(key(this.node))?.at ?? null;
        this.show();
    }

    /** Gets the map that belongs here now; asks only when that is another one. */
    async show() {
        const name = hyperOf(this.node);
        const asked = name && fetchMap(name);
        if (asked === this.asked && name) return;
        this.asked = asked;
        if (!name) {
            this.face.setMap(null);
            this.face.message = isLinked(this.node, HYPER) ? "Run once to see the map" : "Connect a hyper-model to see its map";
            return;
        }
        try {
            const document = await asked;
            if (this.asked !== asked || !this.face) return;
            this.face.setMap(document);
            const axes = this.node.properties?.hyper_merge_axes;
            if (axes) this.face.axes = axes;
        } catch (error) {
            if (this.asked !== asked || !this.face) return;
            this.asked = null;
            this.face.setMap(null);
            this.face.message = error.message;
        }
    }
}

// ---- Solve, Info ----------------------------------------------------------------------------------------------------

class SolvePicker extends View {
    constructor(node) {
        super(node, "picker", PICKER_HEIGHT);
        const widget = widgetOf(node, "models");
        if (widget) also(widget, "callback", () => this.sync());
    }

    build() {
        this.refresh();
        return new Picker(this.element, {
            onChange: (text) => {
                const widget = widgetOf(this.node, "models");
                if (!widget || isLinked(this.node, "models")) return;
                change.begin();
                widget.value = text;
                change.end();
                app.canvas?.setDirty(true, true);
            },
            onRefresh: () => this.refresh(),
        });
    }

    async refresh() {
        try {
            const answer = await api.fetchApi("/hyper_merge/models");
            const { models, error } = await answer.json();
            if (!answer.ok) throw new Error(error ?? answer.statusText);
            this.face?.setModels(models);
        } catch (error) {
            this.face?.setModels([], error.message);
        }
    }

    sync() {
        if (!this.face) return;
        this.face.value = widgetOf(this.node, "models")?.value ?? "";
        this.face.note = ran.get(key(this.node))?.text ?? "";
    }
}

class NodeText extends View {
    constructor(node) { super(node, "text_view", TEXT_HEIGHT); }
    build() { return new TextView(this.element, "Run the workflow: what this node has to say will stand here."); }
    sync() { if (this.face) this.face.value = ran.get(key(this.node))?.text ?? ""; }
}

/** A graph that is cleared does not tell the nodes in its subgraphs: those have no graph any more, and are closed here. */
const syncAll = () => views.forEach((view) => (view.node.graph ? view.sync() : view.close()));

const VIEWS = {  // node id: [what it gets, least width, least height of a new node in px]
    HyperMergeBlend: [BlendPad, 330, 560],
    HyperMergeSolve: [SolvePicker, 360, 520],
    HyperMergeInfo: [NodeText, 380, 260],
    HyperMergeProject: [NodeText, 330, 260],
    HyperMergeSaveCheckpoint: [NodeText, 360, 400],
    HyperMergeSaveLoRA: [NodeText, 360, 420],
};
const TELLING = /^HyperMerge/;

app.registerExtension({
    name: "hyper-merge.pad",

    setup() {
        api.addEventListener("graphChanged", syncAll);  // undo, other widgets, links upstream: whatever ends in a change
        app.canvas.canvas.addEventListener("litegraph:set-graph", mountSoon);
        const recolour = () => {
            const theme = hostTheme();
            views.forEach((view) => { view.face.theme = theme; });
        };
        const observer = new MutationObserver(recolour);
        observer.observe(document.documentElement, { attributes: true, attributeFilter: ["style", "class"] });
        observer.observe(document.body, { attributes: true, attributeFilter: ["style", "class"] });
    },

    nodeCreated(node) {
        if (!TELLING.test(node.comfyClass ?? "")) return;
        also(node, "onExecuted", (output) => {
            const [said] = output?.hyper_merge ?? [];
            const text = [output?.text ?? []].flat().join("\n");
            if (!said && !text) return;
            ran.set(key(node), { ...said, text });
            if (said?.name && node.comfyClass !== "HyperMergeBlend") maps.delete(said.name);  // it may have been solved anew
            syncAll();
        });
        const [Kind, width, height] = VIEWS[node.comfyClass] ?? [];
        if (!Kind) return;
        new Kind(node);
        node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    },
});
