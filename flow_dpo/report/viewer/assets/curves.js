// Overlaid curves of runs: one metric large, the most informative others small below it, and the values as a table.
//
//   const curves = view.curvesPanel(host, {get: () => params, set: (changes) => {}});   await curves.show(sources)
//
// Invariant: what is drawn is a source's own numbers, one per batch; a mean over batches is only drawn on request, over
// the pale line of its values.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const SMOOTHED_OVER = 10;
  const MOST_ROWS = 200;
  const X_AXES = ["problems", "updates", "tokens", "hours"];
  const known = (value) => typeof value === "number" && Number.isFinite(value);

  const NAMES = {
    "progressive/window_accuracy": "accuracy, recent problems",
    "progressive/accuracy": "accuracy, all problems so far",
    "progressive/accuracy_graded": "accuracy of graded ones, all so far",
    "progressive/ungraded": "ungraded",
  };

  /** The label of a metric: its name in the file, except for the few that a reader looks for first. */
  const nameOf = (metric) => NAMES[metric] ?? metric;

  const HIDDEN = /^(problems_seen|progressive\/(window_)?(low|high)|progressive\/window_problems)$/;
  const GROUPS = ["progressive", "learn", "stop", "rollout", "flow"];

  /** The group of a metric: "progressive", "learn/answer", ..., "batch" for those without a slash. Pure. */
  const groupOf = (metric) => {
    const parts = metric.split("/");
    if (parts.length === 1) return "batch";
    return parts[0] === "learn" && parts.length > 2 ? `learn/${parts[1]}` : parts[0];
  };

  /** Metrics by group, the most interesting groups first, metrics in the file's order. Pure. */
  const grouped = (metrics) => {
    const groups = new Map();
    for (const metric of metrics) {
      if (HIDDEN.test(metric)) continue;
      const group = groupOf(metric);
      groups.set(group, [...(groups.get(group) ?? []), metric]);
    }
    const rank = (group) => (GROUPS.indexOf(group.split("/")[0]) + GROUPS.length + 1) % (GROUPS.length + 1);
    for (const list of groups.values()) list.sort((a, b) => Number(b in NAMES) - Number(a in NAMES));
    const first = (list) => Number(list.includes("progressive/window_accuracy"));
    return [...groups].sort((a, b) => first(b[1]) - first(a[1]) || rank(a[0]) - rank(b[0]));
  };

  const TELLING = [
    /^progressive\/accuracy$/, /^learn\/[^/]+\/margin$/, /^learn\/[^/]+\/accuracy$/, /^stop\/yes_rate$/,
    /^(pairs|scored)\//, /^rollout\/trunk_tokens$/, /^learn\/[^/]+\/verdict_accuracy$/, /^learn\/[^/]+\/loss$/,
    /^no_answer_rate$/, /^learn\/[^/]+\/grad_norm$/,
    /^learn\/[^/]+\/max_logprob_drift$/, /^tied_trees$/, /^learn\/seconds$/,
  ];

  /** The six most informative metrics present: the first match for each of a list of patterns. Pure. */
  const telling = (metrics, without) => {
    const found = [];
    for (const pattern of TELLING) {
      const metric = metrics.find((name) => pattern.test(name) && name !== without && !found.includes(name));
      if (metric) found.push(metric);
    }
    return found.slice(0, 6);
  };

  const SHARE = /(accuracy|rate|share|clip_fraction)(_graded)?$/;

  /** Whether a metric is a share, by its name and unless a value contradicts it. Pure. */
  const isShare = (metric, lines) =>
    SHARE.test(metric) && lines.every(
      (line) => line.points.every((point) => !known(point.y) || (point.y >= 0 && point.y <= 1))
    );

  /**
   * A source's line of one metric. Pure.
   * @param {object} curves as `curves` answers
   * @param {{metric: string, x: string, smoothed: boolean}} options
   */
  const pointsOf = (curves, { metric, x, smoothed }) => {
    const raw = curves.series[metric] ?? [];
    const values = smoothed ? view.charts.smooth(raw, SMOOTHED_OVER) : raw;
    const interval = metric.match(/^progressive\/(window_)?accuracy$/);
    const bound = (side) => (interval && !smoothed ? curves.series[`progressive/${interval[1] ?? ""}${side}`] : null);
    const [low, high] = [bound("low"), bound("high")];
    return values.map((value, place) => ({
      x: curves.x[x]?.[place] ?? null, y: value ?? null, raw: smoothed ? raw[place] : null,
      low: low?.[place] ?? null, high: high?.[place] ?? null,
      from: curves.batches[place]?.from, to: curves.batches[place]?.to,
    })).filter((point) => known(point.x));
  };

  view.metrics = { grouped, telling, pointsOf, isShare, nameOf };

  const DASHES = [null, "6 4", "2 4", "9 3 2 3"];

  class CurvesPanel {
    constructor(host, { get, set }) {
      Object.assign(this, { host, get, set, sources: [], curves: new Map(), small: [] });
      const { h } = view;
      this.picker = h(
        "select", { class: "select", id: "metric", onchange: () => this.change({ y: this.picker.value }) }
      );
      this.axis = h("div", { class: "segments", role: "group", "aria-label": "Horizontal axis" });
      this.smooth = h(
        "input", { type: "checkbox", onchange: () => this.change({ smooth: this.smooth.checked ? "1" : null }) }
      );
      this.none = h("p", { class: "muted", hidden: true });
      this.controls = h(
        "div",
        { class: "controls" },
        h("label", { class: "field", for: "metric" }, view.spoken("Metric"), this.picker),
        h("span", { class: "field" }, "by", this.axis),
        h("label", { class: "field" }, this.smooth, `mean of ${SMOOTHED_OVER} batches`),
      );
      this.legend = h("ul", { class: "chart-legend" });
      this.big = h("div", { class: "big-chart" });
      this.smalls = h("div", { class: "smalls" });
      this.table = h("div");
      this.values = h("details", { class: "chart-values" }, h("summary", null, "Values"), this.table);
      this.values.addEventListener("toggle", () => this.drawValues());
      this.problem = h("div");
      host.append(
        h("div", { class: "section-head" }, h("h2", null, "Curves"), this.controls),
        this.problem,
        this.none,
        this.legend,
        this.big,
        this.smalls,
        this.values,
      );
      this.chart = view.lineChart(
        this.big,
        {
          label: "Curves of the chosen runs",
          height: 340,
          onopen: (line, point) => this.open(line, point),
          onread: (reading) => this.drawLegend(this.drawn.model, reading),
        },
      );
    }

    close() {
      this.chart.close();
      this.small.forEach(({ chart }) => chart.close());
      this.closed = true;
    }

    change(changes) {
      this.set(changes);
      this.draw();
    }

    open(line, point) {
      if (known(point.from)) view.go(view.to.list(line.id, { from: point.from, to: point.to }));
    }

    /** Loads what is missing or has changed, and draws. `sources`: [{source, class, dash}] */
    async show(sources) {
      this.sources = sources;
      const stale = sources.filter(({ source }) => this.curves.get(source.id)?.stamp !== source.stamp);
      const answers = await Promise.allSettled(stale.map(({ source }) => view.get("curves", { source: source.id })));
      if (this.closed) return;
      this.problem.replaceChildren();
      answers.forEach((answer, place) => {
        const { source } = stale[place];
        if (answer.status === "fulfilled") this.curves.set(source.id, { stamp: source.stamp, value: answer.value });
        else this.problem.append(view.failure(answer.reason, `The curves of ${source.name} could not be read`));
      });
      this.draw();
    }

    shown() {
      return this.sources.filter(({ source }) => this.curves.has(source.id));
    }

    metrics() {
      return [...new Set(this.shown().flatMap(({ source }) => Object.keys(this.curves.get(source.id).value.series)))];
    }

    state() {
      const params = this.get();
      const metrics = this.metrics();
      const asked = [
        "progressive/window_accuracy", "progressive/accuracy", ...grouped(metrics).flatMap(([, list]) => list)
      ];
      const metric = metrics.includes(params.get("y")) ? params.get("y") : asked.find((name) => metrics.includes(name));
      return {
        metric,
        metrics,
        x: X_AXES.includes(params.get("x")) ? params.get("x") : "problems",
        smoothed: params.get("smooth") === "1",
      };
    }

    model(metric, { x, smoothed }) {
      const lines = this.shown().map(({ source, class: name, dash }) => ({
        id: source.id, name: source.name, class: name, dash: DASHES[dash] ?? null, points: pointsOf(
          this.curves.get(source.id).value, { metric, x, smoothed }
        ),
      })).filter((line) => line.points.some((point) => known(point.y)));
      const share = isShare(metric, lines);
      const format = share ? view.fmt.share : view.fmt.figure;
      const formatTick = share
        ? (value) => view.fmt.share(value, Math.abs(100 * value - Math.round(100 * value)) < 1e-6 ? 0 : 1)
        : view.fmt.figure;
      const formatRange = share ? view.fmt.interval : (low, high) => `${format(low)} to ${format(high)}`;
      const formatX = x === "hours" ? (value) => String(Number(value.toPrecision(3))) : view.fmt.compact;
      const bands = lines.length <= 3 && lines.some((line) => line.points.some((point) => known(point.low)));
      return {
        lines,
        format,
        formatTick,
        formatRange,
        formatX,
        nameX: x === "tokens" ? "tokens sampled" : x,
        within: share ? [0, 1] : null,
        bands,
      };
    }

    draw() {
      const state = this.state();
      const empty = !state.metric;
      for (const part of [this.controls, this.legend, this.big, this.smalls, this.values]) part.hidden = empty;
      this.none.hidden = !empty;
      this.none.textContent = this.sources.length
        ? "No values yet: the first ones come with the first batch."
        : "Tick runs above to overlay their curves.";
      if (empty) return;
      this.drawControls(state);
      const model = this.model(state.metric, state);
      this.drawn = { state, model };
      this.drawLegend(model);
      this.chart.show(model);
      this.drawSmalls(state);
      this.drawValues();
    }

    drawControls({ metric, metrics, x, smoothed }) {
      const { h } = view;
      const option = (name) => h("option", { value: name }, nameOf(name));
      if (this.picker.dataset.print !== metrics.join()) {
        view.replace(
          this.picker, grouped(metrics).map(([group, list]) => h("optgroup", { label: group }, list.map(option)))
        );
        this.picker.dataset.print = metrics.join();
      }
      this.picker.value = metric;
      const focused = this.axis.contains(document.activeElement) ? document.activeElement.textContent : null;
      const button = (name) => h(
        "button",
        {
          type: "button",
          "aria-pressed": String(name === x),
          onclick: () => this.change({ x: name === "problems" ? null : name }),
        },
        name,
      );
      view.replace(this.axis, X_AXES.map(button));
      if (focused) [...this.axis.children].find((child) => child.textContent === focused)?.focus();
      this.smooth.checked = smoothed;
    }

    // Without room for names at the lines' ends, they are above the chart, with the crosshair's reading.
    drawLegend(model, reading = null) {
      const { h } = view;
      const latest = (line) => line.points.findLast((point) => known(point.y));
      const read = (line) => (reading?.near.find((one) => one.line === line) ?? { point: latest(line) }).point;
      const item = (line) => h(
        "li",
        { class: line.class },
        h("span", { class: "role-dot" }),
        view.line(line.name, 40),
        h("strong", null, model.format(read(line)?.y)),
      );
      view.replace(
        this.legend, h("li", { class: "chart-legend-head muted" }, reading?.head ?? "latest"), model.lines.map(item)
      );
      this.legend.classList.toggle("many", model.lines.length > 12);
    }

    drawSmalls(state) {
      const { h } = view;
      const metrics = telling(state.metrics, state.metric);
      if (metrics.join() !== this.small.map(({ metric }) => metric).join()) {
        this.small.forEach(({ chart }) => chart.close());
        this.small = metrics.map((metric) => {
          const host = h("span", { class: "small-chart" });
          const value = h("strong");
          const pick = () => {
            this.change({ y: metric });
            this.picker.focus({ preventScroll: true });
            this.big.scrollIntoView({ block: "nearest" });
          };
          const button = h(
            "button",
            { type: "button", class: "small-multiple", title: "show it large", onclick: pick },
            h("span", { class: "small-name" }, h("span", null, nameOf(metric)), value),
            host,
          );
          return { metric, button, value, chart: view.lineChart(host, { label: metric, height: 112, mini: true }) };
        });
        view.replace(this.smalls, this.small.map(({ button }) => button));
      }
      for (const { metric, value, chart } of this.small) {
        const model = this.model(metric, state);
        const lines = model.lines.map(
          (line) => ({ ...line, points: line.points.map((point) => ({ ...point, raw: null })) })
        );
        chart.show({ ...model, lines, bands: false });
        const end = model.lines.length === 1 && model.lines[0].points.findLast((point) => known(point.y));
        value.textContent = end ? model.format(end.y) : "";
      }
    }

    drawValues() {
      if (!this.values.open || !this.drawn) return;
      const { h, fmt } = view;
      const { model } = this.drawn;
      const rows = model.lines.flatMap((line) => {
        const every = Math.ceil(line.points.length / MOST_ROWS);
        return line.points.filter(
          (point, place) => place % every === 0 || place === line.points.length - 1
        ).map((point) =>
          h(
            "tr",
            null,
            h("th", { scope: "row" }, view.line(line.name, 40)),
            h("td", null, `${fmt.count(point.from)} to ${fmt.count(point.to - 1)}`),
            h("td", { class: "num" }, model.formatX(point.x)),
            h("td", { class: "num" }, model.format(point.y)),
            model.bands && h(
              "td", { class: "num" }, known(point.low) ? model.formatRange(point.low, point.high) : view.NOTHING
            ),
          ));
      });
      const heads = [
        "run", "problems", model.nameX, nameOf(this.drawn.state.metric), model.bands && "interval",
      ].filter(Boolean);
      const note = model.lines.some((line) => line.points.length > MOST_ROWS) && h(
        "p", { class: "muted small" }, `About ${MOST_ROWS} values per run; its metrics.jsonl has all of them.`
      );
      const table = h(
        "div",
        { class: "scroller", tabindex: "0", role: "region", "aria-label": "Values" },
        h(
          "table",
          { class: "plain" },
          h("thead", null, h("tr", null, heads.map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, rows),
        ),
      );
      view.replace(this.table, note, table);
    }
  }

  /** The panel of curves within `host`; `get` and `set` read and write the page's parameters y, x and smooth. */
  view.curvesPanel = (host, options) => new CurvesPanel(host, options);
})();
