/** A text that a node has to tell: read-only, selectable, scrollable.  Knows no host. */

const STYLE = `
:host { display: block; box-sizing: border-box; overflow: auto; padding: 8px 10px; border-radius: 8px; border: 1px solid #c6c9d0;
    background: #fefefe; color: #1d2127; font: 12px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
:host([data-theme="dark"]) { background: #1e2025; color: #ecece8; border-color: #454a54; }
pre { margin: 0; font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; cursor: text;
    user-select: text; -webkit-user-select: text; }
pre.empty { opacity: .65; font-family: system-ui, sans-serif; cursor: default; }
`;

export class TextView {
    constructor(element, placeholder = "") {
        this.element = element;
        this.placeholder = placeholder;
        const root = element.shadowRoot ?? element.attachShadow({ mode: "open" });
        const style = document.createElement("style");
        style.textContent = STYLE;
        this.text = document.createElement("pre");
        root.replaceChildren(style, this.text);
        element.dataset.scrolls = "";
        element.tabIndex = 0;
        this.value = "";
    }

    set value(text) {
        this.text.textContent = text || this.placeholder;
        this.text.classList.toggle("empty", !text);
    }

    set theme(theme) { this.element.dataset.theme = theme; }

    destroy() { this.element.shadowRoot.replaceChildren(); }
}
