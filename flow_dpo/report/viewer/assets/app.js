// The page's frame: routes, header, keys, notes, theme, help, and the poll that tells pages what has changed.
//
//   view.pages.problems = {render(root, route) -> cleanup | {update(route), cleanup()} | undefined}
//   route = {page: "runs"|"problems"|"item"|"compare", source, n, other: {source, n}, params: URLSearchParams}
//
// Invariant: everything that decides what is on the screen is in the hash, so a link shows it again; a page is cleaned
// up before the next one is drawn.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, icon } = view;
  const POLL_MS = 2000;
  view.pages ??= {};

  // ---- Sources and the poll ----------------------------------------------------------------------------------------
  let known = { title: "flow-dpo", static: view.isStatic, sources: [], notes: [] };
  let lost = false;
  const listeners = new Set();

  /** What is shown: the last answer to `sources`. */
  view.known = () => known;
  /** One source by its id, or undefined. */
  view.source = (id) => known.sources.find((source) => source.id === id);
  /** Calls `listener(ids: Set)` whenever sources changed (new rows, another state); returns a function that ends it. */
  view.onChange = (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  };

  const print = (source) => `${source.stamp}/${source.indexed}/${source.state}/${source.num_items}`;

  function takeSources(value) {
    const before = new Map(known.sources.map((source) => [source.id, print(source)]));
    const changed = value.sources.filter(
      (source) => before.get(source.id) !== print(source)
    ).map((source) => source.id);
    const gone = known.sources.length > value.sources.length;
    known = value;
    drawHeader();
    if (shown.missing && view.source(shown.missing)) redraw();
    if (changed.length || gone) for (const listener of [...listeners]) listener(new Set(changed));
  }

  async function poll() {
    if (!document.hidden) {
      try {
        takeSources(await view.get("sources"));
        if (lost) foundAgain();
      } catch (error) {
        if (!error.lost) console.error(error);
        setLost(true);
      }
    }
    setTimeout(poll, POLL_MS);
  }

  // After a lost connection, what failed to load is requested again.
  function foundAgain() {
    setLost(false);
    if (document.querySelector("#main .message.bad")) redraw();
  }

  function setLost(is) {
    if (lost === is) return;
    lost = is;
    drawHeader();
  }

  // ---- Routes ------------------------------------------------------------------------------------------------------
  /** The route of a hash; `page` is null if the hash is no route. */
  view.parse = (hash) => {
    const [path, query = ""] = hash.replace(/^#/, "").split(/\?(.*)/s);
    const route = { page: null, source: null, n: null, other: null, params: new URLSearchParams(query) };
    let parts;
    try {
      parts = path.split("/").filter(Boolean).map(decodeURIComponent);
    } catch (error) {
      if (!(error instanceof URIError)) throw error;
      return route;
    }
    const number = (text) => (/^\d{1,12}$/.test(text ?? "") ? Number(text) : null);
    if (parts.length === 0) return { ...route, page: "runs" };
    if (parts[0] === "s" && parts.length === 2) return { ...route, page: "problems", source: parts[1] };
    if (parts[0] === "s" && parts.length === 3 && number(parts[2]) !== null) {
      return { ...route, page: "item", source: parts[1], n: number(parts[2]) };
    }
    if (parts[0] === "compare" && parts.length === 5 && number(parts[2]) !== null && number(parts[4]) !== null) {
      return {
        ...route,
        page: "compare",
        source: parts[1],
        n: number(parts[2]),
        other: { source: parts[3], n: number(parts[4]) },
      };
    }
    return route;
  };

  // `missing`: the source that was asked for and is not there yet.
  let shown = { key: null, route: null, page: null, missing: null };

  /** Goes to a hash, like a link. */
  view.go = (hash) => {
    location.hash = hash;
  };

  /** Writes parameters into the hash, without a history entry and without redrawing the page. */
  view.setParams = (params) => {
    const hash = location.hash.split("?")[0] || "#/";
    history.replaceState(history.state, "", hash + view.to.query(params));
    if (shown.route) shown.route.params = new URLSearchParams(view.to.query(params));
  };

  /** The title of the tab. */
  view.title = (...parts) => {
    document.title = [...parts, known.title].filter(Boolean).join(" \u00b7 ");
  };

  /** An error message, shown in place of the content. */
  view.failure = (error, heading = "This could not be shown") =>
    h(
      "section", { class: "message bad", role: "alert" }, h("h2", null, heading), h("p", null, view.text(error.message))
    );

  const keyOf = (route) => JSON.stringify([route.page, route.source, route.n, route.other]);

  function show() {
    const route = view.parse(location.hash);
    if (shown.key === keyOf(route) && shown.page?.update) {
      shown.route = route;
      shown.page.update(route);
      return;
    }
    const first = shown.key === null;
    leave();
    shown = { key: keyOf(route), route, page: null };
    draw(route);
    if (!first) focusPage();
  }

  function leave() {
    if (typeof shown.page === "function") shown.page();
    else shown.page?.cleanup?.();
  }

  function redraw() {
    leave();
    shown.page = null;
    draw(shown.route);
  }

  function draw(route) {
    const main = document.getElementById("main");
    main.replaceChildren();
    main.className = `main page-${route.page ?? "none"}`;
    window.scrollTo(0, 0);
    shown.missing = null;
    drawHeader();
    view.title(...crumbs(route).slice(1).map((crumb) => crumb.words).reverse());
    const page = view.pages[route.page];
    if (!page || (route.source !== null && !view.source(route.source))) {
      if (page) shown.missing = route.source;
      const what = route.source !== null && page
        ? `There is no source "${route.source}"`
        : "There is no page at this address";
      main.append(
        view.failure(new Error(`${what}.`), "Not found"), h("p", null, h("a", { href: view.to.runs() }, "All runs"))
      );
      return;
    }
    try {
      shown.page = page.render(main, route) ?? null;
    } catch (error) {
      main.append(view.failure(error));
      throw error;
    }
  }

  // The link that skips the header is not a route.
  function skip(event) {
    event.preventDefault();
    document.getElementById("main").focus();
  }

  // A page can take the focus itself; otherwise a screen reader continues at its heading.
  function focusPage() {
    const main = document.getElementById("main");
    if (main.contains(document.activeElement) && document.activeElement !== main) return;
    const heading = main.querySelector("h1");
    heading?.setAttribute("tabindex", "-1");
    (heading ?? main).focus({ preventScroll: true });
  }

  // ---- Header ------------------------------------------------------------------------------------------------------
  function crumbs(route) {
    const list = [{ words: "Runs", href: view.to.runs() }];
    const name = (id) => view.source(id)?.name ?? id;
    if (route.page === "problems" || route.page === "item") {
      list.push({ words: name(route.source), href: view.to.list(route.source, view.list.paramsOf(route.source)) });
    }
    if (route.page === "item") list.push({ words: `${view.noun(view.source(route.source)?.kind)} ${route.n}` });
    if (route.page === "compare") list.push({ words: "Side by side" });
    return list;
  }

  /** The noun for one row of a source. */
  view.noun = (kind) => ({ traces: "trace", judgements: "judgement", evaluation: "solution" })[kind] ?? "problem";

  let [headerPrint, notesPrint] = ["", ""];

  function drawHeader() {
    const trail = crumbs(shown.route ?? view.parse(location.hash));
    const panel = document.getElementById("notes");
    drawNotes(panel);
    const { theme } = document.documentElement.dataset;
    const print = JSON.stringify([trail, lost, known.notes.length, panel.hidden, theme]);
    if (print === headerPrint) return;
    headerPrint = print;
    const steps = trail.map((crumb, place) =>
      h(
        "li",
        null,
        place === trail.length - 1
          ? h("span", { "aria-current": "page" }, view.line(crumb.words, 80))
          : h("a", { href: crumb.href, dataset: { key: `crumb-${place}` } }, view.line(crumb.words, 80)),
      ));
    const nav = h("nav", { class: "crumbs", "aria-label": "You are here" }, h("ol", null, steps));
    const state = h(
      "span",
      { class: "lost", role: "status", hidden: !lost },
      "connection lost",
      h("span", { class: "wide-only" }, ", reconnecting"),
    );
    const focused = document.activeElement?.dataset?.key;
    view.replace(
      document.getElementById("top"),
      h("div", { class: "bar" }, nav, state, notesButton(panel), view.themeButton(drawHeader), view.helpButton()),
    );
    if (focused) document.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  function notesButton(panel) {
    const words = view.fmt.plural(known.notes.length, "note");
    const toggle = (event) => {
      panel.hidden = !panel.hidden;
      event.currentTarget.setAttribute("aria-expanded", String(!panel.hidden));
    };
    const props = {
      type: "button",
      class: "icon-button wide",
      dataset: { key: "notes" },
      "aria-controls": "notes",
      "aria-expanded": String(!panel.hidden),
      hidden: !known.notes.length,
      onclick: toggle,
    };
    return h("button", props, icon("note"), words);
  }

  function drawNotes(panel) {
    const print = JSON.stringify(known.notes);
    if (print === notesPrint) return;
    notesPrint = print;
    const rows = known.notes.slice(0, 500).map((note) => {
      const place = [
        view.source(note.source)?.name ?? note.source,
        note.file,
        note.line ? `line ${view.fmt.count(note.line)}` : null,
      ];
      return h(
        "li",
        null,
        h("strong", null, view.line(place.filter(Boolean).join(" \u00b7 "))),
        " ",
        view.text(note.text ?? "", { limit: 400 }),
      );
    });
    const rest = known.notes.length > 500 && h("li", null, `and ${view.fmt.count(known.notes.length - 500)} more`);
    view.replace(panel, h("ul", null, rows, rest));
  }

  // ---- Start -------------------------------------------------------------------------------------------------------
  async function load() {
    const main = document.getElementById("main");
    try {
      known = await view.get("sources");
    } catch (error) {
      view.replace(main, view.failure(error, "Nothing to show yet"));
      if (view.isStatic) throw error;
      setTimeout(load, POLL_MS);
      return;
    }
    history.scrollRestoration = "manual";
    window.addEventListener("hashchange", show);
    show();
    if (!view.isStatic) setTimeout(poll, POLL_MS);
  }

  document.querySelector(".skip").addEventListener("click", skip);
  load();
})();
