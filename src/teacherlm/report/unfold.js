// The rows of single seeds below a row of several seeds. They are hidden until its button is pressed; without this
// script they are shown.
"use strict";

for (const button of document.querySelectorAll("button.unfold")) {
  const rows = [];
  for (let row = button.closest("tr").nextElementSibling; row?.matches(".member"); row = row.nextElementSibling) {
    rows.push(row);
  }
  const show = (shown) => {
    button.setAttribute("aria-expanded", shown);
    rows.forEach((row) => { row.hidden = !shown; });
  };
  button.addEventListener("click", () => show(button.getAttribute("aria-expanded") === "false"));
  show(false);
}
