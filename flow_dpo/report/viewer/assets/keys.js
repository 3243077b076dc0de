// Keys, the help that lists them, and the theme.
//
//   const giveBack = view.keys([{keys: ["j", "ArrowDown"], words: "next row", run: () => {}}]);
//
// Invariant: the help lists exactly the keys that work now; a key that no page takes is left to the browser.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const { h, icon } = view;

  // ---- Theme -------------------------------------------------------------------------------------------------------
  const THEMES = ["auto", "light", "dark"];
  let theme = "auto";

  // A page opened from disk, or without access to storage, keeps the theme only while it is open.
  function stored(write) {
    try {
      if (write === undefined) return localStorage.getItem("flow-dpo-theme");
      localStorage.setItem("flow-dpo-theme", write);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
    }
    return null;
  }

  function setTheme(name) {
    theme = THEMES.includes(name) ? name : "auto";
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  /** The button that switches to the next theme, and then calls `onchange`. */
  view.themeButton = (onchange) => {
    const words = `Theme: ${theme}`;
    const next = () => {
      setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
      stored(theme);
      onchange();
    };
    return h(
      "button",
      {
        type: "button",
        class: "icon-button",
        dataset: { key: "theme" },
        title: words,
        "aria-label": words,
        onclick: next,
      },
      icon(theme),
    );
  };

  // ---- Keys and help -----------------------------------------------------------------------------------------------
  const bindings = new Set();
  const SCROLLING = /^(Arrow(Up|Down|Left|Right)|Home|End)$/; // the browser's, in a part of the page that scrolls

  /**
   * Takes keys for a page: `[{keys: ["j"], words: "next problem", run: (event) => {}}]`; words null keeps it out of the
   * help. A key is `event.key`. Nothing runs while somebody types, with Ctrl, Alt or Meta, or in a dialog.
   * @returns {() => void} a function that releases them
   */
  view.keys = (list) => {
    bindings.add(list);
    return () => bindings.delete(list);
  };

  function onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey) return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (target.closest("input:not([type=checkbox]), select, textarea, dialog, [contenteditable]")) {
      if (event.key === "Escape" && !target.closest("dialog")) target.blur();
      return;
    }
    if (SCROLLING.test(event.key) && target.closest(".scroller, .prompt-text, .notes")) return;
    if ((event.key === "Enter" || event.key === " ") && target.closest("a, button, summary")) return;
    for (const list of [...bindings].reverse()) {
      const found = list.find((binding) => binding.keys.includes(event.key));
      if (found) {
        event.preventDefault();
        found.run(event);
        return;
      }
    }
  }

  /** The button that opens the help. */
  view.helpButton = () => {
    return h(
      "button",
      {
        type: "button",
        class: "icon-button",
        dataset: { key: "help" },
        title: "Keys (?)",
        "aria-label": "Keys and help",
        onclick: openHelp,
      },
      icon("help"),
    );
  };

  const KEY_NAMES = {
    ArrowDown: "\u2193", ArrowUp: "\u2191", ArrowLeft: "\u2190", ArrowRight: "\u2192", Escape: "Esc", " ": "Space",
  };

  function openHelp() {
    const rows = [...bindings].flat().filter((binding) => binding.words);
    const list = rows.map((binding) => [
      h("dt", null, binding.keys.map((key) => h("kbd", null, KEY_NAMES[key] ?? key))),
      h("dd", null, binding.words),
    ]);
    const close = h(
      "button",
      { type: "button", class: "icon-button", "aria-label": "Close", onclick: () => dialog.close() },
      icon("close"),
    );
    const about = h(
      "p",
      { class: "muted small" },
      "Every page has its own address: copy it to share what you see, including filters. ",
      "The viewer only reads files and never changes them.",
    );
    const dialog = h(
      "dialog",
      { "aria-labelledby": "help-title" },
      h("div", { class: "dialog-head" }, h("h2", { id: "help-title" }, "Keys"), close),
      h("dl", { class: "keys" }, list),
      about,
    );
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    document.body.append(dialog);
    dialog.showModal();
  }

  setTheme(stored());
  view.keys([{ keys: ["?"], words: "this help", run: openHelp }]);
  document.addEventListener("keydown", onKey);
})();
