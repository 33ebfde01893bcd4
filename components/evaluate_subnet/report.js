// Shows a candidate of the scatter plot: under the pointer, by arrow keys, and pinned by a click.
(() => {
  const plot = document.querySelector(".scatter"), panel = document.getElementById("candidate");
  const candidates = JSON.parse(document.getElementById("candidates").textContent);
  const marks = [...plot.querySelectorAll(".candidate")];
  const start = plot.querySelector(".chosen");
  let shown = null, pinned = null;

  const line = (text, css = "") => Object.assign(document.createElement("p"), { textContent: text, className: css });
  const row = (name, values, tag = "td") => {
    const tr = document.createElement("tr");
    for (const value of [name, ...values]) tr.append(Object.assign(document.createElement(tag), { textContent: value }));
    return tr;
  };
  const show = (mark) => {
    if (mark === shown) return;
    shown?.classList.remove("shown");
    shown = mark;
    mark.classList.add("shown");
    const c = candidates[mark.dataset.candidate];
    const table = document.createElement("table");
    table.append(row("block", c.heads.map((_, index) => index + 1), "th"), row("heads", c.heads), row("MLP ratio", c.ratios));
    const scroll = Object.assign(document.createElement("div"), { className: "scroll" });
    scroll.append(table);
    panel.replaceChildren(line(c.score, "big"), line(c.cost), line(c.shape), line(c.origin, "soft"), scroll);
  };
  const nearest = (event) => {
    const box = plot.firstElementChild.getBoundingClientRect();
    const distance = (mark) => Math.hypot(
      mark.cx.baseVal.value - (event.clientX - box.left), mark.cy.baseVal.value - (event.clientY - box.top));
    return marks.reduce((best, mark) => {
      const d = distance(mark);
      return d < best.d ? { mark, d } : best;
    }, { mark: null, d: 40 }).mark;
  };
  const pin = (mark) => {
    pinned?.classList.remove("pinned");
    pinned = mark === pinned ? null : mark;
    pinned?.classList.add("pinned");
    show(pinned ?? start);
  };
  plot.addEventListener("pointermove", (event) => { if (!pinned) show(nearest(event) ?? start); });
  plot.addEventListener("pointerleave", () => show(pinned ?? start));
  plot.addEventListener("click", (event) => pin(nearest(event)));
  const ordered = [...marks].sort((a, b) => a.cx.baseVal.value - b.cx.baseVal.value);
  plot.tabIndex = 0;
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = ordered[(ordered.indexOf(shown) + step + ordered.length) % ordered.length];
    if (next !== pinned) pin(next);
  });
  show(start);
})();
