// Shows a candidate of the scatter plots: under the pointer, by arrow keys, and pinned by a click.
(() => {
  const panel = document.getElementById("candidate");
  const candidates = JSON.parse(document.getElementById("candidates").textContent);
  const all = [...document.querySelectorAll(".scatter .candidate")];
  const start = document.querySelector(".scatter .chosen").dataset.candidate;
  let shown = null, pinned = null; // candidates; each has a mark in every plot
  const mark = (candidate, css, on) => {
    for (const one of all) if (one.dataset.candidate === candidate) one.classList.toggle(css, on);
  };

  const line = (text, css = "") => Object.assign(document.createElement("p"), { textContent: text, className: css });
  const span = (css = "", text = "") => Object.assign(document.createElement("span"), { className: css, textContent: text });
  const size = { depth: +panel.dataset.depth, heads: +panel.dataset.heads, ratio: +panel.dataset.ratio };
  const block = (c, index) => {
    const row = span(index < c.heads.length ? "block" : "block absent");
    const heads = span("heads"), ratio = span("ratio"), filled = span("on");
    for (let head = 0; head < size.heads; head++) heads.append(span(head < c.heads[index] ? "on" : ""));
    filled.style.width = `${100 * (c.ratios[index] ?? 0) / size.ratio}%`;
    ratio.append(filled);
    row.append(span("", index + 1), heads, span("", c.heads[index] ?? "–"), ratio, span("", c.ratios[index] ?? "–"));
    return row;
  };
  const architecture = (c) => {
    const drawn = Object.assign(document.createElement("div"), { className: "mini" }), head = span("block head");
    head.append(span(), span("", "heads"), span(), span("", "MLP ratio"), span());
    drawn.append(head, ...Array.from({ length: size.depth }, (_, index) => block(c, index)));
    return drawn;
  };
  const show = (candidate) => {
    if (candidate === shown) return;
    mark(shown, "shown", false);
    mark(shown = candidate, "shown", true);
    const c = candidates[candidate];
    panel.replaceChildren(line(c.score, "big"), line(c.cost), line(c.shape), line(c.origin, "soft"), architecture(c));
  };
  const pin = (candidate) => {
    mark(pinned, "pinned", false);
    pinned = candidate === pinned ? null : candidate; // a second click lets go
    mark(pinned, "pinned", true);
    show(pinned ?? start);
  };
  for (const plot of document.querySelectorAll(".scatter")) {
    const marks = [...plot.querySelectorAll(".candidate")];
    const nearest = (event) => {
      const box = plot.firstElementChild.getBoundingClientRect();
      const distance = (one) => Math.hypot(
        one.cx.baseVal.value - (event.clientX - box.left), one.cy.baseVal.value - (event.clientY - box.top));
      return marks.reduce((best, one) => {
        const d = distance(one);
        return d < best.d ? { candidate: one.dataset.candidate, d } : best;
      }, { candidate: null, d: 40 }).candidate;
    };
    plot.addEventListener("pointermove", (event) => { if (!pinned) show(nearest(event) ?? start); });
    plot.addEventListener("pointerleave", () => show(pinned ?? start));
    plot.addEventListener("click", (event) => pin(nearest(event)));
    const ordered = [...marks].sort((a, b) => a.cx.baseVal.value - b.cx.baseVal.value).map((one) => one.dataset.candidate);
    plot.tabIndex = 0;
    plot.addEventListener("keydown", (event) => {
      const at = ordered.indexOf(shown), last = ordered.length - 1;
      const to = { ArrowRight: at < last ? at + 1 : 0, ArrowLeft: at > 0 ? at - 1 : last, Home: 0, End: last }[event.key];
      if (event.key === "Escape") pin(null);
      if (to === undefined) return;
      event.preventDefault();
      if (ordered[to] !== pinned) pin(ordered[to]);
    });
  }
  show(start);
})();
