// The page of one item: question and outcome on top, then its tree, its solution or its judgement.
//
//   #/s/quickstart/12?node=5&tokens=logprob
//
// Invariant: the focus and the colouring of tokens are in the hash; when the files change, the item is drawn again with
// the same folds and the same focus.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt, icon } = view;
  const MOST_ELSEWHERE = 60;
  view.pages ??= {};

  // ---- The head: problem, outcome, where else ---------------------------------------------------------------------------

  function facts(pairs) {
    const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return h("dl", { class: "known-facts" }, shown.map(([name, value, title]) => h("div", { title }, h("dt", null, name), h("dd", null, typeof value === "object" ? value : view.line(value, 120)))));
  }

  /** Question, gold and the data set's own solution. */
  function problemHead(problem) {
    const place = [problem.id, problem.source, problem.level && `level ${problem.level}`, problem.subject].filter(Boolean);
    const solution = problem.solution && h("details", { class: "solution-of" }, h("summary", null, "The data set\u2019s solution"), h("div", { class: "quoted" }, view.text(problem.solution)));
    return h("header", { class: "asked" },
      h("p", { class: "asked-place" }, place.map((part, at) => [at ? " \u00b7 " : "", view.line(part, 80)])),
      h("h1", { class: "asked-words" }, problem.question ? view.text(problem.question, { limit: 1200 }) : "The question of this problem was not recorded"),
      h("div", { class: "gold-line" }, problem.question && h("p", null, h("span", { class: "muted" }, "gold "), problem.gold ? h("b", null, view.line(problem.gold, 200)) : h("span", { class: "muted" }, "none: reward functions grade")), solution));
  }

  const count = (rollouts, status) => rollouts.filter((rollout) => rollout.status === status).length;

  function treeFacts(item) {
    const others = item.rollouts.filter((rollout) => !rollout.probe);
    const probes = item.rollouts.filter((rollout) => rollout.probe);
    const graded = (rollouts) => count(rollouts, "correct") + count(rollouts, "wrong");
    const share = (rollouts) => [graded(rollouts) && `${count(rollouts, "correct")} of ${graded(rollouts)} right`, graded(rollouts) < rollouts.length && `${rollouts.length - graded(rollouts)} not graded`].filter(Boolean).join(", ");
    const pairs = item.examples.filter((example) => example.kind === "pair").length;
    const scored = item.examples.length - pairs;
    const trunk = item.rollouts[0];
    const flips = trunk && others.some((rollout) => [rollout.status, trunk.status].sort().join() === "correct,wrong");
    const yes = item.nodes.filter((node) => node.rollout === 0 && node.yes !== null).at(-1);
    const skipped = Object.entries(item.skipped ?? {}).filter(([, num]) => num).map(([role, num]) => fmt.plural(num, `${role} node`)).join(", ");
    return facts([
      ["rollouts", share(others)],
      ["probes", probes.length ? share(probes) : null, "rollouts sampled only to estimate how good a state is"],
      ["flipped by another rollout", others.length > 1 ? (flips ? "yes" : "no") : null, "a rollout that branched off is right and the trunk wrong, or the reverse"],
      ["learned from", [pairs && fmt.plural(pairs, "pair"), scored && fmt.plural(scored, "scored completion")].filter(Boolean).join(", ") || "nothing"],
      [["last P(", view.line(item.words?.[yes?.role]?.[0] ?? "first choice", 24), ") on the trunk"], yes && fmt.share(yes.yes)],
      ["sampled by version", item.nodes[0]?.version, "updates of the policy before it sampled this"],
      ["batch", item.batch, "from 0; its problems were sampled, and learned from, together"],
      ["no alternative had any probability at", skipped || null, "nodes of the trunk without a sampled alternative: the policy was certain of what it wrote"],
    ]);
  }

  // A judgement does not have a solution of its own.
  const comparable = (item) => (item.kind === "judgement" ? [] : item.elsewhere.filter((other) => other.kind !== "judgements"));

  function elsewhere(item) {
    if (!item.elsewhere?.length) return null;
    const times = (source) => item.elsewhere.filter((other) => other.source === source).length + (source === item.source);
    const name = (other) => `${other.name ?? other.source}${times(other.source) > 1 ? `, ${view.noun(other.kind)} ${other.n}` : ""}`;
    const row = (other) => h("li", null, other.kind === "judgements" ? h("span", { class: "muted" }, view.statusWords(other.status)) : view.verdict(other.status), " ", h("a", { href: view.to.item(other.source, other.n) }, view.line(name(other), 80)),
      other.version !== null && other.version !== undefined && h("span", { class: "muted" }, ` version ${other.version}`), " ",
      comparable(item).includes(other) && h("a", { class: "button small-button", href: view.to.compare(item.source, item.n, other.source, other.n), "aria-label": view.node.plain(`Side by side with ${name(other)}`) }, "side by side"));
    const shown = item.elsewhere.slice(0, MOST_ELSEWHERE);
    const more = item.elsewhere.length - shown.length;
    return h("details", { class: "elsewhere", open: item.elsewhere.length <= 3 }, h("summary", null, `The same problem in ${fmt.plural(item.elsewhere.length, "other place")}`), h("ul", null, shown.map(row), more > 0 && h("li", { class: "muted" }, `and ${more} more`)));
  }

  function notes(item) {
    if (!item.notes?.length) return null;
    return h("details", { class: "item-notes" }, h("summary", null, icon("note"), ` ${fmt.plural(item.notes.length, "field")} of this row could not be read`), h("ul", null, item.notes.map((note) => h("li", null, view.text(note)))));
  }

  // ---- Solutions and judgements ------------------------------------------------------------------------------------------

  const solutionOutcome = (item) => view.tree.outcome(item, { ...item, value: null, tokens: item.ids?.length ?? item.facts?.tokens ?? 0, logprob: null });

  function solutionBody(item) {
    const { facts: known = {} } = item;
    const labels = { draw: "draw", draws_used: "draws for this problem", tokens: "tokens sampled, all roles", tokens_spent: "tokens for this problem", who: "written by" };
    const rows = Object.entries(labels).map(([name, words]) => [words, known[name] === "" ? null : typeof known[name] === "string" ? known[name].replaceAll("_", " ") : known[name]]);
    const more = [["P(Yes)", known.yes ?? null], ["log-probability per token", known.mean_logprob ?? null]].map(([name, value]) => [name, value === null ? null : name === "P(Yes)" ? fmt.share(value) : fmt.decimal(value, 3)]);
    const chat = item.messages && h("details", { class: "solution-of" }, h("summary", null, "The chat before the solution"), item.messages.map((message) => h("div", { class: "quoted" }, h("p", { class: "node-meta" }, view.line(message.role, 40)), view.text(message.content))));
    const node = { text: item.text, faults: item.faults ?? [] };
    const whys = [...new Set(node.faults.map((fault) => fault.why))];
    const beside = facts([...rows, ...more, ["end", known.ended === undefined ? null : known.ended ? "its end token" : "cut off, or closed by Stop"]]);
    const body = [
      chat,
      h("article", { class: "rollout unfolded solo" }, h("div", { class: "node-words" }, view.tokens.marked(node.text, node.faults.map((fault) => ({ ...fault, class: "fault", title: fault.why })))),
        whys.length > 0 && h("p", { class: "wrong-steps" }, icon("wrong"), h("span", null, view.line(whys.join("; "), 400)))),
    ];
    return { beside, body };
  }

  function judgementBody(item) {
    const winner = { a: "A is preferred", b: "B is preferred", tie: "a tie" }[item.preferred] ?? "no verdict";
    const side = (name) => h("article", { class: `rollout unfolded ${item.preferred === name ? "is-right" : ""}` }, h("h2", null, name.toUpperCase(), item.preferred === name && " \u00b7 preferred", item.first === name && h("span", { class: "bit" }, " shown first")), h("div", { class: "node-words" }, view.text(item.texts[name])));
    const beside = facts([["verdict", winner], ["the judge\u2019s \u201cA\u201d stands for", item.first?.toUpperCase()], ["log-odds of A over B as shown", item.log_odds === null ? null : fmt.signed(item.log_odds)], ["no verdict because", item.reason]]);
    const body = [
      item.texts && h("div", { class: "rollouts in-columns" }, ["a", "b"].filter((name) => item.texts[name]).map(side)),
      h("section", { "aria-label": "The judge\u2019s words" }, h("h2", null, "The judge\u2019s words"), h("div", { class: "quoted" }, item.words ? view.text(item.words) : "none")),
    ];
    return { beside, body };
  }

  // ---- The page ------------------------------------------------------------------------------------------------------------

  function toolbar(page) {
    const buttons = view.tokens.MODES.map(({ name, words }) => h("button", { type: "button", role: "radio", "aria-checked": String(page.state.mode === name), dataset: { mode: name }, onclick: () => page.setMode(name) }, words));
    page.legend = h("span", { class: "legend-place" }, view.tokens.legend(page.state.mode));
    const all = (isOpen) => () => page.tree.toggleAll(isOpen);
    const folds = h("span", { class: "fold-buttons" }, h("button", { type: "button", class: "button", onclick: all(true) }, "unfold"), h("button", { type: "button", class: "button", onclick: all(false) }, "fold"));
    return h("div", { class: "tree-tools", role: "toolbar", "aria-label": "How the tree is shown" }, h("div", { class: "segments", role: "radiogroup", "aria-label": "Tokens" }, buttons), page.legend, page.item.rollouts.length > 1 && folds);
  }

  function steps(page) {
    const link = (words, name, key) => h("button", { type: "button", class: "icon-button", disabled: true, title: `${words} (${key})`, "aria-label": words, dataset: { step: name }, onclick: () => page.step(name) }, icon(name === "next" ? "forward" : "back"));
    return h("span", { class: "item-steps" }, link("Previous problem", "previous", "p"), link("Next problem", "next", "n"));
  }

  class ItemPage {
    constructor(root, route) {
      Object.assign(this, { root, source: route.source, n: route.n, item: null, tree: null, around: {}, isGone: false });
      const node = route.params.get("node");
      this.state = { mode: modeOf(route), focus: /^\d+$/.test(node ?? "") ? Number(node) : null, open: new Map(), prompts: new Set(), probes: new Map() };
      view.replace(root, h("p", { class: "muted" }, "Reading\u2026"));
      this.bind(this.keys());
      this.ends = [view.onChange((ids) => ids.has(this.source) && this.readAll())];
      this.readAll();
    }

    /** The item, and the problems before and after it, as a running run adds new ones. */
    readAll() {
      this.load();
      const without = (error) => {
        console.warn(error.message);
        return this.around;
      };
      this.neighbours = view.neighbours(this.source, this.n).catch(without);
      this.neighbours.then((around) => this.showSteps(around));
    }

    async load() {
      try {
        const item = await view.get("item", { source: this.source, n: this.n });
        if (!this.isGone) this.draw(item);
      } catch (error) {
        if (this.isGone || (error.lost && this.item)) return;
        Object.assign(this, { print: null, tree: null }); // so that the next answer is drawn, even if it is as before
        view.replace(this.root, view.failure(error));
        if (!(error instanceof Error) || error instanceof TypeError) throw error;
      }
    }

    draw(item) {
      const print = JSON.stringify({ ...item, stamp: null, total: null, elsewhere: null });
      if (print === this.print) return;
      const isFirst = this.item === null;
      Object.assign(this, { item, print });
      view.title(view.cut(item.problem.question.replace(/\s+/g, " "), 60));
      if (item.kind === "tree") this.drawTree(item, isFirst);
      else {
        const { beside, body } = item.kind === "judgement" ? judgementBody(item) : solutionBody(item);
        view.replace(this.root, steps(this), h("div", { class: "item-top" }, h("div", null, problemHead(item.problem), item.kind === "solution" && h("div", { class: "trunk-result" }, solutionOutcome(item)), elsewhere(item), notes(item)), beside), h("div", { class: "item-body" }, body));
      }
      this.showSteps(this.around);
      if (isFirst && document.activeElement?.id === "main") this.focusHeading();
    }

    // The frame looked for a heading before the item had loaded.
    focusHeading() {
      const heading = this.root.querySelector("h1");
      heading.tabIndex = -1;
      heading.focus({ preventScroll: true });
    }

    drawTree(item, isFirst) {
      if (!this.tree) this.bind([...this.treeKeys(), ...this.keys()]);
      if (!item.nodes[this.state.focus]) this.state.focus = null; // of an address, or of the tree that was here before
      const held = !isFirst && this.root.contains(document.activeElement);
      const { scrollY } = window;
      this.tree = view.tree.draw(item, this.state, { onFocus: () => this.write() });
      const result = h("div", { class: "trunk-result" }, view.tree.outcome(item, item.rollouts[0]));
      const top = h("div", { class: "item-top" }, h("div", null, problemHead(item.problem), result, elsewhere(item), notes(item)), treeFacts(item));
      view.replace(this.root, steps(this), top, toolbar(this), this.tree.root);
      const asked = this.state.focus;
      if (asked !== null && item.nodes[asked] && (isFirst || held)) this.tree.go(asked);
      else if (this.tree.element(0)) this.tree.element(0).tabIndex = 0;
      if (!isFirst) window.scrollTo(0, scrollY);
    }

    /** A link on this page led to another node, or to another view of the tokens. */
    update(route) {
      const mode = modeOf(route);
      if (mode !== this.state.mode) this.setMode(mode);
      const node = route.params.get("node");
      if (/^\d+$/.test(node ?? "") && Number(node) !== this.state.focus) this.tree?.go(Number(node));
    }

    write() {
      view.setParams({ node: this.state.focus, tokens: this.state.mode === "text" ? null : this.state.mode });
    }

    setMode(mode) {
      view.tokens.hideTip();
      if (!this.tree) return;
      this.tree.setMode(mode);
      for (const button of this.root.querySelectorAll("[data-mode]")) button.setAttribute("aria-checked", String(button.dataset.mode === mode));
      view.replace(this.legend, view.tokens.legend(mode));
      this.write();
    }

    showSteps(around) {
      this.around = around;
      for (const button of this.root.querySelectorAll("[data-step]")) button.disabled = (around[button.dataset.step] ?? null) === null;
    }

    async step(name) {
      const to = (await this.neighbours)[name] ?? null;
      if (to !== null && !this.isGone) view.go(view.to.item(this.source, to, { tokens: this.state.mode === "text" ? null : this.state.mode }));
    }

    walk(way) {
      if (!this.tree) return;
      const at = this.state.focus;
      const isShown = at !== null && this.tree.element(at) === document.activeElement;
      this.tree.go(isShown || (at !== null && way === null) ? view.walk[way](this.tree, at) : at ?? 0);
    }

    bind(keys) {
      this.release?.();
      this.release = view.keys(keys);
    }

    // On a page without a tree these keys stay the browser's: arrows scroll.
    treeKeys() {
      const at = () => this.state.focus ?? 0;
      const nextMode = () => view.tokens.MODES[(view.tokens.MODES.findIndex(({ name }) => name === this.state.mode) + 1) % view.tokens.MODES.length].name;
      return [
        { keys: ["j", "ArrowDown"], words: "down the rollout", run: () => this.walk("down") },
        { keys: ["k", "ArrowUp"], words: "up the rollout", run: () => this.walk("up") },
        { keys: ["l", "ArrowRight"], words: "into an alternative, or to the next one", run: () => this.walk("right") },
        { keys: ["h", "ArrowLeft"], words: "back towards the trunk", run: () => this.walk("left") },
        { keys: ["o", "Enter"], words: "fold or unfold", run: () => this.tree && view.walk.fold(this.tree, at()) },
        { keys: ["t"], words: "colour the tokens: text, log-probability, policy \u2212 reference", run: () => this.setMode(nextMode()) },
        { keys: ["r"], words: "the prompt of the node", run: () => this.tree?.togglePrompt(at()) },
      ];
    }

    keys() {
      return [
        { keys: ["n"], words: "next problem", run: () => this.step("next") },
        { keys: ["p"], words: "previous problem", run: () => this.step("previous") },
        { keys: ["c"], words: "compare with the same problem in another source", run: () => this.compare() },
        { keys: ["Escape"], words: "back to the list", run: () => view.go(view.to.list(this.source, view.list.paramsOf(this.source))) },
      ];
    }

    compare() {
      const [other] = this.item ? comparable(this.item) : [];
      if (other) view.go(view.to.compare(this.source, this.n, other.source, other.n));
    }

    cleanup() {
      this.isGone = true;
      view.tokens.hideTip();
      for (const end of [this.release, ...this.ends]) end();
    }
  }

  function modeOf(route) {
    const asked = route.params.get("tokens");
    return view.tokens.MODES.some(({ name }) => name === asked) ? asked : "text";
  }

  view.item = { problemHead, solutionOutcome };
  view.pages.item = { render: (root, route) => new ItemPage(root, route) };
})();
