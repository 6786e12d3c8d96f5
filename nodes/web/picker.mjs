/**
 * A list of checkpoints to tick, over a text with one name or pattern per line: the text stays the truth.
 *
 * Ticking adds a line at the end, taking the tick away removes it; lines that are patterns (* ? [ ]) or unknown names stay
 * as they are, and what a pattern matches is shown as chosen by it.  Knows no host.
 *
 *   const picker = new Picker(element, {onChange(text) {}, onRefresh() {}, texts: {}});  // texts: translations, see TEXTS
 *   picker.setModels([{name, folder, size}], error);   picker.value = text;   picker.note = "…";   picker.destroy();
 */

export const TEXTS = {
    filter: "Filter models", again: "Look again for models", count: "{count} chosen", by: "chosen by {pattern}",
    nothing: "No models found", none: "No name matches",
};

const STYLE = `
:host { display: flex; flex-direction: column; box-sizing: border-box; overflow: hidden; border-radius: 8px;
    --bg: #fefefe; --ink: #1d2127; --soft: #666c77; --line: #c6c9d0; --faint: #e9eaee; --accent: #2a66b0;
    border: 1px solid var(--line); background: var(--bg); color: var(--ink); color-scheme: light;
    font: 12px/1.3 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; text-align: left; }
:host([data-theme="dark"]) { --bg: #1e2025; --ink: #ecece8; --soft: #a0a3aa; --line: #454a54; --faint: #2c2f36;
    --accent: #6fadf2; color-scheme: dark; }
.bar { display: flex; gap: 6px; align-items: center; flex: none; padding: 4px 4px 4px 8px;
    border-bottom: 1px solid var(--faint); }
input[type="search"] { flex: 1 1 0; min-width: 40px; height: 22px; font: inherit; color: inherit; background: transparent;
    border: 0; outline: none; padding: 0; }
.bar:focus-within { box-shadow: inset 0 0 0 2px var(--accent); border-radius: 8px 8px 0 0; }
.count { color: var(--soft); white-space: nowrap; }
button { font: inherit; color: inherit; background: transparent; border: 0; border-radius: 6px; width: 24px; height: 22px;
    padding: 0; cursor: pointer; }
button:hover { background: var(--faint); }
ul { flex: 1 1 auto; min-height: 0; overflow-y: auto; margin: 0; padding: 3px; list-style: none; }
label { display: flex; gap: 7px; align-items: center; padding: 3px 6px; border-radius: 5px; cursor: pointer; }
label:hover { background: var(--faint); }
label input { margin: 0; flex: none; accent-color: var(--accent); }
.name { flex: 1 1 auto; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.size { flex: none; color: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.by .name { color: var(--accent); }
.note { flex: none; max-height: 5.4em; overflow: auto; padding: 5px 8px; border-top: 1px solid var(--faint);
    color: var(--soft); white-space: pre-wrap; }
.note:empty { display: none; }
.empty { padding: 10px; color: var(--soft); }
`;

const isPattern = (line) => /[*?[]/.test(line);
const fill = (text, parts) => text.replace(/\{(\w+)\}/g, (_, key) => parts[key]);
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** Does a shell pattern match the whole name?  As Python's fnmatchcase: * ? [abc] [!abc]. */
export function matches(pattern, name) {
    const source = pattern.replace(/\[(!?)([^\]]+)\]|[.+^${}()|\\/*?[\]]/g, (found, not, set) => {
        if (set !== undefined) return `[${not ? "^" : ""}${set.replace(/\\|\^/g, "\\$&")}]`;
        return found === "*" ? ".*" : found === "?" ? "." : `\\${found}`;
    });
    try {
        return new RegExp(`^${source}$`, "su").test(name);
    } catch {
        return false;  // [z-a] is no range: nothing matches it in Python either
    }
}

function sizeOf(bytes) {
    const power = bytes >= 1e9 ? 3 : bytes >= 1e6 ? 2 : 1;
    return `${(bytes / 1000 ** power).toFixed(power > 2 ? 1 : 0)} ${" kMG"[power]}B`;
}

function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
}

export class Picker {
    constructor(element, options = {}) {
        this.element = element;
        this.options = options;
        this.texts = { ...TEXTS, ...options.texts };
        this.models = [];
        this.error = "";
        this.text = "";
        const root = element.shadowRoot ?? element.attachShadow({ mode: "open" });
        const { filter, again } = this.texts;
        this.search = make("input", { type: "search", placeholder: filter, "aria-label": filter });
        this.count = make("span", { class: "count", role: "status" });
        const refresh = make("button", { type: "button", title: again, "aria-label": again }, "⟳");
        this.list = make("ul", { "data-scrolls": "" });
        this.noteLine = make("div", { class: "note", "data-scrolls": "" });
        const bar = make("div", { class: "bar" }, this.search, this.count, refresh);
        root.replaceChildren(make("style", {}, STYLE), bar, this.list, this.noteLine);
        this.search.addEventListener("input", () => this.draw());
        refresh.addEventListener("click", () => options.onRefresh?.());
        this.list.addEventListener("change", (event) => this.tick(event.target.value, event.target.checked));
        root.addEventListener("keydown", (event) => event.stopPropagation());  // typed here, not a command of the host
        this.draw();
    }

    destroy() { this.element.shadowRoot.replaceChildren(); }

    set theme(theme) { this.element.dataset.theme = theme; }

    set note(text) { this.noteLine.textContent = text; }

    set value(text) {
        if (text === this.text) return;
        this.text = text;
        this.draw();
    }

    setModels(models, error = "") {
        [this.models, this.error] = [models, error];
        this.draw();
    }

    tick(name, on) {
        const kept = lines(this.text).filter((line) => line !== name);
        this.text = [...kept, ...(on ? [name] : [])].join("\n");
        this.draw();
        this.options.onChange?.(this.text);
    }

    draw() {
        const wanted = lines(this.text);
        const patterns = wanted.filter(isPattern);
        const filter = this.search.value.trim().toLowerCase();
        let chosen = 0;
        const rows = this.models.map(({ name, size }) => {
            const pattern = patterns.find((line) => matches(line, name));
            const ticked = wanted.includes(name);
            chosen += ticked || pattern ? 1 : 0;
            const box = make("input", { type: "checkbox", value: name });
            box.checked = ticked || Boolean(pattern);
            box.disabled = Boolean(pattern) && !ticked;
            const title = pattern ? `${name}\n${fill(this.texts.by, { pattern })}` : name;
            const label = make("label", { title, class: pattern ? "by" : "" }, box,
                make("span", { class: "name" }, name), make("span", { class: "size" }, sizeOf(size)));
            return { name, row: make("li", {}, label) };
        }).filter(({ name }) => name.toLowerCase().includes(filter));
        const top = this.list.scrollTop;
        const focused = this.element.shadowRoot.activeElement?.value;
        const why = this.error || (this.models.length ? this.texts.none : this.texts.nothing);
        const nothing = make("li", { class: "empty" }, why);
        this.list.replaceChildren(...(rows.length ? rows.map(({ row }) => row) : [nothing]));
        this.list.scrollTop = top;
        const again = [...this.list.querySelectorAll("input")].find((box) => box.value === focused);
        if (again && this.element.shadowRoot.activeElement === null) again.focus({ preventScroll: true });
        this.count.textContent = fill(this.texts.count, { count: chosen });
    }
}
