// Every command and its key; the list behind '?' is made of the same table.

const SINGLE = "cmunet-viewer-single-keys"; // whether keys without Ctrl work: some people's tools type

/** rows: [keys, what they do, command, when]; commands without a key here are only explained. */
export class Keys {
  constructor(rows) {
    this.rows = rows;
    this.dialog = document.getElementById("help-dialog");
    this.switch = document.getElementById("single-keys");
    this.switch.checked = localStorage.getItem(SINGLE) !== "off";
    this.switch.addEventListener("change", () => localStorage.setItem(SINGLE, this.switch.checked ? "on" : "off"));
    document.addEventListener("keydown", (event) => this._down(event));
    const list = document.getElementById("help-list");
    for (const [keys, words] of rows) {
      const pair = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      keys.split(" ").forEach((key) => term.append(Object.assign(document.createElement("kbd"), { textContent: NAMES[key] ?? key })));
      text.textContent = words;
      pair.append(term, text);
      list.append(pair);
    }
  }

  help() {
    this.dialog.showModal();
  }

  _down(event) {
    if (document.querySelector("dialog[open]") || event.altKey || event.defaultPrevented) return;
    const control = event.ctrlKey || event.metaKey, { target } = event;
    const types = target.matches("input[type=search], select, textarea");
    if (types && !control) return;
    const name = `${control ? "Ctrl+" : ""}${event.key.length === 1 ? event.key.toLowerCase() : event.key}`;
    if (!control && !this.switch.checked && event.key.length === 1 && event.key !== "?" && target.id !== "picture") return;
    // Space and Enter press a button, arrows move a slider: those keys are ours on the picture only.
    const native = target.matches("button, input, summary, a, [role=slider], .scroll") && /^( |Enter|Arrow.*|Home|End|Page.*)$/.test(event.key);
    if (native) return;
    const row = this.rows.find(([keys, , act, when]) => act && keys.split(" ").some((key) => (key === "Space" ? " " : key) === name) && (!when || when(event)));
    if (!row) return;
    event.preventDefault();
    row[2](event);
  }
}

const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
