// Where the page's data comes from: a local server, or, in an export, files beside the page.
//
//   await view.get("items", {source: "quickstart", sort: "-pairs", offset: 200, limit: 200})
//
// Invariant: a page asks by kind and parameters, whichever it is; every request ends within 20 seconds,
// with a value or with an Error that says what failed.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const LIMIT_MS = 20000;

  // The pages are also tested with node, which has no document.
  const page = globalThis.document;
  const isStatic =
    Boolean(page?.documentElement.dataset.static) || Boolean(page?.querySelector('meta[name="flow-dpo-static"]'));

  /** Whether this is an export, which does not change. */
  view.isStatic = isStatic;

  async function fetchLive(kind, params) {
    const address = `data/${kind}${view.to.query(params)}`;
    let response;
    try {
      response = await fetch(
        address, { signal: AbortSignal.timeout(LIMIT_MS), headers: { Accept: "application/json" } }
      );
    } catch (error) {
      const why = error.name === "TimeoutError"
        ? `No answer within ${LIMIT_MS / 1000} seconds`
        : "The viewer does not answer";
      throw Object.assign(new Error(`${why}. Is "flow-dpo view" still running?`), { lost: true, cause: error });
    }
    const text = await response.text();
    if (!response.ok) throw new Error(said(text) || `${response.status} for ${address}`);
    return JSON.parse(text);
  }

  // An error's body is {"error": "..."}; something in between, such as a proxy, can answer with other text.
  function said(text) {
    try {
      return String(JSON.parse(text).error ?? "");
    } catch (error) {
      if (error instanceof SyntaxError) return text.slice(0, 300);
      throw error;
    }
  }

  const kept = new Map();
  const waiting = new Map();

  /** Files of an export call this: the value of a key such as "curves/quickstart" or "item/quickstart/12". */
  view.put = (key, value) => kept.set(key, value);

  function loadStatic(kind, ...rest) {
    const key = [kind, ...rest].join("/");
    if (kept.has(key)) return Promise.resolve(kept.get(key));
    if (!waiting.has(key)) waiting.set(key, addScript(key).finally(() => waiting.delete(key)));
    return waiting.get(key);
  }

  function addScript(key) {
    return new Promise((resolve, reject) => {
      const name = `data/${key.split("/").map(encodeURIComponent).join("-")}.js`;
      const script = view.h("script", { src: name });
      const missing = () => reject(
        new Error(`This copy does not contain ${name}. An export contains only some of a run's problems.`)
      );
      const timer = setTimeout(missing, LIMIT_MS);
      script.onerror = missing;
      script.onload = () => (kept.has(key) ? resolve(kept.get(key)) : missing());
      const done = () => {
        clearTimeout(timer);
        script.remove();
      };
      script.addEventListener("load", done);
      script.addEventListener("error", done);
      document.head.append(script);
    });
  }

  async function getStatic(kind, params) {
    if (kind === "sources") return loadStatic("sources");
    if (kind === "curves") return loadStatic("curves", params.source);
    if (kind === "item") return loadStatic("item", params.source, params.n);
    const items = await loadStatic("items", params.source);
    return { ...items, ...view.select(items.rows, params) };
  }

  /**
   * One resource.
   * @param {"sources"|"curves"|"items"|"item"} kind
   * @param {object} params as the contract of the server says; null and "" are left out
   * @returns {Promise<object>} rejects with an Error to be shown; `error.lost` is true where the server is gone
   */
  view.get = (kind, params = {}) => {
    const answer = isStatic ? getStatic(kind, params) : fetchLive(kind, params);
    return kind === "sources" ? answer : busyUntil(answer);
  };

  // While a request is open the page is marked as busy, for screen readers and for tests that wait for it.
  let pending = 0;
  function markBusy(change) {
    pending += change;
    page?.getElementById("main")?.setAttribute("aria-busy", String(pending > 0));
  }

  function busyUntil(answer) {
    markBusy(1);
    return answer.finally(() => setTimeout(markBusy, 0, -1)); // after the answer is drawn
  }

  // ---- Filters and sorts of an export, by the rules of the server's queries ----------------------------------------
  function hasExample(row, role, depth) {
    const places = row.places ?? {};
    const roles = role ? [role] : Object.keys(places);
    return roles.some((name) => (places[name] ?? []).some((at) => !depth || at === Number(depth)));
  }

  function hasText(row, text) {
    // `find` is there where the row does not hold the whole question.
    const found = row.find ?? [row.id, row.question, row.answer, row.gold].filter(Boolean).join("\n").toLowerCase();
    return found.includes(text.trim().toLowerCase());
  }

  function hasVersion(row, text) {
    const [low, high] = text.includes("-") ? text.split("-") : [text, text];
    return row.version !== null && row.version >= Number(low) && row.version <= (high === "" ? Infinity : Number(high));
  }

  const WITH = {
    pair: (row) => row.pairs > 0,
    scored: (row) => row.scored > 0,
    none: (row) => !row.pairs && !row.scored,
  };

  // A filter's test of a row, given the filter's value, which is not empty.
  const TESTS = {
    q: hasText,
    role: (row, role, params) => hasExample(row, role, params.depth),
    depth: (row, depth, params) => hasExample(row, params.role, depth),
    status: (row, status) => row.status === status,
    flipped: (row, value) => value !== "1" || row.flipped === true,
    examples: (row, kind) => WITH[kind](row),
    ungraded: (row, value) => value !== "1" || row.ungraded > 0,
    version: hasVersion,
    from: (row, from) => row.n >= Number(from),
    to: (row, to) => row.n < Number(to),
    level: (row, level) => row.level === level,
    subject: (row, subject) => row.subject === subject,
  };

  function passes(row, params) {
    return Object.keys(TESTS).every((key) => {
      const value = params[key] === null || params[key] === undefined ? "" : String(params[key]);
      return value === "" || TESTS[key](row, value, params);
    });
  }

  const SORTS = {
    time: (row) => row.n,
    accuracy: (row) => row.accuracy,
    examples: (row) => (row.pairs === null || row.scored === null ? null : row.pairs + row.scored),
    tokens: (row) => row.tokens,
    margin: (row) => row.margin,
  };

  /**
   * The rows that pass, in order, as the server would answer: in either direction unknown values come last and ties
   * stand by time. Pure.
   * @param {object[]} rows all rows of an export
   * @param {object} params of `items`, `offset` and `limit` among them
   * @returns {{total: number, rows: object[]}}
   */
  view.select = (rows, params) => {
    const name = params.sort || "time";
    const sign = name.startsWith("-") ? -1 : 1;
    const value = SORTS[name.replace(/^-/, "")];
    if (!value) throw new Error(`A list cannot be sorted by "${name}".`);
    if (params.examples && !WITH[params.examples]) throw new Error(
      `There is no examples filter "${params.examples}".`
    );
    const compare = (one, other) => {
      const [a, b] = [value(one) ?? null, value(other) ?? null];
      if (a === b) return one.n - other.n;
      if (a === null || b === null) return a === null ? 1 : -1;
      return sign * (a - b);
    };
    const found = rows.filter((row) => passes(row, params)).sort(compare);
    const offset = Number(params.offset ?? 0);
    return { total: found.length, rows: found.slice(offset, offset + Number(params.limit ?? 200)) };
  };

  // ---- The list left last -------------------------------------------------------------------------------------------
  /** The last list shown: its source, its filters and sort, and the positions of its rows. */
  view.list = {
    source: null,
    params: {},
    places: new Map(),
    /** In any order but by time: one more than the last item's number when the list was opened; it stays below that. */
    pin: null,
    /** Remembers which list is shown; rows add themselves to `places` by number. */
    open(source, params) {
      Object.assign(view.list, { source, params, places: new Map(), pin: null });
    },
    /** The list's parameters, to go back to it, if it belongs to this source. */
    paramsOf: (source) => (view.list.source === source ? view.list.params : {}),
  };

  /**
   * The smaller (or larger) of a number and a filter's value, if there is one; a value that is no number stays as it
   * is, and the server says so.
   */
  view.bounded = (choose, number, value) => (
    /^\d+$/.test(value ?? number) ? choose(number, Number(value ?? number)) : value
  );

  const numberIn = (answer, place) => answer.rows[place]?.n ?? null;

  async function neighboursInTime(source, n, params) {
    const [before, after] = await Promise.all([
      view.get("items", { ...params, source, to: view.bounded(Math.min, n, params.to), sort: "-time", limit: 1 }),
      view.get("items", { ...params, source, from: view.bounded(Math.max, n + 1, params.from), sort: "time", limit: 1 }),
    ]);
    const [earlier, later] = [numberIn(before, 0), numberIn(after, 0)];
    return params.sort === "-time" ? { previous: later, next: earlier } : { previous: earlier, next: later };
  }

  /**
   * The problems before and after one, by the filters and the sort of the list one came from; by time where that list
   * does not hold it.
   * @returns {Promise<{previous: number|null, next: number|null}>}
   */
  view.neighbours = async (source, n) => {
    const params = { ...view.list.paramsOf(source) };
    if ((params.sort ?? "time").endsWith("time")) return neighboursInTime(source, n, params);
    const { places, pin } = view.list;
    if (pin !== null) params.to = view.bounded(Math.min, pin, params.to);
    const offset = Math.max(0, (places.get(n) ?? 0) - 1);
    const around = await view.get("items", { ...params, source, offset, limit: 3 });
    around.rows.forEach((row, index) => places.set(row.n, offset + index));
    const at = around.rows.findIndex((row) => row.n === n);
    if (at < 0) return neighboursInTime(source, n, { ...params, sort: "time" });
    return { previous: numberIn(around, at - 1), next: numberIn(around, at + 1) };
  };
})();
