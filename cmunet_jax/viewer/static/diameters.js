// The curve of diameters of a segment, the table of segments, and their marks on the picture.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 300, height: 160, left: 30, right: 8, top: 22, bottom: 30 };

const CONTOURS = {
  probability: "Contour: between the pixels, by the probability.",
  mask: "Contour: of the mask’s pixels.",
};

const known = (value) => value !== null && value !== undefined;
const shown = (value, digits) => (known(value) ? value.toFixed(digits) : "–");

function node(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Steps of an axis up to `most` that are easy to read. */
function ticks(most) {
  const raw = most / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= raw);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
}

/** The panel of diameters; on: {place({x, y} | null, segment), segment()}. */
export class Diameters {
  constructor(on) {
    this.on = on;
    this.analysis = null;
    this.segment = null;
    this.at = null;
    const get = (id) => document.getElementById(id);
    this.parts = { none: get("qca-none"), some: get("qca-some"), chart: get("chart"), place: get("chart-place"), why: get("chart-why"), contour: get("chart-contour"), head: get("segments-head"), rows: get("segments") };
    this.parts.chart.addEventListener("pointermove", (event) => this._hover(event));
    this.parts.chart.addEventListener("pointerdown", (event) => this._hover(event));
    this.parts.chart.addEventListener("keydown", (event) => this._key(event));
  }

  /** Shows an analysis, or the reason why there is none. */
  show(analysis, reason) {
    const { none, some } = this.parts, usable = analysis?.segments.length > 0;
    this.analysis = usable ? analysis : null;
    none.hidden = usable;
    some.hidden = !usable;
    if (!usable) {
      none.textContent = reason || (analysis ? "The mask of this frame has no segment." : "No analysis of diameters for this frame.");
      this.segment = null;
      this.on.segment();
      return;
    }
    this.parts.contour.textContent = CONTOURS[analysis.contour] ?? "";
    this.parts.contour.hidden = !(analysis.contour in CONTOURS);
    this._table();
    this.choose(narrowest(analysis));
  }

  choose(segment) {
    this.segment = segment;
    this.at = segment.stenosis_at ?? segment.minimal_at;
    for (const row of this.parts.rows.rows) {
      const chosen = +row.dataset.id === segment.id;
      row.classList.toggle("chosen", chosen);
      row.querySelector("button").setAttribute("aria-pressed", chosen);
    }
    const why = known(segment.percent_diameter_stenosis) ? "" : segment.why_no_stenosis ?? "";
    this.parts.why.textContent = why && `No stenosis given: ${why}`;
    this.parts.why.hidden = !why;
    this._chart();
    this._at(this.at ?? 0, false);
    this.on.segment();
  }

  get unit() {
    return this.analysis.spacing_mm ? "mm" : "px";
  }

  /** Lists along the chosen segment, in millimetres where they are known. */
  _lines() {
    return Object.fromEntries(["position", "diameter", "reference"].map((key) => [key, this.segment[`${key}_${this.unit}`]]));
  }

  _table() {
    const { unit } = this;
    const cell = (name, text) => Object.assign(document.createElement(name), { textContent: text });
    const heads = ["Segment", `Length, ${unit}`, `Minimum, ${unit}`, "Stenosis"].map((text) => cell("th", text));
    heads.forEach((head) => (head.scope = "col"));
    const top = document.createElement("tr");
    top.append(...heads);
    this.parts.head.replaceChildren(top);
    this.parts.rows.replaceChildren(...this.analysis.segments.map((segment) => {
      const row = document.createElement("tr"), name = cell("th", ""), choose = cell("button", `${segment.id}`);
      row.dataset.id = segment.id;
      name.scope = "row";
      choose.setAttribute("aria-label", `Segment ${segment.id}`);
      choose.addEventListener("click", () => this.choose(segment));
      name.append(choose);
      const stenosis = segment.percent_diameter_stenosis;
      const last = cell("td", known(stenosis) ? `${stenosis.toFixed(0)} %` : "–");
      row.append(name, cell("td", shown(segment[`length_${unit}`], 1)), cell("td", shown(segment[`minimal_diameter_${unit}`], unit === "mm" ? 2 : 1)), last);
      return row;
    }));
  }

  /** Draws the curve of the chosen segment. */
  _chart() {
    const { segment, unit } = this, measured = this._lines();
    const { position, diameter, reference } = measured;
    const most = Math.max(1e-6, ...[...diameter, ...reference].filter(known)) * 1.08, end = Math.max(1e-6, position.at(-1) ?? 0);
    const x = (v) => BOX.left + (v / end) * (BOX.width - BOX.left - BOX.right);
    const y = (v) => BOX.height - BOX.bottom - (v / most) * (BOX.height - BOX.top - BOX.bottom);
    this.x = (at) => x(position[at] ?? 0);
    this.y = (at) => y(diameter[at] ?? 0);
    const path = (list) => list.map((v, at) => known(v) ? `${known(list[at - 1]) ? "L" : "M"}${this.x(at).toFixed(1)} ${y(v).toFixed(1)}` : "").join("");
    const text = (at, down, words, anchor) => node("text", { x: at, y: down, "text-anchor": anchor }, words);
    const picture = node("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, "aria-hidden": "true" });
    for (const value of ticks(most)) {
      picture.append(node("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: y(value), y2: y(value) }));
      picture.append(text(BOX.left - 5, y(value) + 3.5, `${+value.toFixed(2)}`, "end"));
    }
    for (const value of ticks(end)) picture.append(text(x(value), BOX.height - BOX.bottom + 13, `${+value.toFixed(2)}`, "middle"));
    picture.append(text(BOX.width - BOX.right, BOX.height - 3, `along the segment, ${unit}`, "end"));
    picture.append(text(0, 11, `diameter, ${unit}`, "start"));
    picture.append(node("path", { class: "reference", d: path(reference) }));
    picture.append(node("path", { class: "curve", d: path(diameter) }));
    this.marker = node("g", {}, node("line", { class: "here", y1: BOX.top, y2: BOX.height - BOX.bottom }), node("circle", { class: "here", r: 3.5 }));
    picture.append(this.marker);
    this.parts.chart.replaceChildren(picture);
    this.parts.chart.setAttribute("aria-valuemax", segment.points.length - 1);
  }

  _at(at, told = true) {
    const { segment, unit } = this, { position, diameter, reference } = this._lines();
    this.at = at;
    const [line, dot] = this.marker.children;
    for (const key of ["x1", "x2"]) line.setAttribute(key, this.x(at));
    dot.setAttribute("cx", this.x(at));
    dot.setAttribute("cy", this.y(at));
    const value = (v) => `${shown(v, unit === "mm" ? 2 : 1)} ${unit}`;
    const beside = known(reference[at]) ? `; reference ${value(reference[at])}` : "";
    const words = `${value(diameter[at])} at ${value(position[at])} of segment ${segment.id}${beside}`;
    this.parts.place.textContent = words;
    this.parts.chart.setAttribute("aria-valuenow", at);
    this.parts.chart.setAttribute("aria-valuetext", words);
    if (told) this.on.place({ x: segment.points[at][1], y: segment.points[at][0] });
  }

  _hover(event) {
    if (!this.segment) return;
    const box = this.parts.chart.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * BOX.width;
    let best = 0;
    this.segment.points.forEach((_, at) => {
      if (Math.abs(this.x(at) - x) < Math.abs(this.x(best) - x)) best = at;
    });
    this._at(best);
  }

  _key(event) {
    const last = this.segment.points.length - 1, step = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: this.at - step, ArrowRight: this.at + step, ArrowDown: this.at - step, ArrowUp: this.at + step, Home: 0, End: last, PageUp: this.at + 10, PageDown: this.at - 10 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation(); // the same keys change the frame elsewhere
    this._at(Math.min(last, Math.max(0, to)));
  }

  /** Marks for the picture: the chosen centreline, its narrowest place and the place of the chart. */
  marks(all) {
    const { analysis, segment } = this;
    if (!analysis || !segment) return [];
    const others = all ? analysis.segments.filter((s) => s !== segment) : [];
    const made = others.map((s) => line(s.points, "#8fd0f5", 1));
    if (all) made.push(line(segment.points, "#ffffff", 1.75));
    if (all && segment.minimal_at !== null) made.push(caliper(segment, segment.minimal_at, "#f0e442", 2));
    if (this.at !== null && (all || this.pointed)) made.push(caliper(segment, this.at, "#ffffff", 2, true));
    return made;
  }
}

/** The segment that one wants to see first: that of the largest stenosis, else the longest. */
function narrowest(analysis) {
  const rank = (s) => [s.percent_diameter_stenosis ?? -1, s.length_px ?? 0];
  return analysis.segments.reduce((best, s) => {
    const [a, b] = [rank(best), rank(s)];
    return b[0] > a[0] || (b[0] === a[0] && b[1] > a[1]) ? s : best;
  });
}

function line(points, colour, width) {
  return (context, at, scale, thick) => {
    context.beginPath();
    points.forEach(([row, column], i) => {
      const { x, y } = at({ x: column, y: row });
      if (i) context.lineTo(x, y);
      else context.moveTo(x, y);
    });
    context.strokeStyle = colour;
    context.lineWidth = width * thick;
    context.stroke();
  };
}

/** A bar across the vessel, as long as its diameter there. */
function caliper(segment, index, colour, width, dot) {
  const { points } = segment;
  const [before, after] = [points[Math.max(0, index - 3)], points[Math.min(points.length - 1, index + 3)]];
  const [dy, dx] = [after[0] - before[0], after[1] - before[1]], length = Math.hypot(dx, dy) || 1;
  const half = (segment.diameter_px[index] ?? 0) / 2, [row, column] = points[index];
  return (context, at, scale, thick) => {
    const ends = [-1, 1].map((side) => at({ x: column + (side * half * -dy) / length, y: row + (side * half * dx) / length }));
    for (const [ink, wide] of [["#000000", width + 2], [colour, width]]) {
      context.strokeStyle = ink;
      context.lineWidth = wide * thick;
      context.beginPath();
      context.moveTo(ends[0].x, ends[0].y);
      context.lineTo(ends[1].x, ends[1].y);
      context.stroke();
    }
    if (!dot) return;
    const { x, y } = at({ x: column, y: row });
    context.beginPath();
    context.arc(x, y, 7 * thick, 0, 2 * Math.PI);
    context.stroke();
  };
}
