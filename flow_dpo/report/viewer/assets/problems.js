// The list of a source's items: problems of a run, answers of an evaluation, traces, judgements.
//
//   #/s/quickstart?role=answer&flipped=1&sort=-examples
//
// Invariant: the list shows what the hash says, and rows that arrive while somebody reads move nothing: in a list by
// time they are added at the end and changed ones drawn in their place, in any other order a button offers them.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  view.pages ??= {};
  const { h, fmt } = view;
  const NARROW = "(max-width: 760px)";
  const [WIDE_ROW, NARROW_ROW] = [40, 68];
  const MOST_KEPT = 50;

  // The position in each list, by its hash, for the way back from an item.
  const stood = new Map();

  class ProblemsPage {
    constructor(root, route) {
      Object.assign(
        this,
        { root, source: view.source(route.source), filters: view.filtersOf(route.params), cursor: null, facets: {} },
      );
      this.narrow = window.matchMedia(NARROW);
      this.facts = h("dl", { class: `source-facts of-${this.source.kind}` });
      this.count = h("p", { class: "list-count", role: "status" });
      this.fresh = h("button", { type: "button", class: "button fresh", hidden: true, onclick: () => this.open() });
      this.problem = h("div");
      const head = h(
        "div", { class: "page-head" }, h("h1", null, view.line(this.source.name, 120)), (this.state = h("span"))
      );
      const bar = h("div", { class: "filters" });
      this.bar = view.filterBar(
        bar, { kind: this.source.kind, get: () => this.filters, set: (filters) => this.filter(filters) }
      );
      this.table();
      root.append(
        head, this.facts, bar, h("div", { class: "list-head" }, this.count, this.fresh), this.problem, this.grid
      );
      this.list = view.virtualList(
        this.body,
        {
          height: this.height(),
          make: (place) => this.make(place),
          load: (params, offset, limit) => view.get("items", { ...params, offset, limit }),
          onerror: (error) => this.failed(error),
          print: (row) => JSON.stringify({ ...row, batch: null }), // which is not shown
        },
      );
      this.resized = () => this.list.setHeight(this.height());
      this.narrow.addEventListener("change", this.resized);
      this.leaving = () => history.replaceState({ stood: this.place() }, ""); // where a reloaded page begins
      window.addEventListener("scrollend", this.leaving);
      this.stop = [view.onChange((ids) => this.changed(ids)), view.keys(this.keys())];
      this.drawFacts();
      this.restore();
    }

    height() {
      return this.narrow.matches ? NARROW_ROW : WIDE_ROW;
    }

    // ---- The table -------------------------------------------------------------------------------------------------
    table() {
      this.heads = view.itemColumns(this.source.kind).map((column) => {
        const words = [column.words, column.spoken && view.spoken(column.spoken)];
        const inside = column.sort
          ? h(
            "button",
            { type: "button", onclick: () => this.sortBy(column.sort) },
            words,
            h("span", { class: "arrow", "aria-hidden": "true" }),
          )
          : words;
        const title = view.MEANING[this.source.kind][column.words];
        return { column, element: h("span", { role: "columnheader", class: `cell-${column.name}`, title }, inside) };
      });
      const head = h(
        "div",
        { role: "row", class: "item list-columns", "aria-rowindex": "1" },
        this.heads.map(({ element }) => element),
      );
      this.body = h("div", { role: "rowgroup", class: "items", onclick: (event) => this.clicked(event) });
      const props = {
        role: "grid",
        class: `grid of-${this.source.kind}`,
        tabindex: "0",
        "aria-label": `Items of ${this.source.name}`,
        "aria-readonly": "true",
        onfocus: () => this.cursor === null && this.grid.matches(":focus-visible") && this.move(this.list.seen().first),
      };
      this.grid = h("div", props, h("div", { role: "rowgroup", class: "grid-head" }, head), this.body);
    }

    make(place) {
      const roles = () => this.source.facts.roles ?? [];
      const row = view.itemRow({ source: this.source, roles, sort: () => this.filters.sort ?? "time" }, place);
      const fill = (position, item) => {
        row.fill(position, item);
        if (item) view.list.places.set(item.n, position);
        this.markRow(row.element, position);
      };
      return { element: row.element, fill };
    }

    markRow(element, position) {
      const on = position === this.cursor;
      element.setAttribute("aria-selected", String(on));
      if (on) this.grid.setAttribute("aria-activedescendant", element.id);
    }

    drawHeads() {
      const sort = this.filters.sort ?? "time";
      for (const { column, element } of this.heads) {
        if (column.name === "tokens") element.querySelector("button").firstChild.textContent = sort.endsWith("margin")
          ? "margin"
          : "tokens";
        const by = column.sort && sort.replace(/^-/, "") === column.sort;
        element.classList.toggle("sorted", Boolean(by) && sort !== "time");
        if (by) element.setAttribute("aria-sort", sort.startsWith("-") ? "descending" : "ascending");
        else element.removeAttribute("aria-sort");
        if (column.sort) element.querySelector(".arrow").textContent = by && sort !== "time"
          ? (sort.startsWith("-") ? "\u2193" : "\u2191")
          : "";
      }
    }

    // By time there are two orders; by any other column a third click returns to time.
    sortBy(name) {
      const { sort, ...filters } = this.filters;
      const next = name === "time" ? { undefined: "-time" } : { [`-${name}`]: name, [name]: null };
      const chosen = sort in next || `${sort}` in next ? next[`${sort}`] : name === "time" ? null : `-${name}`;
      this.filter(chosen ? { ...filters, sort: chosen } : filters);
    }

    // A column that no row fills is left out; the one for examples has room for each role.
    drawColumns() {
      const hasSubject = Object.keys(this.facets.subjects ?? {}).length > 0;
      this.grid.classList.toggle("no-subject", !hasSubject);
      const roles = Math.max(1, this.source.facts.roles?.length ?? 0, Object.keys(this.facets.roles ?? {}).length);
      const width = ({ name, width: own }) => (
        name === "examples" ? `${Math.min(220, Math.max(72, 44 * roles))}px` : own
      );
      const columns = this.heads.map(({ column }) => column).filter(({ name }) => hasSubject || name !== "subject");
      this.grid.style.setProperty("--columns", columns.map(width).join(" "));
    }

    drawFacts() {
      const { facts, kind } = this.source;
      const list = {
        run: [
          ["accuracy", fmt.share(facts.accuracy), fmt.known(facts.low) && fmt.interval(facts.low, facts.high)],
          ["change", view.change(facts), "points"],
          [
            "problems",
            fmt.count(facts.problems_seen),
            fmt.known(facts.num_problems) && `of ${fmt.count(facts.num_problems)}`,
          ],
          ["pairs", fmt.count(facts.pairs), facts.scored && `${fmt.count(facts.scored)} scored`],
          ["updates", fmt.count(facts.updates)], [
            "tokens", fmt.compact(facts.tokens_sampled), "sampled",
          ], ["time", fmt.seconds(facts.seconds)],
        ],
        evaluation: [
          ["accuracy", fmt.share(facts.accuracy), fmt.known(facts.low) && fmt.interval(facts.low, facts.high)],
          [
            "problems", fmt.count(facts.num_problems),
          ], ["draws", fmt.count(facts.num_draws)], ["ungraded", fmt.count(facts.ungraded)],
        ],
        traces: [
          ["traces", fmt.count(facts.num), fmt.known(facts.problems) && `of ${fmt.count(facts.problems)} problems`],
          ["tokens", fmt.compact(facts.tokens_sampled)],
          ["time", fmt.seconds(facts.seconds)],
        ],
        judgements: [
          ["A better", fmt.count(facts.wins_a)], ["B better", fmt.count(facts.wins_b)], ["ties", fmt.count(facts.ties)],
        ],
      }[kind];
      const told = ["recipe", "preset", "who", "decoding", "model", "dataset"].filter((key) => facts[key]);
      const made = (words) => told.map(words).join(" \u00b7 ");
      const short = made((key) => view.shortFact(this.source, key));
      view.replace(
        this.state,
        view.state(this.source),
        " ",
        h("span", { class: "muted", title: made((key) => facts[key]) }, view.text(short, { limit: 400 })),
      );
      view.replace(
        this.facts,
        list.map(
          ([name, value, more]) => h(
            "div",
            null,
            h("dt", { title: view.MEANING[kind][name] }, name),
            h("dd", null, h("span", { class: "source-fact" }, value), more && h("span", { class: "muted" }, more)),
          )
        ),
      );
    }

    // ---- Rows ------------------------------------------------------------------------------------------------------
    // In any order but by time, the list keeps to its first items, so no row moves while somebody reads. In a
    // static copy nothing is added, and its items are only some of the numbered ones.
    async asked() {
      const params = { ...this.filters, source: this.source.id };
      if (!params.sort || view.isStatic) return params;
      const last = await view.get("items", { source: this.source.id, sort: "-time", limit: 1 });
      const pin = last.rows.length ? last.rows[0].n + 1 : 0;
      return { ...params, to: view.bounded(Math.min, pin, params.to) };
    }

    async open({ position = 0, scroll = null } = {}) {
      this.fresh.hidden = true;
      this.bar.show(this.facets);
      this.drawHeads();
      view.list.open(this.source.id, this.filters);
      let answer;
      try {
        const params = await this.asked();
        view.list.pin = params.sort ? (params.to ?? null) : null;
        answer = await this.list.open(params, position);
      } catch (error) {
        if (!this.closed) this.failed(error, true);
        return;
      }
      if (!answer || this.closed) return;
      this.failed(null);
      this.facets = answer.facets ?? {};
      this.bar.show(this.facets);
      this.drawColumns();
      this.drawCount(answer.total, answer.all);
      if (scroll !== null) window.scrollTo(0, scroll);
      else if (this.grid.getBoundingClientRect().top < 0) this.grid.scrollIntoView();
    }

    drawCount(total, all) {
      const noun = view.noun(this.source.kind);
      this.count.textContent = total === all
        ? fmt.plural(all, noun)
        : `${fmt.count(total)} of ${fmt.plural(all, noun)}`;
      if (view.isStatic && this.source.num_items > all) this.count.append(
        ` \u00b7 this copy holds ${fmt.count(all)} of ${fmt.count(this.source.num_items)}`
      );
      this.grid.setAttribute("aria-rowcount", String(total + 1));
      this.grid.classList.toggle("empty", total === 0);
      const why = all === 0 ? "The file has no rows yet." : "No row matches these filters.";
      if (total === 0) view.replace(this.problem, h("p", { class: "message" }, why));
    }

    failed(error, whole = false) {
      this.isLost = whole;
      if (error === null) this.problem.replaceChildren();
      else view.replace(
        this.problem,
        view.failure(error, whole ? "This list could not be shown" : "Some rows did not load; trying again"),
      );
      if (whole) this.grid.classList.add("empty");
    }

    filter(filters) {
      this.filters = filters;
      this.cursor = null;
      this.grid.removeAttribute("aria-activedescendant");
      view.setParams(filters);
      this.open();
    }

    async changed(ids) {
      const source = view.source(this.source.id);
      if (!source || !ids.has(this.source.id)) return;
      this.source = source;
      this.drawFacts();
      if (this.list.total === 0 || this.isLost) await this.open();
      else await this.follow().catch((error) => this.failed(error));
    }

    // Also with as many rows as before: examples are read after their trees, and a run can be started again.
    async follow() {
      const { filters } = this;
      const now = await view.get("items", { ...filters, source: this.source.id, offset: 0, limit: 1 });
      if (this.closed || filters !== this.filters) return;
      if (!filters.sort) {
        this.list.refresh(now.total);
        this.drawCount(now.total, now.all);
        this.facets = now.facets ?? this.facets;
        this.bar.show(this.facets);
        this.drawColumns();
        return;
      }
      const added = now.total - this.list.total;
      if (added <= 0 && !(await this.list.isOutdated())) return;
      this.fresh.textContent = added > 0 ? `${fmt.count(added)} new` : "show what changed";
      this.fresh.hidden = filters !== this.filters;
    }

    // ---- Keys and the cursor ---------------------------------------------------------------------------------------
    keys() {
      return [
        {
          keys: ["j", "ArrowDown"],
          words: "next row",
          run: () => this.move(this.cursor === null ? this.list.seen().first : this.cursor + 1),
        },
        {
          keys: ["k", "ArrowUp"],
          words: "previous row",
          run: () => this.move(this.cursor === null ? this.list.seen().first : this.cursor - 1),
        },
        { keys: ["l", "Enter", "ArrowRight"], words: "open it", run: () => this.openRow() },
        { keys: ["h", "Escape", "ArrowLeft"], words: "back to the runs", run: () => view.go(view.to.runs()) },
        { keys: ["/"], words: "search", run: () => this.bar.search.select() },
        { keys: ["g", "Home"], words: "first row", run: () => this.move(0) },
        { keys: ["G", "End"], words: "last row", run: () => this.move(this.list.total - 1) },
      ];
    }

    move(position) {
      if (!this.list.total) return;
      const before = this.list.element(this.cursor ?? -1);
      this.cursor = Math.max(0, Math.min(this.list.total - 1, position));
      if (before) this.markRow(before, Number(before.dataset.position));
      this.list.reveal(this.cursor, document.getElementById("top").offsetHeight);
      const element = this.list.element(this.cursor);
      if (element) this.markRow(element, this.cursor);
      if (document.activeElement !== this.grid) this.grid.focus({ preventScroll: true });
    }

    openRow() {
      const item = this.cursor === null ? null : this.list.row(this.cursor);
      if (item) view.go(view.to.item(this.source.id, item.n));
    }

    clicked(event) {
      const row = event.target.closest(".item");
      if (!row || event.defaultPrevented || event.target.closest("a")) return;
      this.cursor = Number(row.dataset.position);
      this.openRow();
    }

    // ---- Coming and going ------------------------------------------------------------------------------------------
    key() {
      return view.to.list(this.source.id, this.filters);
    }

    restore() {
      const kept = history.state?.stood;
      const was = stood.get(this.key()) ?? (kept?.key === this.key() ? kept : undefined);
      this.cursor = was?.cursor ?? null;
      const position = was ? Math.max(0, Math.floor(was.top / this.height())) : 0;
      this.open({ position, scroll: was?.scroll ?? null });
      if (this.cursor !== null) this.grid.focus({ preventScroll: true });
    }

    update(route) {
      const filters = view.filtersOf(route.params);
      if (view.to.query(filters) === view.to.query(this.filters)) return;
      this.filters = filters;
      this.cursor = null;
      this.open();
    }

    /** The position in the list. */
    place() {
      const link = document.activeElement?.closest?.(".item")?.dataset.position;
      const cursor = link ? Number(link) : this.cursor;
      return { key: this.key(), scroll: window.scrollY, top: this.list.offset(), cursor };
    }

    cleanup() {
      this.closed = true;
      stood.delete(this.key());
      stood.set(this.key(), this.place());
      window.removeEventListener("scrollend", this.leaving);
      if (stood.size > MOST_KEPT) stood.delete(stood.keys().next().value);
      this.stop.forEach((stop) => stop());
      this.narrow.removeEventListener("change", this.resized);
      this.list.close();
      this.bar.close();
    }
  }

  view.pages.problems = { render: (root, route) => new ProblemsPage(root, route) };
})();
