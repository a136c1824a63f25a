"use strict";
// Each header sorts its table's rows: numbers largest first, texts from A to Z, then the reverse.
function sortBy(cell) {
  const numeric = cell.classList.contains("number");
  const orders = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
  const order = cell.getAttribute("aria-sort") === orders[0] ? orders[1] : orders[0];
  for (const other of cell.parentElement.cells) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const own = (row) => row.cells[cell.cellIndex];
  const byText = (a, b) =>
    sign * own(a).textContent.localeCompare(own(b).textContent, "en", { numeric: true });
  const byValue = (a, b) => {
    const [left, right] = [own(a).dataset.value, own(b).dataset.value];
    // Cells without a value come last in either order.
    if (left === undefined || right === undefined) {
      return (left === undefined) - (right === undefined);
    }
    return sign * (Number(left) - Number(right));
  };
  const body = cell.closest("table").tBodies[0];
  body.append(...[...body.rows].sort(numeric ? byValue : byText));
}
for (const title of document.querySelectorAll("th [role=button]")) {
  title.addEventListener("click", () => sortBy(title.parentElement));
  title.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    sortBy(title.parentElement);
  });
}
