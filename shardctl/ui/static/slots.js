// The slot map: a cell for each slot, coloured by the shard that holds it. The table below each picture tells the same.

import { $, colour, count, el, figure, say } from "./dom.js";
import { swatch } from "./shards.js";

const NOBODY = -1;
const IN_HAND = new Set(["due", "left"]); // of a rebalance: the slot is just being handed over
let told = null; // what the server said last
let numbers = new Map(); // of shards, in the order of the file
let heat = null;

export function showSlots(slots, shards) {
  told = slots;
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

export function setHeat(found) {
  heat = found;
  if (told) told.maps.forEach((map, at) => draw($("maps").children[at].querySelector("canvas"), map));
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
  const moving = Object.entries(map.stages).filter(([stage]) => IN_HAND.has(stage)).reduce((sum, [, ranges]) => sum + size(ranges), 0);
  const summary = sizes.map(([name, slots]) => `${name} holds ${count(slots)}`).join(", ") + (moving ? `, ${count(moving)} in flight` : "");
  canvas.setAttribute("aria-label", `Map of ${count(told.slots)} slots: ${summary}`);
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
  const bits = Math.log2(told.slots);
  const room = canvas.parentElement.clientWidth;
  const columns = 2 ** (Math.ceil(bits / 2) + (room >= 640 ? 1 : 0));
  const rows = Math.max(1, told.slots / columns);
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
  for (let slot = 0; slot < told.slots; slot++) {
    const x = (slot % columns) * cell, y = Math.floor(slot / columns) * cell;
    const share = rates ? 0.12 + 0.88 * Math.sqrt((rates.get(slot) ?? 0) / most) : 1;
    pen.fillStyle = owners[slot] === NOBODY ? nobody : colour(owners[slot], share);
    pen.fillRect(x, y, cell - gap, cell - gap);
    if (IN_HAND.has(stages[slot])) {
      pen.fillStyle = ink;
      if (cell < 4) pen.fillRect(x, y, cell, cell);
      else pen.fillRect(x + cell / 4, y + cell / 4, (cell - gap) / 2, (cell - gap) / 2);
    }
  }
  const chosen = $("slot").valueAsNumber;
  if (chosen >= 0 && chosen < told.slots) {
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.strokeRect((chosen % columns) * cell, Math.floor(chosen / columns) * cell, cell - gap, cell - gap);
  }
}

// The shard's number and the hand-over's stage of each slot.
function lay(map) {
  const owners = new Int32Array(told.slots).fill(NOBODY), stages = new Array(told.slots);
  const each = (ranges, mark) => ranges.forEach(([first, last]) => { for (let slot = first; slot <= last; slot++) mark(slot); });
  for (const [name, ranges] of Object.entries(map.holders)) each(ranges, (slot) => { owners[slot] = numbers.get(name) ?? NOBODY; });
  for (const [stage, ranges] of Object.entries(map.stages)) each(ranges, (slot) => { stages[slot] = stage; });
  return [owners, stages];
}

function ratesOf(map) {
  const found = new Map();
  for (const name of Object.keys(map.holders)) {
    const of = heat.shards[name];
    of?.slots.forEach((slot, at) => found.set(slot, (found.get(slot) ?? 0) + of.rates[at]));
  }
  return found;
}

function pick(event) {
  const { columns, cell } = event.target.dataset;
  const box = event.target.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / cell), row = Math.floor((event.clientY - box.top) / cell);
  $("slot").value = Math.min(told.slots - 1, Math.max(0, row * columns + column));
  chooseSlot();
}

export function chooseSlot() {
  if (told) told.maps.forEach((map, at) => draw($("maps").children[at].querySelector("canvas"), map));
  showSlot();
}

function showSlot() {
  const slot = $("slot").valueAsNumber;
  if (!told || !(slot >= 0 && slot < told.slots)) return say($("slot-told"), told ? `slots are 0 to ${count(told.slots - 1)}` : "");
  const names = [...numbers.keys()];
  const lines = told.maps.map((map) => {
    const [owners, stages] = lay(map);
    const owner = owners[slot] === NOBODY ? "no database holds it just now" : names[owners[slot]];
    const rate = heat ? `, ${figure(ratesOf(map).get(slot) ?? 0)} writes/s` : "";
    return `${owner}${stages[slot] ? `, hand-over: ${stages[slot]}` : ""}${rate}${told.maps.length > 1 ? ` (${map.types || "all types"})` : ""}`;
  });
  say($("slot-told"), lines.join("; "));
}

const size = (ranges) => ranges.reduce((sum, [first, last]) => sum + last - first + 1, 0);
const spelled = (ranges) => ranges.map(([first, last]) => (first === last ? first : `${first}-${last}`)).join(", ") || "none";
