// The page: asks the server repeatedly, and passes the answers to the parts that show them.

import { get } from "./api.js";
import { showParked } from "./aside.js";
import { $, count, duration, el, figure, say, showFigures } from "./dom.js";
import { listenForKeys } from "./keyboard.js";
import { listenForLookUps, showTypes } from "./keys.js";
import { showLetters } from "./letters.js";
import { showRebalance } from "./rebalance.js";
import { chooseView, followShard } from "./shard.js";
import { showShards } from "./shards.js";
import { chooseSlot, setHeat, showSlots } from "./slots.js";
import { lookAtHistory } from "./timeline.js";

const AGAIN_MS = 3000; // after a missing answer
const HEAT_MS = 20000;
let slotsShown = null;

async function look() {
  let wait = AGAIN_MS;
  try {
    const [status, slots] = await Promise.all([get("status"), get("slots")]);
    show(status, slots);
    wait = status.pace_seconds * 1000;
  } catch (error) {
    refused(error);
    if (error.status === 401) return; // no use in asking again: only a reload brings another token
  }
  setTimeout(look, document.hidden ? 10 * wait : wait);
}

function show(status, slots) {
  say($("fleet"), status.fleet);
  document.title = `${status.fleet} · shardctl`;
  showConnection(status);
  $("refusal").hidden = !status.file_fault;
  say($("refusal"), status.file_fault ?? "");
  showTypes(status.types);
  showTotals(status);
  showTroubles(status);
  showRebalance(status.rebalance, status.at);
  showShards(status);
  followShard(status);
  const text = JSON.stringify([slots, status.shards.map((shard) => shard.name), $("maps").clientWidth]);
  if (text !== slotsShown) showSlots(slots, status.shards);
  slotsShown = text;
}

// "live" alone would look calm where figures are missing.
function showConnection(status) {
  const silent = Object.keys(status.unknown).length;
  const state = status.nothing ? "none" : silent || status.file_fault ? "part" : "good";
  const missing = `${silent} ${silent === 1 ? "source doesn't" : "sources don't"} answer`;
  const parts = status.nothing ? ["nothing known"] : ["live", silent && missing, status.file_fault && "by an older file"];
  $("connection").dataset.state = state;
  say($("connection"), parts.filter(Boolean).join(", "));
  say($("at"), new Date(status.at).toLocaleTimeString());
  $("blind").hidden = !status.nothing;
}

function refused(error) {
  $("connection").dataset.state = "none";
  say($("connection"), $("at").textContent ? "no answer since" : "no answer");
  $("refusal").hidden = false;
  const text = error.status ? error.message : "shardctl ui doesn't answer: has it ended? This page tries again.";
  say($("refusal"), $("at").textContent ? `${text} All figures below are of ${$("at").textContent}.` : text);
}

// Of figures by shard, the sum; null where one isn't known, since a part would look like the whole.
function sum(shards, name) {
  const values = shards.map((shard) => shard[name]);
  return values.includes(null) ? null : values.reduce((total, value) => total + value, 0);
}

function showTotals({ shards, dead_letters, strays }) {
  const oldest = shards.map((shard) => shard.oldest_seconds);
  showFigures($("totals"), {
    "Writes/s": figure(sum(shards, "writes_per_second")),
    "Backlog": count(sum(shards, "backlog")),
    "Oldest message": duration(oldest.includes(null) ? null : Math.max(0, ...oldest)),
    "Dead letters": count(dead_letters),
    "Strays": count(strays),
    "Parked keys": count(sum(shards, "parked_keys")),
  });
}

function showTroubles(status) {
  const problems = status.shards.flatMap((shard) => shard.troubles.map((trouble) => `${shard.name}: ${trouble}`));
  problems.push(...status.troubles);
  for (const shard of status.shards) if (shard.parked_keys) problems.push(`${shard.name}: parked keys wait for an operator (below)`);
  if (status.dead_letters) problems.push("Dead letters wait for an operator (below)");
  if (status.strays) problems.push("Strays wait for an operator (below): messages that no shard takes");
  const unknown = Object.entries(status.unknown).map(([what, why]) => `not known: ${what}: ${why}`);
  const list = $("troubles");
  [...problems, ...unknown].forEach((text, at) => {
    const item = list.children[at] ?? list.appendChild(el("li"));
    item.className = at < problems.length ? "bad" : "missing";
    say(item, text);
  });
  while (list.children.length > problems.length + unknown.length) list.lastChild.remove();
  // The one line that is read out: it changes only when something begins or ends.
  const lines = [];
  if (problems.length) lines.push(`${problems.length} ${problems.length === 1 ? "thing needs" : "things need"} a look.`);
  if (unknown.length) lines.push(`${unknown.length} ${unknown.length === 1 ? "source doesn't" : "sources don't"} answer: what they know is shown as ?.`);
  say($("attention-count"), lines.join(" ") || "Nothing.");
}

async function lookAtHeat() {
  if (!$("heat").checked) {
    setHeat(null);
    return say($("heat-text"), "");
  }
  try {
    const counts = await get("heat");
    if ($("heat").checked) setHeat(counts);
    const why = Object.entries(counts.unknown).map(([shard, reason]) => `not known of ${shard}: ${reason}`);
    say($("heat-text"), why.join("; ") || "The fuller the colour, the more writes.");
  } catch (error) {
    say($("heat-text"), error.message);
  }
}

$("heat").addEventListener("change", lookAtHeat);
setInterval(() => $("heat").checked && !document.hidden && lookAtHeat(), HEAT_MS);
$("slot").addEventListener("input", chooseSlot);
new ResizeObserver(chooseSlot).observe($("maps"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", chooseSlot);
$("parked-look").addEventListener("click", showParked);
$("letters-look").addEventListener("click", () => showLetters($("letters-look"), $("letters-text"), $("letters"), {}));
$("strays-look").addEventListener("click", () => showLetters($("strays-look"), $("letters-text"), $("letters"), { strays: true }));
listenForLookUps();
listenForKeys();
chooseView();
look().then(lookAtHistory);
