// Two items of one problem side by side: two runs, a run and an evaluation, two versions.
//
//   #/compare/quickstart/12/later/12
//
// Invariant: their differences are stated in words first; then both trunks are shown in columns, stacked on a phone.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, fmt } = view;
  view.pages ??= {};

  const trunkOf = (item) => (item.kind === "tree" ? item.nodes.filter((node) => node.rollout === 0) : []);
  const resultOf = (item) => (item.kind === "tree" ? item.rollouts[0] : item);
  const idsOf = (item) => (item.kind === "tree" ? trunkOf(item).filter((node) => !node.choices.length).flatMap((node) => node.ids) : item.ids);
  const textOf = (item) => (item.kind === "tree" ? trunkOf(item).filter((node) => !node.choices.length).map((node) => node.text).join("") : item.text ?? "");

  /** The length of the common beginning of two lists. */
  function shared(one, other) {
    let at = 0;
    while (at < Math.min(one.length, other.length) && one[at] === other[at]) at += 1;
    return at;
  }

  // Ids of two models can be of two vocabularies, in which the same text has others.
  const hasOneModel = (one, other) => view.source(one.source)?.facts?.model === view.source(other.source)?.facts?.model;

  /** Where two trunks first differ, in characters of their texts and, if both have ids of one model, at which token. */
  function parting(one, other) {
    const [ids, others] = [idsOf(one), idsOf(other)];
    const [text, otherText] = [textOf(one), textOf(other)];
    const token = ids && others ? shared(ids, others) : null;
    const hasSameIds = token === null || (ids.length === others.length && token === ids.length);
    return { isSame: text === otherText, hasSameIds, token: hasOneModel(one, other) ? token : null, at: shared(text, otherText) };
  }

  const said = (result) => (result.answer === null || result.answer === undefined ? "no answer found" : `answer ${result.answer}`);

  /** What differs between two items, as sentences. */
  function differences(one, other, names) {
    const [first, second] = [resultOf(one), resultOf(other)];
    const words = [];
    if (one.problem.id !== other.problem.id || one.problem.question !== other.problem.question) words.push("These are two different problems.");
    if (first.status === second.status) words.push(`Both are ${view.STATUS[first.status]?.words ?? first.status}${first.answer === second.answer ? `, with the same result: ${said(first)}` : `: ${said(first)} and ${said(second)}`}.`);
    else words.push(`${names[0]} is ${view.STATUS[first.status]?.words ?? first.status} (${said(first)}), ${names[1]} is ${view.STATUS[second.status]?.words ?? second.status} (${said(second)}).`);
    const part = parting(one, other);
    if (part.isSame) words.push(`Both texts are the same${part.hasSameIds ? "" : ", in other tokens"}.`);
    else if (part.at === 0) words.push("They differ from the beginning.");
    else words.push(part.token === null ? `They differ after ${fmt.plural(part.at, "equal character")}.` : `They first differ at token ${fmt.count(part.token + 1)}, after ${fmt.plural(part.at, "equal character")}.`);
    return { words, part };
  }

  // A position in characters, as a mark in the node or the text that contains it.
  function marksOf(item, at) {
    let before = 0;
    for (const node of trunkOf(item).filter((each) => !each.choices.length)) {
      if (at < before + node.text.length) return new Map([[node.id, [markAt(node.text, at - before)]]]);
      before += node.text.length;
    }
    return new Map();
  }

  const markAt = (text, from) => ({ token: -1, from, to: from + Math.max(1, /^\s*\S*/.exec(text.slice(from, from + 80))[0].length) });

  function trunkColumn(item, part, name) {
    if (item.kind !== "tree") return solutionColumn(item, part);
    const only = { ...item, examples: [], rollouts: [item.rollouts[0]], nodes: trunkOf(item).map((node, id) => ({ ...node, id, parent: id ? id - 1 : null, prompt: null })) };
    const state = { mode: "text", focus: null, open: new Map(), prompts: new Set(), probes: new Map() };
    const tree = view.tree.draw(only, state, {});
    tree.shape.marks = part.isSame ? new Map() : marksOf(only, part.at);
    tree.setMode("text");
    for (const card of tree.cards.values()) card.paint();
    for (const button of tree.root.querySelectorAll(".prompt-button")) button.remove();
    return h("div", { class: "compared-trunk", "aria-label": `Trunk of ${name}` }, tree.root);
  }

  function solutionColumn(item, part) {
    const faults = (item.faults ?? []).map((fault) => ({ ...fault, class: "fault", title: fault.why }));
    const mark = part.isSame || part.at >= item.text.length ? [] : [{ ...markAt(item.text, part.at), class: "differs", title: "the first token that differs" }];
    return h("article", { class: "rollout unfolded solo" }, h("div", { class: "node-words" }, view.tokens.marked(item.text, [...faults, ...mark])), view.item.solutionOutcome(item));
  }

  function head(item, name) {
    const version = item.kind === "tree" ? item.nodes[0]?.version : null;
    const place = item.kind === "tree" && version !== null ? `version ${version}` : item.facts?.draw ? `draw ${item.facts.draw}` : null;
    return h("header", { class: "compared-head" }, h("h2", null, h("a", { href: view.to.item(item.source, item.n) }, view.line(name, 80))), h("p", { class: "muted small" }, place, item.batch !== null && item.batch !== undefined && `, batch ${item.batch}`));
  }

  async function fill(root, route, isGone) {
    const [one, other] = await Promise.all([view.get("item", { source: route.source, n: route.n }), view.get("item", { source: route.other.source, n: route.other.n })]);
    if (isGone()) return;
    if ([one, other].some((item) => item.kind === "judgement")) throw new Error("A judgement does not have a solution of its own; trees, traces and predictions can be compared.");
    const plain = [route.source, route.other.source].map((id) => view.source(id)?.name ?? id);
    const names = plain[0] === plain[1] ? [`${plain[0]} ${route.n}`, `${plain[1]} ${route.other.n}`] : plain;
    const { words, part } = differences(one, other, names);
    view.title(view.cut(one.problem.question, 60), "side by side");
    view.replace(root, view.item.problemHead(one.problem), h("section", { class: "differences", "aria-label": "How they differ" }, words.map((line) => h("p", null, view.text(line)))),
      h("div", { class: "compared" }, [one, other].map((item, at) => h("section", { "aria-label": names[at] }, head(item, names[at]), trunkColumn(item, part, names[at])))));
  }

  view.compare = { differences, parting };
  view.pages.compare = {
    render(root, route) {
      let [gone, failed] = [false, false];
      view.replace(root, h("p", { class: "muted" }, "Reading\u2026"));
      const load = async () => {
        failed = false;
        try {
          await fill(root, route, () => gone);
        } catch (error) {
          failed = true;
          if (!gone) view.replace(root, view.failure(error));
          if (error instanceof TypeError) throw error;
        }
      };
      load();
      const isShown = (ids) => ids.has(route.source) || ids.has(route.other.source);
      const stop = view.onChange((ids) => failed && isShown(ids) && load());
      const back = view.keys([{ keys: ["Escape"], words: "back to the first item", run: () => view.go(view.to.item(route.source, route.n)) }]);
      return () => {
        gone = true;
        stop();
        back();
      };
    },
  };
})();
