// What the server is asked. The token came in the address behind '#', which no request carries.

const KEPT = "cmunet-viewer-token";
const ROOM = 192 * 2 ** 20; // bytes of pixels that are kept for scrubbing back and forth

function session() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem(KEPT, given); // for a reload of this tab, and of no other
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEPT) ?? "";
}

const token = session();

/** An answer that is no success; `status` and the reason that the server gives. */
export class Refusal extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
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
  let reason = answer.statusText;
  if (answer.headers.get("content-type")?.includes("json")) reason = (await answer.json()).reason;
  throw new Refusal(answer.status, reason);
}

export const cases = async () => (await ask("/api/cases")).json();

const layers = new Map(); // path -> promise of pixels, the least used first
let held = 0;

/** Pixels of a layer: {pixels: Uint8Array of height × width, height, width}. */
export function layer(at, frame, kind) {
  const path = `/api/layer/${at}/${frame}/${kind}`;
  const known = layers.get(path);
  if (known) {
    layers.delete(path);
    layers.set(path, known);
    return known;
  }
  const asked = ask(path).then(async (answer) => {
    const [height, width] = answer.headers.get("x-shape").split(",").map(Number);
    const pixels = new Uint8Array(await answer.arrayBuffer());
    asked.size = pixels.length;
    held += pixels.length;
    for (const [old, promise] of layers) {
      if (held <= ROOM || layers.size <= 8) break;
      held -= promise.size ?? 0;
      layers.delete(old);
    }
    return { pixels, height, width };
  });
  layers.set(path, asked);
  asked.catch(() => layers.delete(path)); // the next time it is asked for anew
  return asked;
}

/** Forgets a layer that has changed. */
export function forget(at, frame, kind) {
  const path = `/api/layer/${at}/${frame}/${kind}`;
  held -= layers.get(path)?.size ?? 0;
  layers.delete(path);
}

export const qca = async (at, frame, which) => (await ask(`/api/qca/${at}/${frame}/${which}`)).json();

/** Saves a mask of 0 and 1 as the label of a frame. */
export async function save(at, frame, mask, from, replace) {
  const query = `?from=${from}${replace ? "&replace=yes" : ""}`;
  return (await ask(`/api/label/${at}/${frame}${query}`, { method: "POST", body: mask })).json();
}
