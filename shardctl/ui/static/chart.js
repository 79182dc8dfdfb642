// A line chart of one figure over time. Unknown values are gaps, never zeros. A moment is chosen by pointer or by arrow keys.

import { colour, count, duration, el, figure, say, svg } from "./dom.js";

const WIDTH = 600, HEIGHT = 120;
const FORMATS = { "seconds": duration, "per second": (value) => (value === null ? "?" : `${figure(value)}/s`), "writes": count };
const KEYS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

// The path of a line through the known values; one alone is a dot.
export function lineOf(values, most, width, height) {
  const step = width / Math.max(1, values.length - 1);
  return values.map((value, at) => {
    if (value === null) return "";
    const alone = (values[at - 1] ?? null) === null;
    const place = `${(at * step).toFixed(1)} ${(height - 1 - ((height - 3) * value) / most).toFixed(1)}`;
    return alone ? `M${place}h0.01` : `L${place}`;
  }).join("");
}

export class Chart {
  constructor() {
    this.chosen = null; // a moment, in seconds since 1970; null is the last
    this.lines = svg("g");
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT });
    const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    picture.append(this.lines, this.cursor);
    this.title = el("figcaption");
    this.most = el("span", { class: "most", "aria-hidden": "true" });
    this.first = el("span");
    this.last = el("span");
    this.plot = el("div", { class: "plot", role: "slider", tabindex: "0", onkeydown: (event) => this.move(event), onpointermove: (event) => this.point(event), onpointerleave: () => this.choose(null) }, picture, this.most);
    this.reading = el("ul", { class: "reading" });
    this.moments = el("div", { class: "moments", "aria-hidden": "true" }, this.first, this.last);
    this.node = el("figure", { class: "chart" }, this.title, this.plot, this.moments, this.reading);
  }

  // `lines` are [name, number of its colour, values].
  show(title, unit, began, step, lines) {
    this.began = began;
    this.step = step;
    this.points = Math.max(0, ...lines.map(([, , values]) => values.length));
    this.format = FORMATS[unit];
    this.shown = lines;
    const known = lines.flatMap(([, , values]) => values).filter((value) => value !== null);
    const most = Math.max(1, ...known); // less is drawn near 0: noise would look like a mountain
    for (const part of [this.plot, this.moments]) part.hidden = !known.length;
    if (!known.length) this.points = 0;
    say(this.title, title);
    say(this.most, this.format(most));
    say(this.first, clock(began));
    say(this.last, clock(this.moment(this.points - 1)));
    this.lines.replaceChildren(...lines.map(([, number, values]) => {
      const line = svg("path", { class: "line", d: lineOf(values, most, WIDTH, HEIGHT) });
      line.style.stroke = colour(number);
      return line;
    }));
    this.plot.setAttribute("aria-label", `${title}, by moment`);
    this.plot.setAttribute("aria-valuemin", "0");
    this.plot.setAttribute("aria-valuemax", String(Math.max(0, this.points - 1)));
    this.read();
  }

  moment(at) {
    return this.began + at * this.step;
  }

  get at() {
    const last = this.points - 1;
    return this.chosen === null ? last : Math.min(last, Math.max(0, Math.round((this.chosen - this.began) / this.step)));
  }

  read() {
    const at = this.at;
    if (at < 0) return this.reading.replaceChildren(el("li", { class: "missing" }, "unknown"));
    const when = clock(this.moment(at));
    const values = this.shown.map(([name, number, all]) => [name, number, this.format(all[at] ?? null)]);
    const items = values.map(([name, number, value]) => el("li", {}, mark(number), `${name} ${value}`));
    this.reading.replaceChildren(el("li", { class: "quiet" }, when), ...items);
    this.plot.setAttribute("aria-valuenow", String(at));
    this.plot.setAttribute("aria-valuetext", [when, ...values.map(([name, , value]) => `${name} ${value === "?" ? "unknown" : value}`)].join(", "));
    const x = (at * WIDTH) / Math.max(1, this.points - 1);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    this.cursor.classList.toggle("on", this.chosen !== null);
  }

  choose(moment) {
    this.chosen = moment;
    this.read();
  }

  move(event) {
    const by = KEYS[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const at = Math.min(this.points - 1, Math.max(0, this.at + by));
    this.choose(at === this.points - 1 ? null : this.moment(at));
  }

  point(event) {
    const box = this.plot.getBoundingClientRect();
    this.choose(this.moment(Math.round(((event.clientX - box.left) / box.width) * (this.points - 1))));
  }
}

function mark(number) {
  const made = el("span", { class: "swatch", "aria-hidden": "true" });
  made.style.background = colour(number);
  return made;
}
