// Which key does what. `app` are the acts of main.js; `looking` and `drawing` say which tool is on.

/** Rows for keys.js: [keys, what they do, act, when]. */
export function commands(app, looking, drawing) {
  const letter = (event) => event.key.toLowerCase();
  return [
    ["ArrowLeft ArrowRight", "look: previous and next frame; with Shift: move the picture", app.arrow, looking],
    ["ArrowUp ArrowDown", "look: previous and next case; with Shift: move the picture", app.arrow, looking],
    ["ArrowLeft ArrowRight ArrowUp ArrowDown", "paint and erase: move the brush; with Shift: by 10 px", app.arrow, drawing],
    ["Space", "look: play and stop", () => app.play(), looking],
    ["Space", "paint and erase: apply the brush", () => app.stamp(), drawing],
    ["Enter", "paint and erase: put the brush down, so that arrows paint, and lift it", () => app.penDown(), drawing],
    ["v Escape", "look", () => app.tool("look")],
    ["p", "paint", () => app.tool("paint")],
    ["e", "erase", () => app.tool("erase")],
    ["[ ]", "smaller and larger brush", (event) => app.resize(event.key === "[" ? -1 : 1)],
    ["z Ctrl+z", "undo; with Shift: redo", (event) => (event.shiftKey ? app.redo() : app.undo())],
    ["y Ctrl+y", "redo", () => app.redo()],
    ["s Ctrl+s", "save the mask as a label", () => app.save()],
    [", .", "previous and next frame", (event) => app.go(event.key === "," ? -1 : 1)],
    ["k j", "previous and next case", (event) => app.goCase(letter(event) === "k" ? -1 : 1)],
    ["+ =", "zoom in", () => app.zoom(1.25)],
    ["-", "zoom out", () => app.zoom(0.8)],
    ["0", "fit the picture", () => app.zoom()],
    ["m", "mask on and off", () => app.toggle("mask-fade", 60)],
    ["b", "probability on and off", () => app.toggle("probability-fade", 70)],
    ["o", "outline of the mask", () => app.toggle("outline")],
    ["c", "next way to compare", () => app.nextMode()],
    ["r", "reset the window", () => app.setWindow(128, 255)],
    ["g", "go to the picture", () => document.getElementById("picture").focus()],
    ["/", "go to the filter", () => app.filter()],
    ["?", "this list", () => app.help()],
  ];
}
