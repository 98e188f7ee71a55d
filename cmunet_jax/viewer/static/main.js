// What is looked at, and what the controls do. The server's half is app.py.

import * as api from "./api.js";
import { ask } from "./ask.js";
import { Cases } from "./cases.js";
import { commands } from "./commands.js";
import { Diameters } from "./diameters.js";
import { Keys } from "./keys.js";
import { choices, maskOf, nameOf, nameOfCurve, nameOfEdit, others, probabilityOf, reading, savedWords, writeAgreement } from "./masks.js";
import { Edit } from "./paint.js";
import { FIRST, SECOND, windowed } from "./pixels.js";
import { Stage } from "./stage.js";

const get = (id) => document.getElementById(id);
const MODES = ["one", "difference", "side", "swipe"];
const BLANK = 40; // grey value of a frame whose picture is withheld
const FILM = 80; // milliseconds a frame while playing
const NOTES = {
  prediction: "Measured on the prediction, not on what you paint: save a mask to have it measured.",
  label: "Measured on the mask as it was last saved; what you paint is measured when you save it.",
};

// case and frame are what was asked for; shown is what is on the canvas, which comes a little later:
// {at, index, found, layers, edit, height, width, two, blind}.
const state = {
  data: null, case: 0, frame: 0, shown: null,
  edits: new Map(), against: "", mode: "one", asked: 0, playing: false, pen: false, fit: true,
  curve: "", turn: 0, // which diameters the user chose, and how often any were asked for
};
let cases, keys, stage, diameters;

const frameOf = () => state.data.cases[state.case]?.frames[state.frame];
const keyOf = ({ at, index }) => `${at}/${index}`;
const say = (words) => (get("status").textContent = words);

// ---------------------------------------------------------------- opening a frame

async function open(at, frame, { refit = false } = {}) {
  const ticket = ++state.asked, { cases: all } = state.data;
  if (!all.length) return trouble("There is no case to show.");
  leave();
  state.fit = state.fit || refit || at !== state.case;
  state.case = (at + all.length) % all.length;
  state.frame = Math.max(0, Math.min(frame, all[state.case].frames.length - 1));
  const found = frameOf();
  bar();
  api.note(state.case, state.frame);
  if (!found) return close(all[state.case].problem || "This case has no frame.");
  const kinds = [...found.layers, ...(found.saved ? ["label"] : [])];
  const read = await Promise.allSettled(kinds.map((kind) => api.layer(state.case, state.frame, kind)));
  if (ticket !== state.asked) return; // another frame was asked for meanwhile
  const layers = {}, wrong = found.problem ? [found.problem] : [];
  read.forEach((result, i) => {
    if (result.status === "fulfilled") layers[kinds[i]] = result.value;
    else wrong.push(`${kinds[i].replace(/-[ab]$/, "")}: ${result.reason.message}`);
  });
  const any = layers["mask-a"] ?? layers["mask-b"], blind = !layers.frame;
  if (blind && any) layers.frame = { ...any, pixels: new Uint8Array(any.pixels.length).fill(BLANK) };
  if (!layers.frame) return close(wrong.join("; "));
  const { height, width } = layers.frame, { case: caseAt, frame: index } = state;
  const shown = { at: caseAt, index, found, layers, height, width, blind, two: "b" in state.data.checkpoints };
  const [first] = choices(shown);
  const known = found.saved ? layers.label?.label : api.NONE, held = state.edits.get(keyOf(shown));
  // A mask that is saved, and was replaced by another tab, is no longer what lies there.
  const past = held && !held.changed && layers.label && held.known !== known;
  shown.edit = held && !past ? held : new Edit(maskOf(shown, first), height, width, first, known);
  state.edits.set(keyOf(shown), shown.edit);
  state.shown = shown;
  trouble(wrong.join("; "));
  fill();
  draw();
  ahead();
  await analyse(ticket);
  if (ticket !== state.asked) return; // a slow analysis must not name the frame before
  get("picture").dataset.shown = keyOf(shown); // all of it has come: for whoever drives the page
}

/** Before another frame comes: ends a stroke, forgets a mask that nobody has touched. */
function leave() {
  pen(false);
  const { shown } = state;
  if (shown && !shown.edit.strokes.length) state.edits.delete(keyOf(shown));
}

function close(words) {
  state.shown = null;
  get("picture").dataset.shown = "";
  stage.marks = [];
  stage.show([], "one");
  get("qca-which-row").hidden = true;
  diameters.show(null, "");
  trouble(words);
  controls();
}

function trouble(words) {
  get("trouble").textContent = words;
  get("trouble").hidden = !words;
}

/** Reads the next frames, which a run will want. */
function ahead() {
  const { frames } = state.data.cases[state.case];
  for (let next = state.frame + 1; next <= Math.min(state.frame + 3, frames.length - 1); next++) {
    for (const kind of frames[next].layers) api.layer(state.case, next, kind).catch(() => {});
  }
}

/** Shows diameters: what the user chose, else those of the saved label, else of a prediction. */
async function analyse(ticket) {
  const found = frameOf(), pick = get("qca-which"), turn = ++state.turn;
  if (state.playing) return;
  const list = [...(found.saved && found.layers.includes("frame") ? ["label"] : []), ...found.qca];
  const which = [state.curve, ...list].find((w) => list.includes(w));
  pick.replaceChildren(...list.map((w) => new Option(nameOfCurve(w, found), w, false, w === which)));
  get("qca-which-row").hidden = list.length < 2 && which !== "label";
  get("qca-note").textContent = NOTES[which === "label" ? "label" : "prediction"];
  if (!which) return diameters.show(null, "");
  if (which === "label") diameters.show(null, "Measuring the saved mask …"); // a large one takes seconds
  let shown;
  try {
    shown = [await api.qca(state.case, state.frame, which), ""];
  } catch (error) {
    shown = [null, error.message];
  }
  // Another frame, or another curve, may have been asked for meanwhile.
  if (ticket === state.asked && turn === state.turn) diameters.show(...shown);
}

// ---------------------------------------------------------------- what the page says

/** Title, list and slider of the case. */
function bar() {
  const found = state.data.cases[state.case], { frames } = found, frame = frames[state.frame];
  get("title").textContent = found.id;
  get("title").title = [found.id, ...found.notes].join("\n");
  document.title = `${found.id} – CM-UNet viewer`;
  if (cases.current !== state.case || !get("cases").childElementCount) cases.select(state.case);
  get("scrub").hidden = frames.length < 2;
  Object.assign(get("frame"), { max: Math.max(0, frames.length - 1), value: state.frame });
  const words = frame ? `${state.frame + 1} of ${frames.length}` : "";
  get("frame-value").textContent = frame && frame.index !== state.frame ? `${words}, frame ${frame.index + 1}` : words;
  get("frame").setAttribute("aria-valuetext", `frame ${words}`);
  get("picture").setAttribute("aria-label", `${found.id}${frames.length > 1 ? `, frame ${words}` : ""}`);
}

/** The choices of masks. */
function fill() {
  const { shown } = state, option = (c) => new Option(nameOf(c, shown.two), c), found = others(shown);
  get("start").replaceChildren(...choices(shown).map(option));
  get("start").value = shown.edit.from;
  // Of two checkpoints one wants to see the other; of a corrected mask what it was.
  const wanted = [state.against, "prediction-b", "prediction-a", "label"].find((c) => found.includes(c)) ?? "";
  get("against").replaceChildren(...found.map(option));
  get("against").value = state.against = wanted;
  get("compare-none").hidden = Boolean(wanted);
  get("compare-some").hidden = !wanted;
}

/** Buttons that depend on the mask. */
function controls() {
  const edit = state.shown?.edit, saved = state.shown?.found.saved;
  get("undo").disabled = !edit?.done;
  get("redo").disabled = !edit || edit.done === edit.strokes.length;
  get("save").disabled = !edit || state.shown.blind; // a label needs its picture
  get("badge").hidden = !(edit?.changed || saved);
  get("badge").textContent = edit?.changed ? "not saved" : "saved";
  get("badge").classList.toggle("warn", Boolean(edit?.changed));
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", button.dataset.tool === stage.tool);
  }
  for (const button of document.querySelectorAll("[data-mode]")) {
    button.setAttribute("aria-pressed", button.dataset.mode === state.mode);
  }
}

const percent = (id) => (get(`${id}-value`).textContent = `${get(id).value} %`, get(id).value / 100);

/** Draws what the controls say. */
function draw() {
  const swipe = state.mode === "swipe" && Boolean(state.against);
  get("swipe-row").hidden = !swipe;
  stage.divider = percent("swipe");
  const fade = percent("mask-fade"), probabilityFade = percent("probability-fade");
  const level = +get("level").value, wide = +get("width").value;
  get("level-value").textContent = level;
  get("width-value").textContent = wide;
  controls();
  if (!state.shown) return;
  const { shown, against } = state, { edit, layers, height, width } = shown;
  const compared = against && state.mode !== "one";
  const shared = { height, width, grey: layers.frame.pixels, table: windowed(level, wide), fade, probabilityFade, outline: get("outline").checked };
  const first = { ...shared, mask: edit.mask, probability: probabilityOf(shown, edit.from), tint: FIRST, other: null };
  let looks = [first];
  if (compared && state.mode === "difference") first.other = maskOf(shown, against);
  else if (compared) looks = [first, { ...first, mask: maskOf(shown, against), probability: probabilityOf(shown, against), tint: SECOND }];
  stage.show(looks, compared ? state.mode : "one", state.fit);
  state.fit = false;
  compare();
}

/** Draws once for all that sliders said since the screen was last painted. */
function soon() {
  if (state.drawing) return;
  state.drawing = true;
  requestAnimationFrame(() => {
    state.drawing = false;
    draw();
  });
}

/** Says which of two pictures is which, and how far their masks agree. */
function compare() {
  const { shown, against, mode } = state, apart = against && ["side", "swipe"].includes(mode);
  if (against) writeAgreement(get("agreement"), shown, against);
  get("caption-a").hidden = get("caption-b").hidden = !apart;
  get("frame-box").classList.toggle("stacked", Boolean(stage.panes[1]?.top));
  get("caption-a").textContent = nameOfEdit(shown);
  get("caption-b").textContent = apart ? nameOf(against, shown.two) : "";
}

// ---------------------------------------------------------------- painting and saving

function paint(kind, from, to) {
  const edit = state.shown?.edit;
  if (!edit) return;
  if (kind === "begin") {
    stop();
    edit.begin();
  }
  if (!edit.open) return;
  if (kind === "end") return edit.end() ? painted() : undefined;
  const value = stage.tool === "paint" ? 1 : 0;
  const box = edit.line([from.x, from.y], [to.x, to.y], stage.brush / 2, value);
  stage.refresh(box);
}

function changed() {
  fill();
  draw();
}

/** After a stroke, whose pixels are drawn already: all of a large picture would take a second. */
function painted() {
  const before = state.against;
  fill();
  if (state.against !== before) return draw();
  controls();
  compare();
}

function undo() {
  pen(false);
  if (state.shown?.edit.undo()) changed();
}

function redo() {
  pen(false);
  if (state.shown?.edit.redo()) changed();
}

function restart(choice) {
  const { shown } = state, { edit, layers } = shown;
  pen(false);
  // A mask that was painted on can be had back by undoing; one that was only looked at need not.
  if (edit.strokes.length) edit.become(maskOf(shown, choice));
  else edit.mask.set(maskOf(shown, choice));
  edit.from = choice;
  if (choice === "label") edit.known = layers.label.label;
  changed();
}

async function save() {
  if (!state.shown || state.shown.blind) return;
  stop();
  pen(false);
  const { shown } = state, { at, index, found, edit } = shown;
  const empty = !edit.mask.includes(1);
  if (empty && !(await ask("Save a label without artery?", `The mask of ${found.name} is empty.`, "Save"))) return;
  const mask = edit.mask.slice(), done = edit.done, words = savedWords(shown);
  try {
    let answer, replace = false, known = edit.known;
    while (!answer) {
      try {
        answer = await api.save(at, index, mask, edit.from, known, replace);
      } catch (error) {
        // There is a label, or another than this page knows of: another tab may have saved one.
        if (error.status !== 409) throw error;
        const reason = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
        if (!(await ask("Replace the saved label?", reason, "Replace"))) return kept(shown, error.label);
        [known, replace] = [error.label, true];
      }
    }
    edit.saved = done;
    edit.known = answer.label;
    found.saved = true;
    say(`${words}: ${state.data.labels}/masks/${answer.saved}.png, ${answer.artery_pixels} px of artery`);
    cases.select(state.case);
    controls();
    state.curve = "label"; // who corrects a mask wants its diameters, not those of the mistake
    if (frameOf() === found) analyse(state.asked);
  } catch (error) {
    say(`Not saved: ${error.message}`);
  }
}

/** After a mask was not saved: shows the label that is there, where it is another than before. */
async function kept(shown, label) {
  const { at, index, found, edit, layers } = shown;
  say("Not saved: the label is as it was.");
  if (label === edit.known) return;
  found.saved = label !== api.NONE;
  if (found.saved) layers.label = await api.layer(at, index, "label").catch(() => layers.label);
  cases.select(state.case);
  if (state.shown !== shown) return;
  if (edit.from === "label" && !edit.strokes.length) restart("label");
  else changed();
  analyse(state.asked);
}

// ---------------------------------------------------------------- the brush without a mouse

function pen(down) {
  if (state.pen && state.shown?.edit.open) paint("end");
  state.pen = down;
}

function moveCursor(dx, dy) {
  if (!state.shown) return;
  const { height, width } = state.shown, step = { x: 0, y: 0, ...(stage.cursor ?? middle()) };
  const to = { x: Math.min(width - 1, Math.max(0, Math.round(step.x) + dx)), y: Math.min(height - 1, Math.max(0, Math.round(step.y) + dy)) };
  if (state.pen) paint("move", { x: Math.round(step.x), y: Math.round(step.y) }, to);
  stage.cursor = to;
  stage.reveal(to);
  hover(to);
}

const middle = () => ({ x: Math.floor(stage.centre.x), y: Math.floor(stage.centre.y) });

function stamp() {
  if (!stage.cursor) moveCursor(0, 0);
  if (state.pen) return;
  paint("begin", stage.cursor, stage.cursor);
  paint("end");
  say(`${stage.tool === "paint" ? "Painted" : "Erased"} at row ${Math.round(stage.cursor.y)}, column ${Math.round(stage.cursor.x)}`);
}

function penDown() {
  if (!stage.cursor) moveCursor(0, 0);
  const down = !state.pen;
  pen(down);
  if (down) paint("begin", stage.cursor, stage.cursor);
  say(down ? "Brush down: arrows paint" : "Brush up");
}

/** What lies under the pointer or the brush. */
function hover(place) {
  stage.cursor = place ?? (state.pen ? stage.cursor : null);
  stage.draw();
  const { shown } = state;
  get("readout").textContent = shown && place ? reading(shown, Math.round(place.x), Math.round(place.y)) : "";
}

// ---------------------------------------------------------------- runs, zoom, tools

const go = (step) => open(state.case, state.frame + step);
const goCase = (step) => open(state.case + step, 0);

function stop() {
  if (!state.playing) return;
  state.playing = false;
  analyse(state.asked);
  get("play").setAttribute("aria-label", "Play");
  get("play").classList.remove("on");
}

async function play() {
  const { frames } = state.data.cases[state.case];
  if (state.playing || frames.length < 2) return stop();
  state.playing = true;
  get("qca-which-row").hidden = true;
  diameters.show(null, "Shown when the run stops.");
  get("play").setAttribute("aria-label", "Stop");
  get("play").classList.add("on");
  while (state.playing) {
    const begun = performance.now();
    await open(state.case, (state.frame + 1) % frames.length);
    await new Promise((done) => setTimeout(done, Math.max(0, FILM - performance.now() + begun)));
  }
}

function tool(name) {
  pen(false);
  stage.tool = name;
  if (name !== "look") stop();
  controls();
  stage.draw();
}

function brush(size) {
  stage.brush = Math.min(60, Math.max(1, size));
  get("brush").value = stage.brush;
  get("brush-value").textContent = `${stage.brush} px`;
  stage.draw();
}

function mode(name) {
  state.mode = name;
  draw();
}

const nextMode = () => mode(MODES[(MODES.indexOf(state.mode) + 1) % MODES.length]);

function filter() {
  get("cases-panel").open = true;
  get("filter").focus();
}

const zoomed = () => (get("zoom-value").textContent = `${Math.round(stage.zoom * 100)} %`);

function zoom(factor) {
  if (factor) stage.zoomBy(factor, stage.tool === "look" ? null : stage.cursor);
  else stage.fit();
  zoomed();
}

function setWindow(level, width) {
  get("level").value = level;
  get("width").value = width;
  soon();
}

function arrow(event) {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const [dx, dy] = way.map((step) => step * (event.shiftKey ? 10 : 1));
  if (stage.tool !== "look") moveCursor(dx, dy);
  else if (event.shiftKey) stage.panBy(-dx * 4, -dy * 4);
  else if (dx) go(dx);
  else goCase(dy);
}

function toggle(id, values) {
  if (values) get(id).value = +get(id).value ? 0 : values;
  else get(id).checked = !get(id).checked;
  draw();
}

// ---------------------------------------------------------------- wiring

function wire() {
  const click = (id, act) => get(id).addEventListener("click", act);
  const input = (id, act) => get(id).addEventListener("input", act);
  const acts = {
    help: () => keys.help(), save, undo, redo, play,
    "case-back": () => goCase(-1), "case-next": () => goCase(1),
    "frame-back": () => go(-1), "frame-next": () => go(1),
    "zoom-in": () => zoom(1.25), "zoom-out": () => zoom(0.8), "zoom-fit": () => zoom(),
    "window-reset": () => setWindow(128, 255),
  };
  for (const [id, act] of Object.entries(acts)) click(id, act);
  for (const id of ["mask-fade", "probability-fade", "outline", "level", "width", "swipe"]) input(id, soon);
  input("frame", () => (stop(), open(state.case, +get("frame").value)));
  input("brush", () => brush(+get("brush").value));
  input("start", () => restart(get("start").value));
  input("against", () => (state.against = get("against").value, draw()));
  input("qca-which", () => (state.curve = get("qca-which").value, analyse(state.asked)));
  input("centrelines", marks);
  for (const b of document.querySelectorAll("[data-tool]")) b.addEventListener("click", () => tool(b.dataset.tool));
  for (const b of document.querySelectorAll("[data-mode]")) b.addEventListener("click", () => mode(b.dataset.mode));
  addEventListener("beforeunload", (event) => {
    if ([...state.edits.values()].some((edit) => edit.changed)) event.preventDefault();
  });
  // On a narrow screen the list would push the picture away.
  const narrow = matchMedia("(max-width: 899px)"), fold = () => (get("cases-panel").open = !narrow.matches);
  narrow.addEventListener("change", fold);
  fold();
}

function marks() {
  stage.marks = diameters.marks(get("centrelines").checked);
  stage.draw();
}

async function start() {
  stage = new Stage(get("picture"), {
    paint, hover, moved: zoomed,
    window: (dx, dy) => setWindow(+get("level").value - dy, Math.max(1, +get("width").value + dx)),
    divided: (share) => (get("swipe").value = Math.round(share * 100), soon()),
  });
  diameters = new Diameters({ segment: marks, place: (place) => (diameters.pointed = true, stage.reveal(place), marks()) });
  try {
    state.data = await api.cases();
  } catch (error) {
    get("title").textContent = "Nothing to show";
    return trouble(error.message);
  }
  const acts = { arrow, play, stamp, penDown, tool, undo, redo, save, go, goCase, zoom, toggle, nextMode, setWindow, filter };
  acts.resize = (step) => brush(stage.brush + step);
  acts.help = () => keys.help();
  keys = new Keys(commands(acts, () => stage.tool === "look", () => stage.tool !== "look"));
  cases = new Cases(state.data, { open: (at) => open(at, 0), leave: () => get("picture").focus() });
  const { checkpoints } = state.data, two = "b" in checkpoints;
  get("checkpoints").replaceChildren(...Object.entries(checkpoints).map(([which, name]) => Object.assign(document.createElement("li"), { textContent: `${nameOf(`prediction-${which}`, two)}: ${name}` })));
  wire();
  brush(6);
  const [at, frame] = api.place();
  await (at < state.data.cases.length ? open(at, frame) : open(0, 0));
}

start();
