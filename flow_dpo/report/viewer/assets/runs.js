// The first page: what is looked at, a table a kind, and the runs' curves.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  view.pages ??= {};
  view.pages.runs = {
    render(root) {
      const draw = () => view.replace(root, view.h("h1", null, "Runs"), view.h("ul", null, view.known().sources.map((source) => view.h("li", null, view.h("a", { href: view.to.list(source.id) }, view.line(source.name))))));
      draw();
      return view.onChange(draw);
    },
  };
})();
