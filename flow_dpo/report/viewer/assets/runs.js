// The first page: the sources, one table per kind, and the curves of the runs that are ticked.
//
//   #/?runs=quickstart,lag&y=learn/answer/margin&x=tokens&by-run=-accuracy
//
// Invariant: every number is a fact of a source, and an unknown one is a dash. Which runs are ticked, the search, the
// order, the metric and the axis are in the hash.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  view.pages ??= {};
  const { h, fmt } = view;
  const TICKED_AT_FIRST = 6;
  const ROWS_AT_FIRST = 12;
  const CARDS_AT_FIRST = 6;
  const [MOST_OF_PATH, PART] = [80, 20];

  const two = (first, second) => [h("span", null, first), second && h("span", { class: "cell-second" }, second)];
  const words = (...parts) => parts.filter(
    (part) => part !== null && part !== undefined && part !== ""
  ).join(" \u00b7 ");

  /** The state of a source: a pulsing dot while it runs, otherwise words; nothing if it is finished. */
  view.state = (source) => {
    if (source.indexed < 1) return h(
      "span", { class: "source-state" }, `reading ${Math.floor(100 * source.indexed)}\u00a0%`
    );
    if (source.state === "going on" && view.isStatic) return h("span", { class: "source-state" }, "running when copied");
    if (source.state === "going on") return h(
      "span", { class: "source-state live" }, h("span", { class: "live-dot" }), "running"
    );
    return source.state === "interrupted" ? h("span", { class: "source-state ungraded" }, "interrupted") : null;
  };

  /** The change of a run's accuracy since its start, in percentage points, coloured by its sign. */
  view.change = (facts) => {
    const change = changeOf(facts);
    if (change === null) return view.NOTHING;
    return h(
      "span",
      { class: change > 0.0005 ? "right" : change < -0.0005 ? "wrong" : null, title: "percentage points" },
      fmt.points(change),
    );
  };

  // Breaks between the parts of a path, and inside one only if it is long.
  const path = (words, title) => {
    const flat = words.replace(/\s+/gu, " ");
    const shown = flat.length > MOST_OF_PATH ? `${view.cut(flat, MOST_OF_PATH)}\u2026` : flat;
    const part = (text) => [
      h("span", { class: text.length <= PART ? "text whole" : "text" }, view.hostile(text)), h("wbr"),
    ];
    return h("span", { class: "path", title }, shown.split(/(?<= |[^\u2026]\/)/).map(part));
  };

  const nameCell = (source) => {
    const link = h(
      "a",
      { class: "source-name", dataset: { key: `open-${source.id}` }, href: view.to.list(source.id) },
      path(source.name),
    );
    const more = words(source.facts.recipe, source.facts.preset);
    return [
      h("span", { class: "source-name-line" }, link, view.state(source)),
      more && h("span", { class: "cell-second" }, view.line(more)),
    ];
  };

  const of = (part, whole) => two(
    fmt.count(part), fmt.known(whole) && whole !== part ? `of ${fmt.count(whole)}` : null
  );

  const column = (words, value, cell, number = true) => (
    { words, value, cell: cell ?? ((source) => fmt.count(value(source.facts))), number }
  );
  const place = (source, key) => source.facts[key] && path(view.shortFact(source, key), source.facts[key]);
  const text = (words, key, more) => column(
    words,
    (facts) => facts[key],
    (source) => two(place(source, key), more && place(source, more)),
    false,
  );
  const named = (words) => ({ words, value: (facts, source) => source.name, cell: nameCell, number: false });
  const ACCURACY = column(
    "accuracy",
    (facts) => facts.accuracy,
    ({ facts }) => two(fmt.share(facts.accuracy), fmt.known(facts.low) ? fmt.interval(facts.low, facts.high) : null),
  );
  const TOKENS = column("tokens", (facts) => facts.tokens_sampled, ({ facts }) => fmt.compact(facts.tokens_sampled));
  const TIME = column("time", (facts) => facts.seconds, ({ facts }) => fmt.seconds(facts.seconds));
  const changeOf = (facts) => (
    fmt.known(facts.accuracy) && fmt.known(facts.accuracy_at_start) ? facts.accuracy - facts.accuracy_at_start : null
  );

  // Columns of each kind: the heading, the value to sort by, and a source's cell.
  const COLUMNS = {
    run: [
      named("run"),
      text("model, data", "model", "dataset"),
      column("problems", (facts) => facts.problems_seen, ({ facts }) => of(facts.problems_seen, facts.num_problems)),
      ACCURACY,
      column("change", changeOf, ({ facts }) => view.change(facts)),
      column(
        "pairs",
        (facts) => facts.pairs,
        ({ facts }) => two(fmt.count(facts.pairs), facts.scored ? `${fmt.count(facts.scored)} scored` : null),
      ),
      column("updates", (facts) => facts.updates),
      TOKENS,
      TIME,
    ],
    evaluation: [
      named("evaluation"),
      text("who", "who", "decoding"),
      text("data", "dataset"),
      ACCURACY,
      column("problems", (facts) => facts.num_problems),
      column("draws", (facts) => facts.num_draws),
      column("ungraded", (facts) => facts.ungraded),
    ],
    traces: [
      named("traces"),
      text("made by", "source"),
      text("data", "dataset"),
      column("traces", (facts) => facts.num, ({ facts }) => of(facts.num, facts.problems)),
      TOKENS,
      TIME,
    ],
    judgements: [
      named("judgements"),
      text("data", "dataset"),
      column("A better", (facts) => facts.wins_a),
      column("B better", (facts) => facts.wins_b),
      column("ties", (facts) => facts.ties),
    ],
  };

  /** Sources by a column's value, unknown ones last, ties in their order; `by` is "accuracy" or "-accuracy". Pure. */
  const sorted = (sources, by, columns) => {
    const chosen = columns.find(({ words }) => words === by.replace(/^-/, ""));
    if (!chosen) return sources;
    const sign = by.startsWith("-") ? -1 : 1;
    const value = (source) => chosen.value(source.facts, source) ?? null;
    return sources.toSorted((one, other) => {
      const [x, y] = [value(one), value(other)];
      if (x === y) return 0;
      if (x === null || y === null) return x === null ? 1 : -1;
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
  };

  const COUNTED = {
    run: ["run"],
    evaluation: ["evaluation"],
    traces: ["set of traces", "sets of traces"],
    judgements: ["set of judgements", "sets of judgements"],
  };
  const TITLES = { run: "Runs", evaluation: "Evaluations", traces: "Traces", judgements: "Judgements" };

  class RunsPage {
    constructor(root, route) {
      Object.assign(this, { params: route.params, all: new Set(), slots: new Map() });
      this.runs = h("div");
      this.others = h("div");
      this.curves = h("section", { class: "curves", "aria-label": "Curves" });
      this.panel = view.curvesPanel(this.curves, { get: () => this.params, set: (changes) => this.write(changes) });
      this.count = h("p", { class: "muted" });
      this.search = h(
        "input",
        {
          type: "search",
          class: "input search",
          placeholder: "Search",
          "aria-label": "Search by name, recipe, model and data",
          "aria-keyshortcuts": "/",
          oninput: () => this.typed(),
        },
      );
      this.box = h("span", { class: "search-box" }, view.icon("search"), this.search);
      root.append(
        h("div", { class: "page-head" }, h("h1", null, view.line(view.known().title, 120)), this.count, this.box),
        this.runs,
        this.curves,
        this.others,
      );
      this.search.value = this.params.get("q") ?? "";
      this.draw();
      this.stop = [view.onChange(() => this.draw()), this.keys()];
    }

    keys() {
      const move = (by) => {
        const links = [...document.querySelectorAll("#main a.source-name")];
        const at = links.indexOf(document.activeElement);
        links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + by))]?.focus();
      };
      return view.keys([
        { keys: ["j", "ArrowDown"], words: "next row", run: () => move(1) },
        { keys: ["k", "ArrowUp"], words: "previous row", run: () => move(-1) },
        {
          keys: ["l", "ArrowRight"],
          words: "open it",
          run: () => document.activeElement.closest("a.source-name")?.click(),
        },
        { keys: ["/"], words: "search", run: () => !this.box.hidden && this.search.select() },
      ]);
    }

    typed() {
      this.write({ q: this.search.value.trim() || null });
      this.draw();
    }

    write(changes) {
      for (const [key, value] of Object.entries(changes)) value === null
        ? this.params.delete(key)
        : this.params.set(key, value);
      view.setParams(this.params);
    }

    found() {
      const asked = (this.params.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
      const told = ({ name, facts }) => [
        name,
        facts.recipe,
        facts.preset,
        facts.model,
        facts.dataset,
        facts.who,
        facts.decoding,
        facts.source,
      ].filter(Boolean).join("\n").toLowerCase();
      return view.known().sources.filter((source) => asked.every((word) => told(source).includes(word)));
    }

    shown(kind) {
      return sorted(
        this.found().filter((source) => source.kind === kind), this.params.get(`by-${kind}`) ?? "", COLUMNS[kind]
      );
    }

    // Without a choice in the hash, the first runs of the table are overlaid.
    ticked() {
      const written = this.params.get("runs");
      const ids = written === null
        ? this.shown("run").slice(0, TICKED_AT_FIRST).map((source) => source.id)
        : written.split(",");
      const ticked = ids.filter((id) => view.source(id)?.kind === "run");
      for (const id of this.slots.keys()) if (!ticked.includes(id)) this.slots.delete(id);
      for (const id of ticked) {
        const taken = new Set(this.slots.values());
        let slot = 0;
        while (taken.has(slot)) slot += 1;
        if (!this.slots.has(id)) this.slots.set(id, slot);
      }
      return ticked;
    }

    tick(id, on) {
      const others = this.ticked().filter((other) => other !== id);
      this.write({ runs: (on ? [...others, id] : others).join(",") });
      this.draw();
    }

    draw() {
      const { sources } = view.known();
      const kinds = Object.keys(COLUMNS).filter((kind) => sources.some((source) => source.kind === kind));
      const focused = document.activeElement?.dataset?.key;
      this.box.hidden = sources.length <= ROWS_AT_FIRST;
      this.count.textContent = kinds.map(
        (kind) => fmt.plural(sources.filter((source) => source.kind === kind).length, ...COUNTED[kind])
      ).join(", ");
      const ticked = this.ticked();
      const nothing = !kinds.length && view.failure(
        new Error("There is no run, trace, evaluation or judgement at the given paths."), "Nothing here yet"
      );
      this.curves.hidden = !kinds.includes("run");
      view.replace(this.runs, nothing, kinds.includes("run") && this.section("run", kinds.length > 1));
      view.replace(
        this.others, kinds.filter((kind) => kind !== "run").map((kind) => this.section(kind, kinds.length > 1))
      );
      if (focused) document.querySelector(`#main [data-key="${CSS.escape(focused)}"]`)?.focus();
      this.panel.show(ticked.map((id) => ({ source: view.source(id), ...this.look(id) })));
    }

    section(kind, titled) {
      const sources = this.shown(kind);
      const most = window.matchMedia("(max-width: 960px)").matches ? CARDS_AT_FIRST : ROWS_AT_FIRST;
      const shown = this.all.has(kind) ? sources : sources.slice(0, most);
      const more = () => {
        this.all.add(kind);
        this.draw();
      };
      const button = sources.length > shown.length && h(
        "button", { type: "button", class: "button", onclick: more }, `show all ${fmt.count(sources.length)}`
      );
      const heading = h("h2", { class: titled ? null : "spoken", id: `kind-${kind}` }, TITLES[kind]);
      const body = sources.length
        ? [this.table(kind, shown), button]
        : h("p", { class: "muted" }, "Nothing matches the search.");
      return h("section", { class: "sources", "aria-labelledby": `kind-${kind}` }, heading, body);
    }

    // Roles are explicit because a phone shows rows as cards, with another `display` that would remove them.
    table(kind, sources) {
      const box = kind === "run" && h(
        "th", { role: "columnheader", class: "tick-cell" }, view.spoken("shown in the curves")
      );
      const heads = COLUMNS[kind].map((one) => this.head(kind, one));
      const rows = sources.map((source) => this.row(kind, source));
      return h(
        "table",
        { class: `sources-table of-${kind}`, role: "table" },
        h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, box, heads)),
        h("tbody", { role: "rowgroup" }, rows),
      );
    }

    // The first click sorts from the largest, or words from A; the second reverses that, the third ends it.
    head(kind, { words, number }) {
      const by = this.params.get(`by-${kind}`);
      const [first, second] = number ? [`-${words}`, words] : [words, `-${words}`];
      const next = () => {
        this.write({ [`by-${kind}`]: by === first ? second : by === second ? null : first });
        this.draw();
      };
      const arrow = by === words ? "\u2191" : by === `-${words}` ? "\u2193" : "";
      const button = h(
        "button",
        { type: "button", dataset: { key: `by-${kind}-${words}` }, onclick: next },
        words,
        arrow && h("span", { "aria-hidden": "true" }, ` ${arrow}`),
      );
      return h(
        "th",
        {
          role: "columnheader",
          scope: "col",
          class: number ? "num" : null,
          title: view.MEANING[kind][words],
          "aria-sort": arrow && (by.startsWith("-") ? "descending" : "ascending") || null,
        },
        button,
      );
    }

    row(kind, source) {
      const cells = COLUMNS[kind].map(({ words, number, cell }, place) =>
        place === 0
          ? h("th", { role: "rowheader", scope: "row", class: "name-cell" }, cell(source))
          : h(
            "td",
            { role: "cell", class: number ? "num" : "cell-words", dataset: { label: words }, title: view.MEANING[kind][words] },
            h("span", { class: "cell-inside" }, cell(source)),
          ));
      return h(
        "tr", { role: "row", class: this.look(source.id)?.class }, kind === "run" && this.tickCell(source), cells
      );
    }

    // Six colours, then the same again with dashes.
    look(id) {
      const slot = this.slots.get(id);
      return slot === undefined ? null : { class: `role-${slot % 6}`, dash: Math.floor(slot / 6) % 4 };
    }

    tickCell(source) {
      const input = h(
        "input",
        {
          type: "checkbox",
          checked: this.slots.has(source.id),
          dataset: { key: `tick-${source.id}` },
          "aria-label": `${source.name} in the curves`,
          onchange: (event) => this.tick(source.id, event.target.checked),
        },
      );
      return h("td", { role: "cell", class: "tick-cell" }, h("label", null, input));
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
