// The masks that a frame has: two predictions, a saved label, nothing. `shown` is the open frame:
// {layers, edit, height, width, two}, two being whether there are two checkpoints.

import { agreement } from "./pixels.js";

const LAYER = { "prediction-a": "mask-a", "prediction-b": "mask-b", label: "label" };
const NAMES = { "prediction-b": "Checkpoint 2", label: "Saved label", empty: "Nothing", edit: "Your mask" };

/** What the page calls one. */
export function nameOf(choice, two) {
  return choice === "prediction-a" ? (two ? "Checkpoint 1" : "Prediction") : NAMES[choice];
}

/** What the page calls the diameters of 'a', 'b' or 'label'; `found` is the frame. */
export function nameOfCurve(which, found) {
  if (which !== "label") return nameOf(`prediction-${which}`, found.qca.length > 1);
  return found.qca.length ? "Corrected mask" : NAMES.label;
}

/** Choices that the frame has; the first is what painting starts from. */
export function choices({ layers }) {
  return [...["label", "prediction-a", "prediction-b"].filter((c) => layers[LAYER[c]]), "empty"];
}

/** What the painted mask can be compared with. */
export function others(shown) {
  const { edit } = shown;
  return choices(shown).filter((c) => c !== "empty" && (c !== edit.from || edit.strokes.length));
}

/** Pixels of one, 0 or 1. */
export function maskOf(shown, choice) {
  const { layers, height, width } = shown;
  return choice === "empty" ? new Uint8Array(height * width) : layers[LAYER[choice]].pixels;
}

/** Probabilities 0..255 of the checkpoint that made a mask, the first for masks of a person. */
export function probabilityOf({ layers }, choice) {
  return layers[`probability-${choice === "prediction-b" ? "b" : "a"}`]?.pixels ?? null;
}

/** The name of the painted mask. */
export const nameOfEdit = ({ edit, two }) => nameOf(edit.strokes.length ? "edit" : edit.from, two);

/** How to say that the mask is saved: that it is a prediction, which nobody corrected, is told. */
export function savedWords(shown) {
  const { mask } = shown.edit, made = choices(shown).filter((c) => c.startsWith("prediction"));
  const same = (choice) => maskOf(shown, choice).every((value, at) => value === mask[at]);
  return made.some(same) ? "Saved as it was predicted" : "Saved";
}

/** Writes into the list how far the painted mask and another agree. */
export function writeAgreement(list, shown, against) {
  const found = agreement(shown.edit.mask, maskOf(shown, against));
  const first = nameOfEdit(shown).toLowerCase(), second = nameOf(against, shown.two).toLowerCase();
  const rows = [
    ["both", "Both", `${found.both} px`],
    ["first", `Only ${first}`, `${found.first} px`],
    ["second", `Only ${second}`, `${found.second} px`],
    ["", "Dice of the two", found.dice.toFixed(3)],
  ];
  list.replaceChildren(...rows.flatMap(([kind, words, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    if (kind) term.append(Object.assign(document.createElement("i"), { className: `chip ${kind}` }));
    term.append(words);
    text.textContent = value;
    return [term, text];
  }));
}

/** What lies at a pixel, in words. */
export function reading(shown, x, y) {
  const { height, width, layers, edit } = shown;
  if (x < 0 || y < 0 || x >= width || y >= height) return "";
  const at = y * width + x, probability = probabilityOf(shown, edit.from);
  const sure = probability ? ` · probability ${(probability[at] / 255).toFixed(2)}` : "";
  return `row ${y}, column ${x} · grey ${layers.frame.pixels[at]}${sure}`;
}
