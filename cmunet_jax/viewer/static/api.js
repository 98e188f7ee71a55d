// What the server is asked. The token came in the address behind '#', which no request carries.

const KEPT = "cmunet-viewer-token";
const ROOM = 192 * 2 ** 20; // bytes of pixels that are kept for scrubbing back and forth

function session() {
  const given = location.hash.slice(1);
  if (/^[\w-]{16,}$/.test(given)) { // else it is a place, or one of the page's own targets
    sessionStorage.setItem(KEPT, given); // for a reload of this tab, and of no other
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEPT) ?? "";
}

const token = session();

/** Case and frame of the address, [0, 0] if it names none: a reload comes back to them. */
export function place() {
  const found = /^#(\d{1,9})\/(\d{1,9})$/.exec(location.hash);
  return found ? [+found[1], +found[2]] : [0, 0];
}

let noting;

/** Puts case and frame into the address: their numbers, and nothing that says who it is. */
export function note(at, frame) {
  clearTimeout(noting); // browsers refuse many changes of the address in a short time
  noting = setTimeout(() => history.replaceState(null, "", `#${at}/${frame}`), 200);
}

/** An answer that is no success; `status`, the reason that the server gives, the label that is there. */
export class Refusal extends Error {
  constructor(status, reason, label) {
    super(reason);
    this.status = status;
    this.label = label;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { "X-Viewer-Token": token } });
  } catch {
    throw new Refusal(0, "The server does not answer: has the command ended?");
  }
  if (answer.ok) return answer;
  const json = answer.headers.get("content-type")?.includes("json");
  const { reason, label } = json ? await answer.json() : { reason: answer.statusText };
  throw new Refusal(answer.status, reason, label);
}

export const cases = async () => (await ask("/api/cases")).json();

const layers = new Map(); // path -> promise of pixels, the least used first
let held = 0;

/** A layer: {pixels: Uint8Array of height × width, height, width, label: its digest if it is one}. */
export function layer(at, frame, kind) {
  const path = `/api/layer/${at}/${frame}/${kind}`;
  if (kind === "label") return read(path); // another tab may have replaced it
  const known = layers.get(path);
  if (known) {
    layers.delete(path);
    layers.set(path, known);
    return known;
  }
  const asked = read(path).then((found) => {
    asked.size = found.pixels.length;
    held += asked.size;
    for (const [old, promise] of layers) {
      if (held <= ROOM || layers.size <= 8) break;
      held -= promise.size ?? 0;
      layers.delete(old);
    }
    return found;
  });
  layers.set(path, asked);
  asked.catch(() => layers.delete(path)); // the next time it is asked for anew
  return asked;
}

async function read(path) {
  const answer = await ask(path), [height, width] = answer.headers.get("x-shape").split(",").map(Number);
  return { pixels: new Uint8Array(await answer.arrayBuffer()), height, width, label: answer.headers.get("x-label") };
}

export const qca = async (at, frame, which) => (await ask(`/api/qca/${at}/${frame}/${which}`)).json();

/** What stands for the digest of a label where there is none. */
export const NONE = "none";

/**
 * Saves a mask of 0 and 1 as the label of a frame. `known` is the digest of the label that this page
 * knows of, or NONE; null where there is one that it could not read.
 */
export async function save(at, frame, mask, from, known, replace) {
  const query = `?from=${from}${known ? `&known=${known}` : ""}${replace ? "&replace=yes" : ""}`;
  return (await ask(`/api/label/${at}/${frame}${query}`, { method: "POST", body: mask })).json();
}
