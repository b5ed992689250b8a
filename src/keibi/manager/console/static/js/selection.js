// Choosing rows of a list: a bar appears that says how many are chosen and what can be done with them.

const started = new WeakSet();

export function startSelection(root) {
  root.querySelectorAll("form[data-selection]").forEach((form) => {
    if (started.has(form)) return;
    started.add(form);
    form.addEventListener("change", (event) => {
      if (event.target.matches("[data-select-all]")) {
        boxes(form).forEach((box) => { box.checked = event.target.checked; });
      }
      show(form);
    });
    show(form);
  });
}

const boxes = (form) => [...form.querySelectorAll("input[data-select]")];

function show(form) {
  const all = boxes(form);
  const chosen = all.filter((box) => box.checked).length;
  const bar = form.querySelector("[data-selection-bar]");
  bar.hidden = chosen === 0;
  bar.querySelector("[data-selection-count]").textContent = String(chosen);
  const master = form.querySelector("[data-select-all]");
  if (master) {
    master.checked = chosen > 0 && chosen === all.length;
    master.indeterminate = chosen > 0 && chosen < all.length;
  }
}
