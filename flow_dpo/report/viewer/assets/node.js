// The card of one node: who wrote what, how likely it was, what was preferred; a choice is one line with a bar.
//
//   view.node.card(tree, 3).element      tree = {item, shape, state, roles, ...}, as made by `view.tree.draw`
//
// Invariant: everything that a card says in colour, it also says in words or signs.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt } = view;
  const SIDES = {
    chosen: { sign: "+", words: "chosen", class: "right" },
    rejected: { sign: "\u2212", words: "rejected", class: "wrong" },
    both: { sign: "\u00b1", words: "chosen and rejected", class: "both-sides" },
  };
  const FINISH = { length: "cut at the length limit", stop_string: "ended by a stop string" };

  // Text for an attribute, in which invisible characters are named as on the page.
  const plain = (text) => view.line(text, 300).textContent;

  const sum = (values) => (values.length && values.every((value) => value !== null) ? values.reduce((one, two) => one + two, 0) : null);

  function sideMark(node) {
    const side = SIDES[node.side];
    return side && h("span", { class: `signed ${side.class}` }, h("span", { "aria-hidden": "true" }, side.sign), ` ${side.words}`);
  }

  function advantageMark(tree, node) {
    if (node.advantage === null) return null;
    const example = tree.item.examples.find((one) => one.node === node.id);
    const weight = example?.weight ?? 1;
    const other = example?.completion ?? null;
    const words = ["advantage", weight !== 1 && `its loss is weighted by ${fmt.figure(weight)}`, other !== null && "what was learned is not what was sampled here, but the text named before it"];
    return h("span", { class: `signed ${node.advantage > 0 ? "right" : "wrong"}`, title: words.filter(Boolean).join("; ") },
      other !== null && [h("span", { class: "bit" }, "learned "), view.line(other, 24), " "], `A\u202f${fmt.signed(node.advantage)}`, weight !== 1 && h("span", { class: "bit" }, ` \u00d7\u202f${fmt.decimal(weight)}`));
  }

  // N and Q of a search; elsewhere, a mean over what branched off further down would mislead.
  function searchMark(tree, node) {
    if (!tree.shape.search || !node.visits) return null;
    const words = "rollouts through this node, and their mean value from \u22121 to 1; it is biased towards what the search continued with";
    return h("span", { class: "search-mark", title: words }, `N\u202f${node.visits}`, node.value !== null && ` Q\u202f${fmt.signed(node.value)}`);
  }

  function facts(tree, node) {
    const total = sum(node.logprobs);
    const parts = [`depth ${node.depth}`, ...node.tags.filter((tag) => !tree.shape.common.has(tag))];
    if (node.version !== tree.version) parts.push(`version ${node.version ?? "?"}`);
    if (node.choices.length) return parts;
    parts.push(fmt.plural(node.ids.length, "token"));
    if (FINISH[node.finish] && !(node.finish === "length" && tree.shape.next.has(node.id))) parts.push(FINISH[node.finish]);
    if (total !== null) parts.push(`${fmt.decimal(total / node.logprobs.length)} per token`);
    return parts;
  }

  function meta(tree, node, more) {
    const words = facts(tree, node);
    return h("div", { class: "node-meta" }, h("span", { class: "role" }, view.line(node.role, 24)), h("span", { class: "node-number" }, `#${node.id}`), more,
      h("span", { class: "node-known", title: plain(words.join(", ")) }, h("span"), words.map((part) => h("span", { class: "bit" }, view.line(part, 40)))),
      h("span", { class: "node-marks" }, searchMark(tree, node), sideMark(node), advantageMark(tree, node), promptButton(tree, node)));
  }

  function promptButton(tree, node) {
    const open = tree.state.prompts.has(node.id);
    return h("button", { type: "button", class: "prompt-button", "aria-expanded": String(open), "aria-label": `Prompt of node ${node.id}`, tabindex: "-1", onclick: () => tree.togglePrompt(node.id) }, view.prompt.learnedUnder(tree.item, node.id) === null ? "prompt" : "prompts");
  }

  /** The bar of a choice between two words, and the one taken; for more words, their shares. */
  function choice(tree, node) {
    const words = tree.item.words?.[node.role] ?? [];
    const word = (at) => view.line(words[at] ?? `choice ${at}`, 24);
    const taken = view.line(node.text.trim() || (node.choice === null ? "?" : `choice ${node.choice}`), 40);
    if (node.yes === null) {
      const shares = node.choices.map((share, at) => [at ? " \u00b7 " : "", word(at), ` ${fmt.share(share)}`]);
      return [h("span", { class: "taken-word" }, "\u2192 ", taken), h("span", { class: "shares" }, shares)];
    }
    const isLess = node.choice !== null && (node.choice === 0) !== node.yes > 0.5;
    const why = isLess ? "the less likely word: it was drawn by chance, or the threshold is not one half, or it is the alternative to the likelier word that was taken beside it" : null;
    return [
      h("span", { class: "bar-of", "aria-hidden": "true" }, h("span", { class: "fill", style: { width: `${100 * node.yes}%` } })),
      h("span", { class: "share-of-yes" }, "P(", word(0), ") ", fmt.share(node.yes)),
      h("span", { class: `taken-word${isLess ? " less-likely" : ""}`, title: why }, "\u2192 ", taken),
    ];
  }

  function faultList(node) {
    const whys = [...new Set(node.faults.filter((fault) => !fault.continues).map((fault) => fault.why))];
    if (!whys.length) return null;
    return h("p", { class: "wrong-steps" }, view.icon("wrong"), h("span", null, view.spoken("Wrong step: "), view.line(whys.slice(0, 3).join("; "), 240), whys.length > 3 && ` and ${whys.length - 3} more`));
  }

  // ---- Pairs on the edge between siblings ------------------------------------------------------------------------------

  const nodeLink = (tree, id) => h("button", { type: "button", class: "node-link", tabindex: "-1", onclick: () => tree.go(id) }, `#${id}`);

  function learnedWords(pair) {
    const margins = view.shape.implicitMargins(pair).filter((one) => one.value !== null);
    if (!margins.length) return null;
    const shown = margins.length > 3 ? [margins[0], margins.at(-1)] : margins;
    const [words, why] = margins[0].policyOnly
      ? ["log-probability margin ", "the chosen side's log-probability minus the rejected one's, when it was learned, in nats; there was no reference"]
      : ["implicit margin ", "policy minus reference for the chosen side, minus the same for the rejected one, when it was learned, in nats"];
    return h("span", { class: "pair-learned", title: why }, words, shown.map((one, at) => [at ? " \u2192 " : "", h("b", null, fmt.signed(one.value)), ` at v${one.version ?? "?"}`]));
  }

  function pairRow(tree, pair, id) {
    const chosen = pair.chosen === id;
    const other = chosen ? pair.rejected : pair.chosen;
    const words = chosen ? ["preferred over ", nodeLink(tree, other)] : [nodeLink(tree, other), " preferred over this"];
    const weight = pair.weight !== null && pair.weight !== 1 && h("span", { class: "bit" }, `weight ${fmt.decimal(pair.weight)}`);
    return h("li", { class: `pair-edge ${chosen ? "right" : "wrong"}` }, h("span", { class: "edge-words" }, words), h("span", { class: "bit" }, `margin ${fmt.decimal(pair.margin)}`), weight, learnedWords(pair));
  }

  const MOST_PAIRS = 3;

  function edges(tree, id) {
    const pairs = tree.shape.pairs.get(id) ?? [];
    if (!pairs.length) return null;
    const list = h("ul", { class: "pair-edges", "aria-label": "Pairs" }, pairs.slice(0, MOST_PAIRS).map((pair) => pairRow(tree, pair, id)));
    if (pairs.length > MOST_PAIRS) {
      const more = h("li", null, h("button", { type: "button", class: "more" }, `${fmt.plural(pairs.length - MOST_PAIRS, "pair")} more`));
      more.addEventListener("click", () => more.replaceWith(...pairs.slice(MOST_PAIRS).map((pair) => pairRow(tree, pair, id))));
      list.append(more);
    }
    return list;
  }

  // ---- The card --------------------------------------------------------------------------------------------------------

  function label(tree, node) {
    const other = tree.item.examples.find((one) => one.node === node.id)?.completion ?? null;
    const parts = [`node ${node.id}, ${node.role}`];
    if (node.yes !== null) parts.push(`${fmt.share(node.yes)} for its first word, ${node.text.trim()} was taken`);
    if (node.side) parts.push(SIDES[node.side].words);
    if (node.advantage !== null) parts.push(`advantage ${fmt.signed(node.advantage)}${other === null ? "" : ` for ${other}, which was learned in its place`}`);
    if (node.faults.length) parts.push(`${node.faults.length} wrong steps`);
    return plain(parts.join(", "));
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
    const body = isChoice ? h("span", { class: "choice-place" }) : h("div", { class: "node-words" });
    const prompt = h("div", { class: "prompt-place" });
    const element = h("div", { class: `node ${isChoice ? "chooses" : "writes"} ${view.roleClass(tree.roles, node.role)}`, dataset: { node: id }, tabindex: "-1", role: "group", "aria-label": label(tree, node) },
      edges(tree, id), meta(tree, node, isChoice ? [choice(tree, node), body] : null), isChoice ? null : body, faultList(node), prompt);
    element.addEventListener("focus", () => tree.focused(id));
    const paint = () => {
      const { mode } = tree.state;
      const learned = mode === "learning" ? view.tokens.learnedOf(tree.item, id) : null;
      if (isChoice) view.replace(body, view.tokens.choiceLearned(learned));
      else view.tokens.paint(body, node, { mode, special: tree.item.special, marks: tree.shape.marks.get(id) ?? [], learned });
    };
    const showPrompt = () => {
      const open = tree.state.prompts.has(id);
      view.replace(prompt, open ? view.prompt.panel(tree.item, id) : null);
      element.querySelector(".prompt-button")?.setAttribute("aria-expanded", String(open));
    };
    paint();
    showPrompt();
    return { element, paint, showPrompt };
  }

  view.node = { card, plain, advantageMark, SIDES };
})();
