// The slot map: a cell for each slot, coloured by the shard that holds it. The table below each picture shows the same.

import { $, colour, count, el, figure, say } from "./dom.js";
import { swatch } from "./shards.js";

const NOBODY = -1;
const IN_FLIGHT = new Set(["due", "left"]); // of a rebalance: the slot is being handed over
let latest = null; // the server's last answer
let numbers = new Map(); // of shards, in the order of the file
let heat = null;

export function showSlots(slots, shards) {
  latest = slots;
  numbers = new Map(shards.map((shard, number) => [shard.name, number]));
  $("slot").max = slots.slots - 1;
  const maps = $("maps");
  while (maps.children.length > slots.maps.length) maps.lastChild.remove();
  slots.maps.forEach((map, at) => {
    const figureOf = maps.children[at] ?? maps.appendChild(newMap());
    caption(figureOf, map, slots.maps.length);
    draw(figureOf.querySelector("canvas"), map);
  });
  showSlot();
}

export function setHeat(counts) {
  heat = counts;
  if (latest) latest.maps.forEach((map, at) => draw($("maps").children[at].querySelector("canvas"), map));
  showSlot();
}

function newMap() {
  const canvas = el("canvas", { role: "img", onpointerdown: pick, onpointermove: (event) => event.buttons && pick(event) });
  const table = el("details", {}, el("summary", {}, "As a table"), el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Slots by shard" }));
  return el("figure", {}, el("figcaption"), canvas, el("ul", { class: "legend" }), table);
}

function caption(figureOf, map, maps) {
  const [title, canvas, legend, table] = figureOf.children;
  say(title, maps > 1 || map.types ? `Message types: ${map.types || "all"}` : "");
  const sizes = Object.entries(map.holders).map(([name, ranges]) => [name, size(ranges), ranges]);
  const moving = Object.entries(map.stages).filter(([stage]) => IN_FLIGHT.has(stage)).reduce((sum, [, ranges]) => sum + size(ranges), 0);
  const summary = sizes.map(([name, slots]) => `${name} holds ${count(slots)}`).join(", ") + (moving ? `, ${count(moving)} in flight` : "");
  canvas.setAttribute("aria-label", `Map of ${count(latest.slots)} slots: ${summary}`);
  const marks = sizes.map(([name, slots]) => el("li", {}, swatch(numbers.get(name)), `${name} ${count(slots)}${map.from_file.includes(name) ? " by the file" : ""}`));
  if (moving) marks.push(el("li", {}, el("span", { class: "swatch hand", "aria-hidden": "true" }), `being handed over ${count(moving)}`));
  legend.replaceChildren(...marks);
  const rows = [...sizes.map(([name, slots, ranges]) => [name, slots, ranges]), ...Object.entries(map.stages).map(([stage, ranges]) => [`moving: ${stage}`, size(ranges), ranges])];
  const text = JSON.stringify(rows);
  if (table.dataset.shown === text) return;
  table.dataset.shown = text;
  const body = rows.map(([name, slots, ranges]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, count(slots)), el("td", { class: "ranges" }, spelled(ranges))));
  const head = el("tr", {}, ...["Shard", "Slots", "Which"].map((name) => el("th", { scope: "col" }, name)));
  table.lastChild.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

function draw(canvas, map) {
  const bits = Math.log2(latest.slots);
  const room = canvas.parentElement.clientWidth;
  const columns = 2 ** (Math.ceil(bits / 2) + (room >= 640 ? 1 : 0));
  const rows = Math.max(1, latest.slots / columns);
  const cell = Math.max(1, Math.min(28, Math.floor(room / columns)));
  const gap = cell >= 6 ? 1 : 0;
  const scale = Math.ceil(window.devicePixelRatio || 1);
  canvas.width = columns * cell * scale;
  canvas.height = rows * cell * scale;
  canvas.style.width = `${columns * cell}px`;
  Object.assign(canvas.dataset, { columns, cell });
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const [owners, stages] = lay(map);
  const rates = heat && ratesOf(map);
  const most = rates && Math.max(1e-9, ...rates.values());
  const style = getComputedStyle(canvas);
  const ink = style.getPropertyValue("--ink"), nobody = style.getPropertyValue("--nobody");
  for (let slot = 0; slot < latest.slots; slot++) {
    const x = (slot % columns) * cell, y = Math.floor(slot / columns) * cell;
    const share = rates ? 0.12 + 0.88 * Math.sqrt((rates.get(slot) ?? 0) / most) : 1;
    pen.fillStyle = owners[slot] === NOBODY ? nobody : colour(owners[slot], share);
    pen.fillRect(x, y, cell - gap, cell - gap);
    if (IN_FLIGHT.has(stages[slot])) {
      pen.fillStyle = ink;
      if (cell < 4) pen.fillRect(x, y, cell, cell);
      else pen.fillRect(x + cell / 4, y + cell / 4, (cell - gap) / 2, (cell - gap) / 2);
    }
  }
  const chosen = $("slot").valueAsNumber;
  if (chosen >= 0 && chosen < latest.slots) {
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.strokeRect((chosen % columns) * cell, Math.floor(chosen / columns) * cell, cell - gap, cell - gap);
  }
}

// The shard's number and the hand-over's stage of each slot.
function lay(map) {
  const owners = new Int32Array(latest.slots).fill(NOBODY), stages = new Array(latest.slots);
  const forEachSlot = (ranges, mark) => ranges.forEach(([first, last]) => { for (let slot = first; slot <= last; slot++) mark(slot); });
  for (const [name, ranges] of Object.entries(map.holders)) forEachSlot(ranges, (slot) => { owners[slot] = numbers.get(name) ?? NOBODY; });
  for (const [stage, ranges] of Object.entries(map.stages)) forEachSlot(ranges, (slot) => { stages[slot] = stage; });
  return [owners, stages];
}

function ratesOf(map) {
  const rates = new Map();
  for (const name of Object.keys(map.holders)) {
    const counted = heat.shards[name];
    counted?.slots.forEach((slot, at) => rates.set(slot, (rates.get(slot) ?? 0) + counted.rates[at]));
  }
  return rates;
}

function pick(event) {
  const { columns, cell } = event.target.dataset;
  const box = event.target.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / cell), row = Math.floor((event.clientY - box.top) / cell);
  $("slot").value = Math.min(latest.slots - 1, Math.max(0, row * columns + column));
  chooseSlot();
}

export function chooseSlot() {
  if (latest) latest.maps.forEach((map, at) => draw($("maps").children[at].querySelector("canvas"), map));
  showSlot();
}

function showSlot() {
  const slot = $("slot").valueAsNumber;
  if (!latest || !(slot >= 0 && slot < latest.slots)) return say($("slot-text"), latest ? `slots are 0 to ${count(latest.slots - 1)}` : "");
  const names = [...numbers.keys()];
  const lines = latest.maps.map((map) => {
    const [owners, stages] = lay(map);
    const owner = owners[slot] === NOBODY ? "no database holds it just now" : names[owners[slot]];
    const rate = heat ? `, ${figure(ratesOf(map).get(slot) ?? 0)} writes/s` : "";
    return `${owner}${stages[slot] ? `, hand-over: ${stages[slot]}` : ""}${rate}${latest.maps.length > 1 ? ` (${map.types || "all types"})` : ""}`;
  });
  say($("slot-text"), lines.join("; "));
}

const size = (ranges) => ranges.reduce((sum, [first, last]) => sum + last - first + 1, 0);
const spelled = (ranges) => ranges.map(([first, last]) => (first === last ? first : `${first}-${last}`)).join(", ") || "none";
