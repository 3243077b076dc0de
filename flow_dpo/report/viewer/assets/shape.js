// The structure of a tree: which rollouts are beside which node, which are probes, what each pair compares.
//
//   rollout 0 (the trunk): 0 1 2     rollout 1 begins below node 0: it is beside node 1, as its alternative
//   own[0] = [0, 1, 2]               beside.get(1) = [1]
//
// Invariant: pure; every node is in `own` once, and every rollout but the trunk is at one node: beside it, as its
// probe, or after it if the node's own rollout ended there.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const MOST_MARKS = 3;

  function add(map, key, value) {
    if (!map.has(key)) map.set(key, []);
    map.get(key).push(value);
  }

  /** The node to which a rollout is an alternative, otherwise the node after which it begins. */
  function placeOf(item, own, next, id) {
    const parent = item.nodes[own[id][0]].parent;
    const other = parent === null ? own[0]?.[0] : next.get(parent);
    return other === undefined || other === own[id][0] ? { at: parent, after: true } : { at: other, after: false };
  }

  /**
   * The shape of a tree.
   * @param {object} item of kind "tree"
   */
  function shapeOf(item) {
    const own = item.rollouts.map(() => []);
    for (const node of item.nodes) own[node.rollout]?.push(node.id);
    const next = new Map();
    for (const node of item.nodes) {
      if (node.parent !== null && item.nodes[node.parent].rollout === node.rollout && !next.has(node.parent)) next.set(node.parent, node.id);
    }
    const shape = { own, next, beside: new Map(), probes: new Map(), after: new Map(), place: new Map(), loose: [] };
    item.rollouts.slice(1).forEach(({ id, probe }) => {
      if (!own[id].length) return;
      const { at, after } = placeOf(item, own, next, id);
      if (at === null || at === undefined) return void shape.loose.push(id);
      shape.place.set(id, at);
      add(after ? shape.after : probe ? shape.probes : shape.beside, at, id);
    });
    return Object.assign(shape, kindsOf(item, shape), { pairs: pairsOf(item), marks: marksOf(item), common: commonTags(item) });
  }

  // In a search, alternatives branch off; a group is whole rollouts from the beginning, with only probes below.
  function kindsOf(item, shape) {
    const trunk = shape.own[0]?.[0];
    const fromRoot = shape.beside.get(trunk) ?? [];
    const places = [...shape.beside.keys(), ...shape.after.keys()];
    const group = fromRoot.length > 0 && places.every((at) => at === trunk) && (fromRoot.length > 1 || shape.own[0].length === 1);
    const search = places.some((at) => item.nodes[at].rollout !== 0) || item.rollouts.some((rollout) => rollout.value !== null);
    return { group, search: search && !item.rollouts.some((rollout) => rollout.probe) };
  }

  /** Tags that every node has, and so distinguish none. */
  const commonTags = (item) => new Set((item.nodes[0]?.tags ?? []).filter((tag) => item.nodes.every((node) => node.tags.includes(tag))));

  /** By node, the pairs shown there: each at its later side. */
  function pairsOf(item) {
    const found = new Map();
    for (const example of item.examples) {
      if (example.kind === "pair") add(found, Math.max(example.chosen, example.rejected), example);
    }
    return found;
  }

  /** By node, where it first differs from a sibling: from the first sibling and from the nearest few others. */
  function marksOf(item) {
    const first = new Map();
    const found = new Map();
    for (const node of item.nodes) {
      const key = `${node.parent}/${node.role}`;
      if (!first.has(key)) first.set(key, node.id);
      if (node.differs === null) continue;
      const other = item.nodes[first.get(key)];
      add(found, node.id, markOf(node, node.differs, other));
      if (!item.rollouts[node.rollout]?.probe) add(found, other.id, markOf(other, node.differs, node));
    }
    for (const [id, marks] of found) {
      const unique = [...new Map(marks.map((mark) => [mark.token, mark])).values()];
      found.set(id, unique.sort((one, two) => one.token - two.token).slice(0, MOST_MARKS));
    }
    return found;
  }

  // If tokens have no text of their own, the first differing character and the rest of its word are marked instead.
  function markOf(node, token, other) {
    const start = view.tokens.offsetOf(node.pieces, token);
    if (start !== null) return { token, from: start, to: start + (node.pieces[token]?.length ?? 0) };
    let from = 0;
    while (from < node.text.length && node.text[from] === other.text[from]) from += 1;
    const word = /^\s*\S*/.exec(node.text.slice(from, from + 80))[0];
    return { token, from, to: from + word.length };
  }

  /** The sum of a list of log-probabilities; null if one is unknown. */
  const sum = (values) => (values?.every((value) => typeof value === "number") ? values.reduce((one, two) => one + two, 0) : null);

  /**
   * How much more the policy preferred the chosen side than the reference did, in nats, at each learning.
   * @returns {{version: number|null, value: number|null, policyOnly: boolean}[]}
   */
  function implicitMargins(pair) {
    return (pair.learned ?? []).map((row) => {
      const [chosen, rejected] = (row.policy ?? []).map(sum);
      const [base, other] = row.reference ? row.reference.map(sum) : [0, 0];
      const all = [chosen, rejected, base, other];
      const value = all.every((each) => typeof each === "number") ? chosen - base - (rejected - other) : null;
      return { version: row.version, value, policyOnly: !row.reference };
    });
  }

  /** The rollouts that contain a node, from the one that it was sampled in up to the trunk. */
  function rolloutsAbove(item, shape, id) {
    const found = [];
    for (let at = id; at !== undefined && at !== null; at = shape.place.get(found.at(-1))) found.push(item.nodes[at].rollout);
    return found;
  }

  view.shape = { of: shapeOf, implicitMargins, rolloutsAbove };
})();
