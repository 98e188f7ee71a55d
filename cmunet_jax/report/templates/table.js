// Sortable tables and open details in print; the page reads the same without it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = (row) => {
      const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
      const value = Number(text);
      return text === "" || Number.isNaN(value) ? text : value;
    };
    const order = (a, b) => (typeof a === "number" && typeof b === "number")
      ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    // A cell without a value stays at the end whichever way the others go.
    const last = (value) => ["nan", "–", ""].includes(value);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => (last(a) - last(b)) || order(a, b) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
const closed = [];
addEventListener("beforeprint", () => {
  // Configs and lists of files stay folded: dozens of pages that stand in files anyway.
  for (const details of document.querySelectorAll("main details:not([open], .long)")) {
    details.open = true;
    closed.push(details);
  }
});
addEventListener("afterprint", () => {
  for (const details of closed.splice(0)) details.open = false;
});
