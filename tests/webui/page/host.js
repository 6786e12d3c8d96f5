/** What the web UI's own script gives to extensions, as far as ours uses it: written from what the hosts do. */
var opts = { show_progressbar: true };

function gradioApp() { return document.querySelector("gradio-app") ?? document; }

const uiCallbacks = { after: [] };
function onAfterUiUpdate(callback) { uiCallbacks.after.push(callback); }

document.addEventListener("DOMContentLoaded", () => {
    let soon = null;
    new MutationObserver(() => {
        clearTimeout(soon);
        soon = setTimeout(() => uiCallbacks.after.forEach((callback) => callback()), 200);
    }).observe(gradioApp(), { childList: true, subtree: true });
});

/** Translations by the English text; the host's own script translates what it finds outside of shadow roots. */
var localization = { "Filter models": "Modelle filtern", "{count} chosen": "{count} gewählt", "base": "Basis",
    "Back to the start (Home)": "Zum Anfang (Pos1)", "beyond the models": "jenseits der Modelle" };
function getTranslation(text) { return localization[text]; }

function updateInput(target) { target.dispatchEvent(new Event("input", { bubbles: true })); }

function randomId() { return `task(${Math.random().toString(36).slice(2)})`; }

function switchTo(name) {
    [...document.querySelectorAll("#tabs > .tab-nav > button")].find((tab) => tab.textContent.trim() === name).click();
}
function switch_to_txt2img() { switchTo("txt2img"); }
function switch_to_img2img() { switchTo("img2img"); }

function selectCheckpoint(name) {
    const field = document.querySelector("#setting_sd_model_checkpoint textarea, #setting_sd_model_checkpoint input");
    field.value = name;
    updateInput(field);
}

/** A bar before `container` until the job is over; asks the server of it. */
function requestProgress(task, container, gallery, atEnd) {
    const bar = document.createElement("div");
    bar.className = "progressDiv";
    container.parentNode.insertBefore(bar, container);
    let begun = false;
    const ask = async () => {
        const answer = await fetch("./internal/progress", {
            method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ id_task: task }),
        });
        const { active, completed, progress, textinfo } = await answer.json();
        begun ||= active;
        bar.textContent = `${textinfo ?? ""} ${Math.round(100 * (progress ?? 0))}%`;
        if (!completed && (active || !begun)) return setTimeout(ask, 100);
        bar.remove();
        atEnd();
    };
    ask();
}
