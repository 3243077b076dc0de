// Elements, icons and hostile text: every node of the page is made here, only by DOM calls.
//
//   view.h("a", {class: "chip", href: "#/"}, "all runs")
//   view.text("2 + 2 = \u202e5")           a span in which U+202E is a visible chip
//
// Invariant: no string becomes markup. Text is added as text nodes, and links lead to this page's own hashes.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const SVG = "http://www.w3.org/2000/svg";
  const SHOWN_AT_FIRST = 4000;
  const MOST_CHIPS = 2000;

  function set(element, name, value) {
    if (value === null || value === undefined || value === false) return;
    if (name.startsWith("on")) {
      if (typeof value !== "function") throw new TypeError(`${name} must be a function`);
      element.addEventListener(name.slice(2), value);
    } else if (name === "text") element.append(String(value));
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "style") for (const key of Object.keys(value)) element.style.setProperty(key, value[key]);
    else if (
      name === "href" && !String(value).startsWith("#")
    ) throw new TypeError(`a link leads to a hash, not ${value}`);
    else element.setAttribute(name, value === true ? "" : String(value));
  }

  function fill(element, props, children) {
    for (const name of Object.keys(props ?? {})) set(element, name, props[name]);
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined && child !== false) element.append(child);
    }
    return element;
  }

  /**
   * An HTML element.
   * @param {string} tag
   * @param {object|null} props attributes; `text`, `dataset`, `style` (by CSSOM), `onclick` and the like (functions);
   *   null, undefined and false leave an attribute out, true sets it empty
   * @param {...(Node|string|number|Array|null|false)} children strings become text nodes
   */
  view.h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

  /** An SVG element, with the same rules as `view.h`. */
  view.s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

  /** Empties an element and fills it again. */
  view.replace = (element, ...children) => {
    element.replaceChildren();
    return fill(element, null, children);
  };

  const ICONS = {
    right: "M3.5 8.5l3 3 6-7",
    wrong: "M4.5 4.5l7 7M11.5 4.5l-7 7",
    ungraded: "M6 6.2a2 2 0 1 1 2.8 1.9c-.6.3-.8.6-.8 1.3M8 11.7v.1",
    stopped: "M5 5h6v6h-6z",
    flipped: "M4 6.2h7.5M9.3 3.8l2.4 2.4M12 9.8H4.5M6.7 12.2L4.3 9.8",
    search: "M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM10.4 10.4L14 14",
    close: "M4.5 4.5l7 7M11.5 4.5l-7 7",
    back: "M9.5 3.5L5 8l4.5 4.5",
    forward: "M6.5 3.5L11 8l-4.5 4.5",
    up: "M3.5 10L8 5.5l4.5 4.5",
    down: "M3.5 6L8 10.5 12.5 6",
    auto: "M8 2.5a5.5 5.5 0 1 0 0 11zM8 2.5a5.5 5.5 0 0 1 0 11",
    light:
      "M8 10.7a2.7 2.7 0 1 0 0-5.4 2.7 2.7 0 0 0 0 5.4zM8 1.5v1.4M8 13.1v1.4M1.5 8h1.4M13.1 8h1.4M3.4 3.4l1 1" +
      "M11.6 11.6l1 1M12.6 3.4l-1 1M4.4 11.6l-1 1",
    dark: "M13 9.3A5.3 5.3 0 0 1 6.7 3a5.3 5.3 0 1 0 6.3 6.3z",
    note: "M8 2.5l6 10.5H2zM8 6.5v3M8 11.2v.1",
    help: "M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12zM6.4 6.5a1.6 1.6 0 1 1 2.3 1.5c-.5.3-.7.5-.7 1.1M8 11v.1",
    link:
      "M6.8 9.2l2.6-2.6M7.3 5.2l1.5-1.5a2.5 2.5 0 0 1 3.5 3.5l-1.5 1.5M8.7 10.8l-1.5 1.5a2.5 2.5 0 0 1-3.5-3.5l1.5-1.5",
    swap: "M5 3v9M2.8 9.8L5 12l2.2-2.2M11 13V4M8.8 6.2L11 4l2.2 2.2",
  };

  /** A 16 px line icon in the text colour, hidden from screen readers: put words beside it. */
  view.icon = (name) => {
    if (!ICONS[name]) throw new TypeError(`no icon "${name}"; there are ${Object.keys(ICONS).join(", ")}`);
    const path = view.s("path", { d: ICONS[name] });
    return view.s(
      "svg", { class: `icon icon-${name}`, viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" }, path
    );
  };

  /** Words for screen readers only. */
  view.spoken = (words) => view.h("span", { class: "spoken" }, words);

  // Controls other than line feed and tab, zero-width and bidirectional characters, tags, lone surrogates.
  const UNSEEN = new RegExp(
    "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u115f\\u1160\\u180e\\u200b-\\u200f\\u2028-\\u202e" +
      "\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}]|[\\ud800-\\udfff]",
    "gu",
  );

  function chip(character, times) {
    const code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    return view.h(
      "span",
      { class: "unseen", title: "an invisible character" },
      times > 1 ? `${code} \u00d7 ${times}` : code,
    );
  }

  /**
   * A string's nodes, with characters that are unseen, or that turn the text around, as chips. A run of one character
   * is one chip; after 2,000 chips such characters become U+FFFD, so that no text can stall the page.
   * @returns {Node[]}
   */
  view.hostile = (string) => {
    const nodes = [];
    let done = 0;
    let last = null;
    const flush = () => {
      if (last) nodes.push(chip(last.character, last.times));
      last = null;
    };
    for (const match of string.matchAll(UNSEEN)) {
      if (last && match.index === done && match[0] === last.character) last.times += 1;
      else {
        flush();
        if (match.index > done) nodes.push(document.createTextNode(string.slice(done, match.index)));
        if (nodes.length > 2 * MOST_CHIPS) {
          nodes.push(document.createTextNode(string.slice(match.index).replace(UNSEEN, "\ufffd")));
          return nodes;
        }
        last = { character: match[0], times: 1 };
      }
      done = match.index + match[0].length;
    }
    flush();
    if (done < string.length) nodes.push(document.createTextNode(string.slice(done)));
    return nodes;
  };

  /** The first `limit` UTF-16 units, never ending within a surrogate pair. */
  view.cut = (string, limit) => {
    const half = string.charCodeAt(limit - 1);
    return string.slice(0, half >= 0xd800 && half <= 0xdbff ? limit - 1 : limit);
  };

  /**
   * Text by a model or of a data set, in a span that keeps its direction to itself; of more than `limit` characters
   * the rest waits behind a button.
   * @param {string} string
   * @param {{limit?: number, class?: string}} options
   */
  view.text = (string, { limit = SHOWN_AT_FIRST, class: name = "" } = {}) => {
    const whole = String(string ?? "");
    const span = view.h("span", { class: `text ${name}`.trim() });
    if (whole.length <= limit) return fill(span, null, view.hostile(whole));
    const showAll = () => view.replace(span, view.hostile(whole));
    const button = view.h(
      "button",
      { type: "button", class: "more", onclick: showAll },
      `show all ${whole.length.toLocaleString("en-US")} characters`,
    );
    return fill(span, null, [view.hostile(view.cut(whole, limit)), "\u2026 ", button]);
  };

  /** Text on one line, cut short, for lists: white space becomes one space, and there is no button. */
  view.line = (string, limit = 240) => {
    const flat = view.cut(String(string ?? ""), 4 * limit).replace(/\s+/gu, " ").trim();
    return view.h(
      "span", { class: "text line" }, view.hostile(flat.length > limit ? `${view.cut(flat, limit)}\u2026` : flat)
    );
  };
})();
