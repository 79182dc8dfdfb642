// The last hour of the fleet, and of the shard that is open: from Prometheus, or from what the server has seen itself.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { $, clock, say } from "./dom.js";
import { openedShard } from "./shard.js";
import { setRecent } from "./shards.js";

const AGAIN_MS = 15000;
const MOST_LINES = 6; // more can't be told apart: then one line stands for all shards
const OF_ALL = { lag: ["worst shard", (values) => Math.max(...values)], writes: ["all shards", total], dead: ["all shards", total] };
const charts = { charts: [], "shard-charts": [] }; // by the id of the element that has them
let latest = null;
let names = [];

export async function lookAtHistory() {
  try {
    latest = await get("history");
    showHistory();
  } catch (error) {
    say($("history-text"), error.message);
  }
  setTimeout(lookAtHistory, document.hidden ? 4 * AGAIN_MS : AGAIN_MS);
}

export function nameShards(shards) {
  names = shards.map((shard) => shard.name);
}

export function showHistory() {
  if (!latest) return;
  say($("history-text"), source(latest));
  setRecent(latest.figures.find((figure) => figure.name === "writes")?.shards ?? {});
  const opened = openedShard();
  latest.figures.forEach((figure, at) => {
    if (opened === null) draw("charts", at, figure, names.length > MOST_LINES ? [ofAll(figure)] : names.map((name, number) => lineOf(figure, name, number)));
    else draw("shard-charts", at, figure, [lineOf(figure, opened, names.indexOf(opened))]);
  });
}

function source({ source: from, why, began, figures }) {
  if (from === "prometheus") return "From Prometheus.";
  const reason = why ? `Prometheus has no answer (${why}), so this` : "This";
  const since = figures.length ? `since ${clock(began * 1000)}` : "from now on";
  return `${reason} is what shardctl ui has seen itself ${since}, while the page was open.${why ? "" : " With --prometheus URL it shows the whole hour."}`;
}

function draw(place, at, figure, lines) {
  const drawn = charts[place];
  if (!drawn[at]) {
    drawn[at] = new Chart();
    $(place).append(drawn[at].node);
  }
  drawn[at].show(titleOf(figure), figure.unit, latest.began, latest.step_seconds, lines);
}

const titleOf = (figure) => (figure.unit === "per second" ? `${figure.title} a second` : figure.title);

const lineOf = (figure, name, number) => [name, number, figure.shards[name] ?? []];

function total(values) {
  return values.reduce((sum, value) => sum + value, 0);
}

// One line for all shards. A shard counts from its first known value on; where one isn't known then, all isn't.
function ofAll(figure) {
  const [title, merge] = OF_ALL[figure.name];
  const all = names.map((name) => figure.shards[name] ?? []);
  const firsts = all.map((values) => values.findIndex((value) => value !== null));
  const points = Math.max(0, ...all.map((values) => values.length));
  const values = Array.from({ length: points }, (_, at) => {
    const counted = all.filter((__, shard) => firsts[shard] !== -1 && firsts[shard] <= at).map((shard) => shard[at] ?? null);
    return counted.length && !counted.includes(null) ? merge(counted) : null;
  });
  return [title, 0, values];
}
