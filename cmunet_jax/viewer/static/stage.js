// The canvas: where a picture lies on it, what is drawn over it, and what pointers do there.

import { compose } from "./pixels.js";

const MOST = 40; // screen pixels a pixel of the picture
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Shows one or two pictures of equal size, which move together. */
export class Stage {
  /**
   * on: {paint(kind, from, to), hover(place | null), window(dx, dy), moved(), divided(share)}, kind
   * being begin, move or end; places are {x, y} of the picture, a pixel's centre at whole numbers.
   */
  constructor(canvas, on) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.on = on;
    this.pictures = []; // {look, surface, image}
    this.mode = "one";
    this.divider = 0.5;
    this.tool = "look";
    this.brush = 6;
    this.cursor = null; // where the brush is, {x, y}
    this.marks = []; // what is drawn over the picture, see marks.js
    this.size = { width: 0, height: 0 };
    this.zoom = 1;
    this.centre = { x: 0, y: 0 };
    this.pointers = new Map();
    this.dragging = null;
    this.asked = false;
    new ResizeObserver(() => this.fitted()).observe(canvas.parentElement);
    this._listen();
  }

  /** Shows `looks` (see pixels.js); a picture of another size is fitted anew. */
  show(looks, mode, refit) {
    this.mode = mode;
    const { width, height } = looks[0] ?? { width: 0, height: 0 };
    if (refit || width !== this.size.width || height !== this.size.height) {
      this.size = { width, height };
      this.fit();
    }
    this.pictures = looks.map((look, at) => {
      const before = this.pictures[at];
      const same = before?.surface.width === width && before?.surface.height === height;
      const surface = same ? before.surface : Object.assign(document.createElement("canvas"), { width, height });
      const context = surface.getContext("2d");
      const image = same ? before.image : context.createImageData(width, height);
      return { look, surface, context, image };
    });
    this.refresh();
  }

  /** Colours the pixels of `box` anew, all without. */
  refresh(box) {
    for (const { look, context, image } of this.pictures) {
      const all = { left: 0, top: 0, right: look.width - 1, bottom: look.height - 1 };
      // An outline reaches one pixel beyond what was painted.
      const part = box ? {
        left: Math.max(0, box.left - 1), top: Math.max(0, box.top - 1),
        right: Math.min(all.right, box.right + 1), bottom: Math.min(all.bottom, box.bottom + 1),
      } : all;
      compose(image.data, look, part);
      context.putImageData(image, 0, 0, part.left, part.top, part.right - part.left + 1, part.bottom - part.top + 1);
    }
    this.draw();
  }

  fit() {
    this.zoom = 1;
    this.centre = { x: this.size.width / 2, y: this.size.height / 2 };
    this.draw();
  }

  fitted() {
    const { canvas } = this, box = canvas.parentElement.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round(box.height * ratio));
    this.draw();
  }

  /** The parts of the canvas that show the whole view, in its own pixels. */
  get panes() {
    const { width, height } = this.canvas;
    if (this.mode !== "side" || this.pictures.length < 2) return [{ left: 0, top: 0, width, height }];
    // Two pictures lie beside each other, or above each other where the canvas is high.
    return width >= height
      ? [0, 1].map((at) => ({ left: (at * width) / 2, top: 0, width: width / 2, height }))
      : [0, 1].map((at) => ({ left: 0, top: (at * height) / 2, width, height: height / 2 }));
  }

  get scale() {
    const [pane] = this.panes, { width, height } = this.size;
    return width ? Math.min(pane.width / width, pane.height / height) * this.zoom : 1;
  }

  toScreen(place, pane) {
    const { scale, centre } = this;
    return {
      x: pane.left + pane.width / 2 + (place.x + 0.5 - centre.x) * scale,
      y: pane.top + pane.height / 2 + (place.y + 0.5 - centre.y) * scale,
    };
  }

  /** The place of the picture under a point of the page. */
  toPicture(event) {
    const box = this.canvas.getBoundingClientRect(), { scale, centre, panes } = this;
    const x = ((event.clientX - box.left) * this.canvas.width) / box.width;
    const y = ((event.clientY - box.top) * this.canvas.height) / box.height;
    const pane = panes.find((p) => x < p.left + p.width && y < p.top + p.height) ?? panes.at(-1);
    return {
      x: (x - pane.left - pane.width / 2) / scale + centre.x - 0.5,
      y: (y - pane.top - pane.height / 2) / scale + centre.y - 0.5,
    };
  }

  /** Zooms by `factor` about a place of the picture, or about the middle. */
  zoomBy(factor, about) {
    const before = this.scale, fitting = before / this.zoom;
    const zoom = clamp(this.zoom * factor, 0.5, Math.max(1, MOST / fitting));
    const share = this.zoom / zoom;
    this.zoom = zoom;
    if (about) {
      this.centre.x = about.x + 0.5 + (this.centre.x - about.x - 0.5) * share;
      this.centre.y = about.y + 0.5 + (this.centre.y - about.y - 0.5) * share;
    }
    this._bound();
    this.on.moved();
  }

  /** Moves the picture by pixels of the screen. */
  panBy(dx, dy) {
    this.centre.x -= dx / this.scale;
    this.centre.y -= dy / this.scale;
    this._bound();
  }

  /** Brings a place of the picture into view. */
  reveal(place) {
    const [pane] = this.panes, at = this.toScreen(place, pane), room = 24;
    const over = (value, low, size) => value - clamp(value, low + room, low + size - room);
    this.panBy(-over(at.x, pane.left, pane.width), -over(at.y, pane.top, pane.height));
  }

  _bound() {
    this.centre.x = clamp(this.centre.x, 0, this.size.width);
    this.centre.y = clamp(this.centre.y, 0, this.size.height);
    this.draw();
  }

  draw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this._draw();
    });
  }

  _draw() {
    const { context, canvas, panes, scale, mode } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.pictures.length) return;
    context.imageSmoothingEnabled = scale < 2; // single pixels are what one paints
    context.imageSmoothingQuality = "high";
    this.pictures.forEach(({ surface }, at) => {
      const pane = mode === "side" ? panes[at] : panes[0];
      const corner = this.toScreen({ x: -0.5, y: -0.5 }, pane);
      const cut = mode === "swipe" && at === 1 ? canvas.width * this.divider : 0;
      this._clipped({ ...pane, left: pane.left + cut, width: pane.width - cut }, () => {
        context.drawImage(surface, corner.x, corner.y, surface.width * scale, surface.height * scale);
      });
    });
    for (const pane of panes) this._clipped(pane, () => this._over(pane));
    context.fillStyle = "#ffffff";
    if (mode === "swipe") context.fillRect(canvas.width * this.divider - 1, 0, 2, canvas.height);
    if (panes.length > 1) {
      const second = panes[1];
      context.fillStyle = "#3a424c";
      if (second.left) context.fillRect(second.left - 1, 0, 2, canvas.height);
      else context.fillRect(0, second.top - 1, canvas.width, 2);
    }
  }

  _clipped({ left, top, width, height }, draw) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    draw();
    context.restore();
  }

  /** What lies over the picture in one pane: marks, and the ring of the brush. */
  _over(pane) {
    const { context, scale } = this, thick = devicePixelRatio || 1;
    const at = (place) => this.toScreen(place, pane);
    for (const mark of this.marks) mark(context, at, scale, thick);
    if (!this.cursor || this.tool === "look") return;
    const { x, y } = at(this.cursor), radius = Math.max(3 * thick, (this.brush / 2) * scale);
    for (const [colour, line] of [["#000000", 3], [this.tool === "paint" ? "#ffffff" : "#ffb3b3", 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * thick;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.moveTo(x - 3 * thick, y);
      context.lineTo(x + 3 * thick, y);
      context.moveTo(x, y - 3 * thick);
      context.lineTo(x, y + 3 * thick);
      context.stroke();
    }
  }

  _listen() {
    const { canvas } = this, listen = (name, act) => canvas.addEventListener(name, act);
    listen("pointerdown", (event) => this._down(event));
    listen("pointermove", (event) => this._move(event));
    for (const name of ["pointerup", "pointercancel"]) listen(name, (event) => this._up(event));
    listen("pointerleave", () => this._left());
    listen("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), this.toPicture(event));
    }, { passive: false });
  }

  _left() {
    if (this.dragging) return;
    this.on.hover(null);
  }

  _down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (this.pointers.size === 2) return this._pinch();
    const place = this.toPicture(event);
    if (event.button === 2) this.dragging = { kind: "window" };
    else if (this._onDivider(event)) this.dragging = { kind: "divide" };
    else if (this.tool === "look" || event.button === 1) this.dragging = { kind: "pan" };
    else {
      this.dragging = { kind: "paint", place };
      this.on.paint("begin", place, place);
    }
  }

  _onDivider(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.mode === "swipe" && Math.abs(event.clientX - box.left - box.width * this.divider) < 12;
  }

  /** The second finger ends what the first had begun; from here on both move and zoom. */
  _pinch() {
    if (this.dragging?.kind === "paint") this.on.paint("end");
    this.dragging = { kind: "pinch" };
  }

  _move(event) {
    if (this.dragging) this._drag(event);
    this.on.hover(this.toPicture(event)); // after it was moved
    this.canvas.style.cursor = this.tool !== "look" ? "none" : this._onDivider(event) ? "ew-resize" : "";
  }

  _drag(event) {
    const before = this.pointers.get(event.pointerId), place = this.toPicture(event);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY }, ratio = devicePixelRatio || 1;
    const dx = now.x - before.x, dy = now.y - before.y;
    this.pointers.set(event.pointerId, now);
    const { kind } = this.dragging;
    if (kind === "paint") {
      this.on.paint("move", this.dragging.place, place);
      this.dragging.place = place;
    } else if (kind === "pan") this.panBy(dx * ratio, dy * ratio);
    else if (kind === "window") this.on.window(dx, dy);
    else if (kind === "divide") {
      const box = this.canvas.getBoundingClientRect();
      this.on.divided(clamp((now.x - box.left) / box.width, 0, 1));
    } else if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
      const gap = (p) => Math.hypot(p.x - other.x, p.y - other.y) || 1;
      this.panBy((dx / 2) * ratio, (dy / 2) * ratio);
      const middle = { clientX: (now.x + other.x) / 2, clientY: (now.y + other.y) / 2 };
      this.zoomBy(gap(now) / gap(before), this.toPicture(middle));
    }
  }

  _up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.dragging?.kind === "paint") this.on.paint("end");
    if (!this.pointers.size) this.dragging = null;
    if (event.pointerType !== "mouse") this.on.hover(null);
  }
}
