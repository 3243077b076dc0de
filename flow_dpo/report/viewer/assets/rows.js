// One row of a list of items: its columns by kind of source, and how each is redrawn for another item.
//
//   const row = view.itemRow({source, roles, sort: () => "time"}, 7);   row.fill(1204, item);
//
// Invariant: nothing is said by colour alone; a cell stays empty if the item does not have the value.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt, icon } = view;

  const SIDES = { a: "A better", b: "B better", tie: "tie" };

  /** The words for a status of an item. */
  view.statusWords = (status) => view.STATUS[status]?.words ?? SIDES[status] ?? String(status);

  const mark = (item) =>
    item.status in SIDES
      ? h(
        "span",
        { class: "side-mark", title: SIDES[item.status] },
        item.status === "tie" ? "=" : item.status.toUpperCase(),
        view.spoken(SIDES[item.status]),
      )
      : view.verdict(item.status);

  // The answer found and, if it differs, the gold answer.
  function answer(item) {
    const found = item.answer === null || item.answer === undefined
      ? h("span", { class: "muted" }, item.status === "stopped" ? "" : "no answer")
      : view.line(item.answer, 40);
    if (
      item.status === "correct" || item.gold === null || item.gold === undefined
    ) return h("span", { class: "muted" }, found);
    return [
      h("span", { class: item.status === "wrong" ? "wrong" : null }, found),
      h("span", { class: "gold-answer muted" }, "gold ", view.line(item.gold, 40)),
    ];
  }

  // How a tree's rollouts ended: right, wrong and ungraded as parts of one bar, and right out of graded.
  function outcomes(item) {
    if (!item.rollouts) return null;
    const parts = ["right", "wrong", "ungraded"].filter((name) => item[name] > 0);
    const bar = h(
      "span",
      { class: "outcome-bar", "aria-hidden": "true" },
      parts.map((name) => h("span", { class: `part-${name}`, style: { "flex-grow": String(item[name]) } })),
    );
    const words = parts.map((name) => `${item[name]} ${name}`).join(", ");
    const graded = item.right + item.wrong;
    return h(
      "span",
      { class: "outcomes", title: words },
      bar,
      h("span", { class: "ratio", "aria-hidden": "true" }, graded ? `${item.right}/${graded}` : view.NOTHING),
      view.spoken(words),
    );
  }

  function examples(item, { roles }) {
    const names = Object.keys(item.by_role ?? {});
    const all = roles();
    const order = [...all.filter((role) => names.includes(role)), ...names.filter((role) => !all.includes(role))];
    const words = order.map((role) => `${role} ${item.by_role[role]}`).join(", ");
    if (!order.length) return null;
    const dots = order.map(
      (role) => h(
        "span",
        { class: `role-count ${view.roleClass(all, role)}`, "aria-hidden": "true" },
        h("span", { class: "role-dot" }),
        fmt.count(item.by_role[role]),
      )
    );
    const kinds = [
      item.pairs && fmt.plural(item.pairs, "pair"), item.scored && `${fmt.count(item.scored)} scored`,
    ].filter(Boolean).join(", ");
    return h("span", { class: "role-counts", title: `${words} (${kinds})` }, dots, view.spoken(`examples: ${words}`));
  }

  const flipped = (item) => item.flipped && h(
    "span",
    { class: "flip", title: "an alternative's verdict differs from the trunk's" },
    icon("flipped"),
    view.spoken("flipped by an alternative"),
  );

  const version = (item) => fmt.known(item.version) && h(
    "span", { title: "version of the policy that sampled it" }, `v${fmt.count(item.version)}`
  );

  // A list by margin shows margins instead of tokens; the unit is for narrow windows, which have no heading.
  function tokens(item, { sort }) {
    const unit = (words) => h("span", { class: "unit" }, words);
    if (sort().endsWith("margin")) return fmt.known(item.margin) && [unit("margin "), fmt.decimal(item.margin)];
    return fmt.known(item.tokens) && [fmt.compact(item.tokens), unit(" tok")];
  }

  const N = { name: "n", width: "54px", words: "#", sort: "time", spoken: "number", fill: (item) => fmt.count(item.n) };
  const MARK = { name: "mark", width: "16px", words: "", spoken: "verdict", fill: mark };
  const QUESTION = { name: "question", width: "minmax(120px, 1fr)", words: "question", fill: () => null };
  const ANSWER = { name: "answer", width: "minmax(0, clamp(116px, 13vw, 220px))", words: "answer", fill: answer };
  const OUTCOMES = {
    name: "outcome", width: "112px", words: "right of graded", sort: "accuracy", fill: outcomes, meta: true,
  };
  const EXAMPLES = { name: "examples", words: "examples", sort: "examples", fill: examples, meta: true };
  const FLIPPED = { name: "flipped", width: "16px", words: "", spoken: "flipped", fill: flipped, meta: true };
  const TOKENS = { name: "tokens", width: "52px", words: "tokens", sort: "tokens", fill: tokens, meta: true };
  const VERSION = { name: "version", width: "56px", words: "version", fill: version, meta: true };
  const DRAW = {
    name: "draw",
    width: "44px",
    words: "draw",
    fill: (item) => fmt.known(item.draw) && [h("span", { class: "unit" }, "draw "), fmt.count(item.draw)],
    meta: true,
  };
  const YES = {
    name: "yes",
    width: "64px",
    words: "P(Yes)",
    fill: (item) => fmt.known(item.yes) && [h("span", { class: "unit" }, "P(Yes) "), fmt.share(item.yes)],
    meta: true,
  };
  const SUBJECT = {
    name: "subject",
    width: "minmax(0, clamp(80px, 9vw, 140px))",
    words: "subject",
    fill: (item) => item.subject && view.line(item.subject, 30),
    meta: true,
  };

  const COLUMNS = {
    run: [N, MARK, QUESTION, ANSWER, OUTCOMES, EXAMPLES, FLIPPED, TOKENS, VERSION],
    evaluation: [N, MARK, QUESTION, ANSWER, DRAW, YES, SUBJECT, TOKENS],
    traces: [N, QUESTION, ANSWER, YES, SUBJECT, TOKENS],
    judgements: [N, MARK, QUESTION, ANSWER, SUBJECT],
  };

  /** The columns of a kind of source, in order: `{name, words, sort?, spoken?, meta?}`. */
  view.itemColumns = (kind) => COLUMNS[kind] ?? COLUMNS.traces;

  /**
   * An element that shows one item after another.
   * @param {{source: object, roles: () => string[], sort: () => string}} context
   * @param {number} place its number in the pool, for its id
   */
  view.itemRow = (context, place) => {
    const columns = view.itemColumns(context.source.kind);
    const link = h("a", { tabindex: "-1" });
    const cells = columns.map(
      (column) => h("span", { role: "gridcell", class: `cell-${column.name}` }, column === QUESTION && link)
    );
    const meta = h(
      "span", { class: "item-meta", role: "presentation" }, cells.filter((cell, index) => columns[index].meta)
    );
    const element = h(
      "div",
      { role: "row", class: "item", id: `row-${place}` },
      cells.filter((cell, index) => !columns[index].meta),
      meta,
    );
    const fill = (position, item) => {
      element.setAttribute("aria-rowindex", String(position + 2));
      element.dataset.position = String(position);
      element.classList.toggle("waiting", !item);
      columns.forEach((column, index) => {
        if (column !== QUESTION) view.replace(cells[index], item && column.fill(item, context));
      });
      if (item) view.replace(link, view.line(item.question, 240)).setAttribute(
        "href", view.to.item(context.source.id, item.n)
      );
      else {
        link.removeAttribute("href");
        link.replaceChildren();
        cells[0].textContent = fmt.count(position);
      }
    };
    return { element, fill };
  };
})();
