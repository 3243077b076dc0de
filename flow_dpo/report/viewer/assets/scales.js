// The arithmetic of a chart: ticks, axis bounds, means, positions of labels, the nearest point.
//
//   ticks(0, 512, 5) -> [0, 100, 200, 300, 400, 500]      spread([10, 12], 17, 0, 300) -> [10, 27]
//
// Invariant: pure functions, in which an unknown value is null and never counts as zero.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const known = (value) => typeof value === "number" && Number.isFinite(value);

  /** About `wanted` round numbers within [low, high]. Pure. */
  const ticks = (low, high, wanted) => {
    if (!(high > low)) return [low];
    const rough = (high - low) / Math.max(1, wanted);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((size) => size >= rough * 0.999);
    const found = [];
    for (let place = Math.ceil(low / step - 1e-9); place <= Math.floor(high / step + 1e-9); place += 1) {
      found.push(Number((place * step).toPrecision(12)));
    }
    return found;
  };

  /** At each position, the mean of the last `width` known values; null if none is known. Pure. */
  const smooth = (values, width) =>
    values.map((value, place) => {
      const near = values.slice(Math.max(0, place - width + 1), place + 1).filter(known);
      return value === null || !near.length ? null : near.reduce((sum, next) => sum + next, 0) / near.length;
    });

  /** The bounds of an axis, with a little padding; shares stay within 0 and 1. Pure. */
  const domain = (values, { within = null, air = 0.06 } = {}) => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (known(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    if (low > high) return [0, 1];
    const room = high > low ? (high - low) * air : Math.abs(high) * 0.1 || 0.5;
    [low, high] = [low - room, high + room];
    return within ? [Math.max(low, within[0]), Math.min(high, within[1])] : [low, high];
  };

  /** Heights for labels that do not overlap, each moved as little as possible. Pure. */
  const spread = (heights, gap, low, high) => {
    const order = heights.map((height, place) => ({ height, place })).sort((a, b) => a.height - b.height);
    let least = low;
    for (const label of order) least = (label.height = Math.max(label.height, least)) + gap;
    let most = high;
    for (const label of order.toReversed()) most = (label.height = Math.min(label.height, most)) - gap;
    const placed = [];
    for (const label of order) placed[label.place] = label.height;
    return placed;
  };

  /** The index of the point nearest to x, among points with a value, in ascending x; -1 if there is none. Pure. */
  const nearest = (points, x) => {
    let best = -1;
    for (let place = 0; place < points.length; place += 1) {
      if (
        known(points[place].y) && (best < 0 || Math.abs(points[place].x - x) < Math.abs(points[best].x - x))
      ) best = place;
    }
    return best;
  };

  /**
   * The point that a line has at x: the nearest, or null if x lies beyond the line's ends by more than one of its own
   * steps (their mean). Pure.
   */
  const reading = (points, x) => {
    const there = points.filter((point) => known(point.y));
    if (!there.length) return null;
    const [first, last] = [there[0].x, there.at(-1).x];
    const step = (1.001 * (last - first)) / Math.max(1, there.length - 1);
    return x < first - step || x > last + step ? null : points[nearest(points, x)];
  };

  view.charts = { ticks, smooth, domain, spread, nearest, reading };
})();
