// The filters of a list: fields, chips for the active ones, and the hash parameters that they stand for.
//
//   {role: "answer", depth: "2", flipped: "1"}   <->   #/s/quickstart?role=answer&depth=2&flipped=1
//
// Invariant: only the hash decides what is filtered and sorted; a field shows it and writes it.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt, icon } = view;
  const TYPED_MS = 250;

  const EXAMPLES = [["pair", "with a pair"], ["scored", "with a scored completion"], ["none", "without an example"]];
  const counted = (counts, words = String) => Object.entries(counts ?? {}).map(
    ([key, count]) => [key, `${words(key)} (${fmt.count(count)})`]
  );
  const depths = (facets) => (
    fmt.known(facets.max_depth)
      ? Array.from({ length: Math.min(200, facets.max_depth) + 1 }, (_, depth) => [String(depth), String(depth)])
      : []
  );

  // kinds: for which sources; options: [value, words] from the facets; without options it is a text field.
  const FILTERS = [
    { key: "role", words: "role", kinds: "run", options: (facets) => counted(facets.roles) },
    { key: "depth", words: "depth", kinds: "run", options: depths },
    {
      key: "status",
      words: "verdict",
      kinds: "run evaluation judgements",
      options: (facets) => counted(facets.statuses, view.statusWords),
    },
    { key: "examples", words: "examples", kinds: "run", options: () => EXAMPLES },
    {
      key: "flipped",
      words: "flipped",
      title: "an alternative's verdict differs from the trunk's",
      kinds: "run",
      toggle: true,
    },
    { key: "ungraded", words: "ungraded", title: "at least one rollout has no verdict", kinds: "run", toggle: true },
    { key: "version", words: "version", kinds: "run", hint: "3 or 3-9", size: 6 },
    { key: "from", words: "items from", kinds: "run evaluation traces judgements", hint: "0", size: 4, number: true },
    {
      key: "to",
      words: "to",
      title: "the first item to leave out",
      kinds: "run evaluation traces judgements",
      hint: "end",
      size: 4,
      number: true,
    },
    {
      key: "level",
      words: "level",
      kinds: "run evaluation traces judgements",
      options: (facets) => counted(facets.levels),
    },
    {
      key: "subject",
      words: "subject",
      kinds: "run evaluation traces judgements",
      options: (facets) => counted(facets.subjects),
    },
  ];
  const SORTS = [
    ["time", "oldest first", ""], ["-time", "newest first", ""], [
      "accuracy", "least often right", "run",
    ], ["-accuracy", "most often right", "run"],
    ["-examples", "most examples", "run"], ["examples", "fewest examples", "run"], [
      "-tokens", "most tokens", "run evaluation traces",
    ],
    [
      "tokens", "fewest tokens", "run evaluation traces",
    ], ["-margin", "largest margin", "run"], ["margin", "smallest margin", "run"],
  ];
  const KEYS = ["q", ...FILTERS.map((filter) => filter.key), "sort"];

  /** The filters and the sort among a hash's parameters, without any others. Pure. */
  view.filtersOf = (params) => {
    const found = {};
    for (const key of KEYS) if (params.get(key)) found[key] = params.get(key);
    if (found.sort === "time") delete found.sort;
    return found;
  };

  const chipWords = (filter, value) => {
    if (filter.toggle) return filter.words;
    const named = filter.key === "status"
      ? view.statusWords(value)
      : EXAMPLES.find(([key]) => filter.key === "examples" && key === value)?.[1];
    return named ?? `${filter.words} ${value}`;
  };

  class Filters {
    constructor(host, { kind, get, set }) {
      Object.assign(this, { get, set, kind });
      this.filters = FILTERS.filter((filter) => filter.kinds.split(" ").includes(kind));
      this.search = h(
        "input",
        {
          type: "search",
          class: "input search",
          placeholder: "Search",
          "aria-label": "Search in question, answer, gold and id",
          "aria-keyshortcuts": "/",
          autocomplete: "off",
          spellcheck: "false",
          enterkeyhint: "search",
          oninput: () => this.typed(),
          onkeydown: (event) => event.key === "Enter" && this.typed(0),
        },
      );
      this.fields = new Map(this.filters.map((filter) => [filter.key, this.field(filter)]));
      const sorts = SORTS.filter(([, , kinds]) => !kinds || kinds.split(" ").includes(kind));
      this.sort = h(
        "select",
        { class: "select", onchange: () => this.write("sort", this.sort.value) },
        sorts.map(([key, words]) => h("option", { value: key }, words)),
      );
      this.panel = h(
        "div",
        { class: "filter-panel", id: "filter-panel", role: "group", "aria-label": "Filters" },
        [...this.fields.values()].map(({ element }) => element),
      );
      this.toggle = h(
        "button",
        {
          type: "button",
          class: "button filter-toggle",
          "aria-expanded": "false",
          "aria-controls": "filter-panel",
          onclick: () => this.unfold(),
        },
        "Filters",
      );
      this.chips = h("ul", { class: "chips", "aria-label": "Active filters" });
      host.append(
        h(
          "div",
          { class: "filter-bar", role: "search" },
          h("span", { class: "search-box" }, icon("search"), this.search),
          this.toggle,
          h("label", { class: "field sort" }, "sort", this.sort),
        ),
        this.panel,
        this.chips,
      );
    }

    close() {
      clearTimeout(this.timer);
    }

    unfold() {
      const open = this.toggle.getAttribute("aria-expanded") !== "true";
      this.toggle.setAttribute("aria-expanded", String(open));
      this.panel.classList.toggle("open", open);
    }

    field(filter) {
      const { key, words, title, hint, size, number, toggle, options } = filter;
      if (toggle) {
        const input = h(
          "button",
          {
            type: "button",
            class: "button",
            title,
            "aria-pressed": "false",
            onclick: () => this.write(key, this.get()[key] ? "" : "1"),
          },
          words,
        );
        return { element: input, show: (value) => input.setAttribute("aria-pressed", String(Boolean(value))) };
      }
      if (options) {
        const input = h("select", { class: "select", onchange: () => this.write(key, input.value) });
        const element = h("label", { class: "field" }, words, input);
        return { element, input, show: (value, facets) => this.showSelect(input, element, options(facets), value) };
      }
      const input = h(
        "input",
        {
          class: "input",
          type: "text",
          inputmode: number ? "numeric" : null,
          placeholder: hint,
          size,
          autocomplete: "off",
          onchange: () => this.write(key, input.value.trim()),
        },
      );
      const show = (value) => {
        if (document.activeElement !== input) input.value = value ?? "";
      };
      return { element: h("label", { class: "field", title }, words, input), show };
    }

    // A value in the hash that no item has stays visible, so it can be removed.
    showSelect(input, element, options, value) {
      element.hidden = !options.length && !value;
      const known = !value || options.some(([key]) => key === value);
      const all = [["", "any"], ...options, ...(known ? [] : [[value, value]])];
      const print = JSON.stringify(all);
      if (input.dataset.print !== print && document.activeElement !== input) {
        view.replace(
          input,
          all.map(
            ([key, words]) => h("option", { value: key }, words.length > 60 ? `${words.slice(0, 59)}\u2026` : words)
          ),
        );
        input.dataset.print = print;
      }
      input.value = value ?? "";
    }

    typed(wait = TYPED_MS) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.write("q", this.search.value.trim()), wait);
    }

    write(key, value) {
      const params = { ...this.get() };
      if ((params[key] ?? "") === value) return;
      params[key] = value;
      if (!value || (key === "sort" && value === "time")) delete params[key];
      this.set(params);
    }

    /** Shows the parameters in the fields, the chips and the button. */
    show(facets = {}) {
      const params = this.get();
      if (document.activeElement !== this.search) this.search.value = params.q ?? "";
      for (const filter of this.filters) this.fields.get(filter.key).show(params[filter.key], facets);
      this.sort.value = params.sort ?? "time";
      const active = FILTERS.filter((filter) => params[filter.key]);
      this.toggle.textContent = active.length ? `Filters (${active.length})` : "Filters";
      const chip = (key, words) => h(
        "li",
        { class: "chip" },
        view.line(words, 60),
        h(
          "button",
          { type: "button", "aria-label": `Remove: ${words}`, onclick: () => this.write(key, "") },
          icon("close"),
        ),
      );
      const list = active.map((filter) => chip(filter.key, chipWords(filter, params[filter.key])));
      if (params.q) list.unshift(chip("q", `\u201c${params.q}\u201d`));
      const clear = list.length > 1 && h(
        "li",
        null,
        h(
          "button",
          { type: "button", class: "more small", onclick: () => this.set(params.sort ? { sort: params.sort } : {}) },
          "clear all",
        ),
      );
      view.replace(this.chips, list, clear);
    }
  }

  /**
   * The filters of a list.
   * @param {HTMLElement} host
   * @param {{kind: string, get: () => object, set: (params: object) => void}} options
   */
  view.filterBar = (host, options) => new Filters(host, options);
})();
