/**
 * The pad: a map of the merged models that is at the same time the control for the multipliers λ, κ, ….
 *
 * It knows no host.  It draws itself into the shadow root of one element, so that neither styles nor ids of the page
 * around it can meet its own, and speaks through callbacks:
 *
 *   const pad = new Pad(element, {
 *     value: [0, 0],            // multipliers, one per direction; missing ones are 0
 *     limits: [-10, 10],        // of every multiplier
 *     axes: [0, 1],             // directions that the pad moves: horizontal, vertical
 *     theme: "auto",            // "light", "dark", or "auto": what the reader's system asks for
 *     message: "",              // shown while there is no map
 *     texts: {},                // translations, see TEXTS
 *     onBegin() {},             // a person takes hold: open one undo step
 *     onInput(values) {},       // the value moves under her hand, many times a second
 *     onChange(values) {},      // once, where the value came to rest, if it moved at all
 *     onEnd() {},               // always follows onBegin, after onChange: close the undo step
 *     onAxes(axes) {},          // other directions were chosen for the two axes
 *   });
 *   pad.setMap(document);       // what map_document() of hypermerge_ext.pictures.geometry gives, or null
 *   pad.value = [0.4, -0.2];    // from outside: calls nothing back
 *   pad.driven = ["set by Sweep", null];  // direction 0 is set elsewhere: shown, not moved
 *   pad.applied = [0.4, -0.2];  // where the last picture was made, or null
 *   pad.axes, pad.message, pad.theme = …; pad.destroy();
 *
 * Mouse, pen, touch: drag; near a model the handle snaps to it (not with Alt or Ctrl), Shift keeps to one axis; a double
 * click beside a model or a click on its name takes its multipliers; Escape gives back what was there before the drag.
 * Keys: arrows 0.01, with Shift 0.1, with Alt 0.001; 1 … 9 a model, N and P the next and the previous; Home or 0 the base.
 *
 * Pointer events keep their default action: preventing it on pointerdown would also suppress the compatibility mouse
 * events, and hosts (ComfyUI's undo) wait for those.  The wheel is left alone: it belongs to the page.
 */

export const TEXTS = {
    pad: "Blend of the merged models", role: "two-dimensional slider",
    base: "base", middle: "middle of the models", near: "near {name}", beyond: "beyond the models",
    goto: "Take the multipliers of a model", reset: "Back to the start (Home)", residual: "{percent} of it lies off this map",
    horizontal: "Direction along the horizontal axis", vertical: "Direction along the vertical axis",
};

// The palettes of hypermerge_ext.pictures.theme: the map on paper and the map in the hand look alike.
const DARK = `--bg: #1e2025; --ink: #ecece8; --soft: #a0a3aa; --line: #454a54; --faint: #2c2f36; --accent: #6fadf2;
    --warn: #f09a4c; --base: #ff6f70; --stranger: #4fd0c4; --chip: #30343c; --shade: rgb(0 0 0 / .5);`;
const LIGHT = `--bg: #fefefe; --ink: #1d2127; --soft: #666c77; --line: #c6c9d0; --faint: #e9eaee; --accent: #2a66b0;
    --warn: #b8570a; --base: #c9303c; --stranger: #0b7f78; --chip: #eef0f4; --shade: rgb(255 255 255 / .85);`;
const FONT = 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif';

const STYLE = `
:host { ${LIGHT} display: flex; flex-direction: column; box-sizing: border-box; min-width: 180px; min-height: 120px;
    overflow: hidden; border: 1px solid var(--line); border-radius: 8px; background: var(--bg); color: var(--ink);
    color-scheme: light dark; font: 12px/1.3 ${FONT}; text-align: left; user-select: none; -webkit-user-select: none; }
@media (prefers-color-scheme: dark) { :host(:not([data-theme])) { ${DARK} } }
:host([data-theme="dark"]) { ${DARK} color-scheme: dark; } :host([data-theme="light"]) { color-scheme: light; }
:host([hidden]) { display: none; } * { box-sizing: border-box; }
.bar { display: flex; align-items: center; gap: 6px; min-height: 30px; padding: 3px 4px 3px 10px; flex: none;
    border-bottom: 1px solid var(--faint); white-space: nowrap; }
.numbers { display: flex; gap: 8px; font-variant-numeric: tabular-nums; } .numbers span { min-width: 4.2em; }
.numbers i { font-style: normal; color: var(--soft); margin-right: .35em; }
.numbers .driven { color: var(--soft); font-style: italic; }
select, button { font: inherit; color: inherit; background: transparent; border: 0; border-radius: 6px; height: 24px; margin: 0;
    cursor: pointer; }
select { appearance: none; -webkit-appearance: none; padding: 0 6px; text-overflow: ellipsis; }
select option { color: var(--ink); background: var(--bg); }
select:hover, button:hover { background: var(--chip); }
select:focus-visible, button:focus-visible { outline: 2px solid var(--accent); outline-offset: -1px; }
.axis { width: auto; padding: 0 3px; color: var(--soft); }
.goto { flex: 1 1 0; min-width: 0; padding-right: 15px; font-size: 11px; text-align: right; color: var(--soft); }
.goto.at { color: var(--accent); font-weight: 600; } .goto.beyond { color: var(--warn); }
.caret { flex: none; width: 0; position: relative; left: -17px; color: var(--soft); font-size: 9px; pointer-events: none; }
button { flex: none; width: 26px; padding: 0; display: grid; place-items: center; }
button svg { width: 15px; height: 15px; fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linecap: round; }
.plot { position: relative; flex: 1 1 auto; min-height: 0; touch-action: none; cursor: crosshair; outline: none; }
.plot:focus-visible::after { content: ""; position: absolute; inset: 1px; border: 2px solid var(--accent);
    border-radius: 0 0 7px 7px; pointer-events: none; }
.plot.held { cursor: grabbing; } .plot.fixed { cursor: not-allowed; }
.plot > svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
.message { position: absolute; inset: auto 8px 8px; text-align: center; color: var(--soft); pointer-events: none; }
text { font: 11px ${FONT}; fill: var(--soft); } .tick { font-size: 9px; opacity: .8; }
.share .name { fill: var(--ink); font-weight: 600; }
.halo { paint-order: stroke; stroke: var(--bg); stroke-width: 3px; stroke-linejoin: round; }
.grid { stroke: var(--faint); } .axes { stroke: var(--line); }
.hull { fill: var(--accent); fill-opacity: .09; stroke: var(--accent); stroke-opacity: .42; stroke-linejoin: round; }
.ring { fill: none; stroke: var(--ink); opacity: .34; } .dot { fill: var(--ink); stroke: var(--bg); stroke-width: 1.5; }
.projected .dot { fill: var(--stranger); } .projected .ring { stroke: var(--stranger); }
.close .dot { fill: var(--accent); } .close .ring { stroke: var(--accent); opacity: .8; }
.model text { cursor: pointer; } .close text { fill: var(--ink); font-weight: 600; }
.base { stroke: var(--base); stroke-width: 1.8; fill: none; }
.applied { fill: none; stroke: var(--accent); stroke-width: 1.4; opacity: .75; }
.cross { stroke: var(--accent); stroke-dasharray: 2 3; opacity: .65; }
.cross.rail { stroke: var(--soft); stroke-dasharray: none; opacity: 1; }
.handle { fill: none; stroke: var(--accent); stroke-width: 2.5; } .handle .core { fill: var(--accent); stroke: none; }
.handle .under { stroke: var(--shade); stroke-width: 5.5; }
.out .cross, .out .handle { stroke: var(--warn); } .out .handle .core { fill: var(--warn); }
.callout rect { fill: var(--chip); stroke: var(--line); } .callout .name { fill: var(--ink); }
.back, .front { pointer-events: none; }
`;

const HANDLE = 8;  // radius, px
const [SNAP, SNAP_TOUCH] = [10, 18];  // px; a finger is wider than a mouse
const MARKUP = `<style>${STYLE}</style>
<div class="bar"><span class="numbers"></span><select class="goto"></select><span class="caret" aria-hidden="true">▾</span>
<button class="reset" type="button"><svg viewBox="0 0 16 16" aria-hidden="true">
<path d="M3.2 6.2A5.2 5.2 0 1 1 2.8 9M2.6 2.8v3.6h3.6"/></svg></button></div>
<div class="plot" tabindex="0" role="slider"><svg class="map" aria-hidden="true"><g class="back"/><g class="models"/>
<g class="front"><path class="applied" d="M0-6 6 0 0 6-6 0Z"/><path class="cross across"/><path class="cross along"/>
<g class="handle"><circle class="under" r="${HANDLE}"/><circle r="${HANDLE}"/><circle class="core" r="2"/></g>
<g class="callout"/></g></svg><div class="message"></div></div>`;
const NAME_LENGTH = 22;  // longer names lose their middle: versions stand at the end
const LETTERS = ["λ", "κ"];
const STEPS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10];  // between lines of the grid

/** Multiplier with sign and three decimals, with a true minus. */
const format = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(Math.abs(value) < 9.9995 ? 3 : 2);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const fill = (text, parts) => text.replace(/\{(\w+)\}/g, (_, key) => parts[key]);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** New SVG element with attributes and children. */
function make(tag, attributes = {}, children = []) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
}

/** New HTML element with properties and children. */
function html(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
}

/** Corners of the convex hull of [x, y] points, counter-clockwise (monotone chain). */
export function convexHull(points) {
    const sorted = [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const leftTurn = (a, b, p) => (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0;
    const half = (list) => {
        const chain = [];
        for (const p of list) {
            while (chain.length > 1 && !leftTurn(chain.at(-2), chain.at(-1), p)) chain.pop();
            chain.push(p);
        }
        return chain.slice(0, -1);
    };
    return sorted.length < 3 ? sorted : [...half(sorted), ...half(sorted.reverse())];
}

/** Does the hull hold [x, y]?  A hair outside counts as inside, and for models in one line the space between them. */
export function inHull(hull, [x, y], slack = 0.005) {
    const within = (v, i) => hull.some((p) => p[i] >= v - slack) && hull.some((p) => p[i] <= v + slack);
    if (hull.length < 3) return within(x, 0) && within(y, 1);
    return hull.every((a, i) => {
        const b = hull[(i + 1) % hull.length];
        const length = Math.hypot(b[0] - a[0], b[1] - a[1]);
        return ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / length >= -slack;
    });
}

/** Names that fit on a map: what all long ones share at their ends goes first (whole words), then the middle. */
export function shortNames(names) {
    const long = names.filter((name) => name.length > NAME_LENGTH);
    const shared = (list) => {
        let n = 0;
        while (list.length > 1 && list.every((name) => name[n] && name[n] === list[0][n])) n++;
        return n;
    };
    const head = long.length ? long[0].slice(0, shared(long)).search(/[^\W_\d]*\d*$/) : 0;
    const end = shared(long.map((name) => [...name.slice(head)].reverse()));
    const cut = end ? long[0].slice(-end).search(/[\W_]/) : -1;
    return names.map((name) => {
        const rest = name.length > NAME_LENGTH ? name.slice(head, cut < 0 ? undefined : cut - end) || name : name;
        return rest.length > NAME_LENGTH ? `${rest.slice(0, 12)}…${rest.slice(-9)}` : rest;
    });
}

/**
 * Places for names beside their points, so that no name covers another name or a point; a name without room gets null.
 * points: [{x, y, r, width}] in px, r what stays free around the point, in order of precedence; area: {width, height};
 * middle: [x, y], names go away from it where they can; line: the points lie on one horizontal line; taken: rectangles.
 * → [{x, y, width, height} | null]
 */
export function placeNames(points, area, middle, line = false, taken = [], height = 14) {
    const boxes = [...taken, ...points.map(({ x, y }) => ({ x: x - 5, y: y - 5, width: 10, height: 10 }))];
    const apart = (a, b) => a.x >= b.x + b.width || b.x >= a.x + a.width || a.y >= b.y + b.height || b.y >= a.y + a.height;
    const free = (box) => Math.min(box.x, box.y, area.width - box.x - box.width, area.height - box.y - box.height) >= 2
        && boxes.every((other) => apart(box, other));
    return points.map(({ x, y, r, width }) => {
        const [left, right, up, down] = [-r - 3 - width, r + 3, -r - 2 - height, r + 2];
        const beside = [[right, -height / 2], [left, -height / 2], [-width / 2, up], [-width / 2, down],
            [right - 2, 3 - height], [right - 2, -3], [left + 2, 3 - height], [left + 2, -3]];
        const tiers = [0, 1, 2].flatMap((n) => [[-width / 2, up - n * height], [-width / 2, down + n * height]]);
        const outward = ([dx, dy]) => Math.sign((x - middle[0]) * (dx + width / 2) + (y - middle[1]) * (dy + height / 2));
        const places = line ? tiers : beside.sort((a, b) => outward(b) - outward(a));
        const box = places.map(([dx, dy]) => ({ x: x + dx, y: y + dy, width, height })).find(free) ?? null;
        if (box) boxes.push(box);
        return box;
    });
}

/** What the pad needs of a map document; `home`: the base, or the models' middle where the base lies far off ("none"). */
function readMap(map) {
    if (!map) return null;
    const known = new Map(map.axes.map((axis) => [axis.direction - 1, axis]));
    const axes = map.explained.slice(0, map.directions).map((explained, k) => {
        const label = known.get(k)?.label ?? LETTERS[k] ?? `c${k + 1}`;
        return { label, title: known.get(k)?.name || label, explained };
    });
    const merged = map.points.filter((point) => point.merged);
    const middle = axes.map((_, k) => merged.reduce((sum, { multipliers }) => sum + multipliers[k], 0) / merged.length);
    const centred = map.base.shown;
    return { axes, points: map.points, merged, centred, home: centred ? axes.map(() => 0) : middle };
}

export class Pad {
    #host; #options; #texts; #listening = new AbortController(); #resize;
    #map = null; #axes = [0, 1]; #value = [0, 0]; #driven = []; #applied = null; #message = "";
    #held = null;          // the value before a person took hold, while she does
    #drag = null;          // {pointer, dx, dy, snap, from}
    #keys = new Set();     // arrow keys that are down: one hold for all of them
    #hover = null;         // index of the point under the mouse
    #view = null;          // {width, height, middle, home, unit: px; centre, reach, hull: multipliers; zoom}
    #parts;                // elements that are changed again and again
    #dots = [];            // per point {group, x, y: px, box: where its name is, or null}

    constructor(element, options = {}) {
        this.#host = element;
        this.#options = { limits: [-10, 10], ...options };
        this.#texts = { ...TEXTS, ...options.texts };
        this.#message = options.message ?? "";
        this.#axes = [...(options.axes ?? [0, 1])];
        this.#value = [...(options.value ?? [0, 0])];
        this.#build();
        this.theme = options.theme ?? "auto";
        this.setMap(options.map ?? null);
        this.#resize = new ResizeObserver(() => this.#layout());
        this.#resize.observe(this.#parts.plot);
    }

    destroy() {
        this.#end();
        this.#listening.abort();
        this.#resize.disconnect();
        this.#host.shadowRoot.replaceChildren();
    }

    // ---- what a host says ------------------------------------------------------------------------------------------

    /** Shows another hyper-model; null: none, then only the axes and the message are there. */
    setMap(map) {
        this.#map = readMap(map);
        const count = this.#count;
        while (this.#value.length < count) this.#value.push(0);
        if (count < 2) this.#axes = [0];
        else if (this.#axes.length < 2 || this.#axes.some((k) => k >= count)) this.#axes = [0, 1];
        this.#hover = this.#view = null;
        this.#fillBar();
        this.#layout();
    }

    get value() { return [...this.#value]; }
    set value(values) {
        this.#value = Array.from({ length: Math.max(this.#count, values.length) }, (_, k) => Number(values[k]) || 0);
        this.#refresh();
    }

    /** Directions on the axes: [horizontal, vertical], or [0] where there is one only. */
    get axes() { return [...this.#axes]; }
    set axes(axes) {
        const known = (k) => Number.isInteger(k) && k >= 0 && k < this.#count;
        if (axes.length !== Math.min(2, this.#count) || axes[0] === axes[1] || ![...axes].every(known)) return;
        this.#axes = [...axes];
        this.#fillBar();
        this.#layout();
    }

    /** Per direction a text that says who else sets it, or null. */
    set driven(reasons) {
        this.#driven = [...reasons];
        if (this.#axes.every((k) => this.#driven[k])) this.#end();
        this.#draw();
    }

    /** Multipliers that the last picture was made with, or null. */
    set applied(values) { this.#applied = values && [...values]; this.#refresh(); }
    set message(text) { this.#message = text; this.#draw(); }

    set theme(theme) {
        if (theme === "auto") delete this.#host.dataset.theme;
        else this.#host.dataset.theme = theme;
    }

    // ---- elements --------------------------------------------------------------------------------------------------

    get #count() { return this.#map?.axes.length ?? 2; }
    get #labels() { return this.#map?.axes.map(({ label }) => label) ?? LETTERS; }
    get #home() { return this.#map?.home ?? []; }
    get #homeName() { return this.#map?.centred === false ? this.#texts.middle : this.#texts.base; }

    #build() {
        const root = this.#host.shadowRoot ?? this.#host.attachShadow({ mode: "open" });
        root.innerHTML = MARKUP;
        const text = this.#texts;
        const parts = this.#parts = {};  // by the last word of their class
        for (const part of root.querySelectorAll("[class]")) parts[[...part.classList].at(-1)] = part;
        Object.assign(parts.goto, { title: text.goto, ariaLabel: text.goto });
        Object.assign(parts.reset, { title: text.reset, ariaLabel: text.reset });
        const [ariaValueMin, ariaValueMax] = this.#options.limits;
        Object.assign(parts.plot, { ariaLabel: text.pad, ariaRoleDescription: text.role, ariaValueMin, ariaValueMax });

        const on = (target, kinds, listener) => kinds.split(" ").forEach((kind) =>
            target.addEventListener(kind, listener, { signal: this.#listening.signal }));
        on(parts.plot, "pointerdown", (event) => this.#press(event));
        on(parts.plot, "pointermove", (event) => this.#pointer(event));
        on(parts.plot, "pointerup pointercancel lostpointercapture",
            (event) => this.#drag?.pointer === event.pointerId && this.#end());
        on(parts.plot, "pointerleave", () => this.#point(null));
        on(parts.plot, "dblclick", (event) => this.#twice(event));
        on(parts.plot, "keydown", (event) => this.#keyDown(event));
        on(parts.plot, "keyup", (event) => this.#keyUp(event.key));
        on(parts.plot, "blur", () => this.#keyUp(null));
        on(parts.reset, "click", () => this.#take(this.#home));
        on(parts.goto, "change", () => this.#take(this.#multipliersOf(parts.goto.value - 1)));
        // Keys for the lists are theirs: a host must not take an arrow there for one of its commands.
        on(root.querySelector(".bar"), "keydown", (event) => event.stopPropagation());
    }

    /** The readout, with a choice of directions where there are more than two, and the list of models. */
    #fillBar() {
        const { numbers, goto } = this.#parts;
        const labels = this.#labels;
        this.#parts.readout = this.#axes.map((k, i) => {
            const number = html("b");
            let label = html("i", { textContent: labels[k] });
            if (labels.length > 2) {
                const hint = i ? this.#texts.vertical : this.#texts.horizontal;
                const choices = labels.map((name, n) => html("option", { value: n, textContent: name, selected: n === k }));
                label = html("select", { className: "axis", title: hint, ariaLabel: hint }, ...choices);
                label.addEventListener("change", () => this.#choose(i, Number(label.value)));
            }
            return { span: html("span", {}, label, number), number };
        });
        numbers.replaceChildren(...this.#parts.readout.map(({ span }) => span));
        const names = [this.#homeName, ...(this.#map?.points ?? []).map(({ name }) => name)];
        this.#parts.status = html("option", { value: "", hidden: true, selected: true });
        goto.replaceChildren(this.#parts.status, ...names.map((name, n) => html("option", { value: n, textContent: name })));
    }

    #choose(i, k) {
        const axes = [...this.#axes];
        if (axes[1 - i] === k) axes[1 - i] = axes[i];  // the same twice would be a line: they change places
        axes[i] = k;
        this.axes = axes;
        this.#options.onAxes?.(this.axes);
    }

    // ---- drawing ---------------------------------------------------------------------------------------------------

    /** Values of the shown directions as [x, y] in multipliers; with one direction y is 0. */
    #plane(values) {
        return [values[this.#axes[0]] ?? 0, this.#axes.length > 1 ? values[this.#axes[1]] ?? 0 : 0];
    }

    #fromPlane([x, y]) {
        const { middle, centre, unit } = this.#view;
        return [middle[0] + (x - centre[0]) * unit[0], middle[1] - (y - centre[1]) * unit[1]];
    }

    #toPixels(values) { return this.#fromPlane(this.#plane(values)); }
    #toPlane([x, y]) {
        const { middle, centre, unit } = this.#view;
        return [centre[0] + (x - middle[0]) / unit[0], centre[1] + (middle[1] - y) / unit[1]];
    }

    /** Draws; first makes the view wider, or as narrow as the models again, except under a hand. */
    #refresh() {
        if (this.#view && !this.#held && Math.abs(this.#wanted() / this.#view.zoom - 1) > 1e-6) this.#layout();
        else this.#draw();
    }

    /** How much wider than the models the view must be for the value and the last picture. */
    #wanted() {
        const { centre, reach } = this.#view;
        const beyond = (values) => Math.max(...this.#plane(values).map((v, i) => Math.abs(v - centre[i]) / reach[i]));
        return Math.max(1, 1.1 * beyond(this.#value), this.#applied ? 1.04 * beyond(this.#applied) : 0);
    }

    /** Everything anew: after another map, another size, or a value beyond what is in view. */
    #layout() {
        const { plot, map: svg, back, models } = this.#parts;
        const [width, height] = [plot.clientWidth, plot.clientHeight];
        if (!width || !height) return;  // hidden: the observer calls again
        const { points, merged, centred, home } = this.#map ?? { points: [], merged: [], centred: true, home: [0, 0] };
        const view = this.#view = { width, height, middle: [width / 2, height / 2], centre: this.#plane(home), zoom: 1 };
        const two = this.#axes.length > 1;
        const places = points.map(({ multipliers }) => this.#plane(multipliers));
        const far = [0, 1].map((i) => Math.max(0, ...places.map((place) => Math.abs(place[i] - view.centre[i]))));
        // Models reach to ±1 by definition; a third more stays free to go beyond them.
        view.reach = far.map((most) => 1.33 * (most || (points.length ? Math.max(...far) : 0) || 1));
        view.zoom = this.#wanted();
        view.unit = view.middle.map((half, i) => (half - 6) / view.reach[i] / view.zoom);
        // One scale for both, so that the map keeps its shape, unless that would press one axis flat.
        const [least, most] = [Math.min(...view.unit), Math.max(...view.unit)];
        if (!two || most < 2 * least) view.unit = two ? [least, least] : [view.unit[0], view.unit[0]];
        view.home = this.#toPixels(home);
        view.hull = convexHull([...merged.map(({ multipliers }) => this.#plane(multipliers)), ...(centred ? [[0, 0]] : [])]);

        svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
        const corners = view.hull.map((corner) => this.#fromPlane(corner));
        back.replaceChildren(...this.#grid(two), make("polygon", { class: "hull", points: corners.join(" ") }),
            ...this.#axes.map((k, i) => this.#share(k, i)));
        models.replaceChildren(...this.#models(points));
        this.#draw();
    }

    /** Lines at round numbers along both axes, some of them with their number; the axes themselves at 0. */
    #grid(two) {
        const { width, height, middle, unit } = this.#view;
        const [thin, thick, ticks] = [[], [], []];
        const [from, to] = [this.#toPlane([0, height]), this.#toPlane([width, 0])];
        const zero = this.#fromPlane([0, 0]);
        const [x0, y0] = [clamp(zero[0], 0, width - 20), clamp(zero[1], 0, height - 14)];
        for (const i of two ? [0, 1] : [0]) {
            const step = STEPS.find((size) => size * unit[i] >= 24) ?? 10;
            const named = STEPS.find((size) => size * unit[i] >= 60) ?? 10;
            for (let n = Math.ceil(from[i] / step); n <= to[i] / step; n++) {
                const value = Number((n * step).toFixed(6));
                const place = this.#fromPlane([value, value])[i];
                const line = i ? `M0 ${place}H${width}` : two ? `M${place} 0V${height}` : `M${place} ${middle[1] - 9}v18`;
                (n ? thin : thick).push(line);
                if (!n || Math.abs(value / named - Math.round(value / named)) > 1e-6) continue;
                const spot = i ? { x: x0 + 3, y: place - 3 } : { x: place + 3, y: y0 + (two ? 10 : 22) };
                ticks.push(make("text", { class: "tick halo", ...spot }, [String(value).replace("-", "−")]));
            }
        }
        if (!two) thick.push(`M0 ${middle[1]}H${width}`);
        const path = (kind, lines) => make("path", { class: kind, d: lines.join("") });
        return [path("grid", thin), path("axes", thick), ...ticks];
    }

    /** What an axis is: its letter or the name that somebody gave it, and how much of all differences it explains. */
    #share(k, i) {
        const { title, explained } = this.#map?.axes[k] ?? { title: LETTERS[k] };
        const parts = [make("tspan", { class: "name" }, [i ? `↑ ${title}` : `${title} →`])];
        if (explained !== undefined) parts.push(make("tspan", { dx: 5 }, [percent(explained)]));
        const place = i ? { x: 8, y: 17 } : { x: this.#view.width - 8, y: this.#view.height - 8, "text-anchor": "end" };
        return make("text", { class: "share halo", ...place }, parts);
    }

    #models(points) {
        const [view, one] = [this.#view, this.#axes.length < 2];
        const [x, y] = view.home;
        const measure = document.createElement("canvas").getContext("2d");
        measure.font = "600 11px system-ui";
        const ring = points.length > 20 ? 8 : 14;  // px for a model that is not on the map at all
        const names = shortNames(points.map(({ name }) => name));
        const spots = points.map(({ multipliers, residual }, n) => {
            const [px, py] = this.#toPixels(multipliers);
            const width = measure.measureText(names[n]).width + 2;
            return { n, x: px, y: py, r: 6 + ring * Math.min(1, residual), width, name: names[n] };
        });
        // Names far out first: they have room, and they are the corners of the map.
        const order = [...spots].sort((a, b) => Math.hypot(b.x - x, b.y - y) - Math.hypot(a.x - x, a.y - y));
        const taken = [...this.#parts.back.querySelectorAll("text")].map((text) => text.getBBox());
        const boxes = placeNames(order.map((spot) => ({ ...spot, r: one ? 15 : Math.min(spot.r, 12) })), view, [x, y], one,
            [{ x: x - 6, y: y - 6, width: 12, height: 12 }, ...taken]);
        order.forEach((spot, i) => { spot.box = boxes[i]; });
        this.#dots = spots.map((spot) => {
            const group = make("g", { class: points[spot.n].merged ? "model" : "model projected" });
            if (spot.box) {
                const text = make("text", { class: "halo", x: spot.box.x + 1, y: spot.box.y + 11 }, [spot.name]);
                text.dataset.point = spot.n;
                const leads = spot.box.y < spot.y ? spot.box.y + 14 : spot.box.y;
                group.append(...(one ? [make("path", { class: "ring", d: `M${spot.x} ${spot.y}V${leads}` })] : []), text);
            }
            const circle = (kind, r) => make("circle", { class: kind, cx: spot.x, cy: spot.y, r });
            group.append(circle("ring", spot.r), circle("dot", 4));
            return { ...spot, group };
        });
        const base = make("path", { class: "base", d: `M${x - 4.5} ${y}h9M${x} ${y - 4.5}v9` });
        return [base, ...this.#dots.map(({ group }) => group)];
    }

    /** What changes with the value. */
    #draw() {
        const { map: svg, plot, across, along, handle, applied, message, readout, status, goto } = this.#parts;
        const [view, axes] = [this.#view, this.#axes];
        const fixed = axes.every((k) => this.#driven[k]);
        axes.forEach((k, i) => {
            readout[i].number.textContent = format(this.#value[k] ?? 0);
            readout[i].span.className = this.#driven[k] ? "driven" : "";
            readout[i].span.title = this.#driven[k] ?? "";
        });
        plot.classList.toggle("fixed", fixed);
        plot.ariaDisabled = fixed;
        message.textContent = this.#map ? "" : this.#message;
        if (!view) return;

        const inside = ([x, y]) => [clamp(x, HANDLE, view.width - HANDLE), clamp(y, HANDLE, view.height - HANDLE)];
        const [x, y] = inside(this.#toPixels(this.#value));
        handle.setAttribute("transform", `translate(${x} ${y})`);
        across.setAttribute("d", axes.length > 1 ? `M0 ${y}H${view.width}` : "");
        along.setAttribute("d", `M${x} 0V${view.height}`);
        // Where the other hand is on one axis, the handle runs along the line of that axis.
        [along, across].forEach((line, i) => line.classList.toggle("rail", Boolean(this.#driven[axes[i]])));
        applied.style.display = this.#applied ? "" : "none";
        if (this.#applied) applied.setAttribute("transform", `translate(${inside(this.#toPixels(this.#applied))})`);

        const found = this.#whereabouts();
        this.#dots.forEach(({ group }, n) => group.classList.toggle("close", n === found.index));
        svg.classList.toggle("out", found.kind === "beyond");
        status.textContent = found.text;
        goto.className = `goto ${found.kind}`;
        goto.selectedIndex = 0;
        plot.ariaValueNow = this.#value[axes[0]] ?? 0;
        const numbers = axes.map((k) => `${this.#labels[k]} ${format(this.#value[k] ?? 0)}`);
        plot.ariaValueText = [...numbers, found.text].filter(Boolean).join(", ");
        this.#callOut(this.#hover ?? found.index);
    }

    /** In words: at the base, at a model, near one, or beyond them all; index: the point that it speaks of. */
    #whereabouts() {
        const text = this.#texts;
        const points = this.#map?.points ?? [];
        const same = (values) => this.#value.every((value, k) => Math.abs(value - (values[k] ?? 0)) < 6e-4);
        const at = points.findIndex(({ multipliers }) => same(multipliers));
        if (at >= 0) return { index: at, kind: "at", text: this.#dots[at]?.name ?? points[at].name };
        if (same(this.#home)) return { index: null, kind: "at", text: this.#homeName };
        if (!points.length || !this.#view) return { index: null, kind: "", text: "" };
        const [x, y] = this.#toPixels(this.#value);
        const far = this.#dots.map((dot) => Math.hypot(dot.x - x, dot.y - y));
        const index = far.indexOf(Math.min(...far));
        if (!inHull(this.#view.hull, this.#plane(this.#value))) return { index, kind: "beyond", text: text.beyond };
        return { index, kind: "near", text: fill(text.near, this.#dots[index]) };
    }

    /** Name of the point under the mouse with all about it; of the nearest point only the name, if it has none yet. */
    #callOut(index) {
        const { callout } = this.#parts;
        callout.replaceChildren();
        const dot = this.#dots[index];
        if (!dot || (dot.box && this.#hover === null)) return;
        const { name, multipliers, residual } = this.#map.points[index];
        const numbers = this.#axes.map((k) => `${this.#labels[k]} ${format(multipliers[k])}`).join("  ");
        const texts = [name, numbers, fill(this.#texts.residual, { percent: percent(residual) })];
        const lines = texts.slice(0, this.#hover === null ? 1 : 3).map((text, n) =>
            make("text", { class: n ? "more" : "name", x: 7, y: 14 + 14 * n }, [text]));
        const height = 14 * lines.length + 6;
        const box = make("rect", { rx: 5, height });
        callout.append(box, ...lines);
        const width = Math.max(...lines.map((line) => line.getComputedTextLength())) + 14;
        box.setAttribute("width", width);
        const left = dot.x + 12 + width < this.#view.width ? dot.x + 12 : Math.max(2, dot.x - 12 - width);
        callout.setAttribute("transform", `translate(${left} ${clamp(dot.y - height - 8, 2, this.#view.height - height - 2)})`);
    }

    #point(index) {
        if (index === this.#hover) return;
        this.#hover = index;
        this.#draw();
    }

    // ---- hands -----------------------------------------------------------------------------------------------------

    #begin() {
        if (this.#held) return;
        this.#held = this.value;
        this.#options.onBegin?.();
    }

    /** What a hand does not touch stays as it is, also beyond the limits; directions that the map does not have become 0. */
    #move(values, back = false) {
        const [[low, high], count] = [this.#options.limits, this.#map && !back ? this.#count : Infinity];
        const within = (value, old) => (back || value === old ? value : clamp(value, low, high));
        const next = this.#value.map((old, k) => (this.#driven[k] ? old : k >= count ? 0 : within(values[k] ?? old, old)));
        if (next.every((value, k) => value === this.#value[k])) return;
        this.#value = next;
        this.#draw();
        this.#options.onInput?.(this.value);
    }

    #end(cancel = false) {
        if (!this.#held) return;
        if (cancel) this.#move(this.#held, true);
        const changed = this.#held.some((value, k) => value !== this.#value[k]);
        this.#held = this.#drag = null;
        this.#keys.clear();
        this.#parts.plot.classList.remove("held");
        if (changed) this.#options.onChange?.(this.value);
        this.#options.onEnd?.();
        this.#refresh();
    }

    /** All multipliers of a model or of the base, as one step unless a drag or an arrow key is in progress. */
    #take(multipliers) {
        this.#begin();
        this.#move(this.#value.map((_, k) => multipliers[k] ?? 0));
        if (!this.#drag && !this.#keys.size) this.#end();
    }

    /** Where an event is, in px of the drawing: the page may have scaled it by a CSS transform. */
    #place(event) {
        const rect = this.#parts.map.getBoundingClientRect();
        const { width, height } = this.#view;
        return [(event.clientX - rect.left) * width / rect.width, (event.clientY - rect.top) * height / rect.height];
    }

    /** The nearest point within `range` px: its index, -1 for the base, null for none. */
    #near([x, y], range) {
        const spots = [this.#view.home, ...this.#dots.map((dot) => [dot.x, dot.y])];
        const far = spots.map((spot) => Math.hypot(spot[0] - x, spot[1] - y));
        const least = Math.min(...far);
        return least <= range ? far.indexOf(least) - 1 : null;
    }

    #multipliersOf(index) { return index < 0 ? this.#home : this.#map.points[index].multipliers; }

    #press(event) {
        const fixed = this.#axes.every((k) => this.#driven[k]);
        if (event.button !== 0 || !event.isPrimary || this.#drag || fixed || !this.#view) return;
        const from = this.#place(event);
        const named = event.composedPath()[0].dataset?.point;
        const start = this.#toPixels(named === undefined ? this.#value : this.#multipliersOf(named));
        // Taken by the handle or by a name, it must not jump under the pointer.
        const held = named !== undefined || Math.hypot(start[0] - from[0], start[1] - from[1]) <= HANDLE + 2;
        this.#begin();
        this.#drag = { pointer: event.pointerId, from, start, shift: held ? [start[0] - from[0], start[1] - from[1]] : [0, 0],
            moved: !held, snap: event.pointerType === "mouse" ? SNAP : SNAP_TOUCH };
        this.#parts.plot.setPointerCapture(event.pointerId);
        this.#parts.plot.classList.add("held");
        this.#point(null);
        if (named !== undefined) this.#take(this.#multipliersOf(named));
        else if (!held) this.#follow(event);
    }

    #pointer(event) {
        if (!this.#view) return;
        if (this.#drag?.pointer === event.pointerId) this.#follow(event);
        else if (!this.#drag) {
            const near = event.pointerType === "mouse" ? this.#near(this.#place(event), SNAP) : null;
            this.#point(near === -1 ? null : near);
        }
    }

    #follow(event) {
        const [drag, [px, py]] = [this.#drag, this.#place(event)];
        // A hand that only presses does not move the handle off a model.
        if (!drag.moved && Math.hypot(px - drag.from[0], py - drag.from[1]) < 3) return;
        drag.moved = true;
        const place = [px + drag.shift[0], py + drag.shift[1]];
        if (event.shiftKey) {
            const still = Math.abs(place[0] - drag.start[0]) < Math.abs(place[1] - drag.start[1]) ? 0 : 1;
            place[still] = drag.start[still];
        }
        if (this.#axes.length < 2) place[1] = this.#view.middle[1];
        const free = event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
        const near = free ? null : this.#near(place, drag.snap);
        const aim = near === null ? this.#toPlane(place).map((value) => Math.round(value * 1000) / 1000)
            : this.#plane(this.#multipliersOf(near));
        const values = this.value;
        this.#axes.forEach((k, i) => { values[k] = aim[i]; });
        this.#move(values);
    }

    #twice(event) {
        if (event.button !== 0 || !this.#view) return;
        const near = this.#near(this.#place(event), 2 * SNAP);
        if (near !== null) this.#take(this.#multipliersOf(near));
    }

    #keyDown(event) {
        if (event.ctrlKey || event.metaKey) return;
        const points = this.#map?.points ?? [];
        const along = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowDown: [1, -1], ArrowUp: [1, 1] }[event.key];
        const turn = { n: 1, p: -1 }[event.key.toLowerCase()];
        if (along) {
            const k = this.#axes[Math.min(along[0], this.#axes.length - 1)];
            const step = event.altKey ? 0.001 : event.shiftKey ? 0.1 : 0.01;
            this.#keys.add(event.key);
            this.#begin();
            const values = this.value;
            values[k] = Math.round((values[k] + along[1] * step) * 1e4) / 1e4;
            this.#move(values);
        } else if (event.key === "Home" || event.key === "0") this.#take(this.#home);
        else if (event.key === "Escape" && this.#held) this.#end(true);
        else if (/^[1-9]$/.test(event.key) && points[event.key - 1]) this.#take(points[event.key - 1].multipliers);
        else if (turn && points.length) {
            const from = this.#whereabouts().index ?? (turn > 0 ? -1 : 0);
            this.#take(points.at((from + turn) % points.length).multipliers);
        } else return;
        event.preventDefault();   // the page must not scroll,
        event.stopPropagation();  // nor a host take the key for one of its commands
    }

    /** One hold lasts from the first arrow key down to the last one up (null: the focus is gone). */
    #keyUp(key) {
        if (key === null) this.#keys.clear();
        else if (!this.#keys.delete(key)) return;
        if (!this.#keys.size && !this.#drag) this.#end();
    }
}
