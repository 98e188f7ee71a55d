// Sortable tables and open details in print; the page reads the same without it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column], text = cell.dataset.sort ?? cell.textContent.trim();
        const value = Number(text);
        return text === "" || Number.isNaN(value) ? text : value;
      };
      const order = (a, b) => (typeof a === "number" && typeof b === "number")
        ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      const rows = [...body.rows].sort((a, b) => order(key(a), key(b)) * (down ? -1 : 1));
      body.append(...rows);
    });
  });
}
addEventListener("beforeprint", () => {
  // The full configs inside them stay folded: twenty pages that are in config.json anyway.
  for (const details of document.querySelectorAll("section > details")) details.open = true;
});
