// Line numbers beside a text area, and a Tab key that indents. Escape, then Tab, leaves the field.

const started = new WeakSet();

export function startEditors(root) {
  root.querySelectorAll(".editor").forEach((editor) => {
    if (started.has(editor)) return;
    started.add(editor);
    const area = editor.querySelector("textarea");
    const lines = editor.querySelector(".lines");
    let leaving = false;
    const number = () => {
      const count = area.value.split("\n").length;
      lines.textContent = Array.from({ length: count }, (_, index) => index + 1).join("\n");
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight + 4}px`;
    };
    area.addEventListener("input", number);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { leaving = true; return; }
      if (event.key === "Tab" && !event.shiftKey && !leaving) {
        event.preventDefault();
        area.setRangeText("  ", area.selectionStart, area.selectionEnd, "end");
        area.dispatchEvent(new Event("input", { bubbles: true }));
      }
      leaving = false;
    });
    number();
  });
}
