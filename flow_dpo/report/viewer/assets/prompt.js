// The prompt of a node as it was rendered, assembled from the parts that a record holds.
//
//   node 3: {after: 1, kept: 40, ids: [..], pieces: [..]}   the first 40 tokens of node 1's prompt and completion, then own
//
// Invariant: the tokens are those of the record, in order; special tokens are chips, and what is unknown is stated.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt } = view;

  /**
   * The tokens of a node's prompt, and how many of them it shares with the beginning of the previous node's prompt.
   * @returns {{tokens: {id: number, piece: string|null}[], shared: number, after: number|null}|null} null where it was not recorded
   */
  function promptOf(item, id) {
    // From the node to a prompt that needs no other, and back; without recursion, since a chain can be long.
    const chain = [];
    for (let at = id; at !== null; at = item.nodes[at].prompt.after) {
      if (!item.nodes[at]?.prompt || chain.includes(at)) return null;
      chain.push(at);
    }
    let tokens = [];
    let shared = 0;
    for (const at of chain.reverse()) {
      const { after, kept, ids, pieces } = item.nodes[at].prompt;
      const before = after === null ? [] : tokens.concat(zip(item.nodes[after].ids, item.nodes[after].pieces)).slice(0, kept);
      shared = Math.min(tokens.length, before.length);
      tokens = before.concat(zip(ids, pieces));
    }
    return { tokens, shared, after: item.nodes[id].prompt.after };
  }

  const zip = (ids, pieces) => ids.map((id, at) => ({ id, piece: pieces?.[at] ?? null }));

  /** Tokens as running text; special ones are chips, and those without known text show their ids. */
  function running(tokens, special) {
    const nodes = [];
    let text = "";
    const flush = () => {
      if (text) nodes.push(...view.hostile(text));
      text = "";
    };
    for (const { id, piece } of tokens) {
      if (piece) text += piece;
      else if (piece === null || special[id] !== undefined) {
        flush();
        nodes.push(view.tokens.chip(id, special));
      }
    }
    flush();
    return nodes;
  }

  const MOST_TOKENS = 6000;

  function body(found, special, limit = MOST_TOKENS) {
    const first = Math.max(0, found.tokens.length - limit);
    const box = h("div", { class: "prompt-text text" });
    if (first > 0) {
      const all = h("button", { type: "button", class: "more" }, `show the ${fmt.count(first)} earlier tokens`);
      all.addEventListener("click", () => box.replaceWith(body(found, special, Infinity)));
      box.append(all, " \u2026 ");
    }
    const cut = Math.max(first, found.shared);
    if (cut > first) box.append(h("span", { class: "prompt-shared" }, running(found.tokens.slice(first, cut), special)));
    box.append(h("span", null, running(found.tokens.slice(cut), special)));
    return box;
  }

  /** The panel of a node's prompt and, if it was learned under another prompt, of that one. */
  function panel(item, id) {
    const learned = learnedUnder(item, id);
    const words = `Node ${id} was learned under another prompt`;
    return [sampledUnder(item, id), learned !== null && h("section", { class: "prompt", "aria-label": words }, h("p", { class: "node-meta" }, words), h("div", { class: "prompt-text" }, view.text(learned)))];
  }

  /** The prompt under which a node was learned; null if that is its own, or if nothing was learned. */
  const learnedUnder = (item, id) => item.examples.find((one) => [one.node, one.chosen, one.rejected].includes(id) && (one.prompt ?? null) !== null)?.prompt ?? null;

  function sampledUnder(item, id) {
    const node = item.nodes[id];
    const found = node.prompt ? promptOf(item, id) : null;
    if (found) {
      const same = found.shared ? `, the first ${fmt.count(found.shared)} of them as in node ${found.after}\u2019s (muted)` : "";
      const words = `The prompt of node ${id}: ${fmt.plural(found.tokens.length, "token")}${same}`;
      return h("section", { class: "prompt", "aria-label": `Prompt of node ${id}` }, h("p", { class: "node-meta" }, words), body(found, item.special));
    }
    if (node.prompt_text !== null) {
      const words = `The prompt of node ${id}, from the examples learned`;
      return h("section", { class: "prompt", "aria-label": `Prompt of node ${id}` }, h("p", { class: "node-meta" }, words), h("div", { class: "prompt-text" }, view.text(node.prompt_text)));
    }
    const words = "The prompt was not recorded: this run was written before records held prompts, and nothing was learned from this node.";
    return h("section", { class: "prompt", "aria-label": `Prompt of node ${id}` }, h("p", { class: "node-meta" }, words));
  }

  view.prompt = { panel, promptOf, learnedUnder };
})();
