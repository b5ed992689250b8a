// What every page needs: menus, dialogs, the palette, copying, and the small courtesies. Listeners are on the document, so
// that parts which HTMX brings later work too.

import { startCharts } from "./chart.js";
import { startEditors } from "./editor.js";
import { startTail } from "./tail.js";
import { startSelection } from "./selection.js";

const token = () => document.querySelector('meta[name="csrf"]')?.content ?? "";

// Every change must show the session's token; forms carry it in a field, HTMX in a header.
document.addEventListener("htmx:config:request", (event) => {
  event.detail.ctx.request.headers["X-Keibi-Csrf"] = token();
});

// Times are shown in the viewer's zone; the server learns it from this cookie until the account names one.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone) document.cookie = `keibi-zone=${encodeURIComponent(zone)}; path=/; max-age=31536000; samesite=lax; secure`;

function openDialog(id) {
  const dialog = document.getElementById(id);
  if (!dialog || dialog.open) return;
  dialog.showModal();
  dialog.querySelector("input:not([type=hidden]), select, textarea")?.focus();
  if (id === "palette") {
    const input = dialog.querySelector("input");
    input.value = "";
    input.dispatchEvent(new CustomEvent("palette-open", { bubbles: true }));
    input.focus();
  }
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  if (opener) return openDialog(opener.dataset.open);
  const closer = event.target.closest("[data-close]");
  if (closer) return closer.closest("dialog")?.close();
  if (event.target instanceof HTMLDialogElement) event.target.close(); // a click on the backdrop
  const copy = event.target.closest("[data-copy]");
  if (copy) return copyText(copy);
  document.querySelectorAll("details.filter[open]").forEach((details) => {
    if (!details.contains(event.target)) details.open = false;
  });
});

async function copyText(button) {
  const source = button.parentElement.querySelector("[data-copy-source]");
  await navigator.clipboard?.writeText(source.textContent);
  button.dataset.copied = "";
  button.classList.add("is-done");
  setTimeout(() => button.classList.remove("is-done"), 1500);
}

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    return openDialog("palette");
  }
  if (event.key === "Escape") document.querySelectorAll("details.filter[open]").forEach((details) => {
    details.open = false;
    details.querySelector("summary").focus();
  });
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !typing) {
    const field = document.querySelector("[data-search-here]");
    event.preventDefault();
    if (field) field.focus();
    else openDialog("palette");
  }
  if (event.target.closest("#palette")) movePalette(event);
  if (event.target.closest(".menu")) moveMenu(event);
});

function movePalette(event) {
  if (event.key === "Escape") {
    // A search field would only empty itself at the first Escape.
    event.preventDefault();
    return document.getElementById("palette").close();
  }
  const options = [...document.querySelectorAll("#palette [role=option]")];
  if (!options.length) return;
  const current = options.findIndex((option) => option.getAttribute("aria-selected") === "true");
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key in steps) {
    event.preventDefault();
    choose(options, (current + steps[event.key] + options.length) % options.length);
  } else if (event.key === "Enter") {
    event.preventDefault();
    options[Math.max(current, 0)].click();
  }
}

function choose(options, index) {
  options.forEach((option, position) => option.setAttribute("aria-selected", String(position === index)));
  options[index].scrollIntoView({ block: "nearest" });
  document.querySelector("#palette input").setAttribute("aria-activedescendant", options[index].id);
}

document.addEventListener("htmx:after:swap", (event) => {
  const options = [...document.querySelectorAll("#palette [role=option]")];
  if (options.length && !options.some((option) => option.getAttribute("aria-selected") === "true")) choose(options, 0);
  start(document);
  void event;
});

function moveMenu(event) {
  const items = [...event.target.closest(".menu").querySelectorAll(".item")];
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  items[(items.indexOf(event.target) + steps[event.key] + items.length) % items.length].focus();
}

// Popovers stand in the top layer, so they are placed by hand below their button.
document.addEventListener("toggle", (event) => {
  const menu = event.target;
  if (!menu.classList?.contains("menu") || event.newState !== "open") return;
  const button = document.querySelector(`[popovertarget="${menu.id}"]`).getBoundingClientRect();
  const width = menu.offsetWidth;
  menu.style.top = `${button.bottom + 6}px`;
  menu.style.left = `${Math.max(8, Math.min(button.left, window.innerWidth - width - 8))}px`;
  menu.querySelector(".item")?.focus();
}, true);

// A file that is chosen is read here and put into a text area; the server gets text only.
document.addEventListener("change", async (event) => {
  const area = document.getElementById(event.target.dataset?.readInto ?? "");
  const [file] = event.target.files ?? [];
  if (!area || !file) return;
  area.value = await file.text();
  area.dispatchEvent(new Event("input", { bubbles: true }));
});

// A filter that is a form sends itself when a choice is made.
document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-submit-on-change]");
  if (form) form.requestSubmit();
});
// Empty fields stay out of the address.
document.addEventListener("submit", (event) => {
  if (event.target.matches("form[data-tidy]")) {
    event.target.querySelectorAll("input, select").forEach((field) => { if (!field.value) field.disabled = true; });
  }
});

// A strip of tabs that is wider than the screen begins where the reader is.
function showCurrentTab(tab) {
  const strip = tab.parentElement;
  strip.scrollLeft = tab.offsetLeft - strip.offsetLeft - (strip.clientWidth - tab.offsetWidth) / 2;
}

function start(root) {
  root.querySelectorAll(".tabs > a[aria-current]").forEach(showCurrentTab);
  startCharts(root);
  startTail(root);
  startEditors(root);
  startSelection(root);
  root.querySelectorAll("[data-toast]").forEach((toast) => setTimeout(() => toast.remove(), 6000));
  root.querySelectorAll("dialog[data-open-now]").forEach((dialog) => { if (!dialog.open) dialog.showModal(); });
}

start(document);
const wanted = location.hash.slice(1);
if (wanted && document.getElementById(wanted) instanceof HTMLDialogElement) openDialog(wanted);
