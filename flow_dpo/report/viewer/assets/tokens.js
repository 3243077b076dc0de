// Text of a node and its tokens: wrong steps and first differences marked, or every token coloured by a value.
//
//   view.tokens.paint(box, node, {mode: "logprob", special: {"5": "<end>"}, marks: [11], learned: null})
//
// Invariant: a token has one of nine colour classes and its text keeps the text colour, so it can be read in both
// themes; a token's value can also be read in words, with the pointer or the arrow keys.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt } = view;
  const MOST_TOKENS = 1500;
  const MOST_CHARS = 4000;
  const MOST_CHIPS = 12;

  const MODES = [
    { name: "text", words: "Text" },
    { name: "logprob", words: "Log-probability" },
    { name: "learning", words: "Policy \u2212 reference" },
  ];
  // Thresholds of the stronger classes: probabilities, and differences in nats.
  const SHARES = [0.9, 0.6, 0.35, 0.2, 0.1, 0.03, 0.01, 0.001];
  const NATS = [0.02, 0.1, 0.4, 1.2];

  const known = (value) => typeof value === "number" && Number.isFinite(value);

  /** The class of a log-probability: "p0" above 90 % to "p8" below 0.1 %. */
  const surprise = (logprob) => (known(logprob) ? `p${SHARES.filter((share) => Math.exp(logprob) < share).length}` : "");

  /** The class of a difference in nats: "up1" to "up4", "down1" to "down4", "" for almost none. */
  const shift = (difference) => {
    const size = known(difference) ? NATS.filter((nats) => Math.abs(difference) >= nats).length : 0;
    return size ? `${difference > 0 ? "up" : "down"}${size}` : "";
  };

  /**
   * What was learned of one node last, by token.
   * @returns {{version: number, policy: number[], base: number[], other: string|null, against: string}|null} `other`: what
   *   was learned there where it is not what was sampled
   */
  function learnedOf(item, id) {
    let found = null;
    for (const example of item.examples) {
      const side = example.kind === "scored" ? (example.node === id ? 0 : -1) : [example.chosen, example.rejected].indexOf(id);
      const last = side < 0 ? null : example.learned?.at(-1);
      // The completion can begin before the node, or differ from the node's.
      const before = example.before?.[side] ?? 0;
      if (last?.policy?.[side] && (!found || (last.version ?? 0) >= (found.version ?? 0))) {
        const [base, other] = [last.reference?.[side]?.slice(before) ?? null, example.completion ?? null];
        found = { version: last.version, policy: last.policy[side].slice(before), base, other, against: base ? "reference" : "sampling" };
      }
    }
    if (found && !found.base) found.base = sampledAs(item, item.nodes[id], found.other);
    return found;
  }

  /** The log-probabilities of what was learned when the node was sampled; `other` is a word that it did not take. */
  function sampledAs(item, node, other) {
    if (other === null) return node.logprobs;
    const named = (item.words?.[node.role] ?? []).indexOf(other.trim());
    const share = node.choices[named < 0 && node.choices.length === 2 ? 1 - node.choice : named];
    return known(share) ? [Math.log(share)] : [];
  }

  const differenceAt = (learned, at) => {
    const [policy, base] = [learned?.policy?.[at], learned?.base?.[at]];
    return known(policy) && known(base) ? policy - base : null;
  };

  // ---- Plain text, with ranges ---------------------------------------------------------------------------------------

  /** Where the text of a token begins; null where pieces were not recorded. */
  const offsetOf = (pieces, token) => (pieces ? pieces.slice(0, token).reduce((sum, piece) => sum + piece.length, 0) : null);

  function rangesOf(node, marks) {
    const ranges = node.faults.map((fault) => ({ from: fault.from, to: fault.to, class: "fault", title: fault.why }));
    for (const mark of marks) {
      if (mark.to > mark.from) ranges.push({ ...mark, class: "differs", title: "the first token that differs" });
    }
    return ranges;
  }

  /** Text with some of its ranges marked; they may overlap. The rest of a long text waits behind a button. */
  function marked(text, ranges, limit = MOST_CHARS) {
    if (!ranges.length) return view.text(text, { limit });
    const shown = text.length > limit ? view.cut(text, limit) : text;
    const inside = (at) => Math.max(0, Math.min(at, shown.length));
    const bounds = [...new Set([0, shown.length, ...ranges.flatMap((range) => [inside(range.from), inside(range.to)])])].sort((a, b) => a - b);
    const span = h("span", { class: "text" });
    for (let at = 0; at + 1 < bounds.length; at++) {
      const [from, to] = [bounds[at], bounds[at + 1]];
      const over = ranges.filter((range) => range.from <= from && range.to >= to);
      const nodes = view.hostile(shown.slice(from, to));
      span.append(...(over.length ? [h("mark", { class: over.map((range) => range.class).join(" "), title: over.map((range) => range.title).join("; ") }, nodes)] : nodes));
    }
    if (shown.length < text.length) {
      const all = h("button", { type: "button", class: "more" }, `show all ${fmt.count(text.length)} characters`);
      all.addEventListener("click", () => span.replaceWith(marked(text, ranges, Infinity)));
      span.append("\u2026 ", all);
    }
    return span;
  }

  // ---- Tokens --------------------------------------------------------------------------------------------------------

  /** A special token, or one without characters of its own, as a chip. */
  const chip = (id, special) => h("span", { class: "special-token" }, special[id] === undefined ? `#${id}` : view.hostile(view.cut(special[id], 60)));

  const withLineEnds = (piece) => piece.replaceAll("\n", "\u21b5\n");

  function tokenSpan(node, at, options) {
    const piece = node.pieces?.[at] ?? null;
    const tone = options.mode === "learning" ? shift(differenceAt(options.learned, at)) : surprise(node.logprobs[at]);
    const differs = options.marks.some((mark) => mark.token === at);
    const props = { class: `token ${tone}${differs ? " differs" : ""}${piece === null ? " token-cell" : ""}`, dataset: { t: at } };
    if (piece === null) return h("span", props);
    return h("span", props, piece === "" ? chip(node.ids[at], options.special) : view.hostile(withLineEnds(view.cut(piece, 400))));
  }

  function tokensOf(node, options, limit = MOST_TOKENS) {
    const box = h("span", { class: `text tokens${node.pieces ? "" : " token-cells"}`, tabindex: "0", role: "group", "aria-label": `${fmt.plural(node.ids.length, "token")} of node ${node.id}; arrow keys move from one to the next` });
    const num = Math.min(node.ids.length, limit);
    for (let at = 0; at < num; at++) box.append(tokenSpan(node, at, options));
    if (num < node.ids.length) {
      const all = h("button", { type: "button", class: "more" }, `show all ${fmt.count(node.ids.length)} tokens`);
      all.addEventListener("click", () => box.replaceWith(tokensOf(node, options, Infinity)));
      box.append(" \u2026 ", all);
    }
    explain(box, node, options);
    return box;
  }

  /**
   * Draws a node's text.
   * @param {Element} box emptied and filled
   * @param {object} node
   * @param {{mode: string, special: object, marks: {from: number, to: number, token: number}[], learned: object|null}} options
   */
  function paint(box, node, options) {
    if (!node.text && node.ids.length && (options.mode === "text" || !node.pieces)) {
      view.replace(box, node.ids.slice(0, MOST_CHIPS).map((id) => chip(id, options.special)));
    } else if (options.mode === "text" || !node.ids.length) {
      view.replace(box, marked(node.text, rangesOf(node, options.marks)));
    } else if (options.mode === "learning" && (options.learned?.other ?? null) !== null) {
      view.replace(box, h("div", { class: "not-learned" }, marked(node.text, [])), h("p", { class: "node-meta" }, "learned in its place: ", view.line(options.learned.other, 300)));
    } else if (options.mode === "learning" && !options.learned) {
      view.replace(box, h("div", { class: "not-learned" }, marked(node.text, [])));
    } else if (node.pieces) view.replace(box, tokensOf(node, options));
    else view.replace(box, marked(node.text, rangesOf(node, options.marks)), tokensOf(node, options));
  }

  // ---- What a token is, in words ---------------------------------------------------------------------------------------

  const tip = () => document.querySelector(".token-tip") ?? document.body.appendChild(h("div", { class: "token-tip", role: "status", hidden: true }));

  function tipRows(node, at, { learned, special }) {
    const piece = node.pieces?.[at];
    const shown = piece ? JSON.stringify(view.cut(piece, 80)) : special[node.ids[at]] ?? (piece === "" ? "no text of its own" : "text not recorded");
    const nats = (value) => `${fmt.decimal(value, 3)}${known(value) ? ` (${fmt.share(Math.exp(value), Math.exp(value) < 0.001 ? 3 : 1)})` : ""}`;
    const rows = [["token", view.line(shown, 100)], ["id", String(node.ids[at])], ["log-probability", nats(node.logprobs[at])]];
    if (!learned) return rows;
    rows.push([`policy at version ${learned.version ?? "?"}`, nats(learned.policy[at])]);
    rows.push([learned.against === "reference" ? "reference" : "when sampled", nats(learned.base?.[at])]);
    rows.push(["difference", fmt.signed(differenceAt(learned, at), 3)]);
    return rows;
  }

  function explain(box, node, options) {
    let at = -1;
    const show = (token) => {
      box.querySelector(".token.on")?.classList.remove("on");
      if (!token) return void (tip().hidden = true);
      at = Number(token.dataset.t);
      token.classList.add("on");
      const rows = tipRows(node, at, options);
      view.replace(tip(), h("dl", null, rows.map(([name, value]) => [h("dt", null, name), h("dd", null, value)])));
      tip().hidden = false;
      place(token);
    };
    const hide = () => show(null);
    box.addEventListener("pointerover", (event) => show(event.target.closest(".token")));
    box.addEventListener("pointerleave", hide);
    box.addEventListener("blur", hide);
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const tokens = box.querySelectorAll(".token");
      show(tokens[Math.max(0, Math.min(at + step, tokens.length - 1))]);
    });
  }

  // Below the token, inside the window; above it if there is no room.
  function place(token) {
    const [spot, box] = [token.getClientRects()[0] ?? token.getBoundingClientRect(), tip()];
    const left = Math.max(8, Math.min(spot.left, innerWidth - box.offsetWidth - 8));
    const below = spot.bottom + 6;
    box.style.left = `${left}px`;
    box.style.top = `${below + box.offsetHeight > innerHeight ? Math.max(8, spot.top - box.offsetHeight - 6) : below}px`;
  }

  const hideTip = () => {
    const box = document.querySelector(".token-tip");
    if (box) box.hidden = true;
  };

  // ---- Legend --------------------------------------------------------------------------------------------------------

  const swatches = (classes) => classes.map((name) => h("span", { class: `token-swatch ${name}` }));

  /** What the colours of a mode mean. */
  function legend(mode) {
    if (mode === "logprob") {
      return h("span", { class: "token-legend" }, "likely ", h("span", { class: "token-scale" }, swatches(["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"])), " below 0.1\u00a0%");
    }
    if (mode === "learning") {
      const classes = ["down4", "down3", "down2", "down1", "none", "up1", "up2", "up3", "up4"];
      return h("span", { class: "token-legend" }, "less likely than the reference ", h("span", { class: "token-scale" }, swatches(classes)), " more likely; pale text was not learned from");
    }
    return h("span", { class: "token-legend" });
  }

  /** What was learned about a choice, in words, coloured like a token. */
  function choiceLearned(learned) {
    const difference = differenceAt(learned, 0);
    if (difference === null) return null;
    const words = learned.against === "reference" ? "policy minus reference when it was learned, in nats" : "policy when it was learned minus when it was sampled, in nats";
    const other = learned.other !== null && [view.line(learned.other, 24), " "];
    return h("span", { class: `choice-learned ${shift(difference)}`, title: words }, other, fmt.signed(difference));
  }

  view.tokens = { MODES, choiceLearned, paint, marked, chip, learnedOf, legend, hideTip, offsetOf, surprise, shift };
})();
