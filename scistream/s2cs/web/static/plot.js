// Plots of the last minutes, drawn as SVG with axes and units.

import { clock, duration, rate, rateUnit, significant, UNKNOWN } from "./format.js";
import { el, say, set, svg } from "./dom.js";

/** The distance of about four ticks up to a value: 1, 2 or 5 times a power of ten. */
export function niceStep(most, ticks = 4) {
  if (!(most > 0)) return 1 / ticks;
  const power = 10 ** Math.floor(Math.log10(most / ticks));
  for (const factor of [1, 2, 5]) {
    if (factor * power >= (most / ticks) * 0.999999) return factor * power;
  }
  return 10 * power;
}

/** The end of an axis: the first multiple of a nice step that is not below a value. */
export function niceCeiling(most, ticks = 4) {
  const step = niceStep(most, ticks);
  return step * Math.max(1, Math.ceil((most / step) * 0.999999));
}

/** Cut points into lines where nothing was reported for longer than `gap` seconds. */
export function segments(times, values, gap, from) {
  const lines = [];
  let line = null;
  let before = -Infinity;
  for (let at = 0; at < times.length; at += 1) {
    if (times[at] < from - gap) continue;
    if (line === null || times[at] - before > gap) {
      line = [];
      lines.push(line);
    }
    line.push([times[at], values[at]]);
    before = times[at];
  }
  return lines;
}

function path(lines, x, y) {
  return lines
    .map((line) => {
      const points = line.length > 1 ? line : [line[0], [line[0][0] + 0.01, line[0][1]]];
      return points.map(([at, value], n) => `${n ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    })
    .join("");
}

function area(lines, x, y) {
  return lines
    .filter((line) => line.length > 1)
    .map(
      (line) =>
        `M${x(line[0][0]).toFixed(1)} ${y(0).toFixed(1)}` +
        line.map(([at, value]) => `L${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("") +
        `L${x(line.at(-1)[0]).toFixed(1)} ${y(0).toFixed(1)}Z`,
    )
    .join("");
}

/** The highest value in sight. */
function highest(series, times, from) {
  let top = 0;
  for (const values of series) {
    for (let at = 0; at < times.length; at += 1) if (times[at] >= from && values[at] > top) top = values[at];
  }
  return top;
}

const SMALL = { width: 190, height: 46, left: 66, right: 4, top: 6, bottom: 13 };
export const SMALL_SPAN = 300;

/** The rate of a stream in a row of a table: both directions, the last five minutes. */
export class SmallPlot {
  constructor() {
    const { width, height, left, right, top, bottom } = SMALL;
    this.top = svg("text", { x: left - 4, y: top + 4, class: "tick end" });
    this.middle = svg("line", { class: "grid", x1: left, x2: width - right, y1: top, y2: top });
    this.area = svg("path", { class: "area consumer" });
    this.toConsumer = svg("path", { class: "line consumer" });
    this.toProducer = svg("path", { class: "line producer" });
    this.node = svg(
      "svg",
      { class: "plot small", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "" },
      this.middle,
      svg("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
      this.area,
      this.toConsumer,
      this.toProducer,
      this.top,
      svg("text", { x: left - 4, y: height - bottom + 2, class: "tick end", text: "0" }),
      svg("text", { x: left, y: height - 2, class: "tick", text: "−5 min" }),
      svg("text", { x: width - right, y: height - 2, class: "tick end", text: "now" }),
    );
    this.key = "";
  }

  /** @param {?Object} history as in the API; null while it is not known. */
  draw(history, now) {
    const last = history?.times.at(-1) ?? 0;
    const key = `${last} ${Math.round(now / 5)}`;
    if (key === this.key) return;
    this.key = key;
    const { width, height, left, right, top, bottom } = SMALL;
    const from = now - SMALL_SPAN;
    const times = history?.times ?? [];
    const both = [history?.mbit_to_consumer ?? [], history?.mbit_to_producer ?? []];
    const most = highest(both, times, from);
    const ceiling = niceCeiling(most || 1, 2);
    const x = (at) => left + (Math.max(0, at - from) / SMALL_SPAN) * (width - left - right);
    const y = (value) => height - bottom - (Math.min(value, ceiling) / ceiling) * (height - top - bottom);
    const lines = both.map((values) => segments(times, values, history?.gap ?? 60, from));
    set(this.area, "d", area(lines[0], x, y));
    set(this.toConsumer, "d", path(lines[0], x, y));
    set(this.toProducer, "d", path(lines[1], x, y));
    say(this.top, most ? rate(ceiling) : "");
    set(this.node, "aria-label", summary(history, most, from));
  }
}

function summary(history, most, from) {
  const known = history?.times.length ? history.times.at(-1) >= from : false;
  if (!known) return "Rate in the last 5 minutes: not known";
  const now = `now ${rate(history.mbit_to_consumer.at(-1))} to the consumer and ${rate(history.mbit_to_producer.at(-1))} to the producer`;
  return `Rate in the last 5 minutes: ${now}, at most ${rate(most)}`;
}

const LARGE = { height: 190, left: 58, right: 12, top: 14, bottom: 24 };

/**
 * A plot of one or two series over the last ten minutes, with a cursor for pointer and arrow keys.
 *
 * @param {Object} options `title`; `series`: of {name, className, values(history)}; `unit(most)` gives {unit, divisor};
 *   `span` in seconds.
 */
export class LargePlot {
  constructor({ title, series, unit, span = 600 }) {
    this.title = title;
    this.series = series;
    this.unit = unit;
    this.span = span;
    this.history = null;
    this.width = 640;
    this.cursor = null;
    this.drawing = svg("svg", { class: "plot large", role: "img", tabindex: 0 });
    this.grid = svg("g");
    this.lines = series.map((one) => svg("path", { class: `line ${one.className}` }));
    this.areas = series.slice(0, 1).map((one) => svg("path", { class: `area ${one.className}` }));
    this.mark = svg("line", { class: "cursor", visibility: "hidden" });
    this.drawing.append(this.grid, ...this.areas, ...this.lines, this.mark);
    this.readout = el("p", { class: "readout" });
    this.values = el("tbody");
    this.table = el(
      "details",
      { class: "values", ontoggle: () => this.#tabulate() },
      el("summary", { text: "Values as a table" }),
      el(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}, values` },
        el(
          "table",
          {},
          el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Time" }), series.map((one) => el("th", { scope: "col", class: "number", text: one.name })))),
          this.values,
        ),
      ),
    );
    this.unitLabel = el("span", { class: "unit" });
    this.node = el(
      "figure",
      { class: "figure" },
      el(
        "figcaption",
        {},
        el("span", { class: "figure-title", text: title }),
        this.unitLabel,
        el("span", { class: "legend" }, series.map((one) => el("span", { class: `key ${one.className}`, text: one.name }))),
      ),
      this.drawing,
      this.readout,
      this.table,
    );
    this.drawing.addEventListener("pointermove", (event) => this.#point(event));
    this.drawing.addEventListener("pointerleave", () => this.#moveTo(null));
    this.drawing.addEventListener("keydown", (event) => this.#key(event));
    this.drawing.addEventListener("blur", () => this.#moveTo(null));
    new ResizeObserver(() => {
      const width = Math.round(this.drawing.clientWidth);
      if (width && width !== this.width) {
        this.width = width;
        this.draw(this.history, this.now);
      }
    }).observe(this.drawing);
  }

  draw(history, now) {
    this.history = history;
    this.now = now;
    if (!history) return;
    const { height, left, right, top, bottom } = LARGE;
    const { width, span } = this;
    const from = now - span;
    const all = this.series.map((one) => one.values(history));
    const most = highest(all, history.times, from);
    const { unit, divisor } = this.unit(most);
    const ceiling = niceCeiling(most / divisor || 1) * divisor;
    const step = niceStep(most / divisor || 1) * divisor;
    const x = (this.x = (at) => left + (Math.max(0, at - from) / span) * (width - left - right));
    const y = (value) => height - bottom - (Math.min(value, ceiling) / ceiling) * (height - top - bottom);
    set(this.drawing, "viewBox", `0 0 ${width} ${height}`);
    set(this.drawing, "height", height);
    say(this.unitLabel, unit);
    this.grid.replaceChildren(...this.#axes(from, ceiling, step, divisor, x, y));
    all.forEach((values, at) => {
      const lines = segments(history.times, values, history.gap, from);
      set(this.lines[at], "d", path(lines, x, y));
      if (at === 0) set(this.areas[0], "d", area(lines, x, y));
    });
    const latest = history.times.length ? this.#words(history.times.length - 1) : UNKNOWN;
    set(this.drawing, "aria-label", `${this.title}, the last ${duration(span)}. At most ${significant(most / divisor)} ${unit}. Latest: ${latest}. Arrow keys read the values.`);
    this.#moveTo(this.cursor);
    if (this.table.open) this.#tabulate();
  }

  #axes(from, ceiling, step, divisor, x, y) {
    const { height, left, right, top, bottom } = LARGE;
    const parts = [];
    for (let n = 0; n * step <= ceiling * 1.001; n += 1) {
      const value = n * step;
      parts.push(
        svg("line", { class: n ? "grid" : "axis", x1: left, x2: this.width - right, y1: y(value), y2: y(value) }),
        svg("text", { class: "tick end", x: left - 6, y: y(value) + 3.5, text: significant(value / divisor) }),
      );
    }
    const every = this.width < 420 ? 180 : 120;
    for (let at = Math.ceil(from / every) * every; at <= this.now; at += every) {
      if (x(at) < left + 14 || x(at) > this.width - right - 10) continue;
      parts.push(
        svg("line", { class: "grid", x1: x(at), x2: x(at), y1: top, y2: height - bottom }),
        svg("text", { class: "tick middle", x: x(at), y: height - 7, text: clock(new Date(at * 1000), false) }),
      );
    }
    return parts;
  }

  #words(at) {
    return this.series
      .map((one) => {
        const value = one.values(this.history)[at];
        const { unit, divisor } = this.unit(value);
        return `${one.name} ${significant(value / divisor)} ${unit}`;
      })
      .join(", ");
  }

  #moveTo(cursor) {
    const times = this.history?.times ?? [];
    this.cursor = cursor === null || !times.length ? null : Math.min(Math.max(0, cursor), times.length - 1);
    set(this.mark, "visibility", this.cursor === null ? "hidden" : "visible");
    if (this.cursor === null) {
      say(this.readout, times.length ? `Latest: ${this.#words(times.length - 1)}` : "Nothing has been reported yet.");
      return;
    }
    const at = this.x(times[this.cursor]);
    for (const [name, value] of [["x1", at], ["x2", at], ["y1", LARGE.top], ["y2", LARGE.height - LARGE.bottom]]) set(this.mark, name, value);
    say(this.readout, `${clock(new Date(times[this.cursor] * 1000))}: ${this.#words(this.cursor)}`);
  }

  #point(event) {
    const times = this.history?.times ?? [];
    const box = this.drawing.getBoundingClientRect();
    const here = ((event.clientX - box.left) / box.width) * this.width;
    let best = null;
    times.forEach((at, index) => {
      if (best === null || Math.abs(this.x(at) - here) < Math.abs(this.x(times[best]) - here)) best = index;
    });
    this.#moveTo(best);
  }

  #key(event) {
    const last = (this.history?.times.length ?? 0) - 1;
    const now = this.cursor ?? last + (event.key === "ArrowLeft" ? 1 : 0);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    set(this.readout, "aria-live", "polite");
    this.#moveTo(next);
  }

  /** One row a minute is enough to read. */
  #tabulate() {
    if (!this.table.open || !this.history) return;
    const rows = [];
    let minute = null;
    for (let at = this.history.times.length - 1; at >= 0; at -= 1) {
      const date = new Date(this.history.times[at] * 1000);
      const here = clock(date, false);
      if (here === minute) continue;
      minute = here;
      const cells = this.series.map((one) => {
        const value = one.values(this.history)[at];
        const { unit, divisor } = this.unit(value);
        return el("td", { class: "number", text: `${significant(value / divisor)} ${unit}` });
      });
      rows.push(el("tr", {}, el("th", { scope: "row", text: clock(date) }), cells));
    }
    this.values.replaceChildren(...rows);
  }
}

export const RATE_SERIES = [
  { name: "to the consumer", className: "consumer", values: (history) => history.mbit_to_consumer },
  { name: "to the producer", className: "producer", values: (history) => history.mbit_to_producer },
];
export { rateUnit };
