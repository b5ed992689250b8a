// Events as they arrive. The server sends ready-made rows; the list keeps a bounded number of them.

const started = new WeakSet();
const MAX_ROWS = 200;

export function startTail(root) {
  root.querySelectorAll("[data-tail]").forEach((table) => {
    if (started.has(table)) return;
    started.add(table);
    follow(table);
  });
}

function follow(table) {
  const body = table.querySelector("tbody");
  const status = document.querySelector("[data-tail-status]");
  const source = new EventSource(table.dataset.tail);
  source.addEventListener("open", () => tell("live"));
  source.addEventListener("error", () => tell("lost"));
  source.addEventListener("event", (event) => {
    const holder = document.createElement("template");
    holder.innerHTML = event.data;
    const rows = [...holder.content.querySelectorAll("tr")].reverse();
    for (const row of rows) {
      if (document.getElementById(row.id)) continue;
      row.classList.add("is-new");
      body.prepend(row);
    }
    while (body.rows.length > MAX_ROWS) body.lastElementChild.remove();
    document.querySelectorAll("[data-tail-empty]").forEach((empty) => empty.remove());
    table.hidden = false;
  });
  window.addEventListener("pagehide", () => source.close());
  function tell(state) {
    if (status) status.textContent = status.dataset[state];
    table.dataset.state = state;
  }
}
