// Numbers, states and links as they are written everywhere on the page.
//
//   share(0.4063) -> "40.6 %"    points(0.116) -> "+11.6"    compact(1234567) -> "1.23M"    share(null) -> "\u2013"
//
// Invariant: pure functions of their arguments; the same number is written the same way everywhere, as in a report.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const NOTHING = "\u2013";
  const SPACE = "\u00a0";
  const known = (value) => typeof value === "number" && Number.isFinite(value);

  /** Shown if a value is unknown, which is not zero. */
  view.NOTHING = NOTHING;

  // As Python writes it, and so a report: exactly between two decimals, the even one. Only an odd multiple of
  // 2^-(digits + 1) can be there, which binary numbers hold exactly.
  const fixed = (value, digits) => {
    if (Math.abs(value * 2 ** (digits + 1)) % 2 !== 1) return value.toFixed(digits);
    const below = Math.floor(Math.abs(value) * 10 ** digits);
    return ((Math.sign(value) * (below + (below % 2))) / 10 ** digits).toFixed(digits);
  };

  /** A share in per cent, with one decimal. */
  const share = (value, digits = 1) => (known(value) ? `${fixed(100 * value, digits)}${SPACE}%` : NOTHING);

  /** The bounds of a share, in per cent. */
  const interval = (low, high) => (
    known(low) && known(high) ? `${fixed(100 * low, 1)} to ${fixed(100 * high, 1)}${SPACE}%` : NOTHING
  );

  /** A difference of two shares in percentage points, with its sign. */
  const points = (value) => (known(value) ? signed(100 * value, 1) : NOTHING);

  /** A number with its sign; the minus is a real one. */
  const signed = (value, digits = 2) => {
    if (!known(value)) return NOTHING;
    const written = fixed(Math.abs(value), digits);
    const sign = Number(written) === 0 ? "\u00b1" : value > 0 ? "+" : "\u2212";
    return sign + written;
  };

  /** A whole number with thousands separators. */
  const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : NOTHING);

  /** A large number with three significant figures: 12,345,678 is 12.3M. */
  const compact = (value) => {
    if (!known(value)) return NOTHING;
    for (const [unit, sign] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= unit * (unit === 1e3 ? 10 : 1)) return `${Number((value / unit).toPrecision(3))}${sign}`;
    }
    return Number.isInteger(value) ? count(value) : decimal(value);
  };

  /** A number that is neither a share nor a count. */
  const decimal = (value, digits = 2) => {
    if (!known(value)) return NOTHING;
    const written = fixed(value, digits);
    return (Number(written) === 0 ? written.replace("-", "") : written).replace("-", "\u2212");
  };

  /** A metric's value, with at most four significant figures. */
  const figure = (value) => {
    if (!known(value)) return NOTHING;
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6) return compact(value).replace("-", "\u2212");
    if (Number.isInteger(value)) return count(value).replace("-", "\u2212");
    if (size < 1e-3) return value.toExponential(1).replaceAll("-", "\u2212");
    return String(Number(value.toPrecision(4))).replace("-", "\u2212");
  };

  /** A duration: seconds below two minutes, minutes below two hours, hours above. */
  const seconds = (value) => {
    if (!known(value)) return NOTHING;
    if (value < 120) return `${fixed(value, 1)}${SPACE}s`;
    return value < 7200 ? `${fixed(value / 60, 1)}${SPACE}min` : `${fixed(value / 3600, 1)}${SPACE}h`;
  };

  /** "1 pair", "2 pairs". */
  const plural = (number, one, many = `${one}s`) => `${count(number)}${SPACE}${number === 1 ? one : many}`;

  view.fmt = { share, interval, points, signed, count, compact, decimal, figure, seconds, plural, known };

  /** The words for a verdict's status, with its icon and class. */
  view.STATUS = {
    correct: { words: "correct", icon: "right", class: "right" },
    wrong: { words: "wrong", icon: "wrong", class: "wrong" },
    ungraded: { words: "ungraded", icon: "ungraded", class: "ungraded" },
    stopped: { words: "stopped early", icon: "stopped", class: "ungraded" },
  };

  /** A verdict's mark: icon and colour, with its word for screen readers. */
  view.verdict = (status) => {
    const known = view.STATUS[status];
    if (!known) return view.h("span", { class: "mark ungraded" }, view.line(status ?? NOTHING, 12));
    return view.h(
      "span", { class: `mark ${known.class}`, title: known.words }, view.icon(known.icon), view.spoken(known.words)
    );
  };

  /** What a label means, by kind of source and label; shown as a tooltip. */
  view.MEANING = {
    run: {
      problems: "problems sampled so far, out of those the run was given",
      accuracy: "share of right trunks over the newest problems, each sampled before it was learned from; with its 95 % interval",
      change: "accuracy now minus accuracy over the first problems, in percentage points",
      pairs: "preference pairs, and completions scored with an advantage",
      updates: "updates of the policy",
      tokens: "tokens sampled by the run; for a problem, the tokens of all completions in its tree",
      time: "sampling, grading and learning, without pauses, checkpoints and evaluations",
      "#": "number in the file, from 0, in order of time",
      "right of graded": "right rollouts out of those with a verdict, including probes",
      examples: "training examples made from it, by role",
      version: "newest version of the policy that sampled it",
      margin: "largest margin among its pairs",
    },
    evaluation: {
      accuracy: "share of right solutions, with its 95 % interval",
      draws: "solutions sampled, over all problems",
      ungraded: "solutions without a verdict",
      draw: "number of the solution among those sampled on this problem",
      "P(Yes)": "probability that it is right, according to the judging role",
      tokens: "tokens sampled by all roles",
      "#": "number in the file, from 0",
    },
    traces: {
      "made by": "what wrote the solutions",
      traces: "verified solutions, out of the problems that were sampled",
      tokens: "tokens sampled, including those of wrong solutions",
      time: "sampling and grading",
      "#": "number in the file, from 0",
    },
    judgements: { ties: "no winner in both orders, or different winners", "#": "number in the file, from 0" },
  };

  const LONG_PATHS = [2, 3].map((kept) => new RegExp(`(^|\\s)[/~.]\\S*/((?:[^\\s/]+/){${kept - 1}}[^\\s/]+)`, "g"));

  /** A source's fact in words, with long paths cut to their last parts: those of a run's data hold name, configuration
   * and split, any others two. */
  view.shortFact = ({ kind, facts }, key) => String(facts[key] ?? "").replace(
    LONG_PATHS[kind === "run" && key === "dataset" ? 1 : 0], "$1\u2026/$2"
  );

  const query = (params) => {
    const words = params instanceof URLSearchParams ? params : new URLSearchParams();
    if (!(params instanceof URLSearchParams)) {
      for (const key of Object.keys(params ?? {})) {
        if (
          params[key] !== null && params[key] !== undefined && params[key] !== ""
        ) words.set(key, String(params[key]));
      }
    }
    const written = words.toString();
    return written ? `?${written}` : "";
  };

  /** Links to the pages; `params` is an object or URLSearchParams, whose null and "" are left out. */
  view.to = {
    query,
    runs: (params) => `#/${query(params)}`,
    list: (source, params) => `#/s/${encodeURIComponent(source)}${query(params)}`,
    item: (source, n, params) => `#/s/${encodeURIComponent(source)}/${n}${query(params)}`,
    compare: (source, n, other, m, params) =>
      `#/compare/${encodeURIComponent(source)}/${n}/${encodeURIComponent(other)}/${m}${query(params)}`,
  };

  /** The class of a role's colour, by its place among the source's roles: six classes, used again after that. */
  view.roleClass = (roles, role) => `role-${Math.max(0, (roles ?? []).indexOf(role)) % 6}`;
})();
