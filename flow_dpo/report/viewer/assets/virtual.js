// A list of any length, as tall as all its rows: a few elements are reused, and rows are fetched ahead, page by page.
//
//   const list = view.virtualList(body, {height: 44, make: () => ({element, fill(position, row)}), load, onerror});
//   await list.open({sort: "-tokens"});   list.reveal(5000);
//
// Invariant: position p has element p modulo the pool's size, so scrolling moves no node; a row that has not
// loaded keeps its place; an answer to an outdated request is never shown.
(() => {
  "use strict";
  const view = (globalThis.flowDpo ??= {});
  const PAGE = 200;
  const KEPT_PAGES = 80;
  const AT_ONCE = 3;
  const AGAIN_MS = 2000;

  /** The pages needed for rows [first, last] of `total`: those visible, then their neighbours, nearest first. Pure. */
  const wanted = (first, last, total, size = PAGE) => {
    const end = Math.max(0, Math.ceil(total / size) - 1);
    const [from, to] = [Math.floor(first / size), Math.min(end, Math.floor(Math.max(first, last) / size))];
    const pages = [];
    for (let page = from; page <= to; page += 1) pages.push(page);
    return [...pages, to + 1, from - 1].filter((page) => page >= 0 && page <= end);
  };

  class VirtualList {
    constructor(body, { height, make, load, onerror, print = JSON.stringify }) {
      Object.assign(
        this,
        {
          body,
          height,
          make,
          load,
          onerror,
          print,
          total: 0,
          params: {},
          pages: new Map(),
          busy: new Set(),
          stale: new Set(),
          pool: [],
          question: 0,
        },
      );
      this.onscroll = () => {
        this.frame ??= requestAnimationFrame(() => this.draw());
      };
      window.addEventListener("scroll", this.onscroll, { passive: true });
      window.addEventListener("resize", this.onscroll, { passive: true });
    }

    close() {
      this.question += 1;
      window.removeEventListener("scroll", this.onscroll);
      window.removeEventListener("resize", this.onscroll);
      cancelAnimationFrame(this.frame);
      clearTimeout(this.again);
    }

    /**
     * Asks with other parameters, from the page of `position` on; what is shown stays until the answer is there.
     * @returns {Promise<object|null>} the answer, or null where another question overtook this one
     */
    async open(params, position = 0) {
      this.question += 1;
      const { question } = this;
      const page = Math.floor(position / PAGE);
      let [answer, at] = [await this.load(params, page * PAGE, PAGE), page];
      if (
        question === this.question && page > 0 && page * PAGE >= answer.total
      ) [answer, at] = [await this.load(params, 0, PAGE), 0];
      if (question !== this.question) return null;
      Object.assign(this, { params, pages: new Map([[at, answer.rows]]), busy: new Set(), stale: new Set() });
      this.resize(answer.total);
      return answer;
    }

    /** Rows were added or changed: takes the new length, and requests every page again when it is visible. */
    refresh(total) {
      for (const page of this.pages.keys()) {
        if (page * PAGE >= total) this.pages.delete(page);
        else this.stale.add(page);
      }
      this.total = total;
      this.body.style.height = `${total * this.height}px`;
      this.draw();
    }

    /** Whether the visible rows would be others if they were requested again. */
    async isOutdated() {
      const { question } = this;
      const page = Math.floor(this.seen().first / PAGE);
      const answer = await this.load(this.params, page * PAGE, PAGE);
      const kept = this.pages.get(page);
      if (question !== this.question || !kept) return false;
      return kept.length !== answer.rows.length || answer.rows.some((row, at) => !this.isSame(row, kept[at]));
    }

    isSame(row, other) {
      return other !== undefined && this.print(row) === this.print(other);
    }

    /** Sets another row height; the row on top stays there. */
    setHeight(height) {
      if (height === this.height) return;
      const top = Math.max(0, this.offset()) / this.height;
      this.height = height;
      this.resize(this.total);
      if (top > 0) window.scrollTo(0, window.scrollY - this.offset() + top * height);
    }

    resize(total) {
      this.total = total;
      this.body.style.height = `${total * this.height}px`;
      for (const handle of this.pool) handle.position = null;
      this.draw();
    }

    /** How far the list's top is above the window's, in pixels. */
    offset() {
      return -this.body.getBoundingClientRect().top;
    }

    row(position) {
      return this.pages.get(Math.floor(position / PAGE))?.[position % PAGE] ?? null;
    }

    seen() {
      const first = Math.max(0, Math.floor(this.offset() / this.height));
      const last = Math.min(this.total - 1, Math.ceil((this.offset() + window.innerHeight) / this.height));
      return { first: Math.min(first, Math.max(0, this.total - 1)), last };
    }

    // One window height of rows is kept ready above and below the visible ones.
    draw() {
      this.frame = undefined;
      const { first, last } = this.seen();
      const spare = Math.ceil(window.innerHeight / this.height);
      const size = 3 * spare + 4;
      if (this.pool.length < size) this.enlarge(size);
      const from = Math.max(0, first - spare);
      const to = Math.min(this.total - 1, last + spare, from + this.pool.length - 1);
      for (let position = from; position <= to; position += 1) this.place(position);
      this.pool.forEach((handle) => {
        handle.element.hidden = handle.position === null || handle.position < from || handle.position > to;
      });
      this.fetch(first, last);
    }

    // With another pool size a position has another element, so all are redrawn.
    enlarge(size) {
      while (this.pool.length < size) this.pool.push(this.add());
      for (const handle of this.pool) handle.position = null;
    }

    add() {
      const handle = this.make(this.pool.length);
      handle.position = null;
      handle.element.hidden = true;
      this.body.append(handle.element);
      return handle;
    }

    place(position) {
      const handle = this.pool[position % this.pool.length];
      const row = this.row(position);
      if (handle.position === position && handle.row === row) return;
      Object.assign(handle, { position, row });
      handle.element.style.transform = `translateY(${position * this.height}px)`;
      handle.fill(position, row);
    }

    /** The element that currently shows a position, or null. */
    element(position) {
      const handle = this.pool[position % Math.max(1, this.pool.length)];
      return handle?.position === position && !handle.element.hidden ? handle.element : null;
    }

    // Pages are requested by what is visible now, so scrolling across the list does not request what it passes.
    fetch(first, last) {
      if (!this.total) return;
      this.wanted = wanted(first, last, this.total);
      for (const page of this.wanted) {
        if (this.busy.size >= AT_ONCE) return;
        if (
          (!this.pages.has(page) || this.stale.has(page)) && !this.busy.has(page)
        ) this.fetchPage(page, this.question);
      }
    }

    async fetchPage(page, question) {
      this.busy.add(page);
      this.stale.delete(page); // now: what changes while it is on its way has to be requested again
      try {
        const answer = await this.load(this.params, page * PAGE, PAGE);
        if (question !== this.question) return;
        const kept = this.pages.get(page) ?? []; // a row that is the same is not drawn again
        this.pages.set(page, answer.rows.map((row, at) => (this.isSame(row, kept[at]) ? kept[at] : row)));
        this.forget();
        this.onerror(null);
      } catch (error) {
        if (question !== this.question) return;
        this.stale.add(page);
        this.onerror(error);
        this.again = setTimeout(() => this.draw(), AGAIN_MS);
        return;
      } finally {
        if (question === this.question) this.busy.delete(page);
      }
      this.draw();
    }

    // The oldest pages that are not needed are dropped, so a long session keeps little.
    forget() {
      for (const page of this.pages.keys()) {
        if (this.pages.size <= KEPT_PAGES) return;
        if (!this.wanted.includes(page)) this.pages.delete(page);
      }
    }

    /** Scrolls as little as needed to bring a position into the window, clear of what sticks to its top. */
    reveal(position, clear) {
      const top = position * this.height - this.offset();
      const above = top - clear - this.height;
      const below = top + 2 * this.height - window.innerHeight;
      if (above < 0) window.scrollBy(0, above);
      else if (below > 0) window.scrollBy(0, below);
      this.draw();
    }
  }

  /** A virtual list within `body`, scrolled by the window. */
  view.virtualList = (body, options) => new VirtualList(body, options);
})();
