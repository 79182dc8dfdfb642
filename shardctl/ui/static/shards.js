// The table of shards, with the last minutes of each as a line.

import { $, colour, count, duration, el, figure, say, size } from "./dom.js";

const KEPT = 90; // looks
const SVG = "http://www.w3.org/2000/svg";
const history = new Map(); // writes a second by shard

const COLUMNS = [
  ["Shard", (shard) => shard.name],
  ["Slots", (shard) => count(shard.slots)],
  ["Ready", (shard) => (shard.replicas === null ? "?" : `${count(shard.ready)} of ${shard.replicas}`)],
  ["Backlog", (shard) => count(shard.backlog)],
  ["Oldest", (shard) => duration(shard.oldest_seconds)],
  ["Writes/s", (shard) => figure(shard.writes_per_second)],
  ["Recent", null],
  ["Rows a batch", (shard) => figure(shard.rows_a_batch)],
  ["Lock waits/s", (shard) => figure(shard.locks_contended_per_second)],
  ["Duplicates/s", (shard) => figure(shard.duplicates_per_second)],
  ["Dead letters", (shard) => count(shard.dead_lettered)],
  ["Parked keys", (shard) => count(shard.parked_keys)],
  ["Inbox rows", (shard) => count(shard.inbox_rows)],
  ["Inbox size", (shard) => size(shard.inbox_bytes)],
  ["Overdue", (shard) => duration(shard.inbox_overdue_seconds)],
];

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
    COLUMNS.forEach(([, format], column) => format && say(row.cells[column].querySelector(".value"), format(shard)));
    row.cells[2].classList.toggle("bad", shard.ready !== null && shard.ready !== shard.replicas);
    row.cells[11].classList.toggle("bad", shard.parked_keys > 0);
    draw(row.querySelector("polyline"), remember(shard));
  });
}

function newRow(shard, number) {
  const row = el("tr", { role: "row", "data-shard": shard.name });
  for (const [name, format] of COLUMNS) {
    const first = name === "Shard";
    const cell = first ? el("th", { scope: "row", role: "rowheader" }) : el("td", { role: "cell", "data-label": name });
    if (first) cell.append(swatch(number));
    cell.append(format ? el("span", { class: "value" }) : sparkline(number));
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
  const svg = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "polyline");
  svg.setAttribute("viewBox", `0 0 ${KEPT} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // the column before tells the figure
  line.style.stroke = colour(number);
  svg.append(line);
  return svg;
}

function remember(shard) {
  const kept = history.get(shard.name) ?? [];
  kept.push(shard.writes_per_second);
  history.set(shard.name, kept.slice(-KEPT));
  return kept.slice(-KEPT);
}

function draw(line, values) {
  const most = Math.max(1, ...values);
  const points = values.map((value, at) => [KEPT - values.length + at, value]).filter(([, value]) => value !== null);
  line.setAttribute("points", points.map(([x, value]) => `${x},${(23 - (22 * value) / most).toFixed(1)}`).join(" "));
}
