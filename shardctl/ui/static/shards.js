// The table of shards. Each opens a page of its own, with the figures that have no column.

import { lineOf } from "./chart.js";
import { $, colour, count, duration, el, figure, say, svg } from "./dom.js";
import { openShard } from "./shard.js";

const RECENT = 90; // steps of the time line
let recent = {}; // writes a second by shard

// The name of a column, its text, and a shorter name for a narrow screen.
const COLUMNS = [
  ["Shard", null],
  ["Ready", (shard) => (shard.replicas === null ? "?" : `${count(shard.ready)} of ${shard.replicas}`)],
  ["Backlog", (shard) => count(shard.backlog)],
  ["Oldest", (shard) => duration(shard.oldest_seconds)],
  ["Writes/s", (shard) => figure(shard.writes_per_second)],
  ["Recent", null],
  ["Dead-lettered", (shard) => count(shard.dead_lettered), "Dead"],
  ["Parked keys", (shard) => count(shard.parked_keys), "Parked"],
  ["Slots", (shard) => count(shard.slots)],
];
const READY = 1, PARKED = 7;

export function showShards(status) {
  const table = $("shards").querySelector("table");
  if (!table.tHead.rows.length) {
    const cells = COLUMNS.map(([name]) => el("th", { scope: "col", role: "columnheader" }, name));
    table.tHead.append(el("tr", { role: "row" }, ...cells));
  }
  const body = table.tBodies[0];
  const names = status.shards.map((shard) => shard.name);
  for (const row of [...body.rows]) if (!names.includes(row.dataset.shard)) row.remove();
  status.shards.forEach((shard, number) => {
    const row = [...body.rows].find((candidate) => candidate.dataset.shard === shard.name) ?? body.appendChild(newRow(shard, number));
    COLUMNS.forEach(([, format], column) => {
      if (!format) return;
      const value = row.cells[column].querySelector(".value");
      say(value, format(shard));
      value.classList.toggle("unknown", value.textContent === "?");
    });
    row.cells[READY].classList.toggle("bad", shard.ready !== null && shard.ready !== shard.replicas);
    row.cells[PARKED].classList.toggle("bad", shard.parked_keys > 0);
    draw(row.querySelector("path"), recent[shard.name] ?? []);
  });
}

export function setRecent(writes) {
  recent = writes;
}

function newRow(shard, number) {
  const row = el("tr", { role: "row", "data-shard": shard.name });
  for (const [name, format, short] of COLUMNS) {
    const first = name === "Shard";
    const cell = first ? el("th", { scope: "row", role: "rowheader" }) : el("td", { role: "cell", "data-label": short ?? name, class: format ? undefined : "recent" });
    if (first) cell.append(swatch(number), el("button", { type: "button", class: "link", onclick: () => openShard(shard.name), title: "Open the shard" }, shard.name));
    else cell.append(format ? el("span", { class: "value" }) : sparkline(number));
    row.append(cell);
  }
  return row;
}

export function swatch(number) {
  const made = el("span", { class: "swatch", "aria-hidden": "true" });
  made.style.background = colour(number);
  return made;
}

function sparkline(number) {
  const line = svg("path", { class: "line" });
  line.style.stroke = colour(number);
  const picture = svg("svg", { viewBox: `0 0 ${RECENT} 24`, preserveAspectRatio: "none", "aria-hidden": "true" }); // the time line has the figures
  picture.append(line);
  return picture;
}

function draw(line, all) {
  const values = all.slice(-RECENT);
  line.setAttribute("d", lineOf([...new Array(RECENT - values.length).fill(null), ...values], Math.max(1, ...values), RECENT - 1, 24));
}
