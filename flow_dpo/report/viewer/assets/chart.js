// A line chart in SVG: few ticks, labels at the lines' ends, intervals as bands, a crosshair for pointer and keyboard.
//
//   const chart = view.lineChart(host, {label: "accuracy", height: 340, onopen: (line, point) => {}});
//   chart.show({lines: [{id, name, class, dash, points: [{x, y, low, high}]}], format, formatX, nameX});
//
// Invariant: the chart is drawn only from its model; a missing value leaves a gap, never a zero.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const known = (value) => typeof value === "number" && Number.isFinite(value);

  const { ticks, domain, spread, nearest, reading } = view.charts;

  // One "M...L..." per stretch without a gap.
  function path(points, toX, toY, of = (point) => point.y) {
    let written = "";
    let open = false;
    for (const point of points) {
      const value = of(point);
      if (known(value) && known(point.x)) {
        const place = `${toX(point.x).toFixed(1)} ${toY(value).toFixed(1)}`;
        written += open ? `L${place}` : `M${place}`;
      }
      open = known(value) && known(point.x);
    }
    return written;
  }

  function band(points, toX, toY) {
    const inside = points.filter((point) => known(point.low) && known(point.high) && known(point.x));
    if (inside.length < 2) return "";
    const corner = (point, value) => `${toX(point.x).toFixed(1)} ${toY(value).toFixed(1)}`;
    const over = inside.map((point) => corner(point, point.high));
    const under = inside.toReversed().map((point) => corner(point, point.low));
    return `M${[...over, ...under].join("L")}Z`;
  }

  class LineChart {
    constructor(host, { label, height, mini = false, onopen = null, onread = null }) {
      Object.assign(this, { host, label, height, mini, onopen, onread, model: null, active: null, width: 0 });
      this.svg = view.s("svg", { class: "chart-svg", "aria-hidden": "true", focusable: "false" });
      this.tip = view.h("div", { class: "chart-tip", hidden: true, role: mini ? null : "status" });
      host.classList.add("chart");
      host.append(this.svg, this.tip);
      if (!mini) this.listen();
      this.observer = new ResizeObserver(() => host.clientWidth !== this.width && this.draw());
      this.observer.observe(host);
    }

    /** Draws a model; the crosshair keeps its point if that is still there. */
    show(model) {
      this.model = model;
      if (this.active && !model.lines.some((line) => line.id === this.active.id)) this.active = null;
      this.draw();
    }

    close() {
      this.observer.disconnect();
      this.host.replaceChildren();
    }

    layout() {
      const { lines, formatTick, bands } = this.model;
      const values = lines.flatMap(
        (line) => line.points.flatMap((point) => (bands ? [point.y, point.low, point.high] : [point.y, point.raw]))
      );
      const [low, high] = domain(values, { within: this.model.within });
      const [first, last] = domain(
        [0, ...lines.flatMap((line) => line.points.filter((point) => known(point.y)).map((point) => point.x))],
        { air: 0 },
      );
      const marks = ticks(low, high, this.mini ? 3 : 5);
      const left = 10 + 7.2 * Math.max(...marks.map((mark) => formatTick(mark).length), 1);
      const named = !this.mini && this.width >= 620 && lines.length <= 12;
      const longest = Math.max(0, ...lines.map((line) => line.name.length));
      const right = named ? Math.min(200, 14 + 8.2 * longest) : this.mini ? 6 : 14;
      const frame = { left, right: this.width - right, top: 10, bottom: this.height - (this.mini ? 20 : 38) };
      const toX = (x) => frame.left + ((x - first) / (last - first || 1)) * (frame.right - frame.left);
      const toY = (y) => frame.bottom - ((y - low) / (high - low || 1)) * (frame.bottom - frame.top);
      return { frame, toX, toY, marks, first, last, named };
    }

    draw() {
      this.width = this.host.clientWidth;
      if (!this.model || !this.width) return;
      this.place = this.layout();
      const { s } = view;
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      this.svg.setAttribute("height", this.height);
      this.cross = s("g", { class: "cross" });
      view.replace(this.svg, this.axes(), this.bands(), this.lines(), this.place.named && this.names(), this.cross);
      if (this.active) this.drawCross();
    }

    axes() {
      const { s } = view;
      const { frame, toX, toY, marks, first, last } = this.place;
      const { formatTick, formatX, nameX } = this.model;
      const rules = marks.map((mark) => [
        s(
          "line",
          {
            class: "rule",
            x1: frame.left,
            x2: frame.right,
            y1: Math.round(toY(mark)) + 0.5,
            y2: Math.round(toY(mark)) + 0.5,
          },
        ),
        s("text", { class: "tick", x: frame.left - 8, y: toY(mark) + 4, "text-anchor": "end" }, formatTick(mark)),
      ]);
      const wanted = this.mini ? 2 : Math.max(2, Math.min(6, Math.floor((frame.right - frame.left) / 90)));
      const below = ticks(first, last, wanted).map((mark) => {
        const anchor = toX(mark) > frame.right - 16 && !this.place.named ? "end" : "middle";
        return s("text", { class: "tick", x: toX(mark), y: frame.bottom + 17, "text-anchor": anchor }, formatX(mark));
      });
      const title = !this.mini && s(
        "text", { class: "tick", x: (frame.left + frame.right) / 2, y: this.height - 4, "text-anchor": "middle" }, nameX
      );
      return s("g", null, rules, below, title);
    }

    bands() {
      if (!this.model.bands) return null;
      const { toX, toY } = this.place;
      return this.model.lines.map(
        (line) => view.s("path", { class: `band ${line.class}`, d: band(line.points, toX, toY) })
      );
    }

    lines() {
      const { toX, toY } = this.place;
      return this.model.lines.map((line) => {
        const raw = line.points.some((point) => known(point.raw)) && path(line.points, toX, toY, (point) => point.raw);
        const alone = line.points.filter(
          (point, at) => known(point.y) && !known(line.points[at - 1]?.y) && !known(line.points[at + 1]?.y)
        );
        const dots = alone.map(
          (point) => view.s(
            "circle", { class: `alone ${line.class}`, cx: toX(point.x), cy: toY(point.y), r: this.mini ? 2 : 3 }
          )
        );
        const main = view.s(
          "path", { class: `curve ${line.class}`, d: path(line.points, toX, toY), "stroke-dasharray": line.dash }
        );
        return [raw && view.s("path", { class: `curve raw ${line.class}`, d: raw }), main, dots];
      });
    }

    // A line that reaches the right edge has its name in the margin, any other at its end.
    names() {
      const { frame, toX, toY } = this.place;
      const ends = this.model.lines.map(
        (line) => ({ line, end: line.points.findLast((point) => known(point.y)) })
      ).filter(({ end }) => end);
      const margin = ends.filter(({ end }) => toX(end.x) > frame.right - 90);
      const heights = spread(margin.map(({ end }) => toY(end.y)), 17, frame.top + 4, frame.bottom);
      const early = this.clusters(
        ends.filter((one) => !margin.includes(one))
      ).map((cluster) => this.earlyNames(cluster));
      return [early, margin.map(({ line, end }, place) => {
        const y = heights[place];
        const lead = Math.abs(y - toY(end.y)) > 6 || toX(end.x) < frame.right - 4;
        const from = { x1: toX(end.x) + 3, y1: toY(end.y), x2: frame.right + 7, y2: y };
        return [lead && view.s("line", { class: `lead ${line.class}`, ...from }), this.name(line, frame.right + 10, y)];
      })];
    }

    // Names of lines that end near one another are spread apart.
    clusters(ends) {
      const { toX, toY } = this.place;
      const found = [];
      for (const one of ends.toSorted((a, b) => toY(a.end.y) - toY(b.end.y))) {
        const near = found.find(
          (cluster) => Math.abs(
            toX(one.end.x) - toX(cluster[0].end.x)
          ) < 90 && toY(one.end.y) - toY(cluster.at(-1).end.y) < 36
        );
        if (near) near.push(one);
        else found.push([one]);
      }
      return found;
    }

    // A single name goes where it covers no curve; several are spread apart.
    earlyNames(cluster) {
      const { frame, toX, toY } = this.place;
      const x = Math.max(...cluster.map(({ end }) => toX(end.x))) + 8;
      const wanted = cluster.map(({ end }) => toY(end.y));
      if (cluster.length === 1) {
        const width = 8.2 * Math.min(24, cluster[0].line.name.length);
        const away = [0, -17, 17, -34, 34].find((by) => this.isFree(x, wanted[0] + by, width));
        return this.name(cluster[0].line, x, wanted[0] + (away ?? 0));
      }
      const heights = spread(wanted, 17, frame.top + 4, frame.bottom);
      return cluster.map(({ line }, place) => this.name(line, x, heights[place]));
    }

    isFree(x, y, width) {
      const { frame, toX, toY } = this.place;
      const beside = (point) => toX(point.x) > x - 4 && toX(point.x) < x + width + 20;
      const under = (point) => known(point.y) && beside(point) && Math.abs(toY(point.y) - y) < 11;
      return y > frame.top && y < frame.bottom && !this.model.lines.some((line) => line.points.some(under));
    }

    name(line, x, y) {
      return view.s(
        "text",
        { class: `end ${line.class}`, x, y: y + 4 },
        line.name.length > 24 ? `${line.name.slice(0, 23)}\u2026` : line.name,
      );
    }

    listen() {
      const { host } = this;
      host.setAttribute("tabindex", "0");
      host.setAttribute("role", "group");
      host.setAttribute("aria-roledescription", "line chart");
      host.setAttribute("aria-label", `${this.label}. Arrow keys read values, Enter opens the problems of a batch.`);
      host.addEventListener("pointermove", (event) => this.point(event));
      host.addEventListener("pointerleave", () => document.activeElement !== host && this.leave());
      host.addEventListener("blur", () => this.leave());
      host.addEventListener("click", (event) => {
        this.point(event);
        if (event.pointerType !== "touch" || this.touched === this.key()) this.open();
        this.touched = this.key();
      });
      host.addEventListener("keydown", (event) => this.press(event));
    }

    key() {
      return this.active && `${this.active.id}/${this.active.place}`;
    }

    leave() {
      this.active = null;
      this.tip.hidden = true;
      this.cross?.replaceChildren();
      this.onread?.(null);
    }

    // The line whose point at the pointer's x is vertically nearest.
    point(event) {
      if (!this.model || !this.place) return;
      const box = this.svg.getBoundingClientRect();
      const { frame, toX, toY, first, last } = this.place;
      const x = first + ((event.clientX - box.left - frame.left) / (frame.right - frame.left)) * (last - first);
      let best = null;
      for (const line of this.model.lines) {
        const place = nearest(line.points, x);
        if (place < 0) continue;
        const point = line.points[place];
        const away = Math.abs(
          toX(point.x) - event.clientX + box.left
        ) + Math.abs(toY(point.y) - event.clientY + box.top);
        if (!best || away < best.away) best = { id: line.id, place, away };
      }
      this.active = best;
      this.drawCross();
    }

    press(event) {
      const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
      if (event.ctrlKey || event.altKey || event.metaKey || !this.model?.lines.length) return;
      if (event.key === "Enter") this.open();
      else if (event.key === "Escape" && this.active) this.leave();
      else if (event.key in moves) this.step(moves[event.key]);
      else if (event.key === "ArrowUp" || event.key === "ArrowDown") this.turn(event.key === "ArrowUp" ? -1 : 1);
      else return;
      event.preventDefault();
      event.stopPropagation();
    }

    step(by) {
      const line = this.line() ?? this.model.lines[0];
      const there = line.points.map((point, place) => place).filter((place) => known(line.points[place].y));
      if (!there.length) return;
      const at = this.active ? there.indexOf(this.active.place) : by > 0 ? -1 : there.length;
      this.active = { id: line.id, place: there[Math.max(0, Math.min(there.length - 1, at + by))] };
      this.drawCross();
    }

    turn(by) {
      const { lines } = this.model;
      const at = lines.indexOf(this.line());
      const line = lines[(at + by + lines.length) % lines.length];
      const place = nearest(line.points, this.line() ? this.line().points[this.active.place].x : this.place.last);
      if (place >= 0) this.active = { id: line.id, place };
      this.drawCross();
    }

    line() {
      return this.active && this.model.lines.find((line) => line.id === this.active.id);
    }

    open() {
      const line = this.line();
      if (line && this.onopen) this.onopen(line, line.points[this.active.place]);
    }

    drawCross() {
      const line = this.line();
      if (!line?.points[this.active.place]) return;
      const { s } = view;
      const { frame, toX, toY } = this.place;
      const at = line.points[this.active.place];
      const x = Math.round(toX(at.x)) + 0.5;
      const near = this.model.lines.map(
        (other) => ({ line: other, point: other === line ? at : reading(other.points, at.x) })
      );
      const dots = near.filter(({ point }) => point).map(
        ({ line: other, point }) => s(
          "circle",
          {
            class: `dot ${other.class}${other === line ? " on" : ""}`,
            cx: toX(point.x),
            cy: toY(point.y),
            r: other === line ? 4.5 : 3,
          },
        )
      );
      view.replace(this.cross, s("line", { class: "hair", x1: x, x2: x, y1: frame.top, y2: frame.bottom }), dots);
      this.drawTip(line, at, near, x);
    }

    drawTip(line, at, near, x) {
      const { h, fmt } = view;
      const { format, formatRange, formatX, nameX } = this.model;
      const rows = near.map(({ line: other, point }) => {
        const interval = known(point?.low) && known(point?.high) && formatRange(point.low, point.high);
        return h(
          "li",
          { class: other.class, "aria-current": other === line ? "true" : null },
          h("span", { class: "role-dot" }),
          h("span", { class: "tip-name" }, view.line(other.name, 40)),
          h("strong", null, format(point?.y)),
          interval && h("span", { class: "muted tip-more" }, interval),
        );
      });
      const where = known(at.from) ? `problems ${fmt.count(at.from)} to ${fmt.count(at.to - 1)}` : "";
      const head = nameX === "problems" ? where : `${formatX(at.x)} ${nameX} \u00b7 ${where}`;
      view.replace(this.tip, h("p", { class: "muted" }, head), h("ul", null, rows));
      this.tip.hidden = false;
      this.tip.classList.toggle("spoken", !this.place.named);
      this.onread?.({ head, near });
      if (!this.place.named) return;
      const room = this.width - this.tip.offsetWidth - 4;
      const left = x + 14 + this.tip.offsetWidth > this.width ? x - 14 - this.tip.offsetWidth : x + 14;
      this.tip.style.transform = `translate(${Math.max(4, Math.min(room, left))}px, ${this.place.frame.top + 4}px)`;
    }
  }

  /**
   * A chart within `host`.
   * @param {HTMLElement} host
   * @param {{label: string, height: number, mini?: boolean, onopen?: (line: object, point: object) => void,
   *   onread?: (reading: {head: string, near: object[]}|null) => void}} options `onread`: where the crosshair stands
   */
  view.lineChart = (host, options) => new LineChart(host, options);
})();
