// Moving from node to node by keys: down and up a rollout, into an alternative and back.
//
//   view.walk.down(tree, 3) -> 4      view.walk.right(tree, 4) -> 9, the first node of the rollout beside it
//
// Invariant: pure functions of a tree's shape; if there is nowhere to go, they return the node itself.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});

  const chainOf = ({ item, shape }, id) => shape.own[item.nodes[id].rollout];

  function down(tree, id) {
    const chain = chainOf(tree, id);
    return chain[chain.indexOf(id) + 1] ?? id;
  }

  function up(tree, id) {
    const chain = chainOf(tree, id);
    return chain[chain.indexOf(id) - 1] ?? tree.item.nodes[id].parent ?? id;
  }

  /** The rollouts that can be entered at a node, in display order. */
  function ways(tree, id) {
    const { shape } = tree;
    const probes = shape.probes.has(id) && tree.probesOpen(id) ? shape.probes.get(id) : [];
    return [...probes, ...(shape.beside.get(id) ?? []), ...(shape.after.get(id) ?? [])];
  }

  function siblings(tree, id) {
    const rollout = tree.item.nodes[id].rollout;
    const at = tree.shape.place.get(rollout);
    const isFirst = chainOf(tree, id)[0] === id;
    return at === undefined || !isFirst ? null : { at, ids: ways(tree, at), rollout };
  }

  /** The rollouts of a group, side by side. */
  const columns = ({ shape }) => [0, ...(shape.beside.get(shape.own[0][0]) ?? [])];

  function sideways(tree, id, step) {
    const all = columns(tree);
    const at = all.indexOf(tree.item.nodes[id].rollout);
    const other = at < 0 ? undefined : all[at + step];
    if (other === undefined) return id;
    const chain = tree.shape.own[other];
    return chain[Math.min(chainOf(tree, id).indexOf(id), chain.length - 1)];
  }

  function right(tree, id) {
    const inGroup = tree.shape.group && columns(tree).includes(tree.item.nodes[id].rollout);
    const here = inGroup ? ways(tree, id).filter((other) => !columns(tree).includes(other)) : ways(tree, id);
    if (here.length) return tree.shape.own[here[0]][0];
    if (inGroup) return sideways(tree, id, 1);
    const beside = siblings(tree, id);
    const next = beside?.ids[beside.ids.indexOf(beside.rollout) + 1];
    return next === undefined ? id : tree.shape.own[next][0];
  }

  function left(tree, id) {
    if (tree.shape.group && columns(tree).includes(tree.item.nodes[id].rollout)) return sideways(tree, id, -1);
    const beside = siblings(tree, id);
    const before = beside?.ids[beside.ids.indexOf(beside.rollout) - 1];
    if (before !== undefined) return tree.shape.own[before][0];
    return tree.shape.place.get(tree.item.nodes[id].rollout) ?? id;
  }

  /** Folds or unfolds at a node: its rollout if it is the first node, otherwise what branches off there. */
  function fold(tree, id) {
    const { item, shape } = tree;
    const rollout = item.nodes[id].rollout;
    if (shape.probes.has(id)) return tree.toggleProbes(id);
    if (rollout !== 0 && chainOf(tree, id)[0] === id) return tree.toggle(rollout);
    const here = [...(shape.beside.get(id) ?? []), ...(shape.after.get(id) ?? [])].slice(0, 50);
    const isOpen = here.some((other) => tree.isOpen(other));
    for (const other of here) tree.toggle(other, !isOpen);
    return undefined;
  }

  view.walk = { down, up, left, right, fold };
})();
