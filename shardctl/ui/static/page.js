// The page: asks the server repeatedly, and passes the answers to the parts that show them.

import { get } from "./api.js";
import { showParked } from "./aside.js";
import { $, count, duration, el, figure, say } from "./dom.js";
import { showLetters } from "./letters.js";
import { showShards } from "./shards.js";
import { chooseSlot, setHeat, showSlots } from "./slots.js";

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
  say($("connection"), status.file_fault ? "live, by an older file" : "live");
  say($("at"), new Date(status.at).toLocaleTimeString());
  $("refusal").hidden = !status.file_fault;
  say($("refusal"), status.file_fault ?? "");
  showTotals(status);
  showTroubles(status);
  showRebalance(status.rebalance);
  showShards(status);
  const text = JSON.stringify([slots, status.shards.map((shard) => shard.name), $("maps").clientWidth]);
  if (text !== slotsShown) showSlots(slots, status.shards);
  slotsShown = text;
}

function refused(error) {
  say($("connection"), "no answer");
  $("refusal").hidden = false;
  const text = error.status ? error.message : "shardctl ui doesn't answer: has it ended? This page tries again.";
  say($("refusal"), text);
}

// Of figures by shard, the sum; null where one isn't known, since a part would look like the whole.
function sum(shards, name) {
  const values = shards.map((shard) => shard[name]);
  return values.includes(null) ? null : values.reduce((total, value) => total + value, 0);
}

function showTotals({ shards, dead_letters, strays }) {
  const oldest = shards.map((shard) => shard.oldest_seconds);
  const totals = {
    "Writes/s": figure(sum(shards, "writes_per_second")),
    "Backlog": count(sum(shards, "backlog")),
    "Oldest": duration(oldest.includes(null) ? null : Math.max(0, ...oldest)),
    "Dead letters": count(dead_letters),
    "Strays": count(strays),
    "Parked keys": count(sum(shards, "parked_keys")),
  };
  const list = $("totals");
  if (!list.children.length) for (const name of Object.keys(totals)) list.append(el("div", {}, el("dt", {}, name), el("dd")));
  Object.values(totals).forEach((text, at) => say(list.children[at].lastChild, text));
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
    item.className = at < problems.length ? "bad" : "quiet";
    say(item, text);
  });
  while (list.children.length > problems.length + unknown.length) list.lastChild.remove();
  // The one line that is read out: it changes only when something begins or ends.
  const lines = [];
  if (problems.length) lines.push(`${problems.length} ${problems.length === 1 ? "thing needs" : "things need"} a look.`);
  if (unknown.length) lines.push(`${unknown.length} ${unknown.length === 1 ? "source doesn't" : "sources don't"} answer.`);
  say($("attention-count"), lines.join(" ") || "Nothing.");
}

function showRebalance(moving) {
  $("rebalance").hidden = !moving;
  if (!moving) return;
  const bar = $("rebalance-bar");
  bar.hidden = moving.stages === null;
  if (moving.stages === null) return say($("rebalance-text"), `Rebalance ${moving.id ?? "not opened"}: its databases don't all answer.`);
  const left = moving.seconds_left ? `, about ${duration(moving.seconds_left)} left` : "";
  const others = Object.entries(moving.stages).filter(([stage, slots]) => slots && stage !== "arrived").map(([stage, slots]) => `${count(slots)} ${stage}`);
  say($("rebalance-text"), `${count(moving.stages.arrived)} of ${count(moving.slots)} slots handed over${others.length ? ` (${others.join(", ")})` : ""}${left}.`);
  bar.max = Math.max(1, moving.slots);
  bar.value = moving.stages.arrived;
  const moves = moving.moves.map((move) => `still to move from ${move.from} to ${move.to}: ${count(move.slot_count)} slots`);
  const states = Object.entries(moving.states).map(([shard, state]) => `${shard} ${state}`).join(", ");
  $("rebalance-moves").replaceChildren(...[`${moving.id ?? "not opened"}: ${states}`, ...moves, ...moving.broken].map((line) => el("li", {}, line)));
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
$("letters-look").addEventListener("click", () => showLetters(false));
$("strays-look").addEventListener("click", () => showLetters(true));
look();
