// The list of a source's items.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  view.pages ??= {};
  view.pages.problems = {
    render(root, route) {
      view.list.open(route.source, {});
      root.append(view.h("h1", null, view.line(view.source(route.source).name)));
      view.get("items", { source: route.source, limit: 200 }).then(
        (items) => root.append(view.h("ol", null, items.rows.map((row) => view.h("li", null, view.h("a", { href: view.to.item(route.source, row.n) }, view.line(row.question)))))),
        (error) => root.append(view.failure(error)),
      );
    },
  };
})();
