// The list of cases and of inputs that could not be read, and their filter.

const MOST = 400; // buttons; a pool of thousands is found by its filter
const FEW = 5; // inputs that could not be read: more are folded, so that they do not push the cases away
const get = (id) => document.getElementById(id);
const made = (name, text, kind = "") => Object.assign(document.createElement(name), { textContent: text, className: kind });

export class Cases {
  /** on: {open(index of the case), leave(): the keyboard goes back to the picture} */
  constructor(data, on) {
    this.data = data;
    this.on = on;
    this.current = 0;
    get("filter").addEventListener("input", () => this.filtered());
    get("filter").addEventListener("keydown", (event) => this._key(event));
    get("notes").replaceChildren(...data.notes.map((note) => made("li", note)));
    this.filtered();
  }

  wanted() {
    return get("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  }

  filtered() {
    this.draw();
    this._drawFailed();
  }

  /** Words that a case is found by, in small letters. */
  words(at) {
    const found = this.data.cases[at], saved = found.frames.filter((f) => f.saved).length;
    return `${found.id} ${saved ? "saved" : "unlabelled"} ${found.problem ? "problem" : ""} ${found.frames.length > 1 ? "run" : "image"}`.toLowerCase();
  }

  matching() {
    const wanted = this.wanted();
    return this.data.cases.map((_, at) => at).filter((at) => wanted.every((word) => this.words(at).includes(word)));
  }

  draw() {
    const found = this.matching(), all = this.data.cases.length;
    get("cases-count").textContent = found.length === all ? `${all}` : `${found.length} of ${all}`;
    get("cases-more").hidden = found.length <= MOST && found.length > 0;
    get("cases-more").textContent = found.length ? `${found.length - MOST} more: filter them.` : "No case has these words.";
    get("cases").replaceChildren(...found.slice(0, MOST).map((at) => this._item(at)));
  }

  _drawFailed() {
    const wanted = this.wanted(), all = this.data.failed;
    const found = all.filter(({ input, reason }) => wanted.every((word) => `${input} ${reason} problem`.toLowerCase().includes(word)));
    get("failed").hidden = !found.length;
    get("failed").open = found.length <= FEW;
    get("failed-count").textContent = found.length === all.length ? `${all.length}` : `${found.length} of ${all.length}`;
    const rows = found.slice(0, MOST).map(({ input, reason }) => made("li", `${input}: ${reason}`));
    if (found.length > MOST) rows.push(made("li", `${found.length - MOST} more: filter them.`));
    get("failed-list").replaceChildren(...rows);
  }

  /** Enter opens the first and leaves the filter, so that the next keys are commands again. */
  _key(event) {
    const filter = get("filter"), [first] = this.matching();
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Enter" && first === undefined) return;
    if (event.key === "Enter") this.on.open(first);
    if (event.key === "Enter" || !filter.value) return this.on.leave();
    filter.value = "";
    this.filtered();
  }

  _item(at) {
    const { id, frames, source_frames: source, problem, notes } = this.data.cases[at];
    const item = made("li", ""), button = made("button", ""), saved = frames.filter((f) => f.saved).length;
    const facts = [frames.length === 1 && source <= 1 ? "image" : `${frames.length} of ${Math.max(source, frames.length)} frames`];
    if (saved) facts.push(frames.length > 1 ? `${saved} saved` : "saved");
    button.append(made("span", id, "name"), made("span", facts.join(" · "), "facts"));
    if (at === this.current) button.append(...notes.map((note) => made("span", note, "facts")));
    if (problem) button.append(made("span", problem, "problem"));
    button.title = id;
    if (at === this.current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => this.on.open(at));
    item.append(button);
    return item;
  }

  select(at) {
    this.current = at;
    const focused = get("cases").contains(document.activeElement);
    this.draw();
    const chosen = get("cases").querySelector("[aria-current]");
    if (focused) chosen?.focus();
    chosen?.scrollIntoView({ block: "nearest" });
  }
}
