// A tree of rollouts: the trunk as a column with the alternatives beside each node, or a group of rollouts in columns.
//
//   const tree = view.tree.draw(item, state, {onFocus: (id) => {}});   root.append(tree.root);   tree.go(7)
//
// Invariant: every node is on the page once, as a card or within the single line of a folded rollout; cards are made
// when they are first seen, so a tree of thousands of nodes opens as fast as a small one.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt, icon } = view;
  const OPEN_NODES = 160;
  const SMALL_TREE = 48;
  const OPEN_BESIDE = 3;
  const OPEN_COLUMNS = 8;
  const MOST_NODES = 3000;
  const MOST_CELLS = 24;
  const MOST_BOXES = 100;
  const MOST_IN_CHAIN = 300;

  // ---- The outcome of a rollout -----------------------------------------------------------------------------------------

  function found(item, rollout) {
    if (rollout.status === "stopped") return h("span", null, `stopped early, value ${fmt.signed(rollout.value)}`);
    const why = rollout.reason || "no answer found";
    const answer = rollout.answer === null ? view.line(why, 200) : ["answer ", h("b", null, view.line(rollout.answer, 80))];
    return h("span", null, answer, rollout.status === "wrong" && item.problem.gold && [", gold ", view.line(item.problem.gold, 80)]);
  }

  /** The last line of a rollout: verdict, answer, why, reward, length. */
  function outcome(item, rollout) {
    const known = view.STATUS[rollout.status] ?? view.STATUS.ungraded;
    const measures = Object.entries(rollout.measures ?? {}).map(([name, value]) => h("span", { class: "bit" }, view.line(name, 60), ` ${fmt.figure(value)}`));
    return h("footer", { class: `outcome ${known.class}` },
      h("span", { class: "verdict" }, icon(known.icon), known.words), found(item, rollout),
      rollout.reason && rollout.answer !== null && h("span", { class: "bit" }, view.line(rollout.reason, 200)),
      rollout.reward !== null && h("span", { class: "bit" }, `reward ${fmt.figure(rollout.reward)}`), measures,
      h("span", { class: "bit" }, fmt.plural(rollout.tokens, "token"), rollout.logprob !== null && `, log-probability ${fmt.decimal(rollout.logprob)}`));
  }

  // ---- Boxes of rollouts -----------------------------------------------------------------------------------------------

  function summary(tree, id) {
    const { item, shape } = tree;
    const rollout = item.rollouts[id];
    const known = view.STATUS[rollout.status] ?? view.STATUS.ungraded;
    const start = item.nodes[shape.own[id][0]];
    const side = view.node.SIDES[start.side];
    const facts = [rollout.answer !== null && h("span", { class: "bit" }, view.line(rollout.answer, 40)), h("span", { class: "bit" }, fmt.plural(shape.own[id].length, "node")), view.node.advantageMark(tree, start), side && h("span", { class: `signed ${side.class}` }, `${side.sign} ${side.words}`)];
    return h("button", { type: "button", class: `fold-line ${view.roleClass(tree.roles, start.role)}`, "aria-expanded": "false", dataset: { node: start.id }, onclick: () => tree.toggle(id), onfocus: () => tree.focused(start.id) },
      h("span", { class: "fold-head" }, icon("forward"), h("span", { class: known.class }, icon(known.icon), view.spoken(known.words)), h("span", { class: "rollout-name" }, `rollout ${id}`), facts), view.line(start.text || rollout.text, 160));
  }

  function opened(tree, id) {
    const rollout = tree.item.rollouts[id];
    const known = view.STATUS[rollout.status] ?? view.STATUS.ungraded;
    const fold = h("button", { type: "button", class: "fold-head", "aria-expanded": "true", tabindex: "-1", onclick: () => tree.toggle(id) },
      icon("down"), h("span", { class: known.class }, icon(known.icon), view.spoken(known.words)), h("span", { class: "rollout-name" }, `rollout ${id}`), id === 0 && h("span", { class: "bit" }, "the trunk"), rollout.probe && h("span", { class: "bit" }, "probe"));
    return [fold, nodesOf(tree, id), outcome(tree.item, rollout)];
  }

  function box(tree, id) {
    const isOpen = tree.isOpen(id);
    const status = view.STATUS[tree.item.rollouts[id].status]?.class ?? "ungraded";
    const element = h("article", { class: `rollout ${isOpen ? "unfolded" : "is-folded"} is-${status}`, "aria-label": `Rollout ${id}, ${tree.item.rollouts[id].status}` }, isOpen ? opened(tree, id) : summary(tree, id));
    tree.boxes.set(id, element);
    return element;
  }

  /** Boxes of rollouts, a hundred at a time. */
  function boxes(tree, ids, name) {
    const place = h("div", { class: name }, ids.slice(0, MOST_BOXES).map((id) => box(tree, id)));
    tree.places.unshift({ ids, place });
    if (ids.length > MOST_BOXES) {
      const more = h("button", { type: "button", class: "button" }, `show ${fmt.count(ids.length - MOST_BOXES)} more rollouts`);
      more.addEventListener("click", () => more.replaceWith(...ids.slice(MOST_BOXES).map((id) => box(tree, id))));
      place.append(more);
    }
    return place;
  }

  function nodesOf(tree, id) {
    return chain(tree, "chain", tree.shape.own[id], (node) => h("li", null, around(tree, node, true)));
  }

  /** The nodes of a rollout as a list, some hundred at a time; `tree.reveal` draws all nodes up to a given one. */
  function chain(tree, name, ids, draw) {
    const more = h("li", { class: "chain-more" });
    const list = h("ol", { class: name }, more);
    let shown = 0;
    const show = (upTo) => {
      for (const end = Math.min(ids.length, upTo); shown < end; shown++) more.before(draw(ids[shown], shown));
      const left = ids.length - shown;
      if (!left) return void more.remove();
      const step = Math.min(MOST_IN_CHAIN, left);
      more.style.setProperty("--row", shown + 1);
      view.replace(more, h("button", { type: "button", class: "button", onclick: () => show(shown + step) }, `show ${fmt.count(step)} more of ${fmt.count(left)} nodes`));
    };
    show(MOST_IN_CHAIN);
    tree.chains.push({ list, places: new Map(ids.map((node, at) => [node, at])), show });
    return list;
  }

  /** A node's card, with its probes before it and, in a chain, the rollouts beside and after it. */
  function around(tree, node, nested) {
    const beside = nested ? tree.shape.beside.get(node) : null;
    const after = tree.shape.after.get(node);
    const group = tree.shape.group && tree.item.nodes[node].parent === null;
    return [
      strip(tree, node),
      tree.card(node),
      beside && !group && h("section", { class: "nested", "aria-label": `Instead of node ${node}` }, h("p", { class: "node-meta" }, `instead of #${node}`), boxes(tree, beside, "rollouts")),
      after && h("section", { class: "nested", "aria-label": `After node ${node}` }, h("p", { class: "node-meta" }, `continues after #${node}`), boxes(tree, after, "rollouts")),
    ];
  }

  // ---- Probes ------------------------------------------------------------------------------------------------------------

  function strip(tree, node) {
    const ids = tree.shape.probes.get(node);
    if (!ids) return null;
    const place = h("div", { class: "probe-place" });
    const fill = () => view.replace(place, stripButton(tree, node, ids), tree.probesOpen(node) && boxes(tree, ids, "rollouts"));
    tree.strips.set(node, fill);
    fill();
    return place;
  }

  function stripButton(tree, node, ids) {
    const statuses = ids.map((id) => tree.item.rollouts[id].status);
    const right = statuses.filter((status) => status === "correct").length;
    const graded = statuses.filter((status) => status === "correct" || status === "wrong").length;
    const cells = statuses.slice(0, MOST_CELLS).map((status) => h("span", { class: `probe-cell ${view.STATUS[status]?.class ?? "ungraded"}` }));
    const isOpen = tree.probesOpen(node);
    const pairs = tree.pairsAmong(ids);
    return h("button", { type: "button", class: "probe-strip", "aria-expanded": String(isOpen), tabindex: "-1", title: `rollouts sampled only to estimate how good the state before node ${node} is`, onclick: () => tree.toggleProbes(node) },
      icon(isOpen ? "down" : "forward"), h("span", { class: "cells-of", "aria-hidden": "true" }, cells, ids.length > MOST_CELLS && "\u2026"), h("span", null, `${right} of ${graded} probes right`), graded < ids.length && h("span", { class: "bit" }, `${ids.length - graded} ungraded`), pairs > 0 && h("span", { class: "bit" }, `${fmt.plural(pairs, "pair")} among them`));
  }

  // ---- The whole tree ----------------------------------------------------------------------------------------------------

  /**
   * Where the rollouts beside each node go: their row, and the row before which the next ones begin, in one lane and in
   * two. With two lanes, every other node's go into the second lane, and a line leads there behind the first.
   */
  function lanesOf(trunk, shape) {
    const with_ = trunk.map((node, at) => ({ node, row: at + 1 })).filter(({ node }) => shape.beside.has(node));
    const last = trunk.length + 2;
    return new Map(with_.map(({ node, row }, at) => [node, { row, one: with_[at + 1]?.row ?? last, two: with_[at + 2]?.row ?? last, lane: 2 + (at % 2) }]));
  }

  function trunkRows(tree) {
    const trunk = tree.shape.own[0] ?? [];
    const lanes = lanesOf(trunk, tree.shape);
    const draw = (node, at) => {
      const left = h("div", { class: "trunk-cell", style: { "--row": at + 1 } }, h("div", { class: "trunk-node" }, around(tree, node, false)));
      if (!lanes.has(node)) return h("li", null, left);
      const beside = tree.shape.beside.get(node);
      const right = boxes(tree, beside, `rollouts beside${beside.length > 1 ? " side-by-side" : ""}`);
      const { row, one, two, lane } = lanes.get(node);
      for (const [name, value] of Object.entries({ "--row": row, "--one": one, "--two": two, "--lane": lane })) right.style.setProperty(name, value);
      if (lane === 3) right.classList.add("lane-two");
      return h("li", null, left, right);
    };
    const end = h("li", null, h("div", { class: "trunk-cell trunk-end", style: { "--row": trunk.length + 1 } }, outcome(tree.item, tree.item.rollouts[0])));
    const list = chain(tree, `trunk${lanes.size > 1 ? " two-lanes" : ""}`, trunk, draw);
    list.append(end);
    return list;
  }

  function caption(shape) {
    const words = shape.group
      ? "Rollouts from the question to the end. The first is the trunk."
      : shape.beside.size ? "The trunk, from the question to the end. Beside each of its nodes: alternatives to it, each continued to the end." : null;
    return words && h("p", { class: "tree-caption" }, words);
  }

  function whole(tree) {
    const { shape } = tree;
    const trunk = shape.own[0]?.[0];
    const columns = shape.group ? [0, ...(shape.beside.get(trunk) ?? [])] : [];
    const apart = shape.loose.length ? [h("h3", null, "Rollouts that are attached to no node of the tree"), boxes(tree, shape.loose, "rollouts in-columns")] : null;
    const main = shape.group ? boxes(tree, columns, "rollouts in-columns") : trunkRows(tree);
    return h("div", { class: `tree ${shape.group ? "as-group" : "as-trunk"}` }, caption(shape), main, apart);
  }

  /** Rollouts that were learned from, then the others, each in their order. */
  function mostTelling(shape, ids, learned) {
    const tells = (id) => shape.own[id].some((node) => learned.has(node));
    return [...ids.filter(tells), ...ids.filter((id) => !tells(id))];
  }

  /** Rollouts that are open at first: those nearest to the trunk, as many as fit on a screen or two. */
  function opensAtFirst(item, shape) {
    const open = new Set([0]);
    let left = OPEN_NODES - (shape.own[0]?.length ?? 0);
    const most = shape.group ? OPEN_COLUMNS - 1 : OPEN_BESIDE;
    const learned = new Set(item.examples.flatMap((example) => [example.node, example.chosen, example.rejected]));
    const isSmall = item.nodes.length <= SMALL_TREE;
    // The set grows during the loop: in a small tree, an open rollout also opens those beside its nodes.
    for (const rollout of open) {
      if (rollout !== 0 && !isSmall) break;
      for (const node of shape.own[rollout] ?? []) {
        const beside = shape.beside.get(node) ?? [];
        for (const id of mostTelling(shape, beside, learned).slice(0, most)) {
          left -= shape.own[id].length;
          if (left >= 0) open.add(id);
        }
      }
    }
    return open;
  }

  /** The version that sampled most of a tree; only other versions are named at their nodes. */
  function commonVersion(item) {
    const counts = new Map();
    for (const node of item.nodes) counts.set(node.version, (counts.get(node.version) ?? 0) + 1);
    return [...counts].sort((one, two) => two[1] - one[1])[0]?.[0] ?? null;
  }

  // In the order of the whole source, so a role has the same colour on all pages.
  const rolesOf = (item) => [...new Set([...(view.source(item.source)?.facts?.roles ?? []), ...item.roles])];

  class Tree {
    constructor(item, state, hooks) {
      Object.assign(this, { item, state, hooks, shape: view.shape.of(item), roles: rolesOf(item), version: commonVersion(item) });
      // Without this, a small search tree would look like a trunk with alternatives.
      this.shape.search ||= view.source(item.source)?.facts?.recipe === "cpl";
      Object.assign(this, { cards: new Map(), boxes: new Map(), strips: new Map(), places: [], chains: [] });
      this.first = opensAtFirst(item, this.shape);
      this.root = whole(this);
    }

    isOpen(id) {
      return this.state.open.get(id) ?? (this.first.has(id) || (this.item.rollouts[id].probe && this.shape.own[id].length <= 6));
    }

    card(id) {
      const card = view.node.card(this, id);
      this.cards.set(id, card);
      return card.element;
    }

    /** Folds or unfolds a rollout. */
    toggle(id, isOpen = !this.isOpen(id)) {
      const known = this.boxes.get(id);
      if (!known || isOpen === this.isOpen(id)) return;
      const held = known.contains(document.activeElement);
      this.state.open.set(id, isOpen);
      known.replaceWith(box(this, id));
      if (held) this.go(this.shape.own[id][0]);
    }

    /** Folds or unfolds all rollouts and probes; in a large tree, as many as a page can hold. */
    toggleAll(isOpen) {
      let left = MOST_NODES;
      const done = new Set();
      // Unfolding creates new boxes and strips; repeat until there are none.
      for (let at = -1; at !== done.size && left > 0; ) {
        at = done.size;
        for (const node of this.strips.keys()) {
          if (left > 0 && !done.has(`probes ${node}`)) this.toggleProbes(node, isOpen);
          done.add(`probes ${node}`);
        }
        for (const id of this.boxes.keys()) {
          if (left <= 0 || done.has(id)) continue;
          done.add(id);
          left -= this.shape.own[id].length;
          if (!(id === 0 && !isOpen)) this.toggle(id, isOpen);
        }
      }
    }

    /** The number of pairs shown at the first nodes of these rollouts. */
    pairsAmong(ids) {
      return ids.reduce((count, id) => count + (this.shape.pairs.get(this.shape.own[id][0])?.length ?? 0), 0);
    }

    /** Probes are folded, unless pairs were made from them. */
    probesOpen(node) {
      return this.state.probes.get(node) ?? (this.item.nodes.length <= OPEN_NODES && this.pairsAmong(this.shape.probes.get(node)) > 0);
    }

    toggleProbes(node, isOpen = !this.probesOpen(node)) {
      this.state.probes.set(node, isOpen);
      this.strips.get(node)?.();
    }

    togglePrompt(id) {
      if (!this.state.prompts.delete(id)) this.state.prompts.add(id);
      this.cards.get(id)?.showPrompt();
    }

    setMode(mode) {
      this.state.mode = mode;
      for (const card of this.cards.values()) if (card.element.isConnected) card.paint();
    }

    /** The element of a node: its card, or the single line of its folded rollout. */
    element(id) {
      const card = this.cards.get(id)?.element;
      if (card?.isConnected) return card;
      return this.boxes.get(this.item.nodes[id].rollout)?.querySelector("button.fold-line") ?? null;
    }

    focused(id) {
      const before = this.element(this.state.focus ?? id);
      if (before && before !== this.element(id)) before.tabIndex = -1;
      this.state.focus = id;
      const element = this.element(id);
      if (element) element.tabIndex = 0;
      this.hooks.onFocus?.(id);
    }

    /** Draws a long rollout up to a node. */
    reveal(id) {
      if (this.cards.get(id)?.element.isConnected) return;
      for (const { list, places, show } of this.chains) if (list.isConnected && places.has(id)) show(places.get(id) + 1);
    }

    /** Opens whatever a node is hidden in, and moves the focus to it. */
    go(id) {
      if (!this.item.nodes[id]) return;
      for (const rollout of view.shape.rolloutsAbove(this.item, this.shape, id).reverse()) {
        const at = this.shape.place.get(rollout);
        if (at !== undefined) this.reveal(at);
        if (this.item.rollouts[rollout].probe && at !== undefined && !this.probesOpen(at)) this.toggleProbes(at, true);
        if (!this.boxes.has(rollout)) this.places.find(({ ids }) => ids.includes(rollout))?.place.querySelector(":scope > .button")?.click();
        const isLast = rollout === this.item.nodes[id].rollout;
        if (!isLast || id !== this.shape.own[rollout][0]) this.toggle(rollout, true);
      }
      this.reveal(id);
      const element = this.element(id);
      element?.focus({ preventScroll: true });
      element?.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }

  view.tree = { draw: (item, state, hooks = {}) => new Tree(item, state, hooks), outcome, found };
})();
