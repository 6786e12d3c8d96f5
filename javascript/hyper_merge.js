/**
 * Automatic1111's and Forge's side of the pad and of the picker of models: mounts nodes/web/pad.mjs and picker.mjs, the
 * files that ComfyUI loads as well, wherever scripts/hyper_merge_webui put an element for them.
 *
 * The page's own fields stay the truth; pad and picker are only other hands on them.  Python puts
 *   <div data-hyper-merge="pad" data-place="txt2img" data-module="file=…/pad.mjs?…" data-map="{…}" …>
 * and fields with the ids hyper_merge_<place>_<name>, and Gradio tells what happens by an event on the document:
 *   {place}  a field changed, by whomever      {place, switched}  that one is "Enable"
 *   {place, done}  what was sent is in the weights, or could not be
 *   {place, again}  another model is loaded: send it again         {place, open}  the accordion is to be seen
 *   {place, task, name}  a job began: its number in the host's queue, and the button
 */
(() => {
    const PREFIX = "hyper_merge_";
    const FIELD = ":is(input[type=number], input[type=text], input[type=checkbox], textarea)";
    const views = new Map();  // by place, "picker" for the list of models

    const find = (place, name) => gradioApp().querySelector(`#${PREFIX}${place}_${name}`);
    const field = (place, name) => find(place, name)?.querySelector(FIELD);
    const theme = () => (document.body.classList.contains("dark") ? "dark" : "light");

    function button(place, name) {
        const found = find(place, name);
        return found?.matches("button") ? found : found?.querySelector("button");
    }

    const press = (place, name) => button(place, name)?.click();

    function read(place, name) {
        const input = field(place, name);
        return input?.type === "checkbox" ? input.checked : input?.value ?? "";
    }

    /** Into a field, as if typed there: Gradio then knows of it too. */
    function write(place, name, value) {
        const input = field(place, name);
        if (!input || input.value === String(value)) return;
        input.value = value;
        updateInput(input);
    }

    /** In the reader's language: the host knows its translations by the English text, as it does for what it finds itself. */
    const translated = (text) => (text && getTranslation(text)) || text;
    const translatedAll = (texts) => Object.fromEntries(Object.entries(texts).map(([key, text]) => [key, translated(text)]));

    /** A button that shows a sign alone says what it does. */
    function label(button, text) {
        if (button) button.title = button.ariaLabel = translated(text);
    }

    const numbers = (text) => text.split(/[\s,;]+/).filter(Boolean).map((part) => Number(part) || 0);
    const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

    function listing(values) {
        const last = values.findLastIndex((value) => value !== 0);
        return values.slice(0, last + 1).join(", ");
    }

    /** The pad of one place, and what its fields have to do with the weights. */
    class PadView {
        #held = false;  // her hand moves the pad: what Gradio says meanwhile is older
        #busy = false;  // something was sent and is not done
        #sent = "off";
        #asked = false;  // this page has sent anything at all
        #later = false;  // Gradio heard of a field after the last time that something was sent
        #timer = null;   // until the next look at what waits

        constructor(place) { this.place = place; }

        async mount(element) {
            this.element = element;
            const { Pad, TEXTS } = await import(new URL(element.dataset.module, document.baseURI));
            if (this.element !== element || !element.isConnected) return;
            const { limit, message } = element.dataset;
            this.pad?.destroy();
            this.pad = new Pad(element, {
                limits: [-limit, Number(limit)], message: translated(message), theme: theme(), axes: this.axes,
                texts: translatedAll(TEXTS),
                onBegin: () => { this.#held = true; },
                onInput: (values) => this.#write(values),
                onEnd: () => { this.#held = false; this.sync(); },
                onAxes: (axes) => { this.axes = axes; },
            });
            this.pad.setMap(JSON.parse(element.dataset.map || "null"));
            this.sync();
        }

        get values() {
            const [lam, kap] = ["lam", "kap"].map((name) => Number(read(this.place, name)) || 0);
            return [lam, kap, ...numbers(read(this.place, "further"))];
        }

        #write([lam, kap, ...further]) {
            write(this.place, "lam", lam);
            write(this.place, "kap", kap ?? 0);
            write(this.place, "further", listing(further));
        }

        sync() {
            if (this.pad && !this.#held) this.pad.value = this.values;
            this.#summarise();
            this.#send();
        }

        /** In the title of the accordion, so that it can stay closed. */
        #summarise() {
            const title = gradioApp().querySelector(`#${PREFIX}${this.place} > .label-wrap > span`);
            if (!title) return;
            const summary = title.parentNode.querySelector(".hyper-merge-summary")
                ?? title.insertAdjacentElement("afterend", document.createElement("span"));
            summary.className = "hyper-merge-summary";
            const [lam, kap] = this.values;
            const name = this.element?.dataset.name?.replace(/\.hyper\.safetensors$/, "");
            const on = read(this.place, "enabled") && name;
            summary.textContent = on ? `${name}  λ ${signed(lam)}  κ ${signed(kap)}` : "";
        }

        /**
         * Gradio has heard of a field, which is a while after the page shows it: what was sent meanwhile had older values,
         * whatever the fields said, and is sent again.  Fields of an accordion that is off matter to nobody.
         */
        changed(switched) {
            this.#later ||= this.#asked && (switched || read(this.place, "enabled"));
            this.sync();
        }

        /** The newest fields, once what was sent before is done; older ones are never sent. */
        #send() {
            if (!find(this.place, "apply")) return;
            const on = read(this.place, "enabled") && opts.hyper_merge_live !== false;
            const rest = ["lam", "kap", "further", "text_encoder", "blocks"].map((name) => read(this.place, name));
            const wanted = on ? JSON.stringify([this.element?.dataset.name, ...rest]) : "off";
            if (this.#busy || (wanted === this.#sent && !this.#later)) return;
            [this.#sent, this.#busy, this.#asked, this.#later] = [wanted, true, true, false];
            press(this.place, "apply");
        }

        done() {
            this.#busy = false;
            const { at, waits } = find(this.place, "status")?.querySelector("[data-at], [data-waits]")?.dataset ?? {};
            clearTimeout(this.#timer);
            if (waits) this.#timer = setTimeout(() => press(this.place, "look"), 1000);
            if (this.pad) this.pad.applied = at ? JSON.parse(at) : null;
            this.sync();
        }

        again() {
            this.#sent = "off";
            this.sync();
        }

        recolour() { if (this.pad) this.pad.theme = theme(); }
    }

    /** The list of models over the field that holds their names, one a line. */
    class PickerView {
        constructor(place) { this.place = place; }

        async mount(element) {
            this.element = element;
            const { Picker, TEXTS } = await import(new URL(element.dataset.module, document.baseURI));
            if (this.element !== element || !element.isConnected) return;
            this.picker = new Picker(element, {
                onChange: (text) => write(this.place, "models", text),
                onRefresh: () => press(this.place, "models_refresh"),
                texts: translatedAll(TEXTS),
            });
            this.picker.setModels(JSON.parse(element.dataset.models));
            this.recolour();
            this.sync();
        }

        sync() { if (this.picker) this.picker.value = read(this.place, "models"); }
        recolour() { if (this.picker) this.picker.theme = theme(); }
    }

    /** Opens the accordion, and brings it into sight. */
    function unfold(place) {
        const title = gradioApp().querySelector(`#${PREFIX}${place} > .label-wrap`);
        if (!title) return;
        if (!title.classList.contains("open")) title.click();
        title.scrollIntoView({ block: "nearest" });
    }

    /** The list at the top of the page shows the base that was loaded, also a new one; Forge's only if Python tells it. */
    function showLoaded(place) {
        const title = find(place, "load_base_status")?.querySelector("[data-title]")?.dataset.title;
        if (!title) return;
        if (gradioApp().querySelector("#setting_sd_model_checkpoint")) selectCheckpoint(title);
        else press("top", "checkpoint");
    }

    /** The host's bar for a job; while it runs, Stop stands where its button was. */
    function follow(place, task, name) {
        const line = find(place, `${name}_progress`);
        const job = line?.closest(".hyper-merge-job");
        if (!job) return;
        job.classList.add("hyper-merge-busy");
        job.dataset.task = task;  // for Stop
        requestProgress(task, line, null, () => job.classList.remove("hyper-merge-busy"));
    }

    const KINDS = { pad: PadView, picker: PickerView };

    onAfterUiUpdate(() => {
        for (const element of gradioApp().querySelectorAll("[data-hyper-merge]")) {
            const { hyperMerge: kind, place } = element.dataset;
            const key = `${kind} ${place}`;
            if (!views.has(key)) {
                views.set(key, new KINDS[kind](place));
                if (kind === "pad") label(button(place, "refresh"), "Look again for hyper-models");
                press(place, kind === "picker" ? "models_refresh" : "refresh");  // files may be newer than the page
            }
            if (views.get(key).element !== element) views.get(key).mount(element);
        }
        views.forEach((view) => view.recolour());
    });

    document.addEventListener("hyper-merge", ({ detail: { place, done, again, open, switched, task, name } }) => {
        if (task) follow(place, task, name);
        if (open) unfold(place);
        if (again) showLoaded(place);
        for (const view of views.values()) {
            if (view.place !== place) continue;
            if (done) view.done?.();
            else if (again) view.again?.();
            else if (view.changed) view.changed(switched);
            else view.sync();
        }
    });
})();
