// The switch between light and dark; without it the page follows the system.
"use strict";

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const shown = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = shown === "dark" ? "light" : "dark";
});
