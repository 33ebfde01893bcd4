// Shows a candidate of the charts: under the pointer, by arrow keys, and pinned by a click.
(() => {
  const panel = document.getElementById("candidate");
  const candidates = JSON.parse(document.getElementById("candidates").textContent);
  const all = [...document.querySelectorAll(".plot .candidate")];
  const start = document.querySelector(".scatter .chosen").dataset.candidate;
  let shown = null, pinned = null; // candidates; each has a mark in every scatter plot
  const mark = (candidate, css, on) => {
    for (const one of all) {
      if (one.dataset.candidate !== candidate) continue;
      one.classList.toggle(css, on);
      if (on && one.points) one.parentNode.append(one); // a line over the others
    }
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
  const cost = ([params, macs, ...others]) => // words that each of thousands has stand here once
    [`${params} parameters`, `${macs} MACs without relative position`, ...others].join(", ");
  const show = (candidate) => {
    if (candidate === shown) return;
    mark(shown, "shown", false);
    mark(shown = candidate, "shown", true);
    const c = candidates[candidate];
    panel.replaceChildren(line(c.score, "big"), line(cost(c.costs)), line(c.shape), line(c.origin, "soft"), architecture(c));
  };
  const pin = (candidate) => {
    mark(pinned, "pinned", false);
    pinned = candidate === pinned ? null : candidate; // a second click lets go
    mark(pinned, "pinned", true);
    show(pinned ?? start);
  };
  // Pixels from a mark to a place in its chart, x and y in pixels; of a line, how far it is above or below.
  const toCircle = (one, x, y) => Math.hypot(one.cx.baseVal.value - x, one.cy.baseVal.value - y);
  const toLine = (one, x, y, width) => {
    const last = one.points.length - 1, place = Math.min(Math.max(x / width, 0), 1) * last;
    const left = Math.min(Math.floor(place), last - 1), share = place - left;
    return Math.abs((1 - share) * one.points[left].y + share * one.points[left + 1].y - y);
  };
  for (const plot of document.querySelectorAll(".scatter, .parallel")) {
    const marks = [...plot.querySelectorAll(".candidate")], isLines = plot.classList.contains("parallel");
    const nearest = (event) => {
      const box = plot.firstElementChild.getBoundingClientRect(), away = isLines ? toLine : toCircle;
      return marks.reduce((best, one) => {
        const d = away(one, event.clientX - box.left, event.clientY - box.top, box.width);
        return d < best.d ? { candidate: one.dataset.candidate, d } : best;
      }, { candidate: null, d: isLines ? 20 : 40 }).candidate;
    };
    plot.addEventListener("pointermove", (event) => { if (!pinned) show(nearest(event) ?? start); });
    plot.addEventListener("pointerleave", () => show(pinned ?? start));
    plot.addEventListener("click", (event) => pin(nearest(event)));
    const sorted = isLines ? marks : [...marks].sort((a, b) => a.cx.baseVal.value - b.cx.baseVal.value);
    const ordered = sorted.map((one) => one.dataset.candidate); // lines by score, chosen ones last
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
