// A mask that is painted on: strokes of a round brush, and their undoing.

/** What a stroke is kept as: the pixels that it changed, so that undoing is the same as doing. */
export class Edit {
  constructor(mask, height, width, from, known) {
    this.mask = mask.slice();
    this.height = height;
    this.width = width;
    this.from = from; // prediction-a, prediction-b, label or empty
    this.known = known; // as of api.save: the label that there was when this mask was begun or saved
    this.strokes = [];
    this.done = 0; // how many strokes are in the mask
    this.saved = 0; // how many were when it was saved; -1: no longer to be had by undoing
    this.open = null;
  }

  get changed() {
    return this.done !== this.saved;
  }

  begin() {
    this.open = new Set();
  }

  /** Sets all pixels within `radius` of the line to `value`; returns the box that it lies in. */
  line([x0, y0], [x1, y1], radius, value) {
    const { mask, width, height, open } = this;
    const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius));
    const right = Math.min(width - 1, Math.ceil(Math.max(x0, x1) + radius));
    const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius));
    const bottom = Math.min(height - 1, Math.ceil(Math.max(y0, y1) + radius));
    const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        // Distance from the centre of the pixel, (x, y) itself, to the nearest point of the line.
        const t = length ? Math.min(1, Math.max(0, ((x - x0) * dx + (y - y0) * dy) / length)) : 0;
        const ex = x - x0 - t * dx, ey = y - y0 - t * dy, at = y * width + x;
        if (ex * ex + ey * ey <= radius * radius && mask[at] !== value) {
          mask[at] = value;
          if (open.has(at)) open.delete(at);
          else open.add(at);
        }
      }
    }
    return { left, top, right, bottom };
  }

  /** Ends a stroke; false where it changed nothing. */
  end() {
    const stroke = this.open;
    this.open = null;
    if (!stroke?.size) return false;
    this._keep(Uint32Array.from(stroke));
    return true;
  }

  /** Makes the mask another, as one stroke that can be undone. */
  become(other) {
    const stroke = [];
    for (let at = 0; at < other.length; at++) if (other[at] !== this.mask[at]) stroke.push(at);
    this.mask.set(other);
    if (stroke.length) this._keep(Uint32Array.from(stroke));
  }

  _keep(stroke) {
    if (this.saved > this.done) this.saved = -1;
    this.strokes.splice(this.done, Infinity, stroke);
    this.done++;
  }

  _toggle(stroke) {
    for (const at of stroke) this.mask[at] ^= 1;
  }

  undo() {
    if (!this.done) return false;
    this._toggle(this.strokes[--this.done]);
    return true;
  }

  redo() {
    if (this.done === this.strokes.length) return false;
    this._toggle(this.strokes[this.done++]);
    return true;
  }
}
