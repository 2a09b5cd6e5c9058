"use strict";
(() => {
  // columns sort by their data-key; numbers before words, what is unknown last
  const value = (cell) => {
    const key = cell.dataset.key;
    return key === "" || key === undefined ? null : isNaN(key) ? key : Number(key);
  };
  const order = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th"), body = head.closest("table").tBodies[0];
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...body.rows].map((row) => [value(row.cells[head.cellIndex]), row]);
      keyed.sort(([a], [b]) => (down && a !== null && b !== null ? order(b, a) : order(a, b)));
      body.append(...keyed.map(([, row]) => row));
    });
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.closest(".source").querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        getSelection().selectAllChildren(code);
        document.execCommand("copy");
        getSelection().removeAllRanges();
      }
      button.textContent = "copied";
      setTimeout(() => (button.textContent = "copy"), 1600);
    });
  }

  // the titles inside charts, shown at once and under a finger too
  const tip = document.createElement("div");
  tip.className = "tooltip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const show = (event) => {
    const holder = event.target.closest("svg .at, svg .tip, svg .mark");
    if (!holder) return void (tip.hidden = true);
    const title = holder.querySelector(":scope > title");
    if (title) {
      holder.dataset.tip = title.textContent;
      holder.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    if (!holder.dataset.tip) return void (tip.hidden = true);
    tip.textContent = holder.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), edge = 8;
    const right = event.clientX + 16, above = event.clientY - box.height - 12;
    const room = document.documentElement.clientWidth - edge;
    tip.style.left = `${Math.max(edge, right + box.width > room ? event.clientX - box.width - 16 : right)}px`;
    tip.style.top = `${above < edge ? event.clientY + 18 : above}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });
})();
