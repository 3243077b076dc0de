// The card of one node: who wrote what, how likely it was, what was preferred; of a choice one line with its bar.
//
//   view.node.card(tree, 3).element      tree = {item, shape, state, roles, ...}, as `view.tree.draw` makes it
//
// Invariant: everything a card says in colour it says in words or signs too.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt } = view;
  const SIDES = {
    chosen: { sign: "+", words: "chosen", class: "right" },
    rejected: { sign: "\u2212", words: "rejected", class: "wrong" },
    both: { sign: "\u00b1", words: "chosen and rejected", class: "both" },
  };
  const FINISH = { length: "cut at its length", stop_string: "ended by a stop string" };

  const sum = (values) => (values.length && values.every((value) => value !== null) ? values.reduce((one, two) => one + two, 0) : null);

  function sideMark(node) {
    const side = SIDES[node.side];
    return side && h("span", { class: `side ${side.class}` }, h("span", { "aria-hidden": "true" }, side.sign), ` ${side.words}`);
  }

  const advantageMark = (node) =>
    node.advantage !== null && h("span", { class: `side ${node.advantage > 0 ? "right" : "wrong"}`, title: "advantage" }, `A\u202f${fmt.signed(node.advantage)}`);

  // N and Q of a search; elsewhere a mean over what was branched off further down would mislead.
  function searchMark(tree, node) {
    if (!tree.shape.search || !node.visits) return null;
    const words = "rollouts through this node, and their mean value from \u22121 to 1; it leans to what the search went on with";
    return h("span", { class: "search-mark", title: words }, `N\u202f${node.visits}`, node.value !== null && ` Q\u202f${fmt.signed(node.value)}`);
  }

  function facts(tree, node) {
    const total = sum(node.logprobs);
    const parts = [`depth ${node.depth}`];
    if (!node.choices.length) parts.push(fmt.plural(node.ids.length, "token"));
    if (total !== null && !node.choices.length) parts.push(`${fmt.decimal(total / node.logprobs.length)} a token`);
    if (node.version !== tree.version) parts.push(`version ${node.version ?? "?"}`);
    if (FINISH[node.finish] && !(node.finish === "length" && tree.shape.next.has(node.id))) parts.push(FINISH[node.finish]);
    return [...parts, ...node.tags];
  }

  function meta(tree, node, more) {
    const words = facts(tree, node).map((part) => h("span", { class: "fact" }, view.line(part, 60)));
    return h("header", { class: "meta" }, h("span", { class: "role" }, view.line(node.role, 40)), h("span", { class: "number" }, `#${node.id}`), more, words,
      h("span", { class: "marks" }, searchMark(tree, node), sideMark(node), advantageMark(node), promptButton(tree, node)));
  }

  function promptButton(tree, node) {
    const open = tree.state.prompts.has(node.id);
    return h("button", { type: "button", class: "quiet", "aria-expanded": String(open), "aria-label": `Prompt of node ${node.id}`, tabindex: "-1", onclick: () => tree.togglePrompt(node.id) }, "prompt");
  }

  /** The bar of a choice between two words, and what was taken. */
  function choice(tree, node) {
    const words = tree.item.words?.[node.role] ?? [];
    const taken = node.text.trim() || words[node.choice] || (node.choice === null ? "?" : `choice ${node.choice}`);
    const firstWord = words[0] ?? (node.choice === 0 ? taken : "first choice");
    if (node.yes === null) {
      const shares = node.choices.map((share, at) => `${words[at] ?? at}\u00a0${fmt.share(share)}`).join(", ");
      return [h("span", { class: "taken" }, view.line(taken, 60)), h("span", { class: "fact" }, view.line(shares, 200))];
    }
    const words2 = `P(${firstWord}) ${fmt.share(node.yes)}, taken: ${taken}`;
    const bar = h("span", { class: "bar-of", role: "img", "aria-label": words2 }, h("span", { class: "fill", style: { width: `${100 * node.yes}%` } }));
    const against = node.choice !== null && (node.choice === 0) !== node.yes > 0.5;
    const why = "taken against the likelier word: it was drawn, or a threshold other than one half was set";
    return [
      bar,
      h("span", { class: "yes" }, "P(", view.line(firstWord, 20), ") ", fmt.share(node.yes)),
      h("span", { class: "taken" }, "\u2192 ", view.line(taken, 40), against && h("span", { class: "against", title: why }, " against the likelier")),
    ];
  }

  function faultList(node) {
    if (!node.faults.length) return null;
    const whys = [...new Set(node.faults.map((fault) => fault.why))];
    return h("p", { class: "faults" }, view.icon("wrong"), h("span", null, view.spoken("Wrong step: "), view.line(whys.slice(0, 3).join("; "), 240), whys.length > 3 && ` and ${whys.length - 3} more`));
  }

  // ---- Pairs on the edge between siblings ------------------------------------------------------------------------------

  const nodeLink = (tree, id) => h("button", { type: "button", class: "node-link", tabindex: "-1", onclick: () => tree.go(id) }, `#${id}`);

  function learnedWords(pair) {
    const margins = view.shape.implicitMargins(pair).filter((one) => one.value !== null);
    if (!margins.length) return null;
    const shown = margins.length > 3 ? [margins[0], margins.at(-1)] : margins;
    const why = margins[0].policyOnly
      ? "log-probability of the chosen side less the rejected one's, when it was learned (no reference), in nats"
      : "policy less reference of the chosen side, less that of the rejected one, when it was learned, in nats";
    return h("span", { class: "learned", title: why }, "when learned ", shown.map((one, at) => [at ? " \u2192 " : "", h("b", null, fmt.signed(one.value)), ` at v${one.version ?? "?"}`]));
  }

  function pairRow(tree, pair, id) {
    const chosen = pair.chosen === id;
    const other = chosen ? pair.rejected : pair.chosen;
    const words = chosen ? ["preferred over ", nodeLink(tree, other)] : [nodeLink(tree, other), " preferred over this"];
    const weight = pair.weight !== null && pair.weight !== 1 && h("span", { class: "fact" }, `weight ${fmt.decimal(pair.weight)}`);
    return h("li", { class: `edge ${chosen ? "right" : "wrong"}` }, h("span", { class: "edge-words" }, words), h("span", { class: "fact" }, `margin ${fmt.decimal(pair.margin)}`), weight, learnedWords(pair));
  }

  const MOST_PAIRS = 3;

  function edges(tree, id) {
    const pairs = tree.shape.pairs.get(id) ?? [];
    if (!pairs.length) return null;
    const list = h("ul", { class: "edges", "aria-label": "Pairs" }, pairs.slice(0, MOST_PAIRS).map((pair) => pairRow(tree, pair, id)));
    if (pairs.length > MOST_PAIRS) {
      const more = h("li", null, h("button", { type: "button", class: "more" }, `${fmt.plural(pairs.length - MOST_PAIRS, "pair")} more`));
      more.addEventListener("click", () => more.replaceWith(...pairs.slice(MOST_PAIRS).map((pair) => pairRow(tree, pair, id))));
      list.append(more);
    }
    return list;
  }

  // ---- The card --------------------------------------------------------------------------------------------------------

  function label(node) {
    const parts = [`node ${node.id}, ${node.role}`];
    if (node.yes !== null) parts.push(`${fmt.share(node.yes)} for its first word, taken ${node.text.trim()}`);
    if (node.side) parts.push(SIDES[node.side].words);
    if (node.advantage !== null) parts.push(`advantage ${fmt.signed(node.advantage)}`);
    if (node.faults.length) parts.push(`${node.faults.length} wrong steps`);
    return view.cut(parts.join(", "), 300);
  }

  /**
   * The card of a node.
   * @param {object} tree what `view.tree.draw` holds: item, shape, state, roles, version, go, togglePrompt
   * @param {number} id
   * @returns {{element: Element, paint: () => void, showPrompt: () => void}}
   */
  function card(tree, id) {
    const node = tree.item.nodes[id];
    const isChoice = node.choices.length > 0;
    const body = isChoice ? null : h("div", { class: "words" });
    const prompt = h("div", { class: "prompt-place" });
    const element = h("div", { class: `node ${isChoice ? "choice" : "writes"} ${view.roleClass(tree.roles, node.role)}`, dataset: { node: id }, tabindex: "-1", role: "group", "aria-label": label(node) },
      edges(tree, id), meta(tree, node, isChoice ? choice(tree, node) : null), body, faultList(node), prompt);
    element.addEventListener("focus", () => tree.focused(id));
    const paint = () => body && view.tokens.paint(body, node, { mode: tree.state.mode, special: tree.item.special, marks: tree.shape.marks.get(id) ?? [], learned: tree.state.mode === "learning" ? view.tokens.learnedOf(tree.item, id) : null });
    const showPrompt = () => {
      const open = tree.state.prompts.has(id);
      view.replace(prompt, open ? view.prompt.panel(tree.item, id) : null);
      element.querySelector(".quiet")?.setAttribute("aria-expanded", String(open));
    };
    paint();
    showPrompt();
    return { element, paint, showPrompt };
  }

  view.node = { card, SIDES };
})();
