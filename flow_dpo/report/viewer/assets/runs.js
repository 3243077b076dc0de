// The first page: what is looked at, a table a kind, and the curves of the runs that are ticked.
//
//   #/?runs=quickstart,lag&y=learn/answer/margin&x=tokens
//
// Invariant: a number is a source's own fact; one that is not known is a dash. Which runs are ticked, the metric and the
// axis are in the hash.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  view.pages ??= {};
  const { h, fmt } = view;
  const TICKED_AT_FIRST = 6;
  const ROWS_AT_FIRST = 40;

  const two = (first, second) => [h("span", null, first), second && h("span", { class: "second" }, second)];
  const words = (...parts) => parts.filter((part) => part !== null && part !== undefined && part !== "").join(" \u00b7 ");

  /** The state of a source: a breathing dot while it goes on, words otherwise; nothing where it is simply finished. */
  view.state = (source) => {
    if (source.indexed < 1) return h("span", { class: "state" }, `reading ${Math.floor(100 * source.indexed)}\u00a0%`);
    if (source.state === "going on") return h("span", { class: "state live" }, h("span", { class: "live-dot" }), "going on");
    return source.state === "interrupted" ? h("span", { class: "state ungraded" }, "interrupted") : null;
  };

  /** The change of a run's accuracy since its start, in percentage points, coloured by its sign. */
  view.change = (facts) => {
    if (!fmt.known(facts.accuracy) || !fmt.known(facts.accuracy_at_start)) return view.NOTHING;
    const change = facts.accuracy - facts.accuracy_at_start;
    return h("span", { class: change > 0.0005 ? "right" : change < -0.0005 ? "wrong" : null, title: "percentage points" }, fmt.points(change));
  };

  const nameCell = (source) => {
    const link = h("a", { class: "name", href: view.to.list(source.id) }, view.line(source.name, 80));
    const more = words(source.facts.recipe, source.facts.preset);
    return [h("span", { class: "name-line" }, link, view.state(source)), more && h("span", { class: "second" }, view.line(more))];
  };

  const accuracy = (facts) => two(fmt.share(facts.accuracy), fmt.known(facts.low) ? fmt.interval(facts.low, facts.high) : null);

  const of = (part, whole) => two(fmt.count(part), fmt.known(whole) && whole !== part ? `of ${fmt.count(whole)}` : null);

  // Columns of each kind: what stands in the head, whether it is a number, and a cell of a source.
  const COLUMNS = {
    run: [
      ["run", false, nameCell],
      ["model, data", false, ({ facts }) => two(view.line(facts.model, 60), view.line(facts.dataset, 60))],
      ["problems", true, ({ facts }) => of(facts.problems_seen, facts.num_problems)],
      ["accuracy", true, ({ facts }) => accuracy(facts)],
      ["change", true, ({ facts }) => view.change(facts)],
      ["pairs", true, ({ facts }) => two(fmt.count(facts.pairs), facts.scored ? `${fmt.count(facts.scored)} scored` : null)],
      ["updates", true, ({ facts }) => fmt.count(facts.updates)],
      ["tokens", true, ({ facts }) => fmt.compact(facts.tokens_sampled)],
      ["time", true, ({ facts }) => fmt.seconds(facts.seconds)],
    ],
    evaluation: [
      ["evaluation", false, nameCell],
      ["who", false, ({ facts }) => two(view.line(facts.who, 60), facts.decoding && view.line(facts.decoding, 60))],
      ["data", false, ({ facts }) => view.line(facts.dataset, 60)],
      ["accuracy", true, ({ facts }) => accuracy(facts)],
      ["problems", true, ({ facts }) => fmt.count(facts.num_problems)],
      ["draws", true, ({ facts }) => fmt.count(facts.num_draws)],
      ["ungraded", true, ({ facts }) => fmt.count(facts.ungraded)],
    ],
    traces: [
      ["traces", false, nameCell],
      ["made by", false, ({ facts }) => view.line(facts.source, 60)],
      ["data", false, ({ facts }) => view.line(facts.dataset, 60)],
      ["traces", true, ({ facts }) => of(facts.num, facts.problems)],
      ["tokens", true, ({ facts }) => fmt.compact(facts.tokens_sampled)],
      ["time", true, ({ facts }) => fmt.seconds(facts.seconds)],
    ],
    judgements: [
      ["judgements", false, nameCell],
      ["data", false, ({ facts }) => view.line(facts.dataset, 60)],
      ["A better", true, ({ facts }) => fmt.count(facts.wins_a)],
      ["B better", true, ({ facts }) => fmt.count(facts.wins_b)],
      ["ties", true, ({ facts }) => fmt.count(facts.ties)],
    ],
  };
  const TITLES = { run: "Runs", evaluation: "Evaluations", traces: "Traces", judgements: "Judgements" };

  class RunsPage {
    constructor(root, route) {
      this.params = route.params;
      this.all = new Set();
      this.tables = h("div");
      this.curves = h("section", { class: "curves", "aria-label": "Curves" });
      this.panel = view.curvesPanel(this.curves, { get: () => this.params, set: (changes) => this.write(changes) });
      root.append(h("div", { class: "page-head" }, h("h1", null, view.line(view.known().title, 120)), (this.count = h("p", { class: "muted" }))), this.tables);
      this.draw();
      this.stop = [view.onChange(() => this.draw()), this.keys()];
    }

    keys() {
      const move = (by) => {
        const links = [...this.tables.querySelectorAll("a.name")];
        const at = links.indexOf(document.activeElement);
        links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + by))]?.focus();
      };
      return view.keys([
        { keys: ["j", "ArrowDown"], words: "next row", run: () => move(1) },
        { keys: ["k", "ArrowUp"], words: "row before", run: () => move(-1) },
        { keys: ["l", "ArrowRight"], words: "open it", run: () => document.activeElement.closest("a.name")?.click() },
      ]);
    }

    write(changes) {
      for (const [key, value] of Object.entries(changes)) value === null ? this.params.delete(key) : this.params.set(key, value);
      view.setParams(this.params);
    }

    runs() {
      return view.known().sources.filter((source) => source.kind === "run");
    }

    ticked() {
      const written = this.params.get("runs");
      const ids = written === null ? this.runs().slice(0, TICKED_AT_FIRST).map((source) => source.id) : written.split(",");
      return new Set(ids.filter((id) => view.source(id)));
    }

    tick(id, on) {
      const ticked = this.ticked();
      if (on) ticked.add(id);
      else ticked.delete(id);
      this.write({ runs: [...ticked].join(",") });
      this.drawCurves();
    }

    draw() {
      const { sources } = view.known();
      const kinds = Object.keys(COLUMNS).filter((kind) => sources.some((source) => source.kind === kind));
      const focused = document.activeElement?.dataset?.key;
      this.count.textContent = kinds.map((kind) => fmt.plural(sources.filter((source) => source.kind === kind).length, kind.replace(/s$/, ""))).join(", ");
      const parts = kinds.map((kind) => this.section(kind, sources.filter((source) => source.kind === kind), kinds.length > 1));
      if (this.runs().length) parts.splice(kinds.indexOf("run") + 1, 0, this.curves);
      view.replace(this.tables, parts.length ? parts : view.failure(new Error("No run, trace, evaluation or judgement stands at the paths given."), "Nothing here yet"));
      if (focused) this.tables.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
      this.drawCurves();
    }

    section(kind, sources, titled) {
      const shown = this.all.has(kind) ? sources : sources.slice(0, ROWS_AT_FIRST);
      const rest = sources.length - shown.length;
      const more = () => {
        this.all.add(kind);
        this.draw();
      };
      const button = rest > 0 && h("button", { type: "button", class: "button", onclick: more }, `show all ${fmt.count(sources.length)}`);
      const heading = h("h2", { class: titled ? null : "spoken", id: `kind-${kind}` }, TITLES[kind]);
      return h("section", { class: "sources", "aria-labelledby": `kind-${kind}` }, heading, this.table(kind, shown), button);
    }

    // Roles are named because a phone shows rows as cards, by another `display`, which would take them away.
    table(kind, sources) {
      const columns = COLUMNS[kind];
      const box = kind === "run" && h("th", { role: "columnheader", class: "tick-cell" }, view.spoken("shown in the curves"));
      const heads = columns.map(([name, number]) => h("th", { role: "columnheader", scope: "col", class: number ? "num" : null }, name));
      const rows = sources.map((source) => this.row(kind, source, columns));
      return h("table", { class: `sources-table of-${kind}`, role: "table" }, h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, box, heads)), h("tbody", { role: "rowgroup" }, rows));
    }

    row(kind, source, columns) {
      const cells = columns.map(([name, number, cell], place) =>
        place === 0
          ? h("th", { role: "rowheader", scope: "row", class: "name-cell" }, cell(source))
          : h("td", { role: "cell", class: number ? "num" : "words", dataset: { label: name } }, h("span", { class: "cell" }, cell(source))));
      return h("tr", { role: "row", class: kind === "run" ? this.look(source).class : null }, kind === "run" && this.tickCell(source), cells);
    }

    look(source) {
      const place = this.runs().indexOf(source);
      return { class: `role-${place % 6}`, dash: Math.floor(place / 6) % 4 };
    }

    tickCell(source) {
      const input = h("input", { type: "checkbox", checked: this.ticked().has(source.id), dataset: { key: `tick-${source.id}` }, "aria-label": `${source.name} in the curves`, onchange: (event) => this.tick(source.id, event.target.checked) });
      return h("td", { role: "cell", class: "tick-cell" }, h("label", null, input));
    }

    drawCurves() {
      const ticked = this.ticked();
      const sources = this.runs().filter((source) => ticked.has(source.id)).map((source) => ({ source, ...this.look(source) }));
      this.panel.show(sources);
    }

    update(route) {
      this.params = route.params;
      this.draw();
    }

    cleanup() {
      this.stop.forEach((stop) => stop());
      this.panel.close();
    }
  }

  view.pages.runs = { render: (root, route) => new RunsPage(root, route) };
})();
